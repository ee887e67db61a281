//! Whole nodes behind every kind of NAT, with nothing but a ticket that names a relay: they connect, and by the best path
//! that the two NATs allow. On virtual time, with our own relay. `PANDA_SEED=<seed>` changes the seed, `PANDA_SEEDS=<count>` how
//! many of them are used for times; the figures are printed with `--nocapture`.
#![cfg(all(feature = "sim", feature = "relay"))]

#[path = "support/places.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod places;

use std::net::SocketAddr;
use std::time::Duration;

use panda_network::identity::Identity;
use panda_network::limits::{UNPROVEN_PER_ADDRESS, UNPROVEN_PER_ADDRESS_WHILE};
use panda_network::sim::{self, LinkOptions, Protocol, Sim, TraceEvent};
use panda_network::transport::{PathKind, TransportKind};
use panda_network::transports::quic::QuicTransportOptions;
use panda_network::{DocumentTicket, PandaNetworkOptions, PeerAddress};
use places::{Place, World};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn seed() -> u64 {
    std::env::var("PANDA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// Connects two nodes and returns by which path they speak once they had time to look for the best.
async fn settled_path(sim: Sim, left: Place, right: Place) -> PathKind {
    let world = World::new(&sim, Duration::from_millis(50));
    let alice = world.node(left, "alice").await;
    let bob = world.node(right, "bob").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let document = alice.network.create().await.unwrap();
    let receipt = document.publish("hello").await.unwrap();
    let there = bob.network.open(document.ticket().await.unwrap()).await.unwrap();
    let arrived = tokio::time::timeout(Duration::from_secs(20), places::payloads(&there, 1)).await;
    assert_eq!(arrived.expect("the operation arrives"), ["hello"]);
    receipt.delivered_to(1).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    if left == Place::UdpBlocked {
        assert_eq!(alice.network.connections()[0].0.path, PathKind::TurnTls);
    }
    let (info, _) = bob.network.connections().remove(0);
    info.path
}

/// What the two NATs allow.
fn expected(left: Place, right: Place) -> fn(PathKind) -> bool {
    use Place::{AddressRestricted, FullCone, Public, Symmetric, SymmetricPreserving, UdpBlocked};
    let symmetric = |place| matches!(place, Symmetric | SymmetricPreserving);
    let opens_to_anybody_it_knows = |place| matches!(place, Public | FullCone | AddressRestricted);
    match (left, right) {
        (_, UdpBlocked) => |path| path == PathKind::TurnTls,
        // Seen from the other end: plain datagrams to a relayed address.
        (UdpBlocked, _) => |path| path == PathKind::TurnUdp,
        (Public, _) | (_, Public) => |path| path == PathKind::Direct,
        _ if !symmetric(left) && !symmetric(right) => |path| path == PathKind::Punched,
        _ if symmetric(left) && opens_to_anybody_it_knows(right) => |path| path == PathKind::Punched,
        _ if symmetric(right) && opens_to_anybody_it_knows(left) => |path| path == PathKind::Punched,
        _ => |path| path == PathKind::Forwarded,
    }
}

#[test]
fn every_pair_of_nats_connects_by_the_best_path_there_is() {
    let mut wrong = Vec::new();
    for left in Place::ALL {
        for right in Place::ALL {
            let path = sim::run(seed(), |sim| settled_path(sim, left, right));
            println!("{left:?} x {right:?}: {path}");
            if !expected(left, right)(path) {
                wrong.push(format!("{left:?} x {right:?}: {path}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn loss() -> f64 {
    std::env::var("PANDA_LOSS").ok().and_then(|loss| loss.parse().ok()).unwrap_or(0.0)
}

/// From the start of a node that has never been anywhere to the first operation at its editor, over round trips of 80 to 100 ms.
async fn first_operation(sim: Sim, left: Place, right: Place, loss: f64) -> Duration {
    let mut random = ChaCha8Rng::from_seed(sim.derive_seed("distance"));
    let link = LinkOptions::new().with_latency(Duration::from_micros(random.random_range(40_000..=50_000)));
    let link = link.with_loss(loss);
    let world = World::with_relays(&sim, link, 1);
    let alice = world.node(left, "alice").await;
    let document = alice.network.create().await.unwrap();
    document.publish("hello").await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let ticket = document.ticket().await.unwrap();
    let started = tokio::time::Instant::now();
    let bob = world.node(right, "bob").await;
    let there = bob.network.open(ticket).await.unwrap();
    let arrived = tokio::time::timeout(Duration::from_secs(20), places::payloads(&there, 1)).await;
    assert_eq!(arrived.expect("the operation arrives"), ["hello"]);
    started.elapsed()
}

/// The time that 95 % of the seeds stay within; prints it in round trips beside the fewest there can be.
fn first_operation_p95(left: Place, right: Place, fewest: f64) -> Duration {
    p95_under_loss(left, right, fewest, (loss(), 20))
}

/// The same with a share of packets lost, over so many seeds unless others are asked for.
fn p95_under_loss(left: Place, right: Place, fewest: f64, (loss, seeds): (f64, u64)) -> Duration {
    let time = |seed| sim::run(seed, |sim| first_operation(sim, left, right, loss));
    let mut times: Vec<_> = places::seeds(seeds).into_iter().map(time).collect();
    times.sort();
    let (p50, p95) = (times[times.len() / 2], times[(times.len() * 95 / 100).min(times.len() - 1)]);
    let trips = p50.as_secs_f64() / 0.1;
    let max = times[times.len() - 1];
    println!(
        "{left:?} x {right:?}: p50 {p50:?} ({trips:.1} round trips, at least {fewest}), p95 {p95:?}, max {max:?} of {}",
        times.len()
    );
    p95
}

#[test]
fn a_reachable_peer_is_there_in_two_round_trips() {
    // Handshake, then heads and operation.
    assert!(first_operation_p95(Place::Public, Place::PortRestricted, 2.0) < Duration::from_millis(500));
}

#[test]
fn a_peer_behind_a_nat_is_there_in_less_than_a_second_from_a_cold_start() {
    // TCP and TLS to the relay, to the peer and back through it, and then as above, each over two legs.
    assert!(first_operation_p95(Place::PortRestricted, Place::PortRestricted, 7.0) < Duration::from_millis(900));
}

#[test]
fn a_peer_that_only_turn_over_tls_reaches_is_there_in_a_second_and_a_half_from_a_cold_start() {
    // To the relay, an allocation with its challenge over TCP and TLS of its own, a channel, and then as above.
    assert!(first_operation_p95(Place::PortRestricted, Place::UdpBlocked, 11.0) < Duration::from_millis(1500));
    assert!(first_operation_p95(Place::UdpBlocked, Place::PortRestricted, 8.0) < Duration::from_millis(1500));
}

#[test]
fn a_peer_behind_a_nat_is_there_soon_although_one_packet_in_twenty_is_lost() {
    let p95 = p95_under_loss(Place::PortRestricted, Place::PortRestricted, 7.0, (0.05, 40));
    assert!(p95 < Duration::from_millis(2500), "{p95:?}");
}

#[test]
fn a_peer_that_only_turn_over_tls_reaches_is_there_soon_although_one_packet_in_twenty_is_lost() {
    let p95 = p95_under_loss(Place::PortRestricted, Place::UdpBlocked, 11.0, (0.05, 60));
    assert!(p95 < Duration::from_secs(4), "{p95:?}");
}

/// A peer of the document names somebody else's addresses as its own: in its record, and in what it offers at the relay.
#[test]
fn an_address_that_is_somebody_elses_gets_a_bounded_number_of_packets() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, Duration::from_millis(50));
        let alice = world.node(Place::PortRestricted, "alice").await;
        let victim = world.network.host([198, 51, 100, 250].into());
        let ears: Vec<_> = (1..=10).map(|port| victim.bind(port).unwrap()).collect();
        let document = alice.network.create().await.unwrap();
        let mallory = Identity::from_seed(&[66; 32]);
        let named = (1..=10).map(|port| (TransportKind::Quic, SocketAddr::new(victim.ip(), port))).collect();
        let record = PeerAddress::sign(&mallory, named, Vec::new(), 1).unwrap();
        alice.network.open(document.ticket().await.unwrap().with_peers([record])).await.unwrap();
        let mut heard = 0;
        for ear in ears {
            tokio::time::sleep(Duration::from_secs(360)).await;
            while tokio::time::timeout(Duration::ZERO, ear.recv_from()).await.is_ok() {
                heard += 1;
            }
        }
        let whiles = 3600 / UNPROVEN_PER_ADDRESS_WHILE.as_secs() as usize + 1;
        println!("{heard} packets in an hour, {} withheld", alice.network.socket_stats().withheld);
        assert!(heard > 0 && heard <= whiles * UNPROVEN_PER_ADDRESS as usize, "{heard} packets in an hour");
        assert!(alice.network.socket_stats().withheld > 0, "what is not sent is counted");
    });
}

#[test]
fn a_node_that_hides_its_addresses_sends_to_relays_only() {
    hides_from(Place::Public);
}

#[test]
fn a_node_that_hides_its_addresses_does_not_show_them_to_a_turn_server_of_its_peer() {
    hides_from(Place::UdpBlocked);
}

fn hides_from(place: Place) {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, Duration::from_millis(50));
        let alice = world.node(place, "alice").await;
        let document = alice.network.create().await.unwrap();
        document.publish("hello").await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let bob = world.hidden_node(Place::Public, "bob").await;
        let there = bob.network.open(document.ticket().await.unwrap()).await.unwrap();
        let arrived = tokio::time::timeout(Duration::from_secs(20), places::payloads(&there, 1)).await;
        assert_eq!(arrived.expect("the operation arrives"), ["hello"]);
        tokio::time::sleep(Duration::from_secs(120)).await;
        let (hidden, relay) = (bob.host.ip(), world.relays[0].0.ip());
        let sent = world.network.trace().into_iter().filter(|event| event.from.ip() == hidden);
        // What comes to a relayed address, its owner is told the source of.
        let asked = |to: SocketAddr| to.ip() == relay && [443, 3478].contains(&to.port());
        let elsewhere: Vec<_> = sent.filter(|event| !asked(event.to) && event.to.ip() != hidden).collect();
        assert!(elsewhere.is_empty(), "{elsewhere:?}");
        assert!(alice.network.connections()[0].0.remote_address.is_some_and(|address| address.ip() == relay));
    });
}

