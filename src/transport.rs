//! The port to the network: what every transport offers to the services above it.
//!
//! A transport makes authenticated, encrypted, multiplexed connections to peers by their [`PeerId`]. Adapters live in
//! `transports/`. Everything is object-safe; futures are boxed, which costs one allocation per call and no more.

use std::fmt::Debug;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use crate::address::PeerAddress;
pub use crate::address::TransportKind;
use crate::ids::PeerId;

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Which of two streams with data to send goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Heartbeats.
    Low,
    /// Catch-up.
    Medium,
    /// Live operations, acknowledgements, goodbye.
    High,
}

/// Why a connection or a stream was closed by us; the number travels to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
#[non_exhaustive]
pub enum CloseReason {
    /// Nothing wrong: shutdown, or the stream has nothing more to say.
    Done = 0,
    /// A newer connection to the same peer took over.
    Superseded = 1,
    /// The peer sent a frame that is damaged or too large.
    BadFrame = 2,
    /// The peer sent operations that were refused more often than is forgiven.
    BadOperation = 3,
    /// The peer speaks another protocol version.
    UnknownVersion = 4,
    /// The peer is not welcome: a limit is reached.
    TooBusy = 5,
    /// This side cannot go on: its store failed.
    InternalError = 6,
    /// The peer stopped answering heartbeats.
    Unresponsive = 7,
    /// The stream asks for a document that is not shared here.
    UnknownDocument = 8,
    /// This side went offline on purpose.
    GoingOffline = 9,
    /// This side does not connect to the peer, by its own choice.
    NotWelcome = 10,
    /// The stream is for something that this side does not take part in.
    NotOffered = 11,
}

/// A connection, a stream or an attempt at one failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The peer did not answer in time. The network or the peer's absence.
    #[error("no answer from the peer within {0:?}; is it running, and is the address still right?")]
    Timeout(Duration),
    /// No address of the peer fits this transport. The caller or the ticket.
    #[error("no {0:?} address is known for this peer")]
    NoAddress(TransportKind),
    /// Somebody else answers at this address. The peer or somebody in between.
    #[error("another peer than the dialled one answers at this address")]
    WrongPeer,
    /// The peer closed with a code of [`CloseReason`].
    #[error("closed by the peer with code {code}")]
    ClosedByPeer {
        /// The code.
        code: u64,
    },
    /// This side closed.
    #[error("closed here")]
    ClosedHere,
    /// The peer broke the protocol.
    #[error("peer broke the protocol: {0}")]
    Protocol(String),
    /// The connection was lost.
    #[error("connection lost: {0}")]
    Lost(String),
    /// A bound of this node is reached.
    #[error("{what} limit of {limit} is reached")]
    Limit {
        /// What is bounded.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The socket could not be opened or configured. The environment.
    #[error("cannot listen on {address}: {reason}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        reason: String,
    },
}

/// What a transport can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransportCapabilities {
    /// Unreliable datagrams.
    pub datagrams: bool,
    /// Streams with priorities.
    pub priorities: bool,
}

/// On what it depends under which public address a NAT shows a socket (RFC 4787, section 4.1), as far as a node knows of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NatMapping {
    /// On nothing: everybody sees the same.
    Independent,
    /// On whom the socket sends to ("symmetric").
    Dependent,
    /// Too few servers told.
    Unknown,
}

/// How the datagrams or bytes of a connection travel now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum PathKind {
    /// Within one network, from interface to interface.
    Lan,
    /// Straight to an address that one of the two has on an interface of its own.
    Direct,
    /// Straight through the NATs of both, opened by hole punching.
    Punched,
    /// Straight to a port that a router maps on request (UPnP, PCP, NAT-PMP).
    Mapped,
    /// Forwarded by a cooperative's relay.
    Forwarded,
    /// Over a TURN server by UDP.
    TurnUdp,
    /// Over a TURN server by TCP.
    TurnTcp,
    /// Over a TURN server by TLS.
    TurnTls,
}

impl std::fmt::Display for PathKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lan => "same network",
            Self::Direct => "direct",
            Self::Punched => "punched",
            Self::Mapped => "mapped port",
            Self::Forwarded => "relayed",
            Self::TurnUdp => "relayed (TURN)",
            Self::TurnTcp => "relayed (TURN over TCP)",
            Self::TurnTls => "relayed (TURN over TLS)",
        })
    }
}

/// What is known of one way to a connected peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PathReport {
    /// Which kind it is.
    pub kind: PathKind,
    /// Where datagrams are sent: the peer as it is seen from here, or the relay that forwards.
    pub remote: SocketAddr,
    /// The round trip, while checks are answered; `None`: nobody answers, or not any more.
    pub round_trip: Option<Duration>,
    /// Datagrams go by it now.
    pub selected: bool,
}

/// Facts about one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// The authenticated peer.
    pub peer_id: PeerId,
    /// Which transport carries it.
    pub transport: TransportKind,
    /// True when this side dialled.
    pub dialled: bool,
    /// Where its packets go now.
    pub remote_address: Option<SocketAddr>,
    /// How they travel.
    pub path: PathKind,
}

/// Counters of one connection since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Smoothed round-trip time.
    pub round_trip: Duration,
    /// Bytes sent, with all headers below this layer that the transport knows.
    pub sent_bytes: u64,
    /// Bytes received, likewise.
    pub received_bytes: u64,
    /// Packets taken for lost.
    pub lost_packets: u64,
}

