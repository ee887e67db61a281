//! The port in memory: for the tests of an editor that programs against [`NetworkInterface`].
//!
//! A [`InMemoryHub`] stands for the network, each [`InMemoryNetwork`] for one node on it. It keeps the port's promises
//! (every operation of every node, in one order per author, each once, queued while offline) but for durability, and has no
//! sockets, no disk and no background tasks. It is not a network: nothing gets lost, late or refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::interface::StateWatch;
use crate::identity::Identity;
use crate::ids::{DocumentId, OperationId, PeerId};
use crate::network_interface::{
    ConnectionState, ConnectionStateWatch, NetworkError, NetworkInterface, NetworkMessage, OperationStream,
};
use crate::transport::BoxFuture;
use crate::watch;

/// The network between in-memory nodes. Clones are handles.
#[derive(Debug, Clone, Default)]
pub struct InMemoryHub {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    nodes: Vec<NodeState>,
    /// What online nodes published, in that order.
    published: BTreeMap<DocumentId, Vec<NetworkMessage>>,
}

#[derive(Debug)]
struct NodeState {
    id: PeerId,
    online: bool,
    published: u64,
    documents: BTreeMap<DocumentId, Replica>,
    state: watch::Sender<ConnectionState>,
    /// Operations in all logs: changes when one is added.
    changed: watch::Sender<u64>,
}

/// What a node has of one document.
#[derive(Debug, Default)]
struct Replica {
    log: Vec<NetworkMessage>,
    /// How much of the hub's list is in the log already.
    taken: usize,
    queued: Vec<NetworkMessage>,
}

impl InMemoryHub {
    /// A network without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node, online.
    pub fn node(&self) -> InMemoryNetwork {
        let mut shared = self.lock();
        let index = shared.nodes.len();
        let id = Identity::from_seed(blake3::hash(&index.to_be_bytes()).as_bytes()).peer_id();
        shared.nodes.push(NodeState {
            id,
            online: true,
            published: 0,
            documents: BTreeMap::new(),
            state: watch::Sender::new(ConnectionState::Idle),
            changed: watch::Sender::new(0),
        });
        shared.settle();
        InMemoryNetwork { hub: self.clone(), index, id }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Brings everything that online nodes have to all online nodes.
    fn settle(&mut self) {
        let online = self.nodes.iter().filter(|node| node.online).count();
        for node in self.nodes.iter_mut().filter(|node| node.online) {
            for (document, replica) in &mut node.documents {
                self.published.entry(*document).or_default().append(&mut replica.queued);
            }
        }
        for node in &mut self.nodes {
            let state = match (node.online, online) {
                (false, _) => ConnectionState::Offline,
                (true, 1) => ConnectionState::Idle,
                (true, online) => ConnectionState::Connected { peers: online - 1 },
            };
            node.state.send_if_modified(|current| std::mem::replace(current, state) != state);
            if node.online {
                node.take(&self.published);
            }
        }
    }
}

impl NodeState {
    fn take(&mut self, published: &BTreeMap<DocumentId, Vec<NetworkMessage>>) {
        for (document, messages) in published {
            let replica = self.documents.entry(*document).or_default();
            let others = messages[replica.taken..].iter().filter(|message| message.author != self.id);
            replica.log.extend(others.cloned());
            replica.taken = messages.len();
        }
        let known = self.documents.values().map(|replica| replica.log.len() as u64).sum();
        self.changed.send_if_modified(|length| std::mem::replace(length, known) != known);
    }
}

/// One in-memory node.
#[derive(Debug, Clone)]
pub struct InMemoryNetwork {
    hub: InMemoryHub,
    index: usize,
    id: PeerId,
}

impl InMemoryNetwork {
    fn with_node<T>(&self, change: impl FnOnce(&mut NodeState) -> T) -> T {
        let mut shared = self.hub.lock();
        let result = change(&mut shared.nodes[self.index]);
        shared.settle();
        result
    }
}

impl NetworkInterface for InMemoryNetwork {
    fn broadcast_operation(
        &self,
        document: DocumentId,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<OperationId, NetworkError>> {
        let id = self.with_node(|node| {
            node.published += 1;
            let number = node.published.to_be_bytes();
            let hash = blake3::hash(&[&node.id.as_bytes()[..], &number, &payload].concat());
            let message_id = OperationId::from(*hash.as_bytes());
            let message = NetworkMessage { document_id: document, payload, message_id, author: node.id };
            let replica = node.documents.entry(document).or_default();
            replica.log.push(message.clone());
            replica.queued.push(message);
            node.take(&BTreeMap::new());
            message_id
        });
        Box::pin(std::future::ready(Ok(id)))
    }

    fn subscribe_to_operations(
        &self,
        document: DocumentId,
    ) -> BoxFuture<'_, Result<Box<dyn OperationStream>, NetworkError>> {
        let (position, changed) =
            self.with_node(|node| (node.documents.entry(document).or_default().log.len(), node.changed.subscribe()));
        let stream = InMemoryOperations { network: self.clone(), document, position, changed };
        Box::pin(std::future::ready(Ok(Box::new(stream) as Box<dyn OperationStream>)))
    }

    fn node_id(&self) -> PeerId {
        self.id
    }

    fn set_connected(&self, connected: bool) -> BoxFuture<'_, ()> {
        self.with_node(|node| node.online = connected);
        Box::pin(std::future::ready(()))
    }

    fn process_queued_operations(&self) -> BoxFuture<'_, Result<usize, NetworkError>> {
        // Whatever can be delivered was delivered when it was published.
        Box::pin(std::future::ready(Ok(0)))
    }

    fn connection_state(&self) -> Box<dyn ConnectionStateWatch> {
        Box::new(StateWatch(self.with_node(|node| node.state.subscribe())))
    }
}

struct InMemoryOperations {
    network: InMemoryNetwork,
    document: DocumentId,
    position: usize,
    changed: watch::Receiver<u64>,
}

impl OperationStream for InMemoryOperations {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<NetworkMessage, NetworkError>>> {
        Box::pin(async move {
            loop {
                self.changed.borrow_and_update();
                let (document, position) = (self.document, self.position);
                let message = self.network.with_node(|node| node.documents.get(&document)?.log.get(position).cloned());
                if let Some(message) = message {
                    self.position += 1;
                    return Some(Ok(message));
                }
                self.changed.changed().await.ok()?;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_operation_published_offline_arrives_once_after_the_node_is_back() {
        let hub = InMemoryHub::new();
        let (alice, bob) = (hub.node(), hub.node());
        let document = DocumentId::from_uuid(uuid::Uuid::from_u128(1));
        let mut at_bob = bob.subscribe_to_operations(document).await.unwrap();
        alice.set_connected(false).await;
        assert_eq!(alice.connection_state().current(), ConnectionState::Offline);
        let first = alice.broadcast_operation(document, Bytes::from_static(b"a")).await.unwrap();
        let second = alice.broadcast_operation(document, Bytes::from_static(b"b")).await.unwrap();
        bob.broadcast_operation(document, Bytes::from_static(b"own")).await.unwrap();
        alice.set_connected(true).await;
        let mut got = Vec::new();
        for _ in 0..3 {
            got.push(at_bob.next().await.unwrap().unwrap());
        }
        assert_eq!(&got[0].payload[..], b"own");
        assert_eq!([got[1].message_id, got[2].message_id], [first, second]);
        assert_eq!(bob.connection_state().current(), ConnectionState::Connected { peers: 1 });
    }
}
