//! The node: the composition root, the one place that knows every adapter, and the handles that an editor holds.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rand::RngCore;
use rand_chacha::ChaCha20Rng;
use tokio::task::JoinSet;
use tokio::time::Instant;

mod addresses;
mod asking;
#[cfg(feature = "bridge")]
mod bridge;
mod discovery;
mod document;
mod error;
mod events;
mod in_memory;
mod interface;
mod options;
mod relays;
mod start;
#[cfg(test)]
#[cfg(feature = "sim")]
mod tests;

pub use document::{Document, Presence};
pub use error::PandaError;
pub use events::{EventsMissed, NetworkEvent, NetworkEvents};
pub use in_memory::{InMemoryHub, InMemoryNetwork};
pub use options::PandaNetworkOptions;

use crate::address::{AddressError, Capabilities, PeerAddress};
use crate::clock::Clock;
use crate::connections::Connections;
use crate::discovery::lan::LanCounters;
use crate::discovery::topics::TopicDiscovery;
use crate::discovery::{Found, Source};
use crate::documents::Documents;
use crate::identity::Identity;
use crate::ids::{DocumentId, DocumentKey, PeerId};
use crate::limits::CONNECT_DEADLINE;
use crate::network_interface::ConnectionState;
use crate::rendezvous::address::RelayAddress;
use crate::store::{DocumentRecord, Heard, Store, StoreError};
use crate::ticket::DocumentTicket;
use crate::transport::{ConnectionInfo, ConnectionStats, PathReport, Transport, TransportStats};
use crate::transports::quic::{QuicTransport, SocketStats};
use crate::transports::relay_client::RelayState;
use crate::watch;

use addresses::LastSigned;
use discovery::Discovery;
use relays::HomeRelays;

/// How long a shutdown waits for peers to close after they were told goodbye.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// A node. Clones are handles on one node, which runs until [`shutdown`](Self::shutdown) or until the last handle is
/// dropped. A drop waits for the writes under way and loses nothing that was published, subscriptions end, and the directory
/// is free for the next start; but peers may only notice when the connection times out, and a fixed port is free a moment later.
#[derive(Debug, Clone)]
pub struct PandaNetwork {
    node: Arc<Node>,
}

/// What the handles share.
#[derive(Debug)]
struct Node {
    identity: Identity,
    clock: Clock,
    store: Arc<dyn Store>,
    transport: Arc<dyn Transport>,
    quic: QuicTransport,
    documents: Documents,
    connections: Connections,
    relays: HomeRelays,
    discovery: Discovery,
    /// Set when discovery by asking is on.
    topics: OnceLock<TopicDiscovery>,
    #[cfg(feature = "bridge")]
    bridge: Option<crate::bridge::Bridge>,
    random: Mutex<ChaCha20Rng>,
    tasks: Mutex<JoinSet<()>>,
    /// Set once, by the end of the node.
    ended: AtomicBool,
    /// When this node last signed where it is.
    signed: LastSigned,
}

impl Drop for Node {
    /// Tasks that were stopped, subscriptions and receipts may hold the store for longer; the directory is free from here on.
    fn drop(&mut self) {
        self.stop_tasks();
        self.documents.close_all();
        self.store.close_now();
    }
}

impl Node {
    /// A freshly signed record of where this node can be reached.
    fn address(&self) -> Result<PeerAddress, AddressError> {
        let (addresses, relays) = addresses::reachable(&self.quic);
        let capabilities = match self.topics.get() {
            Some(_) => Capabilities::NODE.with(Capabilities::DISCOVERY),
            None => Capabilities::NODE,
        };
        let now_us = self.signed.next_us(self.clock.now_us());
        PeerAddress::sign_capable(&self.identity, addresses, relays, capabilities, now_us)
    }

    fn stop_tasks(&self) {
        self.ended.store(true, Ordering::Release);
        // Dropping the set aborts its tasks.
        drop(std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner)));
        #[cfg(feature = "bridge")]
        self.bridge.iter().for_each(crate::bridge::Bridge::stop);
        self.connections.stop();
        self.topics.get().into_iter().for_each(TopicDiscovery::stop);
        self.discovery.events.close();
    }

    fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.random.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes);
        bytes
    }
}

