//! Whom to ask next about shared documents: the pure machine of a random walk over the peers that are known.
//!
//! Tell it who is known ([`Walk::add`]), ask it whom to visit ([`Walk::next`], again at [`Walk::poll_timeout`]), and tell it how
//! that went. Everybody is visited once, soon; then again in random order, at waits that double while nothing new comes of it:
//! what is known to one spreads to all by such visits.
//! Now and then the walk starts over at a peer that the user named, so that it does not stay among friends of friends. It
//! connects to nobody itself.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use crate::backoff::ReconnectionPolicy;
use crate::ids::PeerId;
use crate::limits::{BOOK_STALE_FAILURES, DISCOVERY_RUN_INTERVAL, DISCOVERY_VISITS, WALK_PEERS};

/// First visits that follow each other quickly; a network of friends has no more peers.
const QUICK_VISITS: u32 = 64;
/// Time between two of them.
const QUICK: Duration = Duration::from_millis(100);
/// Time between two later first visits.
const STEADY: Duration = Duration::from_secs(1);
/// Shortest and longest time between two visits to peers that were visited before.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// The wait doubles after as many visits without news as a quarter of the peers, and at least this many.
const QUIET_VISITS: usize = 6;
/// Longest time between two attempts at a peer.
const LONGEST_RETRY: Duration = Duration::from_secs(3600);
/// How often the walk starts over at a peer that the user named, if there is one.
const RESTART: f64 = 0.1;

/// One peer.
#[derive(Debug)]
struct Stop {
    bootstrap: bool,
    /// It answered since it was last unknown what it shares.
    visited: bool,
    /// It answered at some time.
    met: bool,
    running: bool,
    failures: u32,
    not_before: Instant,
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
    /// Visits to known peers in a row that brought nothing.
    quiet: u32,
    next_again: Instant,
}

impl Walk {
    /// Nobody is known yet.
    pub fn new(rng: ChaCha8Rng, now: Instant) -> Self {
        // Peers that are gone for a while are tried for hours; after that somebody else will have heard of them.
        let retry = |initial| ReconnectionPolicy::new().with_initial_delay(initial).with_max_delay(LONGEST_RETRY);
        let retry = (retry(3 * DISCOVERY_RUN_INTERVAL), retry(DISCOVERY_RUN_INTERVAL));
        let stops = BTreeMap::new();
        Self { rng, retry, stops, running: 0, first_visits: 0, next_first: now, quiet: 0, next_again: now + AGAIN.0 }
    }

    /// A peer may be asked. False when it was known, or there are as many as may be.
    pub fn add(&mut self, peer: PeerId, bootstrap: bool, now: Instant) -> bool {
        if let Some(stop) = self.stops.get_mut(&peer) {
            stop.bootstrap |= bootstrap;
            return false;
        }
        if self.stops.len() >= WALK_PEERS && !bootstrap {
            return false;
        }
        self.stops
            .insert(peer, Stop { bootstrap, visited: false, met: false, running: false, failures: 0, not_before: now });
        true
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
        let first = self.next_first <= now;
        let chosen = first.then(|| self.choose(false, now)).flatten();
        let chosen = match chosen {
            Some(peer) => {
                self.first_visits = self.first_visits.saturating_add(1);
                self.next_first = now + if self.first_visits < QUICK_VISITS { QUICK } else { STEADY };
                peer
            }
            None if self.next_again <= now => {
                let peer = self.choose(true, now)?;
                self.next_again = now + self.wait_again();
                peer
            }
            None => return None,
        };
        self.running += 1;
        self.stops.get_mut(&chosen)?.running = true;
        Some(chosen)
    }

    /// A visit was answered; `news`: it brought peers or documents that were not known.
    pub fn on_visited(&mut self, peer: &PeerId, news: bool, now: Instant) {
        self.end(peer);
        self.quiet = self.quiet.saturating_add(1);
        self.on_met(peer, news, now);
    }

    /// The peer visits us just now: no need to visit it meanwhile.
    pub fn on_asked(&mut self, peer: &PeerId, now: Instant) {
        if let Some(stop) = self.stops.get_mut(peer) {
            stop.not_before = stop.not_before.max(now + DISCOVERY_RUN_INTERVAL);
        }
    }

