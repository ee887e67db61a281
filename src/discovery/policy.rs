//! Whom this node connects to by itself: a pure machine that decides about what finders found.
//!
//! Tell it what was found ([`Policy::on_found`]), that a document was closed, and the time ([`Policy::on_timeout`], every
//! [`LOOK_INTERVAL`]); do the [`Step`]s that it returns, in order. It asks who is connected through a function, and neither
//! dials nor closes anything itself.
//!
//! Discovered peers are kept within limits. When those are reached, who is found next waits, and takes the place of the one
//! that has not been reached for longest: so a crowd of identities that nobody answers for passes by, and a peer that is
//! there gets its turn. Connected peers are never given up for others. Beyond the limits are peers of tickets, those met in
//! earlier runs, and those who dialled this node, these only until they are gone for half a minute.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::options::DiscoveryOptions;
use super::{Found, Source};
use crate::address::{Capabilities, PeerAddress};
use crate::ids::{DocumentId, PeerId};
use crate::limits::{DISCOVERED_WAITING, MAX_KNOWN_PEERS};

/// How often [`Policy::on_timeout`] wants to be called.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// A discovered peer that was not reached for this long may have to make room.
pub const UNREACHED_AFTER: Duration = Duration::from_secs(30);

/// Transports that this node has.
const TRANSPORTS: Capabilities = Capabilities::QUIC;

/// Why a peer is not connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// It is on the list of denied peers.
    Denied,
    /// There is a list of allowed peers, and it is not on it.
    NotAllowed,
    /// It advertises no transport that this node has.
    NoCommonTransport,
    /// As many discovered peers are kept as may be; it waits for a place.
    Limit,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Keep this peer connected, at this address.
    Connect(PeerAddress),
    /// Do not dial this peer any more.
    Forget(PeerId),
    /// Tell that a peer was found, the first time in this way for this document.
    TellFound(PeerId, DocumentId, Source),
    /// Tell that a peer was found and is not connected to.
    TellRefused(PeerId, Refusal),
}

/// A peer that is kept connected.
#[derive(Debug)]
struct Kept {
    /// Its documents that are open here, and how it was found for each.
    documents: BTreeMap<DocumentId, BTreeSet<Source>>,
    /// It counts towards the limits.
    discovered: bool,
    /// When it was last seen connected, or began to be dialled.
    reached: Instant,
}

/// Who is kept, and who waits.
#[derive(Debug)]
pub struct Policy {
    options: DiscoveryOptions,
    kept: BTreeMap<PeerId, Kept>,
    waiting: VecDeque<Found>,
}

impl Policy {
    /// Nobody is known yet.
    pub fn new(options: DiscoveryOptions) -> Self {
        Self { options, kept: BTreeMap::new(), waiting: VecDeque::new() }
    }

    /// A finder found a peer of a document, which is open here.
    pub fn on_found(&mut self, found: Found, now: Instant, connected: &dyn Fn(&PeerId) -> bool) -> Vec<Step> {
        let peer = found.peer.peer_id();
        let refused = |refusal| vec![Step::TellRefused(peer, refusal)];
        if let Err(refusal) = self.options.admits(&peer) {
            return refused(refusal);
        }
        if !found.peer.capabilities().intersects(TRANSPORTS) {
            return refused(Refusal::NoCommonTransport);
        }
        let exempt = is_exempt(found.source) || connected(&peer);
        let room = self.kept.contains_key(&peer) || (exempt && self.kept.len() < MAX_KNOWN_PEERS);
        if room || self.has_room(&found.document) {
            return self.keep(found, exempt, now);
        }
        match self.replaceable(&found.document, now, connected) {
            Some(unreached) => {
                self.kept.remove(&unreached);
                let mut steps = vec![Step::Forget(unreached)];
                steps.extend(self.keep(found, exempt, now));
                steps
            }
            None if self.wait(found) => refused(Refusal::Limit),
            None => Vec::new(),
        }
    }

