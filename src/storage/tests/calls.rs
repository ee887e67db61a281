//! Each call of the port: what it returns, what it keeps, where it stops.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::address::{PeerAddress, TransportKind};
use crate::limits::{OPERATION_PAYLOAD_MAX_BYTES, PAGE_MAX_BYTES, PAGE_MAX_OPERATIONS, STORE_QUEUE};
use crate::store::Position;

fn address(seed: u8, timestamp_us: u64) -> PeerAddress {
    let at = SocketAddr::from(([192, 0, 2, seed], 7000));
    PeerAddress::sign(&Identity::from_seed(&[seed; 32]), vec![(TransportKind::Quic, at)], Vec::new(), timestamp_us)
        .unwrap()
}

#[tokio::test]
async fn a_new_document_is_empty_and_is_listed() {
    let (_directory, store, _) = on_disk().await;
    assert_eq!(state(&store, 1).await, DocumentState::default());
    state(&store, 2).await;
    assert_eq!(store.documents().await.unwrap(), [document(1), document(2)]);
}

#[tokio::test]
async fn a_document_that_is_here_with_another_key_is_refused_and_nothing_is_changed() {
    let (_directory, store, log) = on_disk().await;
    let other = DocumentRecord { key: DocumentKey::from_bytes([99; 32]), ..document(1) };
    let refused = store.open_document(other.clone(), ignore()).await.unwrap_err();
    assert!(matches!(refused, StoreError::OtherKey(id) if id == other.document), "{refused}");
    assert_eq!(store.documents().await.unwrap(), [document(1)]);
    publish(&store, log, "goes on").await.unwrap();
    assert!(matches!(publish(&store, other.log(), "edit").await, Err(StoreError::UnknownDocument(_))));
}

#[tokio::test]
async fn published_operations_form_a_log_and_are_read_back_as_they_were_returned() {
    let (_directory, store, log) = on_disk().await;
    let mut published = Vec::new();
    for number in 0..5 {
        published.push(publish(&store, log, &format!("edit {number}")).await.unwrap());
    }
    assert_eq!(everything(&store, log).await, published);
    assert_eq!(store.author_page(log, alice().peer_id(), 0, u32::MAX).await.unwrap(), published);
    assert_eq!(assert_gapless(&store, log, alice().peer_id()).await, 5);
    let state = state(&store, 1).await;
    assert_eq!(state.heads[&alice().peer_id()], published[4].operation.head());
    assert_eq!(state.newest, published[4].position);
    assert_eq!(state.outbox_operations, 5);
    assert_eq!(state.outbox_bytes, published.iter().map(|stored| stored.operation.size() as u64).sum::<u64>());
}

#[tokio::test]
async fn a_document_that_was_not_opened_is_unknown_to_every_call() {
    let (store, _) = in_memory().await;
    let log = document(9).log();
    let alice = alice().peer_id();
    let unknown = |error| assert!(matches!(error, StoreError::UnknownDocument(of) if of == log), "{error}");
    unknown(publish(&store, log, "edit").await.unwrap_err());
    unknown(store.ingest(log, chain(&bob(), log, 1, "")).await.unwrap_err());
    unknown(store.author_page(log, alice, 0, 9).await.unwrap_err());
    unknown(store.page_after(log, 0).await.unwrap_err());
    unknown(store.operation_id(log, alice, 0).await.unwrap_err());
    unknown(store.set_delivered(log, 0).await.unwrap_err());
    unknown(store.fork_proofs(log).await.unwrap_err());
    unknown(store.cursor(log, "editor").await.unwrap_err());
    unknown(store.set_cursor(log, "editor", 1).await.unwrap_err());
    unknown(store.remember_peer(log, address(2, 1), Heard::FromOthers).await.unwrap_err());
    unknown(store.peers(log, 9).await.unwrap_err());
    unknown(store.rumoured_peers(log, 9).await.unwrap_err());
}

