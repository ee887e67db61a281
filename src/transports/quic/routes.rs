//! Which virtual address stands for which paths: the table below [`PathSocket`](super::path_socket::PathSocket).
//!
//! QUIC sees a peer under one stable virtual address (a random unique local IPv6 address) while the datagrams may travel
//! by one of several paths. A plain data structure: no socket, no clock, randomness handed in. It is bounded; the
//! clock algorithm (second chance) picks what to forget among routes that no connection holds.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::Notify;

use crate::limits::PATHS_PER_PEER;
use crate::nat::path::{Path, Via};

/// Connection ids of our own that a probing route remembers: one per attempt that shares it. More: the oldest is forgotten.
const PROBE_IDS: usize = 8;
/// Datagrams of a dial that are kept for candidates that become known later: the first flight, not more.
const FLIGHT_DATAGRAMS: usize = 4;
/// The same of a connection whose path is in doubt: all that its streams say again and again, not just the newest probes.
const DOUBT_DATAGRAMS: usize = 16;
/// The same of what a dialler says with the end of its handshake: the peer reads nothing of it while a part is missing.
const FINISH_DATAGRAMS: usize = 8;
/// A handshake without an answer for this long is not worth being heard by a new candidate: QUIC would take the time until
/// now for a part of the round trip, and wait for several times as long whenever a packet is lost. A fresh one is.
const HANDSHAKE_STALE: Duration = Duration::from_millis(300);
/// Virtual addresses have no ports; quinn wants one that is not 0.
const VIRTUAL_PORT: u16 = 1;
/// The first byte of a QUIC long header has these bits set (RFC 9000, section 17.2).
const LONG_HEADER: u8 = 0x80;
/// Longest connection id (RFC 9000, section 17.2).
const CONNECTION_ID_MAX_BYTES: usize = 20;

/// Where the datagrams of a virtual address go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// A dial in progress: everything is sent to all candidates until one of them answers.
    Probing {
        /// How the peer may be reached.
        candidates: Vec<Path>,
        /// The connection ids we sent as ours; an answer repeats one of them.
        ids: VecDeque<Vec<u8>>,
    },
    /// The one path that is in use.
    Settled(Path),
}

#[derive(Debug)]
struct Slot {
    route: Route,
    /// Connections and dials that hold the route.
    pins: u32,
    /// Used since the last time that the table looked for something to forget.
    used: bool,
    /// Paths besides the one in use whose datagrams are this peer's: proved by authenticated checks.
    attached: Vec<Path>,
    /// What was sent last, newest first: kept while nobody is known to receive it.
    flight: VecDeque<Vec<u8>>,
    /// Our connection ids of handshakes that began again. Their farewells would be greetings to whoever never heard of them.
    given_up: VecDeque<Vec<u8>>,
    /// When the first of it was sent.
    flight_since: Option<Instant>,
    /// The path in use may be dead.
    in_doubt: bool,
    /// A handshake is under way that the other end has not confirmed yet.
    finishing: bool,
    traffic: Traffic,
}

impl Slot {
    /// Keeps a datagram that may have to be sent once more, with at most so many.
    fn keep(&mut self, most: usize, datagram: &[u8], now: impl Fn() -> Instant) {
        if self.flight.is_empty() {
            self.flight_since = Some(now());
        }
        self.flight.truncate(most - 1);
        self.flight.push_front(datagram.to_vec());
    }
}

/// What goes and comes on a route, for whoever watches over its paths.
#[derive(Debug, Default)]
struct Traffic {
    /// When the first datagram was sent after the last one that came.
    unanswered_since: Option<Instant>,
    send_failed: bool,
    /// Told once of the next datagram that is sent, or could not be.
    watcher: Option<Arc<Notify>>,
}

/// What was seen of a route's traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Since when nothing came although something was sent.
    pub(super) unanswered_since: Option<Instant>,
    /// Whether sending failed since the last time that was asked.
    pub(super) send_failed: bool,
}

