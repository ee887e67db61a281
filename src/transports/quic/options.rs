//! How a QUIC transport is set up. Every value has a default that suits an editor on a laptop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use quinn::{AsyncUdpSocket, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use super::path_epoch::PathEpoch;
use crate::limits::{
    CONNECT_DEADLINE, HANDSHAKES_BEFORE_RETRY, HELLO_MAX_BYTES, MAX_CONNECTIONS, RELAYS_PER_NODE,
    STREAMS_PER_CONNECTION,
};
use crate::net::HostNetwork;
use crate::rendezvous::address::RelayAddress;
use crate::transport::TransportError;
use crate::transports::host::OsNetwork;

/// Largest UDP payload that is probed for, in bytes: fits Ethernet below a tunnel, and TURN's headers.
const MTU_UPPER_BOUND_BYTES: u16 = 1400;
/// How often a larger MTU is tried again.
const MTU_PROBE_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of datagrams that wait to be sent, and to be read. Full: the oldest is dropped, as datagrams may be.
const DATAGRAM_BUFFER_BYTES: usize = 256 * 1024;
/// Longest idle timeout: beyond it a lost peer would hold its connection for the better part of an hour.
const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(1800);

/// Options of a [`QuicTransport`](super::QuicTransport): `new()`, then `with_*`. Validated once, at the start.
#[derive(Debug, Clone)]
pub struct QuicTransportOptions {
    pub(super) listen: Option<SocketAddr>,
    pub(super) socket: Option<Arc<dyn AsyncUdpSocket>>,
    pub(super) rng_seed: Option<[u8; 32]>,
    pub(super) keep_alive: Duration,
    pub(super) idle_timeout: Duration,
    pub(super) max_connections: usize,
    pub(super) handshakes_before_retry: usize,
    pub(super) accept_deadline: Duration,
    pub(super) stream_window_bytes: u32,
    pub(super) connection_window_bytes: u32,
    pub(super) initial_rtt: Duration,
    pub(super) hello: Bytes,
    pub(super) network: Option<Arc<dyn HostNetwork>>,
    pub(super) relays: Vec<RelayAddress>,
    pub(super) relay_only: bool,
    pub(super) port_mapping: bool,
    pub(super) birthday_punching: bool,
}

impl Default for QuicTransportOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl QuicTransportOptions {
    /// The defaults: any port on all addresses of both families.
    pub fn new() -> Self {
        Self {
            listen: None,
            socket: None,
            rng_seed: None,
            keep_alive: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            max_connections: MAX_CONNECTIONS,
            handshakes_before_retry: HANDSHAKES_BEFORE_RETRY,
            accept_deadline: CONNECT_DEADLINE,
            stream_window_bytes: 2 * 1024 * 1024,
            connection_window_bytes: 4 * 1024 * 1024,
            initial_rtt: Duration::from_millis(100),
            hello: Bytes::new(),
            network: None,
            relays: Vec::new(),
            relay_only: false,
            port_mapping: true,
            birthday_punching: false,
        }
    }

