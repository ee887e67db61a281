//! The network between hosts, pure: decides when and whether each packet arrives. No socket, no clock, no waker.
//!
//! Drive it with three calls: [`Router::route`] when a host sends, [`Router::next_arrival`] to know how long to sleep,
//! and [`Router::pop_due`] until it returns `None`, answering each arrival with [`Router::settle`].
//!
//! A packet goes through stages. Between two of them it either crosses a link, which takes time, or goes on at once.
//! What stands at a stage acts when the packet gets there: the NAT of the sender when it leaves, the NAT of the receiver
//! when it arrives, by the mappings of that moment. A way from host to host through two NATs:
//!
//! `Sent` → access link of the host → `Leaving` its realm, rewritten → access link of the NAT → `Leaving` the internet
//! → the link between both public addresses → `Reached` there → access link of that NAT → `Entering` it, rewritten →
//! `Reached` in its realm → access link of the host → the host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::link::{self, Passage};
use super::nat::{NatBox, NatOptions};
use super::network::SimError;
use super::options::{LinkOptions, SimOptions};
use super::packet::Packet;
use super::topology::{FirewallId, HostId, NatId, Node, Realm, Spot, Topology};
use super::trace::{Fate, SimStats, Trace, TraceEvent};

/// Links whose queue state is kept before idle ones are forgotten, which changes nothing for them.
const BUSY_LINKS_BEFORE_CLEANUP: usize = 4096;

/// A packet whose way has ended.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) sent: Duration,
    pub(super) at: Duration,
    /// Who has the address; nobody may.
    pub(super) host: Option<HostId>,
    pub(super) packet: Packet,
}

/// How far a packet has got.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The host hands it to its interface.
    Sent(HostId, Realm),
    /// On its way to a neighbour in this realm, or out of it.
    Leaving(Realm),
    /// At the address it is for, before what stands there.
    Reached(Realm),
    /// Behind the access link of what stands there.
    Entering(Node),
}

/// One direction of one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    Between(Realm, IpAddr, IpAddr),
    Up(Node),
    Down(Node),
    Loopback(HostId),
}

/// What follows a stage.
enum Step {
    Go(Stage),
    Cross(Link, Stage),
    Home(Option<HostId>),
    Drop(Fate),
}

/// From one address to another, in whichever realm.
type Direction = (IpAddr, IpAddr);

/// All links and everything that is on its way.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) topology: Topology,
    seed: u64,
    rng: ChaCha8Rng,
    default_link: LinkOptions,
    loopback: LinkOptions,
    links: BTreeMap<Direction, LinkOptions>,
    /// Until when the bottleneck of a link with limited bandwidth is busy.
    busy_until: BTreeMap<Link, Duration>,
    partitions: BTreeSet<Direction>,
    isolated: BTreeSet<Node>,
    /// By arrival time at the next stage, then in the order of sending.
    in_flight: BTreeMap<(Duration, u64), (Duration, Packet, Stage)>,
    in_flight_limit: usize,
    sequence: u64,
    trace: Trace,
    over: bool,
}

impl Router {
    pub(super) fn new(options: &SimOptions) -> Self {
        Self {
            topology: Topology::default(),
            seed: options.seed,
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            default_link: options.default_link.clone(),
            loopback: LinkOptions::new(),
            links: BTreeMap::new(),
            busy_until: BTreeMap::new(),
            partitions: BTreeSet::new(),
            isolated: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            in_flight_limit: options.in_flight,
            sequence: 0,
            trace: Trace::new(options.recorded_events),
            over: false,
        }
    }

    /// A host sends a packet: it is on its way, or dropped and recorded.
    pub(super) fn route(&mut self, now: Duration, host: HostId, packet: Packet) {
        if self.over {
            return;
        }
        self.trace.on_sent();
        let (from, to) = (packet.from.ip(), packet.to.ip());
        if to.is_loopback() {
            return self.cross(now, (now, packet), Link::Loopback(host), Stage::Entering(Node::Host(host)));
        }
        match self.topology.interface(host, from) {
            Some(realm) => {
                // No stage before the first link is a host's, so nothing comes home here.
                let _on_its_way = self.advance(now, (now, packet), Stage::Sent(host, realm));
            }
            None => self.settle(&Arrival { sent: now, at: now, host: None, packet }, Fate::Unroutable),
        }
    }

    /// While the simulation is over, what hosts send is ignored.
    pub(super) fn set_over(&mut self, over: bool) {
        self.over = over;
    }

