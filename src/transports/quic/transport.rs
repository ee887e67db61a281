//! The QUIC transport: a thin handle over the endpoint, its socket, its connections and its counters.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, ServerConfig, TimeSource, TokioRuntime};
use tokio::time::{Instant, timeout, timeout_at};

use super::attempt::{Attempt, DialReport};
use super::connection::QuicConnection;
use super::counters::Counters;
use super::path_socket::{PathSocket, SocketStats};
use super::paths::Paths;
use super::peer_state::PeerStats;
use super::pool::ConnectionPool;
use super::queue::Queue;
use super::traversal::{Traversal, TraversalOptions};
use super::udp::Udp;
use super::wire::code;
use super::{QuicTransportOptions, dial, incoming};
use crate::address::PeerAddress;
use crate::identity::Identity;
use crate::ids::PeerId;
use crate::limits::MAX_INCOMING;
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::doorkeeper::Doorkeeper;
use crate::rendezvous::record::RendezvousRecord;
use crate::rendezvous::signal::Candidate;
use crate::transport::{
    BoxFuture, CloseReason, Connection, PathReport, Transport, TransportCapabilities, TransportError, TransportKind,
    TransportStats,
};
use crate::transports::relay_client::RelayState;
use crate::transports::tls::TlsIdentity;
use crate::watch;

/// Bytes that wait on one incoming connection between its first packet and its turn: a first flight with a hello.
const INCOMING_BUFFER_BYTES: u64 = 64 * 1024;
/// The same for all of them.
const INCOMING_BUFFERS_BYTES: u64 = 8 * 1024 * 1024;
/// Domain separation of what traversal draws from what else is derived from one seed.
const TRAVERSAL_CONTEXT: &str = "panda-network 2026 traversal";
/// Where the clock of address tokens starts: they never leave this process.
const CLOCK_EPOCH: Duration = Duration::from_secs(1_000_000_000);

/// What only QUIC counts, since the transport was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuicStats {
    /// Dials whose hello rode in 0-RTT and was accepted there.
    pub early_hellos: u64,
    /// Dials whose early hello was rejected and sent again.
    pub early_rejected: u64,
    /// Incoming attempts that had to prove their address.
    pub retried: u64,
    /// Streams with an unknown type or an oversized request.
    pub protocol_errors: u64,
    /// The socket below.
    pub socket: SocketStats,
}

/// QUIC to any number of peers over one UDP socket. Clones are handles; the last one closes everything at once, so call
/// [`Transport::shutdown`] before.
#[derive(Debug, Clone)]
pub struct QuicTransport(Arc<Handle>);

