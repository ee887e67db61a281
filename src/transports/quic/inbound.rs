//! Streams that the peer opens: each is sorted by its first byte, without one holding up another.
//!
//! QUIC delivers streams one by one, but the first byte of one may be lost or withheld while a later stream is complete.
//! So each new stream waits for its first byte on its own, and requests for their end. All of it is bounded, and a peer
//! that only opens streams uses up nothing but its own allowance.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use quinn::{Connection, ReadToEndError, RecvStream, SendStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::counters::Counters;
use super::queue::Queue;
use super::streams::{Link, QuicRecv, QuicSend};
use super::traversal::PathStream;
use super::wire::{StreamType, code};
use crate::limits::{
    PROTOCOL_ERRORS_PER_CONNECTION, REQUEST_MAX_BYTES, REQUESTS_PER_CONNECTION, STREAM_TYPE_DEADLINE, STREAMS_WAITING,
};
use crate::transport::{BiStream, CloseReason, IncomingRequest, Priority};

/// What the peer opened and the application has not taken yet.
#[derive(Debug)]
pub(super) struct Inbound {
    /// Application streams, in the order in which their first bytes arrived.
    pub(super) streams: Queue<BiStream>,
    /// Requests that arrived whole.
    pub(super) requests: Queue<IncomingRequest>,
    /// Where the stream of candidates goes, once.
    paths: Mutex<Option<oneshot::Sender<PathStream>>>,
    requests_arriving: Semaphore,
    protocol_errors: AtomicU32,
    counters: Arc<Counters>,
}

impl Inbound {
    /// Empty queues. `paths` gets the stream of candidates.
    pub(super) fn new(counters: Arc<Counters>, paths: oneshot::Sender<PathStream>) -> Self {
        Self {
            paths: Mutex::new(Some(paths)),
            streams: Queue::new(STREAMS_WAITING),
            requests: Queue::new(REQUESTS_PER_CONNECTION),
            requests_arriving: Semaphore::new(REQUESTS_PER_CONNECTION),
            protocol_errors: AtomicU32::new(0),
            counters,
        }
    }

    /// Sorts streams until the connection is gone. Holds it weakly: this task must not keep it open.
    pub(super) async fn run(self: &Arc<Self>, quinn: &Connection, link: &Weak<Link>) {
        let mut opening = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                Some(_) = opening.join_next() => {}
                stream = quinn.accept_bi() => {
                    let Ok((mut send, mut recv)) = stream else { break };
                    if opening.len() >= STREAMS_WAITING {
                        refuse(&mut send, &mut recv, CloseReason::TooBusy);
                    } else {
                        let (inbound, link) = (self.clone(), link.clone());
                        opening.spawn(async move { inbound.sort(send, recv, &link).await });
                    }
                }
            }
        }
        self.streams.close();
        self.requests.close();
    }

    /// Drops what nobody took, and takes no more.
    pub(super) fn clear(&self) {
        self.streams.clear();
        self.requests.clear();
    }

    /// Reads the first byte of a stream and brings the stream to where it belongs.
    async fn sort(&self, mut send: SendStream, mut recv: RecvStream, link: &Weak<Link>) {
        let Ok(Ok(Some(first))) = timeout(STREAM_TYPE_DEADLINE, recv.read_chunk(1, true)).await else {
            // Silent, empty, or given up by the peer.
            return refuse(&mut send, &mut recv, CloseReason::Done);
        };
        let stream_type = first.bytes.first().copied().and_then(StreamType::from_byte);
        let Some(link) = link.upgrade() else { return refuse(&mut send, &mut recv, CloseReason::Done) };
        match stream_type {
            Some(StreamType::Application(priority)) => {
                let send = QuicSend::new(send, link.clone(), priority);
                let stream: BiStream = (Box::new(send), Box::new(QuicRecv::new(recv, link)));
                if let Err((mut send, mut recv)) = self.streams.push(stream) {
                    send.reset(CloseReason::TooBusy);
                    recv.stop(CloseReason::TooBusy);
                }
            }
            Some(StreamType::Request) => self.read_request(send, recv, link).await,
            Some(StreamType::Paths) => {
                let waiting = self.paths.lock().unwrap_or_else(PoisonError::into_inner).take();
                let refused = match waiting {
                    Some(waiting) => waiting.send((send, recv)),
                    None => Err((send, recv)),
                };
                // Nobody keeps paths here, or there is such a stream already.
                if let Err((mut send, mut recv)) = refused {
                    refuse(&mut send, &mut recv, CloseReason::TooBusy);
                }
            }
            // A second hello, or something that a later version may know.
            Some(StreamType::Hello) | None => {
                refuse(&mut send, &mut recv, CloseReason::BadFrame);
                self.on_protocol_error(&link);
            }
        }
    }

    async fn read_request(&self, mut send: SendStream, mut recv: RecvStream, link: Arc<Link>) {
        let Ok(_place) = self.requests_arriving.try_acquire() else {
            return refuse(&mut send, &mut recv, CloseReason::TooBusy);
        };
        match timeout(STREAM_TYPE_DEADLINE, read_in_order(&mut recv, REQUEST_MAX_BYTES)).await {
            Ok(Ok(request)) => {
                let answer = QuicSend::new(send, link, Priority::Low);
                let answer = Box::new(answer.with_budget("response bytes", REQUEST_MAX_BYTES));
                let incoming = IncomingRequest { request: request.into(), answer };
                if let Err(mut incoming) = self.requests.push(incoming) {
                    incoming.answer.reset(CloseReason::TooBusy);
                }
            }
            Ok(Err(ReadToEndError::TooLong)) => {
                refuse(&mut send, &mut recv, CloseReason::BadFrame);
                self.on_protocol_error(&link);
            }
            Ok(Err(ReadToEndError::Read(_))) | Err(_) => refuse(&mut send, &mut recv, CloseReason::Done),
        }
    }

    fn on_protocol_error(&self, link: &Link) {
        self.counters.protocol_errors.add();
        if self.protocol_errors.fetch_add(1, Ordering::Relaxed) + 1 >= PROTOCOL_ERRORS_PER_CONNECTION {
            link.quinn.close(code(CloseReason::BadFrame), b"");
        }
    }
}

/// The rest of a stream of which the beginning was read. `RecvStream::read_to_end` reads out of order, and quinn-proto 0.11.19
/// counts what it then drops as a duplicate of the beginning twice: it panics, or without overflow checks gives out credit for
/// ever.
async fn read_in_order(recv: &mut RecvStream, most: usize) -> Result<Vec<u8>, ReadToEndError> {
    let mut whole = Vec::new();
    while let Some(chunk) = recv.read_chunk(most + 1, true).await.map_err(ReadToEndError::Read)? {
        whole.extend_from_slice(&chunk.bytes);
        if whole.len() > most {
            return Err(ReadToEndError::TooLong);
        }
    }
    Ok(whole)
}

/// Ends both halves of one stream; each may have ended already.
fn refuse(send: &mut SendStream, recv: &mut RecvStream, reason: CloseReason) {
    let _ = send.reset(code(reason));
    let _ = recv.stop(code(reason));
}
