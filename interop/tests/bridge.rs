//! A node of ours and real p2panda Nodes hold one document, over the bridge.

mod support;

use std::time::Instant;

use panda_network_interop::protocol::{Head, Operation};
use support::{LONG_PATIENCE, Opened, PATIENCE, Process, World, same};

const CATCH_UP_FROM_A_NODE: u32 = 1000;
const CATCH_UP_TO_A_NODE: u32 = 10_000;
const LIVE: u32 = 2000;
const LIVE_PER_SECOND: u32 = 200;

/// A document of ours, and a Node that takes part in it.
struct Pair {
    topic: String,
    ticket: String,
    editor: Process,
    node: Process,
}

impl Pair {
    /// Both are live.
    async fn connected(world: &World) -> Self {
        let node = world.node("node", &[]).await;
        let mut editor = world.editor("editor", &[&node]).await;
        let Opened { topic, ticket } = editor.create().await;
        let mut pair = Self { topic, ticket: ticket.expect("of ours"), editor, node };
        pair.node.open(&pair.topic).await;
        pair.ping("hello").await;
        pair
    }

    /// One operation each way has arrived.
    async fn ping(&mut self, name: &str) {
        let (from_editor, from_node) = (format!("{name} from the editor"), format!("{name} from the node"));
        self.editor.publish(&self.topic, 1, &from_editor, 0).await;
        self.node.publish(&self.topic, 1, &from_node, 0).await;
        self.node.wait("a greeting of ours", PATIENCE, |seen| seen.received(&from_editor).count() > 0).await;
        self.editor.wait("a greeting of the Node", PATIENCE, |seen| seen.received(&from_node).count() > 0).await;
    }

    /// Both hold the same, which is at least what either told.
    async fn agree(&mut self) -> Vec<Head> {
        let deadline = Instant::now() + LONG_PATIENCE;
        loop {
            let (editor, node) = (self.editor.heads(&self.topic).await, self.node.heads(&self.topic).await);
            if editor == node && !editor.is_empty() {
                return editor;
            }
            let summary = || format!("{}; {}", self.editor.seen().summary(), self.node.seen().summary());
            assert!(Instant::now() < deadline, "we hold {editor:?}, the Node {node:?}; {}", summary());
            tokio::time::sleep(support::POLL_INTERVAL).await;
        }
    }

    async fn stop(self) {
        self.editor.stop().await;
        self.node.stop().await;
    }
}

/// A document of ours that no Node knows yet, and its node stopped.
async fn document_of(world: &World, operations: u32) -> (Process, Opened, Vec<Operation>) {
    let mut editor = world.editor("editor", &[]).await;
    let opened = editor.create().await;
    editor.publish(&opened.topic, operations, "old", 0).await;
    editor.published("old", operations as usize).await;
    let published = editor.seen().published("old").cloned().collect();
    (editor, opened, published)
}

