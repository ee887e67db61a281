//! Birthday punching: two NATs meet by chance, where one gives every peer another port and the other lets in exact ports only.
//!
//! The end behind the first kind ([`Role::Many`]) opens many sockets and sends from each to the one address of its peer: its NAT
//! holds as many ports open, which nobody knows. The other end ([`Role::One`]) sends to random ports of that NAT from its one
//! socket. With 256 of 64,512 ports open, 175 packets meet one of them with a chance of one half, 1,024 with 98 %.
//!
//! [`BirthdayMachine`] is one end for one peer. Tell it what is known (`on_*`), begin with [`ask`](BirthdayMachine::ask) when it
//! [`is_ready`](BirthdayMachine::is_ready) and the node may, or with [`go`](BirthdayMachine::go) when the peer asks, and do what
//! [`poll_action`](BirthdayMachine::poll_action) says. It sends nothing else than what it was told to begin, at a fixed pace, and
//! to one address. Sockets, budgets and what other peers' machines do are the driver's matter.

use std::collections::{BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

use crate::limits::{BIRTHDAY_PROBES, BIRTHDAY_SOCKETS};
use crate::transport::NatMapping;

/// How long a connection has been relayed before it is tried: ordinary punching is over then, and data flows.
const RELAYED_FOR: Duration = Duration::from_secs(10);
/// How long the peer may take to agree. It is asked over the connection.
const ASKED: Duration = Duration::from_secs(5);
/// After a peer that did not agree: it may be busy with another one.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// Between the first packets of two sockets.
const SOCKET_PACE: Duration = Duration::from_millis(2);
/// Between two packets to random ports.
const PROBE_PACE: Duration = Duration::from_millis(5);
/// How long the last of them may take to be answered.
const LAST_ANSWER: Duration = Duration::from_secs(1);
/// When all sockets send once more: what arrived before a port was open has opened the other NAT for it.
const SEND_AGAIN: Duration = Duration::from_secs(2);
/// How long the sockets are kept open: for all the packets of the other end, at a pace that timers make slower.
const SOCKETS_OPEN: Duration = Duration::from_secs(10);
/// What NATs give away (RFC 4787, section 4.2.2: not the well-known ports).
const PORTS: RangeInclusive<u16> = 1024..=65_535;

/// What an end does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens many sockets.
    Many,
    /// Sends to many ports.
    One,
}

impl Role {
    /// Who does what, by the NATs of this end and of the other. `None` where ordinary punching works, or nothing does. Where only
    /// one of them is known, the other is taken for what would explain that ordinary punching failed.
    pub fn of(own: NatMapping, peer: NatMapping) -> Option<Self> {
        use NatMapping::{Dependent, Independent, Unknown};
        match (own, peer) {
            (Dependent, Independent | Unknown) | (Unknown, Independent) => Some(Self::Many),
            (Independent, Dependent | Unknown) | (Unknown, Dependent) => Some(Self::One),
            (Independent, Independent) | (Dependent, Dependent) | (Unknown, Unknown) => None,
        }
    }
}

/// How a NAT maps, by what STUN servers (first) see of one socket (second). IPv4 only: elsewhere nobody maps.
pub fn mapping_behaviour(seen: impl IntoIterator<Item = (SocketAddr, SocketAddr)>) -> NatMapping {
    let seen = seen.into_iter().filter(|(_, mapped)| mapped.is_ipv4());
    let (servers, mapped): (BTreeSet<IpAddr>, BTreeSet<SocketAddr>) = seen.map(|(by, at)| (by.ip(), at)).unzip();
    match (servers.len(), mapped.len()) {
        (_, 2..) => NatMapping::Dependent,
        // Two ports of one machine may be told the same by a NAT that tells machines apart.
        (2.., 1) => NatMapping::Independent,
        (_, 0 | 1) => NatMapping::Unknown,
    }
}

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask the peer whether it takes part now.
    Ask,
    /// Tell the peer that this end begins.
    Go,
    /// Send a check from the socket with this number, which is opened for it if it is not open.
    Send {
        /// Below `BIRTHDAY_SOCKETS`.
        socket: usize,
        /// The peer.
        to: SocketAddr,
    },
    /// Send a check from the node's own socket.
    Probe {
        /// A port that is tried.
        to: SocketAddr,
    },
    /// It is over: close all sockets but one that met the peer.
    End,
}

