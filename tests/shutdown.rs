//! The end of a node and of a document: calls that come too late get errors that say so, subscriptions end and stay ended,
//! and whoever ends it twice is right twice.
//!
//! Real nodes on loopback. Deadlines only end a test that hangs.

use std::time::Duration;

use panda_network::{Document, DocumentEvent, Durability, PandaNetwork, PandaNetworkOptions, StartFrom, Subscription};

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
    alice.close(closed.id());
    alice.close(closed.id());
    assert_eq!(in_time(waiting).await.unwrap(), 0);
    assert_eq!(read_to_end(&mut lags).await, MANY);
    other.publish("goes on").await.unwrap();
    while !matches!(in_time(goes_on.next()).await.unwrap().unwrap(), DocumentEvent::Operation(_)) {}
    let again = alice.reopen(closed.id()).await.unwrap();
    assert_eq!(again.publish("again").await.unwrap().seq_num() as usize, MANY);
    shut_down(&alice).await;
}
