//! Which virtual address stands for which real one: the table below [`PathSocket`](super::path_socket::PathSocket).
//!
//! QUIC sees a peer under one stable virtual address (a random unique local IPv6 address) while the datagrams may travel
//! to one of several real ones. A plain data structure: no socket, no clock, randomness handed in. It is bounded; the
//! clock algorithm (second chance) picks what to forget among routes that no connection holds.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::{Ipv6Addr, SocketAddr};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Connection ids of our own that a probing route remembers: one per attempt that shares it. More: the oldest is forgotten.
const PROBE_IDS: usize = 8;
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
        /// Where the peer may be.
        candidates: Vec<SocketAddr>,
        /// The connection ids we sent as ours; an answer repeats one of them.
        ids: VecDeque<Vec<u8>>,
    },
    /// The one address that the peer answered from.
    Settled(SocketAddr),
}

#[derive(Debug)]
struct Slot {
    route: Route,
    /// Connections and dials that hold the route.
    pins: u32,
    /// Used since the last time that the table looked for something to forget.
    used: bool,
}

/// The table. Every real address belongs to at most one virtual address.
#[derive(Debug)]
pub(super) struct RouteTable {
    slots: HashMap<SocketAddr, Slot>,
    by_real: HashMap<SocketAddr, SocketAddr>,
    /// The virtual addresses in the order in which they are considered for eviction.
    order: VecDeque<SocketAddr>,
    limit: usize,
    random: ChaCha8Rng,
}

