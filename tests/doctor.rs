//! The doctor behind every kind of NAT: it names the behaviour, tries relays and TURN, and reaches a ticket's peer by the path
//! that it expects. On virtual time; `PANDA_SEED=<seed>` changes the seed.
#![cfg(all(feature = "sim", feature = "relay"))]

#[path = "support/places.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod places;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use panda_network::DocumentTicket;
use panda_network::clock::Clock;
use panda_network::doctor::{self, DoctorOptions, Doubt, PeerFinding, PeerKind, Report, Trouble};
use panda_network::identity::Identity;
use panda_network::nat::nat_type::{FilteringBehaviour, Mapping, MappingBehaviour};
use panda_network::nat::stun::{Attribute, Response, Scanned};
use panda_network::relay::{Alternate, Relay, RelayLimits, RelayOptions};
use panda_network::rendezvous::address::{HostPort, RelayAddress};
use panda_network::rendezvous::wire::TurnTransport;
use panda_network::sim::{self, FirewallOptions, Sim, SimHost};
use panda_network::transport::PathKind;
use panda_network::transports::quic::{Introduction, PathOutcome, QuicTransportOptions};
use places::{Place, World};

const ONE_WAY: Duration = Duration::from_millis(20);
/// What `examine` promises.
const AT_MOST: Duration = Duration::from_secs(15);

fn seed() -> u64 {
    std::env::var("PANDA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// A relay on a host of its own, with other options than usual.
fn relay_with(sim: &Sim, world: &World, last: u8, change: impl FnOnce(RelayOptions) -> RelayOptions) -> Relay {
    let ip = IpAddr::from([203, 0, 113, last]);
    let options = RelayOptions::new(Identity::from_seed(&sim.derive_seed(&format!("relay {last}"))))
        .with_listen((ip, 443).into())
        .with_datagrams((ip, 3478).into())
        .with_seed(sim.derive_seed(&format!("numbers of relay {last}")));
    Relay::start(Arc::new(world.network.host(ip)), change(options)).unwrap()
}

/// A STUN server that tells everybody this address.
fn lying_stun_server(world: &World, ip: [u8; 4], lie: SocketAddr) -> HostPort {
    let socket = world.network.host(ip.into()).bind(3478).unwrap();
    let server = socket.address().into();
    tokio::spawn(async move {
        loop {
            let (datagram, from) = socket.recv_from().await;
            let Ok(request) = Scanned::scan(&datagram) else { continue };
            let answer = Response::success(&request).with(Attribute::XorMappedAddress(lie));
            socket.send_to(answer.encode(None).unwrap(), from);
        }
    });
    server
}

/// A second relay, with the two addresses and two ports that RFC 5780 needs, and TURN over TCP.
fn relay_with_alternate(sim: &Sim, world: &World) -> Relay {
    let (first, other) = (IpAddr::from([203, 0, 113, 2]), IpAddr::from([203, 0, 113, 3]));
    let host = world.network.host(first);
    host.add_address(&world.network.internet(), other).unwrap();
    world.network.name("behaviour.example.org", first);
    let options = RelayOptions::new(Identity::from_seed(&sim.derive_seed("behaviour")))
        .with_listen((first, 443).into())
        .with_datagrams((first, 3478).into())
        .with_alternate(Alternate { ip: other, port: 3479 })
        .with_turn_tcp((first, 3478).into())
        .with_public_address(HostPort::new("behaviour.example.org", 443).unwrap())
        .with_seed(sim.derive_seed("behaviour's numbers"));
    Relay::start(Arc::new(host), options).unwrap()
}

async fn examine(sim: &Sim, host: &SimHost, options: DoctorOptions) -> Report {
    let options = options.with_seed(sim.derive_seed("doctor"));
    let report = doctor::examine(Arc::new(host.clone()), options).await.unwrap();
    assert!(report.took <= AT_MOST, "{:?}", report.took);
    report
}

/// What the doctor finds at a place, with both relays.
fn at(place: Place) -> Report {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, ONE_WAY);
        let second = relay_with_alternate(&sim, &world);
        let relays = [second.address().clone(), world.relays[0].1.address().clone()];
        examine(&sim, &world.host(place), DoctorOptions::new().with_relays(relays)).await
    })
}

