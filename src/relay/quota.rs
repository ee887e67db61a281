//! Token buckets: how often, and how many bytes; and tallies: how many at once. Pure, the time is handed in.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use crate::limits::{RELAY_DATAGRAM_COST_BYTES, RELAY_SITE_NETWORKS, STUN_ADDRESSES};

/// A rate per second and how much of it may be used at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Units per second.
    pub per_second: u64,
    /// Units that a full bucket holds.
    pub burst: u64,
}

/// Nanoseconds of a second: the bucket reckons in units × ns, so that no fraction is lost.
const SECOND_NS: u128 = 1_000_000_000;
/// Time between two searches for buckets that can be forgotten.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A bucket that fills at a [`Rate`]; it starts full.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: Rate,
    level: u128,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, level: u128::from(rate.burst) * SECOND_NS, at: now }
    }

    /// Takes so much out, or nothing when there is less. Time that runs backwards fills nothing.
    pub(super) fn take(&mut self, units: u64, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        let full = u128::from(self.rate.burst) * SECOND_NS;
        self.level = (self.level + passed.as_nanos().saturating_mul(self.rate.per_second.into())).min(full);
        let wanted = u128::from(units) * SECOND_NS;
        let enough = wanted <= self.level;
        if enough {
            self.level -= wanted;
        }
        enough
    }

    fn is_full(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_nanos();
        let full = u128::from(self.rate.burst) * SECOND_NS;
        self.level + passed.saturating_mul(self.rate.per_second.into()) >= full
    }
}

/// A bucket per address, of a bounded number of them.
#[derive(Debug)]
pub(super) struct AddressBuckets {
    rate: Rate,
    buckets: HashMap<IpAddr, Bucket>,
    /// When it was last looked for buckets to forget.
    swept: Option<Instant>,
}

impl AddressBuckets {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new(), swept: None }
    }

    /// Takes one unit from the bucket of an address. When all buckets are in use, who has none gets nothing.
    pub(super) fn take(&mut self, ip: IpAddr, now: Instant) -> bool {
        let network = network_of(ip);
        if self.buckets.len() >= STUN_ADDRESSES && !self.buckets.contains_key(&network) {
            self.sweep(now);
            if self.buckets.len() >= STUN_ADDRESSES {
                return false;
            }
        }
        let rate = self.rate;
        self.buckets.entry(network).or_insert_with(|| Bucket::new(rate, now)).take(1, now)
    }

    /// Forgets full buckets, which remember nothing. Not for every packet: forged sources cost nothing, and looking does.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= SWEEP_INTERVAL) {
            self.swept = Some(now);
            self.buckets.retain(|_, bucket| !bucket.is_full(now));
        }
    }
}

/// How many there are of something per key. A key that has none takes no room.
#[derive(Debug)]
pub(super) struct Tally<K>(HashMap<K, usize>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash> Tally<K> {
    pub(super) fn of(&self, key: &K) -> usize {
        self.0.get(key).copied().unwrap_or(0)
    }

    pub(super) fn add(&mut self, key: K) {
        *self.0.entry(key).or_default() += 1;
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Some(count) = self.0.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(key);
            }
        }
    }
}

/// How many there are of something per network that they come from.
#[derive(Debug, Default)]
pub(super) struct NetworkTally {
    networks: Tally<IpAddr>,
    /// Per IPv6 /48; an IPv4 address is its own.
    sites: Tally<IpAddr>,
}

impl NetworkTally {
    /// Whether there may be one more from there, when one network may have so many.
    pub(super) fn has_room(&self, ip: IpAddr, per_network: usize) -> bool {
        let per_site = per_network.saturating_mul(RELAY_SITE_NETWORKS);
        self.networks.of(&network_of(ip)) < per_network && self.sites.of(&site_of(ip)) < per_site
    }

    pub(super) fn add(&mut self, ip: IpAddr) {
        self.networks.add(network_of(ip));
        self.sites.add(site_of(ip));
    }

    pub(super) fn remove(&mut self, ip: IpAddr) {
        self.networks.remove(&network_of(ip));
        self.sites.remove(&site_of(ip));
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.networks.0.is_empty() && self.sites.0.is_empty()
    }
}