impl RouteTable {
    /// An empty table of at most `limit` routes.
    pub(super) fn new(limit: usize, seed: [u8; 32]) -> Self {
        let random = ChaCha8Rng::from_seed(seed);
        Self { slots: HashMap::new(), by_real: HashMap::new(), order: VecDeque::new(), limit, random }
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
    pub(super) fn dial(&mut self, candidates: &[SocketAddr]) -> Vec<SocketAddr> {
        let mut dialled = Vec::new();
        let mut free = Vec::new();
        for real in candidates {
            match self.by_real.get(real).copied() {
                Some(held) if self.slots.get(&held).is_some_and(|slot| slot.pins > 0) => {
                    if !dialled.contains(&held) {
                        dialled.push(held);
                    }
                }
                Some(unused) => {
                    self.forget(&unused);
                    free.push(*real);
                }
                None if free.contains(real) => {}
                None => free.push(*real),
            }
        }
        if !free.is_empty() {
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

    /// The virtual address of a datagram from `real`, and whether it settled a dial; `None` when the table is full.
    ///
    /// Only an answer to our own packet settles a dial: a stray datagram from a candidate does not.
    pub(super) fn on_receive(&mut self, real: SocketAddr, packet: &[u8]) -> Option<SocketAddr> {
        let Some(virtual_address) = self.by_real.get(&real).copied() else {
            return self.insert(Route::Settled(real));
        };
        let slot = self.slots.get_mut(&virtual_address)?;
        slot.used = true;
        if let Route::Probing { candidates, ids } = &mut slot.route {
            let answered = connection_ids(packet).is_some_and(|(ours, _)| ids.iter().any(|id| id == ours));
            if answered {
                let losers = std::mem::take(candidates);
                slot.route = Route::Settled(real);
                for loser in losers.iter().filter(|loser| **loser != real) {
                    self.by_real.remove(loser);
                }
            }
        }
        Some(virtual_address)
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
                self.by_real.extend(candidates.iter().map(|real| (*real, virtual_address)));
            }
            Route::Settled(real) => {
                self.by_real.insert(*real, virtual_address);
            }
        }
        self.slots.insert(virtual_address, Slot { route, pins: 0, used: true });
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
        let reals = match slot.route {
            Route::Probing { candidates, .. } => candidates,
            Route::Settled(real) => vec![real],
        };
        for real in reals {
            if let Entry::Occupied(entry) = self.by_real.entry(real)
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
mod tests {
    use super::*;

    fn real(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    fn table(limit: usize) -> RouteTable {
        RouteTable::new(limit, [7; 32])
    }

    fn long_header(destination: &[u8], source: &[u8]) -> Vec<u8> {
        let mut packet = vec![0xc0, 0, 0, 0, 1, destination.len() as u8];
        packet.extend_from_slice(destination);
        packet.push(source.len() as u8);
        packet.extend_from_slice(source);
        packet
    }

    #[test]
    fn a_dial_settles_on_the_candidate_that_answers_our_packet() {
        let mut table = table(8);
        let dialled = table.dial(&[real(1), real(2)])[0];
        table.on_probe(&dialled, &long_header(b"theirs", b"ours"));
        assert_eq!(table.on_receive(real(2), &long_header(b"ours", b"new")), Some(dialled));
        assert_eq!(table.route(&dialled), Some(&Route::Settled(real(2))));
        assert_ne!(table.on_receive(real(1), b"late"), Some(dialled), "the loser is a stranger again");
    }

    #[test]
    fn a_stray_datagram_from_a_candidate_does_not_settle_a_dial() {
        let mut table = table(8);
        let dialled = table.dial(&[real(1), real(2)])[0];
        table.on_probe(&dialled, &long_header(b"theirs", b"ours"));
        for stray in [&b""[..], b"\x00\x01STUN", &long_header(b"other", b"new"), &[0xff; 40]] {
            assert_eq!(table.on_receive(real(1), stray), Some(dialled));
        }
        assert!(matches!(table.route(&dialled), Some(Route::Probing { .. })));
    }

    #[test]
    fn a_record_that_lists_a_connected_peers_address_cannot_move_that_peers_route() {
        let mut table = table(8);
        let connected = table.on_receive(real(1), b"hello").unwrap();
        assert!(table.pin(&connected));
        let dialled = table.dial(&[real(1), real(2)]);
        assert_eq!(dialled[0], connected);
        assert_eq!(table.route(&connected), Some(&Route::Settled(real(1))));
        assert!(
            matches!(table.route(&dialled[1]), Some(Route::Probing { candidates, .. }) if *candidates == [real(2)])
        );
    }

    #[test]
    fn a_flood_of_new_addresses_neither_grows_the_table_nor_evicts_a_connection() {
        let mut table = table(16);
        let connected = table.on_receive(real(1), b"hello").unwrap();
        assert!(table.pin(&connected));
        for port in 2..5000 {
            assert!(table.on_receive(real(port), b"garbage").is_some());
        }
        assert_eq!(table.len(), 16);
        assert!(table.order.len() <= 2 * 16 + 1 && table.by_real.len() == 16);
        assert_eq!(table.on_receive(real(1), b"hello"), Some(connected));
    }

    #[test]
    fn a_table_full_of_connections_takes_no_stranger() {
        let mut table = table(2);
        for port in 1..=2 {
            let connected = table.on_receive(real(port), b"hello").unwrap();
            assert!(table.pin(&connected));
        }
        assert_eq!(table.on_receive(real(3), b"hello"), None);
        assert!(table.dial(&[real(3)]).is_empty());
        let held = table.on_receive(real(1), b"hello").unwrap();
        table.unpin(&held);
        assert!(table.on_receive(real(3), b"hello").is_some());
    }

    #[test]
    fn an_address_keeps_its_virtual_address_and_a_dead_dial_leaves_nothing() {
        let mut table = table(8);
        let first = table.on_receive(real(1), b"hello").unwrap();
        assert_eq!(table.on_receive(real(1), b"again"), Some(first));
        let dialled = table.dial(&[real(2), real(3)])[0];
        table.unpin(&dialled);
        assert_eq!((table.len(), table.by_real.len()), (1, 1));
    }

    #[test]
    fn the_same_seed_gives_the_same_virtual_addresses() {
        assert_eq!(table(8).on_receive(real(1), b""), table(8).on_receive(real(1), b""));
    }
}