#[tokio::test(flavor = "multi_thread")]
async fn we_catch_up_with_1000_operations_of_a_node() {
    let world = World::new("we_catch_up").await;
    let (editor, Opened { topic, .. }, _) = document_of(&world, 1).await;
    let mut node = world.node("node", &[]).await;
    node.open(&topic).await;
    node.publish(&topic, CATCH_UP_FROM_A_NODE, "node", 0).await;
    node.published("node", CATCH_UP_FROM_A_NODE as usize).await;

    editor.stop().await;
    let mut editor = world.editor("editor", &[&node]).await;
    let start = Instant::now();
    editor.open(&topic).await;
    editor
        .wait("it has caught up", LONG_PATIENCE, |seen| seen.received("node").count() >= CATCH_UP_FROM_A_NODE as usize)
        .await;
    println!("caught up with {CATCH_UP_FROM_A_NODE} operations of a Node in {:?}", start.elapsed());
    assert_eq!(editor.seen().numbers("node"), Vec::from_iter(0..CATCH_UP_FROM_A_NODE), "in order, each once");
    same(node.seen().published("node"), editor.seen().received("node"));
    let mut pair = Pair { topic, ticket: String::new(), editor, node };
    pair.agree().await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_catches_up_with_10_000_operations_of_ours() {
    let world = World::new("a_node_catches_up").await;
    let (editor, Opened { topic, .. }, published) = document_of(&world, CATCH_UP_TO_A_NODE).await;
    editor.stop().await;
    let mut node = world.node("node", &[]).await;
    node.open(&topic).await;

    let editor = world.editor("editor", &[&node]).await;
    let start = Instant::now();
    let mut pair = Pair { topic, ticket: String::new(), editor, node };
    let topic = pair.topic.clone();
    pair.editor.open(&topic).await;
    let heads = pair.agree().await;
    let last = published.last().expect("10,000");
    assert_eq!((heads[0].seq, &heads[0].id), (last.seq, &last.id));
    println!("a Node caught up with {CATCH_UP_TO_A_NODE} operations in {:?}", start.elapsed());
    // A Node may break off its own catch-up (its events cross a channel of 1,024, and what does not fit is lost). Nothing is
    // lost here then, and it gets the rest; what it accepted has the ids that we computed.
    println!("on the way: {}", pair.node.seen().summary());
    let enough = CATCH_UP_TO_A_NODE as usize;
    pair.node.wait("its application has all", LONG_PATIENCE, |seen| seen.received("old").count() >= enough).await;
    same(&published, pair.node.seen().received("old"));
    pair.ping("afterwards").await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn live_operations_arrive_both_ways_in_order_and_once() {
    let world = World::new("live_operations").await;
    let mut pair = Pair::connected(&world).await;
    let Pair { topic, editor, node, .. } = &mut pair;
    editor.publish(topic, LIVE, "ours", LIVE_PER_SECOND).await;
    node.publish(topic, LIVE, "theirs", LIVE_PER_SECOND).await;
    node.wait("all of ours", LONG_PATIENCE, |seen| seen.received("ours").count() >= LIVE as usize).await;
    editor.wait("all of theirs", LONG_PATIENCE, |seen| seen.received("theirs").count() >= LIVE as usize).await;
    assert_eq!(node.seen().numbers("ours"), Vec::from_iter(0..LIVE), "in order, each once");
    assert_eq!(editor.seen().numbers("theirs"), Vec::from_iter(0..LIVE), "in order, each once");
    // A Node sends what it publishes before its own application sees it.
    node.published("theirs", LIVE as usize).await;
    same(editor.seen().published("ours"), node.seen().received("ours"));
    same(node.seen().published("theirs"), editor.seen().received("theirs"));
    pair.agree().await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_killed_gets_what_it_missed_and_loses_nothing() {
    let world = World::new("node_killed").await;
    let mut pair = Pair::connected(&world).await;
    pair.editor.publish(&pair.topic, 600, "ours", LIVE_PER_SECOND).await;
    pair.node.publish(&pair.topic, 600, "theirs", LIVE_PER_SECOND).await;
    pair.node.wait("some of ours", PATIENCE, |seen| seen.received("ours").count() >= 100).await;
    pair.node.kill().await;
    let told: Vec<Operation> = pair.node.seen().own.clone();
    pair.editor.published("ours", 600).await;

    let Pair { topic, ticket, editor, node } = pair;
    let node = node.restart(&[]).await;
    let mut pair = Pair { topic, ticket, editor, node };
    pair.node.open(&pair.topic).await;
    pair.ping("again").await;
    let heads = pair.agree().await;
    has_newest(&heads, &told);
    has_newest(&heads, &pair.editor.seen().own);
    // What the Node had told is here, byte for byte.
    let here: Vec<Operation> = pair.editor.seen().received.clone();
    same(&told, &here[..told.len()]);
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ours_that_was_killed_gets_what_it_missed_and_loses_nothing() {
    let world = World::new("ours_killed").await;
    let mut pair = Pair::connected(&world).await;
    pair.editor.publish(&pair.topic, 600, "ours", LIVE_PER_SECOND).await;
    pair.node.publish(&pair.topic, 600, "theirs", LIVE_PER_SECOND).await;
    pair.editor.wait("some of theirs", PATIENCE, |seen| seen.received("theirs").count() >= 100).await;
    pair.editor.kill().await;
    let told: Vec<Operation> = pair.editor.seen().own.clone();
    pair.node.published("theirs", 600).await;

    let Pair { topic, ticket, editor, node } = pair;
    let editor = editor.restart(&[&node]).await;
    let mut pair = Pair { topic, ticket, editor, node };
    pair.editor.open(&pair.topic).await;
    pair.ping("again").await;
    let heads = pair.agree().await;
    has_newest(&heads, &told);
    has_newest(&heads, &pair.node.seen().own);
    assert_eq!(pair.editor.seen().numbers("theirs"), Vec::from_iter(0..600), "in order, each once");
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_cross_a_line_of_a_node_two_of_ours_and_a_node() {
    const COUNT: u32 = 300;
    let world = World::new("line").await;
    let (left, right) = (world.node("left", &[]).await, world.node("right", &[]).await);
    let mut first = world.editor("first", &[&left]).await;
    let mut second = world.editor("second", &[&right]).await;
    let Opened { topic, ticket } = first.create().await;
    second.join(&ticket.expect("of ours")).await;
    let (mut left, mut right) = (left, right);
    left.open(&topic).await;
    right.open(&topic).await;
    left.publish(&topic, COUNT, "left", LIVE_PER_SECOND).await;
    right.publish(&topic, COUNT, "right", LIVE_PER_SECOND).await;
    right.wait("all of the left", LONG_PATIENCE, |seen| seen.received("left").count() >= COUNT as usize).await;
    left.wait("all of the right", LONG_PATIENCE, |seen| seen.received("right").count() >= COUNT as usize).await;
    left.published("left", COUNT as usize).await;
    right.published("right", COUNT as usize).await;
    for (from, to, name) in [(&left, &right, "left"), (&right, &left, "right")] {
        assert_eq!(to.seen().numbers(name), Vec::from_iter(0..COUNT), "in order, each once");
        same(from.seen().published(name), to.seen().received(name));
    }
    for (between, name) in [(&first, "right"), (&second, "left")] {
        assert_eq!(between.seen().numbers(name), Vec::from_iter(0..COUNT), "in order, each once");
    }
    let heads = left.heads(&topic).await;
    for process in [&mut first, &mut second, &mut right] {
        process.holds(&topic, &heads, PATIENCE).await;
    }
    for process in [first, second, left, right] {
        process.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_ours_that_know_each_other_and_one_node_get_everything_once() {
    const COUNT: u32 = 200;
    let world = World::new("triangle").await;
    let mut node = world.node("node", &[]).await;
    let mut first = world.editor("first", &[&node]).await;
    let mut second = world.editor("second", &[&node]).await;
    let Opened { topic, ticket } = first.create().await;
    second.join(&ticket.expect("of ours")).await;
    node.open(&topic).await;
    for process in [&mut first, &mut second, &mut node] {
        let name = process.name.clone();
        process.publish(&topic, COUNT, &name, LIVE_PER_SECOND).await;
    }
    let names = ["first", "second", "node"];
    for process in [&mut first, &mut second, &mut node] {
        let own = process.name.clone();
        process.published(&own, COUNT as usize).await;
        for name in names.into_iter().filter(|name| *name != own) {
            process.wait(name, LONG_PATIENCE, |seen| seen.received(name).count() >= COUNT as usize).await;
            assert_eq!(process.seen().numbers(name), Vec::from_iter(0..COUNT), "in order, each once");
        }
    }
    let heads = node.heads(&topic).await;
    for process in [first, second] {
        let mut process = process;
        process.holds(&topic, &heads, PATIENCE).await;
        assert_eq!(process.seen().received.len(), 2 * COUNT as usize, "nothing twice afterwards");
        process.stop().await;
    }
    assert_eq!(node.seen().received.len(), 2 * COUNT as usize, "nothing twice afterwards");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_documents_are_live_with_one_node() {
    const DOCUMENTS: usize = 20;
    let world = World::new("many_documents").await;
    let mut node = world.node("node", &[]).await;
    let mut editor = world.editor("editor", &[&node]).await;
    let mut topics = Vec::new();
    for _ in 0..DOCUMENTS {
        let topic = editor.create().await.topic;
        node.open(&topic).await;
        topics.push(topic);
    }
    for topic in &topics {
        editor.publish(topic, 10, "ours", 0).await;
        node.publish(topic, 10, "theirs", 0).await;
    }
    let all = |topic: &String, name: &str, process: &Process| {
        let seen = process.seen();
        seen.received(name)
            .filter(|operation| operation.topic == *topic)
            .map(|operation| operation.seq)
            .collect::<Vec<_>>()
    };
    node.wait("all of ours", LONG_PATIENCE, |seen| seen.received("ours").count() >= 10 * DOCUMENTS).await;
    editor.wait("all of theirs", LONG_PATIENCE, |seen| seen.received("theirs").count() >= 10 * DOCUMENTS).await;
    for topic in &topics {
        assert_eq!(all(topic, "ours", &node), Vec::from_iter(0..10), "in order, each once, in its document");
        assert_eq!(all(topic, "theirs", &editor), Vec::from_iter(0..10), "in order, each once, in its document");
    }
    editor.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabyte_in_one_operation_crosses_both_ways() {
    let world = World::new("megabyte").await;
    let mut pair = Pair::connected(&world).await;
    let (ours, theirs) = ("o".repeat(1 << 20), "t".repeat(1 << 20));
    pair.editor.publish(&pair.topic, 1, &ours, 0).await;
    pair.node.publish(&pair.topic, 1, &theirs, 0).await;
    pair.node.wait("ours", PATIENCE, |seen| seen.received(&ours).count() > 0).await;
    pair.editor.wait("theirs", PATIENCE, |seen| seen.received(&theirs).count() > 0).await;
    pair.node.published(&theirs, 1).await;
    same(pair.editor.seen().published(&ours), pair.node.seen().received(&ours));
    same(pair.node.seen().published(&theirs), pair.editor.seen().received(&theirs));
    pair.ping("afterwards").await;
    pair.stop().await;
}

/// Asserts that these heads cover the newest of the operations, which are of one author.
fn has_newest(heads: &[Head], operations: &[Operation]) {
    let newest = operations.iter().max_by_key(|operation| operation.seq).expect("some were told");
    let held = heads.iter().find(|head| head.author == newest.author).expect("the author is known");
    assert!(held.seq >= newest.seq, "#{} was told, and #{} is held", newest.seq, held.seq);
}
