//! Proof that an operation is durable here, and the way to wait until it is durable elsewhere.

use std::sync::Arc;

use super::open_document::OpenDocument;
use crate::ids::OperationId;
use crate::operation::SeqNum;
use crate::store::StoredOperation;

/// What a resolved publish returns: the operation survives what the node's durability says it survives.
#[derive(Debug, Clone)]
pub struct Receipt {
    document: Arc<OpenDocument>,
    stored: StoredOperation,
}

impl Receipt {
    pub(super) fn new(document: Arc<OpenDocument>, stored: StoredOperation) -> Self {
        Self { document, stored }
    }

    /// The operation's id, the same on every node.
    pub fn id(&self) -> OperationId {
        self.stored.operation.id()
    }

    /// Its place in this node's log of the document, from 0.
    pub fn seq_num(&self) -> SeqNum {
        self.stored.operation.seq_num()
    }

    /// The stored operation itself.
    pub fn operation(&self) -> &StoredOperation {
        &self.stored
    }

    /// On how many other peers it is durable, as far as known in this run of the node.
    pub fn delivered(&self) -> usize {
        self.document.delivered_to(self.seq_num())
    }

    /// Waits until it is durable on at least `peers` other peers. Waits for ever while fewer are there: put a timeout
    /// around it. Cancel-safe.
    pub async fn delivered_to(&self, peers: usize) {
        let mut progress = self.document.watch_progress();
        // The sender lives in the document that this receipt keeps alive, so this only ends by success.
        let _ = progress.wait_for(|_| self.delivered() >= peers).await;
    }
}
