//! Requests: each on a bidirectional stream of its own, a bounded number at a time, each with a deadline.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::errors::message_error;
use super::streams::{Link, open};
use super::wire::StreamType;
use crate::limits::{REQUEST_MAX_BYTES, REQUESTS_PER_CONNECTION};
use crate::transport::{CloseReason, Priority, RecvHalf, SendHalf, TransportError};

/// The streams for requests of one connection. Full: callers wait within their deadline.
#[derive(Debug)]
pub(super) struct StreamPool {
    free: Semaphore,
}

impl StreamPool {
    /// A pool with [`REQUESTS_PER_CONNECTION`] streams.
    pub(super) fn new() -> Self {
        Self { free: Semaphore::new(REQUESTS_PER_CONNECTION) }
    }

    /// Sends a request and waits for the response. Cancelling tells the peer to stop and frees the stream.
    ///
    /// # Errors
    /// [`TransportError::Limit`] for a request that is too long, [`TransportError::Protocol`] for such a response,
    /// [`TransportError::Timeout`] after `deadline`, [`TransportError::ClosedByPeer`] when the peer refuses.
    pub(super) async fn request(
        &self,
        link: &Arc<Link>,
        request: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, TransportError> {
        if request.len() > REQUEST_MAX_BYTES {
            return Err(TransportError::Limit { what: "request bytes", limit: REQUEST_MAX_BYTES });
        }
        let exchange = async {
            // The semaphore is never closed.
            let _place = self.free.acquire().await.map_err(|_| TransportError::ClosedHere)?;
            let (mut send, mut recv) = open(link, StreamType::Request, Priority::Low).await?;
            send.write_all(request).await?;
            send.finish();
            match recv.stream().read_to_end(REQUEST_MAX_BYTES).await {
                Ok(response) => Ok(response.into()),
                Err(error) => {
                    recv.stop(CloseReason::BadFrame);
                    Err(message_error(&error, "response", link.idle_timeout))
                }
            }
        };
        timeout(deadline, exchange).await.unwrap_or(Err(TransportError::Timeout(deadline)))
    }
}