    /// Where the UDP socket listens. Default: `[::]` with a port that the system picks, for IPv6 and IPv4, or `0.0.0.0`
    /// where there is no IPv6. A fixed port keeps addresses in tickets valid, but a second node on the machine needs
    /// another; an address of one interface is deaf on all others.
    pub fn with_listen_address(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// A socket to use instead of opening one, for simulations. Default: none. The listen address is then ignored.
    pub fn with_socket(mut self, socket: Arc<dyn AsyncUdpSocket>) -> Self {
        self.socket = Some(socket);
        self
    }

    /// The machine's network, for relays and candidates. Default: the operating system's; with a socket of the caller's none,
    /// which leaves the transport without NAT traversal.
    pub fn with_network(mut self, network: Arc<dyn HostNetwork>) -> Self {
        self.network = Some(network);
        self
    }

    /// The network that this transport uses beside its socket.
    pub(super) fn host_network(&self) -> Option<Arc<dyn HostNetwork>> {
        match (&self.network, &self.socket) {
            (Some(network), _) => Some(network.clone()),
            (None, None) => Some(Arc::new(OsNetwork)),
            (None, Some(_)) => None,
        }
    }

    /// The network in which this node may show itself: none when it tells nobody its addresses.
    pub(crate) fn visible_network(&self) -> Option<Arc<dyn HostNetwork>> {
        self.host_network().filter(|_| !self.relay_only)
    }

    /// Relays to keep sessions with, best first, at most 8: peers find us there, and they help through NATs. Default: none. The more,
    /// the more of them learn when this node is online.
    pub fn with_relays(mut self, relays: impl IntoIterator<Item = RelayAddress>) -> Self {
        self.relays = relays.into_iter().collect();
        self
    }

    /// Only relayed paths, and no address of ours told to anybody but relays; who sends straight to our socket gets no answer.
    /// It takes an allocation at a TURN server besides a relay that forwards: who is at another TURN server is reached from there
    /// only. Default: off. Slower, and without a relay nobody is reached.
    pub fn with_relay_only(mut self, relay_only: bool) -> Self {
        self.relay_only = relay_only;
        self
    }

    /// Ask the router to let a port in, by PCP, NAT-PMP or UPnP, when this node is behind a NAT. Default: on. Off, peers behind
    /// symmetric NATs reach us through a relay only. Nothing is asked without a relay, which shows that there is a NAT, or with
    /// [`with_relay_only`](Self::with_relay_only). Everybody who learns our addresses can send to the port.
    pub fn with_port_mapping(mut self, port_mapping: bool) -> Self {
        self.port_mapping = port_mapping;
        self
    }

    /// Birthday punching. Default: off. It helps a peer behind a symmetric NAT and one behind a port-restricted one,
    /// which are relayed otherwise: after ten seconds the one opens up to 256 sockets, which take as many entries in
    /// its router's table for a minute or more, and the other tries up to 1,024 ports, which takes as many in its own,
    /// in about five seconds. Shallow tables of cheap routers overflow. Both have to opt in, one peer is tried at a
    /// time, and not again for a quarter of an hour. It takes two relays at different addresses to know the NAT. Never
    /// done with [`with_relay_only`](Self::with_relay_only).
    pub fn with_birthday_punching(mut self, birthday_punching: bool) -> Self {
        self.birthday_punching = birthday_punching;
        self
    }

    /// Seed of what is random in packet sizes and times, and of virtual addresses. Default: from the operating system.
    /// For simulations only: two nodes with one seed choose alike. Keys do not come from it.
    pub fn with_rng_seed(mut self, seed: [u8; 32]) -> Self {
        self.rng_seed = Some(seed);
        self
    }

    /// Time between two signs of life on a silent connection. Default: 5 s. Too small costs battery; above 25 s NATs
    /// forget the connection, and at half the idle timeout one lost packet ends it.
    pub fn with_keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = interval;
        self
    }

    /// Silence after which a connection is lost; the smaller value of both peers counts. Default: 30 s, at most 30 min.
    /// Too small ends connections in a tunnel or an elevator; too large notices a lost peer late.
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Connections at once, both directions, with those that are being made or closed. Default: 1,024. Beyond it peers
    /// are refused and own dials fail. An idle one costs about 40 kB here.
    pub fn with_max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// Incoming handshakes under way before further peers must first prove their address, which costs them a round trip.
    /// Default: 64. Too large lets a flood with forged addresses use memory; 0 always asks.
    pub fn with_handshakes_before_retry(mut self, handshakes: usize) -> Self {
        self.handshakes_before_retry = handshakes;
        self
    }

    /// How long a peer that dials us may take from its first packet to its hello. Default: 10 s. Too small refuses slow
    /// links; too large lets the silent fill the connection limit.
    pub fn with_accept_deadline(mut self, deadline: Duration) -> Self {
        self.accept_deadline = deadline;
        self
    }

