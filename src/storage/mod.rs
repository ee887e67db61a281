//! The storage adapter: documents, operations and what a node remembers, in one SQLite database.
//!
//! [`SqliteStore::open`] takes the data directory for this process; after that use the store through the port,
//! [`Store`]. Writes go to one thread, which commits whatever waits in one transaction (`engine`, `write`, `writer`);
//! reads run beside it on connections of their own (`read`, `readers`). Inline, for simulations, the same code runs at
//! the call. p2panda's store traits are implemented as well (`p2panda`, `p2panda_book`), over the same tables and checks.
//!
//! Not here: whether an operation is signed (its type says so), whom to send it to, and what a restored backup means.

mod book;
mod columns;
mod database;
mod document;
mod engine;
mod errors;
mod instance;
mod lock;
mod options;
mod p2panda;
mod p2panda_book;
mod read;
mod readers;
mod write;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rusqlite::Connection;

pub use self::options::StorageOptions;
pub use self::p2panda::P2pandaStoreError;

use self::database::{DATABASE_FILE, Location};
use self::engine::{Engine, job};
use self::errors::Outcome;
use self::lock::DirectoryLock;
use self::read::Authors;
use self::readers::Readers;
use self::writer::Writer;
use crate::address::PeerAddress;
use crate::identity::Identity;
use crate::ids::{LogId, OperationId, PeerId};
use crate::operation::{Operation, SeqNum};
use crate::store::{
    CommitObserver, DocumentRecord, DocumentState, ForkProof, Heard, Ingested, KnownPeer, Noted, Position, Store,
    StoreError, StoreFuture, StoredOperation,
};

/// The store of a node in SQLite. Clones are handles on one store.
///
/// Dropping the last one without [`Store::close`] loses nothing acknowledged; it waits for the transaction under way.
#[derive(Clone)]
pub struct SqliteStore {
    backend: Arc<Backend>,
    own: PeerId,
}

/// Who runs the transactions and queries.
enum Backend {
    /// A thread, and connections beside it.
    Threads { writer: Writer, readers: Readers },
    /// Whoever calls. `None` when closed.
    Inline(Mutex<Option<Box<Engine>>>),
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SqliteStore({})", self.own.short())
    }
}

impl SqliteStore {
    /// Opens the store of a node, or makes it. Blocks: it reads from the disk, and writes to it when the store is new.
    ///
    /// `identity` signs what is published. With another identity than before, the node is a new author in all documents.
    ///
    /// # Errors
    /// [`StoreError::InUse`], [`StoreError::Damaged`], [`StoreError::TooNew`], or what the disk has to say.
    pub fn open(options: StorageOptions, identity: Identity) -> Result<Self, StoreError> {
        let own = identity.peer_id();
        let (location, lock) = match &options.directory {
            Some(directory) => {
                let lock = DirectoryLock::acquire(directory)?;
                (Location::File(directory.join(DATABASE_FILE)), Some(lock))
            }
            None => (Location::Memory, None),
        };
        let mut connection = location.open_writer(options.durability)?;
        if let Location::File(path) = &location {
            instance::check(&mut connection, path)?;
        }
        let engine = Engine::new(
            connection,
            (location.clone(), lock),
            (identity, options.clock),
            (options.durability, options.outbox),
        );
        let backend = if options.inline {
            Backend::Inline(Mutex::new(Some(Box::new(engine))))
        } else {
            Backend::Threads { writer: Writer::start(engine)?, readers: Readers::new(location) }
        };
        tracing::debug!(own = %own.short(), durability = ?options.durability, inline = options.inline, "store is open");
        Ok(Self { backend: Arc::new(backend), own })
    }

    /// Runs a write that carries `bytes` of operations, and waits until it is committed.
    async fn write<T, F>(&self, bytes: usize, call: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Engine) -> Outcome<T> + Send + 'static,
    {
        match self.backend.as_ref() {
            Backend::Threads { writer, .. } => writer.call(bytes, call).await,
            Backend::Inline(engine) => {
                let mut engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
                let (job, mut answer) = job(call);
                engine.as_mut().ok_or(StoreError::Closed)?.run(vec![job]);
                answer.try_recv().map_err(|_| StoreError::Closed)?
            }
        }
    }

    /// Runs a query, which sees everything whose write has returned.
    async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &mut Authors) -> Outcome<T> + Send + 'static,
    {
        match self.backend.as_ref() {
            Backend::Threads { readers, .. } => readers.read(query).await,
            Backend::Inline(engine) => {
                let mut engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
                let engine = engine.as_mut().ok_or(StoreError::Closed)?;
                query(&engine.connection, &mut engine.authors).map_err(|failure| engine.store_error(failure))
            }
        }
    }

    async fn shut_down(&self) -> Result<(), StoreError> {
        match self.backend.as_ref() {
            Backend::Threads { writer, readers } => {
                readers.close().await;
                writer.close().await
            }
            Backend::Inline(engine) => {
                let engine = engine.lock().unwrap_or_else(PoisonError::into_inner).take();
                engine.ok_or(StoreError::Closed)?.finish()
            }
        }
    }
}

