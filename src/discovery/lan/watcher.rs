//! What becomes of notices that are heard in the local network: a pure machine.
//!
//! Hand it what is heard ([`Watcher::on_heard`]) and which documents are open ([`Watcher::on_documents`]); ask for peers
//! ([`Watcher::poll_found`]) after each, and when [`Watcher::poll_timeout`] says so. Anybody in the network can say anything, so
//! sizes are looked at before anything is computed, a notice is tried once per set of documents, trials per second are
//! bounded, and so is what is remembered. What is false changes counters and nothing else.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::notice::{self, Unread};
use crate::address::PeerAddress;
use crate::discovery::{Found, Source};
use crate::ids::PeerId;
use crate::limits::{LAN_NOTICES, LAN_RECORD_AGE, LAN_TRIALS_PER_SECOND};
use crate::store::DocumentRecord;

/// What opening and verifying a record costs, in trials.
const RECORD_TRIALS: u32 = 256;

/// What was heard, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LanCounters {
    /// Notices heard, each repetition as well.
    pub heard: u64,
    /// Not notices.
    pub malformed: u64,
    /// Repetitions of notices that are remembered.
    pub repeated: u64,
    /// Dropped because too many waited.
    pub dropped: u64,
    /// For documents that are not open here.
    pub not_for_us: u64,
    /// By somebody with a document's key who does not tell the truth.
    pub forged: u64,
    /// Signed too long ago, or too far in the future.
    pub stale: u64,
    /// This node's own.
    pub own: u64,
    /// That named a peer.
    pub found: u64,
}

/// Listens.
#[derive(Debug)]
pub struct Watcher {
    node: PeerId,
    documents: Vec<DocumentRecord>,
    /// The hashes of what was heard, and what it was, oldest first.
    remembered: VecDeque<([u8; 16], Vec<u8>)>,
    /// Those that were not tried with these documents yet, oldest first.
    waiting: VecDeque<[u8; 16]>,
    /// Finds that were not asked for yet.
    found: VecDeque<Found>,
    trials: u32,
    refilled: Instant,
    counters: LanCounters,
}

impl Watcher {
    /// Nothing is open yet.
    pub fn new(node: PeerId, now: Instant) -> Self {
        Self {
            node,
            documents: Vec::new(),
            remembered: VecDeque::new(),
            waiting: VecDeque::new(),
            found: VecDeque::new(),
            trials: LAN_TRIALS_PER_SECOND,
            refilled: now,
            counters: LanCounters::default(),
        }
    }

    /// What was heard so far.
    pub fn counters(&self) -> LanCounters {
        self.counters
    }

    /// These documents are open now. What was heard before is tried again if there are others than before.
    pub fn on_documents(&mut self, documents: Vec<DocumentRecord>) {
        let known = |document: &DocumentRecord| self.documents.iter().any(|known| known.document == document.document);
        if !documents.iter().all(known) {
            self.waiting = self.remembered.iter().map(|(hash, _)| *hash).collect();
        }
        self.documents = documents;
    }

    /// Something was heard.
    pub fn on_heard(&mut self, heard: &[u8]) {
        self.counters.heard += 1;
        if !notice::is_well_formed(heard) {
            self.counters.malformed += 1;
            return;
        }
        let hash = hash_of(heard);
        if self.remembered.iter().any(|(known, _)| *known == hash) {
            self.counters.repeated += 1;
            return;
        }
        if self.remembered.len() == LAN_NOTICES
            && let Some((forgotten, _)) = self.remembered.pop_front()
            && self.waiting.front() == Some(&forgotten)
        {
            // Both are in the order in which they were heard.
            self.waiting.pop_front();
            self.counters.dropped += 1;
        }
        self.remembered.push_back((hash, heard.to_vec()));
        self.waiting.push_back(hash);
    }

    /// The next peer that was found; `None` when there is none, or trials have to wait. `now_us` is the wall clock, in µs.
    pub fn poll_found(&mut self, now: Instant, now_us: u64) -> Option<Found> {
        self.refill(now);
        while self.found.is_empty() && self.may_try() {
            let hash = self.waiting.pop_front()?;
            // What waits is remembered.
            let remembered = self.remembered.iter().find(|(known, _)| *known == hash);
            let opened = notice::open(remembered.map_or(&[], |(_, notice)| notice), &self.documents);
            self.spend(u32::try_from(self.documents.len()).unwrap_or(u32::MAX));
            let opened = match opened {
                Ok(opened) => opened,
                Err(unread) => {
                    match unread {
                        Unread::Malformed => self.counters.malformed += 1,
                        Unread::NotForUs => self.counters.not_for_us += 1,
                        Unread::Forged => {
                            self.counters.forged += 1;
                            self.spend(RECORD_TRIALS);
                        }
                    }
                    continue;
                }
            };
            self.spend(RECORD_TRIALS);
            let peer = opened.peer;
            if self.believes(&peer, now_us) {
                let found = |document| Found { peer: peer.clone(), document, source: Source::Lan };
                self.found.extend(opened.documents.into_iter().map(found));
            }
        }
        self.found.pop_front()
    }

