//! What the writer knows of a document without asking the database: the head of every author and the size of the outbox.
//!
//! It runs ahead of the database within a transaction. When the transaction fails the writer drops it and loads it
//! again, so that a sequence number that was not committed was never used.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::columns::{number, peer_id};
use crate::ids::{DocumentId, LogId, OperationId, PeerId};
use crate::operation::{Head, Operation, SeqNum};
use crate::store::{DocumentState, Position, RefusedReason};

/// A document and the logs of its authors.
#[derive(Debug)]
pub(super) struct Document {
    /// Its row.
    pub(super) row: i64,
    /// One log for each author with an operation.
    pub(super) logs: HashMap<PeerId, AuthorLog>,
    /// What no peer has acknowledged yet.
    pub(super) outbox: Outbox,
    /// Newer operations of our own may be out there.
    pub(super) unconfirmed: bool,
}

/// The log of one author in one document.
#[derive(Debug, Clone, Copy)]
pub(super) struct AuthorLog {
    /// The author's row.
    pub(super) author: i64,
    /// The newest operation.
    pub(super) head: Head,
    /// Whether a fork was found.
    pub(super) frozen: bool,
}

/// Own operations that no peer has acknowledged: those after `delivered`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outbox {
    /// The newest that some peer acknowledged.
    pub(super) delivered: Option<SeqNum>,
    /// How many come after it.
    pub(super) operations: usize,
    /// Their bytes of header and body.
    pub(super) bytes: u64,
}

/// Where a received operation belongs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict {
    /// It is the author's next one.
    Append,
    /// The author's log has an operation at its sequence number: it is a duplicate or a fork, as their ids say.
    Compare {
        /// The author's log.
        author: AuthorLog,
    },
    /// It follows another operation than the one that the author's log has there.
    Fork {
        /// The author's log.
        author: AuthorLog,
        /// Where the log has what it contradicts.
        kept: SeqNum,
    },
    /// It is not acceptable.
    Refuse(RefusedReason),
}

impl Document {
    /// Reads a document. `acknowledged` is what was noted but not written yet. `None` when the document is not there.
    pub(super) fn load(
        connection: &Connection,
        log: LogId,
        own: PeerId,
        acknowledged: Option<SeqNum>,
    ) -> rusqlite::Result<Option<Self>> {
        let Some(row) = find(connection, log)? else { return Ok(None) };
        let unconfirmed = connection
            .prepare_cached("SELECT unconfirmed FROM documents WHERE log = ?1")?
            .query_row([row], |row| row.get(0))?;
        let mut document = Self { row, logs: HashMap::new(), outbox: Outbox::default(), unconfirmed };
        let mut statement = connection.prepare_cached(
            "SELECT author, public_key, seq_num, id, frozen, delivered FROM heads JOIN authors USING (author)
             WHERE log = ?1",
        )?;
        let mut rows = statement.query([row])?;
        while let Some(row) = rows.next()? {
            let public_key = peer_id(row, 1)?;
            let head = Head { seq_num: row.get(2)?, id: row.get::<_, [u8; 32]>(3)?.into() };
            document.logs.insert(public_key, AuthorLog { author: row.get(0)?, head, frozen: row.get(4)? });
            if public_key == own {
                document.outbox.delivered = acknowledged.max(row.get(5)?).map(|seq_num| seq_num.min(head.seq_num));
            }
        }
        if let Some(own) = document.logs.get(&own) {
            let waiting = (document.outbox.delivered, own.head.seq_num);
            (document.outbox.operations, document.outbox.bytes) = document.measure(connection, own, waiting)?;
        }
        Ok(Some(document))
    }

    /// Count and bytes of the operations after one sequence number and up to another.
    pub(super) fn measure(
        &self,
        connection: &Connection,
        log: &AuthorLog,
        (after, last): (Option<SeqNum>, SeqNum),
    ) -> rusqlite::Result<(usize, u64)> {
        connection
            .prepare_cached(
                "SELECT count(*), coalesce(sum(length(header) + length(body)), 0) FROM operations
                 WHERE log = ?1 AND author = ?2 AND seq_num > ?3 AND seq_num <= ?4",
            )?
            .query_row(params![self.row, log.author, after.map_or(-1, i64::from), last], |row| {
                Ok((number(row, 0)?, number(row, 1)?))
            })
    }

    /// Where `operation` belongs, as far as the heads tell.
    pub(super) fn place(&self, operation: &Operation, max_authors: usize) -> Verdict {
        let seq_num = operation.seq_num();
        let Some(&author) = self.logs.get(&operation.author()) else {
            return match (seq_num, operation.backlink()) {
                (0, None) if self.logs.len() < max_authors => Verdict::Append,
                (0, None) => Verdict::Refuse(RefusedReason::TooManyAuthors),
                _ => Verdict::Refuse(RefusedReason::Gap),
            };
        };
        let head = author.head;
        if seq_num <= head.seq_num {
            Verdict::Compare { author }
        } else if author.frozen {
            Verdict::Refuse(RefusedReason::Frozen)
        } else if seq_num - head.seq_num > 1 {
            Verdict::Refuse(RefusedReason::Gap)
        } else if operation.backlink() == Some(head.id) {
            Verdict::Append
        } else {
            Verdict::Fork { author, kept: head.seq_num }
        }
    }

    /// The sequence number that the store wants next of an author.
    pub(super) fn expected(&self, author: &PeerId) -> SeqNum {
        self.logs.get(author).map_or(0, |log| log.head.seq_num.saturating_add(1))
    }

    /// As the port says it.
    pub(super) fn state(&self, newest: Position) -> DocumentState {
        let mut frozen: Vec<PeerId> =
            self.logs.iter().filter(|(_, log)| log.frozen).map(|(author, _)| *author).collect();
        frozen.sort_unstable();
        DocumentState {
            heads: self.logs.iter().map(|(author, log)| (*author, log.head)).collect(),
            newest,
            delivered: self.outbox.delivered,
            outbox_operations: self.outbox.operations,
            outbox_bytes: self.outbox.bytes,
            frozen,
            unconfirmed: self.unconfirmed,
        }
    }
}

/// The row of a document.
pub(super) fn find(connection: &Connection, log: LogId) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT log FROM documents WHERE log_id = ?1")?
        .query_row([log.as_bytes()], |row| row.get(0))
        .optional()
}

/// Whether a document of this id is here, whatever its key.
pub(super) fn has_id(connection: &Connection, document: &DocumentId) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM documents WHERE document = ?1)")?
        .query_row([document.as_uuid().as_bytes()], |row| row.get(0))
}

/// Position and id of the operation at a sequence number that the log has.
pub(super) fn operation_at(
    connection: &Connection,
    log: i64,
    author: i64,
    seq_num: SeqNum,
) -> rusqlite::Result<(i64, OperationId)> {
    connection
        .prepare_cached("SELECT position, id FROM operations WHERE log = ?1 AND author = ?2 AND seq_num = ?3")?
        .query_row(params![log, author, seq_num], |row| Ok((row.get(0)?, row.get::<_, [u8; 32]>(1)?.into())))
}
