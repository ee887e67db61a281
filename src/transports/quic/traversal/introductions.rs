//! How many signals from relays are opened: opening one costs a key agreement, and strangers may send as many as they like.
//! A plain data structure; the clock is handed in.
//!
//! Every relay has a share of its own, so that one that floods silences none of the others, and within it every sender has
//! one: whose signals they are a relay knows, and an honest one says it truly.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::ids::PeerId;
use crate::limits::{INTRODUCTIONS_PER_PEER, INTRODUCTIONS_PER_SECOND};
use crate::rendezvous::address::RelayAddress;

const SECOND: Duration = Duration::from_secs(1);

/// The signals of this second, per relay that we have a session with.
#[derive(Debug, Default)]
pub(super) struct Introductions(BTreeMap<RelayAddress, Heard>);

#[derive(Debug)]
struct Heard {
    since: Instant,
    signals: u32,
    /// Never more than there were signals.
    by_sender: BTreeMap<PeerId, u32>,
}

impl Introductions {
    /// Forgets relays that there is no session with any more.
    pub(super) fn retain(&mut self, is_known: impl Fn(&RelayAddress) -> bool) {
        self.0.retain(|relay, _| is_known(relay));
    }

    /// Whether one more signal of this sender is opened; it counts if so.
    pub(super) fn take(&mut self, relay: &RelayAddress, from: PeerId, now: Instant) -> bool {
        let nothing = || Heard { since: now, signals: 0, by_sender: BTreeMap::new() };
        if !self.0.contains_key(relay) {
            self.0.insert(relay.clone(), nothing());
        }
        let Some(heard) = self.0.get_mut(relay) else { return false };
        if now.saturating_duration_since(heard.since) >= SECOND {
            *heard = nothing();
        }
        let of_sender = heard.by_sender.get(&from).copied().unwrap_or(0);
        if heard.signals >= INTRODUCTIONS_PER_SECOND || of_sender >= INTRODUCTIONS_PER_PEER {
            return false;
        }
        heard.signals += 1;
        heard.by_sender.insert(from, of_sender + 1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn relay(number: u8) -> RelayAddress {
        format!("relay-{number}.example.org:443").parse().unwrap()
    }

    fn peer(number: u32) -> PeerId {
        let mut seed = [0; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        Identity::from_seed(&seed).peer_id()
    }

    #[test]
    fn who_floods_keeps_nobody_else_from_being_heard() {
        let (mut introductions, now) = (Introductions::default(), Instant::now());
        let heard = (0..1000).filter(|_| introductions.take(&relay(1), peer(1), now)).count();
        assert_eq!(heard, INTRODUCTIONS_PER_PEER as usize);
        assert!(introductions.take(&relay(1), peer(2), now));
    }

    #[test]
    fn a_relay_that_floods_keeps_no_other_from_being_heard() {
        let (mut introductions, now) = (Introductions::default(), Instant::now());
        let heard = (0..1000).filter(|number| introductions.take(&relay(1), peer(*number), now)).count();
        assert_eq!(heard, INTRODUCTIONS_PER_SECOND as usize);
        assert!(introductions.0.values().all(|heard| heard.by_sender.len() == INTRODUCTIONS_PER_SECOND as usize));
        assert!(introductions.take(&relay(2), peer(1), now));
        assert!(
            !introductions.take(&relay(1), peer(1000), now) && introductions.take(&relay(1), peer(1), now + SECOND)
        );
    }
}
