//! How fast an operation gets from one node to the other: Node→Node, Node→ours and ours→Node, in one run.
//! `cargo test --release --test latency -- --nocapture` shows the table. Nothing is asserted on times.

mod support;

use support::{LONG_PATIENCE, PATIENCE, Process, World};

const OPERATIONS: u32 = 1000;
const PER_SECOND: u32 = 100;
const TOPIC: &str = "0808080808080808080808080808080808080808080808080808080808080808";

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_crosses_between_nodes_and_ours() {
    let world = World::new("latency").await;
    let mut rows = Vec::new();

    let mut alice = world.node("alice", &[]).await;
    let mut bob = world.node("bob", &[&alice]).await;
    alice.open(TOPIC).await;
    bob.open(TOPIC).await;
    meet(TOPIC, &mut alice, &mut bob).await;
    rows.push(("Node to Node", measure(TOPIC, &mut alice, &mut bob).await));
    alice.stop().await;
    bob.stop().await;

    let mut node = world.node("node", &[]).await;
    let mut editor = world.editor("editor", &[&node]).await;
    let topic = editor.create().await.topic;
    node.open(&topic).await;
    meet(&topic, &mut node, &mut editor).await;
    rows.push(("Node to ours", measure(&topic, &mut node, &mut editor).await));
    rows.push(("ours to Node", measure(&topic, &mut editor, &mut node).await));
    editor.stop().await;
    node.stop().await;

    println!("live latency, {OPERATIONS} operations, {PER_SECOND} a second, both on disk");
    println!("| | p50 ms | p99 ms | max ms |\n|---|---|---|---|");
    for (name, latencies) in rows {
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100] as f64 / 1000.0;
        println!("| {name} | {:.2} | {:.2} | {:.2} |", at(50), at(99), at(100));
    }
}

/// Waits until the two are live.
async fn meet(topic: &str, left: &mut Process, right: &mut Process) {
    left.publish(topic, 1, "hello from the left", 0).await;
    right.wait("a greeting", PATIENCE, |seen| seen.received("hello from the left").count() > 0).await;
    right.publish(topic, 1, "hello from the right", 0).await;
    left.wait("a greeting", PATIENCE, |seen| seen.received("hello from the right").count() > 0).await;
}

async fn measure(topic: &str, from: &mut Process, to: &mut Process) -> Vec<u64> {
    let prefix = format!("from {}", from.name);
    from.publish(topic, OPERATIONS, &prefix, PER_SECOND).await;
    to.wait("all", LONG_PATIENCE, |seen| seen.received(&prefix).count() >= OPERATIONS as usize).await;
    assert_eq!(to.seen().numbers(&prefix), Vec::from_iter(0..OPERATIONS), "in order, each once");
    to.seen().latencies_us(&prefix)
}
