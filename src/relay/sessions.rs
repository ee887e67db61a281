//! Who is here, and what they want from each other: the relay's half of `rendezvous/wire.rs` as a pure machine.
//!
//! Drive it with [`Rendezvous::on_connected`], [`on_frame`](Rendezvous::on_frame), [`on_datagram`](Rendezvous::on_datagram),
//! [`on_closed`](Rendezvous::on_closed) and [`on_timeout`](Rendezvous::on_timeout), and take what it wants done from
//! [`poll_output`](Rendezvous::poll_output) after each. It knows no stream and no socket; a session is a number.
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
use super::quota::{Bucket, Rate, network_of};
use super::records::Records;
use crate::ids::PeerId;
use crate::limits::{HEARTBEAT_INTERVAL, HEARTBEATS_MISSED, PUNCH_DELAY_MAX, RELAY_REFUSALS_PER_SESSION};
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
    by_network: HashMap<IpAddr, usize>,
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
            by_network: HashMap::new(),
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
        let there = self.by_network.get(&network_of(ip)).copied().unwrap_or(0);
        if there >= self.limits.sessions_per_address { Err(NoRoom::Address) } else { Ok(()) }
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
        for older in self.by_peer.get(&peer).into_iter().flatten() {
            self.flows.move_session(*older, id, ip);
        }
        self.by_peer.entry(peer).or_default().push(id);
        *self.by_network.entry(network_of(ip)).or_default() += 1;
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
        if let Some(there) = self.by_network.get_mut(&network_of(session.ip)) {
            *there -= 1;
            if *there == 0 {
                self.by_network.remove(&network_of(session.ip));
            }
        }
        for (other, flow) in self.flows.close_session(id) {
            self.tell(other, RelayFrame::FlowClosed { flow });
        }
    }

    /// A client said something. False when it was refused for want of a quota.
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
                self.with_newest(id, to, |relay, there| relay.tell(there, RelayFrame::Signal { from, sealed }));
            }
            NodeFrame::Forward { to } => self.with_newest(id, to, |relay, there| relay.forward(id, there, now)),
            NodeFrame::Punch { to, session } => {
                self.with_newest(id, to, |relay, there| relay.punch(id, there, session));
            }
            NodeFrame::Credentials => self.outputs.push_back(Output::Credentials(id)),
            NodeFrame::Ping { nonce } => self.tell(id, RelayFrame::Pong { nonce }),
            NodeFrame::Pong { nonce } => self.on_pong(id, nonce, now),
            NodeFrame::Publish { record } => return self.publish(id, &record, now),
            NodeFrame::Lookup { peer } => {
                let record = self.records.lookup(&peer, now);
                self.tell(id, RelayFrame::Record { peer, record });
            }
        }
        true
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
        let bytes = payload.len() as u64;
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
        for (session, flow) in self.flows.on_timeout(now) {
            self.tell(session, RelayFrame::FlowClosed { flow });
        }
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

    fn close(&mut self, id: SessionId, why: &'static str) {
        self.on_closed(id);
        self.outputs.push_back(Output::Close(id, why));
    }

    fn with_newest(&mut self, asker: SessionId, to: PeerId, act: impl FnOnce(&mut Self, SessionId)) {
        match self.by_peer.get(&to).and_then(|of_peer| of_peer.last()).copied() {
            Some(there) if there != asker => act(self, there),
            _ => self.tell(asker, RelayFrame::NotHere { to }),
        }
    }

    /// Keeps what a peer says about itself; false when it was refused.
    fn publish(&mut self, id: SessionId, record: &Bytes, now: Instant) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return true };
        if !session.published.take(PUBLISH_COST, now) {
            return false;
        }
        let Ok(record) = RendezvousRecord::decode(record) else { return false };
        let limits = (self.limits.records, self.limits.records_per_address);
        record.peer() == session.peer && self.records.publish(&record, network_of(session.ip), limits, now)
    }

    fn forward(&mut self, id: SessionId, there: SessionId, now: Instant) {
        let Some((here, far)) = self.sessions.get(&id).zip(self.sessions.get(&there)) else { return };
        let (here, far) = ((here.peer, here.ip), (far.peer, far.ip));
        let flows = self.flows.between(id, there).or_else(|| {
            let room = |session| self.flows.of(session) < self.limits.flows_per_client;
            if !room(id) || !room(there) || self.flows.len() >= self.limits.flows {
                return None;
            }
            (0..FLOW_ID_DRAWS).find_map(|_| {
                let (own, other) = (self.rng.random(), self.rng.random());
                let opened = self.flows.open([(id, here.1, own), (there, far.1, other)], now);
                opened.then_some((own, other))
            })
        });
        let Some((own, other)) = flows else { return self.tell(id, RelayFrame::Busy { to: far.0 }) };
        self.tell(id, RelayFrame::Flow { peer: far.0, flow: own });
        self.tell(there, RelayFrame::Flow { peer: here.0, flow: other });
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
