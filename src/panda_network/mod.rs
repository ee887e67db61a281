//! The node: the composition root, the one place that knows every adapter, and the handles that an editor holds.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

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

pub use document::{Document, Presence};
pub use error::PandaError;
pub use events::{EventsMissed, NetworkEvent, NetworkEvents};
pub use in_memory::{InMemoryHub, InMemoryNetwork};
pub use options::PandaNetworkOptions;

use crate::address::{AddressError, Capabilities, DocumentTicket, PeerAddress};
use crate::clock::Clock;
use crate::connections::Connections;
use crate::discovery::lan::LanCounters;
use crate::discovery::topics::TopicDiscovery;
use crate::discovery::{Finds, Found, Source};
use crate::documents::{Documents, OpenDocument};
use crate::identity::Identity;
use crate::ids::{DocumentId, DocumentKey, PeerId};
use crate::limits::{CONNECT_DEADLINE, DISCOVERY_QUEUE};
use crate::network_interface::ConnectionState;
use crate::rendezvous::address::RelayAddress;
use crate::storage::{SqliteStore, StorageOptions};
use crate::store::{DocumentRecord, Heard, Store, StoreError};
use crate::sync::hello::PROTOCOL_VERSIONS;
use crate::transport::{ConnectionInfo, ConnectionStats, PathReport, Transport, TransportStats};
use crate::transports::quic::{QuicTransport, SocketStats};
use crate::transports::relay_client::RelayState;
use crate::watch;

use addresses::LastSigned;
use discovery::{Admission, Discovery, Handler};
use events::Events;

/// File of the node's key in its data directory.
const IDENTITY_FILE: &str = "identity";

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

/// What differs between a real and a simulated node.
struct World {
    identity: Identity,
    clock: Clock,
    random: ChaCha20Rng,
    inline: bool,
}

impl World {
    fn of(options: &mut PandaNetworkOptions) -> Result<Self, PandaError> {
        #[cfg(feature = "sim")]
        if let Some(simulation) = options.simulation.take() {
            return Self::simulated(options, simulation);
        }
        let identity = Identity::load_or_create(&options.data_dir.join(IDENTITY_FILE))?;
        Ok(Self { identity, clock: Clock::system(), random: ChaCha20Rng::from_os_rng(), inline: false })
    }

    #[cfg(feature = "sim")]
    fn simulated(options: &mut PandaNetworkOptions, simulation: options::Simulation) -> Result<Self, PandaError> {
        use crate::transport::TransportError;
        let options::Simulation { host, port, seed } = simulation;
        let address = SocketAddr::new(host.ip(), port);
        let socket = host.bind(port).map_err(|error| TransportError::Bind { address, reason: error.to_string() })?;
        let network = host.network().clone();
        options.quic = options.quic.clone().with_socket(socket).with_network(Arc::new(host)).with_rng_seed(seed);
        Ok(Self {
            identity: Identity::from_seed(&seed),
            clock: Clock::new(move || u64::try_from(network.now().as_micros()).unwrap_or(u64::MAX)),
            random: ChaCha20Rng::from_seed(seed),
            inline: true,
        })
    }
}

