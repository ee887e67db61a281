//! How much is sent to addresses that nobody has answered from: what a peer says about its addresses may aim us at somebody.
//!
//! Two bounds: packets per second to all of them, and packets per address and while. An answer that proves who is there ends
//! both for its address. A plain data structure; the clock is handed in.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::limits::{
    UNPROVEN_ADDRESSES, UNPROVEN_PER_ADDRESS, UNPROVEN_PER_ADDRESS_WHILE, UNPROVEN_PER_SECOND, UNPROVEN_SECOND,
};

/// What may still be sent.
#[derive(Debug)]
pub(super) struct Unproven {
    second: (Instant, u32),
    /// Since when, and how many packets.
    addresses: BTreeMap<IpAddr, (Instant, u32)>,
    /// When it was last looked for addresses whose while is over.
    swept: Option<Instant>,
}

impl Unproven {
    pub(super) fn new(now: Instant) -> Self {
        Self { second: (now, 0), addresses: BTreeMap::new(), swept: None }
    }

    /// Whether one more packet may go there; it counts if so.
    pub(super) fn take(&mut self, ip: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.second.0) >= UNPROVEN_SECOND {
            self.second = (now, 0);
        }
        if self.second.1 >= UNPROVEN_PER_SECOND {
            return false;
        }
        if self.addresses.len() >= UNPROVEN_ADDRESSES && !self.addresses.contains_key(&ip) {
            self.sweep(now);
            if self.addresses.len() >= UNPROVEN_ADDRESSES {
                return false;
            }
        }
        let (since, sent) = self.addresses.entry(ip).or_insert((now, 0));
        if now.saturating_duration_since(*since) >= UNPROVEN_PER_ADDRESS_WHILE {
            (*since, *sent) = (now, 0);
        }
        if *sent >= UNPROVEN_PER_ADDRESS {
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
            self.addresses.retain(|_, (since, _)| now.saturating_duration_since(*since) < UNPROVEN_PER_ADDRESS_WHILE);
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
        let mut unproven = Unproven::new(start);
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
        let mut unproven = Unproven::new(start);
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
        let mut unproven = Unproven::new(start);
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
}