impl PandaNetwork {
    /// The public key of this node.
    pub fn node_id(&self) -> PeerId {
        self.node.identity.peer_id()
    }

    /// Makes a new document and opens it. Give its ticket to the others.
    ///
    /// # Errors
    /// [`PandaError::Store`]: `TooManyDocuments` with 1,024 open, `DiskFull`, `Closed` after the node ended.
    pub async fn create(&self) -> Result<Document, PandaError> {
        let document = DocumentId::from_uuid(uuid::Builder::from_random_bytes(self.node.random_bytes()).into_uuid());
        let key = DocumentKey::from_bytes(self.node.random_bytes());
        self.open_record(DocumentRecord { document, key }).await
    }

    /// Opens a document by its ticket and keeps its peers connected. Opening it again gives another handle, and adds the
    /// ticket's peers.
    ///
    /// # Errors
    /// [`PandaError::Store`]: as [`create`](Self::create), and `OtherKey` when a document of this id is here with another key;
    /// nothing of the ticket is kept then.
    pub async fn open(&self, ticket: DocumentTicket) -> Result<Document, PandaError> {
        let record = DocumentRecord { document: ticket.document(), key: ticket.key().clone() };
        let document = self.open_record(record).await?;
        self.node.relays.on_ticket(&self.node.quic, document.id(), ticket.relays());
        for peer in ticket.peers() {
            document.open.remember_peer(peer.clone(), Heard::FromTicket).await?;
            self.node.on_found(Found { peer: peer.clone(), document: document.id(), source: Source::Ticket });
        }
        Ok(document)
    }

    /// Opens a document that this node has had open before; no ticket is needed for it.
    ///
    /// # Errors
    /// [`PandaError::UnknownDocument`]; [`PandaError::Store`] as [`create`](Self::create).
    pub async fn reopen(&self, document: DocumentId) -> Result<Document, PandaError> {
        let records = self.node.store.documents().await?;
        let record = records.into_iter().find(|record| record.document == document);
        self.open_record(record.ok_or(PandaError::UnknownDocument(document))?).await
    }

    /// Closes a document: its subscriptions end, peers are told, and those that share no other open document are not dialled
    /// any more. What is stored stays, and it can be opened again. Nothing happens when it is not open.
    ///
    /// # Errors
    /// Never at present.
    pub async fn close(&self, document: DocumentId) -> Result<(), PandaError> {
        self.node.documents.close(&document);
        self.node.on_document_closed(&document);
        self.node.relays.on_closed(&self.node.quic, &document);
        #[cfg(feature = "bridge")]
        self.node.bridge.iter().for_each(|bridge| bridge.close(&document));
        Ok(())
    }

    /// All documents in this node's store, open or not.
    ///
    /// # Errors
    /// [`PandaError::Store`].
    pub async fn documents(&self) -> Result<Vec<DocumentId>, PandaError> {
        let records = self.node.store.documents().await?;
        Ok(records.into_iter().map(|record| record.document).collect())
    }

    /// Goes offline on purpose, saying goodbye to everybody, or online again, which dials everybody at once. Publishing works
    /// either way.
    pub async fn set_connected(&self, connected: bool) {
        #[cfg(feature = "bridge")]
        self.node.bridge.iter().for_each(|bridge| bridge.set_online(connected));
        if connected {
            self.node.documents.set_goodbye(false);
            self.node.connections.set_online(true);
        } else {
            self.node.connections.set_online(false);
            // Withdrawn before the others are told goodbye.
            self.node.discovery.on_change();
            self.node.documents.set_goodbye(true);
            self.node.connections.close_all(GOODBYE_DEADLINE).await;
        }
        self.node.discovery.on_change();
    }

    /// Whether anybody is connected, now and later; ends with the node.
    pub fn connection_state(&self) -> watch::Receiver<ConnectionState> {
        self.node.connections.watch_state()
    }

    /// The network changed or the machine woke up: dials everybody who is not connected at once. The node notices most
    /// changes by itself within seconds; an editor that knows earlier says so here.
    pub fn on_network_change(&self) {
        self.node.quic.on_network_change();
        // In the local network there may be others than before.
        self.node.discovery.on_change();
        self.node.topics.get().into_iter().for_each(TopicDiscovery::on_network_change);
        self.node.connections.retry_now();
        #[cfg(feature = "bridge")]
        self.node.bridge.iter().for_each(crate::bridge::Bridge::retry_now);
    }

