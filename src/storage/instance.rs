//! Notices that the database is a copy: a restored backup, or a cloned disk.
//!
//! A copy may be older than what this node published, so its next operation would take a sequence number that is used
//! already. The database remembers which file it was (the number that the file system gave it, and when it was made); in
//! another file, every document with operations of our own is *unconfirmed* until a peer's heads show that nothing newer is
//! out there. A file that is only moved stays the same. Where the file system tells nothing (Windows), nothing is noticed;
//! neither is a whole machine that was set back. Then the fork is noticed by the peers.

use std::path::Path;
use std::time::UNIX_EPOCH;

use rusqlite::{Connection, OptionalExtension};

use super::errors::{io_error, sqlite_error};
use crate::store::StoreError;

/// Compares the database with the file it is in now. To be called once, before anything is written.
pub(super) fn check(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let metadata = std::fs::metadata(path).map_err(|error| io_error("cannot look at the database", path, &error))?;
    let Some(file) = name_of(&metadata) else { return Ok(()) };
    note(connection, &file).map_err(|error| sqlite_error(path, &error))
}

fn note(connection: &mut Connection, file: &[u8; 32]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    let known: Option<[u8; 32]> =
        transaction.query_row("SELECT file FROM instance", [], |row| row.get(0)).optional()?;
    if known.as_ref() == Some(file) {
        return Ok(());
    }
    if known.is_some() {
        tracing::warn!("the database was copied or restored: own operations that are newer may be out there");
        transaction.execute("UPDATE documents SET unconfirmed = 1", [])?;
    }
    transaction.execute("INSERT OR REPLACE INTO instance (row, file) VALUES (1, ?1)", [file])?;
    transaction.commit()
}

/// Not the device: its number may change with every start of the machine.
#[cfg(unix)]
fn name_of(metadata: &std::fs::Metadata) -> Option<[u8; 32]> {
    use std::os::unix::fs::MetadataExt;
    let made = metadata.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&metadata.ino().to_le_bytes()).update(&made.as_nanos().to_le_bytes());
    Some(*hasher.finalize().as_bytes())
}

#[cfg(not(unix))]
fn name_of(_: &std::fs::Metadata) -> Option<[u8; 32]> {
    None
}