/// What a datagram takes of a byte quota.
pub(super) fn cost_of(payload: &[u8]) -> u64 {
    payload.len() as u64 + RELAY_DATAGRAM_COST_BYTES
}

/// What counts as one client when addresses are counted: an IPv4 address, or the /64 that IPv6 hosts choose from freely.
fn network_of(ip: IpAddr) -> IpAddr {
    prefix_of(ip, 64)
}

/// What one customer may have been given: an IPv4 address, or an IPv6 /48.
fn site_of(ip: IpAddr) -> IpAddr {
    prefix_of(ip, 48)
}

fn prefix_of(ip: IpAddr, bits: u32) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - bits))).into(),
        IpAddr::V4(v4) => v4.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 3 }, start);
        let taken = |bucket: &mut Bucket, now| (0..100).filter(|_| bucket.take(1, now)).count();
        assert_eq!(taken(&mut bucket, start), 3);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(99)), 0);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(200)), 2);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(3600)), 3);
        assert_eq!(taken(&mut bucket, start), 0, "time does not run backwards");
    }

    #[test]
    fn more_than_a_bucket_holds_is_never_given() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 10, burst: 3 }, start);
        assert!(!bucket.take(4, start + Duration::from_secs(10)));
        assert!(bucket.take(3, start + Duration::from_secs(10)), "and nothing was lost by asking");
    }

    #[test]
    fn addresses_are_forgotten_when_they_asked_nothing_lately_and_never_too_many() {
        let start = Instant::now();
        let mut buckets = AddressBuckets::new(Rate { per_second: 1, burst: 1 });
        let ip = |n: usize| IpAddr::from(u32::try_from(n).unwrap().to_be_bytes());
        assert!((0..STUN_ADDRESSES).all(|n| buckets.take(ip(n), start)));
        assert!(!buckets.take(ip(0), start) && !buckets.take(ip(STUN_ADDRESSES), start));
        assert!(buckets.take(ip(STUN_ADDRESSES), start + Duration::from_secs(1)));
    }

    #[test]
    fn a_table_that_strangers_filled_is_not_searched_for_each_of_them() {
        let start = Instant::now();
        let mut buckets = AddressBuckets::new(Rate { per_second: 10, burst: 1 });
        let ip = |n: usize| IpAddr::from(u32::try_from(n).unwrap().to_be_bytes());
        assert!((0..STUN_ADDRESSES).all(|n| buckets.take(ip(n), start)));
        let takes_a_new_one =
            |buckets: &mut AddressBuckets, ms| buckets.take(ip(STUN_ADDRESSES), start + Duration::from_millis(ms));
        assert!(!takes_a_new_one(&mut buckets, 0));
        assert!(!takes_a_new_one(&mut buckets, 500), "the buckets are full again, but nobody looks");
        assert!(takes_a_new_one(&mut buckets, 1000));
    }

    #[test]
    fn hosts_of_one_ipv6_network_count_as_one() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }

    #[test]
    fn the_networks_of_one_ipv6_site_have_together_what_a_few_of_them_have() {
        let mut tally = NetworkTally::default();
        let host = |site: u16, network: u16| IpAddr::from([0x2001, 0xdb8, site, network, 0, 0, 0, 1]);
        let taken = (0..100).map(|n| host(1, n % 50)).filter(|ip| {
            let room = tally.has_room(*ip, 3);
            room.then(|| tally.add(*ip));
            room
        });
        assert_eq!(taken.count(), 3 * RELAY_SITE_NETWORKS);
        assert!(tally.has_room(host(2, 0), 3) && tally.has_room([192, 0, 2, 1].into(), 3));
        tally.remove(host(1, 0));
        assert!(tally.has_room(host(1, 60), 3) && !NetworkTally::default().has_room(host(2, 0), 0));
        (1..3 * RELAY_SITE_NETWORKS).for_each(|n| tally.remove(host(1, u16::try_from(n).unwrap())));
        assert!(tally.is_empty(), "{tally:?}");
    }
}