    /// When to ask again although nothing happened: trials are spent, and notices wait for more.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let wait = self.cost().saturating_sub(self.trials);
        let wait = Duration::from_secs(1).mul_f64(f64::from(wait) / f64::from(LAN_TRIALS_PER_SECOND));
        (!self.waiting.is_empty()).then(|| self.refilled + wait + Duration::from_millis(1))
    }

    fn believes(&mut self, peer: &PeerAddress, now_us: u64) -> bool {
        let apart = Duration::from_micros(peer.timestamp_us().abs_diff(now_us));
        let counter = match (peer.peer_id() == self.node, apart > LAN_RECORD_AGE) {
            (true, _) => &mut self.counters.own,
            (false, true) => &mut self.counters.stale,
            (false, false) => &mut self.counters.found,
        };
        *counter += 1;
        peer.peer_id() != self.node && apart <= LAN_RECORD_AGE
    }

    /// What one notice costs before it is known to be for us.
    fn cost(&self) -> u32 {
        u32::try_from(self.documents.len()).unwrap_or(u32::MAX).clamp(1, LAN_TRIALS_PER_SECOND)
    }

    fn may_try(&self) -> bool {
        self.trials >= self.cost()
    }

    fn spend(&mut self, trials: u32) {
        self.trials = self.trials.saturating_sub(trials.max(1));
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.refilled).min(Duration::from_secs(1));
        let earned = (elapsed.as_secs_f64() * f64::from(LAN_TRIALS_PER_SECOND)) as u32;
        if earned > 0 {
            self.trials = (self.trials + earned).min(LAN_TRIALS_PER_SECOND);
            self.refilled = now;
        }
    }
}

fn hash_of(notice: &[u8]) -> [u8; 16] {
    let mut hash = [0; 16];
    hash.copy_from_slice(&blake3::hash(notice).as_bytes()[..16]);
    hash
}

