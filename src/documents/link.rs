//! Everything between this node and one connected peer: the control stream, which documents are shared, and one session
//! for each of those.
//!
//! The dialler opens the control stream and the document streams; either side opens catch-up streams. A document whose
//! stream was closed for idleness is opened again by the dialler when it has something to say, and on the acceptor's `Share`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::Instrument;

use super::Registry;
use super::control;
use super::error::SessionError;
use super::open_document::OpenDocument;
use super::presence::SignedPresence;
use super::session::{CatchUpStreams, Session, SessionKey};
use crate::address::PeerAddress;
use crate::frame::FrameDecoder;
use crate::ids::{DocumentId, PeerId};
use crate::limits::{CONNECT_DEADLINE, FRAME_MAX_BYTES, MAX_OPEN_DOCUMENTS, PROTOCOL_ERRORS_PER_CONNECTION};
use crate::store::Position;
use crate::sync::hello::{Hello, PROTOCOL_VERSIONS};
use crate::sync::tokens::{EXPORTER_LABEL, Role, Token};
use crate::sync::wire::{ControlFrame, StreamOpen};
use crate::transport::{BiStream, CloseReason, Connection, Priority, RecvHalf, SendHalf};
use crate::watch;

/// Streams of one document that wait for its session. Full: the stream is refused, the peer tries again.
const STREAM_QUEUE: usize = 4;
/// Control frames that wait to be sent.
const CONTROL_QUEUE: usize = 64;
/// Wait after a session failed before the next one, doubled up to 64 times this.
const SESSION_RETRY: Duration = Duration::from_millis(500);
/// A session that lasted this long was a good one: the next wait is the shortest.
const SESSION_STABLE: Duration = Duration::from_secs(60);

/// How the link's tasks reach the sessions of one document.
#[derive(Debug, Clone)]
struct Shared {
    document: Arc<OpenDocument>,
    /// Counts the peer's `Share`s of it; 0 while the peer does not share it.
    shared: Arc<watch::Sender<u64>>,
    streams: mpsc::Sender<BiStream>,
    catch_up: mpsc::Sender<Box<dyn RecvHalf>>,
}

/// What the tasks of a link share.
#[derive(Debug)]
pub(super) struct Link {
    pub registry: Arc<Registry>,
    pub connection: Arc<dyn Connection>,
    pub peer: PeerId,
    role: Role,
    exporter: [u8; 32],
    control: mpsc::Sender<ControlFrame>,
    /// Set whenever something comes from the peer.
    pub heard: Arc<AtomicBool>,
    state: Mutex<LinkState>,
}

