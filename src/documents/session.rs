//! One document with one peer: from the heads that both sides announce to the end of the stream.
//!
//! Four tasks share a [`Session`]: `outgoing` owns the sending half of the document stream, `catch_up` sends what the peer
//! missed on a stream of its own, `incoming` reads the document stream and the peer's catch-up streams and verifies what
//! comes, and `ingest` stores it. Reader and writer never wait for each other. What to send is decided by the pure
//! [`Delivery`]; nothing here is remembered beyond the session, because the heads say where the next one goes on.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::context::Context;
use super::error::SessionError;
use super::open_document::OpenDocument;
use super::{catch_up, incoming, ingest, outgoing};
use crate::ids::PeerId;
use crate::operation::SeqNum;
use crate::store::{Position, StoreError};
use crate::sync::delivery::Delivery;
use crate::sync::tokens::Token;
use crate::sync::wire::{DocumentFrame, Refusal};
use crate::transport::{BiStream, CloseReason, Connection, RecvHalf};

/// Batches of verified operations between `incoming` and `ingest`. Full: the reader waits, and with it the peer.
const INGEST_QUEUE: usize = 4;

/// The catch-up streams that the peer opens, one session after the other.
pub(super) type CatchUpStreams = Arc<AsyncMutex<mpsc::Receiver<Box<dyn RecvHalf>>>>;

/// What a session is about and with whom.
#[derive(Debug, Clone)]
pub(super) struct SessionKey {
    pub document: Arc<OpenDocument>,
    pub connection: Arc<dyn Connection>,
    pub peer: PeerId,
    /// The document's token as this side sends it.
    pub token: Token,
    /// Set whenever something comes from the peer: a heartbeat may be late on a full link.
    pub heard: Arc<AtomicBool>,
    /// True when this side dialled: it opens the document stream, and closes it when it is idle.
    pub dialled: bool,
}

/// What the tasks of a session share.
#[derive(Debug)]
pub(super) struct Session {
    pub key: SessionKey,
    pub context: Arc<Context>,
    /// Wakes `outgoing`.
    pub wake: Notify,
    /// Wakes `catch_up`.
    pub wake_catch_up: Notify,
    /// Why it failed, for the halves of its streams that are still open then.
    failed: OnceLock<CloseReason>,
    state: Mutex<SessionState>,
}

/// What they change.
#[derive(Debug)]
pub(super) struct SessionState {
    pub delivery: Delivery,
    /// Everything up to this position is `delivery`'s business already.
    pub position: Position,
    /// Durable here, to be told to the peer.
    pub acknowledgements: BTreeMap<PeerId, SeqNum>,
    /// Refusals to be told to the peer; one per author at a time.
    pub refusals: BTreeMap<PeerId, (u64, SeqNum, Refusal)>,
    /// Authors whose operations were refused until the expected one comes.
    pub asked_again: BTreeMap<PeerId, SeqNum>,
    /// Operations of ours that contradict the peer's heads, to be sent as proof of a fork.
    pub contested: Vec<(PeerId, SeqNum)>,
    /// How often the peer sent something that had to be refused.
    pub refused: u32,
    /// The peer ended its half of the document stream.
    pub peer_finished: bool,
    pub last_activity: Instant,
    next_message_id: u64,
}

impl Session {
    fn new(key: SessionKey, context: Arc<Context>) -> Self {
        let (heads, position) = key.document.heads();
        let state = SessionState {
            delivery: Delivery::new(&heads),
            position,
            acknowledgements: BTreeMap::new(),
            refusals: BTreeMap::new(),
            asked_again: BTreeMap::new(),
            contested: Vec::new(),
            refused: 0,
            peer_finished: false,
            last_activity: Instant::now(),
            next_message_id: 0,
        };
        let (wake, wake_catch_up) = (Notify::new(), Notify::new());
        Self { key, context, wake, wake_catch_up, failed: OnceLock::new(), state: Mutex::new(state) }
    }

