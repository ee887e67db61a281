//! Tells when the followed file may have changed. Watches its directory, because editors replace files by renaming.
//!
//! A hint and no more: events can be missed (network drives, full queues), so the driver also looks on a slow timer.

use std::path::Path;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Wakes when the file may have changed, as long as it lives.
pub struct FileWatcher {
    changes: mpsc::Receiver<()>,
    /// Keeps the watch; `None` when this system has none and the timer must do.
    _watcher: Option<RecommendedWatcher>,
}

impl FileWatcher {
    /// Watches the directory of `path`. Where that is not possible it says so in the log and never wakes.
    pub fn new(path: &Path) -> Self {
        // One place is enough: many changes are one wake-up.
        let (sender, changes) = mpsc::channel(1);
        let name = path.file_name().map(ToOwned::to_owned);
        let on_event = move |event: notify::Result<Event>| {
            let concerns_us = match event {
                Ok(event) => {
                    may_change(&event.kind) && event.paths.iter().any(|path| path.file_name() == name.as_deref())
                }
                Err(_) => true,
            };
            if concerns_us {
                // Full means that a wake-up is pending already.
                let _ = sender.try_send(());
            }
        };
        let directory = path.parent().unwrap_or(Path::new("/"));
        let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        let watcher = watcher
            .inspect_err(|error| tracing::warn!(%error, "the directory cannot be watched; looking every 2 seconds"))
            .ok();
        Self { changes, _watcher: watcher }
    }

    /// Resolves when the file may have changed. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            std::future::pending().await
        }
    }
}

/// Reading a file makes events too; our own reading must not wake us.
fn may_change(kind: &EventKind) -> bool {
    match kind {
        EventKind::Access(access) => *access == AccessKind::Close(AccessMode::Write),
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Remove(_) | EventKind::Other => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_replaced_file_wakes_and_a_read_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.md");
        std::fs::write(&file, "one").unwrap();
        let mut watcher = FileWatcher::new(&file);
        let quiet = Duration::from_millis(200);
        std::fs::read(&file).unwrap();
        assert!(tokio::time::timeout(quiet, watcher.changed()).await.is_err());
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        tokio::time::timeout(Duration::from_secs(5), watcher.changed()).await.unwrap();
    }
}
