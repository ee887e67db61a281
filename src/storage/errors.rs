//! What SQLite and the operating system say, in the words of [`StoreError`], and the two ways in which a write fails.

use std::path::Path;

use rusqlite::{ErrorCode, ffi};

use crate::error::OperationError;
use crate::store::StoreError;

/// Why a write did not happen.
#[derive(Debug)]
pub(super) enum Failure {
    /// The call was refused before anything was written: the transaction goes on without it.
    Refused(StoreError),
    /// SQLite failed: the whole transaction is rolled back.
    Broken(rusqlite::Error),
}

/// What a write, or a part of one, came to.
pub(super) type Outcome<T> = Result<T, Failure>;

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<OperationError> for Failure {
    fn from(error: OperationError) -> Self {
        Self::Refused(error.into())
    }
}

/// Translates what SQLite says about the database at `path`.
pub(super) fn sqlite_error(path: &Path, error: &rusqlite::Error) -> StoreError {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) if is_disk_full(failure) => StoreError::DiskFull(error.to_string()),
        rusqlite::Error::SqliteFailure(
            ffi::Error { code: ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, .. },
            _,
        ) => damaged(path, error),
        rusqlite::Error::SqliteFailure(ffi::Error { extended_code: ffi::SQLITE_IOERR_CORRUPTFS, .. }, _) => {
            damaged(path, error)
        }
        // A row that must be there is not, or a column does not hold what the schema says: the file was changed.
        rusqlite::Error::QueryReturnedNoRows
        | rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::InvalidColumnType(..) => damaged(path, error),
        _ => StoreError::Io(error.to_string()),
    }
}

/// The database at `path` holds something that cannot be.
pub(super) fn damaged(path: &Path, reason: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged { path: path.into(), reason: reason.to_string() }
}

/// The operating system refused something about `path`.
pub(super) fn io_error(what: &str, path: &Path, error: &std::io::Error) -> StoreError {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => StoreError::DiskFull(error.to_string()),
        _ => StoreError::Io(format!("{what} {}: {error}", path.display())),
    }
}

/// SQLite reports a shared-memory file that cannot grow as an I/O error; the reason is the full disk as well.
fn is_disk_full(failure: &ffi::Error) -> bool {
    failure.code == ErrorCode::DiskFull || failure.extended_code == ffi::SQLITE_IOERR_SHMSIZE
}
