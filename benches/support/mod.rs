//! What the benchmarks share: how long they measure, operations to measure with, a store, a runtime.
//!
//! Not a benchmark. Each of them uses a part of this.

#![allow(dead_code, reason = "no benchmark uses all of it")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::Criterion;
use panda_network::identity::Identity;
use panda_network::ids::LogId;
use panda_network::operation::Head;
use panda_network::storage::{SqliteStore, StorageOptions};
use panda_network::store::{CommitObserver, DocumentRecord, Store};
use panda_network::{DocumentId, DocumentKey, Durability, Operation, StoredOperation};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub mod raw_quinn;

/// Payload of a small operation, in bytes: what a CRDT makes of a few keys typed.
pub const PAYLOAD_BYTES: usize = 200;

/// Warms up for half a second and measures for two; `--measurement-time` and others change that.
pub fn criterion() -> Criterion {
    let short = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    short.configure_from_args()
}

/// A payload that does not compress and is the same in each run.
pub fn payload(bytes: usize) -> Bytes {
    (0..bytes as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

pub fn identity(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

/// The document of all benchmarks below the node.
pub fn record() -> DocumentRecord {
    let document = DocumentId::from_uuid(uuid::Uuid::from_u128(1));
    DocumentRecord { document, key: DocumentKey::from_bytes([1; 32]) }
}

/// An author whose log goes on with every operation signed.
pub struct Author {
    identity: Identity,
    log: LogId,
    head: Option<Head>,
    payload: Bytes,
}

impl Author {
    pub fn new(seed: u8, payload_bytes: usize) -> Self {
        Self { identity: identity(seed), log: record().log(), head: None, payload: payload(payload_bytes) }
    }

    /// The author's next operations.
    pub fn sign(&mut self, count: usize) -> Vec<Operation> {
        let mut next = || {
            let operation = Operation::sign(&self.identity, self.log, self.head, 1, &self.payload).unwrap();
            self.head = Some(operation.head());
            operation
        };
        (0..count).map(|_| next()).collect()
    }
}

struct NoObserver;

impl CommitObserver for NoObserver {
    fn on_commit(&self, _: &[StoredOperation]) {}
}

/// A store on disk with the document open, in a directory that goes with it.
pub struct OpenStore {
    pub store: SqliteStore,
    pub log: LogId,
    _directory: TempDir,
}

impl OpenStore {
    pub fn new(runtime: &Runtime, durability: Durability) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Nobody acknowledges here: the queue must not be what ends the measurement.
        let options =
            StorageOptions::new(directory.path()).with_durability(durability).with_outbox_limits(1 << 30, 1 << 40);
        let store = SqliteStore::open(options, identity(1)).unwrap();
        runtime.block_on(store.open_document(record(), Arc::new(NoObserver))).unwrap();
        Self { store, log: record().log(), _directory: directory }
    }
}

/// The runtime of an editor with two threads.
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
