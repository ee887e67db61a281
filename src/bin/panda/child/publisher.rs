//! Publishes many operations at once, in order: they share commits, as those of a fast editor would.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use panda_network::store::StoreError;
use panda_network::{Document, PandaError, Receipt};
use tokio::task::{JoinError, JoinSet};

use crate::error::CliError;

/// Publishes under way at once; more wait.
const IN_FLIGHT_MAX: usize = 256;

/// Publishes to one document.
pub struct Publisher<F: Fn()> {
    document: Document,
    in_flight: JoinSet<Result<Receipt, PandaError>>,
    last: Option<Receipt>,
    on_durable: F,
}

impl<F: Fn()> Publisher<F> {
    /// `on_durable` is called once for every publish that returned.
    pub fn new(document: Document, on_durable: F) -> Self {
        Self { document, in_flight: JoinSet::new(), last: None, on_durable }
    }

    /// Publishes after everything that was given before; returns before it is durable.
    ///
    /// # Errors
    /// When a publish failed, this or an earlier one.
    pub async fn publish(&mut self, payload: Bytes) -> Result<(), CliError> {
        while let Some(done) = self.in_flight.try_join_next() {
            self.finish(done)?;
        }
        if self.in_flight.len() >= IN_FLIGHT_MAX
            && let Some(done) = self.in_flight.join_next().await
        {
            self.finish(done)?;
        }
        let document = self.document.clone();
        let mut call = Box::pin(async move { document.publish(payload).await });
        // The first poll takes the place in the order of calls; a task of its own would take it when it happens to run.
        match poll_once(call.as_mut()).await {
            Poll::Ready(result) => self.finish(Ok(result)),
            Poll::Pending => {
                self.in_flight.spawn(call);
                Ok(())
            }
        }
    }

    /// Waits until everything is durable; the receipt of the newest operation, if there was one.
    ///
    /// # Errors
    /// When a publish failed.
    pub async fn flush(&mut self) -> Result<Option<Receipt>, CliError> {
        while let Some(done) = self.in_flight.join_next().await {
            self.finish(done)?;
        }
        Ok(self.last.take())
    }

    fn finish(&mut self, done: Result<Result<Receipt, PandaError>, JoinError>) -> Result<(), CliError> {
        // A task that was cancelled or panicked: the program is ending.
        let receipt = done.unwrap_or(Err(StoreError::Closed.into()))?;
        (self.on_durable)();
        if self.last.as_ref().is_none_or(|last| last.seq_num() < receipt.seq_num()) {
            self.last = Some(receipt);
        }
        Ok(())
    }
}

async fn poll_once<T>(mut future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}
