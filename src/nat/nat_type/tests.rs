//! The tests against every NAT of RFC 4787, a server with two addresses, poor servers, and loss. A NAT here is a table of
//! mappings and a set of what it let out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::nat::stun::{ErrorCode, Response};

const PORTS: (u16, u16) = (4000, 4001);
const OUTSIDE: [u8; 4] = [203, 0, 113, 5];
const INSIDE: [u8; 4] = [192, 168, 1, 2];

/// Depends on nothing, on the address, on address and port.
const MAPPINGS: [MappingBehaviour; 3] = [
    MappingBehaviour::EndpointIndependent,
    MappingBehaviour::AddressDependent,
    MappingBehaviour::AddressAndPortDependent,
];
const FILTERINGS: [FilteringBehaviour; 3] = [
    FilteringBehaviour::EndpointIndependent,
    FilteringBehaviour::AddressDependent,
    FilteringBehaviour::AddressAndPortDependent,
];

fn server(address: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, address], port))
}

/// One NAT, or none, with the machine behind it and servers before it.
struct World {
    mapping: Option<MappingBehaviour>,
    filtering: FilteringBehaviour,
    hairpins: bool,
    preserves: bool,
    /// Whether the servers have another address: 192.0.2.2:3479 for that on 192.0.2.1:3478.
    other: bool,
    blocked: bool,
    /// A server whose packets go nowhere.
    dead: Option<IpAddr>,
    lose: Box<dyn FnMut() -> bool>,
    outside: BTreeMap<(u16, Option<SocketAddr>), u16>,
    let_out: BTreeSet<(u16, SocketAddr)>,
}

impl World {
    fn new(mapping: Option<MappingBehaviour>, filtering: FilteringBehaviour) -> Self {
        let lose = Box::new(|| false);
        let (outside, let_out) = Default::default();
        Self {
            mapping,
            filtering,
            dead: None,
            hairpins: false,
            preserves: false,
            other: true,
            blocked: false,
            lose,
            outside,
            let_out,
        }
    }

    /// How what goes from a local port to there looks outside.
    fn map(&mut self, local: u16, to: SocketAddr) -> SocketAddr {
        let Some(mapping) = self.mapping else { return SocketAddr::from((INSIDE, local)) };
        let key = match mapping {
            MappingBehaviour::EndpointIndependent => None,
            MappingBehaviour::AddressDependent => Some(SocketAddr::new(to.ip(), 0)),
            MappingBehaviour::AddressAndPortDependent => Some(to),
        };
        let fresh = if self.preserves { local } else { 50_000 + self.outside.len() as u16 };
        SocketAddr::from((OUTSIDE, *self.outside.entry((local, key)).or_insert(fresh)))
    }

    /// The local port that a packet from there to an outside port gets to.
    fn let_in(&self, from: SocketAddr, outside: SocketAddr) -> Option<u16> {
        let mut sent_to = self.let_out.iter().filter(|(port, _)| *port == outside.port()).map(|(_, to)| *to);
        let welcome = match self.filtering {
            FilteringBehaviour::EndpointIndependent => true,
            FilteringBehaviour::AddressDependent => sent_to.any(|to| to.ip() == from.ip()),
            FilteringBehaviour::AddressAndPortDependent => sent_to.any(|to| to == from),
        };
        let local = match self.mapping {
            None => Some(outside.port()),
            Some(_) => self.outside.iter().find(|(_, port)| **port == outside.port()).map(|((local, _), _)| *local),
        };
        local.filter(|_| welcome)
    }

