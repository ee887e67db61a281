//! Whom to ask next about shared documents: the pure machine of a random walk over the peers that are known.
//!
//! Tell it who is known ([`Walk::add`]), ask it whom to visit ([`Walk::next`], again at [`Walk::poll_timeout`]), and tell it how
//! that went. Everybody is visited once, soon; then again in random order, at waits that double while nobody new is met: what is
//! known to one spreads to all by such visits.
//! Now and then the walk starts over at a peer that the user named, so that it does not stay among friends of friends. It
//! connects to nobody itself.
//!
//! Anybody can name peers that are not there, so a name is no news, and those that did not prove to be there get half of the
//! visits. Who does not answer is given up after a while; but of those that were met, not while nobody answers: then it is this
//! node that is cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use crate::backoff::ReconnectionPolicy;
use crate::ids::PeerId;
use crate::limits::{
    BOOK_STALE_FAILURES, DISCOVERY_RUN_INTERVAL, DISCOVERY_UNPROVEN_VISITS, DISCOVERY_VISITS, WALK_NAMED, WALK_PEERS,
};

/// First visits that follow each other quickly; a network of friends has no more peers.
const QUICK_VISITS: u32 = 64;
/// Time between two of them.
const QUICK: Duration = Duration::from_millis(100);
/// Time between two later first visits.
const STEADY: Duration = Duration::from_secs(1);
/// Shortest and longest time between two visits to peers that were visited before.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// The wait doubles after as many visits without news as a quarter of the peers that were met, and at least this many.
const QUIET_VISITS: usize = 6;
/// Longest time between two attempts at a peer.
const LONGEST_RETRY: Duration = Duration::from_secs(3600);
/// Longest time between two attempts at any peer while none answers: this node is cut off, and notices the end of that.
const CUT_OFF_RETRY: Duration = Duration::from_secs(60);
/// How many peers that were met have to be silent for that, if there are as many.
const CUT_OFF_PEERS: usize = 2;
/// How often the walk starts over at a peer that the user named, if there is one.
const RESTART: f64 = 0.1;

/// How a peer became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The user named it as a peer to ask.
    User,
    /// It is in the address book, and was met in an earlier run or not.
    Book {
        /// It was met.
        met: bool,
    },
    /// It is connected, and wants to be asked.
    Itself,
    /// This peer named it.
    Peer(PeerId),
}

/// How a visit came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Nobody answered.
    Unreached,
    /// The peer is there, but refused or broke off.
    Refused,
    /// It was not tried.
    NotTried,
}

/// One peer.
#[derive(Debug)]
struct Stop {
    bootstrap: bool,
    /// Who named it, if somebody did.
    namer: Option<PeerId>,
    /// It answered since it was last unknown what it shares.
    visited: bool,
    /// It answered at some time.
    met: bool,
    /// It did so when it was last tried, or came itself.
    answers: bool,
    running: bool,
    /// Attempts in a row that failed: the wait for the next one grows with them.
    failures: u32,
    /// Those of them that speak against the peer: with these it is given up.
    misses: u32,
    not_before: Instant,
}

impl Stop {
    /// The user named it, or it answered at some time.
    fn is_known(&self) -> bool {
        self.bootstrap || self.met
    }

    /// It need not wait behind made-up ones, nor make room for others.
    fn is_proven(&self) -> bool {
        self.bootstrap || self.answers
    }
}

/// The walk.
#[derive(Debug)]
pub struct Walk {
    rng: ChaCha8Rng,
    /// After nobody answered, and after somebody did and said no, or was busy.
    retry: (ReconnectionPolicy, ReconnectionPolicy),
    stops: BTreeMap<PeerId, Stop>,
    running: usize,
    /// Visits to peers for the first time, so far.
    first_visits: u32,
    next_first: Instant,
    /// Visits in a row by which nobody new was met.
    quiet: u32,
    next_again: Instant,
    /// The last visit was one to a peer for the first time.
    last_was_first: bool,
    /// Known peers that were silent since somebody last answered.
    silent: BTreeSet<PeerId>,
}

impl Walk {
    /// Nobody is known yet.
    pub fn new(rng: ChaCha8Rng, now: Instant) -> Self {
        // Peers that are gone for a while are tried for hours; after that somebody else will have heard of them.
        let retry = |initial| ReconnectionPolicy::new().with_initial_delay(initial).with_max_delay(LONGEST_RETRY);
        let retry = (retry(3 * DISCOVERY_RUN_INTERVAL), retry(DISCOVERY_RUN_INTERVAL));
        Self {
            rng,
            retry,
            stops: BTreeMap::new(),
            running: 0,
            first_visits: 0,
            next_first: now,
            quiet: 0,
            next_again: now + AGAIN.0,
            last_was_first: false,
            silent: BTreeSet::new(),
        }
    }

