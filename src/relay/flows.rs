//! Forwarding: pairs of flow ids, what each end's address is, and what waits for it. Pure.
//!
//! An end is whoever knows its id: the relay learns the end's address from its datagrams and follows it when a NAT moves
//! it. The relay sends only to an address that the policy allows or that the end's TCP session comes from, so that a
//! forged source cannot aim it into a private network.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;

use super::peers::PeerPolicy;
use super::quota::{NetworkTally, Tally};
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

/// A flow between two sessions.
#[derive(Debug)]
struct Flow {
    /// The end of the smaller session.
    first: u64,
    /// Who asked for it, and from where: it counts there.
    asker: SessionId,
    from: IpAddr,
}

/// All flows.
#[derive(Debug)]
pub(super) struct Flows {
    policy: PeerPolicy,
    ends: HashMap<u64, End>,
    /// The smaller session first.
    pairs: BTreeMap<(SessionId, SessionId), Flow>,
    /// With whom each session has a flow.
    others: HashMap<SessionId, BTreeSet<SessionId>>,
    asked: Tally<SessionId>,
    asked_from: NetworkTally,
    /// No flow falls silent before.
    next_check: Option<Instant>,
}

impl Flows {
    pub(super) fn new(policy: PeerPolicy) -> Self {
        Self {
            policy,
            ends: HashMap::new(),
            pairs: BTreeMap::new(),
            others: HashMap::new(),
            asked: Tally::default(),
            asked_from: NetworkTally::default(),
            next_check: None,
        }
    }

    /// Flows, not ends.
    pub(super) fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether a session may ask for one more, when a session may have asked for so many, and a network for so many.
    pub(super) fn has_room(&self, session: SessionId, from: IpAddr, (each, per_network): (usize, usize)) -> bool {
        self.asked.of(&session) < each && self.asked_from.has_room(from, per_network)
    }

    /// The ids at `from` and at `to`, if there is a flow between them.
    pub(super) fn between(&self, from: SessionId, to: SessionId) -> Option<(u64, u64)> {
        let first = self.pairs.get(&pair_of(from, to))?.first;
        let other = self.ends.get(&first)?.other;
        Some(if from < to { (first, other) } else { (other, first) })
    }