#[test]
fn every_nat_is_called_by_its_name() {
    use FilteringBehaviour::{AddressAndPortDependent, AddressDependent, EndpointIndependent};
    let easy = Mapping::Behaviour(MappingBehaviour::EndpointIndependent);
    let hard = Mapping::Behaviour(MappingBehaviour::AddressAndPortDependent);
    let expected = [
        (Place::Public, Mapping::NoNat, EndpointIndependent, true),
        (Place::FullCone, easy, EndpointIndependent, true),
        (Place::AddressRestricted, easy, AddressDependent, true),
        (Place::PortRestricted, easy, AddressAndPortDependent, true),
        (Place::Symmetric, hard, AddressAndPortDependent, false),
        // Preserves the port for the first server only, and there are two.
        (Place::SymmetricPreserving, hard, AddressAndPortDependent, false),
        (Place::CarrierGrade, easy, AddressAndPortDependent, false),
    ];
    for (place, mapping, filtering, port_preserved) in expected {
        let report = at(place);
        assert_eq!(report.nat.len(), 1, "{place:?}: {report:#?}");
        let nat = report.nat[0].report;
        let found = (nat.mapping, nat.filtering, nat.port_preserved);
        assert_eq!(found, (mapping, Some(filtering), Some(port_preserved)), "{place:?}");
        assert_eq!(nat.hairpin, Some(matches!(place, Place::Public | Place::CarrierGrade)), "{place:?}");
        assert_eq!(report.verdict(), Ok(()), "{place:?}");
        for relay in &report.relays {
            let session = relay.session.as_ref().unwrap();
            assert_eq!(relay.address.key, Some(session.key));
            assert!(relay.stun.iter().all(|stun| stun.round_trip.as_ref().unwrap() == &(2 * ONE_WAY)), "{relay:#?}");
            assert!(relay.turn.iter().all(|turn| !turn.relayed.is_empty()), "{relay:#?}");
        }
        let transports: Vec<_> = report.relays[0].turn.iter().map(|turn| turn.transport).collect();
        assert_eq!(transports, [TurnTransport::Udp, TurnTransport::Tcp, TurnTransport::Tls]);
    }
}

#[test]
fn behind_a_firewall_that_blocks_udp_only_tls_works_and_that_is_enough() {
    let report = at(Place::UdpBlocked);
    assert!(report.nat[0].report.udp_blocked());
    for relay in &report.relays {
        assert!(relay.session.is_ok());
        assert!(relay.stun.iter().all(|stun| stun.round_trip.is_err()));
        for turn in &relay.turn {
            assert_eq!(turn.took.is_ok(), turn.transport == TurnTransport::Tls, "{turn:?}");
        }
    }
    let relayed = report.expected().into_iter().filter(|(peer, _)| *peer != PeerKind::SameNetwork);
    assert!(relayed.into_iter().all(|(_, path)| path == Some(PathKind::TurnTls)));
    assert_eq!(report.verdict(), Ok(()));
}

#[test]
fn what_is_wrong_is_said() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, ONE_WAY);
        let host = world.host(Place::PortRestricted);
        let alone = examine(&sim, &host, DoctorOptions::new()).await;
        assert_eq!(alone.verdict(), Err(Trouble::NoRelay));
        assert!(alone.nat.is_empty());

        let gone: RelayAddress = "203.0.113.99:443".parse().unwrap();
        let unknown: RelayAddress = "nowhere.example.org".parse().unwrap();
        let report = examine(&sim, &host, DoctorOptions::new().with_relays([gone, unknown])).await;
        assert!(matches!(report.verdict(), Err(Trouble::NoRelayUp(_))), "{report:#?}");
        let reason = report.relays[1].session.as_ref().unwrap_err().to_string();
        assert!(reason.contains("no address is known"), "{reason}");

        let other_key = Identity::from_seed(&[1; 32]).peer_id();
        let impostor = RelayAddress { key: Some(other_key), ..world.relays[0].1.address().clone() };
        let report = examine(&sim, &host, DoctorOptions::new().with_relays([impostor])).await;
        let reason = report.relays[0].session.as_ref().unwrap_err().to_string();
        assert!(reason.contains("another key"), "{reason}");
    });
}