    /// Unread bytes that one stream may hold, in bytes. Default: 2 MiB. One stream moves at most this much per round
    /// trip; memory per stream is bounded by it.
    pub fn with_stream_window_bytes(mut self, bytes: u32) -> Self {
        self.stream_window_bytes = bytes;
        self
    }

    /// Unread bytes and unacknowledged bytes of one connection, each, in bytes. Default: 4 MiB. Bounds what a peer can
    /// make us hold; a slow reader on one stream takes from it what all others share, so keep it above a stream's.
    pub fn with_connection_window_bytes(mut self, bytes: u32) -> Self {
        self.connection_window_bytes = bytes;
        self
    }

    /// The round-trip time that is assumed before one was measured. Default: 100 ms. It sets when a lost first packet is
    /// repeated (three times as long): too small sends needless copies, too large makes a loss expensive.
    pub fn with_initial_rtt(mut self, round_trip: Duration) -> Self {
        self.initial_rtt = round_trip;
        self
    }

    /// What peers learn from us while connecting, at most 1 KiB. Default: nothing. It may be delivered twice and replayed
    /// (0-RTT), so it must be harmless when it is.
    pub fn with_hello(mut self, hello: Bytes) -> Self {
        self.hello = hello;
        self
    }

    /// Checks what could not work.
    pub(super) fn validate(&self) -> Result<(), TransportError> {
        let limit = |what, actual, limit| {
            if actual > limit { Err(TransportError::Limit { what, limit }) } else { Ok(()) }
        };
        limit("hello bytes", self.hello.len(), HELLO_MAX_BYTES)?;
        limit("relays", self.relays.len(), RELAYS_PER_NODE)?;
        limit("idle timeout seconds", self.idle_timeout.as_secs() as usize, IDLE_TIMEOUT_MAX.as_secs() as usize)?;
        limit("keep-alive milliseconds", self.keep_alive.as_millis() as usize, self.idle_timeout.as_millis() as usize)
    }

    /// quinn's transport parameters, for a connection whose moves `epoch` counts.
    pub(super) fn transport_config(&self, epoch: &Arc<AtomicU64>) -> TransportConfig {
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(MTU_UPPER_BOUND_BYTES).interval(MTU_PROBE_INTERVAL);
        let mut config = TransportConfig::default();
        config
            .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_PER_CONNECTION))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(self.stream_window_bytes))
            .receive_window(VarInt::from_u32(self.connection_window_bytes))
            .send_window(u64::from(self.connection_window_bytes))
            .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
            .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
            .keep_alive_interval(Some(self.keep_alive))
            // Validated to fit: `None` would mean to wait for ever.
            .max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok())
            .initial_rtt(self.initial_rtt)
            .mtu_discovery_config(Some(mtu))
            .congestion_controller_factory(Arc::new(PathEpoch::new(epoch.clone())));
        config
    }

    /// quinn's endpoint parameters. No greasing: the first bits of a packet tell QUIC from what else shares the socket.
    pub(super) fn endpoint_config(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        config.grease_quic_bit(false).rng_seed(self.rng_seed);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_cannot_work_are_refused() {
        let options = QuicTransportOptions::new;
        assert_eq!(options().validate(), Ok(()));
        assert!(options().with_hello(vec![0; HELLO_MAX_BYTES].into()).validate().is_ok());
        assert!(options().with_hello(vec![0; HELLO_MAX_BYTES + 1].into()).validate().is_err());
        assert!(options().with_idle_timeout(Duration::from_secs(3600)).validate().is_err());
        assert!(options().with_keep_alive(Duration::from_secs(60)).validate().is_err());
        let relay = |number: usize| format!("relay-{number}.example.org").parse().unwrap();
        assert!(options().with_relays((0..RELAYS_PER_NODE).map(relay)).validate().is_ok());
        assert!(options().with_relays((0..=RELAYS_PER_NODE).map(relay)).validate().is_err());
    }
}
