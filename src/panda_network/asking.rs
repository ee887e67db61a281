//! Being found by strangers: discovery by asking other peers, and the record that relays keep of this node.

use std::sync::Arc;

use super::discovery::View;
use super::{Node, PandaError, PandaNetwork, addresses};
use crate::address::PeerAddress;
use crate::connections::Connections;
use crate::discovery::topics::{DiscoveryStats, TopicDiscovery, TopicParts, Visits};
use crate::discovery::{DiscoveryOptions, Finds};
use crate::ids::PeerId;
use crate::rendezvous::record::RendezvousRecord;
use crate::transport::{BoxFuture, Connection, TransportError};

/// Visits whom the options admit, by the node's connections.
#[derive(Debug)]
struct Visiting {
    connections: Connections,
    options: DiscoveryOptions,
}

impl Visits for Visiting {
    fn visit(&self, peer: PeerAddress, stranger: bool) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>> {
        Box::pin(async move {
            match self.options.admits(&peer.peer_id()) {
                Ok(()) => self.connections.visit(&peer, stranger).await,
                Err(_) => Err(TransportError::ClosedHere),
            }
        })
    }

    fn leave(&self, peer: &PeerId) {
        self.connections.leave(peer);
    }
}

/// Starts to ask and to answer.
pub(super) fn start(node: &Arc<Node>, options: &DiscoveryOptions, finds: Finds) -> TopicDiscovery {
    let parts = TopicParts {
        node: Arc::new(View(Arc::downgrade(node))),
        store: Arc::clone(&node.store),
        visits: Arc::new(Visiting { connections: node.connections.clone(), options: options.clone() }),
        finds,
        seed: u64::from_be_bytes(node.random_bytes()),
    };
    let topics = TopicDiscovery::start(node.identity.peer_id(), parts);
    node.documents.set_discovery(topics.handler());
    topics
}

impl Node {
    /// Has relays keep where this node can be met.
    pub(super) fn publish_record(&self) {
        let (_, relays) = addresses::reachable(&self.quic);
        let relays: Vec<_> = relays.iter().filter_map(|relay| relay.parse().ok()).collect();
        if !relays.is_empty() {
            self.quic.publish(&RendezvousRecord::sign(&self.identity, relays, self.clock.now_us()));
        }
    }
}

impl PandaNetwork {
    /// Where this node can be reached now, signed: for another node's [`add_peer`](Self::add_peer).
    ///
    /// # Errors
    /// [`PandaError::Address`] when the record cannot be made.
    pub fn address(&self) -> Result<PeerAddress, PandaError> {
        Ok(self.node.address()?)
    }

    /// A peer to ask for the peers of all documents, now and after every start: one that is always there and that others know
    /// as well. It need not share a document. Without effect while [`DiscoveryOptions::with_topics`] is off.
    ///
    /// # Errors
    /// [`PandaError::Store`] when it cannot be kept.
    pub async fn add_peer(&self, address: PeerAddress) -> Result<(), PandaError> {
        match self.node.topics.get() {
            Some(topics) => topics.add_peer(address).await?,
            None => _ = self.node.store.note_peers(vec![address], true).await?,
        }
        Ok(())
    }

    /// What confidential discovery has done since the start; all zero while it is off.
    pub fn discovery_stats(&self) -> DiscoveryStats {
        self.node.topics.get().map(TopicDiscovery::stats).unwrap_or_default()
    }
}