    /// Those who wait take the places of discovered peers that could not be reached.
    pub fn on_timeout(&mut self, now: Instant, connected: &dyn Fn(&PeerId) -> bool) -> Vec<Step> {
        self.kept.iter_mut().filter(|(peer, _)| connected(peer)).for_each(|(_, kept)| kept.reached = now);
        let mut steps = self.count_gone(now);
        let waiting = std::mem::take(&mut self.waiting);
        for found in waiting {
            let outcome = self.on_found(found, now, connected);
            // That it has to wait was told before.
            steps.extend(outcome.into_iter().filter(|step| !matches!(step, Step::TellRefused(_, Refusal::Limit))));
        }
        steps
    }

    /// A document was closed: peers that share no other are forgotten.
    pub fn on_document_closed(&mut self, document: &DocumentId) -> Vec<Step> {
        self.waiting.retain(|found| found.document != *document);
        let mut unneeded = Vec::new();
        self.kept.retain(|peer, kept| {
            let without = kept.documents.remove(document).is_some() && kept.documents.is_empty();
            if without {
                unneeded.push(Step::Forget(*peer));
            }
            !without
        });
        unneeded
    }

    /// A relay that a peer used knew where else it can be met.
    pub fn on_moved(&mut self, peer: &PeerId) -> Vec<Step> {
        let documents = self.kept.get_mut(peer).into_iter().flat_map(|kept| &mut kept.documents);
        let news = documents.filter_map(|(document, sources)| sources.insert(Source::Rendezvous).then_some(*document));
        news.map(|document| Step::TellFound(*peer, document, Source::Rendezvous)).collect()
    }

    /// A peer could not be kept after all: another bound of the node is reached.
    pub fn on_not_kept(&mut self, peer: &PeerId) {
        self.kept.remove(peer);
    }

    fn keep(&mut self, found: Found, exempt: bool, now: Instant) -> Vec<Step> {
        let Found { peer: address, document, source } = found;
        let peer = address.peer_id();
        let new = || Kept { documents: BTreeMap::new(), discovered: !exempt, reached: now };
        let kept = self.kept.entry(peer).or_insert_with(new);
        // Who was discovered first and is named by a ticket later is not let go for others.
        kept.discovered &= !is_exempt(source);
        let news = kept.documents.entry(document).or_default().insert(source);
        let told = news.then_some(Step::TellFound(peer, document, source));
        told.into_iter().chain([Step::Connect(address)]).collect()
    }

    /// Who only dialled this node, and is gone for a while, counts towards the limits from now on. Of those who do, who is beyond
    /// the limits is forgotten, who is gone for longest first.
    fn count_gone(&mut self, now: Instant) -> Vec<Step> {
        let mut gone = Vec::new();
        let (mut in_all, mut per_document) = (0, BTreeMap::new());
        for (peer, kept) in &mut self.kept {
            let is_gone = now.duration_since(kept.reached) >= UNREACHED_AFTER;
            kept.discovered |= is_gone && !kept.documents.values().flatten().copied().any(is_exempt);
            if kept.discovered {
                in_all += 1;
                kept.documents.keys().for_each(|document| *per_document.entry(*document).or_insert(0) += 1);
                gone.extend(is_gone.then_some((kept.reached, *peer)));
            }
        }
        gone.sort_unstable();
        let mut steps = Vec::new();
        for (_, peer) in gone {
            let full = |document| per_document.get(document) > Some(&self.options.max_peers_per_document);
            let documents = self.kept.get(&peer).map(|kept| kept.documents.keys().copied().collect::<Vec<_>>());
            let documents = documents.unwrap_or_default();
            if in_all > self.options.max_peers || documents.iter().any(full) {
                in_all -= 1;
                documents.iter().for_each(|document| *per_document.entry(*document).or_insert(1) -= 1);
                self.kept.remove(&peer);
                steps.push(Step::Forget(peer));
            }
        }
        steps
    }