    /// The peer visited us: as good as a visit to it.
    pub fn on_met(&mut self, peer: &PeerId, news: bool, now: Instant) {
        if news {
            self.quiet = 0;
            self.next_again = self.next_again.min(now + AGAIN.0);
        }
        if let Some(stop) = self.stops.get_mut(peer) {
            (stop.visited, stop.met, stop.failures) = (true, true, 0);
            stop.not_before = now + DISCOVERY_RUN_INTERVAL;
        }
    }

    /// A visit came to nothing; `answered`: the peer is there, but refused or broke off. True when it was given up.
    pub fn on_failed(&mut self, peer: &PeerId, answered: bool, now: Instant) -> bool {
        self.end(peer);
        let random = self.rng.random();
        let retry = if answered { &self.retry.1 } else { &self.retry.0 };
        let Some(stop) = self.stops.get_mut(peer) else { return false };
        stop.failures += 1;
        stop.not_before = now + retry.delay_after(stop.failures, random).unwrap_or_default();
        let given_up = stop.failures >= BOOK_STALE_FAILURES && !stop.bootstrap;
        if given_up {
            self.stops.remove(peer);
        }
        given_up
    }

    /// There is something new to ask everybody: another document is open.
    pub fn ask_all_again(&mut self, now: Instant) {
        self.stops.values_mut().for_each(|stop| stop.visited = false);
        (self.first_visits, self.quiet) = (0, 0);
        self.next_first = self.next_first.min(now + QUICK);
    }

    /// The network changed: who did not answer may do so now.
    pub fn retry_all(&mut self, now: Instant) {
        let failed = self.stops.values_mut().filter(|stop| stop.failures > 0);
        failed.for_each(|stop| stop.not_before = now);
    }

