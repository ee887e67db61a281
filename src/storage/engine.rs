//! The engine that writes: one connection, what it knows of the documents, and the group commit.
//!
//! Drive it with batches of [`Job`]s. All jobs of a batch share one transaction. A job that is refused wrote nothing and
//! leaves the others alone; when SQLite fails, everything is rolled back and every job is answered with that error.
//! The writer thread has one, or the store itself when it runs inline.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use rusqlite::{Connection, params};
use tokio::sync::oneshot;

use super::columns::number;
use super::database::{Location, set_durability};
use super::document::{AuthorLog, Document};
use super::errors::{Failure, Outcome};
use super::lock::DirectoryLock;
use super::read::Authors;
use crate::clock::Clock;
use crate::identity::Identity;
use crate::ids::{LogId, PeerId};
use crate::limits::MAX_OPEN_DOCUMENTS;
use crate::operation::SeqNum;
use crate::store::{CommitObserver, Durability, Position, StoreError, StoredOperation};

/// What a publish has to respect.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutboxLimits {
    /// Most own operations that wait for a peer, per document.
    pub(super) operations: usize,
    /// Most bytes of these.
    pub(super) bytes: u64,
}

/// Something to do within a transaction, with somebody who waits for the answer.
pub(super) trait Job: Send {
    /// Nobody waits any more: it need not be done.
    fn is_cancelled(&self) -> bool;
    /// Does it and keeps the answer. An error breaks the transaction.
    fn run(&mut self, engine: &mut Engine) -> rusqlite::Result<()>;
    /// Gives the answer, now that the transaction is through.
    fn answer(self: Box<Self>, committed: &Result<(), StoreError>);
}

/// Makes a job of a function.
pub(super) fn job<T, F>(call: F) -> (Box<dyn Job>, oneshot::Receiver<Result<T, StoreError>>)
where
    T: Send + 'static,
    F: FnOnce(&mut Engine) -> Outcome<T> + Send + 'static,
{
    let (reply, answer) = oneshot::channel();
    (Box::new(Call { call: Some(call), outcome: Err(StoreError::Closed), reply }), answer)
}

struct Call<F, T> {
    call: Option<F>,
    outcome: Result<T, StoreError>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Job for Call<F, T>
where
    T: Send,
    F: FnOnce(&mut Engine) -> Outcome<T> + Send,
{
    fn is_cancelled(&self) -> bool {
        self.reply.is_closed()
    }

    fn run(&mut self, engine: &mut Engine) -> rusqlite::Result<()> {
        let Some(call) = self.call.take() else { return Ok(()) };
        self.outcome = match call(engine) {
            Ok(value) => Ok(value),
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Broken(error)) => return Err(error),
        };
        Ok(())
    }

    fn answer(self: Box<Self>, committed: &Result<(), StoreError>) {
        let outcome = committed.clone().and(self.outcome);
        // Nobody waits for it any more: it happened all the same.
        let _ = self.reply.send(outcome);
    }
}

/// The one writer of a database.
pub(super) struct Engine {
    pub(super) connection: Connection,
    pub(super) identity: Identity,
    pub(super) clock: Clock,
    pub(super) limits: OutboxLimits,
    /// Authors by row, for reads beside the transactions when there are no other connections.
    pub(super) authors: Authors,
    location: Location,
    durability: Durability,
    documents: HashMap<LogId, Document>,
    /// Heads that the transaction has to write.
    dirty: HashSet<(LogId, PeerId)>,
    /// Acknowledgements that no transaction has written yet; the next one takes them along.
    acknowledged: HashMap<LogId, SeqNum>,
    /// What `acknowledged` held before this transaction, oldest first.
    undo: Vec<(LogId, Option<SeqNum>)>,
    next_position: Option<Position>,
    observers: HashMap<LogId, Arc<dyn CommitObserver>>,
    /// What this transaction stored, for the observers.
    stored: Vec<(LogId, StoredOperation)>,
    /// Commits do not wait for the disk just now; the next one with jobs has to change that first.
    relaxed: bool,
    metrics: CommitMetrics,
    /// Given back last.
    _lock: Option<DirectoryLock>,
}

