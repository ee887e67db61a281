//! Everything between this node and one connected peer: the control stream, which documents are shared, and one session
//! for each of those.
//!
//! The dialler opens the control stream and the document streams; either side opens catch-up streams. A document whose
//! stream was closed for idleness is opened again by the dialler when it has something to say, and on the acceptor's `Share`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::Registry;
use super::control;
use super::error::SessionError;
use super::follow;
use super::open_document::OpenDocument;
use super::presence::SignedPresence;
use crate::address::PeerAddress;
use crate::frame::FrameDecoder;
use crate::ids::PeerId;
use crate::limits::{CONNECT_DEADLINE, FRAME_MAX_BYTES, MAX_OPEN_DOCUMENTS, PROTOCOL_ERRORS_PER_CONNECTION};
use crate::store::Heard;
use crate::sync::hello::{Hello, PROTOCOL_VERSIONS};
use crate::sync::tokens::{EXPORTER_LABEL, Role, Token};
use crate::sync::wire::{ControlFrame, StreamOpen};
use crate::transport::{BiStream, CloseReason, Connection, Priority, RecvHalf, SendHalf};
use crate::watch;

/// Streams of one document that wait for its session. Full: the stream is refused, the peer tries again.
pub(super) const STREAM_QUEUE: usize = 4;
/// Streams that may come before the control stream.
const EARLY_STREAMS: usize = MAX_OPEN_DOCUMENTS;
/// Control frames that wait to be sent.
const CONTROL_QUEUE: usize = 64;

/// How the link's tasks reach the sessions of one document.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub document: Arc<OpenDocument>,
    /// Counts the peer's `Share`s of it; 0 while the peer does not share it.
    pub shared: Arc<watch::Sender<u64>>,
    pub streams: mpsc::Sender<BiStream>,
    pub catch_up: mpsc::Sender<Box<dyn RecvHalf>>,
}

/// What the tasks of a link share.
#[derive(Debug)]
pub(super) struct Link {
    pub registry: Arc<Registry>,
    pub connection: Arc<dyn Connection>,
    pub peer: PeerId,
    pub role: Role,
    exporter: [u8; 32],
    control: mpsc::Sender<ControlFrame>,
    /// Set whenever something comes from the peer.
    pub heard: Arc<AtomicBool>,
    /// Whether the documents that are open here can be found: streams may come before.
    pub listed: watch::Sender<bool>,
    state: Mutex<LinkState>,
}

#[derive(Debug, Default)]
pub(super) struct LinkState {
    /// Documents open here, by the token that the peer uses for them.
    pub documents: BTreeMap<Token, Shared>,
    /// Tokens of the peer, of documents open here or not.
    pub peer_tokens: BTreeSet<Token>,
    /// Where the peer says it can be reached.
    address: Option<PeerAddress>,
    protocol_errors: u32,
}

