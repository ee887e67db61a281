//! All live connections by peer, and the traffic of the dead ones.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;

use super::peer_state::{Live, PeerState, PeerStats};
use crate::ids::PeerId;
use crate::transport::PathReport;

/// The peers that are connected now. Bounded by the limit on connections: a peer leaves with its last one.
#[derive(Debug, Default)]
pub(super) struct ConnectionPool {
    peers: DashMap<PeerId, Arc<PeerState>>,
    /// What peers carried that left since. Locked before `peers` wherever both are.
    left: Mutex<PeerStats>,
}

impl ConnectionPool {
    /// A connection was made.
    pub(super) fn add(&self, peer: PeerId, live: Live) {
        self.peers.entry(peer).or_default().add(live);
    }

    /// A connection is gone.
    pub(super) fn remove(&self, peer: &PeerId, stable_id: usize) {
        let mut left = self.left();
        if let Some((_, state)) = self.peers.remove_if(peer, |_, state| state.retire(stable_id)) {
            let stats = state.stats();
            left.sent_bytes += stats.sent_bytes;
            left.received_bytes += stats.received_bytes;
        }
    }

    /// Connections now and the traffic of all connections ever.
    pub(super) fn totals(&self) -> PeerStats {
        let left = self.left();
        self.peers.iter().fold(*left, |mut sum, peer| {
            let stats = peer.stats();
            sum.connections += stats.connections;
            sum.sent_bytes += stats.sent_bytes;
            sum.received_bytes += stats.received_bytes;
            sum
        })
    }

    /// One peer, if it is connected.
    pub(super) fn peer(&self, peer: &PeerId) -> Option<PeerStats> {
        self.peers.get(peer).map(|state| state.stats())
    }

    /// The paths to one peer; none when it is not connected.
    pub(super) fn paths(&self, peer: &PeerId) -> Vec<PathReport> {
        self.peers.get(peer).map(|state| state.paths()).unwrap_or_default()
    }

    /// All live connections in an order that does not depend on hashing, so that simulations repeat.
    pub(super) fn connections(&self) -> Vec<Live> {
        let mut peers: Vec<_> = self.peers.iter().map(|peer| (*peer.key(), peer.value().clone())).collect();
        peers.sort_unstable_by_key(|(peer, _)| *peer);
        peers.into_iter().flat_map(|(_, state)| state.connections()).collect()
    }

    fn left(&self) -> MutexGuard<'_, PeerStats> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