impl Store for SqliteStore {
    fn open_document(
        &self,
        record: DocumentRecord,
        observer: Arc<dyn CommitObserver>,
    ) -> StoreFuture<'_, DocumentState> {
        Box::pin(self.write(0, move |engine| engine.open_document(&record, observer)))
    }

    fn documents(&self) -> StoreFuture<'_, Vec<DocumentRecord>> {
        Box::pin(self.read(|connection, _| read::documents(connection)))
    }

    fn publish(&self, log: LogId, payload: Bytes) -> StoreFuture<'_, StoredOperation> {
        Box::pin(self.write(payload.len(), move |engine| engine.publish(log, &payload)))
    }

    fn ingest(&self, log: LogId, operations: Vec<Operation>) -> StoreFuture<'_, Ingested> {
        let bytes = operations.iter().map(Operation::size).sum();
        Box::pin(self.write(bytes, move |engine| engine.ingest(log, operations)))
    }

    fn author_page(
        &self,
        log: LogId,
        author: PeerId,
        first: SeqNum,
        last: SeqNum,
    ) -> StoreFuture<'_, Vec<StoredOperation>> {
        Box::pin(self.read(move |connection, _| read::author_page(connection, log, author, (first, last))))
    }

    fn page_after(&self, log: LogId, after: Position) -> StoreFuture<'_, Vec<StoredOperation>> {
        Box::pin(self.read(move |connection, authors| read::page_after(connection, authors, log, after)))
    }

    fn operation_id(&self, log: LogId, author: PeerId, seq_num: SeqNum) -> StoreFuture<'_, Option<OperationId>> {
        Box::pin(self.read(move |connection, _| read::operation_id(connection, log, author, seq_num)))
    }

    fn set_delivered(&self, log: LogId, delivered: SeqNum) -> StoreFuture<'_, ()> {
        Box::pin(self.write(0, move |engine| engine.set_delivered(log, delivered)))
    }

    fn confirm(&self, log: LogId) -> StoreFuture<'_, ()> {
        Box::pin(self.write(0, move |engine| engine.confirm(log)))
    }

    fn fork_proofs(&self, log: LogId) -> StoreFuture<'_, Vec<ForkProof>> {
        Box::pin(self.read(move |connection, authors| read::fork_proofs(connection, authors, log)))
    }

    fn cursor(&self, log: LogId, name: &str) -> StoreFuture<'_, Position> {
        let name = name.to_owned();
        Box::pin(self.read(move |connection, _| read::cursor(connection, log, &name)))
    }

    fn set_cursor(&self, log: LogId, name: &str, position: Position) -> StoreFuture<'_, ()> {
        let name = name.to_owned();
        Box::pin(self.write(0, move |engine| engine.set_cursor(log, &name, position)))
    }

    fn remember_peer(&self, log: LogId, address: PeerAddress, heard: Heard) -> StoreFuture<'_, bool> {
        Box::pin(self.write(0, move |engine| engine.remember_peer(log, &address, heard)))
    }

    fn peers(&self, log: LogId, limit: usize) -> StoreFuture<'_, Vec<PeerAddress>> {
        Box::pin(self.read(move |connection, _| book::peers(connection, log, limit)))
    }

    fn rumoured_peers(&self, log: LogId, limit: usize) -> StoreFuture<'_, Vec<PeerAddress>> {
        Box::pin(self.read(move |connection, _| book::rumoured_peers(connection, log, limit)))
    }

    fn note_peers(&self, records: Vec<PeerAddress>, bootstrap: bool) -> StoreFuture<'_, Noted> {
        Box::pin(self.write(0, move |engine| engine.note_peers(&records, bootstrap)))
    }

    fn note_visit(&self, peer: PeerId, reached: bool) -> StoreFuture<'_, ()> {
        Box::pin(self.write(0, move |engine| engine.note_visit(&peer, reached)))
    }

    fn known_peer(&self, peer: PeerId) -> StoreFuture<'_, Option<KnownPeer>> {
        Box::pin(self.read(move |connection, _| book::known_peer(connection, &peer)))
    }

    fn known_peers(&self, limit: usize) -> StoreFuture<'_, Vec<KnownPeer>> {
        Box::pin(self.read(move |connection, _| book::known_peers(connection, limit)))
    }

    fn sharing_peers(&self, logs: Vec<LogId>, limit: usize) -> StoreFuture<'_, Vec<KnownPeer>> {
        Box::pin(self.read(move |connection, _| book::sharing_peers(connection, &logs, limit)))
    }

    fn close(&self) -> StoreFuture<'_, ()> {
        Box::pin(self.shut_down())
    }

    fn close_now(&self) {
        match self.backend.as_ref() {
            Backend::Threads { writer, readers } => {
                readers.close_now();
                writer.close_now();
            }
            Backend::Inline(engine) => drop(engine.lock().unwrap_or_else(PoisonError::into_inner).take()),
        }
    }
}