    /// The server's answer and where it comes from.
    fn answer(&self, at: SocketAddr, from: SocketAddr, bytes: &[u8]) -> (SocketAddr, Vec<u8>) {
        let scanned = Scanned::scan(bytes).unwrap();
        let change = scanned.decode().unwrap().change_request();
        if !self.other {
            let response = match change {
                Some(_) => Response::error(&scanned, ErrorCode::UnknownAttribute),
                None => Response::success(&scanned).with(Attribute::XorMappedAddress(from)),
            };
            return (at, response.encode(None).unwrap());
        }
        let turn = |address: SocketAddr, (ip, port): (bool, bool)| {
            let SocketAddr::V4(v4) = address else { panic!("{address}") };
            let host = v4.ip().octets()[3];
            // The third server shares the other address of the first.
            let host = if !ip {
                host
            } else if host == 2 {
                1
            } else {
                2
            };
            server(host, if port { 3478 + 3479 - address.port() } else { address.port() })
        };
        let response = Response::success(&scanned).with(Attribute::XorMappedAddress(from));
        let response = response.with(Attribute::OtherAddress(turn(at, (true, true))));
        (turn(at, change.unwrap_or_default()), response.encode(None).unwrap())
    }

    fn deliver(&mut self, now: Instant, machine: &mut NatTypeMachine, socket: Probe, packet: &Transmit) {
        let local = if socket == Probe::Mapping { PORTS.0 } else { PORTS.1 };
        let from = self.map(local, packet.to);
        self.let_out.insert((from.port(), packet.to));
        if self.blocked || self.dead == Some(packet.to.ip()) || (self.lose)() {
            return;
        }
        let (from, to, bytes) = if packet.to.ip() == from.ip() {
            if !self.hairpins {
                return;
            }
            (from, packet.to, packet.bytes.clone())
        } else {
            let (source, response) = self.answer(packet.to, from, &packet.bytes);
            (source, from, response)
        };
        let Some(local) = self.let_in(from, to).filter(|_| !(self.lose)()) else { return };
        let socket = if local == PORTS.0 { Probe::Mapping } else { Probe::Filtering };
        machine.handle_input(now, socket, from, &Scanned::scan(&bytes).unwrap());
    }

    /// The report, and how long it took.
    fn run(&mut self, servers: &[SocketAddr]) -> (NatReport, Duration) {
        let start = Instant::now();
        let options = NatTypeOptions::new(vec![INSIDE.into()]);
        let mut machine = NatTypeMachine::start(start, options, PORTS, servers, [7; 32]);
        let (mut now, mut packets) = (start, 0);
        loop {
            while let Some((socket, packet)) = machine.poll_transmit() {
                packets += 1;
                self.deliver(now, &mut machine, socket, &packet);
            }
            assert!(packets < 100);
            if let Some(report) = machine.report() {
                assert_eq!(machine.poll_timeout(), None);
                return (*report, now - start);
            }
            now = machine.poll_timeout().expect("a reason to wait").0;
            machine.handle_timeout(now);
        }
    }
}

#[test]
fn every_kind_of_nat_is_named() {
    for mapping in MAPPINGS {
        for filtering in FILTERINGS {
            let mut world = World::new(Some(mapping), filtering);
            let (report, took) = world.run(&[server(1, 3478)]);
            assert_eq!((report.mapping, report.filtering), (Mapping::Behaviour(mapping), Some(filtering)));
            assert_eq!((report.port_preserved, report.hairpin), (Some(false), Some(false)));
            assert!(took <= Duration::from_secs(3), "{took:?}");
        }
    }
}

#[test]
fn without_a_nat_the_firewall_is_named() {
    for filtering in FILTERINGS {
        let (report, _) = World::new(None, filtering).run(&[server(1, 3478)]);
        assert_eq!(
            (report.mapping, report.filtering, report.port_preserved),
            (Mapping::NoNat, Some(filtering), Some(true))
        );
        assert_eq!(report.mapped, Some(SocketAddr::from((INSIDE, PORTS.0))));
    }
}

#[test]
fn preserved_ports_and_hairpinning_are_noticed() {
    for filtering in FILTERINGS {
        let mut world = World::new(Some(MappingBehaviour::EndpointIndependent), filtering);
        (world.hairpins, world.preserves) = (true, true);
        let (report, _) = world.run(&[server(1, 3478)]);
        assert_eq!((report.port_preserved, report.hairpin), (Some(true), Some(true)));
    }
}

