//! The receiving side of a session: cuts frames, verifies operations off the event path, hands batches to `ingest`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::context::{Received, Verified};
use super::error::SessionError;
use super::session::{CatchUpStreams, Half, Session};
use crate::address::PeerAddress;
use crate::frame::FrameDecoder;
use crate::ids::PeerId;
use crate::limits::{DOCUMENT_MAX_AUTHORS, FRAME_MAX_BYTES, PEERS_PER_SESSION};
use crate::operation::{Head, SeqNum};
use crate::store::Heard;
use crate::sync::wire::{DocumentFrame, Refusal};
use crate::transport::RecvHalf;

/// Batches on their way to the store.
pub(super) type Batches = mpsc::Sender<Vec<Verified>>;

/// Reads the document stream to its end, which the peer sets.
pub(super) async fn run_document_stream(
    session: Arc<Session>,
    receive: Box<dyn RecvHalf>,
    batches: Batches,
) -> Result<(), SessionError> {
    let mut receive = Half::new(&session, receive, |receive, reason| receive.stop(reason));
    let mut reader = Reader::new(&session, batches, Carries::Everything);
    let result = reader.read_to_end(&mut receive.half).await;
    match &result {
        Ok(()) => {
            session.state().peer_finished = true;
            session.wake.notify_one();
        }
        // The other half is not finished as if all were well: it is reset when the session fails.
        Err(error) => receive.half.stop(error.close_reason()),
    }
    result
}

/// Reads the catch-up streams that the peer opens, one after the other.
pub(super) async fn run_catch_up_streams(
    session: Arc<Session>,
    streams: CatchUpStreams,
    batches: Batches,
) -> Result<(), SessionError> {
    let mut streams = streams.lock().await;
    while let Some(receive) = streams.recv().await {
        let mut receive = Half::new(&session, receive, |receive, reason| receive.stop(reason));
        let mut reader = Reader::new(&session, batches.clone(), Carries::Operations);
        match reader.read_to_end(&mut receive.half).await {
            // Given up by the peer, perhaps with an earlier session while it waited here. What was on it comes again.
            Ok(()) | Err(SessionError::Transport(_)) => {}
            Err(error) => {
                receive.half.stop(error.close_reason());
                return Err(error);
            }
        }
    }
    // The link is gone; the other tasks notice by themselves.
    std::future::pending().await
}

/// What a stream may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carries {
    /// The document stream.
    Everything,
    /// A catch-up stream.
    Operations,
}

/// Reads one stream.
struct Reader<'a> {
    session: &'a Session,
    carries: Carries,
    batches: Batches,
    large: Option<Large>,
    announced_heads: usize,
    announced_peers: usize,
}

/// An operation that arrives in chunks.
struct Large {
    message_id: u64,
    header: Bytes,
    body: BytesMut,
    body_len: usize,
}

impl<'a> Reader<'a> {
    fn new(session: &'a Session, batches: Batches, carries: Carries) -> Self {
        Self { session, carries, batches, large: None, announced_heads: 0, announced_peers: 0 }
    }

    async fn read_to_end(&mut self, receive: &mut Box<dyn RecvHalf>) -> Result<(), SessionError> {
        let mut decoder = FrameDecoder::new();
        while let Some(chunk) = receive.read(FRAME_MAX_BYTES).await? {
            decoder.push(chunk);
            let mut received = Vec::new();
            while let Some(frame) = decoder.next_frame()? {
                self.on_frame(DocumentFrame::decode(&frame)?, &mut received).await?;
            }
            self.session.key.heard.store(true, Ordering::Relaxed);
            self.session.state().last_activity = Instant::now();
            self.hand_over(received).await?;
        }
        Ok(decoder.finish()?)
    }

    async fn on_frame(&mut self, frame: DocumentFrame, received: &mut Vec<Received>) -> Result<(), SessionError> {
        if self.large.is_some() && !matches!(frame, DocumentFrame::Chunk(_)) {
            return Err(SessionError::Misbehaved("a large operation was not continued"));
        }
        let operations =
            matches!(frame, DocumentFrame::Operations { .. } | DocumentFrame::Large { .. } | DocumentFrame::Chunk(_));
        if self.carries == Carries::Operations && !operations {
            return Err(SessionError::Misbehaved("something else than operations on a catch-up stream"));
        }
        match frame {
            DocumentFrame::Heads { heads, last } => self.on_heads(heads, last).await,
            DocumentFrame::Operations { message_id, operations } => {
                let with_message = |(header, body)| Received { message_id, header, body };
                received.extend(operations.into_iter().map(with_message));
                Ok(())
            }
            DocumentFrame::Large { message_id, header, body_len } => {
                let body_len = body_len as usize;
                // Grows with what arrives, not with what was announced.
                self.large = Some(Large { message_id, header, body: BytesMut::new(), body_len });
                Ok(())
            }
            DocumentFrame::Chunk(bytes) => self.on_chunk(&bytes, received),
            DocumentFrame::Acknowledge(authors) => self.on_acknowledge(authors).await,
            DocumentFrame::Refuse { author, expected, refusal, .. } => self.on_refuse(author, expected, refusal),
            DocumentFrame::Peers(records) => self.on_peers(records).await,
        }
    }

