//! SKELETON of the floor-5 API: signatures are final, bodies come from another branch.
#![allow(missing_docs, unused)]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::sync::watch;

use crate::address::{AddressError, DocumentTicket, PeerAddress};
use crate::backoff::ReconnectionPolicy;
use crate::ids::{DocumentId, OperationId, PeerId};
use crate::network_interface::{ConnectionState, NetworkInterface};
use crate::operation::{Operation, SeqNum};
use crate::store::{Durability, StoreError, StoredOperation};
use crate::transport::{ConnectionInfo, ConnectionStats, TransportError, TransportStats};

#[derive(Debug, Clone)]
pub struct PandaNetworkOptions {}

impl PandaNetworkOptions {
    /// Identity, operations and queue live in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self { todo!() }
    /// Default: every address, a port of the system's choice.
    pub fn with_listen_address(self, address: SocketAddr) -> Self { todo!() }
    /// Default: power-safe.
    pub fn with_durability(self, durability: Durability) -> Self { todo!() }
    pub fn with_reconnection(self, policy: ReconnectionPolicy) -> Self { todo!() }
    /// Outbox bounds per document.
    pub fn with_outbox_limits(self, operations: usize, bytes: u64) -> Self { todo!() }
    pub fn with_relays(self, relays: impl IntoIterator<Item = impl Into<String>>) -> Self { todo!() }
}

/// A call failed; every variant says who erred and what to do.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum PandaError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("{0}")]
    Identity(String),
    #[error("the node was shut down")]
    ShutDown,
}

/// Handle; clones share one node.
#[derive(Debug, Clone)]
pub struct PandaNetwork {}

impl PandaNetwork {
    pub async fn start(options: PandaNetworkOptions) -> Result<Self, PandaError> { todo!() }
    pub fn node_id(&self) -> PeerId { todo!() }
    /// Makes a new document.
    pub async fn create(&self) -> Result<Document, PandaError> { todo!() }
    /// Opens a document by a ticket and dials its peers; opening it again gives a handle to the same document.
    pub async fn open(&self, ticket: DocumentTicket) -> Result<Document, PandaError> { todo!() }
    /// Opens a document that is already in this node's store (after a restart no ticket is needed).
    pub async fn reopen(&self, document: DocumentId) -> Result<Document, PandaError> { todo!() }
    /// Documents in the store.
    pub async fn documents(&self) -> Result<Vec<DocumentId>, PandaError> { todo!() }
    pub async fn set_connected(&self, connected: bool) { todo!() }
    pub fn connection_state(&self) -> watch::Receiver<ConnectionState> { todo!() }
    /// Addresses it listens on.
    pub fn local_addresses(&self) -> Vec<SocketAddr> { todo!() }
    pub fn connections(&self) -> Vec<(ConnectionInfo, ConnectionStats)> { todo!() }
    pub fn transport_stats(&self) -> TransportStats { todo!() }
    /// Tries all known peers at once; returns how many queued operations were acknowledged by a first peer meanwhile.
    pub async fn process_queued_operations(&self) -> Result<usize, PandaError> { todo!() }
    /// Flushes, says goodbye, closes the store. Idempotent.
    pub async fn shutdown(&self, deadline: Duration) -> Result<(), PandaError> { todo!() }
}

/// Handle to one open document; clones share it.
#[derive(Debug, Clone)]
pub struct Document {}

impl Document {
    pub fn id(&self) -> DocumentId { todo!() }
    /// Ticket with this node's current addresses and those of some other known peers.
    pub fn ticket(&self) -> DocumentTicket { todo!() }
    /// Durable when it resolves, online or not. Many may be under way at once: they share commits, keep call order.
    pub async fn publish(&self, payload: impl Into<Bytes>) -> Result<Receipt, PandaError> { todo!() }
    /// Pull-based: a slow subscriber slows nobody. Includes own operations.
    pub async fn subscribe(&self, from: From) -> Result<Subscription, PandaError> { todo!() }
    pub async fn subscribe_as(&self, name: &str, from: From) -> Result<Subscription, PandaError> { todo!() }
    pub fn presence(&self) -> Presence { todo!() }
    pub fn status(&self) -> watch::Receiver<DocumentStatus> { todo!() }
    pub fn peers(&self) -> Vec<PeerProgress> { todo!() }
    pub async fn heads(&self) -> Vec<(PeerId, SeqNum)> { todo!() }
}

/// Where a subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// After the last committed operation (the start when nothing was committed).
    Cursor,
    /// The first operation.
    Start,
    /// What comes from now on.
    Now,
}

/// Proof that an operation is durable here.
#[derive(Debug, Clone)]
pub struct Receipt {}
impl Receipt {
    pub fn id(&self) -> OperationId { todo!() }
    pub fn seq_num(&self) -> SeqNum { todo!() }
    /// On how many peers it is durable, as far as known.
    pub fn delivered(&self) -> usize { todo!() }
    /// Waits until it is durable on at least `peers` other peers.
    pub async fn delivered_to(&self, peers: usize) -> Result<(), PandaError> { todo!() }
}

#[derive(Debug)]
pub struct Subscription {}
impl Subscription {
    /// Next event; `None` after shutdown. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<DocumentEvent, PandaError>> { todo!() }
    /// Moves the persistent cursor: durable on return.
    pub async fn commit(&mut self, operation: &StoredOperation) -> Result<(), PandaError> { todo!() }
}

#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum DocumentEvent {
    /// `operation.operation.payload()` are the editor's bytes; `.position` is its place for cursors.
    Operation(StoredOperation),
    Presence(PresenceChange),
    Status(DocumentStatus),
    /// An author signed two operations in one place; its log is frozen.
    Fork(PeerId),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PresenceChange {
    Updated { peer: PeerId, state: Bytes },
    /// Expired, cleared or disconnected.
    Gone { peer: PeerId },
}

/// Ephemeral state, at most 896 bytes, expires by itself.
#[derive(Debug, Clone)]
pub struct Presence {}
impl Presence {
    pub async fn set(&self, state: impl Into<Bytes>) -> Result<(), PandaError> { todo!() }
    pub async fn clear(&self) { todo!() }
    pub fn peers(&self) -> Vec<(PeerId, Bytes)> { todo!() }
}

/// Where a document stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DocumentStatus {
    /// Connected peers that share it.
    pub peers: usize,
    /// Own operations that no peer has acknowledged.
    pub pending: usize,
    /// Operations that connected peers announced and that are not here yet, as far as known.
    pub missing: usize,
    /// When an operation was last sent to or received from a peer, µs since the epoch; None if never in this run.
    pub last_sync_us: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerProgress {
    pub peer: PeerId,
    pub connected: bool,
    /// Own operations up to this sequence number are durable there.
    pub acknowledged: Option<SeqNum>,
}