#[test]
fn stun_servers_that_disagree_as_no_nat_makes_them_are_named() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, ONE_WAY);
        let (elsewhere, nowhere) = ("198.51.100.250:4000".parse().unwrap(), "224.0.0.1:4000".parse().unwrap());
        let liars = [
            lying_stun_server(&world, [203, 0, 113, 90], elsewhere),
            lying_stun_server(&world, [203, 0, 113, 91], nowhere),
        ];
        let options = || {
            let relays = [world.relays[0].1.address().clone()];
            DoctorOptions::new().with_relays(relays).with_stun_servers(liars.clone())
        };
        let report = examine(&sim, &world.host(Place::Public), options()).await;
        let at = |address: &str| -> SocketAddr { address.parse().unwrap() };
        let impossible = Doubt::Impossible { server: at("203.0.113.91:3478"), mapped: nowhere };
        let (plain, other) = (at("203.0.113.1:3478"), at("203.0.113.90:3478"));
        let disagree = Doubt::Disagree { plain, other, mapped: elsewhere };
        assert_eq!(report.doubts(), [impossible, disagree], "{report:#?}");
        assert_eq!(report.verdict(), Ok(()), "the relay works");
        // Behind a NAT, two addresses may be one carrier's.
        let report = examine(&sim, &world.host(Place::PortRestricted), options()).await;
        assert_eq!(report.doubts(), [impossible]);
    });
}

#[test]
fn relays_whose_clocks_are_years_apart_lend_addresses_all_the_same() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, ONE_WAY);
        // Two relays whose clocks are two years apart: one is off by a year at least. Clients go by relative lifetimes.
        let year_us = 365 * 86_400 * 1_000_000;
        let relays = [(80, 50 * year_us), (81, 52 * year_us)].map(|(last, start_us)| {
            let network = world.network.clone();
            let clock = Clock::new(move || start_us + network.now().as_micros() as u64);
            relay_with(&sim, &world, last, |options| options.with_clock(clock))
        });
        let named = relays.each_ref().map(|relay| relay.address().clone());
        let options = DoctorOptions::new().with_relays(named);
        let report = examine(&sim, &world.host(Place::PortRestricted), options).await;
        let turns: Vec<_> = report.relays.iter().flat_map(|relay| &relay.turn).collect();
        assert!(turns.len() >= 4 && turns.iter().all(|turn| !turn.relayed.is_empty()), "{turns:#?}");
    });
}

#[test]
fn a_quota_that_is_used_up_is_told_from_a_server_that_is_full() {
    sim::run(seed(), |sim| async move {
        let world = World::without_turn(&sim, ONE_WAY);
        let limited = |last, limits: RelayLimits| relay_with(&sim, &world, last, |options| options.with_limits(limits));
        let (none, one) = (
            limited(80, RelayLimits::new().with_allocations_per_user(0)),
            limited(81, RelayLimits::new().with_allocations(1)),
        );
        let taker = world.node_with(world.host(Place::UdpBlocked), "taker", |options| {
            options.with_relays([one.address().to_string()])
        });
        let _taker = taker.await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(one.snapshot().allocations, 1);
        let options = DoctorOptions::new().with_relays([none.address().clone(), one.address().clone()]);
        let report = examine(&sim, &world.host(Place::PortRestricted), options).await;
        for (relay, sentence) in
            report.relays.iter().zip(["our quota or that of our network is used up (error 486)", "(error 508)"])
        {
            assert!(!relay.turn.is_empty());
            for turn in &relay.turn {
                let reason = turn.took.as_ref().unwrap_err().to_string();
                assert!(reason.contains(sentence), "{reason}");
            }
        }
    });
}

#[test]
fn stun_servers_alone_tell_the_nat_but_help_nobody_to_meet() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, ONE_WAY);
        let _second = relay_with_alternate(&sim, &world);
        let server = |text| HostPort::parse(text, 3478).unwrap();
        let servers = [server("behaviour.example.org"), server("203.0.113.99")];
        let options = DoctorOptions::new().with_stun_servers(servers);
        let report = examine(&sim, &world.host(Place::PortRestricted), options).await;
        let mapping = Mapping::Behaviour(MappingBehaviour::EndpointIndependent);
        assert_eq!(report.nat[0].report.mapping, mapping);
        assert_eq!(report.stun.iter().map(|stun| stun.round_trip.is_ok()).collect::<Vec<_>>(), [true, false]);
        assert_eq!(report.verdict(), Err(Trouble::NoRelay));
    });
}

/// Shares a document at one place and looks at its ticket from another.
async fn visit(sim: Sim, there: Place, here: Place) -> Report {
    let world = World::new(&sim, ONE_WAY);
    let alice = world.node(there, "alice").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let document = alice.network.create().await.unwrap();
    let ticket = document.ticket().await.unwrap();
    let host = world.host(here);
    let socket = QuicTransportOptions::new().with_socket(host.bind(4000).unwrap());
    let options = DoctorOptions::new().with_quic(socket).with_ticket(ticket);
    let report = examine(&sim, &host, options).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(alice.network.connections().len(), 0, "the doctor leaves");
    let address = document.ticket().await.unwrap();
    assert_eq!(address.peers().len(), 1, "and nobody remembers it");
    report
}

