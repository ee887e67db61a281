//! The handle that an editor holds on one document.

use std::sync::Arc;

use bytes::Bytes;

use super::{Node, PandaError};
use crate::documents::{DocumentStatus, OpenDocument, PeerProgress, Receipt, StartFrom, Subscription};
use crate::ids::{DocumentId, PeerId};
use crate::limits::TICKET_MAX_PEERS;
use crate::operation::SeqNum;
use crate::ticket::DocumentTicket;
use crate::watch;

/// Name of the cursor that `subscribe` uses.
const DEFAULT_CURSOR: &str = "editor";

/// An open document. Clones are handles; the document stays open until [`PandaNetwork::close`](crate::PandaNetwork::close).
#[derive(Debug, Clone)]
pub struct Document {
    pub(super) node: Arc<Node>,
    pub(super) open: Arc<OpenDocument>,
}

impl Document {
    /// The document's id.
    pub fn id(&self) -> DocumentId {
        self.open.record().document
    }

    /// An invitation to this document: this node's addresses and relays of now, and up to 7 signed records of other peers that
    /// share it and that this node met, or knows from a ticket itself; fewer when they would make its text longer than
    /// 8,192 characters. Whoever has it can read and write the document.
    ///
    /// # Errors
    /// [`PandaError::Store`] when the known peers cannot be read, [`PandaError::Address`] when this node's record cannot be made.
    pub async fn ticket(&self) -> Result<DocumentTicket, PandaError> {
        let record = self.open.record();
        let others = self.open.met_peers(TICKET_MAX_PEERS).await?;
        let own = self.node.address()?;
        let others = others.into_iter().filter(|address| address.peer_id() != own.peer_id()).take(TICKET_MAX_PEERS - 1);
        Ok(DocumentTicket::new(record.document, record.key.clone())
            .with_relays(own.relays().iter().cloned())
            .with_peers(std::iter::once(own.clone()).chain(others)))
    }

    /// Publishes an operation, at most 16 MiB. When it resolves the operation is durable, and on its way to every connected
    /// peer; the others get it when they are back. Many may be under way at once: they share commits, and keep the order in
    /// which they were first polled.
    ///
    /// # Errors
    /// [`PandaError::Store`]: `QueueFull`, `DiskFull`, `Operation` for a payload over the limit; `Restored` until a peer was asked
    /// ([`confirm_restored`](Self::confirm_restored)); `OwnLogFrozen` when this node's key signed two operations in one place;
    /// `Closed` after the node ended. Nothing was published then. Dropping the future early may still publish.
    pub async fn publish(&self, payload: impl Into<Bytes>) -> Result<Receipt, PandaError> {
        Ok(self.open.publish(payload.into()).await?)
    }

    /// A reader of the document with the cursor named `editor`. It brings own operations, too: an editor that crashed
    /// between publishing and saving gets its own edits back.
    ///
    /// # Errors
    /// [`PandaError::Store`] when the cursor cannot be read.
    pub async fn subscribe(&self, from: StartFrom) -> Result<Subscription, PandaError> {
        self.subscribe_as(DEFAULT_CURSOR, from).await
    }

    /// A reader with a cursor of its own, for a second consumer of the same document (an index, a backup).
    ///
    /// # Errors
    /// [`PandaError::Store`] when the cursor cannot be read.
    pub async fn subscribe_as(&self, name: &str, from: StartFrom) -> Result<Subscription, PandaError> {
        Ok(self.open.subscribe(name, from).await?)
    }

    /// Ephemeral states of the peers.
    pub fn presence(&self) -> Presence {
        Presence { open: Arc::clone(&self.open) }
    }

    /// Where the document stands, now and later.
    pub fn status(&self) -> watch::Receiver<DocumentStatus> {
        self.open.watch_status()
    }

    /// What each peer that was connected in this run has of our own operations.
    pub fn peers(&self) -> Vec<PeerProgress> {
        self.open.peers()
    }

    /// Allows publishing although this node's directory was restored from a backup or copied and no peer could be asked for
    /// what is newer. If there is something newer, this node's log forks, and peers will take nothing more of it: do this
    /// only when no other copy of the document is left.
    ///
    /// # Errors
    /// [`PandaError::Store`] when that cannot be noted.
    pub async fn confirm_restored(&self) -> Result<(), PandaError> {
        Ok(self.open.confirm().await?)
    }

    /// The newest operation of each author here.
    pub fn heads(&self) -> Vec<(PeerId, SeqNum)> {
        self.open.heads().0.into_iter().map(|(author, head)| (author, head.seq_num)).collect()
    }
}

/// Cursors, names, colours: small states that are shown while their peer is there and never stored.
#[derive(Debug, Clone)]
pub struct Presence {
    open: Arc<OpenDocument>,
}

impl Presence {
    /// Shows this state (at most 896 bytes) to the other peers until it is cleared or this node leaves. States that follow
    /// each other quickly may be skipped on the way; the last one arrives.
    ///
    /// # Errors
    /// [`PandaError::Presence`] when it is too large.
    pub fn set(&self, state: impl Into<Bytes>) -> Result<(), PandaError> {
        Ok(self.open.set_presence(state.into())?)
    }

    /// Shows nothing any more.
    pub fn clear(&self) {
        // An empty state is never too large.
        let _ = self.open.set_presence(Bytes::new());
    }

    /// What the other peers show now.
    pub fn peers(&self) -> Vec<(PeerId, Bytes)> {
        self.open.presence().into_iter().collect()
    }
}
