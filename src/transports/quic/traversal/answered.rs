//! How many offers to meet are being answered: each keeps a session of checks for a while, and who is let in may make up
//! identities. A plain data structure.
//!
//! Every relay has a share of its own, and within it every sender, as with signals that are opened (`introductions`).

use std::collections::BTreeMap;

use crate::ids::PeerId;
use crate::limits::{ANSWERED_PER_PEER, ANSWERED_PER_RELAY};
use crate::rendezvous::address::RelayAddress;

/// Meetings under way that somebody else asked for, by relay and sender. What is not there is 0.
#[derive(Debug, Default)]
pub(super) struct Answered(BTreeMap<RelayAddress, BTreeMap<PeerId, usize>>);

impl Answered {
    /// Whether there is room for one more meeting; it counts until [`end`](Self::end) if so.
    pub(super) fn begin(&mut self, relay: &RelayAddress, peer: PeerId) -> bool {
        let of_relay = self.0.get(relay);
        let of_peer = of_relay.and_then(|peers| peers.get(&peer)).copied().unwrap_or(0);
        let all = of_relay.map_or(0, |peers| peers.values().sum());
        if all >= ANSWERED_PER_RELAY || of_peer >= ANSWERED_PER_PEER {
            return false;
        }
        self.0.entry(relay.clone()).or_default().insert(peer, of_peer + 1);
        true
    }

    /// It is over.
    pub(super) fn end(&mut self, relay: &RelayAddress, peer: &PeerId) {
        let Some(of_relay) = self.0.get_mut(relay) else { return };
        match of_relay.get_mut(peer) {
            Some(of_peer) if *of_peer > 1 => *of_peer -= 1,
            Some(_) | None => _ = of_relay.remove(peer),
        }
        if of_relay.is_empty() {
            self.0.remove(relay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn relay(number: u8) -> RelayAddress {
        format!("relay-{number}.example.org:443").parse().unwrap()
    }

    fn peer(number: u8) -> PeerId {
        Identity::from_seed(&[number; 32]).peer_id()
    }

    #[test]
    fn a_crowd_at_one_relay_leaves_room_for_others_and_one_peer_for_the_crowd() {
        let mut answered = Answered::default();
        let begun = (0..1000).filter(|_| answered.begin(&relay(1), peer(1))).count();
        assert_eq!(begun, ANSWERED_PER_PEER);
        let crowd: Vec<_> = (2..=250).map(peer).collect();
        let begun: Vec<_> = crowd.iter().filter(|peer| answered.begin(&relay(1), **peer)).collect();
        assert_eq!(begun.len(), ANSWERED_PER_RELAY - ANSWERED_PER_PEER);
        assert!(answered.begin(&relay(2), peer(1)));
        begun.into_iter().for_each(|peer| answered.end(&relay(1), peer));
        assert!(answered.begin(&relay(1), peer(251)) && !answered.begin(&relay(1), peer(1)));
        answered.end(&relay(1), &peer(251));
        (0..ANSWERED_PER_PEER).for_each(|_| answered.end(&relay(1), &peer(1)));
        answered.end(&relay(2), &peer(1));
        answered.end(&relay(2), &peer(1));
        assert!(answered.0.is_empty(), "nothing stays behind");
    }
}
