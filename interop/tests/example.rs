//! `examples/p2panda_bridge.rs` of the main package beside a real Node, as README says: what is typed goes to the Node, what the
//! Node publishes is printed.

mod support;

use std::process::Stdio;

use panda_network_interop::protocol::{Payload, now_us};
use support::{PATIENCE, Process, World, build};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// The example as a person runs it.
struct Example {
    child: Child,
    typed: ChildStdin,
    printed: Lines<BufReader<ChildStdout>>,
}

impl Example {
    fn start(world: &World, node: &Process) -> Self {
        let known = node.known();
        let mut command = Command::new(build::example("p2panda_bridge"));
        command.args([&world.place("example"), &world.network, &known.key, &known.address]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the example starts");
        let (typed, printed) = (child.stdin.take().expect("its input"), child.stdout.take().expect("its output"));
        Self { child, typed, printed: BufReader::new(printed).lines() }
    }

    /// Waits for a line with this in it; returns what follows.
    async fn prints(&mut self, what: &str) -> String {
        let found = async {
            while let Some(line) = self.printed.next_line().await.expect("UTF-8") {
                if let Some((_, rest)) = line.split_once(what) {
                    return Some(rest.to_owned());
                }
            }
            None
        };
        let found = timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{what:?} is not printed"));
        found.unwrap_or_else(|| panic!("the example ended before {what:?}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_reaches_the_node_and_what_it_publishes_is_printed() {
    let world = World::new("example").await;
    let mut node = world.node("node", &[]).await;
    let mut example = Example::start(&world, &node);
    let topic = example.prints("topic: ").await;
    node.open(&topic).await;
    node.publish(&topic, 3, "of the Node", 0).await;
    for number in 0..3 {
        example.prints(&format!("of the Node:{number}:")).await;
    }
    let typed = Payload { prefix: "typed".into(), number: 0, sent_us: now_us() }.encode();
    example.typed.write_all(format!("{typed}\n").as_bytes()).await.expect("it reads");
    node.wait("what was typed", PATIENCE, |seen| seen.received("typed").count() == 1).await;
    drop(example.typed);
    let ended = timeout(PATIENCE, example.child.wait()).await.expect("it ends with its input");
    assert!(ended.expect("its status").success());
    node.stop().await;
}