#[test]
fn a_peer_of_a_ticket_is_reached_by_the_path_that_was_expected() {
    let cases = [
        (Place::Public, PeerKind::Public, Place::Symmetric, PathKind::Direct),
        (Place::PortRestricted, PeerKind::PortRestricted, Place::PortRestricted, PathKind::Punched),
        (Place::Symmetric, PeerKind::Symmetric, Place::Symmetric, PathKind::Forwarded),
    ];
    for (there, kind, here, path) in cases {
        let report = sim::run(seed(), |sim| visit(sim, there, here));
        assert_eq!(report.verdict(), Ok(()), "{report:#?}");
        let peer = &report.peers.as_ref().unwrap()[0];
        assert_eq!(peer.in_use, Some((peer.paths[0].kind, peer.paths[0].remote)), "{peer:#?}");
        assert!(peer.paths[0].round_trip().is_some(), "{peer:#?}");
        assert_eq!(peer.paths[0].kind, path, "{peer:#?}");
        if kind != PeerKind::PortRestricted {
            // With one server the kind of NAT cannot be known, and the worse is expected.
            assert!(report.expected().contains(&(kind, Some(path))), "{report:#?}");
        }
    }
}

#[test]
fn a_node_tells_all_paths_to_a_connected_peer_and_which_one_is_in_use() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, ONE_WAY);
        let alice = world.node(Place::PortRestricted, "alice").await;
        let bob = world.node(Place::FullCone, "bob").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let document = alice.network.create().await.unwrap();
        bob.network.open(document.ticket().await.unwrap()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(15)).await;
        for (node, other) in [(&alice, &bob), (&bob, &alice)] {
            let paths = node.network.paths(&other.network.node_id());
            let in_use: Vec<_> = paths.iter().filter(|path| path.selected).collect();
            assert_eq!(in_use.len(), 1, "{paths:#?}");
            assert_eq!(in_use[0].kind, PathKind::Punched);
            assert!(
                paths.iter().any(|path| path.kind == PathKind::Forwarded && path.round_trip.is_some()),
                "{paths:#?}"
            );
            assert!(paths.iter().any(|path| path.kind == PathKind::Lan && path.round_trip.is_none()), "{paths:#?}");
            assert_eq!(node.network.paths(&node.network.node_id()), []);
        }
    });
}

#[test]
fn a_peer_that_is_gone_is_told_from_a_bad_network() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, ONE_WAY);
        let alice = world.node(Place::PortRestricted, "alice").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let ticket = alice.network.create().await.unwrap().ticket().await.unwrap();
        alice.host.crash();
        let host = world.host(Place::PortRestricted);
        let socket = QuicTransportOptions::new().with_socket(host.bind(4000).unwrap());
        let options = DoctorOptions::new().with_quic(socket).with_ticket(ticket);
        let report = examine(&sim, &host, options).await;
        assert!(report.relays[0].session.is_ok());
        assert!(matches!(report.verdict(), Err(Trouble::NoPeer(_))), "{report:#?}");
        let peer = &report.peers.as_ref().unwrap()[0];
        let (introduction, tried) = came_of(peer);
        // It vanished a moment ago: the relay does not know yet.
        assert_eq!(introduction, Introduction::NoAnswer);
        // In this network another machine has its private address, the doctor's own.
        let expected = [
            (PathKind::Lan, "192.168.1.2:4000".to_owned(), PathOutcome::Stranger),
            (PathKind::Direct, "198.51.100.1:4000".to_owned(), PathOutcome::NoAnswer),
            (PathKind::Forwarded, "203.0.113.1:3478".to_owned(), PathOutcome::NoAnswer),
        ];
        assert_eq!(tried, expected);
    });
}

/// What the doctor finds out about the peer of a ticket that cannot be reached, from its own host.
async fn try_peer(sim: &Sim, host: &SimHost, quic: QuicTransportOptions, ticket: DocumentTicket) -> PeerFinding {
    let quic = quic.with_socket(host.bind(0).unwrap());
    let report = examine(sim, host, DoctorOptions::new().with_quic(quic).with_ticket(ticket)).await;
    let peer = report.peers.into_iter().flatten().find(|peer| peer.connected.is_err());
    assert!(peer.as_ref().is_some_and(|peer| peer.in_use.is_none()), "{peer:#?}");
    peer.unwrap()
}

/// What came of asking the one relay, and of the paths.
fn came_of(peer: &PeerFinding) -> (Introduction, Vec<(PathKind, String, PathOutcome)>) {
    let [(_, introduction)] = &peer.introductions[..] else { panic!("{peer:#?}") };
    let paths = peer.paths.iter().map(|path| (path.kind, path.remote.to_string(), path.outcome)).collect();
    (*introduction, paths)
}

