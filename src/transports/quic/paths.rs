//! What a transport knows of its paths: the table of routes, and everything that goes in and out beside quinn.
//!
//! [`Paths`] outlives the socket, which quinn alone owns. Datagrams that are not QUIC leave here for whoever listens
//! ([`Paths::take_stun`]); datagrams that came in another way than the socket are put in here ([`Paths::inject`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::task::Waker;

use bytes::Bytes;
use quinn::AsyncUdpSocket;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

mod incoming;
mod outgoing;

use super::addresses::{canonical, is_destination};
use super::extra::ExtraSockets;
use super::path_socket::SocketStats;
use super::routes::{Added, Route, RouteTable, Seen};
use super::unproven::{Bounds, Unproven};
use crate::limits::{SOCKET_ROUTES, SOCKET_STUN_WAITING};
use crate::nat::path::Path;

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
    /// Relays, from which forwarded datagrams are taken, and whether anything proved that one is there.
    relays: RwLock<BTreeMap<SocketAddr, bool>>,
    turn: RwLock<BTreeMap<u8, Arc<dyn TurnLink>>>,
    stun: mpsc::Sender<StunInput>,
    stun_taken: Mutex<Option<mpsc::Receiver<StunInput>>>,
    injected: Mutex<Injected>,
    pub(super) extra: ExtraSockets,
    unproven: Mutex<Unproven>,
    /// Of birthday punching.
    guesses: Mutex<Unproven>,
    /// Of servers that relays name.
    named: Mutex<Unproven>,
    /// Addresses of strangers that were visited.
    visited: Mutex<Unproven>,
    withheld: AtomicU64,
    repeated: AtomicU64,
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
            extra: ExtraSockets::default(),
            unproven: Mutex::new(Unproven::new(Instant::now().into_std(), Bounds::PATHS)),
            guesses: Mutex::new(Unproven::new(Instant::now().into_std(), Bounds::BIRTHDAY)),
            named: Mutex::new(Unproven::new(Instant::now().into_std(), Bounds::NAMED)),
            visited: Mutex::new(Unproven::new(Instant::now().into_std(), Bounds::VISITED)),
            withheld: AtomicU64::new(0),
            repeated: AtomicU64::new(0),
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
    pub(super) fn add_candidate(self: &Arc<Self>, virtual_address: &SocketAddr, path: Path) -> Offered {
        let holder = self.routes().holder(virtual_address, &path);
        if let Some(holder) = holder {
            return self.hold(holder).map_or(Offered::Taken, Offered::Held);
        }
        let added = self.routes().add_candidate(virtual_address, path, Instant::now().into_std());
        match added {
            Added::Nothing => Offered::Taken,
            Added::Afresh => Offered::Afresh,
            Added::Flight(flight) => {
                for datagram in flight {
                    if self.may_send(&path) {
                        self.send(path, &datagram);
                    }
                }
                Offered::Taken
            }
        }
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

    /// Whether what goes out is kept, because the handshake may have to be said again.
    pub(super) fn set_finishing(&self, virtual_address: &SocketAddr, finishing: bool) {
        self.routes().set_finishing(virtual_address, finishing);
    }

    /// Whether what is kept is the end of a handshake.
    pub(super) fn is_finishing(&self, virtual_address: &SocketAddr) -> bool {
        self.routes().is_finishing(virtual_address)
    }

    /// Sends what nobody may have heard once more, now that there is a path.
    pub(super) fn send_unheard(&self, virtual_address: &SocketAddr) {
        let (Some(path), unheard) = (self.path(virtual_address), self.routes().unheard(virtual_address)) else {
            return;
        };
        for datagram in unheard {
            self.repeated.fetch_add(1, Ordering::Relaxed);
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
    pub(super) fn set_relays(&self, relays: &BTreeSet<SocketAddr>) {
        let mut known = self.relays.write().unwrap_or_else(PoisonError::into_inner);
        known.retain(|relay, _| relays.contains(relay));
        relays.iter().for_each(|relay| _ = known.entry(*relay).or_insert(false));
    }

    /// A server that a relay named answered what it was asked, or a peer did through it.
    pub(super) fn on_server_answer(&self, server: SocketAddr) {
        self.named.lock().unwrap_or_else(PoisonError::into_inner).prove(server.ip());
        if let Some(proven) = self.relays.write().unwrap_or_else(PoisonError::into_inner).get_mut(&server) {
            *proven = true;
        }
    }

    /// An allocation that carries paths, or the end of it.
    pub(super) fn set_turn(&self, allocation: u8, link: Option<Arc<dyn TurnLink>>) {
        let mut turn = self.turn.write().unwrap_or_else(PoisonError::into_inner);
        match link {
            Some(link) => turn.insert(allocation, link),
            None => turn.remove(&allocation),
        };
    }

    /// What went wrong so far.
    pub(super) fn stats(&self) -> SocketStats {
        SocketStats {
            routes: self.routes().len(),
            send_errors: self.send_errors.load(Ordering::Relaxed),
            receive_errors: self.receive_errors.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
            withheld: self.withheld.load(Ordering::Relaxed),
            repeated: self.repeated.load(Ordering::Relaxed),
            extra: self.extra.len(),
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

/// What has to be done for a path that was offered to a dial.
#[derive(Debug)]
pub(super) enum Offered {
    /// Nothing more.
    Taken,
    /// This route holds the path already: the peer has to be dialled on that one as well.
    Held(RouteGuard),
    /// The handshake under way is too old to be heard there: it has to begin again.
    Afresh,
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