    /// When to call [`next`](Self::next), and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.running >= DISCOVERY_VISITS {
            return None;
        }
        let earliest = |visited| {
            let waiting = self.stops.values().filter(move |stop| !stop.running && stop.visited == visited);
            waiting.map(|stop| stop.not_before).min()
        };
        let first = earliest(false).map(|at| (at.max(self.next_first), "first visit"));
        let again = earliest(true).map(|at| (at.max(self.next_again), "another visit"));
        first.into_iter().chain(again).min()
    }

    fn choose(&mut self, visited: bool, now: Instant) -> Option<PeerId> {
        let ready = |stop: &Stop| !stop.running && stop.visited == visited && stop.not_before <= now;
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
        let rounds = self.quiet as usize / QUIET_VISITS.max(self.stops.len() / 4);
        let wait = AGAIN.0.saturating_mul(1 << rounds.min(16)).min(AGAIN.1);
        // Spread, so that peers which started together do not go on together.
        wait.mul_f64(0.75 + 0.5 * self.rng.random::<f64>())
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
mod tests {
    use super::*;
    use crate::identity::Identity;
    use rand::SeedableRng;

    fn peer(number: u16) -> PeerId {
        let mut seed = [3; 32];
        seed[..2].copy_from_slice(&number.to_be_bytes());
        Identity::from_seed(&seed).peer_id()
    }

    fn walk(seed: u64, peers: u16) -> (Walk, Instant) {
        let now = Instant::now();
        let mut walk = Walk::new(ChaCha8Rng::seed_from_u64(seed), now);
        (0..peers).for_each(|number| assert!(walk.add(peer(number), number == 0, now)));
        (walk, now)
    }

    /// Visits that are made until `end`, each answered at once without news.
    fn visits(walk: &mut Walk, mut now: Instant, end: Instant) -> Vec<(Instant, PeerId)> {
        let mut visits = Vec::new();
        loop {
            while let Some(peer) = walk.next(now) {
                walk.on_visited(&peer, false, now);
                visits.push((now, peer));
            }
            match walk.poll_timeout() {
                Some((at, _)) if at < end => now = at.max(now + Duration::from_micros(1)),
                _ => return visits,
            }
        }
    }

    #[test]
    fn everybody_is_visited_once_within_seconds_and_then_less_and_less() {
        let (mut walk, start) = walk(1, 50);
        let hour = Duration::from_secs(3600);
        let visits = visits(&mut walk, start, start + 8 * hour);
        let within = |from: Duration, until: Duration| {
            let visits = visits.iter().filter(|(at, _)| *at >= start + from && *at < start + until);
            visits.map(|(_, peer)| *peer).collect::<Vec<_>>()
        };
        let soon: std::collections::BTreeSet<_> = within(Duration::ZERO, 50 * QUICK).into_iter().collect();
        assert_eq!(soon.len(), 50);
        let last_hour = within(7 * hour, 8 * hour).len();
        assert!((4..=9).contains(&last_hour), "{last_hour} visits in the last hour");
    }

    #[test]
    fn news_and_new_documents_make_it_quick_again() {
        let (mut walk, start) = walk(2, 20);
        let later = start + Duration::from_secs(7200);
        visits(&mut walk, start, later);
        walk.ask_all_again(later);
        let again: std::collections::BTreeSet<_> =
            visits(&mut walk, later, later + DISCOVERY_RUN_INTERVAL + 20 * QUICK)
                .into_iter()
                .map(|(_, peer)| peer)
                .collect();
        assert_eq!(again.len(), 20, "everybody is asked about a new document");
        let latest = later + Duration::from_secs(7200);
        visits(&mut walk, later, latest);
        assert!(walk.add(peer(99), false, latest));
        let met = visits(&mut walk, latest, latest + Duration::from_secs(1));
        assert!(met.iter().any(|(_, met)| *met == peer(99)), "who is new is visited at once");
        walk.on_met(&peer(3), true, latest);
        assert!(walk.poll_timeout().unwrap().0 <= latest + AGAIN.0 + DISCOVERY_RUN_INTERVAL);
    }

    #[test]
    fn no_more_visits_at_once_than_allowed_and_no_peer_twice_at_once() {
        let (mut walk, start) = walk(3, 20);
        let mut running = Vec::new();
        let mut now = start;
        for _ in 0..100 {
            running.extend(walk.next(now));
            now += QUICK;
        }
        assert_eq!(running.len(), DISCOVERY_VISITS);
        assert_eq!(walk.poll_timeout(), None);
        running.sort_unstable();
        running.dedup();
        assert_eq!(running.len(), DISCOVERY_VISITS);
        walk.on_failed(&running[0], false, now);
        assert!(walk.next(now).is_some());
    }

    #[test]
    fn who_does_not_answer_is_tried_less_and_less_and_then_given_up_unless_the_user_named_it() {
        let (mut walk, start) = walk(4, 2);
        let (mut now, mut tries) = (start, BTreeMap::<PeerId, Vec<Instant>>::new());
        while let Some((at, _)) = walk.poll_timeout().filter(|(at, _)| *at < start + Duration::from_secs(100_000)) {
            now = now.max(at);
            while let Some(peer) = walk.next(now) {
                tries.entry(peer).or_default().push(now);
                walk.on_failed(&peer, false, now);
            }
        }
        let (named, other) = (&tries[&peer(0)], &tries[&peer(1)]);
        assert_eq!(other.len(), BOOK_STALE_FAILURES as usize);
        let last = named[named.len() - 1] - named[named.len() - 2];
        assert!(last >= Duration::from_secs(2800) && named.len() > 20, "{last:?}, {}", named.len());
        walk.retry_all(now);
        assert_eq!(walk.next(now + STEADY), Some(peer(0)), "after a change of the network at once");
    }

    #[test]
    fn ten_thousand_identities_are_not_more_than_the_walk_holds() {
        let (mut walk, now) = walk(5, 1);
        let added = (1..=10_000).filter(|number| walk.add(peer(*number), false, now)).count();
        assert_eq!((added, walk.len()), (WALK_PEERS - 1, WALK_PEERS));
        assert!(walk.add(peer(20_000), true, now), "who is named by the user is known all the same");
    }

    #[test]
    fn the_walk_takes_the_same_way_with_the_same_seed_and_another_with_another() {
        let way = |seed| {
            let (mut walk, start) = walk(seed, 30);
            visits(&mut walk, start, start + Duration::from_secs(60))
                .into_iter()
                .map(|(_, peer)| peer)
                .collect::<Vec<_>>()
        };
        assert_eq!(way(6), way(6));
        assert_ne!(way(6), way(7));
    }

    #[test]
    fn only_who_answered_or_was_named_by_the_user_is_named_to_others() {
        let (mut walk, now) = walk(8, 10);
        assert_eq!(walk.sample(64, &peer(9)), [peer(0)]);
        (1..4).for_each(|number| walk.on_met(&peer(number), true, now));
        walk.on_met(&peer(9), true, now);
        let mut sample = walk.sample(64, &peer(9));
        sample.sort_unstable();
        let mut expected: Vec<_> = (0..4).map(peer).collect();
        expected.sort_unstable();
        assert_eq!(sample, expected);
        assert_eq!(walk.sample(2, &peer(9)).len(), 2);
    }
}
