//! Live connections while their paths die: relays, networks and routers go, the stream of operations goes on without a gap.
//!
//! On virtual time. A failure prints its seed; `PANDA_SEED=<seed>` runs only that one, `PANDA_SEEDS=<count>` as many as wanted
//! instead of 20. The figures are printed with `--nocapture`.
#![cfg(all(feature = "sim", feature = "relay"))]

#[path = "support/places.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod places;

use std::time::Duration;

use panda_network::sim::{self, LinkOptions, NatOptions, Sim};
use panda_network::transport::PathKind;
use panda_network::{DocumentEvent, StartFrom};
use places::{Node, Place, World, seeds};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep, timeout};

/// Seeds that CI runs.
const SEEDS: u64 = 20;
/// Between two operations.
const INTERVAL: Duration = Duration::from_millis(20);

/// What happens to a connection.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The relay that forwards it loses its power; another one is there.
    RelayDies,
    /// Bob takes his laptop from one network to another.
    InterfaceSwitch,
    /// Bob has no network for five seconds.
    Outage,
    /// Bob's router forgets all mappings and gets another address.
    RouterReboot,
}

/// What was seen of it.
struct Seen {
    /// Longest time without an operation from the fault on; for an outage from its end on.
    gap: Duration,
    before: PathKind,
    after: PathKind,
}

/// An editor writes all the time, something happens, and the other one gets everything in order.
async fn live_through(sim: Sim, fault: Fault) -> Seen {
    let mut random = ChaCha8Rng::from_seed(sim.derive_seed("fault"));
    let link = LinkOptions::new()
        .with_latency(Duration::from_millis(random.random_range(5..60)))
        .with_jitter(Duration::from_millis(random.random_range(0..10)));
    let world = World::with_relays(&sim, link, 2);
    let (left, right) = match fault {
        Fault::RelayDies => (Place::Symmetric, Place::PortRestricted),
        Fault::InterfaceSwitch | Fault::Outage => (Place::PortRestricted, Place::PortRestricted),
        Fault::RouterReboot => (Place::PortRestricted, Place::Public),
    };
    let alice = world.node(left, "alice").await;
    let nat = world.network.nat([198, 51, 100, 200].into(), NatOptions::port_restricted()).unwrap();
    let at_home = nat.host([192, 168, 1, 2].into());
    let bob = match right {
        Place::PortRestricted | Place::Public => world.node_on(at_home, "bob").await,
        other => world.node(other, "bob").await,
    };
    let document = alice.network.create().await.unwrap();
    let there = bob.network.open(document.ticket().await.unwrap()).await.unwrap();
    let mut events = there.subscribe(StartFrom::Start).await.unwrap();
    document.publish("first").await.unwrap().delivered_to(1).await;
    // Time to find the best path and a standby.
    sleep(Duration::from_millis(random.random_range(20_000..40_000))).await;
    let before = path(&alice);
    let writer = tokio::spawn(async move {
        for number in 0.. {
            if document.publish(format!("{number}")).await.is_err() {
                break;
            }
            sleep(INTERVAL).await;
        }
    });
    sleep(Duration::from_secs(3)).await;
    let dialled = (alice.network.transport_stats(), bob.network.transport_stats());
    match fault {
        Fault::RelayDies => {
            let used = forwarding_relay(&world, &alice);
            world.relays[used].0.crash();
        }
        Fault::InterfaceSwitch => {
            let mobile = world.network.nat([198, 51, 100, 201].into(), NatOptions::symmetric()).unwrap();
            bob.host.move_to(mobile.inside(), [10, 0, 0, 7].into()).unwrap();
        }
        Fault::Outage => {
            bob.host.isolate();
            sleep(Duration::from_secs(5)).await;
            bob.host.reconnect();
        }
        Fault::RouterReboot => nat.reboot_with_address([198, 51, 100, 202].into()).unwrap(),
    }
    let (mut last, mut gap, started) = (Instant::now(), Duration::ZERO, Instant::now());
    let mut expected = None;
    // Long enough for what a switch leaves behind, like a dead session with a relay, to end as well.
    let observed = Duration::from_secs(if matches!(fault, Fault::InterfaceSwitch) { 120 } else { 20 });
    while started.elapsed() < observed {
        let event = timeout(Duration::from_secs(40), events.next()).await.expect("operations flow again");
        let DocumentEvent::Operation(stored) = event.unwrap().unwrap() else { continue };
        let number = stored.operation.seq_num();
        assert_eq!(number, expected.unwrap_or(number), "in order, each once");
        expected = Some(number + 1);
        gap = gap.max(last.elapsed());
        last = Instant::now();
    }
    writer.abort();
    let now = (alice.network.transport_stats(), bob.network.transport_stats());
    let connections = |stats: &panda_network::transport::TransportStats| stats.dialled + stats.accepted;
    assert_eq!(connections(&dialled.0), connections(&now.0), "one connection lives through it");
    Seen { gap, before, after: path(&alice) }
}

fn path(node: &Node) -> PathKind {
    node.network.connections()[0].0.path
}

fn forwarding_relay(world: &World, node: &Node) -> usize {
    let remote = node.network.connections()[0].0.remote_address.unwrap();
    world.relays.iter().position(|(host, _)| host.ip() == remote.ip()).expect("forwarded by a relay")
}

/// Runs all seeds, prints the figures, and returns the gap that 95 % stay within.
fn p95(fault: Fault) -> Duration {
    let mut gaps: Vec<_> = seeds(SEEDS)
        .into_iter()
        .map(|seed| {
            let seen = sim::run(seed, |sim| live_through(sim, fault));
            println!("{fault:?} seed {seed}: {:?}, {} -> {}", seen.gap, seen.before, seen.after);
            seen.gap
        })
        .collect();
    gaps.sort();
    let p95 = gaps[(gaps.len() * 95 / 100).min(gaps.len() - 1)];
    println!("{fault:?}: p50 {:?}, p95 {p95:?}, max {:?}", gaps[gaps.len() / 2], gaps[gaps.len() - 1]);
    p95
}

#[test]
fn when_the_relay_dies_operations_flow_by_another_within_three_seconds() {
    assert!(p95(Fault::RelayDies) <= Duration::from_secs(3));
}

#[test]
fn when_the_interface_changes_operations_flow_again_within_two_seconds() {
    assert!(p95(Fault::InterfaceSwitch) <= Duration::from_secs(2));
}

#[test]
fn after_an_outage_of_five_seconds_operations_flow_again_within_two_seconds() {
    assert!(p95(Fault::Outage) <= Duration::from_secs(2));
}

#[test]
fn when_the_router_forgets_its_mappings_operations_flow_again_within_two_seconds() {
    assert!(p95(Fault::RouterReboot) <= Duration::from_secs(2));
}
