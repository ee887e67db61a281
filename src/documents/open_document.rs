//! One open document: its heads, its newest operations in memory, who has what, and who waits for news.
//!
//! The store tells it what was committed, in order ([`CommitObserver`]); sessions and subscriptions read from here and go to
//! the store only for what is older. Locks are held for moments and never across an `.await`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;

use super::presence::{PresenceBoard, PresenceError};
use super::receipt::Receipt;
use super::subscription::{StartFrom, Subscription};
use crate::address::PeerAddress;
use crate::clock::Clock;
use crate::identity::Identity;
use crate::ids::{LogId, PeerId};
use crate::limits::{MAX_KNOWN_PEERS, RECENT_MAX_BYTES, RECENT_MAX_OPERATIONS};
use crate::operation::SeqNum;
use crate::store::{
    CommitObserver, DocumentRecord, DocumentState, Heads, Heard, Position, Store, StoreError, StoredOperation,
};
use crate::watch;

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

#[derive(Debug, Default)]
struct Peer {
    sessions: usize,
    acknowledged: Option<SeqNum>,
    missing: u64,
}

#[derive(Debug)]
struct Live {
    heads: Heads,
    newest: Position,
    recent: VecDeque<StoredOperation>,
    recent_bytes: usize,
    /// Everything up to here is no longer, or never was, in `recent`.
    forgotten: Position,
    delivered: Option<SeqNum>,
    peers: BTreeMap<PeerId, Peer>,
    frozen: BTreeSet<PeerId>,
    unconfirmed: bool,
    last_sync_us: Option<u64>,
}

/// The state that all sessions, subscriptions and handles of one document share.
#[derive(Debug)]
pub struct OpenDocument {
    pub(super) record: DocumentRecord,
    pub(super) log: LogId,
    pub(super) node: PeerId,
    identity: Identity,
    closed: watch::Sender<bool>,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Clock,
    pub(super) presence: PresenceBoard,
    live: Mutex<Live>,
    newest: watch::Sender<Position>,
    progress: watch::Sender<u64>,
    status: watch::Sender<DocumentStatus>,
    frozen: watch::Sender<usize>,
    addresses: watch::Sender<BTreeMap<PeerId, u64>>,
}

impl OpenDocument {
    /// Opens the document in the store and listens to what is stored in it from then on.
    pub(super) async fn open(
        record: DocumentRecord,
        identity: Identity,
        store: Arc<dyn Store>,
        clock: Clock,
    ) -> Result<Arc<Self>, StoreError> {
        let document = Arc::new(Self {
            log: record.log(),
            record: record.clone(),
            node: identity.peer_id(),
            identity,
            closed: watch::Sender::new(false),
            store: Arc::clone(&store),
            clock,
            presence: PresenceBoard::new(),
            live: Mutex::new(Live::new()),
            newest: watch::Sender::new(0),
            progress: watch::Sender::new(0),
            status: watch::Sender::new(DocumentStatus::default()),
            frozen: watch::Sender::new(0),
            addresses: watch::Sender::new(BTreeMap::new()),
        });
        let state = store.open_document(record, Arc::new(Observer(Arc::downgrade(&document)))).await?;
        document.adopt(state);
        Ok(document)
    }

    /// What the store knew at the start; commits that were observed meanwhile are newer and stay.
    fn adopt(&self, state: DocumentState) {
        let mut live = self.live();
        let observed = std::mem::replace(&mut live.heads, state.heads);
        live.heads.extend(observed);
        live.forgotten = state.newest;
        live.newest = live.newest.max(state.newest);
        live.delivered = live.delivered.max(state.delivered);
        live.frozen.extend(state.frozen);
        live.unconfirmed = state.unconfirmed;
        let (newest, frozen) = (live.newest, live.frozen.len());
        drop(live);
        self.newest.send_replace(newest);
        self.frozen.send_replace(frozen);
        self.refresh_status();
    }

    /// The document's id and secret.
    pub fn record(&self) -> &DocumentRecord {
        &self.record
    }

    /// Stores an own operation: durable on return. Live sessions push it at the same time.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was published then.
    pub async fn publish(self: &Arc<Self>, payload: Bytes) -> Result<Receipt, StoreError> {
        let stored = self.store.publish(self.log, payload).await?;
        Ok(Receipt::new(Arc::clone(self), stored))
    }

    /// A reader of this document; `name` is the cursor's.
    ///
    /// # Errors
    /// [`StoreError`] when the cursor cannot be read.
    pub async fn subscribe(self: &Arc<Self>, name: &str, from: StartFrom) -> Result<Subscription, StoreError> {
        Subscription::new(Arc::clone(self), name.into(), from, self.closed.subscribe()).await
    }

