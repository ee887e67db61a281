//! The bridge to p2panda Nodes: documents that are open here live in applications built on `p2panda::Node` as well.
//!
//! [`Bridge::start`] with the Nodes, then hand it every document that is opened. Per Node and document there is one task with
//! one connection, as the protocol of Nodes wants it (`link`, and `round` with `reader` and `writer` for one connection). What is
//! said is decided by a pure machine (`session`, with `in_flight`, `authors` and `pace`) and spelled by `wire`. `gate` keeps many documents from dialling a Node that is away all at once.
//!
//! Operations travel as they are. What comes from a Node goes into the store through the same checks as what comes from a
//! peer, and from there to subscriptions and peers; what is stored here, by whomever, goes to the Nodes. Nothing goes back to
//! whom it came from, so that any number of nodes may bridge to one Node.
//!
//! Not here: sockets and TLS (the port [`NodeDialler`]), and what a document is (the trait [`BridgedDocument`]).

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::AbortHandle;

mod authors;
mod error;
mod gate;
mod heights;
mod in_flight;
mod link;
mod pace;
mod reader;
mod round;
mod session;
pub mod wire;
mod writer;

pub use error::BridgeError;
use gate::Gate;

use crate::backoff::ReconnectionPolicy;
use crate::ids::{DocumentId, PeerId};
use crate::nodes::{NodeDialler, P2pandaNetworkId, P2pandaNode};
use crate::operation::SeqNum;
use crate::store::{DocumentRecord, Heads, Position, Store, StoreError};
use crate::transport::BoxFuture;
use crate::watch;

