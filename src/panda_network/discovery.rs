//! From finding a peer to being connected with it: the one path from all finders through the policy to the connections.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Node;
use super::events::{Events, NetworkEvent};
use crate::address::{AddressError, PeerAddress};
use crate::connections::{ConnectionHandler, PeerChange};
use crate::discovery::lan::LanStats;
use crate::discovery::policy::{LOOK_INTERVAL, Policy, Refusal, Step};
use crate::discovery::{DiscoveryOptions, Finds, Found, NodeView, Source, lan};
use crate::documents::{Documents, Learned};
use crate::ids::{DocumentId, PeerId};
use crate::net::HostNetwork;
use crate::network_interface::ConnectionState;
use crate::rendezvous::doorkeeper::{Doorkeeper, Proof};
use crate::store::DocumentRecord;
use crate::transport::{BoxFuture, Connection};
use crate::watch;

/// What a node keeps for discovery.
#[derive(Debug)]
pub(super) struct Discovery {
    /// May be held while documents and connections are asked, never the other way round.
    policy: Mutex<Policy>,
    /// Counts what finders want to hear of: documents and addresses that change.
    pub changes: watch::Sender<u64>,
    pub events: Arc<Events>,
    pub lan: LanStats,
}

impl Discovery {
    pub fn new(options: DiscoveryOptions, events: Arc<Events>) -> Self {
        Self {
            policy: Mutex::new(Policy::new(options)),
            changes: watch::Sender::new(0),
            events,
            lan: LanStats::default(),
        }
    }

    /// The open documents or the addresses of this node are others now.
    pub fn on_change(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }
}

impl Node {
    /// A peer was found, by whichever finder.
    pub(super) fn on_found(&self, found: Found) {
        if found.peer.peer_id() == self.identity.peer_id() {
            return;
        }
        self.with_policy(|policy, connected| match self.documents.get(&found.document).is_some() {
            true => policy.on_found(found, Instant::now(), connected),
            // Closed meanwhile; a close that comes now waits for the policy, and forgets the peer.
            false => Vec::new(),
        });
    }

    /// A document was closed: peers that share no other open document are not dialled any more.
    pub(super) fn on_document_closed(&self, document: &DocumentId) {
        self.with_policy(|policy, _| policy.on_document_closed(document));
        self.discovery.on_change();
    }

    fn with_policy(&self, decide: impl FnOnce(&mut Policy, &dyn Fn(&PeerId) -> bool) -> Vec<Step>) {
        let mut policy = self.discovery.policy.lock().unwrap_or_else(PoisonError::into_inner);
        for step in decide(&mut policy, &|peer| self.connections.is_connected(peer)) {
            let event = match step {
                Step::Connect(address) => {
                    let peer = address.peer_id();
                    if self.connections.add_peer(address, self.clock.now_us()) {
                        continue;
                    }
                    policy.on_not_kept(&peer);
                    NetworkEvent::PeerRefused { peer, reason: Refusal::Limit }
                }
                Step::Forget(peer) => {
                    self.connections.forget_peer(peer);
                    continue;
                }
                Step::TellFound(peer, document, source) => NetworkEvent::PeerFound { peer, document, source },
                Step::TellRefused(peer, reason) => NetworkEvent::PeerRefused { peer, reason },
            };
            self.discovery.events.tell(event);
        }
    }
}

/// Announces the node in its local network and looks for its peers there. Without multicast it is found in other ways.
pub(super) fn look_in_lan(node: &Arc<Node>, tasks: &mut JoinSet<()>, network: &dyn HostNetwork, finds: Finds) {
    match network.lan_board() {
        Ok(board) => {
            let (view, random) = (Arc::new(View(Arc::downgrade(node))), ChaCha20Rng::from_seed(node.random_bytes()));
            let (node_id, stats) = (node.identity.peer_id(), node.discovery.lan.clone());
            tasks.spawn(lan::run(node_id, view, board, finds, stats, node.clock.clone(), random));
        }
        Err(error) => tracing::warn!(%error, "peers in the local network are not looked for"),
    }
}