    /// Sets this node's presence; an empty state clears it.
    ///
    /// # Errors
    /// [`PresenceError::TooLarge`].
    pub fn set_presence(&self, state: Bytes) -> Result<(), PresenceError> {
        self.presence.set_own(&self.identity, self.log, state, Instant::now(), self.clock.now_us())
    }

    /// The presence of the other peers now.
    pub fn presence(&self) -> BTreeMap<PeerId, Bytes> {
        let (mut shown, _) = self.presence.shown(Instant::now());
        shown.remove(&self.node);
        shown
    }

    /// Addresses of peers of this document, most recently heard of first.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read.
    pub async fn known_peers(&self) -> Result<Vec<PeerAddress>, StoreError> {
        let peers = self.store.peers(self.log).await?;
        self.addresses.send_if_modified(|known| {
            for peer in peers.iter().take(MAX_KNOWN_PEERS.saturating_sub(known.len())) {
                known.entry(peer.peer_id()).or_insert(peer.timestamp_us());
            }
            // Every session begins with what the store has.
            false
        });
        Ok(peers)
    }

    /// Whether a peer is known to share this document.
    pub(super) fn knows(&self, peer: &PeerId) -> bool {
        self.addresses.borrow().contains_key(peer)
    }

    /// Keeps the address of a peer that shares this document.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be kept.
    pub async fn remember_peer(&self, address: PeerAddress, heard: Heard) -> Result<(), StoreError> {
        let (peer, timestamp_us) = (address.peer_id(), address.timestamp_us());
        if !self.store.remember_peer(self.log, address, heard).await? {
            tracing::debug!(peer = %peer.short(), "an address record from the future is not kept");
            return Ok(());
        }
        // Sessions pass newer addresses on to their peers.
        self.addresses.send_if_modified(|known| {
            let room = known.len() < MAX_KNOWN_PEERS || known.contains_key(&peer);
            let news = room && known.get(&peer).is_none_or(|known_us| *known_us < timestamp_us);
            if news {
                known.insert(peer, timestamp_us);
            }
            news
        });
        Ok(())
    }

    /// Peers whose address became known in this run, and when they signed it.
    pub(super) fn watch_addresses(&self) -> watch::Receiver<BTreeMap<PeerId, u64>> {
        self.addresses.subscribe()
    }

    /// Ends all subscriptions.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Whether it was closed; opening it again gives another one.
    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Heads and the position up to which they are complete, as one consistent pair.
    pub fn heads(&self) -> (Heads, Position) {
        let live = self.live();
        (live.heads.clone(), live.newest)
    }

    /// The newest operation of an author.
    pub fn newest_of(&self, author: &PeerId) -> Option<SeqNum> {
        self.live().heads.get(author).map(|head| head.seq_num)
    }

    /// The sequence number that follows what is stored of an author.
    pub(super) fn expected(&self, author: &PeerId) -> SeqNum {
        self.live().heads.get(author).map_or(0, |head| head.seq_num.saturating_add(1))
    }

    /// Operations after `position`, at most `max_bytes` of them but at least one.
    pub(super) fn recent_after(&self, position: Position, max_bytes: usize) -> Recent {
        let live = self.live();
        if position < live.forgotten {
            return Recent::Behind;
        }
        let start = live.recent.partition_point(|stored| stored.position <= position);
        let mut bytes = 0;
        let page = live.recent.range(start..).take_while(|stored| {
            let first = bytes == 0;
            bytes += stored.operation.size();
            first || bytes <= max_bytes
        });
        Recent::Operations(page.cloned().collect())
    }

    /// Resolves when something newer than the last seen value was stored.
    pub fn watch_newest(&self) -> watch::Receiver<Position> {
        self.newest.subscribe()
    }

    /// Changes whenever a peer's progress does.
    pub(super) fn watch_progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// The document's status over time.
    pub fn watch_status(&self) -> watch::Receiver<DocumentStatus> {
        self.status.subscribe()
    }

    /// The number of frozen authors over time: more means a new proof of a fork.
    pub(super) fn watch_frozen(&self) -> watch::Receiver<usize> {
        self.frozen.subscribe()
    }

    /// Authors whose log is frozen.
    pub fn frozen(&self) -> BTreeSet<PeerId> {
        self.live().frozen.clone()
    }

    /// A fork of this author was proven.
    pub fn on_fork(&self, author: PeerId) {
        let mut live = self.live();
        if !live.frozen.insert(author) {
            return;
        }
        let frozen = live.frozen.len();
        drop(live);
        tracing::warn!(document = %self.log.short(), author = %author.short(), "fork: the author's log is frozen");
        self.frozen.send_replace(frozen);
        self.refresh_status();
    }

    /// In a restored store: a peer says that it has `announced` of our own operations. Once as many are here, publishing is
    /// safe, as far as that peer knows.
    ///
    /// # Errors
    /// [`StoreError`] when that cannot be noted.
    pub async fn on_own_announced(&self, announced: u64) -> Result<(), StoreError> {
        let caught_up = u64::from(self.expected(&self.node)) >= announced;
        if self.live().unconfirmed && caught_up {
            self.confirm().await?;
        }
        Ok(())
    }