    /// Where the node listens.
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.node.transport.local_addresses()
    }

    /// What happens to peers from now on: who is found and how, who is connected, who is gone.
    pub fn events(&self) -> NetworkEvents {
        self.node.discovery.events.subscribe()
    }

    /// What was heard in the local network, true or not; all 0 when nobody listens there.
    pub fn lan_counters(&self) -> LanCounters {
        self.node.discovery.lan.counters()
    }

    /// The connections there are.
    pub fn connections(&self) -> Vec<(ConnectionInfo, ConnectionStats)> {
        self.node.connections.list()
    }

    /// Counters of the socket below all connections.
    pub fn socket_stats(&self) -> SocketStats {
        self.node.quic.quic_stats().socket
    }

    /// Counters of the transport.
    pub fn transport_stats(&self) -> TransportStats {
        self.node.transport.stats()
    }

    /// Dials everybody at once and waits until the own operations that are queued now were acknowledged by a first peer, or
    /// ten seconds passed in which none was. Returns how many were. At once when there is nobody to wait for: offline on
    /// purpose, or without a known peer.
    ///
    /// # Errors
    /// Never; other implementations of [`NetworkInterface`](crate::NetworkInterface) may fail.
    pub async fn process_queued_operations(&self) -> Result<usize, PandaError> {
        let queued = self.node.documents.queued();
        self.node.connections.retry_now();
        // Nodes may take what is queued when no peer is known.
        #[cfg(feature = "bridge")]
        let bridged = self.node.bridge.iter().map(crate::bridge::Bridge::retry_now).count() > 0;
        #[cfg(not(feature = "bridge"))]
        let bridged = false;
        let nobody = |state: &ConnectionState| match state {
            ConnectionState::Offline => true,
            ConnectionState::Idle => !bridged,
            ConnectionState::Connecting | ConnectionState::Connected { .. } => false,
        };
        let mut state = self.connection_state();
        if !queued.is_empty() {
            tokio::select! {
                biased;
                // An error means that the node ended.
                _ = state.wait_for(nobody) => {}
                () = queued.drain(CONNECT_DEADLINE) => {}
            }
        }
        Ok(queued.acknowledged())
    }

    /// Ends the node within about `deadline`: waits until connected peers have what is queued, says goodbye, closes the
    /// connections and the store. Handles that are left get errors. A second call does nothing.
    ///
    /// # Errors
    /// [`PandaError::Store`] when the store cannot be closed; what was acknowledged is safe even then.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), PandaError> {
        let end = Instant::now() + deadline;
        let node = &self.node;
        node.documents.flush(deadline / 2).await;
        node.connections.set_online(false);
        node.documents.set_goodbye(true);
        node.connections.close_all(GOODBYE_DEADLINE.min(deadline / 4)).await;
        node.stop_tasks();
        node.transport.shutdown(end.saturating_duration_since(Instant::now())).await;
        node.documents.close_all();
        match node.store.close().await {
            Ok(()) | Err(StoreError::Closed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The relays that this node keeps sessions with, best first, and how those are: those of its options and of open documents.
    /// Peers may be looked for at others meanwhile.
    pub fn relays(&self) -> Vec<(RelayAddress, RelayState)> {
        self.node.quic.relays()
    }

    /// The ways to a connected peer that were tried, and what came of each. They name addresses: show them to this node's
    /// user only.
    pub fn paths(&self, peer: &PeerId) -> Vec<PathReport> {
        self.node.quic.peer_paths(peer)
    }

    async fn open_record(&self, record: DocumentRecord) -> Result<Document, PandaError> {
        let document = record.document;
        let open = self.node.documents.open(record).await?;
        let (met, rumoured) = open.stored_peers().await?;
        self.node.relays.on_known_peers(&self.node.quic, document, &met);
        for peer in met {
            self.node.on_found(Found { peer, document, source: Source::Store });
        }
        for peer in rumoured {
            self.node.on_found(Found { peer, document, source: Source::Peer });
        }
        self.node.discovery.on_change();
        #[cfg(feature = "bridge")]
        bridge::open(&self.node, &open);
        Ok(Document { node: Arc::clone(&self.node), open })
    }
}