    pub fn state(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn document(&self) -> &OpenDocument {
        &self.key.document
    }

    /// The peer's heads are known, and something may have come since: a restored store may be complete now.
    pub async fn note_own(&self) -> Result<(), StoreError> {
        let own = self.state().delivery.announced_of(&self.document().node);
        match own {
            Some(announced) => self.document().on_own_announced(announced).await,
            None => Ok(()),
        }
    }

    /// Something came from the peer: the document's status says so.
    pub fn note_synced(&self) {
        let state = self.state();
        self.document().on_synced(self.key.peer, state.delivery.announced());
    }

    /// Runs the session on its document stream; `catch_up_streams` brings the catch-up streams that the peer opens.
    /// When both sides finished, returns the position up to which everything was acknowledged, `None` if something was not.
    pub async fn run(
        key: SessionKey,
        context: Arc<Context>,
        stream: BiStream,
        catch_up_streams: CatchUpStreams,
    ) -> Result<Option<Position>, SessionError> {
        let session = Arc::new(Self::new(key, context));
        let _open = Opened::new(&session);
        let (batches, to_ingest) = mpsc::channel(INGEST_QUEUE);
        let (send, receive) = stream;
        let mut streams = JoinSet::new();
        streams.spawn(outgoing::run(Arc::clone(&session), send));
        streams.spawn(incoming::run_document_stream(Arc::clone(&session), receive, batches.clone()));
        let mut helpers = JoinSet::new();
        helpers.spawn(catch_up::run(Arc::clone(&session)));
        helpers.spawn(incoming::run_catch_up_streams(Arc::clone(&session), catch_up_streams, batches));
        helpers.spawn(ingest::run(Arc::clone(&session), to_ingest));
        loop {
            let ended = tokio::select! {
                biased;
                ended = streams.join_next() => ended,
                Some(ended) = helpers.join_next() => Some(ended),
            };
            match ended {
                None => {
                    let state = session.state();
                    return Ok((state.delivery.unacknowledged() == 0).then_some(state.position));
                }
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => return Err(session.fail(error)),
                // A task panicked: the session is over, the node goes on.
                Some(Err(_)) => return Err(session.fail(SessionError::Misbehaved("a session task ended abnormally"))),
            }
        }
    }

    /// Leaves word of the reason for the tasks that are about to be dropped, and with them their halves.
    fn fail(&self, error: SessionError) -> SessionError {
        let _ = self.failed.set(error.close_reason());
        error
    }
}

impl SessionState {
    pub fn message_id(&mut self) -> u64 {
        self.next_message_id += 1;
        self.next_message_id
    }

    /// Takes what `outgoing` should tell the peer beside operations.
    pub fn take_answers(&mut self, out: &mut Vec<u8>) {
        if !self.acknowledgements.is_empty() {
            let acknowledgements: Vec<_> = std::mem::take(&mut self.acknowledgements).into_iter().collect();
            for chunk in acknowledgements.chunks(crate::limits::HEADS_PER_FRAME) {
                DocumentFrame::Acknowledge(chunk.to_vec()).encode(out);
            }
        }
        for (author, (message_id, expected, refusal)) in std::mem::take(&mut self.refusals) {
            DocumentFrame::Refuse { message_id, author, expected, refusal }.encode(out);
        }
    }
}

/// A half of one of the session's streams. When the session fails while it is open, the peer is told why.
#[derive(Debug)]
pub(super) struct Half<H> {
    pub half: H,
    session: Arc<Session>,
    end: fn(&mut H, CloseReason),
}

impl<H> Half<H> {
    pub fn new(session: &Arc<Session>, half: H, end: fn(&mut H, CloseReason)) -> Self {
        Self { half, session: Arc::clone(session), end }
    }
}

impl<H> Drop for Half<H> {
    fn drop(&mut self) {
        if let Some(reason) = self.session.failed.get() {
            (self.end)(&mut self.half, *reason);
        }
    }
}

/// Counts the session as open for as long as it lives, however it ends.
struct Opened<'a>(&'a Session);

impl<'a> Opened<'a> {
    fn new(session: &'a Session) -> Self {
        session.document().on_session_opened(session.key.peer);
        Self(session)
    }
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.0.document().on_session_closed(self.0.key.peer);
    }
}
