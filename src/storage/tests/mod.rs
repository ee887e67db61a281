//! What the store promises, as sentences. Here: what the tests share.

mod book;
mod calls;
mod damage;
mod durability;
mod ingest;
mod p2panda;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use uuid::Uuid;

use super::{SqliteStore, StorageOptions};
use crate::clock::Clock;
use crate::identity::Identity;
use crate::ids::{DocumentId, DocumentKey, LogId, PeerId};
use crate::operation::{Head, Operation};
use crate::store::{
    CommitObserver, DocumentRecord, DocumentState, Durability, Heard, Store, StoreError, StoredOperation,
};

/// The identity of the store's node.
pub(super) fn alice() -> Identity {
    Identity::from_seed(&[1; 32])
}

/// Another author.
pub(super) fn bob() -> Identity {
    Identity::from_seed(&[2; 32])
}

/// A document, one for each number.
pub(super) fn document(number: u8) -> DocumentRecord {
    DocumentRecord {
        document: DocumentId::from_uuid(Uuid::from_u128(number.into())),
        key: DocumentKey::from_bytes([number; 32]),
    }
}

/// Options for a directory, with a clock that ticks by one µs and commits that do not wait for the disk.
pub(super) fn options(directory: &std::path::Path) -> StorageOptions {
    let now = AtomicU64::new(1_000);
    StorageOptions::new(directory)
        .with_durability(Durability::Process)
        .with_clock(Clock::new(move || now.fetch_add(1, Ordering::Relaxed)))
}

pub(super) fn open(directory: &std::path::Path) -> SqliteStore {
    SqliteStore::open(options(directory), alice()).unwrap()
}

/// A store in memory with document 1 open.
pub(super) async fn in_memory() -> (SqliteStore, LogId) {
    let store = SqliteStore::open(StorageOptions::in_memory(), alice()).unwrap();
    store.open_document(document(1), ignore()).await.unwrap();
    (store, document(1).log())
}

/// A store in a directory with document 1 open.
pub(super) async fn on_disk() -> (tempfile::TempDir, SqliteStore, LogId) {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    store.open_document(document(1), ignore()).await.unwrap();
    (directory, store, document(1).log())
}

/// A log of `count` operations of an author, whose payloads are their sequence numbers in text after `mark`.
pub(super) fn chain(author: &Identity, log: LogId, count: usize, mark: &str) -> Vec<Operation> {
    continue_chain(author, log, None, count, mark)
}

pub(super) fn continue_chain(
    author: &Identity,
    log: LogId,
    mut head: Option<Head>,
    count: usize,
    mark: &str,
) -> Vec<Operation> {
    (0..count)
        .map(|_| {
            let seq_num = head.map_or(0, |head| head.seq_num + 1);
            let operation = Operation::sign(author, log, head, 7, format!("{mark}{seq_num}").as_bytes()).unwrap();
            head = Some(operation.head());
            operation
        })
        .collect()
}

pub(super) async fn publish(store: &SqliteStore, log: LogId, payload: &str) -> Result<StoredOperation, StoreError> {
    store.publish(log, Bytes::copy_from_slice(payload.as_bytes())).await
}

/// Everything in a document, by position.
pub(super) async fn everything(store: &SqliteStore, log: LogId) -> Vec<StoredOperation> {
    let mut all: Vec<StoredOperation> = Vec::new();
    loop {
        let after = all.last().map_or(0, |stored| stored.position);
        let page = store.page_after(log, after).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// Checks that an author's log in the store is a chain without gaps, and returns its length.
pub(super) async fn assert_gapless(store: &SqliteStore, log: LogId, author: PeerId) -> usize {
    let operations: Vec<_> = everything(store, log).await.into_iter().map(|stored| stored.operation).collect();
    let of_author: Vec<_> = operations.iter().filter(|operation| operation.author() == author).collect();
    for (index, operation) in of_author.iter().enumerate() {
        assert_eq!(operation.seq_num() as usize, index);
        assert_eq!(operation.backlink(), index.checked_sub(1).map(|before| of_author[before].id()));
        Operation::decode(log, operation.header().clone(), operation.body().clone()).unwrap();
    }
    of_author.len()
}

pub(super) async fn state(store: &SqliteStore, number: u8) -> DocumentState {
    store.open_document(document(number), ignore()).await.unwrap()
}

/// For tests that do not care what is committed.
struct Ignore;

impl CommitObserver for Ignore {
    fn on_commit(&self, _: &[StoredOperation]) {}
}

fn ignore() -> Arc<dyn CommitObserver> {
    Arc::new(Ignore)
}

/// Says past the capture of tests what was not run here; a failure where everything has to be (`PANDA_NETNS=require`, as in CI).
pub(super) fn not_run(what: &str) {
    assert!(std::env::var_os("PANDA_NETNS").is_none_or(|value| value != "require"), "not run: {what}");
    let _ = writeln!(std::io::stderr(), "NOT RUN: {what}");
}