    /// When the next packet arrives somewhere.
    pub(super) fn next_arrival(&self) -> Option<Duration> {
        self.in_flight.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next packet that has arrived by `now`. The caller hands it to its socket and must [`settle`](Self::settle) it.
    pub(super) fn pop_due(&mut self, now: Duration) -> Option<Arrival> {
        loop {
            let entry = self.in_flight.first_entry().filter(|entry| entry.key().0 <= now)?;
            let ((at, _), (sent, packet, stage)) = entry.remove_entry();
            if let Some(arrival) = self.advance(at, (sent, packet), stage) {
                return Some(arrival);
            }
        }
    }

    /// Records what became of a packet.
    pub(super) fn settle(&mut self, arrival: &Arrival, fate: Fate) {
        let Arrival { sent, at, packet, .. } = arrival;
        let (from, to, size, protocol) = (packet.from, packet.to, packet.size(), packet.protocol());
        self.trace.record(TraceEvent { sent: *sent, at: *at, from, to, size, protocol, fate });
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

    pub(super) fn isolate(&mut self, node: Node) {
        self.isolated.insert(node);
    }

    pub(super) fn reconnect(&mut self, node: Node) {
        self.isolated.remove(&node);
    }

    /// Puts a NAT at an address.
    pub(super) fn add_nat(&mut self, spot: Spot, ip: IpAddr, options: NatOptions) -> Result<NatId, SimError> {
        let seed = self.seed;
        self.topology.add_nat(spot, ip, |number| NatBox::new(ip, options, seed, number))
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

    /// Moves a packet on until it waits for a link, is dropped, or is home.
    fn advance(&mut self, at: Duration, (sent, mut packet): (Duration, Packet), mut stage: Stage) -> Option<Arrival> {
        loop {
            match self.step(at, &mut packet, stage) {
                Step::Go(next) => stage = next,
                Step::Home(host) => return Some(Arrival { sent, at, host, packet }),
                Step::Cross(link, next) => {
                    self.cross(at, (sent, packet), link, next);
                    return None;
                }
                Step::Drop(fate) => {
                    self.settle(&Arrival { sent, at, host: None, packet }, fate);
                    return None;
                }
            }
        }
    }

    fn step(&mut self, at: Duration, packet: &mut Packet, stage: Stage) -> Step {
        match stage {
            Stage::Sent(host, realm) => self.on_sent(at, packet, host, realm),
            Stage::Leaving(realm) => self.on_leaving(at, packet, realm),
            Stage::Reached(realm) => self.on_reached(at, packet, realm),
            Stage::Entering(Node::Host(host)) => Step::Home(Some(host)),
            Stage::Entering(Node::Nat(nat)) => match self.topology.nat_mut(nat).map(|nat| nat.inbound(at, packet)) {
                Some(Ok(())) => Step::Go(Stage::Reached(Realm::inside(nat))),
                Some(Err(fate)) => Step::Drop(fate),
                None => Step::Home(None),
            },
        }
    }

    fn on_sent(&mut self, at: Duration, packet: &Packet, host: HostId, realm: Realm) -> Step {
        if packet.from.ip() == packet.to.ip() {
            return Step::Go(Stage::Leaving(realm));
        }
        if self.isolated.contains(&Node::Host(host)) {
            return Step::Drop(Fate::Partitioned);
        }
        if !self.topology.has_route(realm, packet.to.ip()) {
            return Step::Drop(Fate::Unroutable);
        }
        self.go_out(at, packet, Node::Host(host), realm)
    }

    /// A packet leaves a node for the realm it is in: past its firewall, over its access link.
    fn go_out(&mut self, at: Duration, packet: &Packet, node: Node, realm: Realm) -> Step {
        let firewall = self.firewall_between(realm, packet.from.ip(), packet.to.ip());
        if firewall.and_then(|id| self.topology.firewall_mut(id)).is_some_and(|f| !f.outbound(at, packet)) {
            return Step::Drop(Fate::Filtered);
        }
        match self.topology.access_link(node) {
            Some(_) => Step::Cross(Link::Up(node), Stage::Leaving(realm)),
            None => Step::Go(Stage::Leaving(realm)),
        }
    }

    fn on_leaving(&mut self, at: Duration, packet: &mut Packet, realm: Realm) -> Step {
        let (from, to) = (packet.from.ip(), packet.to.ip());
        let way_out = realm.nat().filter(|_| self.topology.place(realm, to).is_none());
        let Some(id) = way_out else {
            let link = Link::Between(realm, from, to);
            return if self.is_cut(realm, from, to) {
                Step::Drop(Fate::Partitioned)
            } else {
                Step::Cross(link, Stage::Reached(realm))
            };
        };
        let Some((outer, nat)) = self.topology.outer(id).zip(self.topology.nat_mut(id)) else {
            return Step::Drop(Fate::Unroutable);
        };
        let is_hairpin = to == nat.ip;
        if is_hairpin && !nat.options.hairpinning {
            return Step::Drop(Fate::Filtered);
        }
        if let Err(fate) = nat.outbound(at, packet) {
            return Step::Drop(fate);
        }
        if is_hairpin {
            return match nat.inbound(at, packet) {
                Ok(()) => Step::Cross(Link::Between(realm, from, packet.to.ip()), Stage::Reached(realm)),
                Err(fate) => Step::Drop(fate),
            };
        }
        if self.isolated.contains(&Node::Nat(id)) {
            return Step::Drop(Fate::Partitioned);
        }
        self.go_out(at, packet, Node::Nat(id), outer)
    }

    fn on_reached(&mut self, at: Duration, packet: &Packet, realm: Realm) -> Step {
        let (from, to) = (packet.from.ip(), packet.to.ip());
        if self.is_cut(realm, from, to) {
            return Step::Drop(Fate::Partitioned);
        }
        let Some(place) = self.topology.place(realm, to) else { return Step::Home(None) };
        let firewall = self.firewall_between(realm, to, from);
        if firewall.and_then(|id| self.topology.firewall_mut(id)).is_some_and(|f| !f.inbound(at, packet)) {
            return Step::Drop(Fate::Filtered);
        }
        match self.topology.access_link(place.node) {
            Some(_) if from != to => Step::Cross(Link::Down(place.node), Stage::Entering(place.node)),
            _ => Step::Go(Stage::Entering(place.node)),
        }
    }

    /// The firewall before `near`, unless `far` is behind it, too.
    fn firewall_between(&self, realm: Realm, near: IpAddr, far: IpAddr) -> Option<FirewallId> {
        let firewall = self.topology.place(realm, near)?.firewall;
        firewall.filter(|_| self.topology.place(realm, far).is_none_or(|place| place.firewall != firewall))
    }

    /// Sends a packet over a link, to be at the next stage behind it.
    fn cross(&mut self, now: Duration, (sent, packet): (Duration, Packet), link: Link, next: Stage) {
        match self.carry(now, link, packet.size()) {
            Passage::Dropped(fate) => self.settle(&Arrival { sent, at: now, host: None, packet }, fate),
            Passage::Arrives { first, copy } => {
                if let Some(at) = copy {
                    self.trace.on_duplicated();
                    self.schedule(now, at, (sent, packet.clone()), next);
                }
                self.schedule(now, first, (sent, packet), next);
            }
        }
    }

    fn carry(&mut self, now: Duration, key: Link, size: usize) -> Passage {
        let special = match key {
            Link::Between(realm, from, to) => self.links.get(&(from, to)).or_else(|| self.topology.inside_link(realm)),
            Link::Up(node) | Link::Down(node) => self.topology.access_link(node),
            Link::Loopback(_) => Some(&self.loopback),
        };
        let link = special.unwrap_or(&self.default_link);
        if link.bandwidth.is_none() {
            let mut never_busy = Duration::ZERO;
            return link::carry(link, &mut never_busy, &mut self.rng, now, size);
        }
        if self.busy_until.len() >= BUSY_LINKS_BEFORE_CLEANUP {
            self.busy_until.retain(|_, until| *until > now);
        }
        let busy_until = self.busy_until.entry(key).or_default();
        link::carry(link, busy_until, &mut self.rng, now, size)
    }

    fn schedule(&mut self, now: Duration, at: Duration, (sent, packet): (Duration, Packet), next: Stage) {
        if self.in_flight.len() >= self.in_flight_limit {
            return self.settle(&Arrival { sent, at: now, host: None, packet }, Fate::NetworkFull);
        }
        self.in_flight.insert((at, self.sequence), (sent, packet, next));
        self.sequence += 1;
    }

    /// A node always reaches itself.
    fn is_cut(&self, realm: Realm, from: IpAddr, to: IpAddr) -> bool {
        let is_isolated = |ip| self.topology.place(realm, ip).is_some_and(|place| self.isolated.contains(&place.node));
        from != to && (is_isolated(from) || is_isolated(to) || self.partitions.contains(&(from, to)))
    }
}

#[cfg(test)]
mod tests;