/// An open document, as the bridge sees it.
pub trait BridgedDocument: Send + Sync + Debug {
    /// Its id and secret.
    fn record(&self) -> &DocumentRecord;
    /// Newest operations, and the position up to which they are complete, as one consistent pair.
    fn heads(&self) -> (Heads, Position);
    /// The newest operation of an author.
    fn newest_of(&self, author: &PeerId) -> Option<SeqNum>;
    /// Whether it was closed. It is not opened again.
    fn is_closed(&self) -> bool;
    /// Authors whose log is frozen.
    fn frozen(&self) -> Vec<PeerId>;
    /// Changes with every operation that is stored.
    fn newest(&self) -> watch::Receiver<Position>;
    /// The store found a fork of this author.
    fn on_fork(&self, author: PeerId);
    /// The Node says that it has so many operations of this node's own.
    fn on_own_announced(&self, count: u64) -> BoxFuture<'_, Result<(), StoreError>>;
    /// The Node has stored this node's own operations up to and including this one.
    fn on_own_acknowledged(&self, node: PeerId, seq_num: SeqNum) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// How it goes with one Node.
#[derive(Debug, Clone)]
pub struct BridgeStatus {
    /// The Node's public key.
    pub node: PeerId,
    /// Documents that are open here.
    pub documents: usize,
    /// Of these, how many have a connection to the Node now.
    pub connected: usize,
    /// Of these, how many are past catching up: what is new goes over at once, either way.
    pub live: usize,
    /// Operations sent to the Node. What it did not take is sent again, and counted again.
    pub sent: u64,
    /// Operations that came from the Node and were new here.
    pub received: u64,
    /// Operations and frames of the Node that were not taken: damaged, forked, too large, or not ours to understand.
    pub refused: u64,
    /// What went wrong last, with a document that is not connected now.
    pub problem: Option<BridgeError>,
}

/// The bridge. Dropping it ends all sessions.
#[derive(Debug)]
pub struct Bridge {
    context: Arc<Context>,
    nodes: Vec<Arc<NodeState>>,
    open: Mutex<BTreeMap<DocumentId, Bridged>>,
    online: watch::Sender<bool>,
}

/// What all links share.
#[derive(Debug)]
struct Context {
    /// This node.
    own: PeerId,
    store: Arc<dyn Store>,
    dialler: Arc<dyn NodeDialler>,
}

/// What the links to one Node share.
#[derive(Debug)]
struct NodeState {
    node: P2pandaNode,
    /// The application protocol in its network.
    protocol: [u8; 32],
    gate: Gate,
    sent: AtomicU64,
    received: AtomicU64,
    refused: AtomicU64,
}

/// One document and its links, one per Node, in their order. Dropping it ends them.
#[derive(Debug)]
struct Bridged {
    document: Arc<dyn BridgedDocument>,
    links: Vec<(AbortHandle, Arc<Mutex<LinkState>>)>,
}

impl Drop for Bridged {
    fn drop(&mut self) {
        self.links.iter().for_each(|(task, _)| task.abort());
    }
}

/// How it goes with one document and one Node.
#[derive(Debug, Default)]
struct LinkState {
    connected: bool,
    live: bool,
    problem: Option<BridgeError>,
}

impl Bridge {
    /// A bridge to these Nodes, without documents yet. `seed` spreads the times of further attempts.
    pub fn start(
        own: PeerId,
        nodes: Vec<(P2pandaNetworkId, P2pandaNode)>,
        (store, dialler): (Arc<dyn Store>, Arc<dyn NodeDialler>),
        policy: &ReconnectionPolicy,
        seed: u64,
    ) -> Self {
        let context = Context { own, store, dialler };
        let state = |(index, (network, node)): (u64, (P2pandaNetworkId, P2pandaNode))| {
            let protocol = wire::protocol(network.as_bytes());
            let gate = Gate::new(policy.clone(), seed.wrapping_add(index));
            let (sent, received, refused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
            Arc::new(NodeState { node, protocol, gate, sent, received, refused })
        };
        Self {
            context: Arc::new(context),
            nodes: (0..).zip(nodes).map(state).collect(),
            open: Mutex::default(),
            online: watch::Sender::new(true),
        }
    }

    /// Takes a document to the Nodes, unless it is closed by now. The same one again changes nothing.
    pub fn open(&self, document: Arc<dyn BridgedDocument>) {
        let id = document.record().document;
        let mut open = self.documents();
        if document.is_closed() {
            return;
        }
        let known = open.get(&id).is_some_and(|bridged| same(&bridged.document, &document));
        if !known {
            let links = self.nodes.iter().map(|node| {
                let state = Arc::<Mutex<LinkState>>::default();
                let online = self.online.subscribe();
                let link = link::Link::new(&self.context, node, &document, &state, online);
                (tokio::spawn(link.run()).abort_handle(), state)
            });
            open.insert(id, Bridged { links: links.collect(), document });
        }
    }

    /// The document was closed: its sessions end. Nothing happens to one that was opened under its id meanwhile.
    pub fn close(&self, document: &DocumentId) {
        let mut open = self.documents();
        if open.get(document).is_some_and(|bridged| bridged.document.is_closed()) {
            open.remove(document);
        }
    }

    /// Closes all sessions and dials nobody, or the opposite.
    pub fn set_online(&self, online: bool) {
        self.online.send_replace(online);
        if online {
            self.retry_now();
        }
    }

    /// Tries everything at once that waits for its next attempt.
    pub fn retry_now(&self) {
        self.nodes.iter().for_each(|node| node.gate.nudge());
    }

    /// Ends all sessions.
    pub fn stop(&self) {
        self.documents().clear();
    }

    /// How it goes with each Node.
    pub fn status(&self) -> Vec<BridgeStatus> {
        let open = self.documents();
        let status = |(index, node): (usize, &Arc<NodeState>)| {
            let mut status = BridgeStatus {
                node: node.node.key(),
                documents: open.len(),
                connected: 0,
                live: 0,
                sent: node.sent.load(Ordering::Relaxed),
                received: node.received.load(Ordering::Relaxed),
                refused: node.refused.load(Ordering::Relaxed),
                problem: None,
            };
            for (_, state) in open.values().filter_map(|bridged| bridged.links.get(index)) {
                let state = state.lock().unwrap_or_else(PoisonError::into_inner);
                status.connected += usize::from(state.connected);
                status.live += usize::from(state.live);
                if let (false, Some(problem)) = (state.connected, &state.problem) {
                    status.problem = Some(problem.clone());
                }
            }
            status
        };
        self.nodes.iter().enumerate().map(status).collect()
    }

    fn documents(&self) -> MutexGuard<'_, BTreeMap<DocumentId, Bridged>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two handles are of one document.
fn same(one: &Arc<dyn BridgedDocument>, other: &Arc<dyn BridgedDocument>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

#[cfg(test)]
mod tests;
