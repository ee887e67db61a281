//! What a transport knows of its paths: the table of routes, and everything that goes in and out beside quinn.
//!
//! [`Paths`] outlives the socket, which quinn alone owns. Datagrams that are not QUIC leave here for whoever listens
//! ([`Paths::take_stun`]); datagrams that came in another way than the socket are put in here ([`Paths::inject`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::task::{Context, Waker};

use bytes::Bytes;
use quinn::AsyncUdpSocket;
use quinn::udp::{RecvMeta, Transmit};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::addresses::{canonical, is_destination};
use super::demux::{Protocol, protocol, retain_segments};
use super::path_socket::{SocketStats, send_to};
use super::routes::{Route, RouteTable, Seen};
use super::unproven::Unproven;
use crate::limits::{SOCKET_INJECTED, SOCKET_ROUTES, SOCKET_STUN_WAITING};
use crate::nat::path::{Path, Via};
use crate::rendezvous::forward::{FORWARD_HEADER_BYTES, parse_forward, put_forward};

/// Domain separation of the virtual addresses from what else is derived from one seed.
const ADDRESS_CONTEXT: &str = "panda-network 2026 virtual addresses";

/// A STUN message and the path by which it came.
pub(super) type StunInput = (Path, Bytes);

/// An allocation on a TURN server, as the socket sees it.
pub(super) trait TurnLink: Send + Sync + std::fmt::Debug {
    /// The server, if it is reached by this very socket.
    fn server(&self) -> Option<SocketAddr>;
    /// Frames a datagram to a peer into `out` and returns where to send that, or sends it itself.
    fn frame(&self, peer: SocketAddr, payload: &[u8], out: &mut Vec<u8>) -> Option<SocketAddr>;
    /// Takes what came from the server.
    fn receive<'a>(&self, frame: &'a [u8]) -> Received<'a>;
}

/// What came from a TURN server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received<'a> {
    /// A payload of a peer.
    Payload {
        /// Who sent it.
        peer: SocketAddr,
        /// What.
        payload: &'a [u8],
    },
    /// It was for the allocation itself.
    Taken,
    /// Nothing that the allocation asked for: the server may be a STUN server and a relay as well.
    Other,
}

/// What the transport knows of its paths; outlives the socket, which quinn alone owns.
#[derive(Debug)]
pub(super) struct Paths {
    /// Where the real socket listens.
    local: SocketAddr,
    socket: Weak<dyn AsyncUdpSocket>,
    routes: Mutex<RouteTable>,
    /// Relays, from which forwarded datagrams are taken.
    relays: RwLock<BTreeSet<SocketAddr>>,
    turn: RwLock<BTreeMap<u8, Arc<dyn TurnLink>>>,
    stun: mpsc::Sender<StunInput>,
    stun_taken: Mutex<Option<mpsc::Receiver<StunInput>>>,
    injected: Mutex<Injected>,
    unproven: Mutex<Unproven>,
    withheld: AtomicU64,
    send_errors: AtomicU64,
    pub(super) receive_errors: AtomicU64,
    dropped: AtomicU64,
}

/// Datagrams for quinn that came in another way than by themselves.
#[derive(Debug, Default)]
struct Injected {
    queue: VecDeque<(Path, Vec<u8>)>,
    reader: Option<Waker>,
}

