//! The database file: made whole or not at all, checked before it is used, opened for the writer and for readers.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, Migrations};

use super::errors::{damaged, io_error, sqlite_error};
use super::lock::create_private;
use crate::store::{Durability, StoreError};

/// Name of the database in the data directory.
pub(super) const DATABASE_FILE: &str = "panda.sqlite";
/// What `PRAGMA application_id` says of a database of ours; see the first migration.
const APPLICATION_ID: i64 = 0x5061_4E64;
/// Page cache of the writer, in KiB.
const WRITER_CACHE_KIB: i64 = 16 * 1024;
/// Page cache of one reader, in KiB.
const READER_CACHE_KIB: i64 = 4 * 1024;
/// The writer copies the write-ahead log into the database when it has this many pages (of 4 KiB).
const CHECKPOINT_PAGES: i64 = 2_000;
/// A write-ahead log that grew beyond this is cut down after it was copied, in bytes.
const WAL_KEEP_BYTES: i64 = 32 * 1024 * 1024;
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 64;

/// All migrations, in order. Append only.
const STEPS: &[M<'static>] = &[
    M::up(include_str!("../../migrations/0001-foundation.sql")),
    M::up(include_str!("../../migrations/0002-address-book.sql")),
    M::up(include_str!("../../migrations/0003-named-peers.sql")),
];
static MIGRATIONS: Migrations<'static> = Migrations::from_slice(STEPS);

/// Where a database is.
#[derive(Debug, Clone)]
pub(super) enum Location {
    /// `panda.sqlite` at this path.
    File(PathBuf),
    /// In memory, gone with its only connection.
    Memory,
}

impl Location {
    /// The path to name in errors.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Memory => Path::new(":memory:"),
        }
    }

    /// Opens the connection that writes, and makes or migrates the database.
    pub(super) fn open_writer(&self, durability: Durability) -> Result<Connection, StoreError> {
        let mut connection = match self {
            Self::Memory => Connection::open_in_memory().map_err(|error| self.error(&error))?,
            Self::File(path) => {
                make_if_missing(path)?;
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let connection = Connection::open_with_flags(path, flags).map_err(|error| self.error(&error))?;
                check(path, &connection)?;
                connection
            }
        };
        configure_writer(&connection, durability).map_err(|error| self.error(&error))?;
        MIGRATIONS.to_latest(&mut connection).map_err(|error| migration_error(self.path(), error))?;
        Ok(connection)
    }

    /// Opens a connection that only reads.
    pub(super) fn open_reader(&self) -> Result<Connection, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Connection::open_with_flags(self.path(), flags)
            .and_then(|connection| {
                configure(&connection, READER_CACHE_KIB)?;
                Ok(connection)
            })
            .map_err(|error| self.error(&error))
    }

    /// Translates an error of SQLite.
    pub(super) fn error(&self, error: &rusqlite::Error) -> StoreError {
        sqlite_error(self.path(), error)
    }
}

/// Sets how long a commit takes: with [`Durability::Power`] until the disk says that it has it.
pub(super) fn set_durability(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.execute_batch(match durability {
        Durability::Power => "PRAGMA synchronous = FULL",
        Durability::Process => "PRAGMA synchronous = NORMAL",
    })
}

/// Makes the database under another name and moves it to its place, so that a crash leaves a whole one or none.
/// An empty file in its place is therefore damage, where SQLite would take it for a new database and start every log anew.
fn make_if_missing(path: &Path) -> Result<(), StoreError> {
    let failed = |error: std::io::Error| io_error("cannot make the database", path, &error);
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() == 0 => return Err(damaged(path, "the file is empty")),
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // SQLite would write the old log into the new database.
    if with_suffix(path, "-wal").exists() {
        return Err(damaged(path, "it is missing, but its write-ahead log is there"));
    }
    let temporary = path.with_extension("new");
    for suffix in ["", "-journal"] {
        match std::fs::remove_file(with_suffix(&temporary, suffix)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    let file = create_private(&temporary, true).map_err(failed)?;
    let mut connection = Connection::open(&temporary).map_err(|error| sqlite_error(path, &error))?;
    MIGRATIONS.to_latest(&mut connection).map_err(|error| migration_error(path, error))?;
    connection.close().map_err(|(_, error)| sqlite_error(path, &error))?;
    file.sync_all().and_then(|()| std::fs::rename(&temporary, path)).map_err(failed)?;
    sync_parent(path).map_err(failed)?;
    tracing::info!("made a new database");
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes a rename durable. Windows has no handle on directories to do so, and does it by itself.
fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) if cfg!(unix) => std::fs::File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// Is it ours, and of a version that we know? Damage inside is found when it is read, or by `PRAGMA quick_check`, which
/// would take too long at every start.
fn check(path: &Path, connection: &Connection) -> Result<(), StoreError> {
    let pragma = |name| {
        connection
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .map_err(|error| sqlite_error(path, &error))
    };
    match pragma("application_id")? {
        APPLICATION_ID => {}
        other => return Err(damaged(path, format_args!("application id {other:#x} is not that of Panda Network"))),
    }
    let known = MIGRATIONS.pending_migrations(connection).map_err(|error| migration_error(path, error))?;
    if known < 0 { Err(StoreError::TooNew { path: path.into() }) } else { Ok(()) }
}

fn configure_writer(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    configure(connection, WRITER_CACHE_KIB)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update_and_check(None, "wal_autocheckpoint", CHECKPOINT_PAGES, |_| Ok(()))?;
    connection.pragma_update_and_check(None, "journal_size_limit", WAL_KEEP_BYTES, |_| Ok(()))?;
    // On Apple systems a plain fsync does not reach the disk's platter; elsewhere this changes nothing.
    connection.pragma_update(None, "fullfsync", durability == Durability::Power)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    set_durability(connection, durability)
}

/// What every connection has. No memory map: a read error would then be a signal that kills the editor, not an error value.
fn configure(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "foreign_keys", false)?;
    connection.pragma_update_and_check(None, "mmap_size", 0, |_| Ok(())).or_else(|error| match error {
        rusqlite::Error::QueryReturnedNoRows => Ok(()), // in memory
        error => Err(error),
    })
}

fn migration_error(path: &Path, error: rusqlite_migration::Error) -> StoreError {
    match error {
        rusqlite_migration::Error::RusqliteError { err, .. } => sqlite_error(path, &err),
        rusqlite_migration::Error::MigrationDefinition(
            rusqlite_migration::MigrationDefinitionError::DatabaseTooFarAhead,
        ) => StoreError::TooNew { path: path.into() },
        other => damaged(path, other),
    }
}
