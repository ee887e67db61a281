//! Nodes that talk over TURN, on virtual time: when servers die, when a laptop is carried into an office without UDP and out
//! again, and after hours. `tests/nat_traversal.rs` has every pair of places. `PANDA_SEED=<seed>` changes the seed.
#![cfg(all(feature = "sim", feature = "relay"))]

#[path = "support/places.rs"]
#[allow(dead_code, reason = "every test file takes what it needs of it")]
mod places;

use std::net::IpAddr;
use std::time::Duration;

use panda_network::sim::{self, FirewallOptions, LinkOptions, NatOptions, Sim};
use panda_network::transport::PathKind;
use panda_network::{Document, DocumentEvent, StartFrom};
use places::{Node, Place, World, payloads, seeds};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{sleep, timeout};

fn seed() -> u64 {
    std::env::var("PANDA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn path(node: &Node) -> PathKind {
    node.network.connections()[0].0.path
}

/// Where the other end's datagrams are sent to.
fn relayed_at(node: &Node) -> IpAddr {
    node.network.connections()[0].0.remote_address.unwrap().ip()
}

/// A document that both have open, with one operation that both have seen.
async fn shared_document(alice: &Node, bob: &Node) -> (Document, Document) {
    let here = alice.network.create().await.unwrap();
    here.publish("hello").await.unwrap();
    let there = bob.network.open(here.ticket().await.unwrap()).await.unwrap();
    assert_eq!(timeout(seconds(20), payloads(&there, 1)).await.expect("it arrives"), ["hello"]);
    sleep(seconds(10)).await;
    (here, there)
}

/// Publishes at one end and waits until the other end has it.
async fn passes(here: &Document, there: &Document, what: &str, already: usize) {
    let started = tokio::time::Instant::now();
    here.publish(what.to_owned()).await.unwrap();
    let arrived = timeout(seconds(60), payloads(there, already + 1)).await;
    assert_eq!(arrived.expect("it arrives").last().unwrap(), what);
    println!("{what}: arrived after {:?}", started.elapsed());
}

async fn servers_die(sim: Sim, right: Place) {
    let world = World::with_relays(&sim, LinkOptions::new().with_latency(Duration::from_millis(50)), 2);
    let alice = world.node(Place::UdpBlocked, "alice").await;
    let bob = world.node(right, "bob").await;
    sleep(seconds(5)).await;
    let (here, there) = shared_document(&alice, &bob).await;
    assert_eq!(path(&alice), PathKind::TurnTls);
    let dialled = bob.network.transport_stats().dialled + alice.network.transport_stats().dialled;
    let in_use = relayed_at(&bob);
    let (first, second) = (&world.relays[0].0, &world.relays[1].0);
    let (dies, survives) = if in_use == second.ip() { (second, first.ip()) } else { (first, second.ip()) };
    dies.crash();
    passes(&there, &here, "when the server died", 1).await;
    passes(&here, &there, "and back", 2).await;
    assert_eq!((path(&alice), relayed_at(&bob)), (PathKind::TurnTls, survives));
    let now = bob.network.transport_stats().dialled + alice.network.transport_stats().dialled;
    assert_eq!(now, dialled, "the connection lived on");
}

#[test]
fn when_a_turn_server_dies_the_connection_goes_on_at_the_other() {
    for right in [Place::Public, Place::PortRestricted, Place::Symmetric, Place::UdpBlocked] {
        println!("UdpBlocked x {right:?}");
        sim::run(seed(), move |sim| servers_die(sim, right));
    }
}

#[test]
fn an_interface_that_comes_up_beside_the_one_in_use_ends_no_allocation() {
    // A container's, which means nothing to others, and one that may lead somewhere.
    for ip in ["fe80::7", "2001:db8:77::7"] {
        sim::run(seed(), move |sim| async move {
            let world = World::new(&sim, Duration::from_millis(50));
            let alice = world.node(Place::UdpBlocked, "alice").await;
            let bob = world.node(Place::PortRestricted, "bob").await;
            sleep(seconds(5)).await;
            let (here, there) = shared_document(&alice, &bob).await;
            let remote = || bob.network.connections()[0].0.remote_address;
            let before = remote();
            alice.host.add_address(&world.network.internet(), ip.parse().unwrap()).unwrap();
            sleep(seconds(10)).await;
            passes(&here, &there, "beside another interface", 1).await;
            assert_eq!((path(&alice), remote()), (PathKind::TurnTls, before), "{ip}");
            assert_eq!(world.relays[0].1.snapshot().allocations, 1);
        });
    }
}

#[test]
fn a_laptop_is_carried_into_an_office_without_udp_and_out_again() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, Duration::from_millis(50));
        let alice = world.node(Place::PortRestricted, "alice").await;
        let bob = world.node(Place::PortRestricted, "bob").await;
        sleep(seconds(5)).await;
        let (here, there) = shared_document(&alice, &bob).await;
        assert_eq!(path(&alice), PathKind::Punched);
        let office = world.network.firewall(FirewallOptions::tcp_443_only());
        let office = office.nat([198, 51, 100, 201].into(), NatOptions::port_restricted()).unwrap();
        alice.host.move_to(office.inside(), [192, 168, 7, 7].into()).unwrap();
        passes(&here, &there, "from the office", 1).await;
        passes(&there, &here, "to the office", 2).await;
        assert_eq!(path(&alice), PathKind::TurnTls);
        let mobile = world.network.nat([198, 51, 100, 202].into(), NatOptions::port_restricted()).unwrap();
        alice.host.move_to(mobile.inside(), [192, 168, 8, 8].into()).unwrap();
        passes(&there, &here, "on the way home", 3).await;
        sleep(seconds(20)).await;
        passes(&here, &there, "at home", 4).await;
        assert_eq!(path(&alice), PathKind::Punched);
    });
}