impl Paths {
    /// The paths of a socket, with virtual addresses drawn from `seed`.
    pub(super) fn new(local: SocketAddr, socket: &Arc<dyn AsyncUdpSocket>, seed: &[u8; 32]) -> Self {
        let (stun, stun_taken) = mpsc::channel(SOCKET_STUN_WAITING);
        Self {
            local,
            socket: Arc::downgrade(socket),
            routes: Mutex::new(RouteTable::new(SOCKET_ROUTES, blake3::derive_key(ADDRESS_CONTEXT, seed))),
            relays: RwLock::default(),
            turn: RwLock::default(),
            stun,
            stun_taken: Mutex::new(Some(stun_taken)),
            injected: Mutex::default(),
            unproven: Mutex::new(Unproven::new(Instant::now().into_std())),
            withheld: AtomicU64::new(0),
            send_errors: AtomicU64::new(0),
            receive_errors: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Where the real socket listens.
    pub(super) fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// True when the socket can send to `address` at all.
    pub(super) fn reaches(&self, address: &SocketAddr) -> bool {
        is_destination(address) && (self.local.is_ipv6() || address.ip().to_canonical().is_ipv4())
    }

    /// Routes to dial so that all candidates are tried, and candidates that become known later; empty when the table is full.
    pub(super) fn dial(self: &Arc<Self>, candidates: &[SocketAddr]) -> Vec<RouteGuard> {
        let candidates: Vec<_> = candidates.iter().copied().map(canonical).map(Path::direct).collect();
        let dialled = self.routes().dial(&candidates);
        dialled.into_iter().map(|address| RouteGuard { paths: self.clone(), address }).collect()
    }

    /// One more path for a dial that nobody answered yet: what was sent so far goes there at once.
    /// Returns the route that holds the path already, if one does: the peer has to be dialled on that one as well.
    pub(super) fn add_candidate(self: &Arc<Self>, virtual_address: &SocketAddr, path: Path) -> Option<RouteGuard> {
        let holder = self.routes().holder(virtual_address, &path);
        if let Some(holder) = holder {
            return self.hold(holder);
        }
        let flight = self.routes().add_candidate(virtual_address, path);
        for datagram in flight {
            if self.may_send(&path) {
                self.send(path, &datagram);
            }
        }
        None
    }

    /// Keeps the route of a connection that a peer makes; `None` when it was forgotten meanwhile.
    pub(super) fn hold(self: &Arc<Self>, address: SocketAddr) -> Option<RouteGuard> {
        let held = self.routes().pin(&address);
        held.then(|| RouteGuard { paths: self.clone(), address })
    }

    /// The path that a virtual address stands for; `None` while a dial is open.
    pub(super) fn path(&self, virtual_address: &SocketAddr) -> Option<Path> {
        match self.routes().route(virtual_address) {
            Some(Route::Settled(path)) => Some(*path),
            Some(Route::Probing { .. }) | None => None,
        }
    }

    /// What comes by this path is the route's from now on: the peer proved it.
    pub(super) fn attach(&self, virtual_address: &SocketAddr, path: Path) {
        self.routes().attach(virtual_address, path);
    }

    /// Sends by this path from now on.
    pub(super) fn select(&self, virtual_address: &SocketAddr, path: Path) {
        self.routes().select(virtual_address, path);
    }

    /// Whether the path in use may be dead: what goes out is kept then.
    pub(super) fn set_in_doubt(&self, virtual_address: &SocketAddr, in_doubt: bool) {
        self.routes().set_in_doubt(virtual_address, in_doubt);
    }

    /// Sends what nobody may have heard once more, now that there is a path.
    pub(super) fn send_unheard(&self, virtual_address: &SocketAddr) {
        let (Some(path), unheard) = (self.path(virtual_address), self.routes().unheard(virtual_address)) else {
            return;
        };
        for datagram in unheard {
            self.send(path, &datagram);
        }
    }

    /// What was seen of a route's traffic; `watcher` is told of the next datagram. `None` when the route is gone.
    pub(super) fn watch(&self, virtual_address: &SocketAddr, watcher: Option<Arc<Notify>>) -> Option<Seen> {
        self.routes().watch(virtual_address, watcher)
    }

    /// A check on the path in use was answered.
    pub(super) fn on_answer(&self, virtual_address: &SocketAddr) {
        self.routes().on_answer(virtual_address);
    }

    /// The STUN messages that come in; to be taken once.
    pub(super) fn take_stun(&self) -> Option<mpsc::Receiver<StunInput>> {
        self.stun_taken.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Relays from which forwarded datagrams are taken.
    pub(super) fn set_relays(&self, relays: BTreeSet<SocketAddr>) {
        *self.relays.write().unwrap_or_else(PoisonError::into_inner) = relays;
    }

    /// An allocation that carries paths, or the end of it.
    pub(super) fn set_turn(&self, allocation: u8, link: Option<Arc<dyn TurnLink>>) {
        let mut turn = self.turn.write().unwrap_or_else(PoisonError::into_inner);
        match link {
            Some(link) => turn.insert(allocation, link),
            None => turn.remove(&allocation),
        };
    }

    /// A datagram that came in another way than by the socket, as if it had come by this path.
    pub(super) fn inject(&self, path: Path, datagram: &[u8]) {
        if protocol(datagram) == Protocol::Stun {
            return self.on_stun(path, datagram);
        }
        let mut injected = self.injected();
        if injected.queue.len() >= SOCKET_INJECTED {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        injected.queue.push_back((path, datagram.to_vec()));
        let reader = injected.reader.take();
        drop(injected);
        reader.inspect(Waker::wake_by_ref);
    }

    /// Sends one datagram beside quinn's, now or not at all.
    pub(super) fn send(&self, path: Path, datagram: &[u8]) {
        let Some(socket) = self.socket.upgrade() else { return };
        let transmit =
            Transmit { destination: path.remote, ecn: None, contents: datagram, segment_size: None, src_ip: None };
        // Blocked is loss.
        let _ = self.send_by(&*socket, path, &transmit);
    }

    /// What went wrong so far.
    pub(super) fn stats(&self) -> SocketStats {
        SocketStats {
            routes: self.routes().len(),
            send_errors: self.send_errors.load(Ordering::Relaxed),
            receive_errors: self.receive_errors.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            withheld: self.withheld.load(Ordering::Relaxed),
        }
    }

    /// Where to send a transmit of quinn's. Nowhere: the farewell of a dial that was given up, or of a connection whose route
    /// was needed elsewhere.
    pub(super) fn resolve(&self, transmit: &Transmit<'_>) -> Vec<Path> {
        let mut routes = self.routes();
        let last = segments(transmit).next_back().unwrap_or_default();
        routes.on_send(&transmit.destination, last, || Instant::now().into_std());
        match routes.route(&transmit.destination) {
            None => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                Vec::new()
            }
            Some(Route::Settled(path)) => vec![*path],
            Some(Route::Probing { candidates, .. }) => {
                let mut candidates = candidates.clone();
                routes.on_probe(&transmit.destination, transmit.contents);
                drop(routes);
                candidates.retain(|path| self.may_send(path));
                candidates
            }
        }
    }

    /// Whether one more packet may go by a path that nobody answered on yet. Relays may always be asked.
    pub(super) fn may_send(&self, path: &Path) -> bool {
        if path.via != Via::Socket {
            return true;
        }
        let mut unproven = self.unproven.lock().unwrap_or_else(PoisonError::into_inner);
        let may = unproven.take(path.remote.ip(), Instant::now().into_std());
        if !may {
            self.withheld.fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    /// The peer proved that it is there.
    pub(super) fn prove(&self, path: &Path) {
        if path.via == Via::Socket {
            self.unproven.lock().unwrap_or_else(PoisonError::into_inner).prove(path.remote.ip());
        }
    }

    /// Sends a transmit by one path, framed as the path wants it.
    ///
    /// # Errors
    /// `WouldBlock`, and nothing else: an error is about one datagram or one moment, and for quinn it would be the end.
    pub(super) fn send_by(
        &self,
        socket: &dyn AsyncUdpSocket,
        path: Path,
        transmit: &Transmit<'_>,
    ) -> std::io::Result<()> {
        let framed = match path.via {
            Via::Socket => return self.note(path, send_to(socket, self.local, path.remote, transmit)),
            Via::Forward { flow } => {
                let mut framed = Vec::new();
                for segment in segments(transmit) {
                    put_forward(&mut framed, flow, segment);
                }
                let segment_size = transmit.segment_size.map(|size| size + FORWARD_HEADER_BYTES);
                let transmit = Transmit { contents: &framed, segment_size, src_ip: None, ..*transmit };
                return self.note(path, send_to(socket, self.local, path.remote, &transmit));
            }
            Via::Turn { allocation } => self.turn().get(&allocation).cloned(),
        };
        let Some(link) = framed else { return Ok(()) };
        for segment in segments(transmit) {
            let mut framed = Vec::new();
            if let Some(server) = link.frame(path.remote, segment, &mut framed) {
                let transmit =
                    Transmit { destination: server, ecn: None, contents: &framed, segment_size: None, src_ip: None };
                // Blocked is loss for what is left of the batch: what was sent must not be sent again.
                let _ = self.note(path, send_to(socket, self.local, server, &transmit));
            }
        }
        Ok(())
    }

    fn note(&self, path: Path, sent: std::io::Result<()>) -> std::io::Result<()> {
        match sent {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                self.send_errors.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, "a datagram could not be sent");
                if is_network_gone(&error) {
                    self.routes().on_send_error(&path);
                }
                Ok(())
            }
            sent => sent,
        }
    }

    /// Takes out what is not quinn's and puts virtual sources into the rest. A batch with nothing left becomes empty.
    pub(super) fn translate(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let len = meta.len.min(buffer.len());
            let (batch, source) = (&mut buffer[..len], canonical(meta.addr));
            meta.len = self.take_out(batch, meta.stride, source);
            let first = &buffer[..meta.stride.min(meta.len)];
            if meta.len > 0 {
                match self.routes().on_receive(Path::direct(source), first) {
                    Some(virtual_address) => meta.addr = virtual_address,
                    None => {
                        meta.len = 0;
                        self.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// Takes what is not QUIC out of a batch; returns the length of what is left.
    fn take_out(&self, batch: &mut [u8], stride: usize, source: SocketAddr) -> usize {
        let turn = self.turn();
        let link = turn.iter().find(|(_, link)| link.server() == Some(source));
        if let Some((allocation, link)) = link.map(|(allocation, link)| (*allocation, link.clone())) {
            drop(turn);
            return retain_segments(batch, stride, |datagram| {
                match link.receive(datagram) {
                    Received::Payload { peer, payload } => {
                        self.inject(Path { via: Via::Turn { allocation }, remote: canonical(peer) }, payload);
                    }
                    Received::Taken => {}
                    // A TURN server has no business to speak QUIC from this address.
                    Received::Other => _ = self.is_quic(source, datagram),
                }
                false
            });
        }
        drop(turn);
        retain_segments(batch, stride, |datagram| self.is_quic(source, datagram))
    }

    /// Whether a datagram is quinn's; others are handed on to whom they are for.
    fn is_quic(&self, source: SocketAddr, datagram: &[u8]) -> bool {
        match protocol(datagram) {
            Protocol::Quic => return true,
            Protocol::Stun => self.on_stun(Path::direct(source), datagram),
            Protocol::Forward { flow } => {
                let from_relay = self.relays.read().unwrap_or_else(PoisonError::into_inner).contains(&source);
                if let (true, Some((_, payload))) = (from_relay, parse_forward(datagram)) {
                    self.inject(Path { via: Via::Forward { flow }, remote: source }, payload);
                }
            }
        }
        false
    }

    /// Fills buffers with what was injected; returns how many, or remembers whom to wake.
    pub(super) fn take_injected(
        &self,
        context: &Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> usize {
        let mut filled = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let mut injected = self.injected();
            let Some((path, datagram)) = injected.queue.pop_front() else {
                injected.reader = Some(context.waker().clone());
                break;
            };
            drop(injected);
            let len = datagram.len().min(buffer.len());
            buffer[..len].copy_from_slice(&datagram[..len]);
            let source = self.routes().on_receive(path, &datagram);
            *meta = RecvMeta { len, stride: len, addr: self.local, ecn: None, dst_ip: None };
            match source {
                Some(virtual_address) => meta.addr = virtual_address,
                None => {
                    meta.len = 0;
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            filled += 1;
        }
        filled
    }

    fn on_stun(&self, path: Path, datagram: &[u8]) {
        if self.stun.try_send((path, Bytes::copy_from_slice(datagram))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn routes(&self) -> MutexGuard<'_, RouteTable> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn injected(&self) -> MutexGuard<'_, Injected> {
        self.injected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<u8, Arc<dyn TurnLink>>> {
        self.turn.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The datagrams of a transmit.
fn segments<'a>(transmit: &Transmit<'a>) -> std::slice::Chunks<'a, u8> {
    transmit.contents.chunks(transmit.segment_size.unwrap_or(transmit.contents.len()).max(1))
}

/// The network says that there is no way: worth a fail-over. Others are about one datagram, like one that is too large.
fn is_network_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkDown, NetworkUnreachable, PermissionDenied};
    matches!(error.kind(), AddrNotAvailable | HostUnreachable | NetworkDown | NetworkUnreachable | PermissionDenied)
}

/// Keeps a route while a dial or a connection needs it.
#[derive(Debug)]
pub(super) struct RouteGuard {
    paths: Arc<Paths>,
    address: SocketAddr,
}

impl RouteGuard {
    /// The virtual address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RouteGuard {
    fn drop(&mut self) {
        self.paths.routes().unpin(&self.address);
    }
}
