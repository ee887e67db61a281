//! Whole nodes that ask their router for a port, in simulated homes: when they do, whom they tell, and how it ends. On virtual
//! time; the router is a host at the router's address that speaks PCP.
#![cfg(all(feature = "sim", feature = "relay"))]

#[allow(dead_code, reason = "shared with tests/nat_traversal.rs")]
#[path = "support/places.rs"]
mod places;

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use panda_network::identity::Identity;
use panda_network::net::HostNetwork;
use panda_network::rendezvous::signal::CandidateKind;
use panda_network::sim::{self, NatOptions, Sim, SimHost};
use panda_network::transport::Transport;
use panda_network::transports::quic::{QuicTransport, QuicTransportOptions};
use places::World;
use tokio::time::sleep;

const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SECOND: Duration = Duration::from_secs(1);

/// Lifetimes that a router was asked for, in seconds.
type Asked = Arc<Mutex<Vec<u32>>>;

/// Grants port 7000 of `external` to everybody (RFC 6887, section 11).
async fn speak_pcp(host: SimHost, external: Ipv4Addr, asked: Asked) {
    let socket = host.bind_udp((Ipv4Addr::UNSPECIFIED, 5351).into()).unwrap();
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = poll_fn(|context| socket.poll_receive(context, &mut buffer)).await.unwrap();
        if length == 60 && buffer[..2] == [2, 1] {
            asked.lock().unwrap().push(u32::from_be_bytes(buffer[4..8].try_into().unwrap()));
            buffer[1] |= 0x80;
            buffer[42..44].copy_from_slice(&7000_u16.to_be_bytes());
            buffer[56..60].copy_from_slice(&external.octets());
            socket.try_send(from, &buffer[..length]).unwrap();
        }
    }
}

/// A transport at home, behind a symmetric NAT whose router says that it has this address, and what the router was asked.
async fn at_home(
    sim: &Sim,
    external: Ipv4Addr,
    options: impl FnOnce(QuicTransportOptions) -> QuicTransportOptions,
) -> (World, QuicTransport, Asked) {
    let world = World::new(sim, Duration::from_millis(20));
    let nat = world.network.nat(PUBLIC.into(), NatOptions::symmetric()).unwrap();
    let asked = Asked::default();
    tokio::spawn(speak_pcp(nat.host(ROUTER.into()), external, asked.clone()));
    let host = nat.host([192, 168, 1, 2].into()).with_router(ROUTER);
    let transport = QuicTransportOptions::new()
        .with_socket(host.bind(4000).unwrap())
        .with_network(Arc::new(host))
        .with_relays([world.relays[0].1.address().clone()])
        .with_rng_seed(sim.derive_seed("transport"));
    let identity = Identity::from_seed(&sim.derive_seed("identity"));
    let transport = QuicTransport::start(&identity, options(transport)).unwrap();
    sleep(SECOND * 5).await;
    (world, transport, asked)
}

fn mapped(transport: &QuicTransport) -> Vec<SocketAddr> {
    let candidates = transport.candidates();
    let candidates = candidates.borrow();
    let mapped = candidates.iter().filter(|candidate| candidate.kind == CandidateKind::Mapped);
    mapped.map(|candidate| candidate.address).collect()
}

fn taken(asked: &Asked) -> Vec<u32> {
    std::mem::take(&mut *asked.lock().unwrap())
}

#[test]
fn a_port_of_the_router_becomes_a_candidate_and_is_given_back_at_shutdown() {
    sim::run(1, |sim| async move {
        let (_world, transport, asked) = at_home(&sim, PUBLIC, |options| options).await;
        assert_eq!(mapped(&transport), [SocketAddr::from((PUBLIC, 7000))]);
        assert_eq!(taken(&asked), [3600]);
        transport.shutdown(SECOND * 5).await;
        sleep(SECOND).await;
        assert_eq!(taken(&asked), [0]);
        assert!(mapped(&transport).is_empty());
    });
}

#[test]
fn the_port_is_asked_for_again_when_the_network_changes_but_not_when_the_relay_is_gone() {
    sim::run(1, |sim| async move {
        let (world, transport, asked) = at_home(&sim, PUBLIC, |options| options).await;
        assert_eq!(taken(&asked), [3600]);
        transport.on_network_change();
        sleep(SECOND * 5).await;
        assert_eq!(taken(&asked), [3600]);
        assert_eq!(mapped(&transport), [SocketAddr::from((PUBLIC, 7000))]);
        world.relays[0].0.isolate();
        sleep(SECOND * 300).await;
        assert_eq!(taken(&asked), [] as [u32; 0]);
        assert_eq!(mapped(&transport), [SocketAddr::from((PUBLIC, 7000))]);
    });
}

#[test]
fn a_router_that_is_behind_a_nat_itself_gives_no_candidate() {
    sim::run(1, |sim| async move {
        let (_world, transport, asked) = at_home(&sim, [100, 64, 0, 7].into(), |options| options).await;
        assert!(mapped(&transport).is_empty());
        assert_eq!(taken(&asked), [3600, 0]);
    });
}

#[test]
fn nothing_is_asked_with_the_option_off_or_with_a_relay_only() {
    type Change = fn(QuicTransportOptions) -> QuicTransportOptions;
    let changes: [Change; 2] = [|options| options.with_port_mapping(false), |options| options.with_relay_only(true)];
    for change in changes {
        sim::run(1, |sim| async move {
            let (_world, transport, asked) = at_home(&sim, PUBLIC, change).await;
            assert!(mapped(&transport).is_empty() && taken(&asked).is_empty());
            // There is nothing to wait for either.
            let started = tokio::time::Instant::now();
            transport.shutdown(SECOND * 5).await;
            assert!(started.elapsed() < SECOND);
        });
    }
}
