//! What is read: queries that see everything whose write has returned, and none of what is under way.
//!
//! Pages are the hot path of catch-up: one indexed scan, no join, two allocations for an operation.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, Rows, params};
use uuid::Uuid;

use super::columns::{bad_column, blob, blob_ref, number, peer_id, to_column};
use super::document::find;
use super::errors::Outcome;
use crate::ids::{DocumentId, DocumentKey, LogId, OperationId, PeerId};
use crate::limits::{FORK_PROOFS_MAX_BYTES, PAGE_MAX_BYTES, PAGE_MAX_OPERATIONS};
use crate::operation::{Operation, SeqNum, StoredParts};
use crate::store::{DocumentRecord, ForkProof, Position, StoreError, StoredOperation};

/// Authors that one connection keeps by row; when it is full it starts anew.
const AUTHORS_CACHED: usize = 8192;
/// Most rows in a page, as SQLite wants it.
const PAGE_LIMIT: i64 = PAGE_MAX_OPERATIONS as i64;

/// Public keys by row: reading one means checking a point of the curve. Holds committed rows only, which never change.
#[derive(Debug, Default)]
pub(super) struct Authors(HashMap<i64, PeerId>);

impl Authors {
    pub(super) fn get(&mut self, connection: &Connection, row: i64) -> rusqlite::Result<PeerId> {
        if let Some(known) = self.0.get(&row) {
            return Ok(*known);
        }
        let key = connection
            .prepare_cached("SELECT public_key FROM authors WHERE author = ?1")?
            .query_row([row], |row| peer_id(row, 0))?;
        if self.0.len() >= AUTHORS_CACHED {
            self.0.clear();
        }
        self.0.insert(row, key);
        Ok(key)
    }
}

pub(super) fn documents(connection: &Connection) -> Outcome<Vec<DocumentRecord>> {
    let mut statement = connection.prepare_cached("SELECT document, key FROM documents ORDER BY log")?;
    let records = statement.query_map([], document_record)?;
    Ok(records.collect::<Result<_, _>>()?)
}

/// The columns `document` and `key`.
pub(super) fn document_record(row: &Row<'_>) -> rusqlite::Result<DocumentRecord> {
    Ok(DocumentRecord {
        document: DocumentId::from_uuid(Uuid::from_bytes(row.get(0)?)),
        key: DocumentKey::from_bytes(row.get(1)?),
    })
}

pub(super) fn author_page(
    connection: &Connection,
    log: LogId,
    author: PeerId,
    (first, last): (SeqNum, SeqNum),
) -> Outcome<Vec<StoredOperation>> {
    let log = log_row(connection, log)?;
    let mut statement = connection.prepare_cached(
        "SELECT position, author, seq_num, id, backlink, timestamp_us, header, body FROM operations
         WHERE log = ?1 AND author = (SELECT author FROM authors WHERE public_key = ?2) AND seq_num BETWEEN ?3 AND ?4
         ORDER BY seq_num LIMIT ?5",
    )?;
    let rows = statement.query(params![log, author.as_bytes(), first, last, PAGE_LIMIT])?;
    page(rows, |_| Ok(author))
}

pub(super) fn page_after(
    connection: &Connection,
    authors: &mut Authors,
    log: LogId,
    after: Position,
) -> Outcome<Vec<StoredOperation>> {
    let log = log_row(connection, log)?;
    let mut statement = connection.prepare_cached(
        "SELECT position, author, seq_num, id, backlink, timestamp_us, header, body FROM operations
         WHERE log = ?1 AND position > ?2 ORDER BY position LIMIT ?3",
    )?;
    let rows = statement.query(params![log, to_column(after), PAGE_LIMIT])?;
    page(rows, |row| authors.get(connection, row))
}

pub(super) fn operation_id(
    connection: &Connection,
    log: LogId,
    author: PeerId,
    seq_num: SeqNum,
) -> Outcome<Option<OperationId>> {
    let log = log_row(connection, log)?;
    let id = connection
        .prepare_cached(
            "SELECT id FROM operations
             WHERE log = ?1 AND author = (SELECT author FROM authors WHERE public_key = ?2) AND seq_num = ?3",
        )?
        .query_row(params![log, author.as_bytes(), seq_num], |row| row.get::<_, [u8; 32]>(0))
        .optional()?;
    Ok(id.map(Into::into))
}

pub(super) fn operation_by_id(
    connection: &Connection,
    authors: &mut Authors,
    id: OperationId,
) -> Outcome<Option<StoredOperation>> {
    let mut statement = connection.prepare_cached(
        "SELECT position, author, seq_num, id, backlink, timestamp_us, header, body FROM operations WHERE id = ?1",
    )?;
    let rows = statement.query([id.as_bytes()])?;
    Ok(page(rows, |row| authors.get(connection, row))?.pop())
}