impl Link {
    /// Runs until the connection is gone or the peer misbehaves; the connection is closed then.
    pub async fn run(registry: Arc<Registry>, connection: Arc<dyn Connection>) {
        let (control, frames) = mpsc::channel(CONTROL_QUEUE);
        let info = connection.info();
        let exporter = match connection.export_secret(EXPORTER_LABEL) {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::warn!(peer = %info.peer_id.short(), %error, "no exporter secret");
                return connection.close(CloseReason::InternalError);
            }
        };
        let role = if info.dialled { Role::Dialler } else { Role::Acceptor };
        let state = Mutex::default();
        let (peer, closer) = (info.peer_id, Arc::clone(&connection));
        let (heard, listed) = (Arc::default(), watch::Sender::new(false));
        let link = Arc::new(Self { registry, connection, peer, role, exporter, control, heard, listed, state });
        let span = tracing::debug_span!("peer", id = %peer.short());
        let reason = match link.drive(frames).instrument(span).await {
            Ok(()) => CloseReason::Done,
            Err(error) => {
                if error.is_peers_fault() {
                    link.registry.context.metrics.protocol_errors.increment(1);
                    tracing::warn!(peer = %peer.short(), %error, "closing the connection");
                } else {
                    tracing::debug!(peer = %peer.short(), %error, "the connection ended");
                }
                error.close_reason()
            }
        };
        closer.close(reason);
    }

    async fn drive(self: &Arc<Self>, frames: mpsc::Receiver<ControlFrame>) -> Result<(), SessionError> {
        let hello = Hello::decode(&self.connection.peer_hello())?;
        if PROTOCOL_VERSIONS.common(&hello).is_none() {
            return Err(SessionError::UnknownVersion { newest: hello.newest, oldest: hello.oldest });
        }
        let mut early = Vec::new();
        let (send, receive) = timeout(CONNECT_DEADLINE, self.control_stream(&mut early))
            .await
            .map_err(|_| SessionError::Misbehaved("no control stream in time"))??;
        let mut tasks = JoinSet::new();
        tasks.spawn(control::run_writer(Arc::clone(self), send, frames));
        tasks.spawn(control::run_reader(Arc::clone(self), receive));
        tasks.spawn(accept_streams(Arc::clone(self), early));
        tasks.spawn(read_datagrams(Arc::clone(self)));
        tasks.spawn(follow::follow_documents(Arc::clone(self)));
        tasks.spawn(control::serve_requests(Arc::clone(self)));
        tasks.spawn(control::run_heartbeat(Arc::clone(self)));
        match tasks.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Err(SessionError::Misbehaved("a link task ended abnormally")),
        }
    }

    /// Opens the control stream, or waits for it. Streams have no order between them: others that come first are kept.
    async fn control_stream(&self, early: &mut Vec<(StreamOpen, BiStream)>) -> Result<BiStream, SessionError> {
        if self.role == Role::Dialler {
            return open(&*self.connection, StreamOpen::Control, Priority::High).await;
        }
        while early.len() < EARLY_STREAMS {
            let (send, mut receive) = self.connection.accept_bi().await?;
            match read_open(&mut receive).await? {
                StreamOpen::Control => return Ok((send, receive)),
                other => early.push((other, (send, receive))),
            }
        }
        Err(SessionError::Misbehaved("the control stream is not among the first streams"))
    }

    /// Queues a control frame. The queue drains as fast as the peer reads; a link that is over takes none.
    pub async fn say(&self, frame: ControlFrame) {
        let _ = self.control.send(frame).await;
    }

    /// The peer said where it can be reached.
    pub async fn on_address(&self, address: PeerAddress) -> Result<(), SessionError> {
        if address.peer_id() != self.peer {
            return Err(SessionError::Misbehaved("an address record of another peer"));
        }
        self.state().address = Some(address);
        self.remember_peer().await
    }

    /// Keeps the peer's address with every document that it shares, for after a restart and for other peers.
    pub async fn remember_peer(&self) -> Result<(), SessionError> {
        let Some(address) = self.state().address.clone() else { return Ok(()) };
        for document in self.shared_documents() {
            let _ = self.registry.context.learned.try_send((document.record.document, address.clone()));
            document.remember_peer(address.clone(), Heard::FromItself).await?;
        }
        Ok(())
    }

    pub fn token(&self, document: &OpenDocument, role: Role) -> Token {
        Token::new(&document.record.key, &document.record.document, &self.exporter, role)
    }

    fn shared(&self, token: &Token) -> Option<Shared> {
        self.state().documents.get(token).cloned()
    }

    /// The peer shares these documents, or asks to open their streams again.
    pub async fn on_share(&self, tokens: Vec<Token>) -> Result<(), SessionError> {
        match self.note_share(tokens) {
            0..=MAX_OPEN_DOCUMENTS => self.remember_peer().await,
            _ => Err(SessionError::Misbehaved("more documents than a node may have open")),
        }
    }

    /// Returns how many documents the peer shares now.
    fn note_share(&self, tokens: Vec<Token>) -> usize {
        let mut state = self.state();
        for token in tokens {
            state.peer_tokens.insert(token);
            if let Some(shared) = state.documents.get(&token) {
                shared.shared.send_modify(|count| *count += 1);
            }
        }
        state.peer_tokens.len()
    }

    /// The peer closed these documents.
    pub fn on_unshare(&self, tokens: Vec<Token>) {
        let mut state = self.state();
        for token in tokens {
            state.peer_tokens.remove(&token);
            if let Some(shared) = state.documents.get(&token) {
                shared.shared.send_replace(0);
            }
        }
    }

    /// Documents that both sides have open now.
    pub fn shared_documents(&self) -> Vec<Arc<OpenDocument>> {
        let state = self.state();
        let both = state.documents.iter().filter(|(token, _)| state.peer_tokens.contains(token));
        both.map(|(_, shared)| Arc::clone(&shared.document)).collect()
    }

    /// One more thing the peer did wrong.
    pub fn on_protocol_error(&self) -> Result<(), SessionError> {
        self.registry.context.metrics.protocol_errors.increment(1);
        let mut state = self.state();
        state.protocol_errors += 1;
        match state.protocol_errors {
            0..=PROTOCOL_ERRORS_PER_CONNECTION => Ok(()),
            _ => Err(SessionError::Misbehaved("too many protocol errors on this connection")),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a stream and says what it is for.
pub(super) async fn open(
    connection: &dyn Connection,
    open: StreamOpen,
    priority: Priority,
) -> Result<BiStream, SessionError> {
    let (mut send, receive) = connection.open_bi(priority).await?;
    let mut out = Vec::new();
    open.encode(&mut out);
    send.write(out.into()).await?;
    Ok((send, receive))
}

/// Reads exactly the first frame of a stream: the four bytes of length first, then what they announce.
async fn read_open(receive: &mut Box<dyn RecvHalf>) -> Result<StreamOpen, SessionError> {
    let mut decoder = FrameDecoder::new();
    loop {
        let wanted = decoder.missing().min(FRAME_MAX_BYTES);
        let Some(chunk) = receive.read(wanted).await? else {
            return Err(SessionError::Misbehaved("a stream without a first frame"));
        };
        decoder.push(chunk);
        if let Some(frame) = decoder.next_frame()? {
            return Ok(StreamOpen::decode(&frame)?);
        }
    }
}

/// Takes the streams that the peer opens and hands them to their sessions.
async fn accept_streams(link: Arc<Link>, early: Vec<(StreamOpen, BiStream)>) -> Result<(), SessionError> {
    for (opened, (send, receive)) in early {
        route(&link, Ok(opened), send, receive).await?;
    }
    let mut opening = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(opened) = opening.join_next() => if let Ok(Err(error)) = opened {
                let error: SessionError = error;
                if error.is_peers_fault() {
                    link.on_protocol_error()?;
                }
            },
            stream = link.connection.accept_bi(), if opening.len() < 2 * STREAM_QUEUE => {
                let (send, mut receive) = stream?;
                let link = Arc::clone(&link);
                opening.spawn(async move {
                    let opened = timeout(CONNECT_DEADLINE, read_open(&mut receive)).await;
                    let late = Err(SessionError::Misbehaved("a stream without a first frame in time"));
                    route(&link, opened.unwrap_or(late), send, receive).await
                });
            }
        }
    }
}