    fn has_room(&self, document: &DocumentId) -> bool {
        let discovered = || self.kept.values().filter(|kept| kept.discovered);
        let of_document = discovered().filter(|kept| kept.documents.contains_key(document)).count();
        self.kept.len() < MAX_KNOWN_PEERS
            && of_document < self.options.max_peers_per_document
            && discovered().count() < self.options.max_peers
    }

    /// The discovered peer that has to go for another one of this document: the one that was not reached for longest.
    fn replaceable(&self, document: &DocumentId, now: Instant, connected: &dyn Fn(&PeerId) -> bool) -> Option<PeerId> {
        let discovered = || self.kept.iter().filter(|(_, kept)| kept.discovered);
        let shares = |kept: &Kept| kept.documents.contains_key(document);
        let full = discovered().filter(|(_, kept)| shares(kept)).count() >= self.options.max_peers_per_document;
        let unreached = discovered()
            .filter(|(_, kept)| now.duration_since(kept.reached) >= UNREACHED_AFTER && (!full || shares(kept)))
            .filter(|(peer, _)| !connected(peer));
        unreached.min_by_key(|(_, kept)| kept.reached).map(|(peer, _)| *peer)
    }

    /// True when it was not waiting before.
    fn wait(&mut self, found: Found) -> bool {
        let same =
            |other: &&mut Found| (other.peer.peer_id(), other.document) == (found.peer.peer_id(), found.document);
        if let Some(known) = self.waiting.iter_mut().find(same) {
            if known.peer.timestamp_us() < found.peer.timestamp_us() {
                *known = found;
            }
            return false;
        }
        if self.waiting.len() == DISCOVERED_WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(found);
        true
    }
}

