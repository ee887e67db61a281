//! Forwarding: pairs of flow ids, what each end's address is, and what waits for it. Pure.
//!
//! An end is whoever knows its id: the relay learns the end's address from its datagrams and follows it when a NAT moves
//! it. The relay sends only to an address that the policy allows or that the end's TCP session comes from, so that a
//! forged source cannot aim it into a private network.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;

use super::peers::PeerPolicy;
use super::sessions::SessionId;
use crate::limits::{RELAY_FLOW_IDLE, RELAY_FLOW_QUEUE};

/// Where an end is: the number of our socket that hears it, and its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FlowPath {
    pub(super) socket: usize,
    pub(super) address: SocketAddr,
}

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Forward<P> {
    pub(super) path: FlowPath,
    pub(super) flow: u64,
    pub(super) payload: P,
}

/// What came of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate<'a> {
    /// Send it.
    Onward(Forward<&'a [u8]>),
    /// It only told an address, or it waits until the other end has told its own.
    Kept,
    /// The other end has told no address and enough is waiting.
    Full,
}

#[derive(Debug)]
struct End {
    session: SessionId,
    session_ip: IpAddr,
    other: u64,
    path: Option<FlowPath>,
    heard: Instant,
    waiting: VecDeque<Bytes>,
}

/// All flows.
#[derive(Debug)]
pub(super) struct Flows {
    policy: PeerPolicy,
    ends: HashMap<u64, End>,
    /// The first session's end per pair of sessions, the smaller session first.
    pairs: BTreeMap<(SessionId, SessionId), u64>,
    /// No flow falls silent before.
    next_check: Option<Instant>,
}

impl Flows {
    pub(super) fn new(policy: PeerPolicy) -> Self {
        Self { policy, ends: HashMap::new(), pairs: BTreeMap::new(), next_check: None }
    }

    /// Flows, not ends.
    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Flows of one session.
    pub(super) fn of(&self, session: SessionId) -> usize {
        self.pairs.keys().filter(|(a, b)| *a == session || *b == session).count()
    }

    /// The ids at `from` and at `to`, if there is a flow between them.
    pub(super) fn between(&self, from: SessionId, to: SessionId) -> Option<(u64, u64)> {
        let first = *self.pairs.get(&(from.min(to), from.max(to)))?;
        let other = self.ends.get(&first)?.other;
        Some(if from < to { (first, other) } else { (other, first) })
    }

    /// Makes a flow. False when an id is in use: draw others.
    pub(super) fn open(&mut self, ends: [(SessionId, IpAddr, u64); 2], now: Instant) -> bool {
        let [(left, _, left_id), (right, _, right_id)] = ends;
        if left_id == right_id || self.ends.contains_key(&left_id) || self.ends.contains_key(&right_id) {
            return false;
        }
        for ((session, session_ip, id), other) in ends.into_iter().zip([right_id, left_id]) {
            let end = End { session, session_ip, other, path: None, heard: now, waiting: VecDeque::new() };
            self.ends.insert(id, end);
        }
        let first = if left < right { left_id } else { right_id };
        self.pairs.insert((left.min(right), left.max(right)), first);
        let silent = now + RELAY_FLOW_IDLE;
        self.next_check = Some(self.next_check.map_or(silent, |check| check.min(silent)));
        true
    }

    /// Whose end this is.
    pub(super) fn owner(&self, flow: u64) -> Option<SessionId> {
        self.ends.get(&flow).map(|end| end.session)
    }