impl PandaNetwork {
    /// Starts a node: makes or reads its identity and store, listens, and waits for documents to be opened.
    ///
    /// # Errors
    /// [`PandaError`]: the directory is in use by another process, the identity or the database is damaged, the address is taken.
    pub async fn start(mut options: PandaNetworkOptions) -> Result<Self, PandaError> {
        make_directory(&options.data_dir)?;
        let World { identity, clock, mut random, inline } = World::of(&mut options)?;
        let storage = StorageOptions::new(&options.data_dir)
            .with_durability(options.durability)
            .with_outbox_limits(options.outbox.0, options.outbox.1)
            .with_inline(inline)
            .with_clock(clock.clone());
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(storage, identity.clone())?);
        let relays = options.relays.iter().map(|relay| parse_relay(relay)).collect::<Result<Vec<_>, _>>()?;
        let lan = options.quic.visible_network().filter(|_| options.discovery.lan);
        let quic = options.quic.clone().with_hello(PROTOCOL_VERSIONS.encode()).with_relays(relays);
        let quic = QuicTransport::start(&identity, quic)?;
        let transport: Arc<dyn Transport> = Arc::new(quic.clone());
        let (documents, learned) = Documents::new(identity.clone(), Arc::clone(&store), clock.clone(), inline);
        let (finding, events) = (options.discovery.clone(), Arc::new(Events::new()));
        let (moved, moves) = mpsc::channel(DISCOVERY_QUEUE);
        quic.set_doorkeeper(Arc::new(Admission { documents: documents.clone(), options: finding.clone(), moved }));
        let (documents_of, events_of) = (documents.clone(), Arc::clone(&events));
        let handler = Arc::new(Handler { documents: documents_of, options: finding.clone(), events: events_of });
        #[cfg(feature = "bridge")]
        let bridge = {
            let parts = (Arc::clone(&store), Arc::new(quic.clone()) as _);
            bridge::start(identity.peer_id(), &mut options, parts, &mut random)?
        };
        let connections = Connections::start(
            identity.peer_id(),
            Arc::clone(&transport),
            options.reconnection,
            handler,
            random.next_u64(),
        );
        let (random, tasks) = (Mutex::new(random), Mutex::new(JoinSet::new()));
        let (discovery, ended) = (Discovery::new(finding.clone(), events), AtomicBool::new(false));
        let node = Arc::new(Node {
            identity,
            clock,
            store,
            transport,
            quic,
            documents,
            connections,
            discovery,
            topics: OnceLock::new(),
            #[cfg(feature = "bridge")]
            bridge,
            random,
            tasks,
            ended,
            signed: LastSigned::default(),
        });
        let (finds, found) = Finds::new();
        if finding.topics {
            // Set once: the node is new.
            let _ = node.topics.set(asking::start(&node, &finding, finds.clone()));
        }
        node.documents.set_address(node.address()?);
        let mut tasks = node.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(discovery::take_finds(Arc::downgrade(&node), found, learned, moves));
        if let Some(network) = lan {
            discovery::look_in_lan(&node, &mut tasks, &*network, finds);
        }
        tasks.spawn(addresses::follow(Arc::downgrade(&node), finding.rendezvous));
        drop(tasks);
        Ok(Self { node })
    }

    /// The public key of this node.
    pub fn node_id(&self) -> PeerId {
        self.node.identity.peer_id()
    }

    /// Makes a new document and opens it. Give its ticket to the others.
    ///
    /// # Errors
    /// [`PandaError::Store`].
    pub async fn create(&self) -> Result<Document, PandaError> {
        let document = DocumentId::from_uuid(uuid::Builder::from_random_bytes(self.node.random_bytes()).into_uuid());
        let key = DocumentKey::from_bytes(self.node.random_bytes());
        self.open_record(DocumentRecord { document, key }).await
    }

    /// Opens a document by its ticket and keeps its peers connected. Opening it again gives another handle.
    ///
    /// # Errors
    /// [`PandaError::Store`].
    pub async fn open(&self, ticket: DocumentTicket) -> Result<Document, PandaError> {
        let record = DocumentRecord { document: ticket.document(), key: ticket.key().clone() };
        let document = self.open_record(record).await?;
        self.add_relays(ticket.relays());
        for peer in ticket.peers() {
            document.open.remember_peer(peer.clone(), Heard::FromTicket).await?;
            self.node.on_found(Found { peer: peer.clone(), document: document.id(), source: Source::Ticket });
        }
        Ok(document)
    }

    /// Opens a document that this node has had open before; no ticket is needed for it.
    ///
    /// # Errors
    /// [`PandaError::UnknownDocument`], [`PandaError::Store`].
    pub async fn reopen(&self, document: DocumentId) -> Result<Document, PandaError> {
        let records = self.node.store.documents().await?;
        let record = records.into_iter().find(|record| record.document == document);
        self.open_record(record.ok_or(PandaError::UnknownDocument(document))?).await
    }

    /// Closes a document: its subscriptions end, peers are told, and those that share no other open document are not dialled
    /// any more. What is stored stays, and it can be opened again.
    ///
    /// # Errors
    /// None at present.
    pub async fn close(&self, document: DocumentId) -> Result<(), PandaError> {
        self.node.documents.close(&document);
        self.node.on_document_closed(&document);
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

    /// Dials everybody at once and waits until the own operations that are queued were acknowledged by a first peer, or
    /// nobody has answered for ten seconds. Returns how many were acknowledged meanwhile.
    ///
    /// # Errors
    /// None at present.
    pub async fn process_queued_operations(&self) -> Result<usize, PandaError> {
        let documents = self.node.documents.all();
        let before = pending(&documents);
        self.node.connections.retry_now();
        if before > 0 && *self.connection_state().borrow() != ConnectionState::Idle {
            let deadline = Instant::now() + CONNECT_DEADLINE;
            let emptied = async {
                for document in &documents {
                    // An error means that the document is gone, and nothing is queued in it.
                    let _ = document.watch_status().wait_for(|status| status.pending == 0).await;
                }
            };
            let _ = timeout_at(deadline, emptied).await;
        }
        Ok(before.saturating_sub(pending(&documents)))
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

    /// Relays that others named. One whose name cannot be read is as good as one that does not answer.
    fn add_relays(&self, relays: &[String]) {
        for relay in relays.iter().filter_map(|relay| relay.parse::<RelayAddress>().ok()) {
            let known = self.node.quic.relays();
            if !known.iter().any(|(known, _)| known.server == relay.server) {
                self.node.quic.add_relay(relay);
            }
        }
    }

    /// The relays that this node keeps sessions with, and how those are.
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
        for peer in met {
            // Where the peers are found, this node should be found as well.
            self.add_relays(peer.relays());
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

fn parse_relay(text: &str) -> Result<RelayAddress, PandaError> {
    text.parse().map_err(|error| PandaError::Relay { text: text.to_owned(), error })
}

fn pending(documents: &[Arc<OpenDocument>]) -> usize {
    documents.iter().map(|document| document.watch_status().borrow().pending).sum()
}

fn make_directory(path: &Path) -> Result<(), PandaError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    let made = builder.create(path);
    made.map_err(|error| StoreError::Io(format!("cannot make the directory {}: {error}", path.display())).into())
}
