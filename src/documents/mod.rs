//! Documents between peers: which are open here, what each connected peer has of them, and how the rest gets there.
//!
//! [`Documents`] is the registry. Hand every authenticated connection to [`Documents::serve`]; it runs until the
//! connection is gone. An [`OpenDocument`] is the state of one document that everything shares; `link` is one peer,
//! `session` one document with one peer. Nothing here makes connections: addresses that are learnt from peers go out through
//! a channel, to whoever does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

mod catch_up;
mod context;
mod control;
mod error;
mod follow;
mod incoming;
mod ingest;
mod link;
mod live;
mod open_document;
mod outgoing;
mod presence;
mod queued;
mod receipt;
mod session;
mod subscription;

pub use error::SessionError;
pub use live::{DocumentStatus, PeerProgress};
pub use open_document::OpenDocument;
pub use presence::PresenceError;
pub use queued::Queued;
pub use receipt::Receipt;
pub use subscription::{DocumentEvent, PresenceChange, StartFrom, Subscription};

use crate::address::PeerAddress;
use crate::clock::Clock;
use crate::identity::Identity;
use crate::ids::{DocumentId, PeerId};
use crate::limits::{MAX_OPEN_DOCUMENTS, SIGNAL_PROOFS};
use crate::rendezvous::doorkeeper::{Doorkeeper, Proof, proof};
use crate::store::{DocumentRecord, Store, StoreError};
use crate::transport::{Connection, StreamHandler};
use crate::watch;
pub use context::Learned;
use context::{Context, Metrics};

/// Addresses of peers that wait for whoever makes connections. Full: left out, peers send them again.
const LEARNED_QUEUE: usize = 256;

/// The documents of this node.
#[derive(Debug, Clone)]
pub struct Documents {
    registry: Arc<Registry>,
}

/// What links share.
#[derive(Debug)]
struct Registry {
    context: Arc<Context>,
    store: Arc<dyn Store>,
    open: Mutex<BTreeMap<DocumentId, Arc<OpenDocument>>>,
    /// Held while one is opened: two at once would put two observers of one document into the store, which keeps the later.
    opening: tokio::sync::Mutex<()>,
    changed: watch::Sender<u64>,
    address: watch::Sender<Option<PeerAddress>>,
    goodbye: watch::Sender<bool>,
    /// Who serves streams for confidential discovery; not set: nobody.
    discovery: OnceLock<Arc<dyn StreamHandler>>,
}

