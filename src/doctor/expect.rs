//! By which kind of path which kind of peer is reached: what the NATs of both ends allow, and what relays add. Pure.

use std::net::IpAddr;

use crate::nat::nat_type::{FilteringBehaviour, Mapping, NatReport};
use crate::transport::PathKind;

/// What this machine has to reach others by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ways {
    /// Its NAT; `None` when nobody could be asked.
    pub nat: Option<NatReport>,
    /// A relay is there, where peers find each other.
    pub relay: bool,
    /// A relay's UDP port answers, so that it forwards.
    pub forwarding: bool,
    /// A relayed address can be had by UDP.
    pub turn_udp: bool,
    /// The same by TCP.
    pub turn_tcp: bool,
    /// The same by TLS.
    pub turn_tls: bool,
}

/// Where peers commonly are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerKind {
    /// In the same network.
    SameNetwork,
    /// At a public address, without a firewall.
    Public,
    /// Behind a NAT that lets everybody in: endpoint-independent mapping and filtering.
    FullCone,
    /// Behind a NAT that lets in the hosts that were sent to: endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Behind a NAT that lets in the ports that were sent to, as most home routers and mobile carriers have it:
    /// endpoint-independent mapping, address and port-dependent filtering.
    PortRestricted,
    /// Behind a NAT that maps every destination differently: address and port-dependent mapping and filtering.
    Symmetric,
    /// Behind a firewall that lets nothing but TLS out.
    UdpBlocked,
}

impl PeerKind {
    /// All, the easiest first.
    pub const ALL: [Self; 7] = [
        Self::SameNetwork,
        Self::Public,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
        Self::UdpBlocked,
    ];
}

impl std::fmt::Display for PeerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SameNetwork => "in the same network",
            Self::Public => "with a public address",
            Self::FullCone => "behind a friendly home router (full cone)",
            Self::AddressRestricted => "behind a home router (address-restricted)",
            Self::PortRestricted => "behind a usual home router or mobile carrier (port-restricted)",
            Self::Symmetric => "behind a strict NAT (symmetric)",
            Self::UdpBlocked => "where UDP is blocked",
        })
    }
}

/// By which kind of path a peer will be reached when nothing fails; `None`: it will not be. What was not found out counts
/// for the worse. A peer where UDP is blocked is supposed to reach a relay by what works for us.
pub fn expected_path(ways: &Ways, peer: PeerKind) -> Option<PathKind> {
    match peer {
        PeerKind::SameNetwork => Some(PathKind::Lan),
        // Nobody could be asked: then UDP is taken for working, as it does nearly everywhere.
        PeerKind::Public if ways.nat.is_none_or(|nat| !nat.udp_blocked()) => Some(PathKind::Direct),
        PeerKind::UdpBlocked => through_firewall(ways),
        PeerKind::Public
        | PeerKind::FullCone
        | PeerKind::AddressRestricted
        | PeerKind::PortRestricted
        | PeerKind::Symmetric => match &ways.nat {
            Some(nat) if !nat.udp_blocked() => without_relaying(nat, peer, ways.relay).or_else(|| relayed(ways)),
            Some(_) | None => relayed(ways),
        },
    }
}

/// What a report says about the way to the internet: nothing but that UDP works, when the server is on our side of the NAT.
pub(super) fn seen_from_outside(nat: NatReport) -> NatReport {
    match nat.mapped {
        Some(mapped) if is_inside(mapped.ip()) => NatReport { mapping: Mapping::Unknown, filtering: None, ..nat },
        Some(_) | None => nat,
    }
}

/// Addresses that the internet does not know: of this machine, of homes and offices, and of carriers (RFC 6598).
pub(super) fn is_inside(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xC0 == 64;
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared
        }
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// A path that only the NATs of both decide about. Without a relay to meet at, only who lets everybody in is reached.
fn without_relaying(nat: &NatReport, peer: PeerKind, relay: bool) -> Option<PathKind> {
    let straight = if nat.mapping == Mapping::NoNat { PathKind::Direct } else { PathKind::Punched };
    let open = nat.filtering == Some(FilteringBehaviour::EndpointIndependent);
    if nat.mapping == Mapping::NoNat && open {
        return Some(straight);
    }
    // Who does not know the other's port can only come in where ports do not matter.
    let lets_any_port_in = open || nat.filtering == Some(FilteringBehaviour::AddressDependent);
    let meets = match peer {
        PeerKind::SameNetwork | PeerKind::Public | PeerKind::FullCone | PeerKind::AddressRestricted => true,
        PeerKind::PortRestricted => nat.mapping.is_predictable(),
        PeerKind::Symmetric => nat.mapping.is_predictable() && lets_any_port_in,
        PeerKind::UdpBlocked => false,
    };
    (meets && relay).then_some(straight)
}

fn relayed(ways: &Ways) -> Option<PathKind> {
    let kinds = [
        (ways.forwarding, PathKind::Forwarded),
        (ways.turn_udp, PathKind::TurnUdp),
        (ways.turn_tcp, PathKind::TurnTcp),
        (ways.turn_tls, PathKind::TurnTls),
    ];
    kinds.into_iter().find(|(there, _)| *there && ways.relay).map(|(_, kind)| kind)
}

