//! Where peers can be met, in their own words: the table of rendezvous records. Pure, the time is handed in.
//!
//! A record outlives the session of the peer that published it, so that who moved on to other relays is still found. Bounded
//! altogether and per network; when it is full, the oldest record goes. Not on disk: peers publish again.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Instant;

use bytes::Bytes;

use crate::ids::PeerId;
use crate::limits::RELAY_RECORD_LIFETIME;
use crate::rendezvous::record::RendezvousRecord;

#[derive(Debug)]
struct Published {
    record: Bytes,
    timestamp_us: u64,
    network: IpAddr,
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
    by_network: HashMap<IpAddr, usize>,
    next: u64,
}

impl Records {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_peer.len()
    }

    /// Keeps a record if it is newer than what the peer published before. `limits` are those of the relay and of a network.
    pub(super) fn publish(
        &mut self,
        record: &RendezvousRecord,
        network: IpAddr,
        (all, per_network): (usize, usize),
        now: Instant,
    ) -> bool {
        let (peer, timestamp_us) = (record.peer(), record.timestamp_us());
        self.expire(now);
        if self.by_peer.get(&peer).is_some_and(|known| known.timestamp_us > timestamp_us) {
            return false;
        }
        self.remove(&peer);
        if self.by_network.get(&network).is_some_and(|count| *count >= per_network) || all == 0 {
            return false;
        }
        while self.by_peer.len() >= all {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            self.remove(&oldest.clone());
        }
        let number = self.next;
        self.next += 1;
        self.order.insert(number, peer);
        *self.by_network.entry(network).or_default() += 1;
        self.by_peer.insert(peer, Published { record: record.encode(), timestamp_us, network, number, at: now });
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

    fn remove(&mut self, peer: &PeerId) {
        let Some(published) = self.by_peer.remove(peer) else { return };
        self.order.remove(&published.number);
        if let Some(count) = self.by_network.get_mut(&published.network) {
            *count -= 1;
            if *count == 0 {
                self.by_network.remove(&published.network);
            }
        }
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