/// Stops the tasks, which hold the transport too, with the last public handle.
#[derive(Debug)]
struct Handle(Arc<QuicTransportImpl>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl QuicTransport {
    /// Opens the socket and starts to accept. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// [`TransportError::Limit`] for options that cannot work, [`TransportError::Bind`] when there is no socket to be had.
    pub fn start(identity: &Identity, options: QuicTransportOptions) -> Result<Self, TransportError> {
        options.validate()?;
        let wanted = options.listen.unwrap_or((Ipv6Addr::UNSPECIFIED, 0).into());
        let failed = |reason: String| TransportError::Bind { address: wanted, reason };
        let inner = match &options.socket {
            Some(socket) => socket.clone(),
            None => Udp::open(options.listen).map_err(|error| failed(error.to_string()))?,
        };
        let seed = options.rng_seed.unwrap_or_else(rand::random);
        let (socket, paths) = PathSocket::open(inner, &seed).map_err(|error| failed(error.to_string()))?;
        let tls = Arc::new(TlsIdentity::new(identity).map_err(|error| failed(error.to_string()))?);
        let (client, server) = quinn_configs(&tls, &options).map_err(failed)?;
        let config = options.endpoint_config();
        let endpoint = Endpoint::new_with_abstract_socket(config, Some(server.clone()), socket, Arc::new(TokioRuntime))
            .map_err(|error| failed(error.to_string()))?;
        let traversal = options.host_network().map(|network| {
            let (relays, relay_only) = (options.relays.clone(), options.relay_only);
            let port_mapping = options.port_mapping && !relay_only;
            let birthday_punching = options.birthday_punching && !relay_only;
            let traversal = TraversalOptions { network, relays, relay_only, port_mapping, birthday_punching };
            let seed = blake3::derive_key(TRAVERSAL_CONTEXT, &seed);
            Traversal::start(paths.clone(), identity.clone(), tls.clone(), traversal, seed)
        });
        let transport = Arc::new(QuicTransportImpl {
            endpoint: Mutex::new(Some(endpoint.clone())),
            client,
            server,
            #[cfg(feature = "bridge")]
            tls,
            traversal,
            paths,
            pool: Arc::default(),
            counters: Arc::new(Counters::new()),
            accepted: Queue::new(MAX_INCOMING),
            handshakes: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            options,
        });
        tokio::spawn(incoming::run(transport.clone(), endpoint));
        Ok(Self(Arc::new(Handle(transport))))
    }

    /// What only QUIC counts.
    pub fn quic_stats(&self) -> QuicStats {
        let counters = &self.inner().counters;
        QuicStats {
            early_hellos: counters.early_hellos.get(),
            early_rejected: counters.early_rejected.get(),
            retried: counters.retried.get(),
            protocol_errors: counters.protocol_errors.get(),
            socket: self.inner().paths.stats(),
        }
    }

    /// Where this node may be reached, best first, now and later. Empty and over without NAT traversal.
    pub fn candidates(&self) -> watch::Receiver<Vec<Candidate>> {
        match &self.inner().traversal {
            Some(traversal) => traversal.candidates(),
            None => watch::Sender::new(Vec::new()).subscribe(),
        }
    }

    /// Keeps sessions with these relays from now on, best first, and with no others: this node is found there. At most 8;
    /// further ones are left out. Nothing happens without NAT traversal.
    pub fn keep_relays(&self, relays: &[RelayAddress]) {
        if let Some(traversal) = &self.inner().traversal {
            traversal.keep_relays(relays);
        }
    }

    /// Has the relays that are kept remember where else this node can be met, for whoever knows its key and asks there. Again
    /// whenever that changes, and now and then.
    pub fn publish(&self, record: &RendezvousRecord) {
        if let Some(traversal) = &self.inner().traversal {
            traversal.publish(record.encode());
        }
    }

    /// The relays that sessions are kept with, best first, and how those are.
    pub fn relays(&self) -> Vec<(RelayAddress, RelayState)> {
        self.inner().traversal.as_ref().map(|traversal| traversal.relays()).unwrap_or_default()
    }

    /// Who is answered when a relay introduces somebody. Default: nobody.
    pub fn set_doorkeeper(&self, doorkeeper: Arc<dyn Doorkeeper>) {
        if let Some(traversal) = &self.inner().traversal {
            traversal.set_doorkeeper(doorkeeper);
        }
    }

    /// The network changed: mappings, relays and all paths are tried again.
    pub fn on_network_change(&self) {
        if let Some(traversal) = &self.inner().traversal {
            traversal.on_network_change();
        }
    }

    /// Facts about one peer, if it is connected.
    pub fn peer_stats(&self, peer: &PeerId) -> Option<PeerStats> {
        self.inner().pool.peer(peer)
    }

    /// The ways to a connected peer that are known, with what came of trying them. Empty without NAT traversal, and in the
    /// first moments of a connection.
    pub fn peer_paths(&self, peer: &PeerId) -> Vec<PathReport> {
        self.inner().pool.paths(peer)
    }

    /// Connects to a peer, as [`connect`](Transport::connect) does, and tells all that was tried, whatever came of it.
    pub async fn connect_and_tell(
        &self,
        peer: &PeerAddress,
        deadline: Duration,
    ) -> (Result<Arc<dyn Connection>, TransportError>, DialReport) {
        let attempt = Attempt::default();
        let dialled = self.dial((peer, false), deadline, &attempt).await;
        (dialled, attempt.report())
    }

    async fn dial(
        &self,
        (peer, stranger): (&PeerAddress, bool),
        deadline: Duration,
        attempt: &Attempt,
    ) -> Result<Arc<dyn Connection>, TransportError> {
        let dialled = timeout(deadline, dial::connect(self.inner(), peer, stranger, attempt)).await;
        let dialled = dialled.unwrap_or(Err(TransportError::Timeout(deadline))).inspect_err(|error| {
            self.inner().counters.failed.add();
            tracing::debug!(peer = %peer.peer_id().short(), %error, "could not connect");
        });
        dialled.map(|connection| connection as Arc<dyn Connection>)
    }

    pub(super) fn inner(&self) -> &Arc<QuicTransportImpl> {
        &self.0.0
    }
}

impl Transport for QuicTransport {
    fn kind(&self) -> TransportKind {
        TransportKind::Quic
    }

    fn capabilities(&self) -> TransportCapabilities {
        TransportCapabilities { datagrams: true, priorities: true }
    }

    fn local_addresses(&self) -> Vec<SocketAddr> {
        vec![self.inner().paths.local_address()]
    }

    fn connect<'a>(
        &'a self,
        peer: &'a PeerAddress,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, TransportError>> {
        Box::pin(async move { self.dial((peer, false), deadline, &Attempt::default()).await })
    }

    fn visit<'a>(
        &'a self,
        peer: &'a PeerAddress,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Arc<dyn Connection>, TransportError>> {
        Box::pin(async move { self.dial((peer, true), deadline, &Attempt::default()).await })
    }

    fn accept(&self) -> BoxFuture<'_, Option<Arc<dyn Connection>>> {
        Box::pin(async move { Some(self.inner().accepted.pop().await? as Arc<dyn Connection>) })
    }

    fn stats(&self) -> TransportStats {
        let (counters, totals) = (&self.inner().counters, self.inner().pool.totals());
        TransportStats {
            connections: totals.connections as u64,
            dialled: counters.dialled.get(),
            accepted: counters.accepted.get(),
            failed: counters.failed.get(),
            refused: counters.refused.get() + counters.retried.get(),
            sent_bytes: totals.sent_bytes,
            received_bytes: totals.received_bytes,
        }
    }

    /// Guaranteed, if the peer answers within three quarters of `deadline`: what was written on streams that were finished
    /// before has reached the peer's QUIC. Not guaranteed: unfinished streams, and that the peer's application has read it
    /// before it learns of the end; a protocol that needs to know asks for an answer first.
    fn shutdown(&self, deadline: Duration) -> BoxFuture<'_, ()> {
        Box::pin(self.inner().shutdown(deadline))
    }
}

