//! Which offers to meet are answered. A plain data structure; the clock is handed in.
//!
//! A peer says its offer again while its dial lasts. Whoever says it later, the relay or somebody behind it, has kept it. Only
//! offers of those who are let in are remembered: a stranger makes as many as it likes, and would flush the table.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::ids::PeerId;
use crate::limits::{CONNECT_DEADLINE, OFFERS_REMEMBERED};

/// Offers that were answered, and when first.
#[derive(Debug, Default)]
pub(super) struct Offers(BTreeMap<(PeerId, u64), Instant>);

/// What to do with an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Meet the peer.
    Answer,
    /// Tell it that it is not let in.
    Refuse,
    /// Its dial is long over.
    Ignore,
}

impl Offers {
    /// An offer came; `is_admitted` says whether its sender is let in, and is asked once at most.
    pub(super) fn judge(&mut self, offer: (PeerId, u64), now: Instant, is_admitted: impl FnOnce() -> bool) -> Verdict {
        let first = self.0.get(&offer).copied();
        if first.is_some_and(|first| now.saturating_duration_since(first) > CONNECT_DEADLINE) {
            return Verdict::Ignore;
        }
        if !is_admitted() {
            return Verdict::Refuse;
        }
        if first.is_none() {
            self.remember(offer, now);
        }
        Verdict::Answer
    }

    fn remember(&mut self, offer: (PeerId, u64), now: Instant) {
        if self.0.len() >= OFFERS_REMEMBERED {
            let oldest = self.0.iter().min_by_key(|(_, first)| **first).map(|(offer, _)| *offer);
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        self.0.insert(offer, now);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::Identity;

    const SECOND: Duration = Duration::from_secs(1);

    fn peer(number: u8) -> PeerId {
        Identity::from_seed(&[number; 32]).peer_id()
    }

    #[test]
    fn an_offer_is_answered_as_often_as_it_is_said_while_its_dial_lasts_and_never_after() {
        let (mut offers, start) = (Offers::default(), Instant::now());
        for now in [start, start + 2 * SECOND, start + CONNECT_DEADLINE] {
            assert_eq!(offers.judge((peer(1), 7), now, || true), Verdict::Answer);
        }
        for now in [start + CONNECT_DEADLINE + SECOND, start + 3600 * SECOND] {
            assert_eq!(offers.judge((peer(1), 7), now, || true), Verdict::Ignore);
            assert_eq!(offers.judge((peer(1), 8 + now.duration_since(start).as_secs()), now, || true), Verdict::Answer);
        }
    }

    #[test]
    fn strangers_do_not_make_a_node_forget_which_offers_are_over() {
        let (mut offers, start) = (Offers::default(), Instant::now());
        assert_eq!(offers.judge((peer(1), 7), start, || true), Verdict::Answer);
        let later = start + CONNECT_DEADLINE + SECOND;
        for session in 0..2 * OFFERS_REMEMBERED as u64 {
            assert_eq!(offers.judge((peer(2), session), later, || false), Verdict::Refuse);
        }
        assert_eq!(offers.judge((peer(1), 7), later, || true), Verdict::Ignore);
        assert_eq!(offers.0.len(), 1);
    }

    #[test]
    fn who_is_let_in_after_it_was_refused_is_answered() {
        let (mut offers, start) = (Offers::default(), Instant::now());
        assert_eq!(offers.judge((peer(1), 7), start, || false), Verdict::Refuse);
        assert_eq!(offers.judge((peer(1), 7), start + 60 * SECOND, || true), Verdict::Answer);
    }

    #[test]
    fn a_full_table_forgets_the_oldest() {
        let (mut offers, start) = (Offers::default(), Instant::now());
        for session in 0..=OFFERS_REMEMBERED as u64 {
            let now = start + Duration::from_millis(session);
            assert_eq!(offers.judge((peer(1), session), now, || true), Verdict::Answer);
        }
        assert_eq!(offers.0.len(), OFFERS_REMEMBERED);
        assert!(!offers.0.contains_key(&(peer(1), 0)));
    }
}