impl Registry {
    fn documents(&self) -> BTreeMap<DocumentId, Arc<OpenDocument>> {
        self.open().clone()
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn watch_address(&self) -> watch::Receiver<Option<PeerAddress>> {
        self.address.subscribe()
    }

    fn watch_goodbye(&self) -> watch::Receiver<bool> {
        self.goodbye.subscribe()
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<DocumentId, Arc<OpenDocument>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Documents {
    /// A node without open documents, and the addresses that it will learn from its peers.
    ///
    /// `inline` verifies signatures on the tasks themselves, which a simulation needs to be repeatable.
    pub fn new(
        identity: Identity,
        store: Arc<dyn Store>,
        clock: Clock,
        inline: bool,
    ) -> (Self, mpsc::Receiver<Learned>) {
        let (learned, learned_receiver) = mpsc::channel(LEARNED_QUEUE);
        let context = Arc::new(Context { identity, clock, inline, learned, metrics: Metrics::new() });
        let registry = Registry {
            context,
            store,
            open: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(0),
            address: watch::Sender::new(None),
            goodbye: watch::Sender::new(false),
            discovery: OnceLock::new(),
        };
        (Self { registry: Arc::new(registry) }, learned_receiver)
    }

    /// Opens a document, or finds it open. One after the other.
    ///
    /// # Errors
    /// [`StoreError`]: `TooManyDocuments` with as many open as may be, `OtherKey` when one of this id is here with another key.
    pub async fn open(&self, record: DocumentRecord) -> Result<Arc<OpenDocument>, StoreError> {
        let registry = &self.registry;
        let _one_at_a_time = registry.opening.lock().await;
        if let Some(document) = self.get(&record.document) {
            let same = document.record().key == record.key;
            return if same { Ok(document) } else { Err(StoreError::OtherKey(record.document)) };
        }
        if registry.open().len() >= MAX_OPEN_DOCUMENTS {
            return Err(StoreError::TooManyDocuments { limit: MAX_OPEN_DOCUMENTS });
        }
        let id = record.document;
        let Context { identity, clock, .. } = &*registry.context;
        let store = Arc::clone(&registry.store);
        let opened = OpenDocument::open(record, identity.clone(), store, clock.clone()).await?;
        registry.open().insert(id, Arc::clone(&opened));
        registry.changed.send_modify(|version| *version += 1);
        Ok(opened)
    }

    /// The document of this id if it is open.
    pub fn get(&self, document: &DocumentId) -> Option<Arc<OpenDocument>> {
        self.registry.open().get(document).cloned()
    }

    /// All open documents.
    pub fn all(&self) -> Vec<Arc<OpenDocument>> {
        self.registry.open().values().cloned().collect()
    }

    /// Closes a document: peers are told, sessions end. What is stored stays.
    pub fn close(&self, document: &DocumentId) {
        if let Some(document) = self.registry.open().remove(document) {
            document.close();
            self.registry.changed.send_modify(|version| *version += 1);
        }
    }

    /// Closes all documents.
    pub fn close_all(&self) {
        for document in self.all() {
            self.close(&document.record().document);
        }
    }

    /// Hands the streams of confidential discovery to this service from now on. Only the first one is taken.
    pub fn set_discovery(&self, discovery: Arc<dyn StreamHandler>) {
        let _ = self.registry.discovery.set(discovery);
    }

    /// Where this node can be reached: connected peers are told.
    pub fn set_address(&self, address: PeerAddress) {
        self.registry.address.send_replace(Some(address));
    }

    /// Serves one connection until it is gone.
    pub async fn serve(&self, connection: Arc<dyn Connection>) {
        link::Link::run(Arc::clone(&self.registry), connection).await;
    }

    /// Which documents this node and a peer may both know, for an introduction: those that the peer is known for first.
    fn to_prove(&self, peer: &PeerId) -> Vec<Arc<OpenDocument>> {
        let (mut known, others): (Vec<_>, Vec<_>) = self.all().into_iter().partition(|document| document.knows(peer));
        known.extend(others);
        known
    }

    /// Tells every connected peer that this node is about to leave on purpose, or that it stays after all.
    pub fn set_goodbye(&self, goodbye: bool) {
        self.registry.goodbye.send_replace(goodbye);
    }

    /// The own operations of all open documents that wait for a first peer now.
    pub fn queued(&self) -> Queued {
        Queued::new(self.all())
    }

    /// Waits until connected peers acknowledged every own operation that is queued, at most `deadline`.
    /// Returns at once for documents without a connected peer.
    pub async fn flush(&self, deadline: Duration) {
        let all = self.all();
        let flushed = async {
            for document in all {
                let mut status = document.watch_status();
                // An error means that the document is gone.
                let _ = status.wait_for(|status| status.pending == 0 || status.peers == 0).await;
            }
        };
        let _ = tokio::time::timeout(deadline, flushed).await;
    }
}

impl Doorkeeper for Documents {
    fn proofs(&self, peer: &PeerId, session: u64) -> Vec<Proof> {
        let node = self.registry.context.identity.peer_id();
        let documents = self.to_prove(peer).into_iter().take(SIGNAL_PROOFS);
        documents.map(|document| proof(&document.record().key, (&node, peer), session)).collect()
    }

    fn admits(&self, peer: &PeerId, session: u64, proofs: &[Proof]) -> bool {
        let node = self.registry.context.identity.peer_id();
        let expected = self.all().into_iter().map(|document| proof(&document.record().key, (peer, &node), session));
        expected.into_iter().any(|expected| proofs.contains(&expected))
    }
}
