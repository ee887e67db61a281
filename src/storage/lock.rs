//! The lock on a data directory: one process at a time, released by the operating system when the process dies.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::path::Path;

use super::errors::io_error;
use crate::store::StoreError;

/// Name of the lock file. It stays behind when the store is closed; only the lock on it counts.
const LOCK_FILE: &str = "lock";

/// Held as long as the directory is in use.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    file: File,
}

impl Drop for DirectoryLock {
    /// Closing the file is not enough: a process that is being spawned just now holds a copy of the handle for a moment.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "the lock on the data directory cannot be given back before the file is closed");
        }
    }
}

impl DirectoryLock {
    /// Makes the directory if it is missing (for its owner alone) and locks it.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when somebody holds the lock, in this process or in another one.
    pub(super) fn acquire(directory: &Path) -> Result<Self, StoreError> {
        let failed = |error: std::io::Error| io_error("cannot use the directory", directory, &error);
        create_directory(directory).map_err(failed)?;
        let file = create_private(&directory.join(LOCK_FILE), false).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: directory.into() }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// Opens or makes a file that only its owner can read. With `new`, it must not exist.
pub(super) fn create_private(path: &Path, new: bool) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).create_new(new).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}

fn create_directory(directory: &Path) -> std::io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(directory)
}
