//! What is written: each function is one call of the port, within the transaction of its batch.
//!
//! A call that is refused has to say so before it writes anything: there are no savepoints.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{OptionalExtension, params};

use super::columns::{number, to_column};
use super::document::{AuthorLog, Document, Verdict, find, has_id, operation_at};
use super::engine::Engine;
use super::errors::Outcome;
use crate::ids::{LogId, PeerId};
use crate::limits::DOCUMENT_MAX_AUTHORS;
use crate::operation::{Operation, SeqNum, check_payload};
use crate::store::{
    CommitObserver, DocumentRecord, DocumentState, Ingested, Position, Refused, RefusedReason, StoreError,
    StoredOperation,
};

impl Engine {
    pub(super) fn open_document(
        &mut self,
        record: &DocumentRecord,
        observer: Arc<dyn CommitObserver>,
    ) -> Outcome<DocumentState> {
        let log = record.log();
        let known = find(&self.connection, log)?.is_some();
        if !known && has_id(&self.connection, &record.document)? {
            return Err(StoreError::OtherKey(record.document).into());
        }
        self.observe(log, observer);
        if !known {
            self.connection
                .prepare_cached("INSERT INTO documents (log_id, document, key) VALUES (?1, ?2, ?3)")?
                .execute(params![log.as_bytes(), record.document.as_uuid().as_bytes(), record.key.as_bytes()])?;
        }
        self.with_document(log, |engine, document| {
            let newest = engine
                .connection
                .prepare_cached("SELECT position FROM operations WHERE log = ?1 ORDER BY position DESC LIMIT 1")?
                .query_row([document.row], |row| number(row, 0))
                .optional()?;
            Ok(document.state(newest.unwrap_or(0)))
        })
    }

    pub(super) fn publish(&mut self, log: LogId, payload: &Bytes) -> Outcome<StoredOperation> {
        self.with_document(log, |engine, document| {
            check_payload(payload.len())?;
            engine.check_outbox(document, payload.len())?;
            if document.unconfirmed {
                return Err(StoreError::Restored(log).into());
            }
            let own = document.logs.get(&engine.identity.peer_id());
            if own.is_some_and(|own| own.frozen) {
                return Err(StoreError::OwnLogFrozen(log).into());
            }
            let head = own.map(|own| own.head);
            let operation = Operation::sign(&engine.identity, log, head, engine.clock.now_us(), payload)?;
            let position = engine.append(log, document, &operation)?;
            Ok(StoredOperation { position, operation })
        })
    }

    pub(super) fn ingest(&mut self, log: LogId, operations: Vec<Operation>) -> Outcome<Ingested> {
        self.with_document(log, |engine, document| {
            let mut ingested = Ingested::default();
            for operation in operations {
                match engine.accept(log, document, &operation)? {
                    Accepted::Stored(position) => ingested.stored.push(StoredOperation { position, operation }),
                    Accepted::Duplicate => ingested.duplicates += 1,
                    Accepted::Refused(reason) => ingested.refused.push(Refused {
                        author: operation.author(),
                        seq_num: operation.seq_num(),
                        reason,
                        expected: document.expected(&operation.author()),
                    }),
                }
            }
            Ok(ingested)
        })
    }

    pub(super) fn set_delivered(&mut self, log: LogId, delivered: SeqNum) -> Outcome<()> {
        self.with_document(log, |engine, document| {
            let Some(own) = document.logs.get(&engine.identity.peer_id()) else { return Ok(()) };
            let (before, delivered) = (document.outbox.delivered, delivered.min(own.head.seq_num));
            if before >= Some(delivered) {
                return Ok(());
            }
            let (operations, bytes) = document.measure(&engine.connection, own, (before, delivered))?;
            document.outbox.delivered = Some(delivered);
            document.outbox.operations = document.outbox.operations.saturating_sub(operations);
            document.outbox.bytes = document.outbox.bytes.saturating_sub(bytes);
            engine.note_acknowledged(log, delivered);
            Ok(())
        })
    }

    pub(super) fn confirm(&mut self, log: LogId) -> Outcome<()> {
        self.with_document(log, |engine, document| {
            engine
                .connection
                .prepare_cached("UPDATE documents SET unconfirmed = 0 WHERE log = ?1")?
                .execute([document.row])?;
            document.unconfirmed = false;
            Ok(())
        })
    }

    pub(super) fn set_cursor(&mut self, log: LogId, name: &str, position: Position) -> Outcome<()> {
        let log = self.row(log)?;
        self.connection
            .prepare_cached(
                "INSERT INTO cursors (log, name, position) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET position = max(position, excluded.position)",
            )?
            .execute(params![log, name, to_column(position)])?;
        Ok(())
    }

