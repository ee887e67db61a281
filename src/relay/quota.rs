//! Token buckets: how often, and how many bytes. Pure, the time is handed in.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

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
}

/// What counts as one client when addresses are counted: an IPv4 address, or the /64 that IPv6 hosts choose from freely.
pub(super) fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
        v4 => v4,
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
    fn hosts_of_one_ipv6_network_count_as_one() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
