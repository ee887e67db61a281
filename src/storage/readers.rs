//! The readers: a few connections beside the writer's, used on tokio's blocking threads.
//!
//! In WAL mode a reader and the writer never wait for each other, and a read sees every commit before it.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::database::Location;
use super::errors::{Failure, Outcome};
use super::read::Authors;
use crate::limits::STORE_READERS;
use crate::store::StoreError;

/// One connection and what it knows.
struct Reader {
    connection: Connection,
    authors: Authors,
}

/// Connections that are opened on demand, and kept.
pub(super) struct Readers {
    shared: Arc<Shared>,
    room: Arc<Semaphore>,
}

struct Shared {
    location: Location,
    idle: Mutex<Vec<Reader>>,
}

impl Readers {
    pub(super) fn new(location: Location) -> Self {
        let shared = Shared { location, idle: Mutex::new(Vec::new()) };
        Self { shared: Arc::new(shared), room: Arc::new(Semaphore::new(STORE_READERS)) }
    }

    /// Runs a query. When the caller goes, it runs to its end all the same and nobody gets the result.
    pub(super) async fn read<T, F>(&self, query: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &mut Authors) -> Outcome<T> + Send + 'static,
    {
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let shared = Arc::clone(&self.shared);
        let reading = tokio::task::spawn_blocking(move || {
            let result = shared.read(query);
            drop(room);
            result
        });
        reading.await.map_err(|error| StoreError::Io(format!("a read was interrupted: {error}")))?
    }

    /// Refuses further reads, waits for those under way and closes the connections.
    pub(super) async fn close(&self) {
        let all = self.room.acquire_many(STORE_READERS as u32).await;
        self.room.close();
        drop(all);
        self.shared.idle().clear();
    }

    /// Refuses further reads. Those under way end by themselves.
    pub(super) fn close_now(&self) {
        self.room.close();
        self.shared.idle().clear();
    }
}

impl Shared {
    fn read<T>(&self, query: impl FnOnce(&Connection, &mut Authors) -> Outcome<T>) -> Result<T, StoreError> {
        let idle = self.idle().pop();
        let mut reader = match idle {
            Some(reader) => reader,
            None => Reader { connection: self.location.open_reader()?, authors: Authors::default() },
        };
        let result = query(&reader.connection, &mut reader.authors);
        self.idle().push(reader);
        result.map_err(|failure| match failure {
            Failure::Refused(error) => error,
            Failure::Broken(error) => self.location.error(&error),
        })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
