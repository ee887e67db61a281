//! A stateful firewall, pure: which packets pass between a site and the rest of its network.
//!
//! It knows flows (protocol, inside, outside). A flow begins with a packet that the rules let pass, and then both
//! directions pass until it was silent for too long.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use super::packet::{Packet, Protocol};

/// Silence that ends a UDP flow: the value of Linux for flows with packets in both directions.
const UDP_TIMEOUT: Duration = Duration::from_secs(120);

/// Silence that ends a TCP flow (RFC 5382, section 5).
const TCP_TIMEOUT: Duration = Duration::from_secs(7440);

/// Flows of one firewall. More: packets of new ones are dropped until one ends.
const MAX_FLOWS: usize = 65_536;

/// What a firewall lets pass. The default is everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FirewallOptions {
    udp_blocked: bool,
    tcp_ports: Option<BTreeSet<u16>>,
    inbound_blocked: bool,
}

impl FirewallOptions {
    /// Lets everything pass.
    pub fn new() -> Self {
        Self::default()
    }

    /// No UDP in either direction, every TCP.
    pub fn udp_blocked() -> Self {
        Self::new().with_udp_blocked()
    }

    /// Nothing but TCP connections from inside to port 443, as in strict offices.
    pub fn tcp_443_only() -> Self {
        Self::new().with_udp_blocked().with_tcp_ports([443]).with_inbound_blocked()
    }

    /// Everything from inside and the answers to it, nothing else: what home routers do for IPv6 (RFC 6092).
    pub fn inbound_blocked() -> Self {
        Self::new().with_inbound_blocked()
    }

    /// No UDP in either direction.
    pub fn with_udp_blocked(mut self) -> Self {
        self.udp_blocked = true;
        self
    }

    /// TCP connections from inside only to these ports.
    pub fn with_tcp_ports(mut self, ports: impl IntoIterator<Item = u16>) -> Self {
        self.tcp_ports = Some(ports.into_iter().collect());
        self
    }

    /// No flows from outside, neither UDP nor TCP.
    pub fn with_inbound_blocked(mut self) -> Self {
        self.inbound_blocked = true;
        self
    }
}

/// One firewall and the flows through it.
#[derive(Debug)]
pub(super) struct Firewall {
    options: FirewallOptions,
    /// When each ends.
    flows: BTreeMap<(Protocol, SocketAddr, SocketAddr), Duration>,
}

impl Firewall {
    pub(super) fn new(options: FirewallOptions) -> Self {
        Self { options, flows: BTreeMap::new() }
    }

    /// Whether a packet may go out.
    pub(super) fn outbound(&mut self, now: Duration, packet: &Packet) -> bool {
        let allowed = match packet.protocol() {
            Protocol::Udp => !self.options.udp_blocked,
            Protocol::Tcp => self.options.tcp_ports.as_ref().is_none_or(|ports| ports.contains(&packet.to.port())),
        };
        self.pass(now, (packet.protocol(), packet.from, packet.to), allowed)
    }

    /// Whether a packet may come in.
    pub(super) fn inbound(&mut self, now: Duration, packet: &Packet) -> bool {
        let blocked = self.options.inbound_blocked || (packet.protocol() == Protocol::Udp && self.options.udp_blocked);
        self.pass(now, (packet.protocol(), packet.to, packet.from), !blocked)
    }

    /// Passes a packet of a known flow, or begins one if that is allowed.
    fn pass(&mut self, now: Duration, flow: (Protocol, SocketAddr, SocketAddr), allowed: bool) -> bool {
        let known = self.flows.get(&flow).is_some_and(|ends| *ends > now);
        if !known && !allowed {
            return false;
        }
        if !known && self.flows.len() >= MAX_FLOWS {
            self.flows.retain(|_, ends| *ends > now);
        }
        if !known && self.flows.len() >= MAX_FLOWS {
            return false;
        }
        let timeout = if flow.0 == Protocol::Udp { UDP_TIMEOUT } else { TCP_TIMEOUT };
        self.flows.insert(flow, now + timeout);
        true
    }
}
