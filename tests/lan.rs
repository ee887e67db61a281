//! Whole nodes in one network, with tickets that name no address: they find each other there, nobody else finds them, and what
//! hostile neighbours say changes counters. On virtual time; `PANDA_SEED=<seed>` changes the seed.
#![cfg(feature = "sim")]

use std::time::Duration;

use panda_network::discovery::Source;
use panda_network::discovery::lan::{LanCounters, notice};
use panda_network::discovery::policy::Refusal;
use panda_network::identity::Identity;
use panda_network::net::HostNetwork;
use panda_network::sim::{self, NatOptions, Sim, SimHost, SimNetwork, SimSite};
use panda_network::store::DocumentRecord;
use panda_network::transport::{PathKind, TransportKind};
use panda_network::{
    ConnectionState, DiscoveryOptions, Document, DocumentId, DocumentKey, DocumentTicket, Durability, NetworkEvent,
    NetworkEvents, PandaNetwork, PandaNetworkOptions, PeerAddress, PeerId,
};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// Longer than anything may take that is to happen here.
const PATIENCE: Duration = Duration::from_secs(30);

fn seed() -> u64 {
    std::env::var("PANDA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

struct Node {
    network: PandaNetwork,
    events: NetworkEvents,
    _directory: TempDir,
}

fn lan() -> DiscoveryOptions {
    DiscoveryOptions::new().with_lan(true)
}

async fn node(sim: &Sim, host: &SimHost, name: &str, discovery: DiscoveryOptions) -> Node {
    node_with(sim, host, name, |options| options.with_discovery(discovery)).await
}

async fn node_with(
    sim: &Sim,
    host: &SimHost,
    name: &str,
    set: impl FnOnce(PandaNetworkOptions) -> PandaNetworkOptions,
) -> Node {
    let directory = tempfile::tempdir().unwrap();
    let options = PandaNetworkOptions::new(directory.path()).with_durability(Durability::Process).with_simulation(
        host,
        4000,
        sim.derive_seed(name),
    );
    let network = PandaNetwork::start(set(options)).await.unwrap();
    Node { events: network.events(), network, _directory: directory }
}

impl Node {
    fn id(&self) -> PeerId {
        self.network.node_id()
    }

    /// The next event that is wanted; others are skipped.
    async fn event(&mut self, wanted: impl Fn(&NetworkEvent) -> bool) -> NetworkEvent {
        let next = async {
            loop {
                let event = self.events.next().await.unwrap().unwrap();
                if wanted(&event) {
                    return event;
                }
            }
        };
        timeout(PATIENCE, next).await.expect("the event comes")
    }

    async fn connected(&mut self, peer: PeerId) -> NetworkEvent {
        self.event(|event| matches!(event, NetworkEvent::PeerConnected { peer: who, .. } if *who == peer)).await
    }
}

/// A home behind a NAT, and a host in it.
fn home(network: &SimNetwork, number: u8) -> SimSite {
    network.nat([198, 51, 100, number].into(), NatOptions::port_restricted()).unwrap().inside().clone()
}

fn host(site: &SimSite, number: u8) -> SimHost {
    site.host([192, 168, 1, number].into())
}

/// Everything but the addresses.
async fn bare_ticket(document: &Document) -> DocumentTicket {
    let ticket = document.ticket().await.unwrap();
    DocumentTicket::new(ticket.document(), ticket.key().clone())
}

#[test]
fn two_nodes_in_one_network_find_each_other_without_any_address_and_tell_how() {
    sim::run(seed(), |sim| async move {
        let network = SimNetwork::new(sim.options());
        let (here, there) = (home(&network, 1), home(&network, 2));
        let mut alice = node(&sim, &host(&here, 2), "alice", lan()).await;
        let mut bob = node(&sim, &host(&here, 3), "bob", lan()).await;
        let carol = node(&sim, &host(&there, 2), "carol", lan()).await;
        let document = alice.network.create().await.unwrap();
        let receipt = document.publish("hello").await.unwrap();
        let ticket = bare_ticket(&document).await;
        carol.network.open(ticket.clone()).await.unwrap();
        sleep(Duration::from_secs(5)).await;

        let start = tokio::time::Instant::now();
        bob.network.open(ticket).await.unwrap();
        let found = NetworkEvent::PeerFound { peer: alice.id(), document: document.id(), source: Source::Lan };
        assert_eq!(bob.event(|event| matches!(event, NetworkEvent::PeerFound { .. })).await, found);
        let connected = bob.connected(alice.id()).await;
        assert!(matches!(connected, NetworkEvent::PeerConnected { transport: TransportKind::Quic, .. }));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        alice.connected(bob.id()).await;
        receipt.delivered_to(1).await;
        sleep(Duration::from_secs(5)).await;
        assert_eq!(bob.network.connections()[0].0.path, PathKind::Lan);

        // Who has the ticket and is elsewhere hears nothing of it.
        sleep(Duration::from_secs(3600)).await;
        assert!(carol.network.connections().is_empty());
        assert_eq!(carol.network.lan_counters().found, 0);

        bob.network.shutdown(Duration::from_secs(1)).await.unwrap();
        alice.event(|event| *event == NetworkEvent::PeerDisconnected { peer: bob.id() }).await;
    });
}

#[test]
fn nobody_is_found_unless_both_ends_are_asked_to_look_or_when_one_hides() {
    type Set = fn(PandaNetworkOptions) -> PandaNetworkOptions;
    let look: Set = |options| options.with_discovery(lan());
    let default: Set = |options| options;
    let hide: Set = |options| options.with_discovery(lan()).with_relay_only(true);
    for (set, finds) in [(look, true), (default, false), (hide, false)] {
        sim::run(seed(), |sim| async move {
            let network = SimNetwork::new(sim.options());
            let here = home(&network, 1);
            let alice = node_with(&sim, &host(&here, 2), "alice", set).await;
            let bob = node(&sim, &host(&here, 3), "bob", lan()).await;
            let document = alice.network.create().await.unwrap();
            bob.network.open(bare_ticket(&document).await).await.unwrap();
            sleep(Duration::from_secs(120)).await;
            assert_eq!(!bob.network.connections().is_empty(), finds);
            assert_eq!(bob.network.lan_counters().found > 0, finds);
        });
    }
}

#[test]
fn a_laptop_that_is_carried_into_the_network_is_found_there() {
    sim::run(seed(), |sim| async move {
        let network = SimNetwork::new(sim.options());
        let (here, there) = (home(&network, 1), home(&network, 2));
        let laptop = host(&there, 9);
        let mut alice = node(&sim, &host(&here, 2), "alice", lan()).await;
        let bob = node(&sim, &laptop, "bob", lan()).await;
        let document = alice.network.create().await.unwrap();
        bob.network.open(bare_ticket(&document).await).await.unwrap();
        sleep(Duration::from_secs(60)).await;
        assert!(alice.network.connections().is_empty());
        laptop.move_to(&here, [192, 168, 1, 77].into()).unwrap();
        alice.connected(bob.id()).await;
    });
}

#[test]
fn an_editor_that_knows_of_another_network_with_the_same_addresses_says_so_and_is_found_there() {
    sim::run(seed(), |sim| async move {
        let network = SimNetwork::new(sim.options());
        let (here, there) = (home(&network, 1), home(&network, 2));
        let laptop = host(&there, 9);
        let alice = node(&sim, &host(&here, 2), "alice", lan()).await;
        let mut bob = node(&sim, &laptop, "bob", lan()).await;
        let document = alice.network.create().await.unwrap();
        bob.network.open(bare_ticket(&document).await).await.unwrap();
        sleep(Duration::from_secs(60)).await;
        laptop.move_to(&here, [192, 168, 1, 9].into()).unwrap();
        bob.network.on_network_change();
        bob.connected(alice.id()).await;
    });
}

#[test]
fn a_peer_that_is_denied_is_not_connected_to_whoever_dials() {
    sim::run(seed(), |sim| async move {
        let network = SimNetwork::new(sim.options());
        let here = home(&network, 1);
        let mallory = node(&sim, &host(&here, 3), "mallory", lan()).await;
        let options = lan().with_denied_peers([mallory.id()]);
        let mut alice = node(&sim, &host(&here, 2), "alice", options).await;
        let document = alice.network.create().await.unwrap();
        let ticket = document.ticket().await.unwrap();
        // She finds nobody: he finds her, and her address is in his ticket.
        mallory.network.open(ticket).await.unwrap();
        let refused = NetworkEvent::PeerRefused { peer: mallory.id(), reason: Refusal::Denied };
        alice.event(|event| *event == refused).await;
        sleep(Duration::from_secs(60)).await;
        while let Ok(event) = timeout(Duration::from_millis(1), alice.events.next()).await {
            assert_ne!(event, Some(Ok(refused.clone())), "told once, however often he dials");
        }
        assert!(alice.network.connections().is_empty());
        assert_eq!(document.peers(), []);
    });
}

#[test]
fn closing_a_document_ends_looking_for_its_peers_and_opening_it_again_finds_them() {
    sim::run(seed(), |sim| async move {
        let network = SimNetwork::new(sim.options());
        let here = home(&network, 1);
        let alice = node(&sim, &host(&here, 2), "alice", lan()).await;
        let mut bob = node(&sim, &host(&here, 3), "bob", lan()).await;
        let document = alice.network.create().await.unwrap();
        let ticket = bare_ticket(&document).await;
        bob.network.open(ticket.clone()).await.unwrap();
        bob.connected(alice.id()).await;
        for node in [&alice, &bob] {
            node.network.close(document.id()).await.unwrap();
        }
        // A connection that nobody needs is closed after four heartbeats, and nobody dials again.
        sleep(Duration::from_secs(600)).await;
        for node in [&alice, &bob] {
            assert_eq!(*node.network.connection_state().borrow(), ConnectionState::Idle);
        }
        for node in [&alice, &bob] {
            node.network.open(ticket.clone()).await.unwrap();
        }
        bob.event(|event| matches!(event, NetworkEvent::PeerDisconnected { .. })).await;
        bob.connected(alice.id()).await;
    });
}

#[test]
fn offline_on_purpose_a_node_announces_nothing() {
    sim::run(seed(), |sim| async move {
        let network = SimNetwork::new(sim.options());
        let here = home(&network, 1);
        let alice = node(&sim, &host(&here, 2), "alice", lan()).await;
        let mut bob = node(&sim, &host(&here, 3), "bob", lan()).await;
        let document = alice.network.create().await.unwrap();
        alice.network.set_connected(false).await;
        sleep(Duration::from_secs(10)).await;
        bob.network.open(bare_ticket(&document).await).await.unwrap();
        sleep(Duration::from_secs(60)).await;
        assert_eq!(bob.network.lan_counters().found, 0);
        alice.network.set_connected(true).await;
        bob.connected(alice.id()).await;
    });
}

/// What somebody in the network may say: noise, notices for other documents, of others, of long ago, cut, too long.
fn lies(number: usize, genuine: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut lie = genuine.to_vec();
    match number % 6 {
        0 => random.fill_bytes(&mut lie),
        1 => random.fill_bytes(&mut lie[1..]),
        2 => lie.truncate(number % genuine.len()),
        3 => lie.resize(10_000, 7),
        4 => {
            let at = 1 + number % (lie.len() - 1);
            lie[at] ^= 1 << (number % 8);
        }
        _ => {
            let stranger = DocumentRecord {
                document: DocumentId::from_uuid(uuid::Uuid::from_u128(number as u128)),
                key: DocumentKey::from_bytes([9; 32]),
            };
            let record = PeerAddress::sign(&Identity::from_seed(&[7; 32]), Vec::new(), Vec::new(), number as u64);
            lie = notice::seal(&record.unwrap(), &[stranger], random).unwrap();
        }
    }
    lie
}

#[test]
fn ten_thousand_false_notices_change_counters_and_the_genuine_one_is_found() {
    sim::run(seed(), |sim| async move {
        let network = SimNetwork::new(sim.options());
        let here = home(&network, 1);
        let mut alice = node(&sim, &host(&here, 2), "alice", lan()).await;
        let document = alice.network.create().await.unwrap();
        let ticket = bare_ticket(&document).await;
        // A notice as a neighbour can record it: of a node with another document.
        let (other, key) = (DocumentId::from_uuid(uuid::Uuid::from_u128(1)), DocumentKey::from_bytes([1; 32]));
        let record = PeerAddress::sign(&Identity::from_seed(&[8; 32]), Vec::new(), Vec::new(), 1).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(seed());
        let genuine = notice::seal(&record, &[DocumentRecord { document: other, key }], &mut random).unwrap();
        let mut neighbour = host(&here, 66).lan_board().unwrap();
        for number in 0..10_000 {
            neighbour.post(Some(lies(number, &genuine, &mut random)));
            sleep(Duration::from_millis(1)).await;
        }
        let counters = alice.network.lan_counters();
        assert!(counters.heard >= 10_000 && counters.malformed > 3_000 && counters.not_for_us > 1_000, "{counters:?}");
        assert_eq!((counters.found, counters.forged), (0, 0));
        assert!(alice.network.connections().is_empty());
        assert_eq!(network.stats().sent, 0, "nobody was aimed at");

        let bob = node(&sim, &host(&here, 3), "bob", lan()).await;
        bob.network.open(ticket).await.unwrap();
        alice.connected(bob.id()).await;
        let LanCounters { found, .. } = alice.network.lan_counters();
        assert_eq!(found, 1);
    });
}