#[cfg(test)]
mod tests {
    use rand::{RngCore, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::identity::Identity;
    use crate::ids::{DocumentId, DocumentKey};
    use crate::limits::LAN_SLOTS;

    /// Some day, in µs.
    const TODAY_US: u64 = 1_800_000_000_000_000;
    const HOUR_US: u64 = 3_600_000_000;

    fn document(number: u16) -> DocumentRecord {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        DocumentRecord {
            document: DocumentId::from_uuid(uuid::Uuid::from_u128(number.into())),
            key: DocumentKey::from_bytes(key),
        }
    }

    fn record(seed: u8, timestamp_us: u64) -> PeerAddress {
        PeerAddress::sign(&Identity::from_seed(&[seed; 32]), Vec::new(), Vec::new(), timestamp_us).unwrap()
    }

    /// A notice of a peer for one document; another one each time.
    fn notice_of(peer: &PeerAddress, number: u16, random: &mut ChaCha8Rng) -> Vec<u8> {
        notice::seal(peer, &[document(number)], random).unwrap()
    }

    /// A node with the identity of seed 1 that has documents 0 to `open` open.
    fn watcher(open: u16) -> (Watcher, Instant, ChaCha8Rng) {
        let now = Instant::now();
        let mut watcher = Watcher::new(record(1, 0).peer_id(), now);
        watcher.on_documents((0..open).map(document).collect());
        (watcher, now, ChaCha8Rng::seed_from_u64(1))
    }

    #[test]
    fn a_peer_of_a_document_is_found_once_however_often_it_is_heard() {
        let (mut watcher, now, mut random) = watcher(3);
        let heard = notice_of(&record(2, TODAY_US), 2, &mut random);
        watcher.on_heard(&heard);
        let found = Found { peer: record(2, TODAY_US), document: document(2).document, source: Source::Lan };
        assert_eq!(watcher.poll_found(now, TODAY_US), Some(found));
        watcher.on_heard(&heard);
        assert_eq!(watcher.poll_found(now, TODAY_US), None);
        let expected = LanCounters { heard: 2, repeated: 1, found: 1, ..LanCounters::default() };
        assert_eq!(watcher.counters(), expected);
    }

    #[test]
    fn what_was_heard_before_its_document_was_opened_is_found_when_it_is() {
        let (mut watcher, now, mut random) = watcher(1);
        watcher.on_heard(&notice_of(&record(2, TODAY_US), 5, &mut random));
        assert_eq!(watcher.poll_found(now, TODAY_US), None);
        watcher.on_documents(vec![document(5)]);
        assert_eq!(watcher.poll_found(now, TODAY_US).unwrap().document, document(5).document);
        // Closing one is no reason to try again.
        watcher.on_documents(Vec::new());
        assert_eq!(watcher.poll_timeout(), None);
    }

    #[test]
    fn records_of_yesterday_and_of_tomorrow_are_ignored_and_so_are_ours() {
        let (mut watcher, now, mut random) = watcher(1);
        for (seed, timestamp_us) in
            [(2, TODAY_US - 25 * HOUR_US), (2, TODAY_US + 25 * HOUR_US), (2, u64::MAX), (1, TODAY_US)]
        {
            watcher.on_heard(&notice_of(&record(seed, timestamp_us), 0, &mut random));
        }
        assert_eq!(watcher.poll_found(now, TODAY_US), None);
        assert_eq!((watcher.counters().stale, watcher.counters().own), (3, 1));
        for timestamp_us in [TODAY_US - 23 * HOUR_US, TODAY_US + 23 * HOUR_US] {
            watcher.on_heard(&notice_of(&record(2, timestamp_us), 0, &mut random));
            assert!(watcher.poll_found(now, TODAY_US).is_some());
        }
    }

    #[test]
    fn ten_thousand_false_notices_change_counters_and_nothing_else() {
        let (mut watcher, mut now, mut random) = watcher(3);
        for number in 0..10_000u32 {
            let mut heard = notice_of(&record(2, TODAY_US), 99, &mut random);
            match number % 4 {
                0 => {}
                1 => random.fill_bytes(&mut heard[1..]),
                2 => heard.truncate(300),
                _ => heard.resize(100_000, 7),
            }
            watcher.on_heard(&heard);
            if number % 100 == 0 {
                now += Duration::from_millis(1);
                assert_eq!(watcher.poll_found(now, TODAY_US), None);
            }
        }
        let counters = watcher.counters();
        assert_eq!((counters.heard, counters.malformed), (10_000, 5_000));
        assert_eq!((watcher.remembered.len(), watcher.found.len()), (LAN_NOTICES, 0));
        assert!(watcher.waiting.len() <= LAN_NOTICES);
        // And the one that is genuine is found as if nothing had been.
        watcher.on_heard(&notice_of(&record(2, TODAY_US), 1, &mut random));
        assert_eq!(watcher.poll_found(now + Duration::from_secs(1), TODAY_US).unwrap().peer, record(2, TODAY_US));
        assert_eq!(watcher.counters().found, 1);
    }

    #[test]
    fn trials_per_second_are_bounded_and_what_waits_gets_its_turn() {
        let (mut watcher, start, mut random) = watcher(1000);
        for _ in 0..400 {
            watcher.on_heard(&notice_of(&record(2, TODAY_US), 5_000, &mut random));
        }
        watcher.on_heard(&notice_of(&record(2, TODAY_US), 1, &mut random));
        let (mut now, mut last) = (start, 0);
        let found = loop {
            let found = watcher.poll_found(now, TODAY_US);
            let tried = watcher.counters().not_for_us;
            assert!(found.is_some() || tried > last || now == start, "every timeout brings something");
            last = tried;
            let seconds = now.duration_since(start).as_secs_f64() + 1.0;
            assert!(tried as f64 * 1000.0 <= seconds * f64::from(LAN_TRIALS_PER_SECOND), "{tried} after {seconds} s");
            match found {
                Some(found) => break found,
                None => now = watcher.poll_timeout().unwrap(),
            }
        };
        assert_eq!(found.document, document(1).document);
        assert!(now - start > Duration::from_secs(18));
    }

    #[test]
    fn all_documents_of_one_notice_are_found() {
        let (mut watcher, now, mut random) = watcher(20);
        let announced: Vec<_> = (10..10 + LAN_SLOTS as u16).map(document).collect();
        watcher.on_heard(&notice::seal(&record(2, TODAY_US), &announced, &mut random).unwrap());
        let found: Vec<_> =
            std::iter::from_fn(|| watcher.poll_found(now, TODAY_US)).map(|found| found.document).collect();
        assert_eq!(found, announced.iter().map(|document| document.document).collect::<Vec<_>>());
    }
}