/// What a dial does with one more candidate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// Nothing: it was known, or another route holds it, or the dial was answered meanwhile.
    Nothing,
    /// Sends there what was sent to the others so far, oldest first.
    Flight(Vec<Vec<u8>>),
    /// Shakes hands anew.
    Afresh,
}

/// The table. Every path belongs to at most one virtual address.
#[derive(Debug)]
pub(super) struct RouteTable {
    slots: HashMap<SocketAddr, Slot>,
    by_path: HashMap<Path, SocketAddr>,
    /// The virtual addresses in the order in which they are considered for eviction.
    order: VecDeque<SocketAddr>,
    limit: usize,
    random: ChaCha8Rng,
}

impl RouteTable {
    /// An empty table of at most `limit` routes.
    pub(super) fn new(limit: usize, seed: [u8; 32]) -> Self {
        let random = ChaCha8Rng::from_seed(seed);
        Self { slots: HashMap::new(), by_path: HashMap::new(), order: VecDeque::new(), limit, random }
    }

    /// Routes now.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Where to send what quinn addresses to `virtual_address`.
    pub(super) fn route(&self, virtual_address: &SocketAddr) -> Option<&Route> {
        self.slots.get(virtual_address).map(|slot| &slot.route)
    }

    /// The virtual addresses to dial so that all candidates are tried, each pinned once.
    ///
    /// Candidates that no connection holds share a fresh virtual address. A candidate that a connection already holds is
    /// dialled under the address it has: moving it would let a peer whose record lists a foreign address cut that
    /// connection. Empty when the table is full of pinned routes.
    pub(super) fn dial(&mut self, candidates: &[Path]) -> Vec<SocketAddr> {
        let mut dialled = Vec::new();
        let mut free = Vec::new();
        for path in candidates {
            match self.by_path.get(path).copied() {
                Some(held) if self.slots.get(&held).is_some_and(|slot| slot.pins > 0) => {
                    if !dialled.contains(&held) {
                        dialled.push(held);
                    }
                }
                Some(unused) => {
                    self.forget(&unused);
                    free.push(*path);
                }
                None if free.contains(path) => {}
                None => free.push(*path),
            }
        }
        // Also without any: relays may bring some.
        if !free.is_empty() || candidates.is_empty() {
            dialled.extend(self.insert(Route::Probing { candidates: free, ids: VecDeque::new() }));
        }
        dialled.retain(|virtual_address| self.pin(virtual_address));
        dialled
    }

    /// Keeps a route for a connection; false when there is no such route.
    pub(super) fn pin(&mut self, virtual_address: &SocketAddr) -> bool {
        self.slots.get_mut(virtual_address).map(|slot| slot.pins += 1).is_some()
    }

    /// Gives up one pin. A settled route stays known until its place is needed; a dial that nobody answered does not.
    pub(super) fn unpin(&mut self, virtual_address: &SocketAddr) {
        let Some(slot) = self.slots.get_mut(virtual_address) else { return };
        slot.pins = slot.pins.saturating_sub(1);
        if slot.pins == 0 && matches!(slot.route, Route::Probing { .. }) {
            self.forget(virtual_address);
        }
    }

    /// Notes our connection id of a packet that goes out on a probing route.
    pub(super) fn on_probe(&mut self, virtual_address: &SocketAddr, packet: &[u8]) {
        let Some(Slot { route: Route::Probing { ids, .. }, .. }) = self.slots.get_mut(virtual_address) else { return };
        let Some((_, source)) = connection_ids(packet) else { return };
        if !ids.iter().any(|id| id == source) {
            ids.truncate(PROBE_IDS - 1);
            ids.push_front(source.to_vec());
        }
    }