/// How long it takes until an operation gets through from an office without UDP, from the moment of the move.
async fn carried_into_the_office(sim: Sim) -> Duration {
    let mut random = ChaCha8Rng::from_seed(sim.derive_seed("carried"));
    let world = World::new(&sim, Duration::from_millis(random.random_range(5..=50)));
    let alice = world.node(Place::PortRestricted, "alice").await;
    let bob = world.node(Place::PortRestricted, "bob").await;
    sleep(seconds(5)).await;
    let (here, there) = shared_document(&alice, &bob).await;
    sleep(Duration::from_millis(random.random_range(0..2000))).await;
    let office = world.network.firewall(FirewallOptions::tcp_443_only());
    let office = office.nat([198, 51, 100, 201].into(), NatOptions::port_restricted()).unwrap();
    alice.host.move_to(office.inside(), [192, 168, 7, 7].into()).unwrap();
    let started = tokio::time::Instant::now();
    here.publish("from the office").await.unwrap();
    timeout(seconds(60), payloads(&there, 2)).await.expect("it arrives");
    started.elapsed()
}

#[test]
fn data_flows_again_within_three_seconds_after_a_move_into_an_office_without_udp() {
    let mut times: Vec<_> = seeds(20).into_iter().map(|seed| sim::run(seed, carried_into_the_office)).collect();
    times.sort();
    let p95 = times[(times.len() * 95 / 100).min(times.len() - 1)];
    println!("p50 {:?}, p95 {p95:?}, max {:?}", times[times.len() / 2], times[times.len() - 1]);
    assert!(p95 <= Duration::from_millis(2750), "{p95:?}");
}

#[test]
fn a_node_without_udp_is_reached_after_hours() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, Duration::from_millis(50));
        let alice = world.node(Place::UdpBlocked, "alice").await;
        sleep(seconds(3 * 3600)).await;
        assert_eq!(world.relays[0].1.snapshot().allocations, 1, "one allocation, kept alive");
        let bob = world.node(Place::Symmetric, "bob").await;
        sleep(seconds(5)).await;
        let (here, there) = shared_document(&alice, &bob).await;
        sleep(seconds(3 * 3600)).await;
        passes(&here, &there, "hours later", 1).await;
        assert_eq!(path(&alice), PathKind::TurnTls);
    });
}

#[test]
fn a_connection_does_not_notice_that_the_credentials_of_its_allocation_expired() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, Duration::from_millis(50));
        let alice = world.node(Place::UdpBlocked, "alice").await;
        let bob = world.node(Place::PortRestricted, "bob").await;
        sleep(seconds(5)).await;
        let (here, there) = shared_document(&alice, &bob).await;
        let dialled = || bob.network.transport_stats().dialled + alice.network.transport_stats().dialled;
        let remote = || bob.network.connections()[0].0.remote_address;
        let before = (dialled(), remote());
        // Credentials last an hour, an allocation and a channel ten minutes.
        let (every, count) = (Duration::from_millis(700), 4000 * 10 / 7);
        let publishing = async {
            let mut due = tokio::time::interval(every);
            for number in 0..count {
                due.tick().await;
                here.publish(number.to_string()).await.unwrap();
            }
        };
        let receiving = async {
            let mut events = there.subscribe(StartFrom::Start).await.unwrap();
            let (mut longest, mut last, mut payloads) = (Duration::ZERO, None, Vec::new());
            while payloads.len() <= count {
                let DocumentEvent::Operation(stored) = events.next().await.unwrap().unwrap() else { continue };
                payloads.push(String::from_utf8(stored.operation.payload().to_vec()).unwrap());
                let now = tokio::time::Instant::now();
                longest = last.replace(now).map_or(longest, |last| longest.max(now - last));
            }
            (longest, payloads)
        };
        let ((), (longest, payloads)) = tokio::join!(publishing, receiving);
        println!("the longest gap between two of {count} operations was {longest:?}");
        assert!(payloads[1..].iter().enumerate().all(|(number, payload)| *payload == number.to_string()));
        assert!(longest <= seconds(1), "{longest:?}");
        assert_eq!((dialled(), remote()), before, "one connection, by one relayed address");
        assert_eq!((path(&alice), world.relays[0].1.snapshot().allocations), (PathKind::TurnTls, 1));
    });
}