fn through_firewall(ways: &Ways) -> Option<PathKind> {
    let kinds = [(ways.turn_tls, PathKind::TurnTls), (ways.turn_tcp, PathKind::TurnTcp)];
    kinds.into_iter().find(|(there, _)| *there && ways.relay).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::nat_type::MappingBehaviour;
    use FilteringBehaviour::{AddressAndPortDependent, AddressDependent, EndpointIndependent};

    const EASY: Mapping = Mapping::Behaviour(MappingBehaviour::EndpointIndependent);
    const HARD: Mapping = Mapping::Behaviour(MappingBehaviour::AddressAndPortDependent);

    fn nat(mapping: Mapping, filtering: Option<FilteringBehaviour>) -> NatReport {
        let mapped = Some("198.51.100.1:4000".parse().unwrap());
        NatReport { mapped, mapping, filtering, port_preserved: None, hairpin: None }
    }

    fn blocked() -> NatReport {
        NatReport { mapped: None, ..nat(Mapping::Unknown, None) }
    }

    /// With a relay that does everything.
    fn helped(nat: NatReport) -> Ways {
        let udp = !nat.udp_blocked();
        Ways { nat: Some(nat), relay: true, forwarding: udp, turn_udp: udp, turn_tcp: udp, turn_tls: true }
    }

    fn row(ways: &Ways) -> Vec<String> {
        let path = |peer| expected_path(ways, peer).map_or("none".into(), |path| path.to_string());
        PeerKind::ALL[1..].iter().map(|peer| path(*peer)).collect()
    }

    #[test]
    fn with_a_relay_everybody_is_reached_and_directly_where_the_nats_allow_it() {
        let (d, p, r, t) = ("direct", "punched", "relayed", "relayed (TURN over TLS)");
        let cases = [
            (nat(Mapping::NoNat, Some(EndpointIndependent)), [d, d, d, d, d, t]),
            (nat(Mapping::NoNat, Some(AddressDependent)), [d, d, d, d, d, t]),
            (nat(Mapping::NoNat, Some(AddressAndPortDependent)), [d, d, d, d, r, t]),
            (nat(EASY, Some(EndpointIndependent)), [d, p, p, p, p, t]),
            (nat(EASY, Some(AddressDependent)), [d, p, p, p, p, t]),
            (nat(EASY, Some(AddressAndPortDependent)), [d, p, p, p, r, t]),
            (nat(EASY, None), [d, p, p, p, r, t]),
            (nat(HARD, Some(AddressAndPortDependent)), [d, p, p, r, r, t]),
            (nat(Mapping::Dependent, None), [d, p, p, r, r, t]),
            (nat(Mapping::Unknown, None), [d, p, p, r, r, t]),
            (blocked(), [t; 6]),
        ];
        for (nat, expected) in cases {
            assert_eq!(row(&helped(nat)), expected, "{nat:?}");
        }
    }

    #[test]
    fn two_nats_of_one_kind_agree_whoever_asks() {
        // What we expect of a symmetric peer from behind a port-restricted NAT is what it expects of us, and so on.
        let kinds = [
            (PeerKind::FullCone, nat(EASY, Some(EndpointIndependent))),
            (PeerKind::AddressRestricted, nat(EASY, Some(AddressDependent))),
            (PeerKind::PortRestricted, nat(EASY, Some(AddressAndPortDependent))),
            (PeerKind::Symmetric, nat(HARD, Some(AddressAndPortDependent))),
            (PeerKind::UdpBlocked, blocked()),
        ];
        for ((left, left_nat), (right, right_nat)) in
            kinds.into_iter().flat_map(|left| kinds.map(|right| (left, right)))
        {
            let there = expected_path(&helped(left_nat), right);
            assert_eq!(there, expected_path(&helped(right_nat), left), "{left} and {right}");
        }
    }

    #[test]
    fn without_a_relay_only_those_are_reached_who_let_everybody_in() {
        let alone = |nat| Ways { nat, ..Ways::default() };
        let open = nat(Mapping::NoNat, Some(EndpointIndependent));
        assert_eq!(row(&alone(Some(open))), ["direct", "direct", "direct", "direct", "direct", "none"]);
        let firewalled = nat(Mapping::NoNat, Some(AddressDependent));
        for nat in [None, Some(nat(EASY, Some(EndpointIndependent))), Some(firewalled)] {
            assert_eq!(row(&alone(nat)), ["direct", "none", "none", "none", "none", "none"]);
        }
        assert_eq!(row(&alone(Some(blocked()))), ["none"; 6]);
        assert_eq!(expected_path(&alone(None), PeerKind::SameNetwork), Some(PathKind::Lan));
    }

    #[test]
    fn a_server_in_our_own_network_says_nothing_about_the_nat_in_front_of_it() {
        let open = nat(Mapping::NoNat, Some(EndpointIndependent));
        assert_eq!(seen_from_outside(open), open);
        for inside in ["192.168.1.2:1", "127.0.0.1:1", "100.64.0.9:1", "[fd00::1]:1", "[::ffff:10.0.0.1]:1"] {
            let seen = seen_from_outside(NatReport { mapped: Some(inside.parse().unwrap()), ..open });
            assert_eq!((seen.mapping, seen.filtering), (Mapping::Unknown, None), "{inside}");
            assert!(!seen.udp_blocked());
        }
        assert!(!is_inside("100.128.0.1".parse().unwrap()) && !is_inside("2001:db8::1".parse().unwrap()));
    }

    #[test]
    fn a_relay_that_does_not_forward_still_relays_by_turn() {
        let strict = nat(HARD, Some(AddressAndPortDependent));
        let by_turn = Ways { forwarding: false, ..helped(strict) };
        assert_eq!(expected_path(&by_turn, PeerKind::Symmetric), Some(PathKind::TurnUdp));
        let useless = Ways { nat: Some(strict), relay: true, ..Ways::default() };
        assert_eq!(expected_path(&useless, PeerKind::Symmetric), None);
        assert_eq!(expected_path(&useless, PeerKind::UdpBlocked), None);
    }
}
