//! How much is sent to addresses that nobody has answered from: what a peer says about its addresses may aim us at somebody.
//!
//! Two bounds: packets per second to all of them, and packets per address and while. An answer that proves who is there ends
//! both for its address. What relays name is counted apart from what peers do. A plain data structure; the clock is handed in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::limits::{
    BIRTHDAY_ADDRESSES, BIRTHDAY_PER_ADDRESS, BIRTHDAY_PER_ADDRESS_WHILE, BIRTHDAY_PER_SECOND, NAMED_ADDRESSES,
    NAMED_PER_SECOND, UNPROVEN_ADDRESSES, UNPROVEN_PER_ADDRESS, UNPROVEN_PER_ADDRESS_WHILE, UNPROVEN_PER_SECOND,
    UNPROVEN_SECOND, VISITED_ADDRESSES,
};

/// How much may be sent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    per_second: u32,
    per_address: u32,
    per_address_while: Duration,
    /// Addresses that are counted at once.
    addresses: usize,
}

impl Bounds {
    /// Of dials and checks.
    pub(super) const PATHS: Self = Self {
        per_second: UNPROVEN_PER_SECOND,
        per_address: UNPROVEN_PER_ADDRESS,
        per_address_while: UNPROVEN_PER_ADDRESS_WHILE,
        addresses: UNPROVEN_ADDRESSES,
    };
    /// Of servers that relays name: what peers name leaves these what they need.
    pub(super) const NAMED: Self = Self { per_second: NAMED_PER_SECOND, addresses: NAMED_ADDRESSES, ..Self::PATHS };
    /// Of addresses of strangers; what goes there counts among the paths as well.
    pub(super) const VISITED: Self = Self { addresses: VISITED_ADDRESSES, ..Self::PATHS };
    /// Of birthday punching, whose packets no answer makes good.
    pub(super) const BIRTHDAY: Self = Self {
        per_second: BIRTHDAY_PER_SECOND,
        per_address: BIRTHDAY_PER_ADDRESS,
        per_address_while: BIRTHDAY_PER_ADDRESS_WHILE,
        addresses: BIRTHDAY_ADDRESSES,
    };
}

/// What may still be sent.
#[derive(Debug)]
pub(super) struct Unproven {
    bounds: Bounds,
    second: (Instant, u32),
    /// Since when, and how many packets.
    addresses: BTreeMap<IpAddr, (Instant, u32)>,
    /// When it was last looked for addresses whose while is over.
    swept: Option<Instant>,
}

impl Unproven {
    pub(super) fn new(now: Instant, bounds: Bounds) -> Self {
        Self { bounds, second: (now, 0), addresses: BTreeMap::new(), swept: None }
    }

    /// Whether one more packet may go there; it counts if so.
    pub(super) fn take(&mut self, ip: IpAddr, now: Instant) -> bool {
        let bounds = self.bounds;
        if now.saturating_duration_since(self.second.0) >= UNPROVEN_SECOND {
            self.second = (now, 0);
        }
        if self.second.1 >= bounds.per_second {
            return false;
        }
        if self.addresses.len() >= bounds.addresses && !self.addresses.contains_key(&ip) {
            self.sweep(now);
            if self.addresses.len() >= bounds.addresses {
                return false;
            }
        }
        let (since, sent) = self.addresses.entry(ip).or_insert((now, 0));
        if now.saturating_duration_since(*since) >= bounds.per_address_while {
            (*since, *sent) = (now, 0);
        }
        if *sent >= bounds.per_address {
            return false;
        }
        *sent += 1;
        self.second.1 += 1;
        true
    }