/// Whether a peer that was found in this way is kept beside the limits.
fn is_exempt(source: Source) -> bool {
    matches!(source, Source::Ticket | Source::Store)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    const NOBODY: &dyn Fn(&PeerId) -> bool = &|_| false;

    fn record(seed: u32, timestamp_us: u64) -> PeerAddress {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&seed.to_be_bytes());
        PeerAddress::sign(&Identity::from_seed(&bytes), Vec::new(), Vec::new(), timestamp_us).unwrap()
    }

    fn peer(seed: u32) -> PeerId {
        record(seed, 1).peer_id()
    }

    fn document(number: u128) -> DocumentId {
        DocumentId::from_uuid(uuid::Uuid::from_u128(number))
    }

    fn found(seed: u32, number: u128, source: Source) -> Found {
        Found { peer: record(seed, 1), document: document(number), source }
    }

    fn connects(steps: &[Step]) -> Vec<PeerId> {
        let connect = |step: &Step| match step {
            Step::Connect(address) => Some(address.peer_id()),
            _ => None,
        };
        steps.iter().filter_map(connect).collect()
    }

    fn forgets(steps: &[Step]) -> Vec<PeerId> {
        let forget = |step: &Step| match step {
            Step::Forget(peer) => Some(*peer),
            _ => None,
        };
        steps.iter().filter_map(forget).collect()
    }

    #[test]
    fn a_peer_that_is_found_is_told_once_per_way_and_connected_to_at_its_newest_address() {
        let mut policy = Policy::new(DiscoveryOptions::new());
        let now = Instant::now();
        let first = policy.on_found(found(1, 1, Source::Lan), now, NOBODY);
        assert_eq!(first, [Step::TellFound(peer(1), document(1), Source::Lan), Step::Connect(record(1, 1))]);
        let newer = Found { peer: record(1, 2), ..found(1, 1, Source::Lan) };
        assert_eq!(policy.on_found(newer, now, NOBODY), [Step::Connect(record(1, 2))]);
        let otherwise = policy.on_found(found(1, 1, Source::Peer), now, NOBODY);
        assert_eq!(otherwise[0], Step::TellFound(peer(1), document(1), Source::Peer));
    }

    #[test]
    fn who_is_denied_or_not_allowed_is_refused_wherever_it_was_found_and_denial_wins() {
        let options = DiscoveryOptions::new().with_allowed_peers([peer(1), peer(2)]).with_denied_peers([peer(2)]);
        let mut policy = Policy::new(options);
        for source in [Source::Lan, Source::Ticket, Source::Peer] {
            let mut told = |seed| policy.on_found(found(seed, 1, source), Instant::now(), NOBODY);
            assert_eq!(connects(&told(1)), [peer(1)]);
            assert_eq!(told(2), [Step::TellRefused(peer(2), Refusal::Denied)]);
            assert_eq!(told(3), [Step::TellRefused(peer(3), Refusal::NotAllowed)]);
        }
    }

    #[test]
    fn a_peer_without_a_transport_of_ours_is_not_dialled() {
        let later = Capabilities::from_bits(1 << 40);
        let peer = PeerAddress::sign_capable(&Identity::from_seed(&[1; 32]), Vec::new(), Vec::new(), later, 1).unwrap();
        let mut policy = Policy::new(DiscoveryOptions::new());
        let steps = policy.on_found(Found { peer, ..found(1, 1, Source::Lan) }, Instant::now(), NOBODY);
        assert!(matches!(steps[..], [Step::TellRefused(_, Refusal::NoCommonTransport)]), "{steps:?}");
    }

    #[test]
    fn ten_thousand_identities_fill_no_more_than_the_limits() {
        let mut policy = Policy::new(DiscoveryOptions::new().with_max_peers(8, 12));
        let now = Instant::now();
        let mut dialled = 0;
        for seed in 0..10_000 {
            let steps = policy.on_found(found(seed, u128::from(seed % 2), Source::Lan), now, NOBODY);
            dialled += connects(&steps).len();
            assert!(forgets(&steps).is_empty(), "everybody gets some time");
        }
        assert_eq!((dialled, policy.kept.len()), (12, 12));
        assert!(policy.waiting.len() <= DISCOVERED_WAITING);
        let per_document = policy.kept.values().filter(|kept| kept.documents.contains_key(&document(0))).count();
        assert!(per_document <= 8);
        // A ticket's peer is not in that crowd.
        assert_eq!(connects(&policy.on_found(found(20_000, 0, Source::Ticket), now, NOBODY)).len(), 1);
    }

    #[test]
    fn who_waits_takes_the_place_of_who_could_not_be_reached_and_never_of_who_is_connected() {
        let mut policy = Policy::new(DiscoveryOptions::new().with_max_peers(2, 2));
        let start = Instant::now();
        let online = &|id: &PeerId| *id == peer(1);
        policy.on_found(found(1, 1, Source::Lan), start, NOBODY);
        policy.on_found(found(2, 1, Source::Lan), start, NOBODY);
        let steps = policy.on_found(found(3, 1, Source::Lan), start, online);
        assert_eq!(steps, [Step::TellRefused(peer(3), Refusal::Limit)]);
        assert_eq!(policy.on_found(found(3, 1, Source::Lan), start, online), []);
        assert_eq!(policy.on_timeout(start + LOOK_INTERVAL, online), []);
        let steps = policy.on_timeout(start + UNREACHED_AFTER, online);
        assert_eq!((forgets(&steps), connects(&steps)), (vec![peer(2)], vec![peer(3)]));
        // The one that is connected stays, however long nobody else is.
        policy.on_found(found(4, 1, Source::Lan), start, online);
        let steps = policy.on_timeout(start + 3 * UNREACHED_AFTER, online);
        assert_eq!((forgets(&steps), connects(&steps)), (vec![peer(3)], vec![peer(4)]));
    }

    #[test]
    fn who_dialled_this_node_and_is_gone_counts_and_those_beyond_the_limits_are_forgotten() {
        let mut policy = Policy::new(DiscoveryOptions::new().with_max_peers(8, 12));
        let (start, everybody) = (Instant::now(), &|_: &PeerId| true);
        for seed in 0..100 {
            let at = start + Duration::from_millis(seed.into());
            let steps = policy.on_found(found(seed, u128::from(seed % 2), Source::Peer), at, everybody);
            assert_eq!(connects(&steps), [peer(seed)], "whoever dials comes on top");
        }
        policy.on_found(found(200, 0, Source::Ticket), start, NOBODY);
        policy.on_found(found(201, 0, Source::Store), start, NOBODY);
        let away = start + UNREACHED_AFTER;
        assert_eq!(policy.on_timeout(away, everybody), []);
        assert_eq!(policy.on_timeout(away + LOOK_INTERVAL, NOBODY), [], "everybody may come back");
        let left = &|id: &PeerId| (1..=20).map(peer).any(|left| left == *id);
        let forgotten = forgets(&policy.on_timeout(away + UNREACHED_AFTER, left));
        let kept = |policy: &Policy| policy.kept.keys().copied().collect::<BTreeSet<_>>();
        // 20 are connected and do not count, two are exempt.
        assert_eq!((forgotten.len(), policy.kept.len()), (68, 12 + 20 + 2));
        assert!((1..=20).chain([200, 201]).all(|seed| kept(&policy).contains(&peer(seed))));
        policy.on_timeout(away + 3 * UNREACHED_AFTER, NOBODY);
        assert_eq!(policy.kept.len(), 12 + 2);
        let of_document = policy.kept.values().filter(|kept| kept.documents.contains_key(&document(0))).count();
        assert!(of_document <= 8 + 2);
    }

    #[test]
    fn that_a_relay_knew_where_a_peer_is_is_told_once_for_each_document() {
        let mut policy = Policy::new(DiscoveryOptions::new());
        policy.on_found(found(1, 1, Source::Ticket), Instant::now(), NOBODY);
        policy.on_found(found(1, 2, Source::Lan), Instant::now(), NOBODY);
        let told = |number| Step::TellFound(peer(1), document(number), Source::Rendezvous);
        assert_eq!(policy.on_moved(&peer(1)), [told(1), told(2)]);
        assert_eq!(policy.on_moved(&peer(1)), []);
        assert_eq!(policy.on_moved(&peer(2)), [], "nobody looks for this one");
    }

    #[test]
    fn a_document_that_is_full_takes_no_place_of_another_document() {
        let mut policy = Policy::new(DiscoveryOptions::new().with_max_peers(1, 9));
        let start = Instant::now();
        policy.on_found(found(1, 1, Source::Lan), start, NOBODY);
        policy.on_found(found(2, 2, Source::Lan), start + LOOK_INTERVAL, NOBODY);
        let steps = policy.on_found(found(3, 2, Source::Lan), start + UNREACHED_AFTER, NOBODY);
        assert_eq!(steps, [Step::TellRefused(peer(3), Refusal::Limit)]);
        let steps = policy.on_found(found(3, 2, Source::Lan), start + 2 * UNREACHED_AFTER, NOBODY);
        assert_eq!((forgets(&steps), connects(&steps)), (vec![peer(2)], vec![peer(3)]));
    }

    #[test]
    fn with_its_last_document_a_peer_is_forgotten() {
        let mut policy = Policy::new(DiscoveryOptions::new().with_max_peers(2, 2));
        let now = Instant::now();
        for (seed, number) in [(1, 1), (1, 2), (2, 1), (3, 1)] {
            policy.on_found(found(seed, number, Source::Lan), now, NOBODY);
        }
        assert_eq!(policy.on_document_closed(&document(1)), [Step::Forget(peer(2))]);
        assert_eq!(policy.on_timeout(now + 2 * UNREACHED_AFTER, NOBODY), [], "nobody waits for a closed document");
        assert_eq!(policy.on_document_closed(&document(2)), [Step::Forget(peer(1))]);
    }
}
