//! Which documents a link shares with its peer, and one session after the other for each of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument;

use super::error::SessionError;
use super::link::{Link, STREAM_QUEUE, Shared, open};
use super::open_document::OpenDocument;
use super::session::{CatchUpStreams, Session, SessionKey};
use crate::ids::DocumentId;
use crate::store::Position;
use crate::sync::tokens::{Role, Token};
use crate::sync::wire::{ControlFrame, StreamOpen};
use crate::transport::{BiStream, Priority};
use crate::watch;

/// Wait after a session failed before the next one, doubled up to 64 times this.
const SESSION_RETRY: Duration = Duration::from_millis(500);
/// A session that lasted this long was a good one: the next wait is the shortest.
const SESSION_STABLE: Duration = Duration::from_secs(60);

/// Announces the documents that are open here, and runs a session for each that the peer shares.
pub(super) async fn follow_documents(link: Arc<Link>) -> Result<(), SessionError> {
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
                // Not shared any more, whatever the peer said: its loop ends with this, and opens no further stream.
                shared.shared.send_replace(0);
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
        link.listed.send_replace(true);
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
    // A peer that is known to share the document is not asked first: that saves a round trip.
    let mut guess = link.role == Role::Dialler && document.knows(&link.peer);
    loop {
        let stream = match guess {
            true => Some(open_document_stream(&link, &mut followed, key.token).await?),
            false => next_stream(&link, &mut followed, asleep_at, (key.token, first)).await?,
        };
        let Some(stream) = stream else { return Ok(()) };
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
            Some(Err(_)) if std::mem::take(&mut guess) && *followed.shared.borrow() == 0 => None,
            Some(unsettled) => {
                note_end(&link, &document, unsettled)?;
                tokio::time::sleep(SESSION_RETRY * 2u32.pow(failures)).await;
                failures = (failures + 1).min(6);
                None
            }
        };
        guess = false;
    }
}

async fn open_document_stream(link: &Link, followed: &mut Followed, token: Token) -> Result<BiStream, SessionError> {
    // The stream answers the peer's first `Share`, also one that is still on its way.
    followed.answered = (*followed.shared.borrow()).max(1);
    open(&*link.connection, StreamOpen::Document(token), Priority::High).await
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
    // A session may begin ahead of the peer's `Share`. An error means that the document was closed here, which ends the session
    // just as well.
    if shared.wait_for(|count| *count > 0).await.is_ok() {
        let _ = shared.wait_for(|count| *count == 0).await;
    }
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
                return Ok(Some(open_document_stream(link, followed, token).await?));
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