impl Engine {
    pub(super) fn new(
        connection: Connection,
        (location, lock): (Location, Option<DirectoryLock>),
        (identity, clock): (Identity, Clock),
        (durability, limits): (Durability, OutboxLimits),
    ) -> Self {
        Self {
            connection,
            identity,
            clock,
            limits,
            authors: Authors::default(),
            location,
            durability,
            documents: HashMap::new(),
            dirty: HashSet::new(),
            acknowledged: HashMap::new(),
            undo: Vec::new(),
            next_position: None,
            observers: HashMap::new(),
            stored: Vec::new(),
            relaxed: false,
            metrics: CommitMetrics::new(),
            _lock: lock,
        }
    }

    /// Runs jobs in one transaction, tells the observers, and answers the jobs.
    pub(super) fn run(&mut self, mut jobs: Vec<Box<dyn Job>>) {
        let started = Instant::now();
        let committed = self.transaction(&mut jobs);
        match &committed {
            Ok(()) => {
                self.metrics.committed(jobs.len(), started);
                self.tell_observers();
            }
            Err(error) => tracing::error!(%error, jobs = jobs.len(), "a transaction failed and was rolled back"),
        }
        for job in jobs {
            job.answer(&committed);
        }
    }

    /// From now on this observer hears of what is stored in a document.
    pub(super) fn observe(&mut self, log: LogId, observer: Arc<dyn CommitObserver>) {
        self.observers.insert(log, observer);
    }

    /// Notes an operation that this transaction stored.
    pub(super) fn note_stored(&mut self, log: LogId, stored: StoredOperation) {
        if self.observers.contains_key(&log) {
            self.stored.push((log, stored));
        }
    }

    /// Runs of operations of one document go out together, in the order of positions.
    fn tell_observers(&mut self) {
        let mut stored = std::mem::take(&mut self.stored).into_iter().peekable();
        while let Some((log, first)) = stored.next() {
            let mut run = vec![first];
            while let Some((_, more)) = stored.next_if(|(next, _)| *next == log) {
                run.push(more);
            }
            if let Some(observer) = self.observers.get(&log) {
                observer.on_commit(&run);
            }
        }
    }

    /// Whether acknowledgements wait to be written.
    pub(super) fn has_acknowledged(&self) -> bool {
        !self.acknowledged.is_empty()
    }

    /// Writes the acknowledgements by themselves. They may be lost, so nobody waits for the disk.
    pub(super) fn write_acknowledged(&mut self) -> Result<(), StoreError> {
        if self.acknowledged.is_empty() {
            return Ok(());
        }
        self.relaxed = true;
        set_durability(&self.connection, Durability::Process).map_err(|error| self.location.error(&error))?;
        self.transaction(&mut [])
    }

    /// Writes what waits and copies the write-ahead log into the database.
    pub(super) fn finish(&mut self) -> Result<(), StoreError> {
        let written = self.write_acknowledged();
        // A reader that is still there makes this do less; the next start does the rest.
        self.connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .map_err(|error| self.location.error(&error))?;
        written
    }

    /// Translates an error of SQLite.
    pub(super) fn store_error(&self, failure: Failure) -> StoreError {
        match failure {
            Failure::Refused(error) => error,
            Failure::Broken(error) => self.location.error(&error),
        }
    }

    /// Works on a document, which is read from the database when it is not known yet.
    pub(super) fn with_document<T>(
        &mut self,
        log: LogId,
        work: impl FnOnce(&mut Self, &mut Document) -> Outcome<T>,
    ) -> Outcome<T> {
        let known = match self.documents.remove(&log) {
            Some(document) => Some(document),
            None => {
                let acknowledged = self.acknowledged.get(&log).copied();
                Document::load(&self.connection, log, self.identity.peer_id(), acknowledged)?
            }
        };
        let mut document = known.ok_or(StoreError::UnknownDocument(log))?;
        let outcome = work(self, &mut document);
        // After a failure of SQLite the transaction forgets it again.
        self.documents.insert(log, document);
        outcome
    }

    /// Moves the head of an author. The transaction writes it at its end, once.
    pub(super) fn set_log(&mut self, log: LogId, document: &mut Document, author: PeerId, entry: AuthorLog) {
        document.logs.insert(author, entry);
        self.dirty.insert((log, author));
    }

