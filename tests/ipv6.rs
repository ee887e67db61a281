//! Nodes with IPv6: beside IPv4 or alone, behind firewalls that let nothing in unasked, with a relay of both families. On
//! virtual time, with our own relay. `PANDA_SEED=<seed>` changes the seed.
#![cfg(all(feature = "sim", feature = "relay"))]

#[path = "support/places.rs"]
#[allow(dead_code, reason = "every test file takes what it needs of it")]
mod places;

use std::time::Duration;

use panda_network::net::HostNetwork;
use panda_network::sim::{self, FirewallOptions, SimHost};
use panda_network::transport::{ConnectionInfo, PathKind};
use panda_network::transports::relay_client::RelayState;
use places::{Node, Place, World, payloads};
use tokio::time::{Instant, sleep, timeout};

fn seed() -> u64 {
    std::env::var("PANDA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// What a home router does for IPv6 (RFC 6092).
fn home() -> FirewallOptions {
    FirewallOptions::inbound_blocked()
}

/// A strict office.
fn office() -> FirewallOptions {
    FirewallOptions::tcp_443_only()
}

/// What a node knows of its one connection.
fn connection(node: &Node) -> ConnectionInfo {
    node.network.connections().remove(0).0
}

/// Connects two hosts and returns how each sees its connection once it had time to look for the best path.
fn settled(hosts: impl Fn(&World) -> [SimHost; 2] + 'static) -> [ConnectionInfo; 2] {
    sim::run(seed(), |sim| async move {
        let world = World::dual_stack(&sim, Duration::from_millis(50));
        let [left, right] = hosts(&world);
        let (alice, bob) = (world.node_on(left, "alice").await, world.node_on(right, "bob").await);
        sleep(Duration::from_secs(5)).await;
        let document = alice.network.create().await.unwrap();
        let receipt = document.publish("hello").await.unwrap();
        let there = bob.network.open(document.ticket().await.unwrap()).await.unwrap();
        let arrived = timeout(Duration::from_secs(20), payloads(&there, 1)).await;
        assert_eq!(arrived.expect("the operation arrives"), ["hello"]);
        receipt.delivered_to(1).await;
        sleep(Duration::from_secs(10)).await;
        [connection(&alice), connection(&bob)]
    })
}

/// The kind of path at each end, and whether its datagrams go by IPv6.
fn paths(connections: &[ConnectionInfo; 2]) -> [(PathKind, bool); 2] {
    connections.each_ref().map(|info| (info.path, info.remote_address.unwrap().is_ipv6()))
}

#[test]
fn what_ipv4_nats_forbid_goes_over_ipv6_through_both_firewalls() {
    for (left, right) in [(Place::Symmetric, Place::Symmetric), (Place::Symmetric, Place::PortRestricted)] {
        let found = settled(move |world| [left, right].map(|place| world.dual_stack_host(place, home())));
        assert_eq!(paths(&found), [(PathKind::Direct, true); 2], "{left:?} x {right:?}");
    }
}

#[test]
fn a_node_that_has_only_ipv6_reaches_one_that_has_both() {
    let found = settled(|world| [world.six_only_host(home()), world.dual_stack_host(Place::Symmetric, home())]);
    assert_eq!(paths(&found), [(PathKind::Direct, true); 2]);
}

#[test]
fn where_one_has_only_ipv6_and_the_other_only_ipv4_a_relay_of_both_forwards() {
    for place in [Place::Public, Place::PortRestricted, Place::Symmetric] {
        let found = settled(move |world| [world.six_only_host(home()), world.host(place)]);
        assert_eq!(paths(&found), [(PathKind::Forwarded, true), (PathKind::Forwarded, false)], "{place:?}");
    }
}

#[test]
fn where_udp_is_blocked_too_a_relayed_address_of_the_other_family_is_lent() {
    // The blocked end speaks TLS; the other one sends to an address of its own family.
    let found = settled(|world| [world.six_only_host(home()), world.host(Place::UdpBlocked)]);
    assert_eq!(paths(&found), [(PathKind::TurnUdp, true), (PathKind::TurnTls, true)]);
    let found = settled(|world| [world.six_only_host(office()), world.host(Place::PortRestricted)]);
    assert_eq!(paths(&found), [(PathKind::TurnTls, false), (PathKind::TurnUdp, false)]);
    let found = settled(|world| [world.six_only_host(office()), world.host(Place::UdpBlocked)]);
    assert_eq!(found.map(|info| info.path), [PathKind::TurnTls; 2]);
}

#[test]
fn firewalls_that_block_ipv6_leave_what_ipv4_allows() {
    let found = settled(|world| [Place::PortRestricted; 2].map(|place| world.dual_stack_host(place, office())));
    assert_eq!(paths(&found), [(PathKind::Punched, false); 2]);
}

#[test]
fn a_network_whose_ipv6_swallows_everything_delays_a_relay_by_a_quarter_of_a_second() {
    let took = sim::run(seed(), |sim| async move {
        let world = World::dual_stack(&sim, Duration::from_millis(50));
        let host = world.dual_stack_host(Place::Public, home());
        let six = |host: &SimHost| host.interface_addresses().into_iter().find(|ip| ip.is_ipv6()).unwrap();
        world.network.partition(&[six(&host)], &[six(&world.relays[0].0)]);
        let started = Instant::now();
        let alice = world.node_on(host, "alice").await;
        while !alice.network.relays().iter().any(|(_, state)| matches!(state, RelayState::Up(_))) {
            sleep(Duration::from_millis(5)).await;
        }
        started.elapsed()
    });
    println!("up after {took:?}");
    assert!(took <= Duration::from_millis(250 + 4 * 100), "{took:?}");
}