#[derive(Debug)]
enum State {
    Idle,
    /// The peer was asked.
    Asked {
        until: Instant,
    },
    Sending {
        to: SocketAddr,
        /// Sockets that there are, or may be.
        sockets: usize,
        /// Packets that went out.
        sent: usize,
        next: Option<Instant>,
        again: Instant,
        until: Instant,
    },
    Probing {
        ip: IpAddr,
        tried: BTreeSet<u16>,
        next: Instant,
    },
}

/// One end of birthday punching with one peer.
#[derive(Debug)]
pub struct BirthdayMachine {
    random: ChaCha20Rng,
    own: NatMapping,
    /// Of the peer that is willing.
    peer: Option<NatMapping>,
    /// Where the peer's NAT is, as STUN servers told the peer.
    target: Option<SocketAddr>,
    relayed_since: Option<Instant>,
    resting_until: Option<Instant>,
    state: State,
    actions: VecDeque<Action>,
}

impl BirthdayMachine {
    /// Knows nothing yet.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            random: ChaCha20Rng::from_seed(seed),
            own: NatMapping::Unknown,
            peer: None,
            target: None,
            relayed_since: None,
            resting_until: None,
            state: State::Idle,
            actions: VecDeque::new(),
        }
    }

    /// How our NAT maps.
    pub fn on_own(&mut self, mapping: NatMapping) {
        self.own = mapping;
    }

    /// The peer is willing, behind a NAT that maps like this.
    pub fn on_peer(&mut self, mapping: NatMapping) {
        self.peer = Some(mapping);
    }

    /// Where STUN servers see the peer. An attempt under way goes on where it began.
    pub fn on_target(&mut self, target: Option<SocketAddr>) {
        self.target = target;
    }

    /// Whether the connection is relayed now. When it is not any more there is nothing left to do.
    pub fn on_path(&mut self, now: Instant, relayed: bool) {
        if relayed {
            self.relayed_since.get_or_insert(now);
        } else if self.relayed_since.take().is_some() {
            self.end();
        }
    }

    /// Another network: it is worth another try.
    pub fn on_network_change(&mut self, now: Instant) {
        self.resting_until = None;
        self.relayed_since = self.relayed_since.map(|_| now);
    }

    /// Not before this time.
    pub fn rest(&mut self, until: Instant) {
        self.resting_until = Some(until);
    }

    /// What this end would do now, if the peer is willing and there is somewhere to send to.
    pub fn role(&self) -> Option<Role> {
        let role = Role::of(self.own, self.peer?)?;
        (self.target.is_some() && self.relayed_since.is_some()).then_some(role)
    }

    /// Whether an attempt is under way.
    pub fn is_busy(&self) -> bool {
        !matches!(self.state, State::Idle)
    }

    /// Whether it is time to ask the peer. The end with the many sockets asks.
    pub fn is_ready(&self, now: Instant) -> bool {
        self.ready_at().is_some_and(|at| at <= now)
    }

    /// Begins with asking the peer.
    pub fn ask(&mut self, now: Instant) {
        if self.is_ready(now) {
            self.state = State::Asked { until: now + ASKED };
            self.actions.push_back(Action::Ask);
        }
    }

    /// The peer asked, and the node may.
    pub fn go(&mut self, now: Instant) {
        if let (Some(Role::One), Some(target), State::Idle) = (self.role(), self.target, &self.state) {
            self.state = State::Probing { ip: target.ip(), tried: BTreeSet::new(), next: now };
            self.actions.push_back(Action::Go);
        }
    }

    /// The peer begins. True when this end does as well.
    pub fn on_go(&mut self, now: Instant) -> bool {
        let (Some(to), State::Asked { .. }) = (self.target, &self.state) else { return false };
        let (next, again, until) = (Some(now), now + SEND_AGAIN, now + SOCKETS_OPEN);
        self.state = State::Sending { to, sockets: BIRTHDAY_SOCKETS, sent: 0, next, again, until };
        true
    }

    /// The socket with this number could not be opened: it has to do with those before.
    pub fn on_no_socket(&mut self, number: usize) {
        if let State::Sending { sockets, sent, next, again, .. } = &mut self.state {
            (*sockets, *sent, *next) = (number, number, Some(*again));
            if number == 0 {
                self.end();
            }
        }
    }

    /// An authenticated check of the peer came from there, to one of the sockets of this attempt or to the node's own.
    pub fn on_check(&mut self, from: SocketAddr) {
        let met = match &self.state {
            State::Idle | State::Asked { .. } => false,
            State::Sending { to, .. } => *to == from,
            State::Probing { ip, tried, .. } => *ip == from.ip() && tried.contains(&from.port()),
        };
        if met {
            self.end();
        }
    }

    /// What to do next. Ask until it is `None`.
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        match &mut self.state {
            State::Idle => None,
            State::Asked { until } => {
                if *until <= now {
                    self.rest(now + ASK_AGAIN);
                    self.end();
                }
                self.actions.pop_front()
            }
            State::Sending { until, .. } if *until <= now => {
                self.end();
                self.actions.pop_front()
            }
            State::Sending { to, sockets, sent, next, again, .. } => {
                if next.is_none_or(|next| next > now) {
                    return None;
                }
                let socket = *sent % *sockets;
                *sent += 1;
                // From now, not from when it was due: a driver that slept sends no burst.
                *next = match *sent {
                    sent if sent == *sockets => Some((*again).max(now + SOCKET_PACE)),
                    sent if sent >= 2 * *sockets => None,
                    _ => Some(now + SOCKET_PACE),
                };
                Some(Action::Send { socket, to: *to })
            }
            State::Probing { next, .. } if *next > now => None,
            State::Probing { ip, tried, next } => {
                if tried.len() >= BIRTHDAY_PROBES {
                    self.end();
                    return self.actions.pop_front();
                }
                let port = loop {
                    let port = self.random.random_range(PORTS);
                    if tried.insert(port) {
                        break port;
                    }
                };
                *next = now + if tried.len() < BIRTHDAY_PROBES { PROBE_PACE } else { LAST_ANSWER };
                Some(Action::Probe { to: SocketAddr::new(*ip, port) })
            }
        }
    }

    /// When to call [`poll_action`](Self::poll_action), or to look whether it [`is_ready`](Self::is_ready), and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.state {
            State::Idle => self.ready_at().map(|at| (at, "time to ask")),
            State::Asked { until } => Some((*until, "answer of the peer")),
            State::Sending { next, until, .. } => {
                let next = next.map(|next| (next, "next socket"));
                Some(next.map_or((*until, "end of the attempt"), |next| next.min((*until, "end of the attempt"))))
            }
            State::Probing { next, .. } => Some((*next, "next port")),
        }
    }

    fn ready_at(&self) -> Option<Instant> {
        let idle = matches!(self.state, State::Idle) && self.role() == Some(Role::Many);
        let ready = self.relayed_since.filter(|_| idle)? + RELAYED_FOR;
        Some(self.resting_until.map_or(ready, |until| until.max(ready)))
    }

    fn end(&mut self) {
        if self.is_busy() {
            self.state = State::Idle;
            self.actions.push_back(Action::End);
        }
    }
}

#[cfg(test)]
mod tests;