    /// An empty outbox takes any one operation, so that no payload is too large for ever.
    fn check_outbox(&self, document: &Document, bytes: usize) -> Result<(), StoreError> {
        let outbox = document.outbox;
        let too_many = outbox.operations >= self.limits.operations;
        let too_large = outbox.operations > 0 && outbox.bytes + bytes as u64 > self.limits.bytes;
        if too_many || too_large {
            return Err(StoreError::QueueFull { operations: outbox.operations, bytes: outbox.bytes });
        }
        Ok(())
    }

    /// Finds the place of a received operation and puts it there.
    fn accept(&mut self, log: LogId, document: &mut Document, operation: &Operation) -> Outcome<Accepted> {
        match document.place(operation, DOCUMENT_MAX_AUTHORS) {
            Verdict::Append => Ok(Accepted::Stored(self.append(log, document, operation)?)),
            Verdict::Refuse(reason) => Ok(Accepted::Refused(reason)),
            Verdict::Fork { author, kept } => self.freeze(log, document, operation, (author, kept)),
            Verdict::Compare { author } => {
                let seq_num = operation.seq_num();
                let stored = match author.head {
                    head if head.seq_num == seq_num => head.id,
                    _ => operation_at(&self.connection, document.row, author.author, seq_num)?.1,
                };
                match stored {
                    id if id == operation.id() => Ok(Accepted::Duplicate),
                    _ if author.frozen => Ok(Accepted::Refused(RefusedReason::Frozen)),
                    _ => self.freeze(log, document, operation, (author, seq_num)),
                }
            }
        }
    }

    /// Writes an operation that is known to be its author's next one.
    fn append(&mut self, log: LogId, document: &mut Document, operation: &Operation) -> Outcome<Position> {
        let author = operation.author();
        let row = match document.logs.get(&author) {
            Some(known) => known.author,
            None => self.intern(&author)?,
        };
        let position = self.take_position()?;
        self.connection
            .prepare_cached(
                "INSERT INTO operations (position, log, author, seq_num, id, backlink, timestamp_us, header, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                to_column(position),
                document.row,
                row,
                operation.seq_num(),
                operation.id().as_bytes(),
                operation.backlink().as_ref().map(|id| id.as_bytes()),
                operation.timestamp_us().cast_signed(),
                operation.header().as_ref(),
                operation.body().as_ref(),
            ])?;
        let frozen = false;
        self.set_log(log, document, author, AuthorLog { author: row, head: operation.head(), frozen });
        if author == self.identity.peer_id() {
            document.outbox.operations += 1;
            document.outbox.bytes += operation.size() as u64;
        }
        self.note_stored(log, StoredOperation { position, operation: operation.clone() });
        Ok(position)
    }

    /// Keeps the proof of a fork, our operation `kept` and the `other`, and freezes the log of its author.
    fn freeze(
        &mut self,
        log: LogId,
        document: &mut Document,
        other: &Operation,
        (entry, kept): (AuthorLog, SeqNum),
    ) -> Outcome<Accepted> {
        let (kept, _) = operation_at(&self.connection, document.row, entry.author, kept)?;
        self.connection
            .prepare_cached(
                "INSERT INTO forks (log, author, kept, other_header, other_body) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![document.row, entry.author, kept, other.header().as_ref(), other.body().as_ref()])?;
        let author = other.author();
        self.set_log(log, document, author, AuthorLog { frozen: true, ..entry });
        tracing::warn!(log = %log.short(), author = %author.short(), "an author signed two operations for one place");
        Ok(Accepted::Refused(RefusedReason::Fork))
    }

    fn row(&self, log: LogId) -> Outcome<i64> {
        Ok(find(&self.connection, log)?.ok_or(StoreError::UnknownDocument(log))?)
    }

    /// The row of a public key, made when there is none.
    fn intern(&mut self, key: &PeerId) -> Outcome<i64> {
        let find = "SELECT author FROM authors WHERE public_key = ?1";
        let found = self.connection.prepare_cached(find)?.query_row([key.as_bytes()], |row| row.get(0)).optional()?;
        if let Some(row) = found {
            return Ok(row);
        }
        self.connection.prepare_cached("INSERT INTO authors (public_key) VALUES (?1)")?.execute([key.as_bytes()])?;
        Ok(self.connection.last_insert_rowid())
    }
}

/// What became of one received operation.
enum Accepted {
    Stored(Position),
    Duplicate,
    Refused(RefusedReason),
}