#[derive(Debug, Default)]
struct LinkState {
    /// Documents open here, by the token that the peer uses for them.
    documents: BTreeMap<Token, Shared>,
    /// Tokens of the peer, of documents open here or not.
    peer_tokens: BTreeSet<Token>,
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
        let link = Arc::new(Self { registry, connection, peer, role, exporter, control, heard: Arc::default(), state });
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
        let (send, receive) = timeout(CONNECT_DEADLINE, self.control_stream())
            .await
            .map_err(|_| SessionError::Misbehaved("no control stream in time"))??;
        let mut tasks = JoinSet::new();
        tasks.spawn(control::run_writer(Arc::clone(self), send, frames));
        tasks.spawn(control::run_reader(Arc::clone(self), receive));
        tasks.spawn(accept_streams(Arc::clone(self)));
        tasks.spawn(read_datagrams(Arc::clone(self)));
        tasks.spawn(follow_documents(Arc::clone(self)));
        tasks.spawn(control::serve_requests(Arc::clone(self)));
        tasks.spawn(control::run_heartbeat(Arc::clone(self)));
        match tasks.join_next().await {
            Some(Ok(result)) => result,
            Some(Err(_)) | None => Err(SessionError::Misbehaved("a link task ended abnormally")),
        }
    }

    async fn control_stream(&self) -> Result<BiStream, SessionError> {
        match self.role {
            Role::Dialler => Ok(open(&*self.connection, StreamOpen::Control, Priority::High).await?),
            Role::Acceptor => {
                let (send, mut receive) = self.connection.accept_bi().await?;
                match read_open(&mut receive).await? {
                    StreamOpen::Control => Ok((send, receive)),
                    StreamOpen::Document(_) | StreamOpen::CatchUp(_) => {
                        Err(SessionError::Misbehaved("the first stream is not the control stream"))
                    }
                }
            }
        }
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
    async fn remember_peer(&self) -> Result<(), SessionError> {
        let Some(address) = self.state().address.clone() else { return Ok(()) };
        let _ = self.registry.context.learned.try_send(address.clone());
        for document in self.shared_documents() {
            document.remember_peer(address.clone()).await?;
        }
        Ok(())
    }

    fn token(&self, document: &OpenDocument, role: Role) -> Token {
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
    fn on_protocol_error(&self) -> Result<(), SessionError> {
        self.registry.context.metrics.protocol_errors.increment(1);
        let mut state = self.state();
        state.protocol_errors += 1;
        match state.protocol_errors {
            0..=PROTOCOL_ERRORS_PER_CONNECTION => Ok(()),
            _ => Err(SessionError::Misbehaved("too many protocol errors on this connection")),
        }
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a stream and says what it is for.
async fn open(connection: &dyn Connection, open: StreamOpen, priority: Priority) -> Result<BiStream, SessionError> {
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
async fn accept_streams(link: Arc<Link>) -> Result<(), SessionError> {
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
                let (send, receive) = stream?;
                let link = Arc::clone(&link);
                opening.spawn(async move {
                    timeout(CONNECT_DEADLINE, route(&link, send, receive))
                        .await
                        .unwrap_or(Err(SessionError::Misbehaved("a stream without a first frame in time")))
                });
            }
        }
    }
}

async fn route(link: &Link, mut send: Box<dyn SendHalf>, mut receive: Box<dyn RecvHalf>) -> Result<(), SessionError> {
    let opened = read_open(&mut receive).await;
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

/// Announces the documents that are open here, and runs a session for each that the peer shares.
async fn follow_documents(link: Arc<Link>) -> Result<(), SessionError> {
    let mut changes = link.registry.watch();
    let mut known: BTreeMap<DocumentId, Token> = BTreeMap::new();
    let mut sessions = JoinSet::new();
    loop {
        changes.borrow_and_update();
        let open = link.registry.documents();
        let closed: Vec<_> = known.keys().filter(|id| !open.contains_key(id)).copied().collect();
        let mut unshare = Vec::new();
        for id in closed {
            if let Some(token) = known.remove(&id)
                && let Some(shared) = link.state().documents.remove(&token)
            {
                unshare.push(link.token(&shared.document, link.role));
            }
        }
        let mut share = Vec::new();
        for (id, document) in open {
            if known.contains_key(&id) {
                continue;
            }
            let token = link.token(&document, link.role.other());
            known.insert(id, token);
            share.push(link.token(&document, link.role));
            let span = tracing::debug_span!("document", id = %document.log.short());
            let followed = add_document(&link, token, document);
            sessions.spawn(follow_document(Arc::clone(&link), followed).instrument(span));
        }
        if !unshare.is_empty() {
            link.say(ControlFrame::Unshare(unshare)).await;
        }
        if !share.is_empty() {
            link.say(ControlFrame::Share(share)).await;
            // The peer may have shared them, and said where it is, before they were open here.
            link.remember_peer().await?;
        }
        tokio::select! {
            biased;
            Some(ended) = sessions.join_next() => if let Ok(result) = ended { result? },
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// What the session loop of one document listens to. Everything closes when the document is closed here.
struct Followed {
    document: Arc<OpenDocument>,
    shared: watch::Receiver<u64>,
    /// The peer's `Share`s that were answered with a stream: another one asks for another stream.
    answered: u64,
    streams: mpsc::Receiver<BiStream>,
    catch_up: CatchUpStreams,
}

fn add_document(link: &Link, token: Token, document: Arc<OpenDocument>) -> Followed {
    let (streams, streams_receiver) = mpsc::channel(STREAM_QUEUE);
    let (catch_up, catch_up_receiver) = mpsc::channel(STREAM_QUEUE);
    let mut state = link.state();
    let shared = Arc::new(watch::Sender::new(u64::from(state.peer_tokens.contains(&token))));
    let followed = Followed {
        document: Arc::clone(&document),
        shared: shared.subscribe(),
        answered: 0,
        streams: streams_receiver,
        catch_up: Arc::new(AsyncMutex::new(catch_up_receiver)),
    };
    state.documents.insert(token, Shared { document, shared, streams, catch_up });
    followed
}

/// One session after the other for one document, for as long as this side has it open.
async fn follow_document(link: Arc<Link>, mut followed: Followed) -> Result<(), SessionError> {
    let document = Arc::clone(&followed.document);
    let key = SessionKey {
        token: link.token(&document, link.role),
        document: Arc::clone(&document),
        connection: Arc::clone(&link.connection),
        peer: link.peer,
        heard: Arc::clone(&link.heard),
        dialled: link.role == Role::Dialler,
    };
    let (mut asleep_at, mut failures, mut first) = (None, 0, true);
    while let Some(stream) = next_stream(&link, &mut followed, asleep_at, (key.token, first)).await? {
        first = false;
        let started = Instant::now();
        let context = Arc::clone(&link.registry.context);
        let session = Session::run(key.clone(), context, stream, Arc::clone(&followed.catch_up));
        let ended = tokio::select! {
            biased;
            ended = session => Some(ended),
            () = until_unshared(&mut followed.shared) => None,
        };
        if started.elapsed() >= SESSION_STABLE {
            failures = 0;
        }
        asleep_at = match ended {
            // The next `Share` starts over.
            None => None,
            Some(Ok(Some(position))) => {
                failures = 0;
                Some(position)
            }
            Some(unsettled) => {
                note_end(&link, &document, unsettled)?;
                tokio::time::sleep(SESSION_RETRY * 2u32.pow(failures)).await;
                failures = (failures + 1).min(6);
                None
            }
        };
    }
    Ok(())
}

/// A session failed, or the peer ended it although something was left to say.
fn note_end(
    link: &Link,
    document: &OpenDocument,
    ended: Result<Option<Position>, SessionError>,
) -> Result<(), SessionError> {
    let Err(error) = ended else { return Ok(()) };
    tracing::debug!(peer = %link.peer.short(), document = %document.log.short(), %error, "session ended");
    if error.is_peers_fault() { link.on_protocol_error() } else { Ok(()) }
}

async fn until_unshared(shared: &mut watch::Receiver<u64>) {
    // An error means that the document was closed here, which ends the session just as well.
    let _ = shared.wait_for(|count| *count == 0).await;
}

/// The stream for the next session: opened by the dialler as soon as the peer shares the document, awaited by the acceptor.
///
/// After a session that ended for idleness with everything up to `asleep_at` acknowledged, there has to be news first:
/// the dialler opens the stream on an operation, a presence state or the peer's `Share`; the acceptor asks with a `Share`.
/// The acceptor also asks when a session ended otherwise: for the dialler it may have ended for idleness. A `Share` that the
/// dialler reads before the end of the session before is kept in mind. Before the `first` session the document was shared.
async fn next_stream(
    link: &Link,
    followed: &mut Followed,
    asleep_at: Option<Position>,
    (token, first): (Token, bool),
) -> Result<Option<BiStream>, SessionError> {
    let (mut newest, mut presence) = (followed.document.watch_newest(), followed.document.presence.watch());
    let mut news = asleep_at.is_none_or(|position| *newest.borrow_and_update() > position);
    let mut asked = first;
    loop {
        let shared = *followed.shared.borrow_and_update();
        if shared == 0 {
            followed.answered = 0;
        }
        match link.role {
            Role::Dialler if shared > 0 && (news || shared != followed.answered) => {
                followed.answered = shared;
                let stream = open(&*link.connection, StreamOpen::Document(token), Priority::High).await?;
                return Ok(Some(stream));
            }
            Role::Acceptor if news && !asked => {
                asked = true;
                link.say(ControlFrame::Share(vec![token])).await;
            }
            Role::Dialler | Role::Acceptor => {}
        }
        tokio::select! {
            biased;
            stream = followed.streams.recv(), if link.role == Role::Acceptor => return Ok(stream),
            changed = followed.shared.changed() => if changed.is_err() { return Ok(None) },
            Ok(()) = newest.changed(), if !news => news = true,
            Ok(()) = presence.changed(), if !news => news = true,
        }
    }
}