    /// Notes an acknowledgement for the next transaction that writes something.
    pub(super) fn note_acknowledged(&mut self, log: LogId, delivered: SeqNum) {
        let before = self.acknowledged.insert(log, delivered);
        self.undo.push((log, before));
    }

    /// The position of the next operation.
    pub(super) fn take_position(&mut self) -> rusqlite::Result<Position> {
        let position = match self.next_position {
            Some(position) => position,
            None => self
                .connection
                .prepare_cached("SELECT coalesce(max(position), 0) + 1 FROM operations")?
                .query_row([], |row| number(row, 0))?,
        };
        self.next_position = Some(position + 1);
        Ok(position)
    }

    /// One transaction. Without jobs it is there for the acknowledgements.
    fn transaction(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<(), StoreError> {
        if self.documents.len() > MAX_OPEN_DOCUMENTS {
            self.documents.clear();
        }
        self.try_transaction(jobs).map_err(|error| {
            self.forget_uncommitted();
            self.location.error(&error)
        })
    }

    fn try_transaction(&mut self, jobs: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
        if self.relaxed && !jobs.is_empty() {
            set_durability(&self.connection, self.durability)?;
            self.relaxed = false;
        }
        self.connection.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let before = self.connection.total_changes();
        for job in jobs.iter_mut() {
            job.run(self)?;
        }
        self.write_heads()?;
        let take_along = jobs.is_empty() || self.connection.total_changes() != before;
        if take_along {
            self.write_acknowledgements()?;
        }
        self.connection.prepare_cached("COMMIT")?.execute([])?;
        self.undo.clear();
        if take_along {
            self.acknowledged.clear();
        }
        Ok(())
    }

    /// Everything that ran ahead of the database goes; it is read again when it is needed.
    fn forget_uncommitted(&mut self) {
        self.documents.clear();
        self.dirty.clear();
        self.stored.clear();
        self.next_position = None;
        for (log, before) in self.undo.drain(..).rev() {
            match before {
                Some(delivered) => self.acknowledged.insert(log, delivered),
                None => self.acknowledged.remove(&log),
            };
        }
        if !self.connection.is_autocommit()
            && let Err(error) = self.connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "a failed transaction cannot be rolled back");
        }
    }

    fn write_heads(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO heads (log, author, seq_num, id, frozen) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET seq_num = excluded.seq_num, id = excluded.id, frozen = excluded.frozen",
        )?;
        for (log, author) in self.dirty.drain() {
            let Some(document) = self.documents.get(&log) else { continue };
            let Some(log) = document.logs.get(&author) else { continue };
            statement.execute(params![
                document.row,
                log.author,
                log.head.seq_num,
                log.head.id.as_bytes(),
                log.frozen
            ])?;
        }
        Ok(())
    }

    fn write_acknowledgements(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.connection.prepare_cached(
            "UPDATE heads SET delivered = max(coalesce(delivered, 0), ?3)
             WHERE log = (SELECT log FROM documents WHERE log_id = ?1)
               AND author = (SELECT author FROM authors WHERE public_key = ?2)",
        )?;
        for (log, delivered) in &self.acknowledged {
            statement.execute(params![log.as_bytes(), self.identity.peer_id().as_bytes(), delivered])?;
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.write_acknowledged() {
            tracing::debug!(%error, "acknowledgements were not written; they come again");
        }
    }
}

/// Handles made once: a lookup for each commit costs more than the counting.
struct CommitMetrics {
    commits: metrics::Counter,
    jobs: metrics::Histogram,
    seconds: metrics::Histogram,
}

impl CommitMetrics {
    fn new() -> Self {
        Self {
            commits: metrics::counter!("panda_store_commits_total"),
            jobs: metrics::histogram!("panda_store_commit_jobs"),
            seconds: metrics::histogram!("panda_store_commit_seconds"),
        }
    }

    fn committed(&self, jobs: usize, started: Instant) {
        self.commits.increment(1);
        self.jobs.record(jobs as f64);
        self.seconds.record(started.elapsed());
    }
}