async fn route(
    link: &Link,
    opened: Result<StreamOpen, SessionError>,
    mut send: Box<dyn SendHalf>,
    mut receive: Box<dyn RecvHalf>,
) -> Result<(), SessionError> {
    // An error means that the link is over, and the streams with it.
    let _ = link.listed.subscribe().wait_for(|listed| *listed).await;
    let refuse = |send: &mut Box<dyn SendHalf>, receive: &mut Box<dyn RecvHalf>, reason| {
        send.reset(reason);
        receive.stop(reason);
    };
    match opened {
        Ok(StreamOpen::Document(token)) => match link.shared(&token) {
            Some(shared) => {
                // Full: a session is under way and others wait; the peer tries again.
                if let Err(full) = shared.streams.try_send((send, receive)) {
                    let (mut send, mut receive) = full.into_inner();
                    refuse(&mut send, &mut receive, CloseReason::TooBusy);
                }
            }
            None => refuse(&mut send, &mut receive, CloseReason::UnknownDocument),
        },
        Ok(StreamOpen::CatchUp(token)) => match link.shared(&token) {
            Some(shared) => {
                send.finish();
                if let Err(full) = shared.catch_up.try_send(receive) {
                    full.into_inner().stop(CloseReason::TooBusy);
                }
            }
            None => refuse(&mut send, &mut receive, CloseReason::UnknownDocument),
        },
        Ok(StreamOpen::Discovery) => match link.registry.discovery.get() {
            Some(discovery) => discovery.serve(Arc::clone(&link.connection), (send, receive)),
            None => refuse(&mut send, &mut receive, CloseReason::NotOffered),
        },
        Ok(StreamOpen::Control) => {
            refuse(&mut send, &mut receive, CloseReason::BadFrame);
            return Err(SessionError::Misbehaved("a second control stream"));
        }
        Err(error) => {
            refuse(&mut send, &mut receive, error.close_reason());
            return Err(error);
        }
    }
    Ok(())
}

/// Presence arrives in datagrams.
async fn read_datagrams(link: Arc<Link>) -> Result<(), SessionError> {
    loop {
        let datagram = link.connection.read_datagram().await?;
        let taken = SignedPresence::decode(&datagram).ok().and_then(|(token, presence)| {
            let document = link.shared(&token)?.document;
            Some(document.presence.receive(document.log, presence, Instant::now()))
        });
        if taken != Some(true) {
            link.registry.context.metrics.presence_dropped.increment(1);
        }
    }
}