#[test]
fn where_no_path_works_each_is_shown_with_what_came_of_it() {
    let silent = |kind, remote: &str| (kind, remote.to_owned(), PathOutcome::NoAnswer);
    let blocked = sim::run(seed(), |sim| async move {
        let world = World::without_turn(&sim, ONE_WAY);
        let alice = world.node(Place::UdpBlocked, "alice").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let ticket = alice.network.create().await.unwrap().ticket().await.unwrap();
        let (quic, host) = (QuicTransportOptions::new(), world.network.host([198, 51, 100, 99].into()));
        try_peer(&sim, &host, quic, ticket).await
    });
    let (introduction, paths) = came_of(&blocked);
    assert_eq!(introduction, Introduction::Answered);
    let expected = [silent(PathKind::Lan, "192.168.1.2:4000"), silent(PathKind::Forwarded, "203.0.113.1:3478")];
    assert_eq!(paths, expected);
}

#[test]
fn a_peer_that_refuses_or_is_gone_is_told_by_its_relay() {
    sim::run(seed(), |sim| async move {
        let world = World::without_turn(&sim, ONE_WAY);
        let alice = world.node(Place::PortRestricted, "alice").await;
        let bob = world.node(Place::PortRestricted, "bob").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let hers = alice.network.create().await.unwrap().ticket().await.unwrap();
        // A document that she does not know.
        let his = bob.network.create().await.unwrap().ticket().await.unwrap().with_peers(hers.peers().to_vec());
        let host = world.host(Place::PortRestricted);
        let refused = try_peer(&sim, &host, QuicTransportOptions::new(), his).await;
        assert_eq!(came_of(&refused).0, Introduction::Refused);
        alice.network.shutdown(Duration::from_secs(1)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let gone = try_peer(&sim, &host, QuicTransportOptions::new(), hers).await;
        assert_eq!(came_of(&gone).0, Introduction::NotHere);
    });
}

#[test]
fn addresses_that_nothing_is_sent_to_say_why() {
    sim::run(seed(), |sim| async move {
        let world = World::without_turn(&sim, ONE_WAY);
        let alice_host = world.dual_stack_host(Place::UdpBlocked, FirewallOptions::tcp_443_only());
        let alice = world.node_on(alice_host, "alice").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let ticket = alice.network.create().await.unwrap().ticket().await.unwrap();
        let host = world.network.host([198, 51, 100, 99].into());
        let outcomes = |peer: &PeerFinding, v4: bool| {
            let own =
                peer.paths.iter().filter(|path| path.kind != PathKind::Forwarded && !path.remote.ip().is_loopback());
            own.filter(|path| path.remote.is_ipv4() == v4).map(|path| path.outcome).collect::<Vec<_>>()
        };
        let open = try_peer(&sim, &host, QuicTransportOptions::new(), ticket.clone()).await;
        assert_eq!(outcomes(&open, false), [PathOutcome::NoRoute], "{open:#?}");
        let hidden = try_peer(&sim, &host, QuicTransportOptions::new().with_relay_only(true), ticket).await;
        assert_eq!(outcomes(&hidden, true), [PathOutcome::Withheld], "{hidden:#?}");
    });
}

#[test]
fn a_ticket_whose_relay_is_gone_is_told_from_a_peer_that_is() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, ONE_WAY);
        let alice = world.node(Place::PortRestricted, "alice").await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let ticket = alice.network.create().await.unwrap().ticket().await.unwrap();
        world.relays[0].0.crash();
        let host = world.host(Place::PortRestricted);
        let peer = try_peer(&sim, &host, QuicTransportOptions::new(), ticket).await;
        let (introduction, paths) = came_of(&peer);
        assert_eq!(introduction, Introduction::NoSession);
        assert!(paths.contains(&(PathKind::Direct, "198.51.100.1:4000".into(), PathOutcome::NoAnswer)), "{paths:#?}");
    });
}

#[test]
fn dropping_an_examination_ends_it() {
    sim::run(seed(), |sim| async move {
        let world = World::new(&sim, ONE_WAY);
        let host = world.host(Place::PortRestricted);
        let options = DoctorOptions::new().with_relays([world.relays[0].1.address().clone()]);
        let examined = tokio::time::timeout(5 * ONE_WAY, doctor::examine(Arc::new(host), options)).await;
        assert!(examined.is_err());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.relays[0].1.snapshot().sessions, 0);
    });
}
