//! The network between hosts, pure: decides when and whether each packet arrives. No socket, no clock, no waker.
//!
//! Drive it with three calls: [`Router::route`] when a host sends, [`Router::next_arrival`] to know how long to sleep,
//! and [`Router::pop_due`] until it returns `None`, answering each arrival with [`Router::settle`].
//!
//! The link is decided when a packet leaves, everything at the destination when it arrives. That split is what lets a
//! NAT box or a firewall stand before a host: outgoing packets are rewritten at the top of `route`, incoming ones in
//! `pop_due`, by the mappings that exist at that moment and not by those of the moment of sending.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use quinn::udp::EcnCodepoint;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::link::{self, Passage};
use super::options::{LinkOptions, SimOptions};
use super::trace::{Fate, SimStats, Trace, TraceEvent};

/// Links whose queue state is kept before idle ones are forgotten, which changes nothing for them.
const BUSY_LINKS_BEFORE_CLEANUP: usize = 4096;

/// One UDP datagram.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) ecn: Option<EcnCodepoint>,
    pub(super) payload: Bytes,
}

/// A packet at the address it was sent to.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) sent: Duration,
    pub(super) at: Duration,
    pub(super) packet: Packet,
}

/// From one host to another.
type Direction = (IpAddr, IpAddr);

/// All links and everything that is on its way.
#[derive(Debug)]
pub(super) struct Router {
    rng: ChaCha8Rng,
    default_link: LinkOptions,
    links: BTreeMap<Direction, LinkOptions>,
    /// Until when the bottleneck of a link with limited bandwidth is busy.
    busy_until: BTreeMap<Direction, Duration>,
    partitions: BTreeSet<Direction>,
    isolated: BTreeSet<IpAddr>,
    /// By arrival time, then in the order of sending.
    in_flight: BTreeMap<(Duration, u64), (Duration, Packet)>,
    in_flight_limit: usize,
    sequence: u64,
    trace: Trace,
}

impl Router {
    pub(super) fn new(options: &SimOptions) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            default_link: options.default_link.clone(),
            links: BTreeMap::new(),
            busy_until: BTreeMap::new(),
            partitions: BTreeSet::new(),
            isolated: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            in_flight_limit: options.in_flight,
            sequence: 0,
            trace: Trace::new(options.recorded_events),
        }
    }

    /// A host sends a packet: it is on its way, or dropped and recorded.
    pub(super) fn route(&mut self, now: Duration, packet: Packet) {
        self.trace.on_sent();
        let direction = (packet.from.ip(), packet.to.ip());
        if self.is_cut(direction) {
            return self.settle(&Arrival { sent: now, at: now, packet }, Fate::Partitioned);
        }
        match self.carry(now, direction, packet.payload.len()) {
            Passage::Dropped(fate) => self.settle(&Arrival { sent: now, at: now, packet }, fate),
            Passage::Arrives { first, copy } => {
                if let Some(at) = copy {
                    self.trace.on_duplicated();
                    self.schedule(now, at, packet.clone());
                }
                self.schedule(now, first, packet);
            }
        }
    }

    /// When the next packet arrives somewhere.
    pub(super) fn next_arrival(&self) -> Option<Duration> {
        self.in_flight.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next packet that has arrived by `now`. The caller hands it to its socket and must [`settle`](Self::settle) it.
    pub(super) fn pop_due(&mut self, now: Duration) -> Option<Arrival> {
        loop {
            let entry = self.in_flight.first_entry().filter(|entry| entry.key().0 <= now)?;
            let ((at, _), (sent, packet)) = entry.remove_entry();
            let arrival = Arrival { sent, at, packet };
            if !self.is_cut((arrival.packet.from.ip(), arrival.packet.to.ip())) {
                return Some(arrival);
            }
            self.settle(&arrival, Fate::Partitioned);
        }
    }

    /// Records what became of a packet.
    pub(super) fn settle(&mut self, arrival: &Arrival, fate: Fate) {
        let Arrival { sent, at, packet } = arrival;
        let (from, to, size) = (packet.from, packet.to, packet.payload.len());
        self.trace.record(TraceEvent { sent: *sent, at: *at, from, to, size, fate });
    }

    pub(super) fn set_default_link(&mut self, link: LinkOptions) {
        self.default_link = link;
    }

    pub(super) fn set_link(&mut self, from: IpAddr, to: IpAddr, link: LinkOptions) {
        self.links.insert((from, to), link);
    }

    pub(super) fn partition(&mut self, left: &[IpAddr], right: &[IpAddr]) {
        for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
            self.partitions.extend([(a, b), (b, a)]);
        }
    }

    pub(super) fn heal(&mut self) {
        self.partitions.clear();
    }

    pub(super) fn isolate(&mut self, host: IpAddr) {
        self.isolated.insert(host);
    }

    pub(super) fn reconnect(&mut self, host: IpAddr) {
        self.isolated.remove(&host);
    }

    pub(super) fn digest(&self) -> u64 {
        self.trace.digest()
    }

    pub(super) fn events(&self) -> Vec<TraceEvent> {
        self.trace.events()
    }

    pub(super) fn stats(&self) -> SimStats {
        SimStats { in_flight: self.in_flight.len() as u64, ..self.trace.stats() }
    }

    fn carry(&mut self, now: Duration, direction: Direction, size: usize) -> Passage {
        let link = self.links.get(&direction).unwrap_or(&self.default_link);
        if link.bandwidth.is_none() {
            let mut never_busy = Duration::ZERO;
            return link::carry(link, &mut never_busy, &mut self.rng, now, size);
        }
        if self.busy_until.len() >= BUSY_LINKS_BEFORE_CLEANUP {
            self.busy_until.retain(|_, until| *until > now);
        }
        let busy_until = self.busy_until.entry(direction).or_default();
        link::carry(link, busy_until, &mut self.rng, now, size)
    }

    fn schedule(&mut self, sent: Duration, at: Duration, packet: Packet) {
        if self.in_flight.len() >= self.in_flight_limit {
            return self.settle(&Arrival { sent, at: sent, packet }, Fate::NetworkFull);
        }
        self.in_flight.insert((at, self.sequence), (sent, packet));
        self.sequence += 1;
    }

    /// A host always reaches itself.
    fn is_cut(&self, direction: Direction) -> bool {
        let (from, to) = direction;
        from != to
            && (self.isolated.contains(&from) || self.isolated.contains(&to) || self.partitions.contains(&direction))
    }
}

#[cfg(test)]
mod tests;