#[tokio::test]
async fn a_page_ends_at_its_limit_of_operations_and_the_next_one_goes_on() {
    let (store, log) = in_memory().await;
    let operations = chain(&bob(), log, PAGE_MAX_OPERATIONS + 10, "edit ");
    store.ingest(log, operations.clone()).await.unwrap();
    let first = store.author_page(log, bob().peer_id(), 0, u32::MAX).await.unwrap();
    assert_eq!(first.len(), PAGE_MAX_OPERATIONS);
    let rest = store.author_page(log, bob().peer_id(), PAGE_MAX_OPERATIONS as u32, u32::MAX).await.unwrap();
    assert_eq!(rest.len(), 10);
    assert_eq!(store.page_after(log, 0).await.unwrap(), first);
    assert_eq!(store.page_after(log, first[PAGE_MAX_OPERATIONS - 1].position).await.unwrap(), rest);
    let middle = store.author_page(log, bob().peer_id(), 3, 5).await.unwrap();
    assert_eq!(middle.iter().map(|stored| stored.operation.clone()).collect::<Vec<_>>(), operations[3..=5]);
    assert_eq!(store.author_page(log, bob().peer_id(), 5, 3).await.unwrap(), []);
    assert_eq!(store.author_page(log, alice().peer_id(), 0, 9).await.unwrap(), []);
    assert_eq!(store.page_after(log, u64::MAX).await.unwrap(), []);
}

#[tokio::test]
async fn a_page_ends_before_the_operation_that_is_too_large_for_it_unless_it_is_the_first() {
    let (store, log) = in_memory().await;
    let large = "x".repeat(PAGE_MAX_BYTES);
    for payload in ["small", large.as_str(), "small again"] {
        publish(&store, log, payload).await.unwrap();
    }
    let mut seen = Vec::new();
    let mut after = 0;
    while let Some(last) = store.page_after(log, after).await.unwrap().last() {
        seen.push(last.operation.seq_num());
        after = last.position;
    }
    assert_eq!(seen, [0, 1, 2], "each in a page of its own");
}

#[tokio::test]
async fn the_largest_payload_is_kept_and_a_larger_one_is_refused() {
    let (_directory, store, log) = on_disk().await;
    let largest = Bytes::from(vec![7; OPERATION_PAYLOAD_MAX_BYTES]);
    store.publish(log, largest.clone()).await.unwrap();
    assert_eq!(everything(&store, log).await[0].operation.payload(), &largest[..]);
    let larger = Bytes::from(vec![7; OPERATION_PAYLOAD_MAX_BYTES + 1]);
    assert!(matches!(store.publish(log, larger).await, Err(StoreError::Operation(_))));
    assert_eq!(publish(&store, log, "next").await.unwrap().operation.seq_num(), 1);
}

#[tokio::test]
async fn the_id_of_an_operation_tells_whether_it_is_here() {
    let (_directory, store, log) = on_disk().await;
    let stored = publish(&store, log, "edit").await.unwrap();
    assert_eq!(store.operation_id(log, alice().peer_id(), 0).await.unwrap(), Some(stored.operation.id()));
    assert_eq!(store.operation_id(log, alice().peer_id(), 1).await.unwrap(), None);
    assert_eq!(store.operation_id(log, bob().peer_id(), 0).await.unwrap(), None);
}

#[tokio::test]
async fn a_cursor_starts_at_zero_and_never_goes_back() {
    let (_directory, store, log) = on_disk().await;
    assert_eq!(store.cursor(log, "editor").await.unwrap(), 0);
    for position in [3, 7, 5] {
        store.set_cursor(log, "editor", position).await.unwrap();
    }
    assert_eq!(store.cursor(log, "editor").await.unwrap(), 7);
    assert_eq!(store.cursor(log, "another").await.unwrap(), 0);
}

#[tokio::test]
async fn acknowledged_operations_leave_the_outbox_and_an_older_acknowledgement_changes_nothing() {
    let (store, log) = in_memory().await;
    store.set_delivered(log, 5).await.unwrap();
    assert_eq!(state(&store, 1).await.delivered, None, "nothing to deliver yet");
    let mut sizes = Vec::new();
    for number in 0..4 {
        sizes.push(publish(&store, log, &"x".repeat(number * 100)).await.unwrap().operation.size() as u64);
    }
    for (acknowledged, delivered) in [(1, 1), (0, 1), (2, 2), (99, 3)] {
        store.set_delivered(log, acknowledged).await.unwrap();
        let state = state(&store, 1).await;
        assert_eq!(state.delivered, Some(delivered));
        assert_eq!(state.outbox_operations, 3 - delivered as usize);
        assert_eq!(state.outbox_bytes, sizes[delivered as usize + 1..].iter().sum::<u64>());
    }
}