#[test]
fn who_sends_straight_to_a_node_that_hides_gets_no_answer() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, Duration::from_millis(50));
        let bob = world.hidden_node(Place::Public, "bob").await;
        let document = bob.network.create().await.unwrap();
        // Somebody guessed where Bob is.
        let (identity, there) = (Identity::from_seed(&sim.derive_seed("bob")), SocketAddr::new(bob.host.ip(), 4000));
        assert_eq!(identity.peer_id(), bob.network.node_id());
        let record = PeerAddress::sign(&identity, vec![(TransportKind::Quic, there)], Vec::new(), 1).unwrap();
        let ticket = document.ticket().await.unwrap();
        let ticket = DocumentTicket::new(ticket.document(), ticket.key().clone()).with_peers([record]);
        let no_relay = |options: PandaNetworkOptions| options.with_relays(Vec::<String>::new());
        let alice = world.node_with(world.host(Place::Public), "alice", no_relay).await;
        alice.network.open(ticket).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let (bob, alice) = (bob.host.ip(), alice.host.ip());
        let events = world.network.trace();
        assert!(events.iter().any(|event| event.from.ip() == alice && event.to.ip() == bob), "Bob is dialled");
        let answers: Vec<_> = events.iter().filter(|event| event.from.ip() == bob && event.to.ip() == alice).collect();
        assert!(answers.is_empty(), "{answers:?}");
    });
}

