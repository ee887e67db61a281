//! A relay in the simulation: its real code over simulated UDP and TCP, on virtual time, the same in every run.

#![cfg(all(feature = "relay", feature = "sim"))]

#[allow(dead_code, reason = "shared with tests/relay.rs")]
#[path = "relay/node.rs"]
mod node;

use std::sync::Arc;
use std::time::Duration;

use node::{FlowEnd, Node};
use panda_network::clock::Clock;
use panda_network::identity::Identity;
use panda_network::relay::{Relay, RelayOptions};
use panda_network::rendezvous::wire::{NodeFrame, RelayFrame};
use panda_network::sim::{self, LinkOptions, Sim, SimNetwork};
use panda_network::transports::relay_client::{RelayClient, RelayState};
use panda_network::transports::tls::TlsIdentity;
use tokio::time::{Instant, timeout};

const RELAY: [u8; 4] = [198, 51, 100, 1];
const ALICE: [u8; 4] = [203, 0, 113, 1];
const BOB: [u8; 4] = [203, 0, 113, 2];

/// A relay, Alice 10 ms and Bob 60 ms away from it.
fn network(sim: &Sim) -> (SimNetwork, Relay) {
    let network = SimNetwork::new(sim.options());
    let link = |ms| LinkOptions::new().with_latency(Duration::from_millis(ms));
    network.set_link_both_ways(RELAY.into(), ALICE.into(), link(10));
    network.set_link_both_ways(RELAY.into(), BOB.into(), link(60));
    let options = RelayOptions::new(Identity::from_seed(&[9; 32]))
        .with_listen((RELAY, 443).into())
        .with_datagrams((RELAY, 3478).into())
        .with_seed(sim.derive_seed("relay"))
        .with_clock(Clock::new(|| 1_700_000_000_000_000));
    let relay = Relay::start(Arc::new(network.host(RELAY.into())), options).unwrap();
    (network, relay)
}

/// Two nodes meet, start a punch together, and send through the relay. Returns the trace's digest.
fn meeting(seed: u64) -> u64 {
    sim::run(seed, |sim| async move {
        let (network, relay) = network(&sim);
        let host = |ip: [u8; 4]| Arc::new(network.host(ip.into()));
        let mut alice = Node::connect_from(host(ALICE), relay.address(), 1).await.unwrap();
        let mut bob = Node::connect_from(host(BOB), relay.address(), 2).await.unwrap();
        // They answer pings while they listen, so that the relay knows how far away they are.
        let quiet = Duration::from_secs(3);
        let (nothing, neither) = tokio::join!(timeout(quiet, alice.hear()), timeout(quiet, bob.hear()));
        assert!(nothing.is_err() && neither.is_err());

        alice.say(NodeFrame::Punch { to: bob.peer_id(), session: 7 }).await;
        let heard = |frame, at: Instant| match frame {
            RelayFrame::Punch { after_ms, .. } => at + Duration::from_millis(after_ms.into()),
            other => panic!("{other:?} instead of a punch"),
        };
        let at_alice = async { (alice.hear().await.unwrap(), Instant::now()) };
        let at_bob = async { (bob.hear().await.unwrap(), Instant::now()) };
        let (at_alice, at_bob) = tokio::join!(at_alice, at_bob);
        let (at_alice, at_bob) = (heard(at_alice.0, at_alice.1), heard(at_bob.0, at_bob.1));
        let apart = at_alice.max(at_bob) - at_alice.min(at_bob);
        assert!(apart <= Duration::from_millis(2), "they start {apart:?} apart");

        alice.say(NodeFrame::Forward { to: bob.peer_id() }).await;
        let from_alice = FlowEnd::of(&mut alice, bob.peer_id()).await;
        let from_bob = FlowEnd::of(&mut bob, alice.peer_id()).await;
        from_bob.send(b"");
        from_alice.send(b"hello");
        assert_eq!(from_bob.receive().await, b"hello");
        from_bob.send(b"hello too");
        assert_eq!(from_alice.receive().await, b"hello too");

        // Nobody says anything for a minute: the flow ends.
        let RelayFrame::FlowClosed { flow } = alice.hear().await.unwrap() else { panic!("the flow goes on") };
        assert_eq!(flow, from_alice.flow);
        relay.shutdown(Duration::from_secs(5)).await;
        Ok::<_, sim::SimError>(network.trace_digest())
    })
    .unwrap()
}

#[test]
fn two_nodes_meet_through_a_simulated_relay() {
    meeting(1);
}

#[test]
fn a_run_with_the_same_seed_is_the_same() {
    assert_eq!(meeting(2), meeting(2));
}

#[test]
fn a_node_that_vanished_is_not_here_any_more() {
    sim::run(3, |sim| async move {
        let (network, relay) = network(&sim);
        let alice_host = Arc::new(network.host(ALICE.into()));
        let mut alice = Node::connect_from(alice_host, relay.address(), 1).await.unwrap();
        let bob_host = network.host(BOB.into());
        let bob = Node::connect_from(Arc::new(bob_host.clone()), relay.address(), 2).await.unwrap();
        bob_host.isolate();
        let gone = Instant::now();
        while relay.snapshot().sessions > 1 {
            timeout(Duration::from_secs(5), alice.hear()).await.unwrap_err();
        }
        assert!(gone.elapsed() < Duration::from_secs(90), "missed after {:?}", gone.elapsed());
        alice.say(NodeFrame::Forward { to: bob.peer_id() }).await;
        assert_eq!(alice.hear().await.unwrap(), RelayFrame::NotHere { to: bob.peer_id() });
        Ok::<_, sim::SimError>(())
    })
    .unwrap();
}

#[test]
fn a_change_of_network_is_heard_while_a_session_is_being_made() {
    sim::run(1, |sim| async move {
        let (network, relay) = network(&sim);
        let laptop = network.host(BOB.into());
        network.isolate(BOB.into());
        let tls = Arc::new(TlsIdentity::new(&Identity::from_seed(&[2; 32])).unwrap());
        let (heard, _to_hear) = tokio::sync::mpsc::channel(16);
        let client = RelayClient::start(Arc::new(laptop.clone()), tls, relay.address().clone(), heard, || 0.5);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(matches!(&*client.state().borrow(), RelayState::Connecting));
        laptop.reconnect();
        laptop.move_to(&network.internet(), ALICE.into()).unwrap();
        let moved = Instant::now();
        client.on_network_change();
        let up = client.state().wait_for(|state| matches!(state, RelayState::Up(_))).await.is_ok();
        assert!(up && moved.elapsed() <= Duration::from_millis(4 * 20), "{:?}", moved.elapsed());
    });
}
