//! The end of a node and of a document: calls that come too late get errors that say so, subscriptions end and stay ended,
//! and whoever ends it twice is right twice.
//!
//! Real nodes on loopback. Deadlines only end a test that hangs.

use std::time::Duration;

use panda_network::store::StoreError;
use panda_network::{
    ConnectionState, Document, DocumentEvent, Durability, NetworkError, NetworkInterface, PandaError, PandaNetwork,
    PandaNetworkOptions, StartFrom, Subscription,
};

/// A test that waits for longer hangs.
const HANGS_AFTER: Duration = Duration::from_secs(30);
/// More operations than a document keeps in memory, so that a reader of the first needs the store.
const MANY: usize = panda_network::limits::RECENT_MAX_OPERATIONS + 300;

async fn node(directory: &tempfile::TempDir) -> PandaNetwork {
    let options = PandaNetworkOptions::new(directory.path())
        .with_listen_address("127.0.0.1:0".parse().unwrap())
        .with_durability(Durability::Process);
    PandaNetwork::start(options).await.unwrap()
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

async fn shut_down(node: &PandaNetwork) {
    node.shutdown(Duration::from_secs(5)).await.unwrap();
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS_AFTER, future).await.expect("it ends")
}

/// Reads a subscription to its end, twice, and returns how many operations came before.
async fn read_to_end(events: &mut Subscription) -> usize {
    let mut operations = 0;
    while let Some(event) = in_time(events.next()).await {
        operations += usize::from(matches!(event.unwrap(), DocumentEvent::Operation(_)));
    }
    assert!(in_time(events.next()).await.is_none(), "it stays ended");
    operations
}

fn is_closed<T: std::fmt::Debug>(result: Result<T, PandaError>) {
    assert!(matches!(result, Err(PandaError::Store(StoreError::Closed))), "{result:?}");
}

async fn publish_many(document: &Document) {
    let mut publishing = tokio::task::JoinSet::new();
    for number in 0..MANY {
        let document = document.clone();
        publishing.spawn(async move { document.publish(format!("edit {number}")).await.unwrap() });
    }
    publishing.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_shutdown_does_nothing_whether_it_comes_later_or_at_once() {
    let at_alice = directory();
    let alice = node(&at_alice).await;
    alice.create().await.unwrap().publish("kept").await.unwrap();
    let other = alice.clone();
    tokio::join!(shut_down(&alice), shut_down(&other));
    shut_down(&alice).await;
    let again = node(&at_alice).await;
    assert_eq!(again.documents().await.unwrap().len(), 1);
    shut_down(&again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_after_a_shutdown_say_that_the_node_is_closed() {
    let (at_alice, at_bob) = (directory(), directory());
    let (alice, bob) = (node(&at_alice).await, node(&at_bob).await);
    let document = alice.create().await.unwrap();
    let ticket = document.ticket().await.unwrap();
    bob.open(ticket.clone()).await.unwrap();
    document.publish("before").await.unwrap().delivered_to(1).await;
    shut_down(&alice).await;
    is_closed(document.publish("late").await);
    is_closed(document.ticket().await);
    is_closed(document.subscribe(StartFrom::Cursor).await);
    is_closed(alice.create().await);
    is_closed(alice.open(ticket).await);
    is_closed(alice.reopen(document.id()).await);
    is_closed(alice.documents().await);
    assert_eq!(in_time(alice.process_queued_operations()).await.unwrap(), 0);
    in_time(alice.set_connected(true)).await;
    assert_eq!(*alice.connection_state().borrow(), ConnectionState::Offline, "a node that ended does not come back");
    assert!(alice.connections().is_empty());
    alice.close(document.id()).await.unwrap();
    if let Ok(mut late) = document.subscribe(StartFrom::Start).await {
        read_to_end(&mut late).await;
    }
    shut_down(&bob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn through_the_port_calls_after_a_shutdown_say_that_the_node_was_shut_down() {
    let at_alice = directory();
    let alice = node(&at_alice).await;
    let document = alice.create().await.unwrap().id();
    let port: &dyn NetworkInterface = &alice;
    port.broadcast_operation(document, "before".into()).await.unwrap();
    let mut stream = port.subscribe_to_operations(document).await.unwrap();
    let mut state = port.connection_state();
    shut_down(&alice).await;
    assert!(in_time(stream.next()).await.is_none());
    assert!(in_time(stream.next()).await.is_none(), "it stays ended");
    while in_time(state.changed()).await.is_some() {}
    assert_eq!(state.current(), ConnectionState::Offline);
    let late = port.broadcast_operation(document, "late".into()).await;
    assert!(matches!(late, Err(NetworkError::ShutDown)), "{late:?}");
    let late = port.subscribe_to_operations(document).await;
    assert!(matches!(late, Err(NetworkError::ShutDown)), "{:?}", late.err());
    assert_eq!(port.process_queued_operations().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_end_with_the_node_whether_they_wait_or_lag() {
    let at_alice = directory();
    let alice = node(&at_alice).await;
    let document = alice.create().await.unwrap();
    let mut lags = document.subscribe(StartFrom::Start).await.unwrap();
    publish_many(&document).await;
    let mut waits = document.subscribe_as("another", StartFrom::Now).await.unwrap();
    let waiting = tokio::spawn(async move { read_to_end(&mut waits).await });
    shut_down(&alice).await;
    assert_eq!(in_time(waiting).await.unwrap(), 0);
    read_to_end(&mut lags).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_of_a_closed_document_end_with_all_that_was_there_and_those_of_others_go_on() {
    let at_alice = directory();
    let alice = node(&at_alice).await;
    let (closed, other) = (alice.create().await.unwrap(), alice.create().await.unwrap());
    let mut lags = closed.subscribe(StartFrom::Start).await.unwrap();
    publish_many(&closed).await;
    let mut waits = closed.subscribe(StartFrom::Now).await.unwrap();
    let mut goes_on = other.subscribe(StartFrom::Start).await.unwrap();
    let waiting = tokio::spawn(async move { read_to_end(&mut waits).await });
    alice.close(closed.id()).await.unwrap();
    alice.close(closed.id()).await.unwrap();
    assert_eq!(in_time(waiting).await.unwrap(), 0);
    assert_eq!(read_to_end(&mut lags).await, MANY);
    other.publish("goes on").await.unwrap();
    while !matches!(in_time(goes_on.next()).await.unwrap().unwrap(), DocumentEvent::Operation(_)) {}
    let again = alice.reopen(closed.id()).await.unwrap();
    assert_eq!(again.publish("again").await.unwrap().seq_num() as usize, MANY);
    shut_down(&alice).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_ends_with_its_last_handle_even_when_readers_and_receipts_are_kept() {
    let at_alice = directory();
    let alice = node(&at_alice).await;
    let document = alice.create().await.unwrap();
    let receipt = document.publish("kept").await.unwrap();
    let mut events = document.subscribe(StartFrom::Start).await.unwrap();
    drop((alice, document));
    let again = node(&at_alice).await;
    assert_eq!(read_to_end(&mut events).await, 1);
    assert_eq!(receipt.seq_num(), 0);
    shut_down(&again).await;
}
