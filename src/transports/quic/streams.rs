//! The two halves of a stream, and the link that keeps their connection alive.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};

use super::errors::{connection_error, read_error, write_error};
use super::flush::FlushSet;
use super::wire::{StreamType, code, priority_number};
use crate::transport::{BoxFuture, CloseReason, Priority, RecvHalf, SendHalf, TransportError};

/// What the handle and the streams of one connection share. The connection closes with the last of them.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) quinn: Connection,
    pub(super) flush: Arc<FlushSet>,
    pub(super) idle_timeout: Duration,
}

impl Link {
    /// What quinn says about the connection, in the words of the port.
    pub(super) fn error(&self, error: &quinn::ConnectionError) -> TransportError {
        connection_error(error, self.idle_timeout)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.quinn.close(code(CloseReason::Done), b"");
    }
}

/// Opens a stream and writes what it is. The first bytes of the application leave with it if they follow at once.
pub(super) async fn open(
    link: &Arc<Link>,
    stream_type: StreamType,
    priority: Priority,
) -> Result<(QuicSend, QuicRecv), TransportError> {
    let (send, recv) = link.quinn.open_bi().await.map_err(|error| link.error(&error))?;
    let mut send = QuicSend::new(send, link.clone(), priority);
    send.write_all(Bytes::copy_from_slice(&[stream_type.to_byte()])).await?;
    Ok((send, QuicRecv::new(recv, link.clone())))
}

/// The sending half. Dropping it unfinished resets the stream with [`CloseReason::Done`].
#[derive(Debug)]
pub(super) struct QuicSend {
    stream: SendStream,
    link: Arc<Link>,
    /// Bytes that may still be written, and what to say when they are used up.
    budget: Option<Budget>,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
struct Budget {
    what: &'static str,
    limit: usize,
    left: usize,
}

impl QuicSend {
    /// Takes over a stream of quinn's.
    pub(super) fn new(stream: SendStream, link: Arc<Link>, priority: Priority) -> Self {
        // Fails only on a stream that has ended, where it does not matter.
        let _ = stream.set_priority(priority_number(priority));
        Self { stream, link, budget: None, ended: false }
    }

    /// Allows at most `limit` bytes of `what`.
    pub(super) fn with_budget(mut self, what: &'static str, limit: usize) -> Self {
        self.budget = Some(Budget { what, limit, left: limit });
        self
    }

    /// Writes all bytes, waiting for room.
    pub(super) async fn write_all(&mut self, bytes: Bytes) -> Result<(), TransportError> {
        if let Some(budget) = &mut self.budget {
            let too_long = TransportError::Limit { what: budget.what, limit: budget.limit };
            budget.left = budget.left.checked_sub(bytes.len()).ok_or(too_long)?;
        }
        self.stream.write_chunk(bytes).await.map_err(|error| write_error(&error, self.link.idle_timeout))
    }
}

impl SendHalf for QuicSend {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(self.write_all(bytes))
    }

    fn finish(&mut self) {
        if !self.ended && self.stream.finish().is_ok() {
            self.link.flush.add(&self.stream);
        }
        self.ended = true;
    }

    fn reset(&mut self, reason: CloseReason) {
        // Fails only on a stream that has ended already.
        let _ = self.stream.reset(code(reason));
        self.ended = true;
    }
}

impl Drop for QuicSend {
    fn drop(&mut self) {
        if !self.ended {
            self.reset(CloseReason::Done);
        }
    }
}

/// The receiving half. Dropping it tells the peer to stop.
#[derive(Debug)]
pub(super) struct QuicRecv {
    stream: RecvStream,
    link: Arc<Link>,
}

impl QuicRecv {
    /// Takes over a stream of quinn's.
    pub(super) fn new(stream: RecvStream, link: Arc<Link>) -> Self {
        Self { stream, link }
    }

    /// The stream itself, for messages that are read as a whole.
    pub(super) fn stream(&mut self) -> &mut RecvStream {
        &mut self.stream
    }
}

impl RecvHalf for QuicRecv {
    fn read(&mut self, limit: usize) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        Box::pin(async move {
            let chunk = self.stream.read_chunk(limit.max(1), true).await;
            let chunk = chunk.map_err(|error| read_error(&error, self.link.idle_timeout))?;
            Ok(chunk.map(|chunk| chunk.bytes))
        })
    }

    fn stop(&mut self, reason: CloseReason) {
        // Fails only on a stream that has ended already.
        let _ = self.stream.stop(code(reason));
    }
}
