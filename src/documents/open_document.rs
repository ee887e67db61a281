//! One open document: its heads, its newest operations in memory, who has what, and who waits for news.
//!
//! The store tells it what was committed, in order ([`CommitObserver`]); sessions and subscriptions read from here and go to
//! the store only for what is older. Locks are held for moments and never across an `.await`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;

use super::live::{DocumentStatus, Live, PeerProgress, Recent};
use super::presence::{PresenceBoard, PresenceError};
use super::receipt::Receipt;
use super::subscription::{StartFrom, Subscription};
use crate::address::PeerAddress;
use crate::clock::Clock;
use crate::identity::Identity;
use crate::ids::{LogId, PeerId};
use crate::limits::{MAX_KNOWN_PEERS, STORED_PEERS};
use crate::operation::SeqNum;
use crate::store::{
    CommitObserver, DocumentRecord, DocumentState, Heads, Heard, Position, Store, StoreError, StoredOperation,
};
use crate::watch;

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
        live.adopt(state);
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

    /// Peers of this document of earlier runs: those who were met or whom a ticket named, who was met last first; and those
    /// of whom others spoke. Sessions pass their addresses on.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read.
    pub async fn stored_peers(&self) -> Result<(Vec<PeerAddress>, Vec<PeerAddress>), StoreError> {
        let met = self.store.peers(self.log, STORED_PEERS).await?;
        let rumoured = self.store.rumoured_peers(self.log, STORED_PEERS).await?;
        self.addresses.send_modify(|known| {
            for peer in met.iter().chain(&rumoured) {
                known.entry(peer.peer_id()).or_insert(peer.timestamp_us());
            }
        });
        Ok((met, rumoured))
    }

    /// Peers that a new one can begin with: who was met last, and whom a ticket named, at most `count`.
    ///
    /// # Errors
    /// [`StoreError`] when they cannot be read.
    pub async fn met_peers(&self, count: usize) -> Result<Vec<PeerAddress>, StoreError> {
        self.store.peers(self.log, count).await
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
        // Half of the room is for peers that show themselves.
        let limit = if heard == Heard::FromOthers { MAX_KNOWN_PEERS / 2 } else { MAX_KNOWN_PEERS };
        // Sessions pass newer addresses on to their peers.
        self.addresses.send_if_modified(|known| {
            let room = known.len() < limit || known.contains_key(&peer);
            let news = room && known.get(&peer).is_none_or(|known_us| *known_us < timestamp_us);
            if news {
                known.insert(peer, timestamp_us);
            }
            news
        });
        Ok(())
    }

    /// Peers whose addresses are passed on, and when they signed these.
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
        self.live().recent_after(position, max_bytes)
    }

    /// Resolves when something newer than the last seen value was stored.
    pub fn watch_newest(&self) -> watch::Receiver<Position> {
        self.newest.subscribe()
    }

    /// Becomes true when the document is closed.
    pub(super) fn watch_closed(&self) -> watch::Receiver<bool> {
        self.closed.subscribe()
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
        self.live().delivered_to(seq_num)
    }

    /// What each peer has.
    pub fn peers(&self) -> Vec<PeerProgress> {
        self.live().progress()
    }

    /// How many own operations there are, and how many of them some peer has, from the first on.
    pub(super) fn own(&self) -> (usize, usize) {
        self.live().own(&self.node)
    }

    fn refresh_status(&self) {
        let status = self.live().status(&self.node);
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