#[tokio::test]
async fn a_full_outbox_refuses_to_publish_until_a_peer_acknowledges() {
    for (operations, bytes) in [(3, u64::MAX), (usize::MAX, 600)] {
        let options = StorageOptions::in_memory().with_outbox_limits(operations, bytes);
        let store = SqliteStore::open(options, alice()).unwrap();
        let log = document(1).log();
        state(&store, 1).await;
        let mut published = 0;
        let full = loop {
            match publish(&store, log, "edit").await {
                Ok(_) => published += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(published, 3);
        assert!(matches!(full, StoreError::QueueFull { operations: 3, .. }), "{full}");
        store.set_delivered(log, 0).await.unwrap();
        assert_eq!(publish(&store, log, "edit").await.unwrap().operation.seq_num(), 3, "no number was used up");
    }
}

#[tokio::test]
async fn one_operation_that_is_larger_than_the_outbox_can_be_published_when_it_is_empty() {
    let options = StorageOptions::in_memory().with_outbox_limits(10, 100);
    let store = SqliteStore::open(options, alice()).unwrap();
    state(&store, 1).await;
    publish(&store, document(1).log(), &"x".repeat(1_000)).await.unwrap();
    assert!(matches!(publish(&store, document(1).log(), "x").await, Err(StoreError::QueueFull { operations: 1, .. })));
}

#[tokio::test]
async fn the_newest_address_of_a_peer_is_kept_for_all_its_documents() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    state(&store, 1).await;
    state(&store, 2).await;
    let log = document(1).log();
    for address in [address(2, 10), address(3, 10), address(2, 20), address(2, 15)] {
        store.remember_peer(log, address, Heard::FromTicket).await.unwrap();
    }
    assert_eq!(store.peers(log, 9).await.unwrap(), [address(2, 20), address(3, 10)]);
    assert_eq!(store.peers(document(2).log(), 9).await.unwrap(), []);
    store.remember_peer(document(2).log(), address(3, 30), Heard::FromTicket).await.unwrap();
    assert_eq!(store.peers(log, 9).await.unwrap(), [address(2, 20), address(3, 30)]);
}

#[tokio::test]
async fn many_publishers_at_once_share_transactions_and_leave_a_log_without_gaps() {
    let (_directory, store, _) = on_disk().await;
    state(&store, 2).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..200_u8 {
        let store = store.clone();
        let log = document(1 + number % 2).log();
        tasks.spawn(async move {
            for _ in 0..3 {
                let stored = publish(&store, log, "edit").await.unwrap();
                let page = store.author_page(log, alice().peer_id(), stored.operation.seq_num(), u32::MAX).await;
                assert_eq!(page.unwrap()[0], stored, "a write that returned is seen");
            }
        });
    }
    tasks.join_all().await;
    for number in [1, 2] {
        assert_eq!(assert_gapless(&store, document(number).log(), alice().peer_id()).await, 300);
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_dropped_happens_as_a_whole_or_not_at_all() {
    let (_directory, store, log) = on_disk().await;
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..100 {
        let mut dropped = store.publish(log, Bytes::from_static(b"dropped"));
        // Either way is fine: it is under way, or already through.
        let _: Poll<_> = dropped.as_mut().poll(&mut context);
        drop(dropped);
        publish(&store, log, "kept").await.unwrap();
    }
    let stored = everything(&store, log).await;
    assert_eq!(stored.iter().filter(|stored| stored.operation.payload() == b"kept").count(), 100);
    assert_eq!(assert_gapless(&store, log, alice().peer_id()).await, stored.len());
}

#[tokio::test]
async fn after_close_every_call_says_so() {
    let (_directory, store, log) = on_disk().await;
    for store in [store, in_memory().await.0] {
        store.close().await.unwrap();
        assert!(matches!(publish(&store, log, "edit").await, Err(StoreError::Closed)));
        assert!(matches!(store.page_after(log, 0).await, Err(StoreError::Closed)));
        assert!(matches!(store.close().await, Err(StoreError::Closed)));
    }
}

#[test]
fn inline_every_call_is_done_in_the_first_poll_without_a_runtime() {
    let directory = tempfile::tempdir().unwrap();
    let mut context = Context::from_waker(Waker::noop());
    let log = document(1).log();
    for expected in 0..3 {
        let store = SqliteStore::open(options(directory.path()).with_inline(true), alice()).unwrap();
        assert!(store.open_document(document(1), ignore()).as_mut().poll(&mut context).is_ready());
        let Poll::Ready(stored) = store.publish(log, Bytes::from_static(b"edit")).as_mut().poll(&mut context) else {
            panic!("the call waited for something");
        };
        assert_eq!(stored.unwrap().operation.seq_num(), expected, "it restarts from its directory");
        let Poll::Ready(page) = store.page_after(log, 0).as_mut().poll(&mut context) else {
            panic!("the call waited for something");
        };
        assert_eq!(page.unwrap().len(), expected as usize + 1);
    }
}

#[tokio::test]
async fn inline_the_same_calls_give_the_same_bytes() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(options(directory.path()).with_inline(true), alice()).unwrap();
        state(&store, 1).await;
        for _ in 0..3 {
            publish(&store, document(1).log(), "edit").await.unwrap();
        }
        runs.push(everything(&store, document(1).log()).await);
    }
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0].iter().map(|stored| stored.operation.timestamp_us()).collect::<Vec<_>>(), [1000, 1001, 1002]);
}

