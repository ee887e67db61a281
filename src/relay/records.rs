//! Where peers can be met, in their own words: the table of rendezvous records. Pure, the time is handed in.
//!
//! A record outlives the session of the peer that published it, so that who moved on to other relays is still found. Bounded
//! altogether and per network; when it is full, the oldest record goes. What is refused changes nothing. Not on disk: peers
//! publish again.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;

use super::quota::NetworkTally;
use crate::ids::PeerId;
use crate::limits::RELAY_RECORD_LIFETIME;
use crate::rendezvous::record::RendezvousRecord;

#[derive(Debug)]
struct Published {
    record: Bytes,
    timestamp_us: u64,
    from: IpAddr,
    /// Its place in the order of publication.
    number: u64,
    at: Instant,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Records {
    by_peer: HashMap<PeerId, Published>,
    /// Oldest first.
    order: BTreeMap<u64, PeerId>,
    by_network: NetworkTally,
    next: u64,
}

impl Records {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_peer.len()
    }

    /// Keeps a record if it is newer than what the peer published before. The limits are those of the relay and of a network.
    pub(super) fn publish(
        &mut self,
        record: &RendezvousRecord,
        from: IpAddr,
        (all, per_network): (usize, usize),
        now: Instant,
    ) -> bool {
        let (peer, timestamp_us) = (record.peer(), record.timestamp_us());
        self.expire(now);
        if self.by_peer.get(&peer).is_some_and(|known| known.timestamp_us > timestamp_us) {
            return false;
        }
        // What it replaces makes room for it.
        let before = self.remove(&peer);
        if all == 0 || !self.by_network.has_room(from, per_network) {
            before.into_iter().for_each(|before| self.insert(peer, before));
            return false;
        }
        while self.by_peer.len() >= all {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            self.remove(&oldest.clone());
        }
        let number = self.next;
        self.next += 1;
        self.insert(peer, Published { record: record.encode(), timestamp_us, from, number, at: now });
        true
    }

    /// What a peer published last.
    pub(super) fn lookup(&mut self, peer: &PeerId, now: Instant) -> Option<Bytes> {
        self.expire(now);
        self.by_peer.get(peer).map(|published| published.record.clone())
    }

    fn expire(&mut self, now: Instant) {
        while let Some((_, peer)) = self.order.first_key_value() {
            let peer = *peer;
            let expired = |published: &Published| now.duration_since(published.at) >= RELAY_RECORD_LIFETIME;
            if !self.by_peer.get(&peer).is_none_or(expired) {
                return;
            }
            self.remove(&peer);
        }
    }

    fn insert(&mut self, peer: PeerId, published: Published) {
        self.order.insert(published.number, peer);
        self.by_network.add(published.from);
        self.by_peer.insert(peer, published);
    }

    fn remove(&mut self, peer: &PeerId) -> Option<Published> {
        let published = self.by_peer.remove(peer)?;
        self.order.remove(&published.number);
        self.by_network.remove(published.from);
        Some(published)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use std::time::Duration;

    fn record(number: u32, timestamp_us: u64) -> RendezvousRecord {
        let mut seed = [5; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        let relays = vec![format!("relay-{timestamp_us}.example.org").parse().unwrap()];
        RendezvousRecord::sign(&Identity::from_seed(&seed), relays, timestamp_us)
    }

    fn network(n: u8) -> IpAddr {
        [203, 0, 113, n].into()
    }

    const LIMITS: (usize, usize) = (100, 100);

    /// How many of these records of different peers are taken.
    fn taken(records: &mut Records, of: std::ops::Range<u32>, from: impl Fn(u32) -> IpAddr, now: Instant) -> usize {
        of.filter(|n| records.publish(&record(*n, 5), from(*n), (200, 10), now)).count()
    }

    #[test]
    fn who_moves_into_a_network_that_is_full_keeps_its_record() {
        let (mut records, now) = (Records::default(), Instant::now());
        let (home, cafe) = (network(1), network(2));
        assert_eq!((taken(&mut records, 0..1, |_| home, now), taken(&mut records, 100..110, |_| cafe, now)), (1, 10));
        assert!(!records.publish(&record(0, 6), cafe, (200, 10), now));
        assert_eq!(records.lookup(&record(0, 5).peer(), now), Some(record(0, 5).encode()));
        assert!(records.publish(&record(100, 6), cafe, (200, 10), now), "a newer one takes the place of its own");
        assert_eq!((records.len(), records.order.len()), (11, 11));
    }

    #[test]
    fn all_networks_of_one_site_together_push_out_nobody() {
        let (mut records, now) = (Records::default(), Instant::now());
        assert_eq!(taken(&mut records, 0..10, |_| network(1), now), 10);
        let site = |n: u32| IpAddr::from([0x2001, 0xdb8, 1, u16::try_from(n).unwrap(), 0, 0, 0, 1]);
        assert_eq!(taken(&mut records, 100..10_100, site, now), 40);
        assert_eq!((records.len(), records.lookup(&record(0, 5).peer(), now).is_some()), (50, true));
    }

    #[test]
    fn the_newest_record_of_a_peer_is_given_out_until_it_expires() {
        let (mut records, now) = (Records::default(), Instant::now());
        assert!(records.publish(&record(1, 5), network(1), LIMITS, now));
        assert!(records.publish(&record(1, 7), network(2), LIMITS, now));
        assert!(!records.publish(&record(1, 6), network(1), LIMITS, now));
        let peer = record(1, 7).peer();
        assert_eq!((records.lookup(&peer, now), records.len()), (Some(record(1, 7).encode()), 1));
        assert_eq!(records.lookup(&record(2, 5).peer(), now), None);
        let last = now + RELAY_RECORD_LIFETIME;
        assert!(records.lookup(&peer, last - Duration::from_secs(1)).is_some());
        assert_eq!((records.lookup(&peer, last), records.len()), (None, 0));
        assert!(records.order.is_empty() && records.by_network.is_empty());
    }

    #[test]
    fn ten_thousand_identities_of_one_network_push_out_nobody_of_another() {
        let (mut records, now) = (Records::default(), Instant::now());
        assert!(records.publish(&record(1, 5), network(1), (200, 100), now));
        let taken = (100..10_100).filter(|n| records.publish(&record(*n, 5), network(2), (200, 100), now)).count();
        assert_eq!((taken, records.len()), (100, 101));
        assert!(records.lookup(&record(1, 5).peer(), now).is_some());
        for other in 3..20 {
            (0..100).for_each(|n| {
                _ = records.publish(&record(n + 1000 * u32::from(other), 5), network(other), (200, 100), now)
            });
            assert_eq!(records.len(), 200, "never more than the relay keeps");
        }
    }
}
