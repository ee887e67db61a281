//! The forwarding flows that relays opened between this node and its peers. A plain data structure.
//!
//! Each relay numbers its flows as it likes, so a number means something together with its relay only: what one relay says
//! never touches the flows of another. Nothing is kept for a relay without flows.

use std::collections::BTreeMap;

use crate::ids::PeerId;
use crate::limits::FLOWS_PER_RELAY;
use crate::nat::path::{Path, Via};
use crate::rendezvous::address::RelayAddress;

/// Our ends of them.
#[derive(Debug, Default)]
pub(super) struct Flows {
    at: BTreeMap<RelayAddress, BTreeMap<PeerId, Flow>>,
    opened: u64,
}

#[derive(Debug)]
struct Flow {
    path: Path,
    /// Flows that were opened before it.
    number: u64,
}

impl Flows {
    /// A relay forwards between us and a peer, by this path and by no other of its.
    pub(super) fn open(&mut self, relay: &RelayAddress, peer: PeerId, path: Path) {
        let flows = self.at.entry(relay.clone()).or_default();
        flows.insert(peer, Flow { path, number: self.opened });
        self.opened += 1;
        if flows.len() > FLOWS_PER_RELAY {
            let oldest = flows.iter().min_by_key(|(_, flow)| flow.number).map(|(peer, _)| *peer);
            oldest.and_then(|oldest| flows.remove(&oldest));
        }
    }

    /// A relay closed one of its flows. False when it is none of its.
    pub(super) fn close(&mut self, relay: &RelayAddress, flow: u64) -> bool {
        self.forget(relay, |_, path| path.via == Via::Forward { flow })
    }

    /// A peer is not at a relay, so there is no flow to it either. False when none was known.
    pub(super) fn close_to(&mut self, relay: &RelayAddress, to: &PeerId) -> bool {
        self.forget(relay, |peer, _| peer == to)
    }

    /// Those to one peer.
    pub(super) fn to(&self, peer: &PeerId) -> BTreeMap<RelayAddress, Path> {
        self.at.iter().filter_map(|(relay, flows)| Some((relay.clone(), flows.get(peer)?.path))).collect()
    }

    /// To whom a relay forwards.
    pub(super) fn peers_at(&self, relay: &RelayAddress) -> impl Iterator<Item = PeerId> {
        self.at.get(relay).into_iter().flat_map(|flows| flows.keys().copied())
    }

    /// Relays that there is no session with any more forward nothing. False when none of these was known.
    pub(super) fn retain(&mut self, is_known: impl Fn(&RelayAddress) -> bool) -> bool {
        let before = self.at.len();
        self.at.retain(|relay, _| is_known(relay));
        self.at.len() < before
    }

    fn forget(&mut self, relay: &RelayAddress, over: impl Fn(&PeerId, &Path) -> bool) -> bool {
        let Some(flows) = self.at.get_mut(relay) else { return false };
        let before = flows.len();
        flows.retain(|peer, flow| !over(peer, &flow.path));
        let forgotten = flows.len() < before;
        if flows.is_empty() {
            self.at.remove(relay);
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn relay(number: u8) -> RelayAddress {
        format!("relay-{number}.example.org:443").parse().unwrap()
    }

    fn peer(number: usize) -> PeerId {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&number.to_be_bytes());
        Identity::from_seed(&seed).peer_id()
    }

    fn path(relay: u8, flow: u64) -> Path {
        Path { via: Via::Forward { flow }, remote: ([203, 0, 113, relay], 3478).into() }
    }

    #[test]
    fn a_relay_closes_its_own_flows_and_no_other_relays() {
        let mut flows = Flows::default();
        flows.open(&relay(1), peer(1), path(1, 7));
        flows.open(&relay(2), peer(1), path(2, 7));
        assert!(!flows.close(&relay(3), 7));
        assert!(flows.close(&relay(2), 7));
        assert_eq!(flows.to(&peer(1)), [(relay(1), path(1, 7))].into());
        assert!(!flows.close_to(&relay(2), &peer(1)) && flows.close_to(&relay(1), &peer(1)));
        assert!(flows.to(&peer(1)).is_empty());
    }

    #[test]
    fn a_flow_that_took_the_place_of_another_outlives_it() {
        let mut flows = Flows::default();
        flows.open(&relay(1), peer(1), path(1, 7));
        flows.open(&relay(1), peer(1), path(1, 8));
        assert!(!flows.close(&relay(1), 7));
        assert_eq!(flows.to(&peer(1)), [(relay(1), path(1, 8))].into());
        assert_eq!(flows.peers_at(&relay(1)).collect::<Vec<_>>(), [peer(1)]);
    }

    #[test]
    fn a_relay_that_is_let_go_takes_its_flows_along() {
        let mut flows = Flows::default();
        flows.open(&relay(1), peer(1), path(1, 7));
        flows.open(&relay(2), peer(1), path(2, 7));
        assert!(flows.retain(|known| *known == relay(2)) && !flows.retain(|known| *known == relay(2)));
        assert_eq!(flows.to(&peer(1)), [(relay(2), path(2, 7))].into());
    }

    #[test]
    fn flows_that_are_closed_leave_nothing_behind() {
        let mut flows = Flows::default();
        for number in 0..2 * FLOWS_PER_RELAY {
            flows.open(&relay(1), peer(number), path(1, number as u64));
            assert!(flows.close(&relay(1), number as u64));
        }
        assert!(flows.at.is_empty());
    }

    #[test]
    fn a_relay_that_opens_too_many_loses_its_own_oldest_and_nobody_elses() {
        let mut flows = Flows::default();
        flows.open(&relay(1), peer(0), path(1, 0));
        for number in 0..FLOWS_PER_RELAY + 1 {
            flows.open(&relay(2), peer(number), path(2, number as u64));
        }
        assert_eq!(flows.peers_at(&relay(2)).count(), FLOWS_PER_RELAY);
        assert_eq!(flows.to(&peer(0)), [(relay(1), path(1, 0))].into());
        assert_eq!(flows.to(&peer(FLOWS_PER_RELAY)).len(), 1);
    }
}
