//! What two connected nodes do after one of them closed a document: nothing, until it is opened again. On virtual time;
//! `PANDA_SEED=<seed>` runs one seed, `PANDA_SEEDS` as many.
#![cfg(all(feature = "sim", feature = "relay"))]

#[path = "support/places.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod places;

use std::time::Duration;

use panda_network::sim::{self, Sim};
use panda_network::{Document, DocumentEvent, StartFrom, Subscription};
use places::{Node, Place, World};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(30);

/// Two nodes, the one who made the document and the one who dialled it, with the document open at both.
struct Pair {
    world: World,
    nodes: [Node; 2],
    documents: [Document; 2],
}

impl Pair {
    async fn start(sim: &Sim) -> Self {
        let world = World::new(sim, Duration::from_millis(20));
        let nodes = [world.node(Place::Public, "alice").await, world.node(Place::Public, "bob").await];
        sleep(Duration::from_secs(5)).await;
        let here = nodes[0].network.create().await.unwrap();
        let there = nodes[1].network.open(here.ticket().await.unwrap()).await.unwrap();
        let pair = Self { world, nodes, documents: [here, there] };
        pair.await_peers(0, 1).await;
        pair.await_peers(1, 1).await;
        pair
    }

    async fn await_peers(&self, node: usize, peers: usize) {
        let mut status = self.documents[node].status();
        let seen = timeout(PATIENCE, status.wait_for(|status| status.peers == peers)).await;
        assert!(matches!(seen, Ok(Ok(_))), "{peers} peers at {node}: {:?}", *self.documents[node].status().borrow());
    }

    /// Packets of the two and their relay in this time.
    async fn packets_in(&self, time: Duration) -> u64 {
        let before = self.world.network.stats().sent;
        sleep(time).await;
        self.world.network.stats().sent - before
    }
}

async fn next_payload(events: &mut Subscription) -> Vec<u8> {
    loop {
        let event = timeout(PATIENCE, events.next()).await.expect("an operation arrives");
        if let DocumentEvent::Operation(stored) = event.unwrap().unwrap() {
            return stored.operation.payload().to_vec();
        }
    }
}

fn closes(who: usize) {
    for seed in places::seeds(10) {
        sim::run(seed, |sim| async move {
            let mut pair = Pair::start(&sim).await;
            let (id, other) = (pair.documents[who].id(), 1 - who);
            for round in 0..3 {
                let word = format!("round {round}");
                let mut events = pair.documents[who].subscribe(StartFrom::Cursor).await.unwrap();
                pair.documents[other].publish(word.clone()).await.unwrap();
                while next_payload(&mut events).await != word.as_bytes() {}
                pair.nodes[who].network.close(id).await.unwrap();
                assert!(timeout(PATIENCE, async { while events.next().await.is_some() {} }).await.is_ok());
                pair.await_peers(other, 0).await;
                // Keep-alives, checks of the path and heartbeats.
                let packets = pair.packets_in(Duration::from_secs(20)).await;
                assert!(packets < 200, "{packets} packets in 20 s although nothing is shared, seed {seed}");
                pair.documents[who] = pair.nodes[who].network.reopen(id).await.unwrap();
                pair.await_peers(other, 1).await;
            }
            // Long after both gave up the connection.
            pair.nodes[who].network.close(id).await.unwrap();
            sleep(Duration::from_secs(300)).await;
            let packets = pair.packets_in(Duration::from_secs(60)).await;
            assert!(packets < 600, "{packets} packets in a minute although nothing is shared, seed {seed}");
        });
    }
}

#[test]
fn a_document_that_its_author_closed_is_left_alone_and_found_again() {
    closes(0);
}

#[test]
fn a_document_that_its_reader_closed_is_left_alone_and_found_again() {
    closes(1);
}