    /// Whether a packet belongs to a handshake that was given up for a new one.
    pub(super) fn is_given_up(&self, virtual_address: &SocketAddr, packet: &[u8]) -> bool {
        let given_up = self.slots.get(virtual_address).map(|slot| &slot.given_up).filter(|ids| !ids.is_empty());
        given_up.is_some_and(|ids| connection_ids(packet).is_some_and(|(_, source)| ids.iter().any(|id| id == source)))
    }

    /// The route of a connection, dial or handshake that holds this path, if another than `virtual_address` does.
    pub(super) fn holder(&self, virtual_address: &SocketAddr, path: &Path) -> Option<SocketAddr> {
        let owner = self.by_path.get(path).filter(|owner| *owner != virtual_address)?;
        self.slots.get(owner).is_some_and(|slot| slot.pins > 0).then_some(*owner)
    }

    /// One more path for a dial that nobody answered yet.
    pub(super) fn add_candidate(&mut self, virtual_address: &SocketAddr, path: Path, now: Instant) -> Added {
        if !self.claim(virtual_address, path) {
            return Added::Nothing;
        }
        let Some(slot) = self.slots.get_mut(virtual_address) else { return Added::Nothing };
        match &mut slot.route {
            Route::Probing { candidates, ids } if candidates.len() < PATHS_PER_PEER && !candidates.contains(&path) => {
                candidates.push(path);
                let stale = slot.flight_since.is_some_and(|since| now >= since + HANDSHAKE_STALE);
                if stale {
                    slot.flight.clear();
                    slot.flight_since = None;
                    slot.given_up.extend(ids.drain(..));
                    slot.given_up.drain(..slot.given_up.len().saturating_sub(PROBE_IDS));
                    return Added::Afresh;
                }
                Added::Flight(slot.flight.iter().rev().cloned().collect())
            }
            Route::Probing { .. } | Route::Settled(_) => Added::Nothing,
        }
    }

    /// Whether the path in use may be dead. While it may, what goes out last is kept until a check on it is answered.
    pub(super) fn set_in_doubt(&mut self, virtual_address: &SocketAddr, in_doubt: bool) {
        if let Some(slot) = self.slots.get_mut(virtual_address) {
            slot.in_doubt = in_doubt;
        }
    }

    /// Whether what is kept is the end of a handshake.
    pub(super) fn is_finishing(&self, virtual_address: &SocketAddr) -> bool {
        self.slots.get(virtual_address).is_some_and(|slot| slot.finishing)
    }

    /// Whether what goes out is kept, since the end of a handshake may have to be said again. It begins by itself when a dial
    /// is answered, and not at all for a peer that may be somebody else's address.
    pub(super) fn set_finishing(&mut self, virtual_address: &SocketAddr, finishing: bool) {
        let Some(slot) = self.slots.get_mut(virtual_address) else { return };
        if !finishing && slot.finishing {
            slot.flight.clear();
        }
        slot.finishing = finishing && matches!(slot.route, Route::Settled(path) if path.via != Via::Socket);
    }

    /// What went out last while nobody was known to receive it, oldest first, to be sent once more: QUIC itself would wait
    /// for its next probe, longer and longer during an outage.
    pub(super) fn unheard(&self, virtual_address: &SocketAddr) -> Vec<Vec<u8>> {
        self.slots.get(virtual_address).map(|slot| slot.flight.iter().rev().cloned().collect()).unwrap_or_default()
    }

    /// An authenticated check came by this path: what comes by it is this peer's from now on. A path that another connection
    /// holds stays there.
    pub(super) fn attach(&mut self, virtual_address: &SocketAddr, path: Path) -> bool {
        let known = self.by_path.get(&path) == Some(virtual_address);
        if known || !self.claim(virtual_address, path) {
            return known;
        }
        let Some(slot) = self.slots.get_mut(virtual_address) else { return false };
        if slot.attached.len() >= PATHS_PER_PEER {
            let oldest = slot.attached.remove(0);
            self.by_path.remove(&oldest);
        }
        slot.attached.push(path);
        true
    }

