//! The driving port: what an editor programs against, and can mock.
//!
//! `PandaNetwork` is the real adapter and adds the rest (tickets, presence, receipts, events); `InMemoryNetwork` is one
//! for an editor's tests. Object-safe, and free of any runtime: a mock needs nothing but boxed futures.

use bytes::Bytes;
use thiserror::Error;

use crate::ids::{DocumentId, OperationId, PeerId};
use crate::store::StoreError;
use crate::transport::BoxFuture;

/// An operation on its way between the network and the editor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkMessage {
    /// The document it belongs to.
    pub document_id: DocumentId,
    /// What the editor published: opaque bytes, at most 16 MiB.
    pub payload: Bytes,
    /// The operation's id: the same on every node, so the editor can tell that it has seen it.
    pub message_id: OperationId,
    /// Who published it.
    pub author: PeerId,
}

/// Whether the node is connected to anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Switched off by `set_connected(false)`; operations are queued.
    Offline,
    /// Trying to reach known peers; operations are queued.
    Connecting,
    /// No peer is known yet; operations are queued.
    #[default]
    Idle,
    /// At least one peer is connected.
    Connected {
        /// How many.
        peers: usize,
    },
}

/// A call on the port failed.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The document was not opened. The caller erred.
    #[error("document {0:?} is not open; open it with a ticket first")]
    UnknownDocument(DocumentId),
    /// Storage failed or refused; nothing was published.
    #[error(transparent)]
    Store(StoreError),
    /// The node was shut down.
    #[error("the node was shut down")]
    ShutDown,
    /// Anything else that the implementation says, with who erred.
    #[error("{0}")]
    Other(String),
}

impl From<StoreError> for NetworkError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::ShutDown,
            error => Self::Store(error),
        }
    }
}

/// Operations of one document, one after the other.
pub trait OperationStream: Send {
    /// The next operation, waiting for it; `None` after shutdown. Cancel-safe.
    ///
    /// # Errors
    /// [`NetworkError::Store`] when it cannot be read; the next call tries again.
    fn next(&mut self) -> BoxFuture<'_, Option<Result<NetworkMessage, NetworkError>>>;
}

/// The connection state over time.
pub trait ConnectionStateWatch: Send {
    /// The state now.
    fn current(&self) -> ConnectionState;
    /// Waits for the next change; `None` after shutdown. Cancel-safe; states between two calls may be skipped.
    fn changed(&mut self) -> BoxFuture<'_, Option<ConnectionState>>;
}

/// A network that brings operations to the other editors of a document.
pub trait NetworkInterface: Send + Sync {
    /// Publishes an operation. When it resolves the operation is durable and queued for every peer, online or not.
    ///
    /// # Errors
    /// [`NetworkError::UnknownDocument`] when the document is not open, [`NetworkError::Store`] when it cannot be stored (the
    /// queue or the disk is full, the payload is too large), [`NetworkError::ShutDown`]. Nothing was published then.
    fn broadcast_operation(
        &self,
        document: DocumentId,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<OperationId, NetworkError>>;

    /// All operations of a document from now on, of this node and of others, in this node's order, each once.
    ///
    /// # Errors
    /// [`NetworkError::UnknownDocument`] when the document is not open, [`NetworkError::Store`] when it cannot be read,
    /// [`NetworkError::ShutDown`].
    fn subscribe_to_operations(
        &self,
        document: DocumentId,
    ) -> BoxFuture<'_, Result<Box<dyn OperationStream>, NetworkError>>;

    /// The public key of this node.
    fn node_id(&self) -> PeerId;

    /// Goes offline on purpose (connections are closed, operations queue up) or online again.
    fn set_connected(&self, connected: bool) -> BoxFuture<'_, ()>;

    /// Tries every known peer at once instead of waiting for the next attempt, and returns how many of the own operations that
    /// were queued at the call were acknowledged by a first peer meanwhile. Returns when all were, when nobody acknowledges any
    /// for ten seconds, or at once when offline or without a known peer.
    ///
    /// # Errors
    /// `PandaNetwork` and `InMemoryNetwork` never fail here; after shutdown they return 0. Others may.
    fn process_queued_operations(&self) -> BoxFuture<'_, Result<usize, NetworkError>>;

    /// Whether anybody is connected, now and later.
    fn connection_state(&self) -> Box<dyn ConnectionStateWatch>;
}