#[test]
fn a_new_connection_is_not_in_doubt_and_sends_nothing_twice() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, Duration::from_millis(50));
        let nodes = [world.node(Place::Public, "alice").await, world.node(Place::Public, "bob").await];
        tokio::time::sleep(Duration::from_secs(5)).await;
        let document = nodes[0].network.create().await.unwrap();
        document.publish("hello").await.unwrap();
        let there = nodes[1].network.open(document.ticket().await.unwrap()).await.unwrap();
        assert_eq!(places::payloads(&there, 1).await, ["hello"]);
        for number in 1..50 {
            document.publish(format!("{number}")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(places::payloads(&there, 50).await.len(), 50);
        for node in &nodes {
            assert_eq!(node.network.socket_stats().repeated, 0);
        }
    });
}

/// Behind a symmetric NAT another relay sees the node at another address.
#[test]
fn one_more_address_of_a_node_puts_no_connection_in_doubt() {
    sim::run(seed(), |sim| async move {
        let world = World::with_relays(&sim, LinkOptions::new().with_latency(Duration::from_millis(50)), 2);
        let relay = |number: usize| world.relays[number].1.address().to_string();
        let at = |relay: String| |options: PandaNetworkOptions| options.with_relays([relay]);
        let alice = world.node_with(world.host(Place::Symmetric), "alice", at(relay(0))).await;
        let bob = world.node_with(world.host(Place::FullCone), "bob", at(relay(0))).await;
        let carol = world.node_with(world.host(Place::Public), "carol", at(relay(1))).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let document = alice.network.create().await.unwrap();
        document.publish("hello").await.unwrap();
        let there = bob.network.open(document.ticket().await.unwrap()).await.unwrap();
        assert_eq!(places::payloads(&there, 1).await, ["hello"]);
        tokio::time::sleep(Duration::from_secs(20)).await;
        let elsewhere = carol.network.create().await.unwrap();
        let told = document.ticket().await.unwrap().peers()[0].addresses().len();
        let repeated = alice.network.socket_stats().repeated;
        let _opened = alice.network.open(elsewhere.ticket().await.unwrap()).await.unwrap();
        for number in 1..250 {
            document.publish(format!("{number}")).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let now = document.ticket().await.unwrap().peers()[0].addresses().len();
        assert!(now > told, "{told} addresses, then {now}");
        assert_eq!(places::payloads(&there, 250).await.len(), 250);
        assert_eq!(alice.network.socket_stats().repeated, repeated);
    });
}

#[test]
fn a_peer_that_refuses_through_a_relay_is_dialled_again_no_faster_than_backoff_says() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, Duration::from_millis(5));
        let full =
            |options: PandaNetworkOptions| options.with_quic(QuicTransportOptions::new().with_max_connections(0));
        let alice = world.node_with(world.host(Place::Symmetric), "alice", full).await;
        let bob = world.hidden_node(Place::Symmetric, "bob").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let document = alice.network.create().await.unwrap();
        let started = world.network.now();
        let _there = bob.network.open(document.ticket().await.unwrap()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let relay = world.relays[0].0.ip();
        let to_relay = |event: &&TraceEvent| event.sent >= started && event.to.ip() == relay && event.size >= 1200;
        let dials =
            world.network.trace().iter().filter(to_relay).filter(|event| event.protocol == Protocol::Udp).count();
        println!("{dials} first packets in ten seconds");
        // After 0, 0.5, 1.5, 3.5 and 7.5 seconds, give or take the jitter; each may be sent a second time.
        assert!((3..=14).contains(&dials), "{dials} first packets in ten seconds");
        assert!(bob.network.connections().is_empty());
    });
}

#[test]
fn who_comes_back_online_is_connected_again_at_once() {
    for (left, right) in [(Place::Symmetric, Place::PortRestricted), (Place::PortRestricted, Place::PortRestricted)] {
        let took = sim::run(seed(), |sim| async move {
            let world = World::new(&sim, Duration::from_millis(50));
            let alice = world.node(left, "alice").await;
            let bob = world.node(right, "bob").await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            let document = alice.network.create().await.unwrap();
            document.publish("first").await.unwrap();
            let there = bob.network.open(document.ticket().await.unwrap()).await.unwrap();
            assert_eq!(places::payloads(&there, 1).await, ["first"]);
            tokio::time::sleep(Duration::from_secs(10)).await;
            bob.network.set_connected(false).await;
            document.publish("second").await.unwrap();
            tokio::time::sleep(Duration::from_secs(10)).await;
            let started = tokio::time::Instant::now();
            bob.network.set_connected(true).await;
            assert_eq!(places::payloads(&there, 2).await, ["first", "second"]);
            started.elapsed()
        });
        println!("{left:?} x {right:?}: back after {took:?}");
        assert!(took < Duration::from_secs(1), "{left:?} x {right:?}: {took:?}");
    }
}
