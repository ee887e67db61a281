//! What a NAT promises for every history of packets, without a network around it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::sim::packet::Content;

const PUBLIC: [u8; 4] = [198, 51, 100, 1];

fn packet(from: SocketAddr, to: SocketAddr) -> Packet {
    Packet { from, to, content: Content::Datagram { ecn: None, payload: "x".into() } }
}

fn inside(number: u8) -> SocketAddr {
    ([192, 168, 1, number], 4000).into()
}

fn remote(number: u8) -> SocketAddr {
    ([203, 0, 113, number / 4], 3478 + u16::from(number % 4)).into()
}

fn any_behaviour() -> impl Strategy<Value = Behaviour> {
    prop_oneof![
        Just(Behaviour::EndpointIndependent),
        Just(Behaviour::AddressDependent),
        Just(Behaviour::AddressAndPortDependent),
    ]
}

fn any_options() -> impl Strategy<Value = NatOptions> {
    let ports =
        prop_oneof![Just(PortAllocation::Preserve), Just(PortAllocation::Random), Just(PortAllocation::Sequential)];
    (any_behaviour(), any_behaviour(), ports).prop_map(|(mapping, filtering, ports)| {
        NatOptions::new().with_mapping(mapping).with_filtering(filtering).with_ports(ports)
    })
}

/// How many of its parts tell two remotes apart.
fn same(behaviour: Behaviour, a: SocketAddr, b: SocketAddr) -> bool {
    match behaviour {
        Behaviour::EndpointIndependent => true,
        Behaviour::AddressDependent => a.ip() == b.ip(),
        Behaviour::AddressAndPortDependent => a == b,
    }
}

proptest! {
    /// Against a model that remembers everything and looks through all of it.
    #[test]
    fn packets_pass_as_the_behaviours_say(
        options in any_options(), seed: u64,
        steps in prop::collection::vec((any::<bool>(), 1..6_u8, 0..8_u8, 0..80_u64), 1..100),
    ) {
        let mut nat = NatBox::new(PUBLIC.into(), options.clone(), seed, 0);
        let mut now = Duration::ZERO;
        // Inside, remote, public port, when last sent.
        let mut history: Vec<(SocketAddr, SocketAddr, u16, Duration)> = Vec::new();
        for (is_outbound, host, server, pause) in steps {
            now += Duration::from_secs(pause);
            let (host, server) = (inside(host), remote(server));
            history.retain(|(.., at)| now - *at < options.udp_timeout);
            if is_outbound {
                let mut sent = packet(host, server);
                prop_assert_eq!(nat.outbound(now, &mut sent), Ok(()));
                let port = sent.from.port();
                let known = history.iter().find(|(i, r, ..)| *i == host && same(options.mapping, *r, server));
                prop_assert!(known.is_none_or(|known| known.2 == port), "a mapping changed its port");
                let stolen = history.iter().any(|(i, r, p, _)| {
                    *p == port && (*i != host || !same(options.mapping, *r, server))
                });
                prop_assert!(!stolen, "two mappings on one port");
                history.push((host, server, port, now));
            } else if let Some((_, _, port, _)) = history.last().copied() {
                let mut received = packet(server, SocketAddr::new(PUBLIC.into(), port));
                let owner = history.iter().find(|(_, _, p, _)| *p == port).map(|(i, ..)| *i);
                let may = history.iter().any(|(_, r, p, _)| *p == port && same(options.filtering, *r, server));
                let passed = nat.inbound(now, &mut received).map(|()| received.to);
                prop_assert_eq!(passed, owner.filter(|_| may).ok_or(Fate::Filtered));
            }
        }
        let live: BTreeMap<u16, ()> = history.iter().map(|(_, _, port, _)| (*port, ())).collect();
        prop_assert_eq!(nat.mappings(now), live.len());
    }
}

#[test]
fn in_order_ports_follow_each_other() {
    let mut nat = NatBox::new(PUBLIC.into(), NatOptions::symmetric().with_ports(PortAllocation::Sequential), 1, 0);
    let ports = [1, 2, 1, 3].map(|to| {
        let mut sent = packet(inside(1), ([203, 0, 113, 1], to).into());
        nat.outbound(Duration::ZERO, &mut sent).map(|()| sent.from.port())
    });
    assert_eq!(ports, [Ok(1024), Ok(1025), Ok(1024), Ok(1026)]);
}

#[test]
fn a_mapping_with_too_many_remotes_forgets_the_oldest() {
    let mut nat = NatBox::new(PUBLIC.into(), NatOptions::port_restricted(), 1, 0);
    let server = |number: u16| SocketAddr::from(([203, 0, 113, 1], number));
    for number in 1..=1025 {
        nat.outbound(Duration::from_millis(u64::from(number)), &mut packet(inside(1), server(number))).expect("room");
    }
    let answers = [1, 2, 1025].map(|number| {
        let mut answer = packet(server(number), SocketAddr::new(PUBLIC.into(), 4000));
        nat.inbound(Duration::from_secs(2), &mut answer).is_ok()
    });
    assert_eq!(answers, [false, true, true]);
}

#[test]
fn an_ipv4_nat_has_no_way_for_ipv6() {
    let mut nat = NatBox::new(PUBLIC.into(), NatOptions::new(), 1, 0);
    let (from, to) = ("[fd00::1]:1".parse().expect("valid"), "[2001:db8::1]:1".parse().expect("valid"));
    assert_eq!(nat.outbound(Duration::ZERO, &mut packet(from, to)), Err(Fate::Unroutable));
}
