//! How a NAT behaves, in the words of RFC 4787, and presets for the kinds found in homes and at carriers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::sim::options::LinkOptions;

/// RFC 4787, section 4.3: not less than two minutes.
const UDP_TIMEOUT: Duration = Duration::from_secs(120);

/// Mappings of a home router; a carrier's box has more.
const HOME_MAPPINGS: usize = 4096;
const CARRIER_MAPPINGS: usize = 32_768;

/// What a NAT looks at: RFC 4787, section 4.1 for mapping and section 5 for filtering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Behaviour {
    /// The inside address and port alone.
    EndpointIndependent,
    /// Also the address of the remote.
    AddressDependent,
    /// Also the port of the remote.
    AddressAndPortDependent,
}

impl Behaviour {
    /// The part of a remote that this behaviour tells apart; the rest is blanked.
    pub(super) fn key(self, remote: SocketAddr) -> SocketAddr {
        match self {
            Self::EndpointIndependent => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
            Self::AddressDependent => SocketAddr::new(remote.ip(), 0),
            Self::AddressAndPortDependent => remote,
        }
    }
}

/// Which public port a new mapping gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortAllocation {
    /// The port of the inside host if no other mapping has it, else a random one.
    Preserve,
    /// A random one. Nobody can guess the next.
    Random,
    /// The one after the last. Predictable.
    Sequential,
}

/// Options of a NAT. `new()` is [`port_restricted`](Self::port_restricted), which is what most homes have.
#[derive(Debug, Clone, PartialEq)]
pub struct NatOptions {
    pub(in crate::sim) mapping: Behaviour,
    pub(in crate::sim) filtering: Behaviour,
    pub(in crate::sim) hairpinning: bool,
    pub(in crate::sim) ports: PortAllocation,
    pub(in crate::sim) udp_timeout: Duration,
    pub(in crate::sim) refresh_by_inbound: bool,
    pub(in crate::sim) max_mappings: usize,
    pub(in crate::sim) access_link: Option<LinkOptions>,
    pub(in crate::sim) inside_link: LinkOptions,
}

impl Default for NatOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl NatOptions {
    /// Endpoint-independent mapping, address and port-dependent filtering, ports preserved, no hairpinning, 120 s.
    pub fn new() -> Self {
        Self {
            mapping: Behaviour::EndpointIndependent,
            filtering: Behaviour::AddressAndPortDependent,
            hairpinning: false,
            ports: PortAllocation::Preserve,
            udp_timeout: UDP_TIMEOUT,
            refresh_by_inbound: false,
            max_mappings: HOME_MAPPINGS,
            access_link: None,
            inside_link: LinkOptions::new(),
        }
    }

    /// One public port per inside port, and whoever knows it may send there.
    pub fn full_cone() -> Self {
        Self::new().with_filtering(Behaviour::EndpointIndependent)
    }

    /// One public port per inside port, open to the addresses that the inside has sent to.
    pub fn address_restricted() -> Self {
        Self::new().with_filtering(Behaviour::AddressDependent)
    }

    /// One public port per inside port, open to the addresses and ports that the inside has sent to.
    pub fn port_restricted() -> Self {
        Self::new()
    }

    /// A random public port for each remote, open to that remote alone.
    pub fn symmetric() -> Self {
        Self::new().with_mapping(Behaviour::AddressAndPortDependent).with_ports(PortAllocation::Random)
    }

    /// As [`symmetric`](Self::symmetric), but the first remote sees the inside port. A probe with one server takes it for
    /// port-restricted.
    pub fn symmetric_preserving_ports() -> Self {
        Self::symmetric().with_ports(PortAllocation::Preserve)
    }

    /// The box of a carrier (RFC 6888): port-restricted with random ports, hairpinning, many mappings. Put homes behind
    /// it with [`SimNat::nat`](crate::sim::SimNat::nat).
    pub fn carrier_grade() -> Self {
        let ports = Self::new().with_ports(PortAllocation::Random);
        ports.with_hairpinning(true).with_max_mappings(CARRIER_MAPPINGS)
    }

    /// What tells mappings apart. Only for UDP: each TCP connection has a mapping of its own.
    pub fn with_mapping(mut self, behaviour: Behaviour) -> Self {
        self.mapping = behaviour;
        self
    }

    /// Who may send to a mapping: everybody, or remotes that were sent to within the timeout. Only for UDP: TCP
    /// connections come from inside, and each is open to its remote alone.
    pub fn with_filtering(mut self, behaviour: Behaviour) -> Self {
        self.filtering = behaviour;
        self
    }

    /// Whether two hosts behind the NAT reach each other by its public address (RFC 4787, section 6). They then see each
    /// other's public address as the sender. Default: no.
    pub fn with_hairpinning(mut self, hairpinning: bool) -> Self {
        self.hairpinning = hairpinning;
        self
    }

    /// Which public port a mapping gets. Default: [`PortAllocation::Preserve`].
    pub fn with_ports(mut self, ports: PortAllocation) -> Self {
        self.ports = ports;
        self
    }

    /// How long a UDP mapping, and the leave of one remote to send to it, lives after the last packet from inside.
    /// Default: 120 s. Real ones go down to 30 s.
    pub fn with_udp_timeout(mut self, timeout: Duration) -> Self {
        self.udp_timeout = timeout;
        self
    }

    /// Whether packets from outside refresh a mapping, too. Default: no.
    pub fn with_refresh_by_inbound(mut self, refresh: bool) -> Self {
        self.refresh_by_inbound = refresh;
        self
    }

    /// Mappings at once, at least 1. Default: 4,096. Full: packets that need a new one are dropped and counted in
    /// [`SimStats::nat_full`](crate::sim::SimStats::nat_full), until one expires.
    pub fn with_max_mappings(mut self, mappings: usize) -> Self {
        self.max_mappings = mappings.max(1);
        self
    }

    /// The line to the provider, which everything through the NAT crosses, on top of the link in the outer network; each
    /// direction on its own. Default: none.
    pub fn with_access_link(mut self, link: LinkOptions) -> Self {
        self.access_link = Some(link);
        self
    }

    /// Conditions between two hosts behind the NAT for which [`set_link`](crate::sim::SimNetwork::set_link) says nothing
    /// else. Default: [`LinkOptions::new`]. Packets to and from outside do not cross it.
    pub fn with_inside_link(mut self, link: LinkOptions) -> Self {
        self.inside_link = link;
        self
    }
}
