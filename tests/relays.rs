//! Whose relays a node uses: its own are kept, those that others name are borrowed, and neither a relay nor a stranger aims the
//! node at anybody. On virtual time; `PANDA_SEED=<seed>` changes the seed.
#![cfg(all(feature = "sim", feature = "relay"))]

#[path = "support/places.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod places;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use panda_network::discovery::DiscoveryOptions;
use panda_network::identity::Identity;
use panda_network::limits::{RELAYS_PER_NODE, UNPROVEN_PER_ADDRESS, UNPROVEN_PER_ADDRESS_WHILE};
use panda_network::relay::{Relay, RelayOptions, TurnMode};
use panda_network::rendezvous::address::HostPort;
use panda_network::sim::{self, LinkOptions, Sim};
use panda_network::{Document, DocumentId, DocumentKey, DocumentTicket, PandaNetworkOptions, PeerAddress};
use places::{Node, Place, World, payloads};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);

fn seed() -> u64 {
    std::env::var("PANDA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

fn world(sim: &Sim, relays: u8) -> World {
    World::with_relays(sim, LinkOptions::new().with_latency(Duration::from_millis(30)), relays)
}

/// A node at a home of its own, at these relays of the world.
async fn at(world: &World, relays: &[usize], name: &str) -> Node {
    let relays: Vec<_> = relays.iter().map(|number| world.relays[*number].1.address().to_string()).collect();
    let change = |options: PandaNetworkOptions| options.with_relays(relays);
    world.node_with(world.host(Place::PortRestricted), name, change).await
}

/// A document with one operation.
async fn written(node: &Node, what: &str) -> Document {
    let document = node.network.create().await.unwrap();
    document.publish(what.to_owned()).await.unwrap();
    document
}

async fn assert_arrives(document: &Document, what: &str) {
    let arrived = timeout(PATIENCE, payloads(document, 1)).await;
    assert_eq!(arrived.unwrap_or_else(|_| panic!("{what} arrives")), [what]);
}

fn names(node: &Node) -> Vec<String> {
    node.network.relays().into_iter().map(|(relay, _)| relay.to_string()).collect()
}

/// The document of that number, which a record of these peers leads to.
fn ticket(number: u8, peers: impl IntoIterator<Item = PeerAddress>) -> DocumentTicket {
    let document = DocumentId::from_uuid(uuid::Uuid::from_u128(number.into()));
    DocumentTicket::new(document, DocumentKey::from_bytes([number; 32])).with_peers(peers)
}

#[test]
fn relays_that_others_name_take_no_place_of_the_users_own() {
    sim::run(seed(), |sim| async move {
        let world = world(&sim, 3);
        let (alice, bob, carol) =
            (at(&world, &[0], "alice").await, at(&world, &[1], "bob").await, at(&world, &[2], "carol").await);
        let theirs = carol.network.open(ticket(7, [])).await.unwrap();
        theirs.publish("of Carol").await.unwrap();
        let of_bob = written(&bob, "of Bob").await;
        sleep(Duration::from_secs(5)).await;
        let (known, record) = (names(&alice), alice.network.address().unwrap());
        // Eight made-up peers of a document name four relays each; some of these sort before any other.
        let made_up = (0..8u8).map(|number| {
            let relays = (0..4).map(|relay| format!("0-{number}-{relay}.example.net:443")).collect();
            PeerAddress::sign(&Identity::from_seed(&[100 + number; 32]), Vec::new(), relays, 1).unwrap()
        });
        alice.network.open(ticket(8, made_up)).await.unwrap();
        sleep(Duration::from_secs(120)).await;
        assert_eq!((names(&alice), alice.network.address().unwrap().relays()), (known.clone(), record.relays()));
        // A peer at a relay that only its record names is met there all the same.
        let there = alice.network.open(ticket(7, [carol.network.address().unwrap()])).await.unwrap();
        assert_arrives(&there, "of Carol").await;
        assert_eq!(names(&alice), known);
        // And the relay of a ticket is one of ours for as long as its document is open.
        let there = alice.network.open(of_bob.ticket().await.unwrap()).await.unwrap();
        assert_arrives(&there, "of Bob").await;
        let both = vec![known[0].clone(), world.relays[1].1.address().to_string()];
        assert_eq!((names(&alice), alice.network.address().unwrap().relays()), (both.clone(), &both[..]));
        bob.network.shutdown(Duration::from_secs(5)).await.unwrap();
        alice.network.close(there.id()).await.unwrap();
        assert_eq!(names(&alice), known);
        sleep(Duration::from_secs(90)).await;
        assert_eq!(world.relays[1].1.snapshot().sessions, 0, "nobody needs it any more");
    });
}

#[test]
fn a_node_whose_contacts_use_more_relays_than_it_keeps_reaches_all_of_them() {
    sim::run(seed(), |sim| async move {
        let world = world(&sim, 11);
        let alice = at(&world, &[0], "alice").await;
        let mut contacts = Vec::new();
        for number in 1..=10 {
            let contact = at(&world, &[number], &format!("contact {number}")).await;
            let document = written(&contact, &format!("of {number}")).await;
            contacts.push((contact, document));
        }
        sleep(Duration::from_secs(5)).await;
        let mut open = Vec::new();
        for (_, document) in &contacts {
            open.push(alice.network.open(document.ticket().await.unwrap()).await.unwrap());
        }
        for (number, there) in open.iter().enumerate() {
            assert_arrives(there, &format!("of {}", number + 1)).await;
        }
        assert_eq!(alice.network.relays().len(), RELAYS_PER_NODE);
    });
}

#[test]
fn a_relay_with_and_without_its_key_is_one_session() {
    sim::run(seed(), |sim| async move {
        let world = world(&sim, 1);
        let without_key = |options: PandaNetworkOptions| options.with_relays(["relay-1.example.org"]);
        let mut nodes = Vec::new();
        for name in ["alice", "bob"] {
            nodes.push(world.node_with(world.host(Place::PortRestricted), name, without_key).await);
        }
        sleep(Duration::from_secs(5)).await;
        let document = written(&nodes[0], "hello").await;
        let there = nodes[1].network.open(document.ticket().await.unwrap()).await.unwrap();
        assert_arrives(&there, "hello").await;
        sleep(Duration::from_secs(20)).await;
        assert_eq!(world.relays[0].1.snapshot().sessions, 2);
    });
}

/// A relay at 203.0.113.66 that says that it takes datagrams at these addresses.
fn liar(sim: &Sim, world: &World, datagrams: &[IpAddr]) -> Relay {
    let host = world.network.host([203, 0, 113, 66].into());
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let options = RelayOptions::new(Identity::from_seed(&sim.derive_seed("liar")))
        .with_listen(any(443))
        .with_datagrams(any(3478))
        .with_public_address(HostPort::new("203.0.113.66", 443).unwrap())
        .with_public_ips(datagrams.iter().copied())
        .with_relay_ips([host.ip()])
        .with_turn(TurnMode::Off)
        .with_seed(sim.derive_seed("numbers of the liar"));
    Relay::start(Arc::new(host), options).unwrap()
}

#[test]
fn a_relay_that_names_somebody_elses_address_aims_a_bounded_number_of_packets_there() {
    sim::run(seed(), |sim| async move {
        let world = world(&sim, 0);
        let victim = world.network.host([198, 51, 100, 250].into());
        let ear = victim.bind(3478).unwrap();
        let relay = liar(&sim, &world, &[victim.ip()]);
        let its = |options: PandaNetworkOptions| options.with_relays([relay.address().to_string()]);
        let alice = world.node_with(world.host(Place::Symmetric), "alice", its).await;
        let bob = world.node_with(world.host(Place::Symmetric), "bob", its).await;
        let document = written(&alice, "hello").await;
        sleep(Duration::from_secs(5)).await;
        let _there = bob.network.open(document.ticket().await.unwrap()).await.unwrap();
        let mut heard = 0;
        for _ in 0..360 {
            sleep(Duration::from_secs(10)).await;
            while timeout(Duration::ZERO, ear.recv_from()).await.is_ok() {
                heard += 1;
            }
        }
        // Of two nodes.
        let whiles = 2 * (3600 / UNPROVEN_PER_ADDRESS_WHILE.as_secs() as usize + 1);
        println!("{heard} packets in an hour, {} withheld", bob.network.socket_stats().withheld);
        assert!(heard > 0 && heard <= whiles * UNPROVEN_PER_ADDRESS as usize, "{heard} packets in an hour");
        assert!(bob.network.socket_stats().withheld > 0, "what is not sent is counted");
    });
}

#[test]
fn a_relay_that_names_many_addresses_keeps_no_other_from_saying_where_we_are() {
    sim::run(seed(), |sim| async move {
        let world = world(&sim, 1);
        let named: Vec<IpAddr> = (1..=8).map(|number| [192, 0, 2, number].into()).collect();
        let liar = liar(&sim, &world, &named);
        let relays = [&liar, &world.relays[0].1].map(|relay| relay.address().to_string());
        let change = |options: PandaNetworkOptions| options.with_relays(relays);
        let alice = world.node_with(world.host(Place::PortRestricted), "alice", change).await;
        sleep(Duration::from_secs(60)).await;
        let address = alice.network.address().unwrap();
        assert!(address.addresses().iter().any(|(_, address)| address.ip() != alice.host.ip()), "{address:?}");
    });
}

/// The hub has never heard of Alice, and its NAT lets nobody in.
#[test]
fn a_hub_behind_a_nat_is_asked_by_whoever_knows_it_through_its_relay() {
    sim::run(seed(), |sim| async move {
        let world = world(&sim, 2);
        let mut nodes = Vec::new();
        // Alice and Bob have the second relay in common, which the hub does not use.
        for (name, relays) in [("hub", &[0][..]), ("alice", &[1]), ("bob", &[0, 1])] {
            let relays: Vec<_> = relays.iter().map(|relay| world.relays[*relay].1.address().to_string()).collect();
            let change = |options: PandaNetworkOptions| {
                options.with_relays(relays).with_discovery(DiscoveryOptions::new().with_topics(true))
            };
            nodes.push(world.node_with(world.host(Place::PortRestricted), name, change).await);
        }
        sleep(Duration::from_secs(5)).await;
        let hub = nodes[0].network.address().unwrap();
        let mut open = Vec::new();
        for node in &nodes[1..] {
            node.network.add_peer(hub.clone()).await.unwrap();
            open.push(node.network.open(ticket(7, [])).await.unwrap());
        }
        sleep(PATIENCE).await;
        for document in open {
            assert_eq!(document.status().borrow().peers, 1, "the hub pointed each of them at the other");
        }
        assert_eq!(nodes[0].network.discovery_stats().asked, 0);
        assert_eq!(world.relays[0].1.snapshot().malformed, 0);
    });
}
