//! Nodes among themselves: that the oracle works before anything is compared with it.

mod support;

use support::{PATIENCE, World, same};

const TOPIC: &str = "0707070707070707070707070707070707070707070707070707070707070707";

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_catch_up_and_stay_live() {
    let world = World::new("two_nodes_catch_up_and_stay_live").await;
    let mut alice = world.node("alice", &[]).await;
    alice.open(TOPIC).await;
    alice.publish(TOPIC, 100, "before", 0).await;
    alice.published("before", 100).await;

    // One that is known, in its address book: Nodes find each other in no other way without relays and mDNS.
    let mut bob = world.node("bob", &[&alice]).await;
    bob.open(TOPIC).await;
    bob.wait("it has caught up", PATIENCE, |seen| seen.received("before").count() >= 100).await;
    bob.publish(TOPIC, 100, "live", 200).await;
    alice.wait("all is live", PATIENCE, |seen| seen.received("live").count() >= 100).await;
    bob.published("live", 100).await;
    assert_eq!(bob.seen().numbers("before"), Vec::from_iter(0..100));
    assert_eq!(alice.seen().numbers("live"), Vec::from_iter(0..100));
    same(alice.seen().published("before"), bob.seen().received("before"));
    same(bob.seen().published("live"), alice.seen().received("live"));

    let heads = alice.heads(TOPIC).await;
    assert_eq!(heads, alice.seen().newest(), "what it holds is what it told");
    bob.holds(TOPIC, &heads, PATIENCE).await;
    alice.stop().await;
    bob.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_killed_has_its_operations_and_its_address_again() {
    let world = World::new("a_node_that_was_killed").await;
    let mut node = world.node("node", &[]).await;
    node.open(TOPIC).await;
    node.publish(TOPIC, 1000, "first", 0).await;
    node.published("first", 50).await;
    node.kill().await;
    let (told, address) = (node.seen().newest(), node.address.clone());

    let mut node = node.restart(&[]).await;
    assert_eq!(node.address, address);
    node.open(TOPIC).await;
    let held = node.heads(TOPIC).await;
    assert!(held[0].seq >= told[0].seq, "{held:?} is older than {told:?}, which was told");
    node.publish(TOPIC, 1, "second", 0).await;
    node.published("second", 1).await;
    assert_eq!(node.seen().published("second").next().map(|operation| operation.seq), Some(held[0].seq + 1));
    node.stop().await;
}
