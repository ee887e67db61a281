//! The port to storage: what the services need to keep, and what they may rely on when a call returns.
//!
//! The adapter is `storage/` (SQLite). A write that returned is durable as the node's [`Durability`] says.
//! Calls may come from any task at the same time; one writer orders them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use thiserror::Error;

use crate::address::PeerAddress;
use crate::error::OperationError;
use crate::ids::{DocumentId, DocumentKey, LogId, OperationId, PeerId};
use crate::operation::{Head, Operation, SeqNum};
use crate::transport::BoxFuture;

/// What a returned write survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// The death of the process and of the machine: every commit waits for the disk. Several milliseconds a commit, shared by
    /// everything that is published meanwhile.
    #[default]
    Power,
    /// The death of the process, not that of the machine: after a power cut the last moments may be missing. Sequence numbers
    /// that peers have seen by then are used twice, so that these peers freeze this node's log ([`StoreError::OwnLogFrozen`])
    /// and take nothing more of it.
    Process,
}

/// Place of an operation in the order in which this node stored it, over all documents, from 1. Never used twice, has gaps.
pub type Position = u64;

/// Newest operation per author. Authors without operations are not in it.
pub type Heads = BTreeMap<PeerId, Head>;

/// An operation with its place in this node's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredOperation {
    /// Its place.
    pub position: Position,
    /// The operation.
    pub operation: Operation,
}

/// A document that this node takes part in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentRecord {
    /// Its id.
    pub document: DocumentId,
    /// Its secret.
    pub key: DocumentKey,
}

impl DocumentRecord {
    /// The log of the document.
    pub fn log(&self) -> LogId {
        LogId::of_topic(&self.key.topic(&self.document))
    }
}

/// What the store knows about a document when it is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DocumentState {
    /// Newest operation per author.
    pub heads: Heads,
    /// Position of the newest operation, 0 when there is none.
    pub newest: Position,
    /// Own operations up to and including this one were acknowledged by some peer.
    pub delivered: Option<SeqNum>,
    /// Own operations after `delivered`.
    pub outbox_operations: usize,
    /// Bytes of header and body of these.
    pub outbox_bytes: u64,
    /// Authors that signed two operations with one sequence number; nothing of theirs is accepted any more.
    pub frozen: Vec<PeerId>,
    /// The store is a copy of an older one, so newer operations of our own may be out there. Nothing can be published until
    /// [`Store::confirm`].
    pub unconfirmed: bool,
}

/// Why an operation was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RefusedReason {
    /// Operations before it are missing. Its sender skipped some.
    #[error("operations before it are missing")]
    Gap,
    /// The author signed two different operations with this sequence number or after this backlink. The author erred.
    #[error("its author signed two different operations in one place of the log")]
    Fork,
    /// The author did so earlier and its log is frozen.
    #[error("the log of its author is frozen after a fork")]
    Frozen,
    /// The document has as many authors as it may have.
    #[error("the document has as many authors as it may have")]
    TooManyAuthors,
}

/// An operation that was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Its author.
    pub author: PeerId,
    /// Its sequence number.
    pub seq_num: SeqNum,
    /// Why.
    pub reason: RefusedReason,
    /// The author's sequence number that the store wants next.
    pub expected: SeqNum,
}

/// What became of a batch of received operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ingested {
    /// New ones, in the order in which they were given, now durable.
    pub stored: Vec<StoredOperation>,
    /// How many were here already.
    pub duplicates: usize,
    /// Those that were not stored.
    pub refused: Vec<Refused>,
}

/// Two operations of one author that contradict each other: the proof of a fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkProof {
    /// The one in the log.
    pub kept: Operation,
    /// The other one.
    pub other: Operation,
}

/// Where a record about a peer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// From the peer, on a connection on which it showed its key.
    FromItself,
    /// In a ticket that this node's user opened.
    FromTicket,
    /// From another peer.
    FromOthers,
}

/// What became of records that were heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Noted {
    /// Peers that were not known before, or signed a newer record since.
    pub new: Vec<PeerId>,
    /// Records that were not kept, since they were signed too far in the future or, of strangers, too long ago.
    pub refused: usize,
}