    /// Forgets addresses whose while is over. Not for every packet: it looks at all of them.
    fn sweep(&mut self, now: Instant) {
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= UNPROVEN_SECOND) {
            self.swept = Some(now);
            let whole = self.bounds.per_address_while;
            self.addresses.retain(|_, (since, _)| now.saturating_duration_since(*since) < whole);
        }
    }

    /// Somebody authenticated answered from there.
    pub(super) fn prove(&mut self, ip: IpAddr) {
        self.addresses.remove(&ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0x0a00_0000 + n).into()
    }

    #[test]
    fn one_address_gets_its_share_and_no_more_until_it_answers_or_time_has_passed() {
        let start = Instant::now();
        let mut unproven = Unproven::new(start, Bounds::PATHS);
        let sent = |unproven: &mut Unproven, from: u32| {
            (0..1000).filter(|n| unproven.take(ip(1), start + UNPROVEN_SECOND * (from + n))).count()
        };
        assert_eq!(sent(&mut unproven, 0), 1000.min(2 * UNPROVEN_PER_ADDRESS as usize));
        unproven.prove(ip(1));
        assert!(unproven.take(ip(1), start + UNPROVEN_SECOND * 1000));
    }

    #[test]
    fn a_full_table_is_searched_once_in_a_second_and_not_for_every_packet() {
        let start = Instant::now();
        let mut unproven = Unproven::new(start, Bounds::PATHS);
        let addresses = u32::try_from(UNPROVEN_ADDRESSES).unwrap();
        let filled = (0..addresses).all(|n| unproven.take(ip(n), start + UNPROVEN_SECOND * (n / UNPROVEN_PER_SECOND)));
        assert!(filled);
        let (over, half) = (start + UNPROVEN_PER_ADDRESS_WHILE, UNPROVEN_SECOND / 2);
        assert!(!unproven.take(ip(addresses), over - half), "no while is over");
        assert!(!unproven.take(ip(addresses), over), "some are, but nobody looks");
        assert!(unproven.take(ip(addresses), over + half));
    }

    #[test]
    fn all_together_get_no_more_than_a_second_allows_and_the_table_stays_small() {
        let start = Instant::now();
        let mut unproven = Unproven::new(start, Bounds::PATHS);
        let sent = (0..10_000).filter(|n| unproven.take(ip(*n), start)).count();
        assert_eq!(sent, UNPROVEN_PER_SECOND as usize);
        for second in 1..100 {
            let now = start + UNPROVEN_SECOND * second;
            (0..1000).for_each(|n| {
                unproven.take(ip(second * 1000 + n), now);
            });
        }
        assert!(unproven.addresses.len() <= UNPROVEN_ADDRESSES);
    }

    #[test]
    fn strangers_leave_room_for_the_addresses_of_peers() {
        let start = Instant::now();
        let (mut paths, mut strangers) = (Unproven::new(start, Bounds::PATHS), Unproven::new(start, Bounds::VISITED));
        // As many as four visits in ten seconds bring, each to twenty addresses.
        let visited = (0..4800u32).filter(|n| {
            let now = start + UNPROVEN_SECOND * (n / 8);
            strangers.take(ip(*n), now) && paths.take(ip(*n), now)
        });
        assert_eq!(visited.count(), VISITED_ADDRESSES);
        assert!(paths.take(ip(10_000), start + UNPROVEN_PER_ADDRESS_WHILE / 2));
    }

    #[test]
    fn birthday_punching_has_bounds_of_its_own() {
        let start = Instant::now();
        let mut budget = Unproven::new(start, Bounds::BIRTHDAY);
        let at_once = (0..10_000).filter(|_| budget.take(ip(1), start)).count();
        assert_eq!(at_once, BIRTHDAY_PER_SECOND as usize);
        let later = (1..500).flat_map(|second| std::iter::repeat_n(start + UNPROVEN_SECOND * second, 1000));
        let rest = later.filter(|now| budget.take(ip(1), *now)).count();
        assert_eq!(at_once + rest, BIRTHDAY_PER_ADDRESS as usize);
        assert!(budget.take(ip(1), start + BIRTHDAY_PER_ADDRESS_WHILE));
    }
}