    /// Makes a flow; who asked for it is the first of both. False when an id is in use: draw others.
    pub(super) fn open(&mut self, ends: [(SessionId, IpAddr, u64); 2], now: Instant) -> bool {
        let [(asker, from, own), (there, _, other)] = ends;
        if own == other || self.ends.contains_key(&own) || self.ends.contains_key(&other) {
            return false;
        }
        for ((session, session_ip, id), other) in ends.into_iter().zip([other, own]) {
            let end = End { session, session_ip, other, path: None, heard: now, waiting: VecDeque::new() };
            self.ends.insert(id, end);
        }
        let first = if asker < there { own } else { other };
        self.insert(pair_of(asker, there), Flow { first, asker, from });
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

    /// The peer of one session has a newer one, which its flows belong to from now on: the older may be dead. A flow that the
    /// newer one has already, or that would lead to itself, ends: returns both ids of each with their sessions.
    pub(super) fn move_session(&mut self, from: SessionId, to: SessionId, ip: IpAddr) -> Vec<(SessionId, u64)> {
        let mut closed = Vec::new();
        for there in self.others_of(from) {
            if there == to || self.pairs.contains_key(&pair_of(to, there)) {
                closed.extend(self.close(pair_of(from, there)));
                continue;
            }
            let Some((own, other)) = self.between(from, there) else { continue };
            let Some(mut flow) = self.remove(pair_of(from, there)) else { continue };
            if let Some(end) = self.ends.get_mut(&own) {
                (end.session, end.session_ip) = (to, ip);
            }
            flow.first = if to < there { own } else { other };
            flow.asker = if flow.asker == from { to } else { flow.asker };
            self.insert(pair_of(to, there), flow);
        }
        closed
    }

    /// Ends the flows of a session; returns the ids at the other ends with their sessions.
    pub(super) fn close_session(&mut self, session: SessionId) -> Vec<(SessionId, u64)> {
        let others = self.others_of(session);
        let ends = others.into_iter().flat_map(|there| self.close(pair_of(session, there)));
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
        for (pair, flow) in &self.pairs {
            match heard(self, flow.first).map(|heard| heard + RELAY_FLOW_IDLE) {
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
        let Some(Flow { first, .. }) = self.remove(pair) else { return Vec::new() };
        let Some(end) = self.ends.remove(&first) else { return Vec::new() };
        let other = self.ends.remove(&end.other).map(|other| (other.session, end.other));
        [(end.session, first)].into_iter().chain(other).collect()
    }

    fn others_of(&self, session: SessionId) -> Vec<SessionId> {
        self.others.get(&session).into_iter().flatten().copied().collect()
    }

    fn insert(&mut self, pair: (SessionId, SessionId), flow: Flow) {
        self.others.entry(pair.0).or_default().insert(pair.1);
        self.others.entry(pair.1).or_default().insert(pair.0);
        self.asked.add(flow.asker);
        self.asked_from.add(flow.from);
        self.pairs.insert(pair, flow);
    }

    fn remove(&mut self, pair: (SessionId, SessionId)) -> Option<Flow> {
        let flow = self.pairs.remove(&pair)?;
        for (session, other) in [pair, (pair.1, pair.0)] {
            if let Some(others) = self.others.get_mut(&session) {
                others.remove(&other);
                if others.is_empty() {
                    self.others.remove(&session);
                }
            }
        }
        self.asked.remove(&flow.asker);
        self.asked_from.remove(flow.from);
        Some(flow)
    }
}

fn pair_of(a: SessionId, b: SessionId) -> (SessionId, SessionId) {
    (a.min(b), a.max(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: u64 = 0xA;
    const BOB: u64 = 0xB;

    fn path(text: &str) -> FlowPath {
        FlowPath { socket: 0, address: text.parse().unwrap() }
    }

    impl Flows {
        /// Nothing is left, in no table.
        fn is_empty(&self) -> bool {
            let asked = [SessionId(1), SessionId(2), SessionId(3), SessionId(9)].map(|session| self.asked.of(&session));
            let tables = [self.ends.len(), self.pairs.len(), self.others.len()];
            tables == [0; 3] && asked == [0; 4] && self.asked_from.is_empty()
        }
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
            assert!(flows.move_session(SessionId(from), SessionId(to), "10.0.0.2".parse().unwrap()).is_empty());
            assert!(flows.close_session(SessionId(from)).is_empty(), "the older one takes nothing along");
        }
        assert_eq!(flows.between(SessionId(9), SessionId(7)), Some((ALICE, BOB)));
        assert_eq!(flows.between(SessionId(7), SessionId(9)), Some((BOB, ALICE)));
        assert_eq!(flows.owner(ALICE), Some(SessionId(9)));
        assert_eq!(flows.close_session(SessionId(9)), [(SessionId(7), BOB)]);
        assert!(flows.is_empty(), "{flows:?}");
    }

    #[test]
    fn of_two_flows_that_meet_in_a_newer_session_one_stays_and_the_other_is_forgotten() {
        let (now, ip) = (Instant::now(), "10.0.0.1".parse().unwrap());
        let mut flows = flows(now);
        // Alice's second session has a flow to Bob as well, and one to her first.
        assert!(flows.open([(SessionId(3), ip, 1), (SessionId(1), ip, 2)], now));
        assert!(flows.open([(SessionId(3), ip, 3), (SessionId(2), ip, 4)], now));
        let newer = SessionId(9);
        assert_eq!(flows.move_session(SessionId(2), newer, ip), []);
        let closed = flows.move_session(SessionId(3), newer, ip);
        assert_eq!(closed, [(SessionId(1), 2), (SessionId(3), 1), (SessionId(3), 3), (newer, 4)]);
        assert_eq!((flows.between(newer, SessionId(1)), flows.ends.len()), (Some((ALICE, BOB)), 2));
        flows.close_session(SessionId(1));
        assert!(flows.is_empty(), "{flows:?}");
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
        assert_eq!((flows.is_empty(), flows.poll_timeout()), (true, None));
    }
}