    /// Allows publishing in a restored store without asking a peer, or after one was asked.
    ///
    /// # Errors
    /// [`StoreError`] when that cannot be noted.
    pub async fn confirm(&self) -> Result<(), StoreError> {
        self.store.confirm(self.log).await?;
        self.live().unconfirmed = false;
        self.refresh_status();
        Ok(())
    }

    /// A session with a peer opened.
    pub(super) fn on_session_opened(&self, peer: PeerId) {
        self.live().peers.entry(peer).or_default().sessions += 1;
        self.refresh_status();
    }

    /// A session with a peer closed.
    pub(super) fn on_session_closed(&self, peer: PeerId) {
        let mut live = self.live();
        let sessions = live.peers.get_mut(&peer).map_or(0, |entry| {
            entry.sessions = entry.sessions.saturating_sub(1);
            entry.missing = 0;
            entry.sessions
        });
        drop(live);
        if sessions == 0 {
            self.presence.on_peer_gone(peer);
        }
        self.refresh_status();
    }

    /// A peer has our own operations up to and including `seq_num`. The store hears of it first: who sees the queue shorter
    /// can publish, and a session that ends meanwhile leaves nothing behind that the next acknowledgement does not repair.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be noted.
    pub async fn on_own_acknowledged(&self, peer: PeerId, seq_num: SeqNum) -> Result<(), StoreError> {
        let (own, delivered) = {
            let live = self.live();
            (live.heads.get(&self.node).map(|head| head.seq_num), live.delivered)
        };
        let Some(own) = own else { return Ok(()) };
        let seq_num = seq_num.min(own);
        if delivered < Some(seq_num) {
            self.store.set_delivered(self.log, seq_num).await?;
        }
        let mut live = self.live();
        let entry = live.peers.entry(peer).or_default();
        entry.acknowledged = entry.acknowledged.max(Some(seq_num));
        live.delivered = live.delivered.max(Some(seq_num));
        drop(live);
        self.refresh_status();
        self.progress.send_modify(|version| *version += 1);
        Ok(())
    }

    /// Something came from a peer, which says that there are so many operations of each author.
    pub(super) fn on_synced<'a>(&self, peer: PeerId, announced: impl Iterator<Item = (&'a PeerId, u64)>) {
        let now_us = self.clock.now_us();
        let mut live = self.live();
        let here = |author| live.heads.get(author).map_or(0, |head| u64::from(head.seq_num) + 1);
        let missing = announced.map(|(author, count)| count.saturating_sub(here(author))).sum();
        live.last_sync_us = Some(now_us);
        live.peers.entry(peer).or_default().missing = missing;
        drop(live);
        self.refresh_status();
    }

    /// How many peers have our own operation `seq_num`.
    pub(super) fn delivered_to(&self, seq_num: SeqNum) -> usize {
        self.live().peers.values().filter(|peer| peer.acknowledged >= Some(seq_num)).count()
    }

    /// What each peer has.
    pub fn peers(&self) -> Vec<PeerProgress> {
        let live = self.live();
        let progress = |(peer, entry): (&PeerId, &Peer)| PeerProgress {
            peer: *peer,
            connected: entry.sessions > 0,
            acknowledged: entry.acknowledged,
        };
        live.peers.iter().map(progress).collect()
    }

    fn refresh_status(&self) {
        let live = self.live();
        let counted = |seq_num: Option<SeqNum>| seq_num.map_or(0, |seq_num| seq_num as usize + 1);
        let own = counted(live.heads.get(&self.node).map(|head| head.seq_num));
        let status = DocumentStatus {
            peers: live.peers.values().filter(|peer| peer.sessions > 0).count(),
            pending: own.saturating_sub(counted(live.delivered)),
            missing: live.peers.values().map(|peer| peer.missing as usize).max().unwrap_or(0),
            last_sync_us: live.last_sync_us,
            frozen: live.frozen.iter().copied().collect(),
            unconfirmed: live.unconfirmed,
        };
        drop(live);
        self.status.send_if_modified(|current| {
            let changed = *current != status;
            *current = status;
            changed
        });
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn new() -> Self {
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

    fn push(&mut self, stored: &StoredOperation) {
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
}

/// Weak, so that the store does not keep a closed document alive.
struct Observer(std::sync::Weak<OpenDocument>);

impl CommitObserver for Observer {
    fn on_commit(&self, operations: &[StoredOperation]) {
        let (Some(document), Some(last)) = (self.0.upgrade(), operations.last()) else { return };
        let mut live = document.live();
        operations.iter().for_each(|stored| live.push(stored));
        drop(live);
        document.newest.send_replace(last.position);
        document.refresh_status();
    }
}