    /// A peer may be asked. False when it was known, or there are as many as may be.
    pub fn add(&mut self, peer: PeerId, origin: Origin, now: Instant) -> bool {
        let bootstrap = origin == Origin::User;
        if let Some(stop) = self.stops.get_mut(&peer) {
            stop.bootstrap |= bootstrap;
            return false;
        }
        if !self.make_room(origin) {
            return false;
        }
        let namer = if let Origin::Peer(namer) = origin { Some(namer) } else { None };
        let met = origin == Origin::Book { met: true };
        let (visited, running, failures, misses) = (false, false, 0, 0);
        let stop = Stop { bootstrap, namer, visited, met, answers: met, running, failures, misses, not_before: now };
        self.stops.insert(peer, stop);
        true
    }

    fn make_room(&mut self, origin: Origin) -> bool {
        let full = self.stops.len() >= WALK_PEERS;
        let least_misses = match origin {
            Origin::User => return true,
            Origin::Book { .. } => return !full,
            Origin::Itself => 0,
            Origin::Peer(namer) => {
                let named = self.stops.values().filter(|stop| !stop.met && stop.namer == Some(namer)).count();
                if named >= WALK_NAMED {
                    return false;
                }
                1
            }
        };
        if !full {
            return true;
        }
        let replaceable = |stop: &Stop| !stop.running && !stop.is_proven() && stop.misses >= least_misses;
        let unproven = self.stops.iter().filter(|(_, stop)| replaceable(stop));
        let worst = unproven.max_by_key(|(_, stop)| stop.misses).map(|(peer, _)| *peer);
        worst.is_some_and(|peer| self.remove(&peer))
    }

    fn remove(&mut self, peer: &PeerId) -> bool {
        self.silent.remove(peer);
        self.stops.remove(peer).is_some()
    }

    /// How many peers are known.
    pub fn len(&self) -> usize {
        self.stops.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.stops.is_empty()
    }

    /// Some of the peers that answered, and of those that the user named, at random, the given one excepted.
    pub fn sample(&mut self, count: usize, except: &PeerId) -> Vec<PeerId> {
        let met = self.stops.iter().filter(|(peer, stop)| (stop.met || stop.bootstrap) && *peer != except);
        let mut met: Vec<_> = met.map(|(peer, _)| *peer).collect();
        let count = count.min(met.len());
        for at in 0..count {
            let other = self.rng.random_range(at..met.len());
            met.swap(at, other);
        }
        met.truncate(count);
        met
    }

    /// Whom to visit now, if anybody. It counts as being visited until [`on_visited`](Self::on_visited) or
    /// [`on_failed`](Self::on_failed).
    pub fn next(&mut self, now: Instant) -> Option<PeerId> {
        if self.running >= DISCOVERY_VISITS {
            return None;
        }
        // When both kinds of visits are due they take turns.
        for first in [!self.last_was_first, self.last_was_first] {
            let due = if first { self.next_first } else { self.next_again };
            let Some(peer) = (due <= now).then(|| self.choose(!first, now)).flatten() else { continue };
            self.last_was_first = first;
            if first {
                self.first_visits = self.first_visits.saturating_add(1);
                self.next_first = now + if self.first_visits < QUICK_VISITS { QUICK } else { STEADY };
            } else {
                self.next_again = now + self.wait_again();
            }
            self.running += 1;
            self.stops.get_mut(&peer)?.running = true;
            return Some(peer);
        }
        None
    }

    /// A visit was answered.
    pub fn on_visited(&mut self, peer: &PeerId, now: Instant) {
        self.end(peer);
        self.quiet = self.quiet.saturating_add(1);
        self.on_met(peer, now);
    }

    /// The peer visits us just now: no need to visit it meanwhile.
    pub fn on_asked(&mut self, peer: &PeerId, now: Instant) {
        if let Some(stop) = self.stops.get_mut(peer) {
            stop.not_before = stop.not_before.max(now + DISCOVERY_RUN_INTERVAL);
        }
    }

    /// The peer visited us: as good as a visit to it.
    pub fn on_met(&mut self, peer: &PeerId, now: Instant) {
        self.on_answer(now);
        if self.stops.get(peer).is_some_and(|stop| !stop.met) {
            self.be_quick(now);
        }
        let Some(stop) = self.stops.get_mut(peer) else { return };
        (stop.visited, stop.met, stop.answers, stop.failures, stop.misses) = (true, true, true, 0, 0);
        stop.not_before = now + DISCOVERY_RUN_INTERVAL;
    }

    /// A visit came to nothing. True when that speaks against the peer: it is to be noted in the address book.
    pub fn on_failed(&mut self, peer: &PeerId, failure: Failure, now: Instant) -> bool {
        self.end(peer);
        if failure == Failure::Refused {
            self.on_answer(now);
        }
        let (random, known) = (self.rng.random(), self.known());
        let unreached = failure == Failure::Unreached;
        let retry = if unreached { &self.retry.0 } else { &self.retry.1 };
        let Some(stop) = self.stops.get_mut(peer) else { return false };
        stop.failures += 1;
        stop.answers &= !unreached;
        let mut wait = retry.delay_after(stop.failures, random).unwrap_or_default();
        let mut counts = true;
        if unreached && stop.is_known() {
            // Once, until somebody answers.
            counts = self.silent.insert(*peer);
            if self.silent.len() >= CUT_OFF_PEERS.min(known) {
                wait = wait.min(CUT_OFF_RETRY.saturating_mul(u32::try_from(known).unwrap_or(u32::MAX)));
                self.next_again = self.next_again.min(now + CUT_OFF_RETRY);
            }
        }
        stop.misses += u32::from(counts);
        stop.not_before = now + wait;
        let given_up = stop.misses >= BOOK_STALE_FAILURES && !stop.bootstrap;
        if given_up {
            self.remove(peer);
        }
        given_up || (unreached && counts)
    }

