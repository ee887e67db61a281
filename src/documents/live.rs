//! What is known of an open document now, as plain data: its newest operations, who has what, and how that looks to an editor.
//!
//! It knows no lock, no store and no clock: [`OpenDocument`](super::OpenDocument) holds it under its lock, and tells
//! whoever waits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::ids::PeerId;
use crate::limits::{RECENT_MAX_BYTES, RECENT_MAX_OPERATIONS};
use crate::operation::SeqNum;
use crate::store::{DocumentState, Heads, Position, StoredOperation};

/// Where a document stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DocumentStatus {
    /// Connected peers that share it.
    pub peers: usize,
    /// Own operations that no peer has acknowledged.
    pub pending: usize,
    /// Operations that connected peers announced and that are not here yet.
    pub missing: usize,
    /// When an operation or an acknowledgement last came from a peer, in µs since the Unix epoch; `None` if never in this run.
    pub last_sync_us: Option<u64>,
    /// Authors whose log is frozen because they signed two operations in one place.
    pub frozen: Vec<PeerId>,
    /// This node's directory was restored from a backup or copied: nothing can be published until a peer was asked for
    /// newer operations of our own.
    pub unconfirmed: bool,
}

/// What one peer has of our own operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerProgress {
    /// The peer.
    pub peer: PeerId,
    /// Whether a session with it is open.
    pub connected: bool,
    /// Own operations up to and including this one are durable there, as far as known in this run.
    pub acknowledged: Option<SeqNum>,
}

/// Newly stored operations for a reader that is in step, or the news that it is not.
pub(super) enum Recent {
    /// Operations after the reader's position, in order; empty when there are none.
    Operations(Vec<StoredOperation>),
    /// The reader is behind what is kept in memory.
    Behind,
}

/// What is known of one peer.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub sessions: usize,
    pub acknowledged: Option<SeqNum>,
    pub missing: u64,
}

/// What is known of a document now.
#[derive(Debug)]
pub(super) struct Live {
    pub heads: Heads,
    pub newest: Position,
    pub recent: VecDeque<StoredOperation>,
    pub recent_bytes: usize,
    /// Everything up to here is no longer, or never was, in `recent`.
    pub forgotten: Position,
    pub delivered: Option<SeqNum>,
    pub peers: BTreeMap<PeerId, Peer>,
    pub frozen: BTreeSet<PeerId>,
    pub unconfirmed: bool,
    pub last_sync_us: Option<u64>,
}

impl Live {
    pub fn new() -> Self {
        Self {
            heads: Heads::new(),
            newest: 0,
            recent: VecDeque::new(),
            recent_bytes: 0,
            forgotten: 0,
            delivered: None,
            peers: BTreeMap::new(),
            frozen: BTreeSet::new(),
            unconfirmed: false,
            last_sync_us: None,
        }
    }

    /// How many own operations there are, and how many of them some peer has, from the first on.
    pub fn own(&self, node: &PeerId) -> (usize, usize) {
        let counted = |seq_num: Option<SeqNum>| seq_num.map_or(0, |seq_num| seq_num as usize + 1);
        (counted(self.heads.get(node).map(|head| head.seq_num)), counted(self.delivered))
    }

    /// An operation was stored.
    pub fn push(&mut self, stored: &StoredOperation) {
        self.heads.insert(stored.operation.author(), stored.operation.head());
        self.newest = stored.position;
        self.recent_bytes += stored.operation.size();
        self.recent.push_back(stored.clone());
        while self.recent.len() > RECENT_MAX_OPERATIONS || self.recent_bytes > RECENT_MAX_BYTES {
            let Some(oldest) = self.recent.pop_front() else { break };
            self.recent_bytes -= oldest.operation.size();
            self.forgotten = oldest.position;
        }
    }

    /// What the store knew at the start; what was observed meanwhile is newer and stays.
    pub fn adopt(&mut self, state: DocumentState) {
        let observed = std::mem::replace(&mut self.heads, state.heads);
        self.heads.extend(observed);
        self.forgotten = state.newest;
        self.newest = self.newest.max(state.newest);
        self.delivered = self.delivered.max(state.delivered);
        self.frozen.extend(state.frozen);
        self.unconfirmed = state.unconfirmed;
    }

    /// Operations after `position`, at most `max_bytes` of them but at least one.
    pub fn recent_after(&self, position: Position, max_bytes: usize) -> Recent {
        if position < self.forgotten {
            return Recent::Behind;
        }
        let start = self.recent.partition_point(|stored| stored.position <= position);
        let mut bytes = 0;
        let page = self.recent.range(start..).take_while(|stored| {
            let first = bytes == 0;
            bytes += stored.operation.size();
            first || bytes <= max_bytes
        });
        Recent::Operations(page.cloned().collect())
    }

    /// How many peers have our own operation `seq_num`.
    pub fn delivered_to(&self, seq_num: SeqNum) -> usize {
        self.peers.values().filter(|peer| peer.acknowledged >= Some(seq_num)).count()
    }

    /// What each peer has.
    pub fn progress(&self) -> Vec<PeerProgress> {
        let progress = |(peer, entry): (&PeerId, &Peer)| PeerProgress {
            peer: *peer,
            connected: entry.sessions > 0,
            acknowledged: entry.acknowledged,
        };
        self.peers.iter().map(progress).collect()
    }

    /// As an editor sees it; `node` is this one.
    pub fn status(&self, node: &PeerId) -> DocumentStatus {
        let (own, delivered) = self.own(node);
        DocumentStatus {
            peers: self.peers.values().filter(|peer| peer.sessions > 0).count(),
            pending: own.saturating_sub(delivered),
            missing: self.peers.values().map(|peer| peer.missing as usize).max().unwrap_or(0),
            last_sync_us: self.last_sync_us,
            frozen: self.frozen.iter().copied().collect(),
            unconfirmed: self.unconfirmed,
        }
    }
}
