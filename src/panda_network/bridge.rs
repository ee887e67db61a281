//! The bridge in the composition root: which Nodes, and open documents as the bridge sees them.

use std::sync::Arc;

use rand::RngCore;
use rand_chacha::ChaCha20Rng;

use super::{Node, PandaError, PandaNetwork, PandaNetworkOptions};
use crate::backoff::ReconnectionPolicy;
use crate::bridge::{Bridge, BridgeStatus, BridgedDocument};
use crate::documents::OpenDocument;
use crate::ids::PeerId;
use crate::limits::BRIDGE_NODES;
use crate::nodes::{NodeDialler, P2pandaNetworkId, P2pandaNode};
use crate::operation::SeqNum;
use crate::store::{DocumentRecord, Heads, Position, Store, StoreError};
use crate::transport::{BoxFuture, TransportError};
use crate::watch;

impl PandaNetwork {
    /// How it goes with the p2panda Nodes that this node bridges to, in the order of the options; empty without any.
    pub fn bridge_status(&self) -> Vec<BridgeStatus> {
        self.node.bridge.as_ref().map(Bridge::status).unwrap_or_default()
    }
}

/// The bridge that the options ask for.
pub(super) fn start(
    own: PeerId,
    options: &mut PandaNetworkOptions,
    parts: (Arc<dyn Store>, Arc<dyn NodeDialler>),
    random: &mut ChaCha20Rng,
) -> Result<Option<Bridge>, PandaError> {
    let nodes: Vec<(P2pandaNetworkId, P2pandaNode)> = std::mem::take(&mut options.bridge);
    if nodes.len() > BRIDGE_NODES {
        return Err(TransportError::Limit { what: "p2panda Nodes", limit: BRIDGE_NODES }.into());
    }
    if nodes.is_empty() {
        return Ok(None);
    }
    let policy: &ReconnectionPolicy = &options.reconnection;
    Ok(Some(Bridge::start(own, nodes, parts, policy, random.next_u64())))
}

/// Takes a document that was just opened to the Nodes. Two that open it at once get the one that stays.
pub(super) fn open(node: &Node, opened: &Arc<OpenDocument>) {
    if let (Some(bridge), Some(document)) = (&node.bridge, node.documents.get(&opened.record().document)) {
        bridge.open(document);
    }
}

impl BridgedDocument for OpenDocument {
    fn record(&self) -> &DocumentRecord {
        self.record()
    }

    fn heads(&self) -> (Heads, Position) {
        self.heads()
    }

    fn newest_of(&self, author: &PeerId) -> Option<SeqNum> {
        self.newest_of(author)
    }

    fn is_closed(&self) -> bool {
        self.is_closed()
    }

    fn frozen(&self) -> Vec<PeerId> {
        self.frozen().into_iter().collect()
    }

    fn newest(&self) -> watch::Receiver<Position> {
        self.watch_newest()
    }

    fn on_fork(&self, author: PeerId) {
        self.on_fork(author);
    }

    fn on_own_announced(&self, count: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.on_own_announced(count))
    }

    fn on_own_acknowledged(&self, node: PeerId, seq_num: SeqNum) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.on_own_acknowledged(node, seq_num))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_named_twice_is_one_node_with_all_its_addresses() {
        let key = crate::identity::Identity::from_seed(&[3; 32]).peer_id();
        let at = |ports: &[u16]| P2pandaNode::new(key, ports.iter().map(|port| ([192, 0, 2, 7], *port).into()));
        let options = PandaNetworkOptions::new("unused")
            .with_p2panda_bridge(P2pandaNetworkId::DEFAULT, at(&[1, 2]))
            .with_p2panda_bridge(P2pandaNetworkId::DEFAULT, at(&[2, 3]))
            .with_p2panda_bridge([7; 32], at(&[4]));
        let expected = vec![(P2pandaNetworkId::DEFAULT, at(&[1, 2, 3])), (P2pandaNetworkId::from([7; 32]), at(&[4]))];
        assert_eq!(options.bridge, expected);
    }
}