    /// Sends by this path from now on. The one before stays attached: what is on its way still arrives.
    pub(super) fn select(&mut self, virtual_address: &SocketAddr, path: Path) {
        if !self.attach(virtual_address, path) {
            return;
        }
        let Some(slot) = self.slots.get_mut(virtual_address) else { return };
        slot.attached.retain(|attached| *attached != path);
        slot.traffic.unanswered_since = None;
        match std::mem::replace(&mut slot.route, Route::Settled(path)) {
            Route::Settled(before) if before != path => slot.attached.push(before),
            Route::Settled(_) => {}
            Route::Probing { candidates, .. } => {
                for loser in candidates.iter().filter(|loser| **loser != path) {
                    self.by_path.remove(loser);
                }
            }
        }
    }

    /// The traffic of a route since the last time; `watcher` is told of the next datagram that goes out.
    pub(super) fn watch(&mut self, virtual_address: &SocketAddr, watcher: Option<Arc<Notify>>) -> Option<Seen> {
        let traffic = &mut self.slots.get_mut(virtual_address)?.traffic;
        traffic.watcher = watcher;
        let send_failed = std::mem::take(&mut traffic.send_failed);
        Some(Seen { unanswered_since: traffic.unanswered_since, send_failed })
    }

    /// An answer to a check on the path in use says as much as a datagram of the connection.
    pub(super) fn on_answer(&mut self, virtual_address: &SocketAddr) {
        if let Some(slot) = self.slots.get_mut(virtual_address) {
            slot.traffic.unanswered_since = None;
            // The end of a handshake is kept until the peer confirms it.
            if !slot.finishing {
                slot.flight.clear();
            }
        }
    }

