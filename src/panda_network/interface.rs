//! `PandaNetwork` as the adapter of the port [`NetworkInterface`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::PandaNetwork;
use crate::documents::{DocumentEvent, OpenDocument, StartFrom, Subscription};
use crate::ids::{DocumentId, OperationId, PeerId};
use crate::network_interface::{
    ConnectionState, ConnectionStateWatch, NetworkError, NetworkInterface, NetworkMessage, OperationStream,
};
use crate::transport::BoxFuture;
use crate::watch;

/// Name of the cursor that the port's subscriptions would commit; they start from now and commit nothing.
const PORT_CURSOR: &str = "network-interface";

impl NetworkInterface for PandaNetwork {
    fn broadcast_operation(
        &self,
        document: DocumentId,
        payload: Bytes,
    ) -> BoxFuture<'_, Result<OperationId, NetworkError>> {
        Box::pin(async move { Ok(self.open_document(document)?.publish(payload).await?.id()) })
    }

    fn subscribe_to_operations(
        &self,
        document: DocumentId,
    ) -> BoxFuture<'_, Result<Box<dyn OperationStream>, NetworkError>> {
        Box::pin(async move {
            let subscription = self.open_document(document)?.subscribe(PORT_CURSOR, StartFrom::Now).await?;
            Ok(Box::new(Operations { document, subscription }) as Box<dyn OperationStream>)
        })
    }

    fn node_id(&self) -> PeerId {
        Self::node_id(self)
    }

    fn set_connected(&self, connected: bool) -> BoxFuture<'_, ()> {
        Box::pin(Self::set_connected(self, connected))
    }

    fn process_queued_operations(&self) -> BoxFuture<'_, Result<usize, NetworkError>> {
        Box::pin(async move { Ok(Self::process_queued_operations(self).await?) })
    }

    fn connection_state(&self) -> Box<dyn ConnectionStateWatch> {
        Box::new(StateWatch(Self::connection_state(self)))
    }
}

impl PandaNetwork {
    fn open_document(&self, document: DocumentId) -> Result<Arc<OpenDocument>, NetworkError> {
        // The end of the node closes all documents; it is the reason then.
        let ended = self.node.ended.load(Ordering::Acquire);
        let missing = || if ended { NetworkError::ShutDown } else { NetworkError::UnknownDocument(document) };
        self.node.documents.get(&document).ok_or_else(missing)
    }
}

struct Operations {
    document: DocumentId,
    subscription: Subscription,
}

impl OperationStream for Operations {
    fn next(&mut self) -> BoxFuture<'_, Option<Result<NetworkMessage, NetworkError>>> {
        Box::pin(async move {
            loop {
                return match self.subscription.next().await? {
                    Ok(DocumentEvent::Operation(stored)) => Some(Ok(NetworkMessage {
                        document_id: self.document,
                        payload: stored.operation.payload_bytes(),
                        message_id: stored.operation.id(),
                        author: stored.operation.author(),
                    })),
                    Ok(DocumentEvent::Presence(_) | DocumentEvent::Status(_) | DocumentEvent::Fork(_)) => continue,
                    Err(error) => Some(Err(error.into())),
                };
            }
        })
    }
}

/// The state as a runtime-free watch.
pub(super) struct StateWatch(pub watch::Receiver<ConnectionState>);

impl ConnectionStateWatch for StateWatch {
    fn current(&self) -> ConnectionState {
        *self.0.borrow()
    }

    fn changed(&mut self) -> BoxFuture<'_, Option<ConnectionState>> {
        Box::pin(async move {
            self.0.changed().await.ok()?;
            Some(*self.0.borrow_and_update())
        })
    }
}