/// What there is to tell the policy.
enum News {
    Timeout,
    Found(Found),
    Moved(PeerId),
}

/// Takes what finders found, and what relays and other peers told, until the node ends.
pub(super) async fn take_finds(
    node: Weak<Node>,
    mut finds: mpsc::Receiver<Found>,
    mut learned: mpsc::Receiver<Learned>,
    mut moves: mpsc::Receiver<PeerId>,
) {
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let news = tokio::select! {
            biased;
            _ = look.tick() => News::Timeout,
            Some(peer) = moves.recv() => News::Moved(peer),
            Some(found) = finds.recv() => News::Found(found),
            // Last, since a peer may tell of as many others as it likes.
            Some((document, peer)) = learned.recv() => News::Found(Found { peer, document, source: Source::Peer }),
        };
        let Some(node) = node.upgrade() else { return };
        match news {
            News::Found(found) => node.on_found(found),
            News::Moved(peer) => node.with_policy(|policy, _| policy.on_moved(&peer)),
            News::Timeout => node.with_policy(|policy, connected| policy.on_timeout(Instant::now(), connected)),
        }
    }
}

/// Hands connections to the documents, lets in whom the options admit, and tells who comes and goes.
pub(super) struct Handler {
    pub documents: Documents,
    pub options: DiscoveryOptions,
    pub events: Arc<Events>,
}

impl ConnectionHandler for Handler {
    fn admits(&self, peer: &PeerId) -> bool {
        let admitted = self.options.admits(peer);
        if let Err(reason) = admitted {
            self.events.tell(NetworkEvent::PeerRefused { peer: *peer, reason });
        }
        admitted.is_ok()
    }

    fn on_change(&self, change: PeerChange) {
        self.events.tell(match change {
            PeerChange::Connected(info) => NetworkEvent::PeerConnected {
                peer: info.peer_id,
                transport: info.transport,
                path: info.path,
                dialled: info.dialled,
            },
            PeerChange::Disconnected(peer) => NetworkEvent::PeerDisconnected { peer },
        });
    }

    fn serve(&self, connection: Arc<dyn Connection>) -> BoxFuture<'static, ()> {
        let documents = self.documents.clone();
        Box::pin(async move { documents.serve(connection).await })
    }
}

/// Answers the offers of those who know a document, unless the options exclude them: an answer names this node's addresses.
#[derive(Debug)]
pub(super) struct Admission {
    pub documents: Documents,
    pub options: DiscoveryOptions,
    /// Peers that relays said were at others.
    pub moved: mpsc::Sender<PeerId>,
}

impl Doorkeeper for Admission {
    fn proofs(&self, peer: &PeerId, session: u64) -> Vec<Proof> {
        self.documents.proofs(peer, session)
    }

    fn admits(&self, peer: &PeerId, session: u64, proofs: &[Proof]) -> bool {
        self.options.admits(peer).is_ok() && self.documents.admits(peer, session, proofs)
    }

    /// Who asks strangers is asked by them, also behind a NAT.
    fn lets_connect(&self, peer: &PeerId) -> bool {
        self.options.topics && self.options.admits(peer).is_ok()
    }

    fn moved(&self, peer: &PeerId) {
        // Full: the peer is dialled all the same, and only not told of.
        let _ = self.moved.try_send(*peer);
    }
}

/// The node as finders see it.
#[derive(Debug)]
pub(super) struct View(pub Weak<Node>);

impl NodeView for View {
    /// Offline on purpose, nothing is announced and nobody looked for.
    fn documents(&self) -> Vec<DocumentRecord> {
        let online = |node: &Arc<Node>| *node.connections.watch_state().borrow() != ConnectionState::Offline;
        let Some(node) = self.0.upgrade().filter(online) else { return Vec::new() };
        node.documents.all().iter().map(|document| document.record().clone()).collect()
    }

    fn address(&self) -> Option<Result<PeerAddress, AddressError>> {
        self.0.upgrade().map(|node| node.address())
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.0.upgrade().map(|node| node.discovery.changes.subscribe())
    }
}
