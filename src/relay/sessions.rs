//! Who is here, and what they want from each other: the relay's half of `rendezvous/wire.rs` as a pure machine.
//!
//! Drive it with [`Rendezvous::on_connected`], [`on_frame`](Rendezvous::on_frame), [`on_datagram`](Rendezvous::on_datagram),
//! [`on_closed`](Rendezvous::on_closed) and [`on_timeout`](Rendezvous::on_timeout), and take what it wants done from
//! [`poll_output`](Rendezvous::poll_output) after each. A record that a frame publishes is verified by the driver, and then
//! handed to [`on_record`](Rendezvous::on_record). It knows no stream and no socket; a session is a number.
//!
//! A peer may have several sessions, of several devices' sockets or because an old one has not been missed yet: what is
//! sent to the peer goes to its newest.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng;
use rand_chacha::ChaCha20Rng;

use super::flows::{Fate, FlowPath, Flows, Forward};
use super::limits::RelayLimits;
use super::peers::PeerPolicy;
use super::quota::{Bucket, NetworkTally, Rate, cost_of};
use super::records::Records;
use crate::ids::PeerId;
use crate::limits::{
    HEARTBEAT_INTERVAL, HEARTBEATS_MISSED, PUNCH_DELAY_MAX, RECORD_CLOCK_SKEW, RELAY_REFUSALS_PER_SESSION,
};
use crate::rendezvous::record::RendezvousRecord;
use crate::rendezvous::wire::{NodeFrame, RelayFrame};

/// One-way time to a client that was not measured yet.
const ONE_WAY_UNKNOWN: Duration = Duration::from_millis(50);
/// Round trips of a session that are remembered.
const RTT_SAMPLES: usize = 4;
/// Pings of a new session that measure the way to it; none of them counts as missed.
const FIRST_PINGS: u32 = 2;
/// Time after each of these.
const FIRST_PINGS_INTERVAL: Duration = Duration::from_secs(2);
/// Draws of flow ids before giving up; one collision among 2^64 is a defect of the generator.
const FLOW_ID_DRAWS: usize = 4;

/// Records of one session: one in ten seconds, and ten at once.
const PUBLISH_RATE: Rate = Rate { per_second: 1, burst: 10 * PUBLISH_COST };
/// What one record takes of that.
const PUBLISH_COST: u64 = 10;

/// A session's number, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SessionId(pub(super) u64);

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    /// Send a frame.
    Frame(SessionId, RelayFrame),
    /// Send fresh credentials.
    Credentials(SessionId),
    /// End the session; it is forgotten already.
    Close(SessionId, &'static str),
}

/// Why a client is not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// There are as many sessions as allowed.
    Relay,
    /// There are as many from this address as allowed.
    Address,
}