/// The transport itself, shared by the handles and the tasks.
#[derive(Debug)]
pub(super) struct QuicTransportImpl {
    /// Gone after shutdown, which frees the socket.
    endpoint: Mutex<Option<Endpoint>>,
    client: quinn::ClientConfig,
    server: ServerConfig,
    /// Nodes are dialled with raw keys.
    #[cfg(feature = "bridge")]
    pub(super) tls: Arc<TlsIdentity>,
    pub(super) traversal: Option<Arc<Traversal>>,
    pub(super) paths: Arc<Paths>,
    pub(super) pool: Arc<ConnectionPool>,
    pub(super) counters: Arc<Counters>,
    /// Connections that wait for the application.
    pub(super) accepted: Queue<Arc<QuicConnection>>,
    /// Incoming handshakes under way.
    pub(super) handshakes: AtomicUsize,
    stopping: AtomicBool,
    pub(super) options: QuicTransportOptions,
}

impl QuicTransportImpl {
    /// The endpoint, while there is one and it takes new connections.
    pub(super) fn endpoint(&self) -> Result<Endpoint, TransportError> {
        let endpoint = if self.is_stopping() { None } else { self.endpoint_slot().clone() };
        endpoint.ok_or(TransportError::ClosedHere)
    }

    /// How to dial a connection whose moves `epoch` counts.
    pub(super) fn client_config(&self, epoch: &Arc<AtomicU64>) -> quinn::ClientConfig {
        let mut config = self.client.clone();
        config.transport_config(Arc::new(self.options.transport_config(epoch)));
        config
    }

    /// How to accept one.
    pub(super) fn server_config(&self, epoch: &Arc<AtomicU64>) -> Arc<ServerConfig> {
        let mut config = self.server.clone();
        config.transport_config(Arc::new(self.options.transport_config(epoch)));
        Arc::new(config)
    }

    /// True once a shutdown has begun.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn endpoint_slot(&self) -> MutexGuard<'_, Option<Endpoint>> {
        self.endpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes everything at once; peers are told if the runtime still runs for a moment.
    fn stop(&self) {
        drop(self.close());
        if let Some(traversal) = &self.traversal {
            traversal.stop();
        }
    }

    /// Closes all connections, whose paths stay for as long as the peers are told.
    fn close(&self) -> Option<Endpoint> {
        self.stopping.store(true, Ordering::Release);
        self.accepted.clear();
        let endpoint = self.endpoint_slot().take();
        if let Some(endpoint) = &endpoint {
            endpoint.close(code(CloseReason::Done), b"");
        }
        endpoint
    }

    async fn shutdown(&self, deadline: Duration) {
        let now = Instant::now();
        self.stopping.store(true, Ordering::Release);
        self.accepted.clear();
        let connections = self.pool.connections();
        let flushed = async {
            for connection in &connections {
                connection.flush.flushed().await;
            }
        };
        // The last quarter is for telling the peers. Late is not an error: whoever did not answer will time out.
        let _ = timeout_at(now + deadline * 3 / 4, flushed).await;
        for connection in connections {
            connection.quinn.close(code(CloseReason::Done), b"");
        }
        if let Some(traversal) = &self.traversal {
            let _ = timeout_at(now + deadline, traversal.release()).await;
        }
        if let Some(endpoint) = self.close() {
            let _ = timeout_at(now + deadline, endpoint.wait_idle()).await;
        }
        self.stop();
    }
}

/// TLS and transport parameters for both directions.
fn quinn_configs(
    tls: &TlsIdentity,
    options: &QuicTransportOptions,
) -> Result<(quinn::ClientConfig, ServerConfig), String> {
    let transport = Arc::new(options.transport_config(&Arc::default()));

    let mut client = tls.client().map_err(|error| error.to_string())?;
    client.enable_early_data = true;
    let client = QuicClientConfig::try_from(client).map_err(|error| error.to_string())?;
    let client = quinn::ClientConfig::new(Arc::new(client));

    let mut server = tls.server().map_err(|error| error.to_string())?;
    // The one value besides 0 that QUIC allows (RFC 9001, section 4.6.1).
    server.max_early_data_size = u32::MAX;
    let server = QuicServerConfig::try_from(server).map_err(|error| error.to_string())?;
    let mut server = ServerConfig::with_crypto(Arc::new(server));
    server
        .transport_config(transport)
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFERS_BYTES)
        .time_source(Arc::new(TokioClock(Instant::now())));
    Ok((client, server))
}

/// tokio's clock for the age of address tokens.
struct TokioClock(Instant);

impl TimeSource for TokioClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + CLOCK_EPOCH + self.0.elapsed()
    }
}