    /// A datagram came from an end. `None`: there is no such flow, or the address is forged. What had waited for this end
    /// goes into `released`.
    pub(super) fn on_datagram<'a>(
        &mut self,
        path: FlowPath,
        flow: u64,
        payload: &'a [u8],
        now: Instant,
        released: &mut Vec<Forward<Bytes>>,
    ) -> Option<Fate<'a>> {
        let end = self.ends.get_mut(&flow)?;
        let ip = path.address.ip();
        if end.path != Some(path) {
            if ip != end.session_ip && !self.policy.allows(ip) {
                return None;
            }
            end.path = Some(path);
        }
        end.heard = now;
        released.extend(end.waiting.drain(..).map(|payload| Forward { path, flow, payload }));
        let other_id = end.other;
        let other = self.ends.get_mut(&other_id)?;
        Some(match other.path {
            _ if payload.is_empty() => Fate::Kept,
            Some(path) => Fate::Onward(Forward { path, flow: other_id, payload }),
            None if other.waiting.len() >= RELAY_FLOW_QUEUE => Fate::Full,
            None => {
                other.waiting.push_back(Bytes::copy_from_slice(payload));
                Fate::Kept
            }
        })
    }

    /// The peer of one session has a newer one, which its flows belong to from now on: the older may be dead.
    pub(super) fn move_session(&mut self, from: SessionId, to: SessionId, ip: IpAddr) {
        let pairs = self.pairs.keys().filter(|(a, b)| *a == from || *b == from).copied().collect::<Vec<_>>();
        for pair in pairs {
            let there = if pair.0 == from { pair.1 } else { pair.0 };
            let Some(first) = self.pairs.remove(&pair) else { continue };
            let Some(other) = self.ends.get(&first).map(|end| end.other) else { continue };
            let (own, far) = if pair.0 == from { (first, other) } else { (other, first) };
            if let Some(end) = self.ends.get_mut(&own) {
                (end.session, end.session_ip) = (to, ip);
            }
            self.pairs.insert((to.min(there), to.max(there)), if to < there { own } else { far });
        }
    }

    /// Ends the flows of a session; returns the ids at the other ends with their sessions.
    pub(super) fn close_session(&mut self, session: SessionId) -> Vec<(SessionId, u64)> {
        let pairs = self.pairs.keys().filter(|(a, b)| *a == session || *b == session).copied().collect::<Vec<_>>();
        let ends = pairs.into_iter().flat_map(|pair| self.close(pair));
        ends.filter(|(owner, _)| *owner != session).collect()
    }

    /// Ends the flows on which both ends fell silent; returns both ids of each with their sessions.
    pub(super) fn on_timeout(&mut self, now: Instant) -> Vec<(SessionId, u64)> {
        if self.next_check.is_none_or(|check| now < check) {
            return Vec::new();
        }
        let heard = |flows: &Self, first: u64| {
            let end = flows.ends.get(&first)?;
            Some(flows.ends.get(&end.other)?.heard.max(end.heard))
        };
        let mut next = None::<Instant>;
        let mut silent = Vec::new();
        for (pair, first) in &self.pairs {
            match heard(self, *first).map(|heard| heard + RELAY_FLOW_IDLE) {
                Some(end) if end > now => next = Some(next.map_or(end, |next| next.min(end))),
                _ => silent.push(*pair),
            }
        }
        self.next_check = next;
        silent.into_iter().flat_map(|pair| self.close(pair)).collect()
    }

    /// When to call [`on_timeout`](Self::on_timeout).
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.next_check
    }

    fn close(&mut self, pair: (SessionId, SessionId)) -> Vec<(SessionId, u64)> {
        let Some(first) = self.pairs.remove(&pair) else { return Vec::new() };
        let Some(end) = self.ends.remove(&first) else { return Vec::new() };
        let other = self.ends.remove(&end.other).map(|other| (other.session, end.other));
        [(end.session, first)].into_iter().chain(other).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: u64 = 0xA;
    const BOB: u64 = 0xB;

    fn path(text: &str) -> FlowPath {
        FlowPath { socket: 0, address: text.parse().unwrap() }
    }

    fn flows(now: Instant) -> Flows {
        let mut flows = Flows::new(PeerPolicy::new());
        let ip = "10.0.0.1".parse().unwrap();
        assert!(flows.open([(SessionId(2), ip, ALICE), (SessionId(1), ip, BOB)], now));
        flows
    }

    #[test]
    fn a_flow_carries_payloads_both_ways_once_both_ends_have_shown_themselves() {
        let now = Instant::now();
        let (mut flows, mut released) = (flows(now), Vec::new());
        let (alice, bob) = (path("203.0.113.1:1"), path("203.0.113.2:2"));
        assert_eq!(flows.on_datagram(alice, ALICE, b"early", now, &mut released), Some(Fate::Kept));
        assert_eq!(flows.on_datagram(bob, BOB, b"", now, &mut released), Some(Fate::Kept));
        assert_eq!(released, [Forward { path: bob, flow: BOB, payload: Bytes::from_static(b"early") }]);
        let onward = Fate::Onward(Forward { path: alice, flow: ALICE, payload: &b"back"[..] });
        assert_eq!(flows.on_datagram(bob, BOB, b"back", now, &mut Vec::new()), Some(onward));
        let moved = path("203.0.113.9:9");
        flows.on_datagram(moved, ALICE, b"", now, &mut Vec::new());
        let onward = Fate::Onward(Forward { path: moved, flow: ALICE, payload: &b"back"[..] });
        assert_eq!(flows.on_datagram(bob, BOB, b"back", now, &mut Vec::new()), Some(onward));
    }

    #[test]
    fn a_flow_goes_on_in_the_newer_session_of_its_peer() {
        let now = Instant::now();
        let mut flows = flows(now);
        for (from, to) in [(2, 5), (1, 7), (5, 9)] {
            flows.move_session(SessionId(from), SessionId(to), "10.0.0.2".parse().unwrap());
            assert!(flows.close_session(SessionId(from)).is_empty(), "the older one takes nothing along");
        }
        assert_eq!(flows.between(SessionId(9), SessionId(7)), Some((ALICE, BOB)));
        assert_eq!(flows.between(SessionId(7), SessionId(9)), Some((BOB, ALICE)));
        assert_eq!(flows.owner(ALICE), Some(SessionId(9)));
        assert_eq!(flows.close_session(SessionId(9)), [(SessionId(7), BOB)]);
    }

    #[test]
    fn only_a_few_datagrams_wait_for_an_end() {
        let now = Instant::now();
        let mut flows = flows(now);
        let alice = path("203.0.113.1:1");
        for number in 0..10 {
            let fate = flows.on_datagram(alice, ALICE, b"early", now, &mut Vec::new());
            assert_eq!(fate, Some(if number < RELAY_FLOW_QUEUE { Fate::Kept } else { Fate::Full }));
        }
    }

    #[test]
    fn who_does_not_know_the_id_cannot_send_into_a_flow() {
        let now = Instant::now();
        let mut flows = flows(now);
        for guess in (0..1000).filter(|guess| ![ALICE, BOB].contains(guess)) {
            assert_eq!(flows.on_datagram(path("203.0.113.3:3"), guess, b"x", now, &mut Vec::new()), None);
        }
    }

    #[test]
    fn a_forged_private_address_is_not_learnt_but_that_of_the_session_is() {
        let now = Instant::now();
        let mut flows = flows(now);
        for victim in ["10.0.0.2:53", "127.0.0.1:53", "[::1]:53", "[::ffff:10.0.0.1]:53"] {
            assert_eq!(flows.on_datagram(path(victim), ALICE, b"", now, &mut Vec::new()), None, "{victim}");
        }
        assert_eq!(flows.on_datagram(path("10.0.0.1:53"), ALICE, b"", now, &mut Vec::new()), Some(Fate::Kept));
    }

    #[test]
    fn a_flow_ends_with_either_session() {
        let now = Instant::now();
        let mut flows = flows(now);
        assert_eq!(flows.between(SessionId(2), SessionId(1)), Some((ALICE, BOB)));
        assert_eq!(flows.between(SessionId(1), SessionId(2)), Some((BOB, ALICE)));
        assert_eq!(flows.close_session(SessionId(1)), [(SessionId(2), ALICE)]);
        assert_eq!((flows.len(), flows.owner(ALICE), flows.owner(BOB)), (0, None, None));
    }

    #[test]
    fn a_flow_ends_when_both_ends_fall_silent() {
        let start = Instant::now();
        let mut flows = flows(start);
        let later = start + RELAY_FLOW_IDLE / 2;
        flows.on_datagram(path("203.0.113.1:1"), ALICE, b"", later, &mut Vec::new());
        assert_eq!(flows.poll_timeout(), Some(start + RELAY_FLOW_IDLE));
        assert_eq!(flows.on_timeout(start + RELAY_FLOW_IDLE), []);
        assert_eq!(flows.poll_timeout(), Some(later + RELAY_FLOW_IDLE));
        assert_eq!(flows.on_timeout(later + RELAY_FLOW_IDLE).len(), 2);
        assert_eq!((flows.len(), flows.poll_timeout()), (0, None));
    }
}