/// What came of a forwarded datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Forwarded<'a> {
    /// Send it.
    Onward(Forward<&'a [u8]>),
    /// Nothing to do.
    Kept,
    /// Dropped, and why.
    Dropped(&'static str),
}

#[derive(Debug)]
struct Session {
    peer: PeerId,
    ip: IpAddr,
    /// The last round trips, at most `RTT_SAMPLES`.
    rtts: VecDeque<Duration>,
    ping: Option<(u64, Instant)>,
    /// How many were sent, up to `FIRST_PINGS`.
    pings: u32,
    missed: u32,
    next_ping: Instant,
    requests: Bucket,
    /// Records, whose signatures cost more than other frames.
    published: Bucket,
    refused: u32,
    bytes: Bucket,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Rendezvous {
    limits: RelayLimits,
    rng: ChaCha20Rng,
    sessions: BTreeMap<SessionId, Session>,
    /// Per peer, oldest first.
    by_peer: HashMap<PeerId, Vec<SessionId>>,
    by_network: NetworkTally,
    next_session: u64,
    flows: Flows,
    records: Records,
    bytes: Bucket,
    outputs: VecDeque<Output>,
    /// No ping is due before.
    next_ping: Option<Instant>,
}

impl Rendezvous {
    pub(super) fn new(limits: RelayLimits, policy: PeerPolicy, rng: ChaCha20Rng, now: Instant) -> Self {
        Self {
            bytes: Bucket::new(limits.bytes, now),
            limits,
            rng,
            sessions: BTreeMap::new(),
            by_peer: HashMap::new(),
            by_network: NetworkTally::default(),
            next_session: 0,
            flows: Flows::new(policy),
            records: Records::default(),
            outputs: VecDeque::new(),
            next_ping: None,
        }
    }

    /// Sessions there are.
    pub(super) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Records there are.
    pub(super) fn records(&self) -> usize {
        self.records.len()
    }

    /// Flows there are.
    pub(super) fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Whether a client from there would be taken in: worth asking before the handshake.
    pub(super) fn room_for(&self, ip: IpAddr) -> Result<(), NoRoom> {
        if self.sessions.len() >= self.limits.sessions {
            return Err(NoRoom::Relay);
        }
        if self.by_network.has_room(ip, self.limits.sessions_per_address) { Ok(()) } else { Err(NoRoom::Address) }
    }

    /// A client showed its key.
    pub(super) fn on_connected(&mut self, peer: PeerId, ip: IpAddr, now: Instant) -> Result<SessionId, NoRoom> {
        self.room_for(ip)?;
        let oldest = self.by_peer.get(&peer).filter(|of| of.len() >= self.limits.sessions_per_peer);
        if let Some(oldest) = oldest.and_then(|of| of.first().copied()) {
            self.close(oldest, "the peer has newer sessions");
        }
        let id = SessionId(self.next_session);
        self.next_session += 1;
        let older = self.by_peer.get(&peer).into_iter().flatten();
        let closed = older.flat_map(|older| self.flows.move_session(*older, id, ip)).collect::<Vec<_>>();
        self.tell_closed(closed);
        self.by_peer.entry(peer).or_default().push(id);
        self.by_network.add(ip);
        let session = Session {
            peer,
            ip,
            rtts: VecDeque::new(),
            ping: None,
            pings: 0,
            missed: 0,
            next_ping: now,
            requests: Bucket::new(self.limits.requests_per_client, now),
            published: Bucket::new(PUBLISH_RATE, now),
            refused: 0,
            bytes: Bucket::new(self.limits.bytes_per_client, now),
        };
        self.sessions.insert(id, session);
        self.ping(id, now);
        Ok(id)
    }

    /// The session's stream is gone.
    pub(super) fn on_closed(&mut self, id: SessionId) {
        let Some(session) = self.sessions.remove(&id) else { return };
        if let Some(of_peer) = self.by_peer.get_mut(&session.peer) {
            of_peer.retain(|other| *other != id);
            if of_peer.is_empty() {
                self.by_peer.remove(&session.peer);
            }
        }
        self.by_network.remove(session.ip);
        let closed = self.flows.close_session(id);
        self.tell_closed(closed);
    }

    /// A client said something. False when it was refused for want of a quota. A record is not looked at here: when it was
    /// not refused, verify it and call [`on_record`](Self::on_record).
    pub(super) fn on_frame(&mut self, id: SessionId, frame: NodeFrame, now: Instant) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return true };
        session.missed = 0;
        if !session.requests.take(1, now) {
            session.refused += 1;
            let flooding = session.refused > RELAY_REFUSALS_PER_SESSION;
            match frame {
                _ if flooding => self.close(id, "it asked for too much"),
                NodeFrame::Signal { to, .. } | NodeFrame::Forward { to } | NodeFrame::Punch { to, .. } => {
                    self.tell(id, RelayFrame::Busy { to });
                }
                NodeFrame::Credentials
                | NodeFrame::Ping { .. }
                | NodeFrame::Pong { .. }
                | NodeFrame::Publish { .. }
                | NodeFrame::Lookup { .. } => {}
            }
            return false;
        }
        let from = session.peer;
        match frame {
            NodeFrame::Signal { to, sealed } => {
                if let Some(there) = self.newest(id, to) {
                    self.tell(there, RelayFrame::Signal { from, sealed });
                }
            }
            NodeFrame::Forward { to } => {
                return self.newest(id, to).is_none_or(|there| self.forward(id, there, now));
            }
            NodeFrame::Punch { to, session } => {
                if let Some(there) = self.newest(id, to) {
                    self.punch(id, there, session);
                }
            }
            NodeFrame::Credentials => self.outputs.push_back(Output::Credentials(id)),
            NodeFrame::Ping { nonce } => self.tell(id, RelayFrame::Pong { nonce }),
            NodeFrame::Pong { nonce } => self.on_pong(id, nonce, now),
            NodeFrame::Publish { .. } => return session.published.take(PUBLISH_COST, now),
            NodeFrame::Lookup { peer } => {
                let record = self.records.lookup(&peer, now);
                self.tell(id, RelayFrame::Record { peer, record });
            }
        }
        true
    }

    /// A client published a record, whose signature is right. `wall_us` is the time in µs since the Unix epoch. False when it
    /// was refused.
    pub(super) fn on_record(&mut self, id: SessionId, record: &RendezvousRecord, now: Instant, wall_us: u64) -> bool {
        let Some(session) = self.sessions.get(&id) else { return true };
        let skew_us = u64::try_from(RECORD_CLOCK_SKEW.as_micros()).unwrap_or(u64::MAX);
        let limits = (self.limits.records, self.limits.records_per_address);
        // One from the future would keep out all that the peer says until then.
        record.peer() == session.peer
            && record.timestamp_us() <= wall_us.saturating_add(skew_us)
            && self.records.publish(record, session.ip, limits, now)
    }

    /// A forwarded datagram arrived. What had waited for its sender goes into `released`.
    pub(super) fn on_datagram<'a>(
        &mut self,
        path: FlowPath,
        flow: u64,
        payload: &'a [u8],
        now: Instant,
        released: &mut Vec<Forward<Bytes>>,
    ) -> Forwarded<'a> {
        let owner = self.flows.owner(flow).and_then(|owner| self.sessions.get_mut(&owner));
        let Some(owner) = owner else { return Forwarded::Dropped("unknown flow") };
        let bytes = cost_of(payload);
        if !owner.bytes.take(bytes, now) || !self.bytes.take(bytes, now) {
            return Forwarded::Dropped("over quota");
        }
        match self.flows.on_datagram(path, flow, payload, now, released) {
            Some(Fate::Onward(forward)) => Forwarded::Onward(forward),
            Some(Fate::Kept) => Forwarded::Kept,
            Some(Fate::Full) => Forwarded::Dropped("the other end is silent"),
            None => Forwarded::Dropped("denied address"),
        }
    }

    /// Pings who is due, gives up who is silent, ends what nobody uses.
    pub(super) fn on_timeout(&mut self, now: Instant) {
        if self.next_ping.is_some_and(|next| next <= now) {
            let due = |(id, session): (&SessionId, &Session)| (session.next_ping <= now).then_some(*id);
            for id in self.sessions.iter().filter_map(due).collect::<Vec<_>>() {
                self.ping(id, now);
            }
            self.next_ping = self.sessions.values().map(|session| session.next_ping).min();
        }
        let silent = self.flows.on_timeout(now);
        self.tell_closed(silent);
    }

    /// When to call [`on_timeout`](Self::on_timeout), and why.
    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let ping = self.next_ping.map(|at| (at, "ping"));
        let silent = self.flows.poll_timeout().map(|at| (at, "silent flow"));
        ping.into_iter().chain(silent).min()
    }

    /// What to do next.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Tells everybody that the relay shuts down.
    pub(super) fn on_shutdown(&mut self) {
        for id in self.sessions.keys() {
            self.outputs.push_back(Output::Frame(*id, RelayFrame::GoingAway));
        }
    }

    fn tell(&mut self, to: SessionId, frame: RelayFrame) {
        self.outputs.push_back(Output::Frame(to, frame));
    }

    fn tell_closed(&mut self, flows: Vec<(SessionId, u64)>) {
        flows.into_iter().for_each(|(session, flow)| self.tell(session, RelayFrame::FlowClosed { flow }));
    }

    fn close(&mut self, id: SessionId, why: &'static str) {
        self.on_closed(id);
        self.outputs.push_back(Output::Close(id, why));
    }

    /// The newest session of a peer; when there is none, the asker is told.
    fn newest(&mut self, asker: SessionId, of: PeerId) -> Option<SessionId> {
        let newest = self.by_peer.get(&of).and_then(|of_peer| of_peer.last()).copied();
        let newest = newest.filter(|there| *there != asker);
        if newest.is_none() {
            self.tell(asker, RelayFrame::NotHere { to: of });
        }
        newest
    }

    /// Tells both of their flow; false when there is none and may be none.
    fn forward(&mut self, id: SessionId, there: SessionId, now: Instant) -> bool {
        let Some((here, far)) = self.sessions.get(&id).zip(self.sessions.get(&there)) else { return true };
        let (here, far) = ((here.peer, here.ip), (far.peer, far.ip));
        let flows = self.flows.between(id, there).or_else(|| {
            let limits = (self.limits.flows_per_client, self.limits.flows_per_address);
            if self.flows.len() >= self.limits.flows || !self.flows.has_room(id, here.1, limits) {
                return None;
            }
            (0..FLOW_ID_DRAWS).find_map(|_| {
                let (own, other) = (self.rng.random(), self.rng.random());
                let opened = self.flows.open([(id, here.1, own), (there, far.1, other)], now);
                opened.then_some((own, other))
            })
        });
        let Some((own, other)) = flows else {
            self.tell(id, RelayFrame::Busy { to: far.0 });
            return false;
        };
        self.tell(id, RelayFrame::Flow { peer: far.0, flow: own });
        self.tell(there, RelayFrame::Flow { peer: here.0, flow: other });
        true
    }

    /// Whoever is nearer waits for as long as word takes longer to the other.
    fn punch(&mut self, id: SessionId, there: SessionId, session: u64) {
        let Some((here, far)) = self.sessions.get(&id).zip(self.sessions.get(&there)) else { return };
        // The shortest: whatever makes an answer late makes it later than the way is long.
        let rtt = |of: &Session| of.rtts.iter().min().copied();
        let one_way = |of: &Session| rtt(of).map_or(ONE_WAY_UNKNOWN, |rtt| rtt / 2).min(PUNCH_DELAY_MAX);
        let longest = one_way(here).max(one_way(far));
        let after_ms = |of| u32::try_from((longest - one_way(of)).as_millis()).unwrap_or(u32::MAX);
        let to_here = RelayFrame::Punch { peer: far.peer, session, after_ms: after_ms(here) };
        let to_there = RelayFrame::Punch { peer: here.peer, session, after_ms: after_ms(far) };
        self.tell(id, to_here);
        self.tell(there, to_there);
    }

    fn ping(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let first = session.pings < FIRST_PINGS;
        if session.ping.is_some() && !first {
            session.missed += 1;
        }
        if session.missed >= HEARTBEATS_MISSED {
            return self.close(id, "it no longer answers");
        }
        let nonce = self.rng.random();
        session.ping = Some((nonce, now));
        // More often at first: the first answer waits for whatever a node does when it starts.
        session.pings += u32::from(first);
        session.next_ping = now + if first { FIRST_PINGS_INTERVAL } else { HEARTBEAT_INTERVAL };
        let next = session.next_ping;
        self.next_ping = Some(self.next_ping.map_or(next, |earliest| earliest.min(next)));
        self.tell(id, RelayFrame::Ping { nonce });
    }

    fn on_pong(&mut self, id: SessionId, nonce: u64, now: Instant) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some((_, sent)) = session.ping.take_if(|(asked, _)| *asked == nonce) else { return };
        let sample = now.saturating_duration_since(sent);
        if session.rtts.len() == RTT_SAMPLES {
            session.rtts.pop_front();
        }
        session.rtts.push_back(sample);
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