    /// Somebody answered: if nobody else did, this node was cut off, and tries the others again.
    fn on_answer(&mut self, now: Instant) {
        if self.silent.len() >= CUT_OFF_PEERS.min(self.known()) {
            let silent = self.stops.iter_mut().filter(|(peer, _)| self.silent.contains(peer));
            silent.for_each(|(_, stop)| (stop.failures, stop.not_before) = (0, now));
            self.be_quick(now);
        }
        self.silent.clear();
    }

    /// There is something new to be learnt from those that were visited before.
    fn be_quick(&mut self, now: Instant) {
        self.quiet = 0;
        self.next_again = self.next_again.min(now + AGAIN.0);
    }

    /// There is something new to ask everybody: another document is open.
    pub fn ask_all_again(&mut self, now: Instant) {
        self.stops.values_mut().for_each(|stop| stop.visited = false);
        (self.first_visits, self.quiet) = (0, 0);
        self.next_first = self.next_first.min(now + QUICK);
    }

    /// The network changed: who did not answer may do so now, and it need not have been the fault of those that were met.
    pub fn retry_all(&mut self, now: Instant) {
        for stop in self.stops.values_mut().filter(|stop| stop.failures > 0) {
            stop.not_before = now;
            if stop.is_known() {
                (stop.failures, stop.misses) = (0, 0);
            }
        }
        self.silent.clear();
    }

    /// When to call [`next`](Self::next), and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.running >= DISCOVERY_VISITS {
            return None;
        }
        let unproven = self.takes_unproven();
        let earliest = |visited| {
            let ready = move |stop: &&Stop| !stop.running && stop.visited == visited && (unproven || stop.is_proven());
            let waiting = self.stops.values().filter(ready);
            waiting.map(|stop| stop.not_before).min()
        };
        let first = earliest(false).map(|at| (at.max(self.next_first), "first visit"));
        let again = earliest(true).map(|at| (at.max(self.next_again), "another visit"));
        first.into_iter().chain(again).min()
    }

    fn choose(&mut self, visited: bool, now: Instant) -> Option<PeerId> {
        let unproven = self.takes_unproven();
        let ready = |stop: &Stop| {
            let waits = !stop.running && stop.visited == visited && stop.not_before <= now;
            waits && (unproven || stop.is_proven())
        };
        let restart = self.rng.random_bool(RESTART);
        let bootstraps = || self.stops.iter().filter(|(_, stop)| ready(stop) && stop.bootstrap);
        let all = || self.stops.iter().filter(|(_, stop)| ready(stop));
        let candidates: Vec<_> = match restart && bootstraps().next().is_some() {
            true => bootstraps().map(|(peer, _)| *peer).collect(),
            false => all().map(|(peer, _)| *peer).collect(),
        };
        match candidates.len() {
            0 => None,
            count => candidates.get(self.rng.random_range(0..count)).copied(),
        }
    }

    fn wait_again(&mut self) -> Duration {
        let rounds = self.quiet as usize / QUIET_VISITS.max(self.known() / 4);
        let wait = AGAIN.0.saturating_mul(1 << rounds.min(16)).min(AGAIN.1);
        // Spread, so that peers which started together do not go on together.
        wait.mul_f64(0.75 + 0.5 * self.rng.random::<f64>())
    }

    /// Whether one more visit may be to a peer that did not prove to be there.
    fn takes_unproven(&self) -> bool {
        let running = self.stops.values().filter(|stop| stop.running && !stop.is_proven());
        running.count() < DISCOVERY_UNPROVEN_VISITS
    }

    /// How many peers answered at some time, or were named by the user.
    fn known(&self) -> usize {
        self.stops.values().filter(|stop| stop.is_known()).count()
    }

    /// Whether this peer answered at some time, or was named by the user.
    pub fn knows(&self, peer: &PeerId) -> bool {
        self.stops.get(peer).is_some_and(Stop::is_known)
    }

    /// Whether a visit to this peer is under way.
    pub fn is_visiting(&self, peer: &PeerId) -> bool {
        self.stops.get(peer).is_some_and(|stop| stop.running)
    }

    fn end(&mut self, peer: &PeerId) {
        self.running = self.running.saturating_sub(1);
        if let Some(stop) = self.stops.get_mut(peer) {
            stop.running = false;
        }
    }
}

#[cfg(test)]
mod tests;