#[tokio::test]
async fn an_observer_hears_of_everything_in_order_and_before_the_caller_does() {
    struct Record(Mutex<Vec<Position>>);
    impl CommitObserver for Record {
        fn on_commit(&self, operations: &[StoredOperation]) {
            self.0.lock().unwrap().extend(operations.iter().map(|stored| stored.position));
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let heard = Arc::new(Record(Mutex::default()));
    store.open_document(document(1), heard.clone()).await.unwrap();
    let publishes = (0..100u32).map(|number| {
        let (store, heard) = (store.clone(), heard.clone());
        tokio::spawn(async move {
            let stored = store.publish(document(1).log(), number.to_string().into()).await.unwrap();
            assert!(heard.0.lock().unwrap().contains(&stored.position));
        })
    });
    for publish in publishes.collect::<Vec<_>>() {
        publish.await.unwrap();
    }
    let heard = heard.0.lock().unwrap();
    assert_eq!(heard.len(), 100);
    assert!(heard.is_sorted());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_under_way_at_once_keep_the_order_in_which_they_were_first_polled() {
    let (_directory, store, log) = on_disk().await;
    let mut under_way = tokio::task::JoinSet::new();
    let (mut stored, mut expected) = (Vec::new(), Vec::new());
    // More than the queue holds, and more than one task may do in one go.
    for number in 0..3 * STORE_QUEUE {
        let (store, payload) = (store.clone(), Bytes::from(number.to_string()));
        expected.push(payload.clone());
        let mut publish = Box::pin(async move { store.publish(log, payload).await.unwrap() });
        match std::future::poll_fn(|context| Poll::Ready(publish.as_mut().poll(context))).await {
            Poll::Ready(at_once) => stored.push(at_once),
            Poll::Pending => drop(under_way.spawn(publish)),
        }
    }
    stored.extend(under_way.join_all().await);
    stored.sort_by_key(|stored| stored.position);
    let payloads: Vec<_> = stored.iter().map(|stored| stored.operation.payload_bytes()).collect();
    assert!(payloads == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_observer_may_drop_the_last_handle_on_the_store() {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    struct Last {
        store: Mutex<Option<SqliteStore>>,
        entered: SyncSender<()>,
        go: Mutex<Receiver<()>>,
        done: SyncSender<()>,
    }
    impl CommitObserver for Last {
        fn on_commit(&self, _: &[StoredOperation]) {
            self.entered.send(()).unwrap();
            self.go.lock().unwrap().recv().unwrap();
            drop(self.store.lock().unwrap().take());
            self.done.send(()).unwrap();
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let ((entered, was_entered), (let_go, go), (done, was_done)) = (sync_channel(1), sync_channel(1), sync_channel(1));
    let last = Arc::new(Last { store: Mutex::default(), entered, go: Mutex::new(go), done });
    store.open_document(document(1), last.clone()).await.unwrap();
    let publisher = store.clone();
    let publish = tokio::spawn(async move { publisher.publish(document(1).log(), "the last".into()).await });
    was_entered.recv().unwrap();
    *last.store.lock().unwrap() = Some(store);
    publish.abort();
    assert!(publish.await.is_err(), "it waits for an answer that comes after the observer");
    drop(last);
    let_go.send(()).unwrap();
    was_done.recv().expect("the thread does not wait for itself");
}
