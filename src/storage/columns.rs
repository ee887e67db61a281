//! Values as SQLite holds them, and back: what does not fit is an error that tells of a damaged database.

use bytes::Bytes;
use rusqlite::Row;
use rusqlite::types::Type;

use crate::ids::PeerId;

/// A position or a time as SQLite holds it. What is too large for it is as good as the largest.
pub(super) fn to_column(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A number that is not negative.
pub(super) fn number<T: TryFrom<i64>>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let value: i64 = row.get(column)?;
    T::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

/// A public key.
pub(super) fn peer_id(row: &Row<'_>, column: usize) -> rusqlite::Result<PeerId> {
    PeerId::from_bytes(&row.get(column)?).map_err(|error| bad_column(column, error))
}

/// Bytes, copied.
pub(super) fn blob(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    blob_ref(row, column).map(Bytes::copy_from_slice)
}

/// Bytes, as long as the row is there.
pub(super) fn blob_ref<'a>(row: &'a Row<'_>, column: usize) -> rusqlite::Result<&'a [u8]> {
    row.get_ref(column)?.as_blob().map_err(|error| bad_column(column, error))
}

/// A column holds bytes that cannot be what it should hold.
pub(super) fn bad_column(
    column: usize,
    error: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, error.into())
}