/// Counters of a transport since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Connections now.
    pub connections: u64,
    /// Connections that this side dialled and that were established.
    pub dialled: u64,
    /// Connections that were accepted.
    pub accepted: u64,
    /// Attempts by this side that failed.
    pub failed: u64,
    /// Incoming attempts that were refused or told to prove their address.
    pub refused: u64,
    /// Bytes sent on all connections.
    pub sent_bytes: u64,
    /// Bytes received on all connections.
    pub received_bytes: u64,
}

/// The sending half of a stream. Dropping it without [`finish`](Self::finish) resets the stream.
pub trait SendHalf: Send + Debug {
    /// Queues bytes, waiting while the peer's window is full. Cancelling may lose the stream but nothing else.
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), TransportError>>;
    /// Ends the stream after what was written.
    fn finish(&mut self);
    /// Ends the stream at once with a reason; what was not delivered yet is lost.
    fn reset(&mut self, reason: CloseReason);
}

/// The receiving half of a stream. Dropping it tells the peer to stop sending.
pub trait RecvHalf: Send + Debug {
    /// The next bytes in order, at most `limit`; `None` at the end. Cancel-safe.
    fn read(&mut self, limit: usize) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>>;
    /// Tells the peer to stop sending, with a reason.
    fn stop(&mut self, reason: CloseReason);
}

/// A bidirectional stream.
pub type BiStream = (Box<dyn SendHalf>, Box<dyn RecvHalf>);

/// One authenticated connection to one peer. All methods may be called from any task at the same time.
pub trait Connection: Send + Sync + Debug {
    /// Who is at the other end and how it is reached.
    fn info(&self) -> ConnectionInfo;
    /// Counters.
    fn stats(&self) -> ConnectionStats;
    /// What the peer said about itself while connecting, at most 1 KiB; empty where a transport has no hello.
    fn peer_hello(&self) -> Bytes {
        Bytes::new()
    }
    /// Opens a stream; the peer sees it with its first bytes.
    fn open_bi(&self, priority: Priority) -> BoxFuture<'_, Result<BiStream, TransportError>>;
    /// The next stream that the peer opened; requests are served elsewhere and do not show here. Cancel-safe.
    fn accept_bi(&self) -> BoxFuture<'_, Result<BiStream, TransportError>>;
    /// Sends an unreliable datagram now or not at all.
    ///
    /// # Errors
    /// When the connection is closed, has no datagrams, or the bytes do not fit one.
    fn send_datagram(&self, bytes: Bytes) -> Result<(), TransportError>;
    /// The next datagram from the peer. Cancel-safe.
    fn read_datagram(&self) -> BoxFuture<'_, Result<Bytes, TransportError>>;
    /// Sends a request on a stream of its own and waits for the response, both at most 64 KiB.
    fn request(&self, request: Bytes, deadline: Duration) -> BoxFuture<'_, Result<Bytes, TransportError>>;
    /// The next request of the peer, to be answered through it. Cancel-safe.
    fn accept_request(&self) -> BoxFuture<'_, Result<IncomingRequest, TransportError>>;
    /// 32 bytes that only the two ends of this very connection know (RFC 5705).
    ///
    /// # Errors
    /// When the handshake is not complete.
    fn export_secret(&self, label: &[u8]) -> Result<[u8; 32], TransportError>;
    /// Closes at once; the peer is told the reason.
    fn close(&self, reason: CloseReason);
    /// Resolves when the connection is gone, with why.
    fn closed(&self) -> BoxFuture<'_, TransportError>;
}

/// Takes streams of one kind that peers open, from the service that accepts them all.
pub trait StreamHandler: Send + Sync + Debug {
    /// Serves a stream on a task of its own, or refuses it; its first frame was read. Must return at once.
    fn serve(&self, connection: Arc<dyn Connection>, stream: BiStream);
}

/// A request of the peer and the stream to answer it on. Dropping it tells the peer that it was refused.
#[derive(Debug)]
pub struct IncomingRequest {
    /// What the peer asks.
    pub request: Bytes,
    /// Where the answer goes.
    pub answer: Box<dyn SendHalf>,
}

/// A way to reach peers. Started by its constructor, which also listens.
pub trait Transport: Send + Sync + Debug {
    /// Which one it is.
    fn kind(&self) -> TransportKind;
    /// What it can do.
    fn capabilities(&self) -> TransportCapabilities;
    /// Where it listens; with port 0 in the options, the port that was chosen.
    fn local_addresses(&self) -> Vec<SocketAddr>;
    /// Connects to exactly this peer. Dropping the future abandons the attempt.
    fn connect<'a>(
        &'a self,
        peer: &'a PeerAddress,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, TransportError>>;
    /// As [`connect`](Self::connect), to a stranger: a peer that others named, and that shares nothing with this node as far as is
    /// known. Anybody can make up such peers, so less is done to reach one: nothing is opened for it besides the connection.
    fn visit<'a>(
        &'a self,
        peer: &'a PeerAddress,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, TransportError>> {
        self.connect(peer, deadline)
    }
    /// The next connection that a peer made, authenticated; `None` after shutdown. Cancel-safe.
    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>>;
    /// Counters.
    fn stats(&self) -> TransportStats;
    /// Closes all connections, waits until the peers know or `deadline` is over, and stops listening.
    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ()>;
}
