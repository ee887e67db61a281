//! Real nodes on loopback: what an editor sees, with real sockets, threads and disks.

use std::time::Duration;

use bytes::Bytes;
use panda_network::{
    ConnectionState, Document, DocumentEvent, Durability, PandaNetwork, PandaNetworkOptions, PresenceChange, StartFrom,
    Subscription,
};

async fn node(directory: &tempfile::TempDir) -> PandaNetwork {
    let options = PandaNetworkOptions::new(directory.path())
        .with_listen_address("127.0.0.1:0".parse().unwrap())
        .with_durability(Durability::Process);
    PandaNetwork::start(options).await.unwrap()
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

async fn next_operation(events: &mut Subscription) -> Bytes {
    loop {
        if let DocumentEvent::Operation(stored) = events.next().await.unwrap().unwrap() {
            return stored.operation.payload_bytes();
        }
    }
}

async fn operations(document: &Document, count: usize) -> Vec<Bytes> {
    let mut events = document.subscribe(StartFrom::Start).await.unwrap();
    let mut payloads = Vec::new();
    while payloads.len() < count {
        payloads.push(next_operation(&mut events).await);
    }
    payloads
}

async fn shut_down(node: PandaNetwork) {
    node.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_arrives_at_the_other_editor_and_its_receipt_says_so() {
    let (at_alice, at_bob) = (directory(), directory());
    let (alice, bob) = (node(&at_alice).await, node(&at_bob).await);
    let here = alice.create().await.unwrap();
    let there = bob.open(here.ticket().await.unwrap()).await.unwrap();
    let mut events = there.subscribe(StartFrom::Cursor).await.unwrap();
    let receipt = here.publish("hello").await.unwrap();
    assert_eq!(&next_operation(&mut events).await[..], b"hello");
    receipt.delivered_to(1).await;
    assert_eq!(here.status().borrow().pending, 0);
    assert_eq!(there.status().borrow().missing, 0, "nothing is to come once it is here");
    there.publish("and back").await.unwrap();
    assert_eq!(operations(&here, 2).await, ["hello", "and back"]);
    assert!(matches!(*alice.connection_state().borrow(), ConnectionState::Connected { peers: 1 }));
    shut_down(alice).await;
    shut_down(bob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_published_offline_arrives_after_coming_back() {
    let (at_alice, at_bob) = (directory(), directory());
    let (alice, bob) = (node(&at_alice).await, node(&at_bob).await);
    let here = alice.create().await.unwrap();
    let there = bob.open(here.ticket().await.unwrap()).await.unwrap();
    here.publish("before").await.unwrap().delivered_to(1).await;
    bob.set_connected(false).await;
    assert_eq!(*bob.connection_state().borrow(), ConnectionState::Offline);
    for number in 0..1000 {
        here.publish(format!("alice {number}")).await.unwrap();
        there.publish(format!("bob {number}")).await.unwrap();
    }
    assert_eq!(there.status().borrow().pending, 1000);
    bob.set_connected(true).await;
    let (mut at_here, mut at_there) = (operations(&here, 2001).await, operations(&there, 2001).await);
    let of = |who: &str, all: &[Bytes]| -> Vec<Bytes> {
        all.iter().filter(|payload| payload.starts_with(who.as_bytes())).cloned().collect()
    };
    let expected: Vec<Bytes> = (0..1000).map(|number| format!("bob {number}").into()).collect();
    assert_eq!(of("bob", &at_here), expected, "in the author's order");
    at_here.sort();
    at_there.sort();
    assert_eq!(at_here, at_there);
    shut_down(alice).await;
    shut_down(bob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_goes_on_where_it_was_without_a_ticket() {
    let (at_alice, at_bob) = (directory(), directory());
    let (alice, bob) = (node(&at_alice).await, node(&at_bob).await);
    let here = alice.create().await.unwrap();
    let there = bob.open(here.ticket().await.unwrap()).await.unwrap();
    here.publish("one").await.unwrap().delivered_to(1).await;
    let mut events = there.subscribe(StartFrom::Cursor).await.unwrap();
    loop {
        if let DocumentEvent::Operation(stored) = events.next().await.unwrap().unwrap() {
            events.commit(&stored).await.unwrap();
            break;
        }
    }
    drop((events, there));
    shut_down(bob).await;
    here.publish("two").await.unwrap();
    let bob = node(&at_bob).await;
    let [document] = bob.documents().await.unwrap()[..] else { panic!("one document") };
    let there = bob.reopen(document).await.unwrap();
    let mut events = there.subscribe(StartFrom::Cursor).await.unwrap();
    assert_eq!(&next_operation(&mut events).await[..], b"two", "the first was committed before");
    shut_down(alice).await;
    shut_down(bob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_operation_arrives_whole() {
    let (at_alice, at_bob) = (directory(), directory());
    let (alice, bob) = (node(&at_alice).await, node(&at_bob).await);
    let here = alice.create().await.unwrap();
    let there = bob.open(here.ticket().await.unwrap()).await.unwrap();
    let large = Bytes::from((0..16 * 1024 * 1024u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    here.publish("small").await.unwrap();
    here.publish(large.clone()).await.unwrap();
    here.publish("small again").await.unwrap();
    let got = operations(&there, 3).await;
    assert!(got[1] == large);
    assert_eq!(&got[2][..], b"small again");
    assert!(here.publish(vec![0; 16 * 1024 * 1024 + 1]).await.is_err());
    shut_down(alice).await;
    shut_down(bob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_is_seen_and_gone_with_its_peer() {
    let (at_alice, at_bob) = (directory(), directory());
    let (alice, bob) = (node(&at_alice).await, node(&at_bob).await);
    let here = alice.create().await.unwrap();
    let there = bob.open(here.ticket().await.unwrap()).await.unwrap();
    here.publish("meet").await.unwrap().delivered_to(1).await;
    let mut events = here.subscribe(StartFrom::Now).await.unwrap();
    there.presence().set("cursor 7").unwrap();
    let mut changes = Vec::new();
    while changes.is_empty() {
        if let DocumentEvent::Presence(change) = events.next().await.unwrap().unwrap() {
            changes.push(change);
        }
    }
    assert_eq!(changes, [PresenceChange::Updated { peer: bob.node_id(), state: "cursor 7".into() }]);
    shut_down(bob).await;
    loop {
        if let DocumentEvent::Presence(PresenceChange::Gone { .. }) = events.next().await.unwrap().unwrap() {
            break;
        }
    }
    assert!(here.presence().peers().is_empty());
    shut_down(alice).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_document_ends_its_subscriptions_and_its_peers_are_not_dialled_any_more() {
    let (at_alice, at_bob) = (directory(), directory());
    let (alice, bob) = (node(&at_alice).await, node(&at_bob).await);
    let here = alice.create().await.unwrap();
    let there = bob.open(here.ticket().await.unwrap()).await.unwrap();
    here.publish("one").await.unwrap().delivered_to(1).await;
    let mut events = there.subscribe(StartFrom::Now).await.unwrap();
    bob.close(there.id()).await.unwrap();
    while let Some(event) = events.next().await {
        event.unwrap();
    }
    here.status().wait_for(|status| status.peers == 0).await.unwrap();
    shut_down(alice).await;
    bob.connection_state().wait_for(|state| *state == ConnectionState::Idle).await.unwrap();
    shut_down(bob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_ends_when_the_last_handle_of_the_node_is_dropped() {
    let directory = directory();
    let alice = node(&directory).await;
    let document = alice.create().await.unwrap();
    let mut events = document.subscribe(StartFrom::Now).await.unwrap();
    drop((alice, document));
    while let Some(event) = events.next().await {
        event.unwrap();
    }
}
