//! How a node is set up.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::backoff::ReconnectionPolicy;
use crate::discovery::DiscoveryOptions;
use crate::limits::{OUTBOX_MAX_BYTES, OUTBOX_MAX_OPERATIONS};
#[cfg(feature = "bridge")]
use crate::nodes::{P2pandaNetworkId, P2pandaNode};
use crate::store::Durability;
use crate::transports::quic::QuicTransportOptions;

/// Options of a [`PandaNetwork`](crate::PandaNetwork). Everything has a default but the directory.
#[derive(Debug, Clone)]
pub struct PandaNetworkOptions {
    pub(super) data_dir: PathBuf,
    pub(super) durability: Durability,
    pub(super) reconnection: ReconnectionPolicy,
    pub(super) outbox: (usize, u64),
    pub(super) quic: QuicTransportOptions,
    pub(super) relays: Vec<String>,
    pub(super) discovery: DiscoveryOptions,
    #[cfg(feature = "bridge")]
    pub(super) bridge: Vec<(P2pandaNetworkId, P2pandaNode)>,
    #[cfg(feature = "sim")]
    pub(super) simulation: Option<Simulation>,
}

/// Where a simulated node lives.
#[cfg(feature = "sim")]
#[derive(Debug, Clone)]
pub(super) struct Simulation {
    pub host: crate::sim::SimHost,
    pub port: u16,
    pub seed: [u8; 32],
}

impl PandaNetworkOptions {
    /// A node whose identity, operations and queue live in `data_dir`, which is made if it is missing. One process at a time.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            durability: Durability::default(),
            reconnection: ReconnectionPolicy::new(),
            outbox: (OUTBOX_MAX_OPERATIONS, OUTBOX_MAX_BYTES),
            quic: QuicTransportOptions::new(),
            relays: Vec::new(),
            discovery: DiscoveryOptions::new(),
            #[cfg(feature = "bridge")]
            bridge: Vec::new(),
            #[cfg(feature = "sim")]
            simulation: None,
        }
    }

    /// Where to listen. Default: every address, IPv6 and IPv4, on a port of the system's choice. A fixed port lets old tickets
    /// work after a restart even when nobody was connected to hear of the new one.
    pub fn with_listen_address(mut self, address: SocketAddr) -> Self {
        self.quic = self.quic.with_listen_address(address);
        self
    }

    /// What a resolved publish survives. Default: power loss ([`Durability::Power`]).
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// When lost and failed connections are tried again. Default: 500 ms, doubling up to 30 s, for ever.
    pub fn with_reconnection(mut self, policy: ReconnectionPolicy) -> Self {
        self.reconnection = policy;
        self
    }

    /// How many own operations, and bytes of them, may wait for a first peer, per document. Default: a million, 1 GiB. Too small
    /// makes `publish` fail with `QueueFull` early; larger costs disk, not memory.
    pub fn with_outbox_limits(mut self, operations: usize, bytes: u64) -> Self {
        self.outbox = (operations, bytes);
        self
    }

    /// Relays where peers find this node and that help through NATs: `host`, `host:port` or `host:port#key`, at most 8. Default:
    /// none; the relays of opened tickets are used in any case. With the key nobody can pose as the relay; without, whoever
    /// answers is taken, learns who meets whom, and still reads and forges nothing.
    pub fn with_relays<R: Into<String>>(mut self, relays: impl IntoIterator<Item = R>) -> Self {
        self.relays = relays.into_iter().map(Into::into).collect();
        self
    }

    /// Only relayed paths: peers do not learn this node's addresses. Default: off. Needs a relay, and is slower.
    pub fn with_relay_only(mut self, relay_only: bool) -> Self {
        self.quic = self.quic.with_relay_only(relay_only);
        self
    }

    /// Ask the router to let a port in when this node is behind a NAT. Default: on. Off, or where the router refuses, peers behind
    /// strict NATs reach this node through a relay only. Never done with [`with_relay_only`](Self::with_relay_only).
    pub fn with_port_mapping(mut self, port_mapping: bool) -> Self {
        self.quic = self.quic.with_port_mapping(port_mapping);
        self
    }

    /// Birthday punching. Default: off. It helps a peer behind a symmetric NAT and one behind a NAT that lets in exact ports only, which are
    /// relayed otherwise: after ten seconds the one opens up to 256 sockets, which take as many entries in its router's table for
    /// a minute or more, and the other tries up to 1,024 ports, which takes as many in its own, in about five seconds. Shallow
    /// tables of cheap routers overflow. Both have to opt in, one peer is tried at a time, and not again for a quarter of an hour.
    /// It takes two relays at different addresses to know the NAT. Never done with [`with_relay_only`](Self::with_relay_only).
    pub fn with_birthday_punching(mut self, birthday_punching: bool) -> Self {
        self.quic = self.quic.with_birthday_punching(birthday_punching);
        self
    }

    /// How peers are found, and which are connected to. Default: [`DiscoveryOptions::new`], which leaves the local network alone.
    pub fn with_discovery(mut self, options: DiscoveryOptions) -> Self {
        self.discovery = options;
        self
    }

    /// Takes every open document to a p2panda Node as well: its topic is [`DocumentKey::topic`](crate::DocumentKey::topic), its
    /// messages are the CBOR array `[1, payload]`. Default: none. Several calls add Nodes, at most 8; with more,
    /// starting fails. The same Node of the same network again adds addresses to it. Every open document has a connection to each
    /// Node, which counts in the transport's limit of connections (1,024 by default). A Node learns this node's address, so none is dialled with [`with_relay_only`](Self::with_relay_only). See
    /// `P2PANDA_INTEGRATION.md`.
    #[cfg(feature = "bridge")]
    pub fn with_p2panda_bridge(mut self, network: impl Into<P2pandaNetworkId>, node: P2pandaNode) -> Self {
        let network = network.into();
        match self.bridge.iter_mut().find(|(known, at)| *known == network && at.key() == node.key()) {
            Some((_, known)) => known.add_addresses(node.addresses()),
            None => self.bridge.push((network, node)),
        }
        self
    }

    /// Options of the QUIC transport; a listen address set here counts.
    pub fn with_quic(mut self, options: QuicTransportOptions) -> Self {
        self.quic = options;
        self
    }

    /// Runs the node on a simulated host instead of this machine: it listens on `port` of all addresses that the host has, its
    /// clock is the network's, storage and signatures run inline, and identity and randomness come from `seed`, so that the
    /// same seed gives the same packets. The data directory is real, so the node can be restarted.
    #[cfg(feature = "sim")]
    pub fn with_simulation(mut self, host: &crate::sim::SimHost, port: u16, seed: [u8; 32]) -> Self {
        self.simulation = Some(Simulation { host: host.clone(), port, seed });
        self
    }
}