/// What is known of a peer. All times are in µs since the Unix epoch by our clock, 0 for never.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPeer {
    /// Where it can be reached: the newest that it signed, as far as we heard.
    pub address: PeerAddress,
    /// This node's user named it as a peer to ask.
    pub bootstrap: bool,
    /// When its record was last heard.
    pub heard_us: u64,
    /// When it last proved to be there itself.
    pub met_us: u64,
    /// When it was last tried.
    pub tried_us: u64,
    /// Attempts in vain since it was met, or signed a new record.
    pub failures: u32,
}

/// Storage failed. The environment erred, unless said otherwise.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the directory open.
    #[error("{path} is in use by another process; stop it, or start with another directory")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The disk is full; what was acknowledged is safe, this write did not happen.
    #[error("the disk is full: {0}; free some space, nothing acknowledged is lost")]
    DiskFull(String),
    /// The database is not one, or is damaged.
    #[error(
        "the database {path} is damaged: {reason}; restore it from a backup, or move it away and let the peers fill a new one"
    )]
    Damaged {
        /// The database file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The database was written by a newer version.
    #[error("the database {path} was written by a newer version; update panda-network")]
    TooNew {
        /// The database file.
        path: PathBuf,
    },
    /// The document was not put into the store before. The caller erred.
    #[error("document {0:?} is not in the store")]
    UnknownDocument(LogId),
    /// A document with this id is here, with another key: the ticket is not one of this document. Who made it erred.
    #[error("document {0:?} is here with another key; the ticket is for another document, or was forged")]
    OtherKey(DocumentId),
    /// As many documents are open as may be. The caller erred.
    #[error("{limit} documents are open, as many as may be; close one first")]
    TooManyDocuments {
        /// The limit.
        limit: usize,
    },
    /// The store was restored from a backup or copied, and nobody has said yet whether newer operations of this node are out
    /// there: the next one might take a number that is used. The environment erred; nothing is lost.
    #[error(
        "document {0:?} comes from a backup or a copy of this node's directory; connect to a peer once, so that what is newer comes back, then publish"
    )]
    Restored(LogId),
    /// The outbox is full. Nothing is lost; wait until a peer is there.
    #[error(
        "{operations} operations ({bytes} bytes) wait for a peer, the queue is full; connect to a peer and try again"
    )]
    QueueFull {
        /// Operations waiting.
        operations: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// This node's own log in the document is frozen: peers would not take what it signs. Another node uses its key, or
    /// did so: the caller erred.
    #[error(
        "this node's log in document {0:?} is frozen, its key signed two different operations; start with a new identity and never copy one"
    )]
    OwnLogFrozen(LogId),
    /// The operation cannot be signed. The caller erred.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// The store was shut down.
    #[error("the store is closed")]
    Closed,
    /// Anything else that SQLite or the operating system said.
    #[error("storage failed: {0}")]
    Io(String),
}

/// Is told what was stored in a document, in the order of positions, after it is durable and before the call that stored it
/// returns. Called on the writer's thread: it must be quick, must not block and must not call the store.
pub trait CommitObserver: Send + Sync {
    /// These operations are durable now.
    fn on_commit(&self, operations: &[StoredOperation]);
}

