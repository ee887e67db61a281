//! A peer is found by its key at any relay that it used: it moved on, and an old ticket still leads to it.

#![cfg(all(feature = "relay", feature = "sim"))]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "support/places.rs"]
mod places;

use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use panda_network::discovery::{DiscoveryOptions, Source};
use panda_network::sim::{self, Sim, SimHost};
use panda_network::{DocumentTicket, Durability, NetworkEvent, PandaNetwork, PandaNetworkOptions};
use places::{Place, World, payloads};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);

struct Bob {
    directory: TempDir,
    host: SimHost,
    starts: AtomicU16,
}

impl Bob {
    fn new(world: &World) -> Self {
        let (directory, host) = (tempfile::tempdir().unwrap(), world.host(Place::PortRestricted));
        Self { directory, host, starts: AtomicU16::new(0) }
    }

    /// Bob's node on these relays of the world.
    async fn start(&self, sim: &Sim, world: &World, relays: &[usize], rendezvous: bool) -> PandaNetwork {
        let port = 4000 + self.starts.fetch_add(1, Ordering::Relaxed);
        let relays = relays.iter().map(|number| world.relays[*number].1.address().to_string());
        let options = PandaNetworkOptions::new(self.directory.path())
            .with_durability(Durability::Process)
            .with_discovery(DiscoveryOptions::new().with_rendezvous(rendezvous))
            .with_relays(relays)
            .with_simulation(&self.host, port, sim.derive_seed("bob"));
        PandaNetwork::start(options).await.unwrap()
    }

    async fn stop(&self, network: PandaNetwork) {
        network.shutdown(Duration::from_secs(5)).await.unwrap();
        drop(network);
        sleep(Duration::from_secs(1)).await;
    }
}

/// Bob makes a ticket at the first relay, moves to the second, and Alice comes with the old ticket. Returns whether she
/// gets Bob's operation, and after how long.
async fn moved(sim: Sim, rendezvous: bool) -> Option<Duration> {
    let world =
        World::with_relays(&sim, panda_network::sim::LinkOptions::new().with_latency(Duration::from_millis(30)), 2);
    let bob = Bob::new(&world);
    let network = bob.start(&sim, &world, &[0], rendezvous).await;
    let document = network.create().await.unwrap();
    document.publish("hello").await.unwrap();
    sleep(Duration::from_secs(10)).await;
    let ticket: DocumentTicket = document.ticket().await.unwrap();
    assert_eq!(ticket.peers()[0].relays().len(), 1);
    bob.stop(network).await;
    // For a while Bob is at both, as somebody is who was told to move.
    let network = bob.start(&sim, &world, &[0, 1], rendezvous).await;
    sleep(Duration::from_secs(10)).await;
    bob.stop(network).await;
    let network = bob.start(&sim, &world, &[1], rendezvous).await;
    network.reopen(ticket.document()).await.unwrap();
    sleep(Duration::from_secs(24 * 3600)).await;
    assert_eq!(network.relays().len(), 1, "Bob is not at the first relay any more");

    let directory = tempfile::tempdir().unwrap();
    let options = PandaNetworkOptions::new(directory.path()).with_durability(Durability::Process).with_simulation(
        &world.host(Place::PortRestricted),
        4000,
        sim.derive_seed("alice"),
    );
    let alice = PandaNetwork::start(options).await.unwrap();
    let (started, mut events) = (Instant::now(), alice.events());
    let there = alice.open(ticket).await.unwrap();
    let arrived = timeout(PATIENCE, payloads(&there, 1)).await;
    assert!(arrived.as_ref().map_or(true, |payloads| payloads == &["hello"]));
    let took = arrived.ok().map(|_| started.elapsed())?;
    // It is told how Bob was found, before he is connected.
    let (peer, document) = (network.node_id(), there.id());
    for source in [Source::Ticket, Source::Rendezvous] {
        assert_eq!(events.next().await, Some(Ok(NetworkEvent::PeerFound { peer, document, source })));
    }
    assert!(matches!(events.next().await, Some(Ok(NetworkEvent::PeerConnected { .. }))));
    Some(took)
}

#[test]
fn an_old_ticket_leads_to_a_peer_that_moved_to_another_relay() {
    let took = sim::run(1, |sim| moved(sim, true)).expect("Bob is found where he went");
    println!("found at the other relay after {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_peer_that_publishes_no_record_is_not_found_elsewhere() {
    assert_eq!(sim::run(1, |sim| moved(sim, false)), None);
}

/// The hub points each of them at the other, and the relay introduces them, since they share a document.
#[test]
fn two_behind_nats_who_know_one_common_peer_find_each_other_with_a_relay() {
    sim::run(1, |sim| async move {
        let world = World::new(&sim, Duration::from_millis(30));
        let mut nodes = Vec::new();
        for (name, place) in [("hub", Place::Public), ("alice", Place::PortRestricted), ("bob", Place::PortRestricted)]
        {
            let directory = tempfile::tempdir().unwrap();
            let options = PandaNetworkOptions::new(directory.path())
                .with_durability(Durability::Process)
                .with_discovery(DiscoveryOptions::new().with_topics(true))
                .with_relays([world.relays[0].1.address().to_string()])
                .with_simulation(&world.host(place), 4000, sim.derive_seed(name));
            nodes.push((PandaNetwork::start(options).await.unwrap(), directory));
        }
        sleep(Duration::from_secs(5)).await;
        let hub = nodes[0].0.address().unwrap();
        let ticket = DocumentTicket::new(
            panda_network::DocumentId::from_uuid(uuid::Uuid::from_u128(7)),
            panda_network::DocumentKey::from_bytes([7; 32]),
        );
        let mut open = Vec::new();
        for (node, _) in &nodes[1..] {
            node.add_peer(hub.clone()).await.unwrap();
            open.push(node.open(ticket.clone()).await.unwrap());
        }
        open[0].publish("hello").await.unwrap();
        let arrived = timeout(Duration::from_secs(120), payloads(&open[1], 1)).await;
        assert_eq!(arrived.expect("Alice's operation arrives"), ["hello"]);
    });
}
