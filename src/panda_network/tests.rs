//! Whole nodes: what opening a document refuses, and what waiting for a first peer waits for.

use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::*;
use crate::documents::{DocumentEvent, StartFrom};
use crate::limits::MAX_OPEN_DOCUMENTS;
use crate::sim::{self, LinkOptions, Sim, SimNetwork};
use crate::store::Durability;

const ALICE: [u8; 4] = [10, 0, 0, 1];
const BOB: [u8; 4] = [10, 0, 0, 2];

struct Nodes {
    network: SimNetwork,
    alice: PandaNetwork,
    bob: PandaNetwork,
    _directories: [TempDir; 2],
}

/// Two nodes on a line of 2 Mbit/s.
async fn nodes(sim: &Sim) -> Nodes {
    let line = LinkOptions::new().with_latency(Duration::from_millis(20)).with_bandwidth(2_000_000);
    let network = SimNetwork::new(sim.options().with_default_link(line));
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let node =
        async |directory: &TempDir, ip: [u8; 4]| {
            let options = PandaNetworkOptions::new(directory.path())
                .with_durability(Durability::Process)
                .with_simulation(&network.host(ip.into()), 4000, [ip[3]; 32]);
            PandaNetwork::start(options).await.unwrap()
        };
    let (alice, bob) = (node(&directories[0], ALICE).await, node(&directories[1], BOB).await);
    Nodes { network, alice, bob, _directories: directories }
}

/// A node on this machine, with threads.
async fn real_node(directory: &TempDir) -> PandaNetwork {
    let options = PandaNetworkOptions::new(directory.path())
        .with_listen_address("127.0.0.1:0".parse().unwrap())
        .with_durability(Durability::Process);
    PandaNetwork::start(options).await.unwrap()
}

fn other_key(result: Result<Document, PandaError>, document: DocumentId) {
    let error = result.map(|opened| opened.id()).unwrap_err();
    assert!(matches!(error, PandaError::Store(StoreError::OtherKey(id)) if id == document), "{error}");
}

#[test]
fn a_ticket_for_a_document_that_is_here_with_another_key_is_refused_whether_it_is_open_or_not() {
    sim::run(1, |sim| async move {
        let Nodes { alice, bob, _directories, .. } = nodes(&sim).await;
        let document = alice.create().await.unwrap();
        let forged =
            DocumentTicket::new(document.id(), DocumentKey::from_bytes([9; 32])).with_peers([bob.address().unwrap()]);
        other_key(alice.open(forged.clone()).await, document.id());
        alice.close(document.id()).await.unwrap();
        other_key(alice.open(forged).await, document.id());
        assert_eq!(alice.documents().await.unwrap(), [document.id()]);
        let again = alice.reopen(document.id()).await.unwrap();
        assert_eq!(again.ticket().await.unwrap().key(), document.ticket().await.unwrap().key());
        sleep(Duration::from_secs(30)).await;
        assert!(again.open.met_peers(8).await.unwrap().is_empty(), "nobody of the ticket is kept");
        assert!(alice.connections().is_empty(), "nobody of the ticket is dialled");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_many_open_at_once_is_one_document_and_all_hear_of_it() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (alice, bob) = (real_node(&directories[0]).await, real_node(&directories[1]).await);
    let ticket = alice.create().await.unwrap().ticket().await.unwrap();
    let mut opening = JoinSet::new();
    for _ in 0..32 {
        let (bob, ticket) = (bob.clone(), ticket.clone());
        opening.spawn(async move { bob.open(ticket).await.unwrap() });
    }
    let opened = opening.join_all().await;
    opened[0].publish("edit").await.unwrap();
    for document in opened {
        assert!(Arc::ptr_eq(&document.open, &bob.node.documents.get(&document.id()).unwrap()));
        let mut events = document.subscribe_as("reader", StartFrom::Start).await.unwrap();
        while !matches!(events.next().await.unwrap().unwrap(), DocumentEvent::Operation(_)) {}
    }
    alice.shutdown(Duration::from_secs(5)).await.unwrap();
    bob.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_documents_are_open_as_may_be_and_no_more_however_many_are_opened_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let alice = real_node(&directory).await;
    let mut creating = JoinSet::new();
    for _ in 0..MAX_OPEN_DOCUMENTS + 16 {
        let alice = alice.clone();
        creating.spawn(async move { alice.create().await });
    }
    let (created, refused): (Vec<_>, Vec<_>) = creating.join_all().await.into_iter().partition(Result::is_ok);
    assert_eq!((created.len(), refused.len()), (MAX_OPEN_DOCUMENTS, 16));
    let too_many = |error| matches!(error, PandaError::Store(StoreError::TooManyDocuments { .. }));
    assert!(refused.into_iter().all(|refused| too_many(refused.unwrap_err())));
    alice.shutdown(Duration::from_secs(5)).await.unwrap();
}

/// A document that both have, and what Alice queued in it while she was offline.
async fn queue(nodes: &Nodes, count: usize) -> Document {
    let document = nodes.alice.create().await.unwrap();
    nodes.bob.open(document.ticket().await.unwrap()).await.unwrap();
    document.publish("both are here").await.unwrap().delivered_to(1).await;
    nodes.alice.set_connected(false).await;
    for _ in 0..count {
        document.publish(vec![7; 150_000]).await.unwrap();
    }
    document
}

#[test]
fn a_queue_that_takes_longer_than_the_patience_is_waited_for_while_it_gets_shorter() {
    sim::run(1, |sim| async move {
        let nodes = nodes(&sim).await;
        let document = queue(&nodes, 60).await;
        nodes.alice.set_connected(true).await;
        let started = Instant::now();
        assert_eq!(nodes.alice.process_queued_operations().await.unwrap(), 60);
        assert!(started.elapsed() > 2 * CONNECT_DEADLINE, "the line is slow: {:?}", started.elapsed());
        assert_eq!(document.status().borrow().pending, 0);
        assert_eq!(nodes.alice.process_queued_operations().await.unwrap(), 0, "nothing is queued any more");
    });
}

#[test]
fn nobody_is_waited_for_when_offline_or_without_a_peer_and_a_silent_one_for_as_long_as_promised() {
    sim::run(1, |sim| async move {
        let nodes = nodes(&sim).await;
        let alone = nodes.alice.create().await.unwrap();
        alone.publish("nobody else is here").await.unwrap();
        let started = Instant::now();
        assert_eq!(nodes.alice.process_queued_operations().await.unwrap(), 0);
        assert_eq!(started.elapsed(), Duration::ZERO, "no peer is known");
        queue(&nodes, 3).await;
        let started = Instant::now();
        assert_eq!(nodes.alice.process_queued_operations().await.unwrap(), 0);
        assert_eq!(started.elapsed(), Duration::ZERO, "offline");
        nodes.network.isolate(BOB.into());
        nodes.alice.set_connected(true).await;
        let started = Instant::now();
        assert_eq!(nodes.alice.process_queued_operations().await.unwrap(), 0);
        assert_eq!(started.elapsed(), CONNECT_DEADLINE, "Bob is silent");
        let waiting = nodes.alice.clone();
        let waiting = tokio::spawn(async move { waiting.process_queued_operations().await.unwrap() });
        sleep(Duration::from_secs(1)).await;
        nodes.alice.set_connected(false).await;
        let started = Instant::now();
        assert_eq!(waiting.await.unwrap(), 0);
        assert_eq!(started.elapsed(), Duration::ZERO, "offline meanwhile");
    });
}