/// Result of a call to the store.
pub type StoreFuture<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// What the services keep. Every read is bounded by the caller; every write is one transaction.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Puts a document into the store, or finds it there, and says what is known of it. From that state on, `observer` hears
    /// of everything that is stored in it; it takes the place of an earlier one. A document that is there with another key is
    /// refused ([`StoreError::OtherKey`]).
    fn open_document(
        &self,
        record: DocumentRecord,
        observer: Arc<dyn CommitObserver>,
    ) -> StoreFuture<'_, DocumentState>;

    /// All documents in the store.
    fn documents(&self) -> StoreFuture<'_, Vec<DocumentRecord>>;

    /// Signs `payload` as the node's next operation in a document and stores it, its head and its place in the outbox.
    ///
    /// When it fails, nothing happened and no sequence number was used.
    fn publish(&self, log: LogId, payload: Bytes) -> StoreFuture<'_, StoredOperation>;

    /// Stores received operations of a document, which are verified but for their place in the log. Order matters.
    fn ingest(&self, log: LogId, operations: Vec<Operation>) -> StoreFuture<'_, Ingested>;

    /// Operations of one author from `first` up to and including `last`, by sequence number: at most
    /// `limits::PAGE_MAX_OPERATIONS` and, but for the first, `limits::PAGE_MAX_BYTES`. Empty when there are none.
    fn author_page(
        &self,
        log: LogId,
        author: PeerId,
        first: SeqNum,
        last: SeqNum,
    ) -> StoreFuture<'_, Vec<StoredOperation>>;

    /// Operations of a document after a position, by position, bounded like `author_page`. Empty when there are none.
    fn page_after(&self, log: LogId, after: Position) -> StoreFuture<'_, Vec<StoredOperation>>;

    /// The id of one operation, `None` when it is not here: tells whether a peer's head is on our log.
    fn operation_id(&self, log: LogId, author: PeerId, seq_num: SeqNum) -> StoreFuture<'_, Option<OperationId>>;

    /// Notes that a peer acknowledged the own operations up to and including `delivered`; never goes back. This write may be
    /// lost by a crash: acknowledgements come again.
    fn set_delivered(&self, log: LogId, delivered: SeqNum) -> StoreFuture<'_, ()>;

    /// Notes that all operations of our own that are out there are here, as far as can be known.
    fn confirm(&self, log: LogId) -> StoreFuture<'_, ()>;

    /// The proofs of forks in a document, by author row, and of these as many as fit into
    /// `limits::FORK_PROOFS_MAX_BYTES`, at least one. `DocumentState::frozen` names all authors.
    fn fork_proofs(&self, log: LogId) -> StoreFuture<'_, Vec<ForkProof>>;

    /// Up to where a subscriber of this name has committed, 0 at the start.
    fn cursor(&self, log: LogId, name: &str) -> StoreFuture<'_, Position>;

    /// Moves the cursor of a subscriber; never goes back.
    fn set_cursor(&self, log: LogId, name: &str, position: Position) -> StoreFuture<'_, ()>;

    /// Keeps a peer's address if it is newer than the one that is here, and that the peer shares a document. False, and
    /// nothing is kept, when it was signed more than `limits::RECORD_CLOCK_SKEW` in the future.
    fn remember_peer(&self, log: LogId, address: PeerAddress, heard: Heard) -> StoreFuture<'_, bool>;

    /// The peers of a document that were met and are not stale, and those that a ticket named: who was met last comes first,
    /// at most `limit`.
    fn peers(&self, log: LogId, limit: usize) -> StoreFuture<'_, Vec<PeerAddress>>;

    /// Who else is said to share a document, at most `limit`: who was known first comes first, so that a crowd of made-up
    /// ones comes last.
    fn rumoured_peers(&self, log: LogId, limit: usize) -> StoreFuture<'_, Vec<PeerAddress>>;

    /// Keeps records of peers, whether or not they share a document, each if it is newer than the one that is here. With
    /// `bootstrap` they are peers to ask, and never forgotten. Bounded: see `limits::BOOK_MAX_STRANGERS`.
    fn note_peers(&self, records: Vec<PeerAddress>, bootstrap: bool) -> StoreFuture<'_, Noted>;

    /// A known peer was tried, and answered or not.
    fn note_visit(&self, peer: PeerId, reached: bool) -> StoreFuture<'_, ()>;

    /// What is known of one peer.
    fn known_peer(&self, peer: PeerId) -> StoreFuture<'_, Option<KnownPeer>>;

    /// Peers that want to be asked, those to ask by name first, then who was met last, then who was heard of last. None that is
    /// stale.
    fn known_peers(&self, limit: usize) -> StoreFuture<'_, Vec<KnownPeer>>;

    /// Peers that share at least one of these documents, who was met last first. None that is stale.
    fn sharing_peers(&self, logs: Vec<LogId>, limit: usize) -> StoreFuture<'_, Vec<KnownPeer>>;

    /// Waits for writes under way, makes a checkpoint and closes. Later calls fail with [`StoreError::Closed`].
    fn close(&self) -> StoreFuture<'_, ()>;

    /// Closes at once, for an owner that is dropped: blocks until the writes under way are through, and gives everything back,
    /// however many handles there are. Nothing that was acknowledged is lost. Later calls fail with [`StoreError::Closed`].
    fn close_now(&self);
}