#[test]
fn where_udp_is_blocked_that_is_said_soon() {
    let mut world = World::new(Some(MAPPINGS[0]), FILTERINGS[2]);
    world.blocked = true;
    let (report, took) = world.run(&[server(1, 3478), server(2, 3478)]);
    assert!(report.udp_blocked());
    assert_eq!((report.mapping, report.filtering), (Mapping::Unknown, None));
    assert_eq!(took, Duration::from_millis(1400));
    assert!(World::new(None, FILTERINGS[0]).run(&[]).0.udp_blocked(), "nobody to ask");
}

#[test]
fn two_servers_without_another_address_tell_predictable_mappings_from_others() {
    let behaviours = [
        (MAPPINGS[0], Mapping::Behaviour(MAPPINGS[0])),
        (MAPPINGS[1], Mapping::Dependent),
        (MAPPINGS[2], Mapping::Dependent),
    ];
    for (mapping, expected) in behaviours {
        let mut world = World::new(Some(mapping), FILTERINGS[2]);
        world.other = false;
        let (report, _) = world.run(&[server(1, 3478), server(2, 3478)]);
        assert_eq!((report.mapping, report.filtering), (expected, None));
    }
    let mut world = World::new(Some(MAPPINGS[0]), FILTERINGS[2]);
    world.other = false;
    assert_eq!(world.run(&[server(1, 3478)]).0.mapping, Mapping::Unknown, "one is not enough");
}

#[test]
fn a_server_with_another_address_is_preferred() {
    let mut machine_world = World::new(Some(MAPPINGS[2]), FILTERINGS[1]);
    machine_world.other = true;
    let silent = SocketAddr::from(([192, 0, 2, 2], 3479));
    let (report, _) = machine_world.run(&[silent, server(1, 3478)]);
    assert_eq!((report.mapping, report.filtering), (Mapping::Behaviour(MAPPINGS[2]), Some(FILTERINGS[1])));
}

#[test]
fn where_the_other_address_is_out_of_reach_another_server_helps() {
    let mut world = World::new(Some(MAPPINGS[0]), FILTERINGS[1]);
    world.dead = Some(server(2, 0).ip());
    let (report, _) = world.run(&[server(1, 3478), server(3, 3478)]);
    assert_eq!(report.mapping, Mapping::Behaviour(MAPPINGS[0]));
    assert_eq!(report.filtering, None, "its silence says nothing about the NAT");
    assert_eq!(world.run(&[server(1, 3478)]).0.mapping, Mapping::Unknown);
}

#[test]
fn an_other_address_that_is_no_other_host_is_not_asked() {
    for other in
        ["192.0.2.1:3479", "192.0.2.2:3478", "[2001:db8::1]:3479", "127.0.0.1:3479", "224.0.0.1:5", "0.0.0.0:5"]
    {
        assert!(!is_other(other.parse().unwrap(), server(1, 3478)), "{other}");
    }
    assert!(is_other(server(2, 3479), server(1, 3478)));
}

#[test]
fn every_report_has_plain_words() {
    let mut seen = BTreeSet::new();
    let mappings = [Mapping::NoNat, Mapping::Dependent, Mapping::Unknown];
    for mapping in mappings.into_iter().chain(MAPPINGS.map(Mapping::Behaviour)) {
        for filtering in [None].into_iter().chain(FILTERINGS.map(Some)) {
            for mapped in [None, Some(server(9, 9))] {
                let report = NatReport { mapped, mapping, filtering, port_preserved: None, hairpin: None };
                seen.insert(report.plain_words());
            }
        }
    }
    assert_eq!(seen.len(), 7);
}

proptest! {
    #[test]
    fn one_lost_packet_changes_no_verdict(mapping in 0usize..3, filtering in 0usize..3, lost in 0usize..40) {
        let mut world = World::new(Some(MAPPINGS[mapping]), FILTERINGS[filtering]);
        let mut number = 0;
        world.lose = Box::new(move || {
            number += 1;
            number == lost
        });
        let (report, _) = world.run(&[server(1, 3478)]);
        prop_assert_eq!(report.mapping, Mapping::Behaviour(MAPPINGS[mapping]));
        prop_assert_eq!(report.filtering, Some(FILTERINGS[filtering]));
    }
}