    /// Datagrams go out on a route.
    pub(super) fn on_send<'a>(
        &mut self,
        virtual_address: &SocketAddr,
        mut datagrams: impl DoubleEndedIterator<Item = &'a [u8]>,
        now: impl Fn() -> Instant,
    ) {
        let Some(slot) = self.slots.get_mut(virtual_address) else { return };
        if slot.finishing {
            for datagram in datagrams {
                slot.keep(FINISH_DATAGRAMS, datagram, &now);
            }
        } else if slot.in_doubt || matches!(slot.route, Route::Probing { .. }) {
            let most = if slot.in_doubt { DOUBT_DATAGRAMS } else { FLIGHT_DATAGRAMS };
            datagrams.next_back().into_iter().for_each(|last| slot.keep(most, last, &now));
        }
        if slot.traffic.unanswered_since.is_none() {
            slot.traffic.unanswered_since = Some(now());
            slot.traffic.watcher.take().inspect(|watcher| watcher.notify_one());
        }
    }

    /// A datagram could not be sent by this path.
    pub(super) fn on_send_error(&mut self, path: &Path) {
        let Some(slot) = self.by_path.get(path).and_then(|address| self.slots.get_mut(address)) else { return };
        if slot.route == Route::Settled(*path) {
            slot.traffic.send_failed = true;
            slot.traffic.watcher.take().inspect(|watcher| watcher.notify_one());
        }
    }

    /// The virtual address of a datagram that came by `path`, which may settle a dial; `None` when the table is full.
    ///
    /// Only an answer to our own packet settles a dial: a stray datagram from a candidate does not.
    pub(super) fn on_receive(&mut self, path: Path, packet: &[u8]) -> Option<SocketAddr> {
        let Some(virtual_address) = self.by_path.get(&path).copied() else {
            return self.insert(Route::Settled(path));
        };
        let slot = self.slots.get_mut(&virtual_address)?;
        slot.used = true;
        slot.traffic.unanswered_since = None;
        if let Route::Probing { candidates, ids, .. } = &mut slot.route {
            let answered = connection_ids(packet).is_some_and(|(ours, _)| ids.iter().any(|id| id == ours));
            if answered {
                let losers = std::mem::take(candidates);
                slot.route = Route::Settled(path);
                slot.flight.clear();
                slot.finishing = true;
                for loser in losers.iter().filter(|loser| **loser != path) {
                    self.by_path.remove(loser);
                }
            }
        }
        Some(virtual_address)
    }

    /// Makes a path this route's, unless a connection or dial holds it elsewhere.
    fn claim(&mut self, virtual_address: &SocketAddr, path: Path) -> bool {
        if !self.slots.contains_key(virtual_address) {
            return false;
        }
        match self.by_path.get(&path).copied() {
            Some(owner) if owner == *virtual_address => return true,
            Some(owner) if self.slots.get(&owner).is_some_and(|slot| slot.pins > 0) => return false,
            Some(owner) => self.forget(&owner),
            None => {}
        }
        self.by_path.insert(path, *virtual_address);
        true
    }

    fn insert(&mut self, route: Route) -> Option<SocketAddr> {
        if self.slots.len() >= self.limit && !self.evict() {
            return None;
        }
        let virtual_address = loop {
            let address = random_local_address(&mut self.random);
            if !self.slots.contains_key(&address) {
                break address;
            }
        };
        match &route {
            Route::Probing { candidates, .. } => {
                self.by_path.extend(candidates.iter().map(|path| (*path, virtual_address)));
            }
            Route::Settled(path) => {
                self.by_path.insert(*path, virtual_address);
            }
        }
        let slot = Slot {
            route,
            pins: 0,
            used: true,
            attached: Vec::new(),
            flight: VecDeque::new(),
            given_up: VecDeque::new(),
            flight_since: None,
            in_doubt: false,
            finishing: false,
            traffic: Traffic::default(),
        };
        self.slots.insert(virtual_address, slot);
        self.order.push_back(virtual_address);
        Some(virtual_address)
    }

    /// Forgets one route that nobody holds, preferably one that was not used lately; false when all are held.
    fn evict(&mut self) -> bool {
        for _ in 0..2 * self.order.len() {
            let Some(candidate) = self.order.pop_front() else { return false };
            let Some(slot) = self.slots.get_mut(&candidate) else { continue };
            if slot.pins == 0 && !slot.used {
                self.forget(&candidate);
                return true;
            }
            slot.used = false;
            self.order.push_back(candidate);
        }
        false
    }

    fn forget(&mut self, virtual_address: &SocketAddr) {
        let Some(slot) = self.slots.remove(virtual_address) else { return };
        let paths = match slot.route {
            Route::Probing { candidates, .. } => candidates,
            Route::Settled(path) => vec![path],
        };
        for path in paths.into_iter().chain(slot.attached) {
            if let Entry::Occupied(entry) = self.by_path.entry(path)
                && entry.get() == virtual_address
            {
                entry.remove();
            }
        }
        // Its place in `order` goes when it comes up, unless that would let `order` grow without bound.
        if self.order.len() > 2 * self.limit {
            self.order.retain(|address| self.slots.contains_key(address));
        }
    }
}

/// A random unique local address (RFC 4193): it cannot collide with a peer's real one that we would ever send to.
fn random_local_address(random: &mut ChaCha8Rng) -> SocketAddr {
    let mut octets: [u8; 16] = random.random();
    octets[0] = 0xfd;
    SocketAddr::from((Ipv6Addr::from(octets), VIRTUAL_PORT))
}

/// Destination and source connection id of a packet with a long header (RFC 9000, section 17.2).
fn connection_ids(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = packet.split_at_checked(5)?;
    if head[0] & LONG_HEADER == 0 {
        return None;
    }
    let (destination, rest) = connection_id(rest)?;
    let (source, _) = connection_id(rest)?;
    Some((destination, source))
}

fn connection_id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    if usize::from(*length) > CONNECTION_ID_MAX_BYTES { None } else { rest.split_at_checked(usize::from(*length)) }
}

#[cfg(test)]
mod tests;
