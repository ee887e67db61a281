//! How a relay is set up.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use zeroize::Zeroizing;

use super::limits::RelayLimits;
use super::peers::PeerPolicy;
use crate::clock::Clock;
use crate::identity::Identity;
use crate::rendezvous::address::HostPort;
use crate::rendezvous::pin::SpkiPin;
use crate::rendezvous::wire::TurnTransport;

/// Where clients get TURN from.
#[derive(Debug, Clone, Default)]
pub enum TurnMode {
    /// From this relay.
    #[default]
    Embedded,
    /// From other servers that share a secret with this relay (coturn's `static-auth-secret`).
    External(ExternalTurn),
    /// From nobody.
    Off,
}

/// TURN servers of somebody else, for which this relay makes credentials.
#[derive(Clone)]
pub struct ExternalTurn {
    /// The servers.
    pub servers: Vec<ExternalServer>,
    /// The shared secret. Not in `Debug`.
    pub secret: Zeroizing<String>,
}

/// One TURN server, by one transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalServer {
    /// By what it is reached.
    pub transport: TurnTransport,
    /// Where.
    pub server: HostPort,
    /// The key that nodes have it show, over TLS. `None`: any.
    pub pin: Option<SpkiPin>,
}

impl ExternalServer {
    /// A server with whatever key.
    pub fn new(transport: TurnTransport, server: HostPort) -> Self {
        Self { transport, server, pin: None }
    }

    /// Nodes take nobody else for it who reach it by TLS; the other transports show no key. Default: anybody.
    pub fn with_pin(mut self, pin: SpkiPin) -> Self {
        self.pin = Some(pin);
        self
    }
}

impl std::fmt::Debug for ExternalTurn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ExternalTurn({:?})", self.servers)
    }
}

/// Second address and port for a STUN server that tells NATs apart (RFC 5780).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alternate {
    /// Another address of this machine.
    pub ip: IpAddr,
    /// Another port, on both addresses.
    pub port: u16,
}

/// Options of a [`Relay`](super::Relay).
#[derive(Debug, Clone)]
pub struct RelayOptions {
    pub(super) identity: Identity,
    pub(super) listen: SocketAddr,
    pub(super) datagrams: SocketAddr,
    pub(super) alternate: Option<Alternate>,
    pub(super) turn_tcp: Option<SocketAddr>,
    pub(super) turn_ports: Option<RangeInclusive<u16>>,
    pub(super) public: Option<HostPort>,
    pub(super) public_ips: Vec<IpAddr>,
    pub(super) relay_ips: Vec<IpAddr>,
    pub(super) turn: TurnMode,
    pub(super) stun: Vec<HostPort>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) limits: RelayLimits,
    pub(super) policy: PeerPolicy,
    pub(super) seed: Option<[u8; 32]>,
    pub(super) clock: Clock,
}

impl RelayOptions {
    /// A relay with this key on free ports of loopback: good for tests, reachable for nobody else.
    pub fn new(identity: Identity) -> Self {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            identity,
            listen: loopback,
            datagrams: loopback,
            alternate: None,
            turn_tcp: None,
            turn_ports: None,
            public: None,
            public_ips: Vec::new(),
            relay_ips: Vec::new(),
            turn: TurnMode::Embedded,
            stun: Vec::new(),
            admin: None,
            limits: RelayLimits::new(),
            policy: PeerPolicy::new(),
            seed: None,
            clock: Clock::system(),
        }
    }

    /// Where TLS connections are taken: sessions with nodes, and TURN over TLS. Default a free port of 127.0.0.1. Port 443
    /// is what the strictest firewalls let through.
    pub fn with_listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Where datagrams are taken: STUN, TURN and forwarding. Default a free port of 127.0.0.1; by custom 3478.
    pub fn with_datagrams(mut self, address: SocketAddr) -> Self {
        self.datagrams = address;
        self
    }

    /// Answers STUN from a second address and port as well, so that clients learn how their NAT behaves (RFC 5780). Needs
    /// `with_datagrams` to name an address and a port, both other than these and of one family, and no `with_public_ips`: both
    /// addresses must be public themselves. Default: no second.
    pub fn with_alternate(mut self, alternate: Alternate) -> Self {
        self.alternate = Some(alternate);
        self
    }

    /// Where TURN over plain TCP is taken. Default: nowhere; TURN over TLS is always there. An error with another [`TurnMode`] than
    /// `Embedded`.
    pub fn with_turn_tcp(mut self, address: SocketAddr) -> Self {
        self.turn_tcp = Some(address);
        self
    }

    /// The numbers of relayed UDP ports, as a firewall is told them. Default: those that the system hands out. With fewer than there
    /// may be allocations, further ones are refused with 508. An error when there are none, and as for `with_turn_tcp`.
    pub fn with_turn_ports(mut self, ports: RangeInclusive<u16>) -> Self {
        self.turn_ports = Some(ports);
        self
    }

    /// The name or address and the port that users reach the TLS port by. Default: the listening address, which is of use
    /// only when it is not unspecified.
    pub fn with_public_address(mut self, address: HostPort) -> Self {
        self.public = Some(address);
        self
    }

    /// The addresses that this machine is known by when it is behind a one-to-one NAT, one per family: where nodes are told to ask
    /// for STUN, forwarding and TURN, and what TURN clients are told as their relayed address. Default: the addresses that the
    /// sockets and the relayed ports are bound to.
    pub fn with_public_ips(mut self, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        self.public_ips = ips.into_iter().collect();
        self
    }

    /// The addresses of this machine that relayed ports are bound to, one per family. Default: that of the datagram
    /// socket; when that is unspecified, per family that it takes a public address of an interface, else a private one, else loopback.
    pub fn with_relay_ips(mut self, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        self.relay_ips = ips.into_iter().collect();
        self
    }

    /// Where clients get TURN from. Default: from this relay.
    pub fn with_turn(mut self, turn: TurnMode) -> Self {
        self.turn = turn;
        self
    }

    /// Other STUN servers of the cooperative, which clients are told of; at most 16.
    pub fn with_stun_servers(mut self, servers: impl IntoIterator<Item = HostPort>) -> Self {
        self.stun = servers.into_iter().take(crate::limits::RELAY_SERVERS).collect();
        self
    }

    /// Where `/healthz` and `/metrics` are served over plain HTTP. Default: nowhere. Keep it on loopback: it is for
    /// whoever runs the relay.
    pub fn with_admin(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// Quotas.
    pub fn with_limits(mut self, limits: RelayLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Which addresses clients may have the relay send to. Default: public ones.
    pub fn with_peer_policy(mut self, policy: PeerPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// What all random numbers come from. Default: the operating system. For simulations only: who knows it knows the
    /// credentials.
    pub fn with_seed(mut self, seed: [u8; 32]) -> Self {
        self.seed = Some(seed);
        self
    }

    /// The wall clock, which expiry times in credentials are read against. Default: the system's.
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }
}