    fn on_chunk(&mut self, bytes: &Bytes, received: &mut Vec<Received>) -> Result<(), SessionError> {
        let Some(large) = &mut self.large else {
            return Err(SessionError::Misbehaved("a chunk without the start of its operation"));
        };
        if large.body.len() + bytes.len() > large.body_len {
            return Err(SessionError::Misbehaved("more chunks than the operation announced"));
        }
        large.body.extend_from_slice(bytes);
        if large.body.len() == large.body_len
            && let Some(Large { message_id, header, body, .. }) = self.large.take()
        {
            received.push(Received { message_id, header, body: body.freeze() });
        }
        Ok(())
    }

    async fn on_heads(&mut self, heads: Vec<(PeerId, Head)>, last: bool) -> Result<(), SessionError> {
        self.announced_heads += heads.len();
        if self.announced_heads > DOCUMENT_MAX_AUTHORS {
            return Err(SessionError::Misbehaved("heads of more authors than a document may have"));
        }
        let document = self.session.document();
        let (ours, _) = document.heads();
        for (author, head) in heads {
            if let Some(our) = ours.get(&author)
                && our.seq_num >= head.seq_num
            {
                let here = match our.seq_num == head.seq_num {
                    true => Some(our.id),
                    false => document.store.operation_id(document.log, author, head.seq_num).await?,
                };
                if here != Some(head.id) {
                    self.session.state().contested.push((author, head.seq_num));
                }
            }
            self.session.state().delivery.on_peer_has(author, head.seq_num);
            self.on_own(author, head.seq_num).await?;
        }
        if last {
            self.session.state().delivery.on_heads_complete();
            self.session.note_own().await?;
            self.after_progress();
        }
        Ok(())
    }

    async fn on_acknowledge(&mut self, authors: Vec<(PeerId, SeqNum)>) -> Result<(), SessionError> {
        for (author, seq_num) in authors {
            let news = self.session.state().delivery.on_acknowledged(author, seq_num);
            if news {
                self.on_own(author, seq_num).await?;
            }
        }
        self.after_progress();
        Ok(())
    }

    /// The peer has an author's operations: if they are ours, that shortens the queue.
    async fn on_own(&self, author: PeerId, seq_num: SeqNum) -> Result<(), SessionError> {
        let document = self.session.document();
        if author == document.node {
            document.on_own_acknowledged(self.session.key.peer, seq_num).await?;
        }
        Ok(())
    }

    fn on_refuse(&mut self, author: PeerId, expected: SeqNum, refusal: Refusal) -> Result<(), SessionError> {
        let mut state = self.session.state();
        let forgiven = state.delivery.on_refused(author, expected, refusal);
        drop(state);
        self.after_progress();
        if forgiven { Ok(()) } else { Err(SessionError::Refused(crate::limits::NACKS_PER_SESSION)) }
    }

    async fn on_peers(&mut self, records: Vec<Bytes>) -> Result<(), SessionError> {
        self.announced_peers += records.len();
        if self.announced_peers > PEERS_PER_SESSION {
            return Err(SessionError::Misbehaved("too many peer addresses"));
        }
        let document = self.session.document();
        for record in records {
            let address = PeerAddress::decode(&record)
                .map_err(|_| SessionError::Misbehaved("an address record that its peer did not sign"))?;
            if address.peer_id() != document.node {
                document.remember_peer(address.clone(), Heard::FromOthers).await?;
                // Full: whoever makes connections is busy; the address is remembered and used after a restart.
                let _ = self.session.context.learned.try_send((document.record.document, address));
            }
        }
        Ok(())
    }

    /// Both senders look again: there may be something new to send, or nothing left to wait for.
    fn after_progress(&self) {
        self.session.note_synced();
        self.session.wake_catch_up.notify_one();
        self.session.wake.notify_one();
    }

    async fn hand_over(&mut self, received: Vec<Received>) -> Result<(), SessionError> {
        if received.is_empty() {
            return Ok(());
        }
        let verified = self.session.context.verify(self.session.document().log, received).await;
        // The receiver lives as long as the session does.
        self.batches.send(verified).await.map_err(|_| SessionError::Misbehaved("the session is over"))
    }
}

/// The author that a header claims, unverified: tells the peer what to send again.
pub(super) fn claimed_author(header: &[u8]) -> Option<PeerId> {
    let mut decoder = minicbor::Decoder::new(header);
    decoder.array().ok()?;
    decoder.skip().ok()?;
    PeerId::from_bytes(decoder.bytes().ok()?.try_into().ok()?).ok()
}

/// The newest sequence number per author in a batch.
pub(super) fn newest_per_author(batch: &[crate::operation::Operation]) -> BTreeMap<PeerId, SeqNum> {
    let mut newest = BTreeMap::new();
    for operation in batch {
        let entry = newest.entry(operation.author()).or_insert(operation.seq_num());
        *entry = (*entry).max(operation.seq_num());
    }
    newest
}
