//! What an editor sees of a document: operations in this node's order, presence, status, forks.
//!
//! A subscription pulls. It holds a position and reads on from there, from memory when it keeps up and from the store when
//! it does not, so a slow editor slows nobody, and nothing is ever skipped. Its cursor is persistent: an editor
//! that commits after it stored its own state sees every operation at least once, and exactly once if it stores the position
//! together with that state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::live::{DocumentStatus, Recent};
use super::open_document::OpenDocument;
use crate::ids::PeerId;
use crate::limits::PAGE_MAX_BYTES;
use crate::store::{Position, StoreError, StoredOperation};
use crate::watch;

/// Where a subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartFrom {
    /// After the operation that was committed last under this name; the first one when none was.
    Cursor,
    /// The first operation.
    Start,
    /// What is stored from now on.
    Now,
    /// After this position, which the editor keeps with its own state.
    After(Position),
}

/// What happens to a document.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DocumentEvent {
    /// An operation, of this node or another, in this node's order.
    Operation(StoredOperation),
    /// A peer's presence changed.
    Presence(PresenceChange),
    /// The status changed; several changes may come as one.
    Status(DocumentStatus),
    /// This author signed two operations in one place; nothing more of it is accepted.
    Fork(PeerId),
}

/// A peer's presence changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceChange {
    /// It is now this; states in between may have been skipped.
    Updated {
        /// Whose.
        peer: PeerId,
        /// The state, at most 896 bytes.
        state: Bytes,
    },
    /// It was cleared, it expired, or the peer left.
    Gone {
        /// Whose.
        peer: PeerId,
    },
}

/// A reader of one document. Dropping it loses nothing: another with the same name goes on from the cursor.
#[derive(Debug)]
pub struct Subscription {
    document: Arc<OpenDocument>,
    name: String,
    position: Position,
    page: VecDeque<StoredOperation>,
    newest: watch::Receiver<Position>,
    status: watch::Receiver<DocumentStatus>,
    presence: watch::Receiver<u64>,
    shown: BTreeMap<PeerId, Bytes>,
    presence_expires: Option<Instant>,
    changes: VecDeque<DocumentEvent>,
    forks_told: BTreeSet<PeerId>,
    closed: watch::Receiver<bool>,
}

impl Subscription {
    pub(super) async fn new(
        document: Arc<OpenDocument>,
        name: String,
        from: StartFrom,
        closed: watch::Receiver<bool>,
    ) -> Result<Self, StoreError> {
        let position = match from {
            StartFrom::Cursor => document.store.cursor(document.log, &name).await?,
            StartFrom::Start => 0,
            StartFrom::Now => document.heads().1,
            StartFrom::After(position) => position,
        };
        let mut subscription = Self {
            newest: document.watch_newest(),
            status: document.watch_status(),
            presence: document.presence.watch(),
            document,
            name,
            position,
            page: VecDeque::new(),
            shown: BTreeMap::new(),
            presence_expires: None,
            changes: VecDeque::new(),
            forks_told: BTreeSet::new(),
            closed,
        };
        subscription.newest.mark_changed();
        subscription.status.mark_changed();
        subscription.presence.mark_changed();
        Ok(subscription)
    }

    /// The next event, waiting for it; `None`, from then on, after the document was closed or the node has ended. Cancel-safe.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read; calling again tries again, nothing is skipped.
    pub async fn next(&mut self) -> Option<Result<DocumentEvent, StoreError>> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Some(Ok(change));
            }
            if let Some(stored) = self.page.pop_front() {
                self.position = stored.position;
                return Some(Ok(DocumentEvent::Operation(stored)));
            }
            match self.read_on().await {
                Ok(()) if self.page.is_empty() && self.changes.is_empty() => {}
                Ok(()) => continue,
                // What was not read before the end is read after the next start.
                Err(StoreError::Closed) => return None,
                Err(error) => return Some(Err(error)),
            }
            let expires = self.presence_expires;
            tokio::select! {
                biased;
                changed = self.newest.changed() => if changed.is_err() { return None },
                Ok(()) = self.status.changed() => self.note_status(),
                Ok(()) = self.presence.changed() => self.note_presence(),
                () = async { tokio::time::sleep_until(expires.unwrap_or_else(Instant::now)).await }, if expires.is_some() => {
                    self.note_presence();
                }
                _ = self.closed.wait_for(|closed| *closed) => return None,
            }
        }
    }

    /// Moves the persistent cursor behind this operation; durable on return. Commit after the editor's own state is safe.
    ///
    /// # Errors
    /// [`StoreError`]; the cursor stays where it was.
    pub async fn commit(&self, operation: &StoredOperation) -> Result<(), StoreError> {
        self.document.store.set_cursor(self.document.log, &self.name, operation.position).await
    }

    /// Position of the operation that `next` returned last.
    pub fn position(&self) -> Position {
        self.position
    }

    async fn read_on(&mut self) -> Result<(), StoreError> {
        let page = match self.document.recent_after(self.position, PAGE_MAX_BYTES) {
            Recent::Operations(operations) => operations,
            Recent::Behind => self.document.store.page_after(self.document.log, self.position).await?,
        };
        self.page = page.into();
        Ok(())
    }

    fn note_status(&mut self) {
        let status = self.status.borrow_and_update().clone();
        for author in &status.frozen {
            if self.forks_told.insert(*author) {
                self.changes.push_back(DocumentEvent::Fork(*author));
            }
        }
        self.changes.push_back(DocumentEvent::Status(status));
    }

    fn note_presence(&mut self) {
        self.presence.borrow_and_update();
        let (mut now_shown, expires) = self.document.presence.shown(Instant::now());
        now_shown.remove(&self.document.node);
        self.presence_expires = expires;
        let change = |change| DocumentEvent::Presence(change);
        for peer in self.shown.keys().filter(|peer| !now_shown.contains_key(peer)) {
            self.changes.push_back(change(PresenceChange::Gone { peer: *peer }));
        }
        for (peer, state) in &now_shown {
            if self.shown.get(peer) != Some(state) {
                self.changes.push_back(change(PresenceChange::Updated { peer: *peer, state: state.clone() }));
            }
        }
        self.shown = now_shown;
    }
}
