//! How a node comes up: its directory, its identity, every adapter and service, and the tasks between them.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::addresses::LastSigned;
#[cfg(feature = "bridge")]
use super::bridge;
use super::discovery::{self, Admission, Discovery, Handler};
use super::events::Events;
#[cfg(feature = "sim")]
use super::options;
use super::relays::HomeRelays;
use super::{Node, PandaError, PandaNetwork, PandaNetworkOptions, addresses, asking};
use crate::clock::Clock;
use crate::connections::Connections;
use crate::discovery::Finds;
use crate::documents::Documents;
use crate::identity::Identity;
use crate::limits::DISCOVERY_QUEUE;
use crate::storage::{SqliteStore, StorageOptions};
use crate::store::{Store, StoreError};
use crate::sync::hello::PROTOCOL_VERSIONS;
use crate::transport::Transport;
use crate::transports::quic::{QuicTransport, QuicTransportOptions};

/// File of the node's key in its data directory.
const IDENTITY_FILE: &str = "identity";

/// What differs between a real and a simulated node.
struct World {
    identity: Identity,
    clock: Clock,
    random: ChaCha20Rng,
    inline: bool,
}

impl World {
    fn of(options: &mut PandaNetworkOptions, quic: &mut QuicTransportOptions) -> Result<Self, PandaError> {
        #[cfg(feature = "sim")]
        if let Some(simulation) = options.simulation.take() {
            return Self::simulated(quic, simulation);
        }
        let _ = quic;
        let identity = Identity::load_or_create(&options.data_dir.join(IDENTITY_FILE))?;
        Ok(Self { identity, clock: Clock::system(), random: ChaCha20Rng::from_os_rng(), inline: false })
    }

    #[cfg(feature = "sim")]
    fn simulated(quic: &mut QuicTransportOptions, simulation: options::Simulation) -> Result<Self, PandaError> {
        use std::net::SocketAddr;

        use crate::transport::TransportError;

        let options::Simulation { host, port, seed } = simulation;
        let address = SocketAddr::new(host.ip(), port);
        let socket = host.bind(port).map_err(|error| TransportError::Bind { address, reason: error.to_string() })?;
        let network = host.network().clone();
        *quic = quic.clone().with_socket(socket).with_network(Arc::new(host)).with_rng_seed(seed);
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
    /// [`PandaError::Relay`] for a relay that cannot be read, [`PandaError::Identity`] and [`PandaError::Store`] when the
    /// directory is in use by another process or what is in it is damaged, [`PandaError::Transport`] when the address is taken
    /// or more relays or p2panda Nodes are given than allowed.
    pub async fn start(mut options: PandaNetworkOptions) -> Result<Self, PandaError> {
        let mut quic = options.transport()?;
        make_directory(&options.data_dir)?;
        let World { identity, clock, mut random, inline } = World::of(&mut options, &mut quic)?;
        let storage = StorageOptions::new(&options.data_dir)
            .with_durability(options.durability)
            .with_outbox_limits(options.outbox.0, options.outbox.1)
            .with_inline(inline)
            .with_clock(clock.clone());
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(storage, identity.clone())?);
        let lan = quic.visible_network().filter(|_| options.discovery.lan);
        let quic = QuicTransport::start(&identity, quic.with_hello(PROTOCOL_VERSIONS.encode()))?;
        let relays = HomeRelays::new(quic.relays().into_iter().map(|(relay, _)| relay).collect());
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
            relays,
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