pub(super) fn has_operation(connection: &Connection, id: OperationId) -> Outcome<bool> {
    Ok(connection.prepare_cached("SELECT 1 FROM operations WHERE id = ?1")?.exists([id.as_bytes()])?)
}

pub(super) fn fork_proofs(connection: &Connection, authors: &mut Authors, log: LogId) -> Outcome<Vec<ForkProof>> {
    let row = log_row(connection, log)?;
    let mut statement = connection.prepare_cached(
        "SELECT position, operations.author, seq_num, id, backlink, timestamp_us, header, body, other_header, other_body
         FROM forks JOIN operations ON position = kept WHERE forks.log = ?1 ORDER BY forks.author",
    )?;
    let mut rows = statement.query([row])?;
    let mut proofs = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        let kept = stored_operation(row, authors.get(connection, row.get(1)?)?)?.operation;
        let other = Operation::decode(log, blob(row, 8)?, blob(row, 9)?).map_err(|error| bad_column(8, error))?;
        bytes += kept.size() + other.size();
        if bytes > FORK_PROOFS_MAX_BYTES && !proofs.is_empty() {
            break;
        }
        proofs.push(ForkProof { kept, other });
    }
    Ok(proofs)
}

pub(super) fn cursor(connection: &Connection, log: LogId, name: &str) -> Outcome<Position> {
    let log = log_row(connection, log)?;
    let position = connection
        .prepare_cached("SELECT position FROM cursors WHERE log = ?1 AND name = ?2")?
        .query_row(params![log, name], |row| number(row, 0))
        .optional()?;
    Ok(position.unwrap_or(0))
}

/// Everybody with an operation in a log, for p2panda's traits.
pub(super) fn authors(connection: &Connection, log: LogId) -> Outcome<Vec<PeerId>> {
    let mut statement = connection.prepare_cached(
        "SELECT public_key FROM heads JOIN authors USING (author) JOIN documents USING (log) WHERE log_id = ?1",
    )?;
    let authors = statement.query_map([log.as_bytes()], |row| peer_id(row, 0))?;
    Ok(authors.collect::<Result<_, _>>()?)
}

/// The newest sequence number of an author in a log, for p2panda's traits.
pub(super) fn height(connection: &Connection, log: LogId, author: PeerId) -> Outcome<Option<SeqNum>> {
    Ok(connection
        .prepare_cached(
            "SELECT seq_num FROM heads WHERE log = (SELECT log FROM documents WHERE log_id = ?1)
             AND author = (SELECT author FROM authors WHERE public_key = ?2)",
        )?
        .query_row(params![log.as_bytes(), author.as_bytes()], |row| row.get(0))
        .optional()?)
}

/// Count and bytes of a range of a log, for p2panda's traits.
pub(super) fn range_size(
    connection: &Connection,
    log: LogId,
    author: PeerId,
    (first, last): (SeqNum, SeqNum),
) -> Outcome<(u64, u64)> {
    Ok(connection
        .prepare_cached(
            "SELECT count(*), coalesce(sum(length(header) + length(body)), 0) FROM operations
             WHERE log = (SELECT log FROM documents WHERE log_id = ?1)
               AND author = (SELECT author FROM authors WHERE public_key = ?2) AND seq_num BETWEEN ?3 AND ?4",
        )?
        .query_row(params![log.as_bytes(), author.as_bytes(), first, last], |row| {
            Ok((number(row, 0)?, number(row, 1)?))
        })?)
}

pub(super) fn log_row(connection: &Connection, log: LogId) -> Outcome<i64> {
    Ok(find(connection, log)?.ok_or(StoreError::UnknownDocument(log))?)
}

/// Reads operations until a page is full.
fn page(mut rows: Rows<'_>, mut author: impl FnMut(i64) -> rusqlite::Result<PeerId>) -> Outcome<Vec<StoredOperation>> {
    let mut operations = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        bytes += blob_ref(row, 6)?.len() + blob_ref(row, 7)?.len();
        if bytes > PAGE_MAX_BYTES && !operations.is_empty() {
            break;
        }
        operations.push(stored_operation(row, author(row.get(1)?)?)?);
    }
    Ok(operations)
}

fn stored_operation(row: &Row<'_>, author: PeerId) -> rusqlite::Result<StoredOperation> {
    let id = row.get::<_, [u8; 32]>(3)?.into();
    let parts = StoredParts {
        seq_num: row.get(2)?,
        backlink: row.get::<_, Option<[u8; 32]>>(4)?.map(Into::into),
        timestamp_us: row.get::<_, i64>(5)?.cast_unsigned(),
        header: blob(row, 6)?,
        body: blob(row, 7)?,
    };
    let operation = Operation::from_store(id, author, parts).map_err(|error| bad_column(7, error))?;
    Ok(StoredOperation { position: number(row, 0)?, operation })
}
