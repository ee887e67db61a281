//! The sending half of a document stream: heads first, then whatever is to be said, as soon as there is something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::error::SessionError;
use super::live::Recent;
use super::session::{Half, Session};
use crate::ids::PeerId;
use crate::limits::{
    CHUNK_BYTES, DOCUMENT_STREAM_IDLE, HEADS_PER_FRAME, PAGE_MAX_OPERATIONS, PEERS_PER_FRAME, PEERS_PER_SESSION,
    PRESENCE_RENEWAL,
};
use crate::operation::Operation;
use crate::sync::wire::DocumentFrame;
use crate::transport::SendHalf;

/// Runs until the stream is idle (only the dialler ends it then), the peer ended its half, or something fails.
pub(super) async fn run(session: Arc<Session>, send: Box<dyn SendHalf>) -> Result<(), SessionError> {
    let mut send = Half::new(&session, send, |send, reason| send.reset(reason));
    let result = speak(&session, &mut send.half).await;
    match &result {
        Ok(()) => send.half.finish(),
        Err(error) => send.half.reset(error.close_reason()),
    }
    result
}

async fn speak(session: &Session, send: &mut Box<dyn SendHalf>) -> Result<(), SessionError> {
    let mut newest = session.document().watch_newest();
    let mut presence = session.document().presence.watch();
    let mut frozen = session.document().watch_frozen();
    let mut passed_on = PassedOn::default();
    let mut addresses = session.document().watch_addresses();
    addresses.mark_changed();
    send.write(greeting(session)).await?;
    loop {
        newest.borrow_and_update();
        presence.borrow_and_update();
        frozen.borrow_and_update();
        pass_on_presence(session, &mut passed_on);
        let mut out = proofs(session, &mut passed_on).await?;
        if addresses.has_changed() {
            let news = passed_on.addresses.next(session, &addresses.borrow_and_update());
            pass_on_addresses(session, &news, &mut out).await?;
            if news.len() == PEERS_PER_FRAME {
                // There may be more, for the next frame.
                addresses.mark_changed();
            }
        }
        session.state().take_answers(&mut out);
        collect_live(session, &mut out);
        if !out.is_empty() {
            session.state().last_activity = Instant::now();
            send.write(out.into()).await?;
            continue;
        }
        if session.state().peer_finished {
            return Ok(());
        }
        let idle_at = session.state().last_activity + DOCUMENT_STREAM_IDLE;
        tokio::select! {
            biased;
            () = session.wake.notified() => {}
            Ok(()) = newest.changed() => {}
            Ok(()) = presence.changed() => {}
            Ok(()) = frozen.changed() => {}
            Ok(()) = addresses.changed() => addresses.mark_changed(),
            () = tokio::time::sleep(PRESENCE_RENEWAL) => {}
            () = tokio::time::sleep_until(idle_at), if session.key.dialled => {
                // Presence needs the session, and comes in datagrams that are no activity of the stream.
                let in_use = !session.document().presence.shown(Instant::now()).0.is_empty();
                let settled = session.state().delivery.unacknowledged() == 0 && !in_use;
                if settled && session.state().last_activity + DOCUMENT_STREAM_IDLE <= Instant::now() {
                    return Ok(());
                }
                session.state().last_activity = Instant::now();
            }
        }
    }
}

/// Our heads.
fn greeting(session: &Session) -> Bytes {
    let (heads, _) = session.document().heads();
    let heads: Vec<_> = heads.into_iter().collect();
    let mut out = Vec::new();
    let frames = heads.chunks(HEADS_PER_FRAME).len().max(1);
    for index in 0..frames {
        let heads = heads.chunks(HEADS_PER_FRAME).nth(index).unwrap_or_default().to_vec();
        DocumentFrame::Heads { heads, last: index + 1 == frames }.encode(&mut out);
    }
    out.into()
}

/// Appends the addresses of these peers, but for those that the store has forgotten meanwhile.
async fn pass_on_addresses(session: &Session, peers: &[PeerId], out: &mut Vec<u8>) -> Result<(), SessionError> {
    let mut records = Vec::new();
    for peer in peers {
        let known = session.document().store.known_peer(*peer).await?;
        records.extend(known.map(|known| Bytes::from(known.address.encode())));
    }
    if !records.is_empty() {
        DocumentFrame::Peers(records).encode(out);
    }
    Ok(())
}

/// Appends newly stored operations that the peer takes live, about one frame of them; the rest comes in the next round.
fn collect_live(session: &Session, out: &mut Vec<u8>) {
    let mut state = session.state();
    let recent = session.document().recent_after(state.position, CHUNK_BYTES);
    let operations = match recent {
        Recent::Operations(operations) => operations,
        Recent::Behind => {
            let (heads, newest) = session.document().heads();
            state.delivery.on_resync(&heads);
            state.position = newest;
            Vec::new()
        }
    };
    if let Some(last) = operations.last() {
        state.position = last.position;
    }
    let live: Vec<&Operation> = operations
        .iter()
        .map(|stored| &stored.operation)
        .filter(|operation| state.delivery.takes_live(operation))
        .collect();
    for page in live.chunks(PAGE_MAX_OPERATIONS) {
        put_operations(state.message_id(), page.iter().copied(), out);
    }
    let catching_up = state.delivery.is_catching_up();
    drop(state);
    session.context.metrics.sent.increment(live.len() as u64);
    if catching_up {
        session.wake_catch_up.notify_one();
    }
}

/// Appends one frame of operations that fit one.
pub(super) fn put_operations<'a>(message_id: u64, operations: impl Iterator<Item = &'a Operation>, out: &mut Vec<u8>) {
    let operations = operations.map(|operation| (operation.header().clone(), operation.body().clone())).collect();
    DocumentFrame::Operations { message_id, operations }.encode(out);
}

/// What this session passed on already.
#[derive(Default)]
struct PassedOn {
    presence: BTreeMap<PeerId, u64>,
    proofs: BTreeSet<PeerId>,
    addresses: ToldAddresses,
}

/// Peers that the other end was told of, and when these had signed that; how often it was told of any.
#[derive(Default)]
struct ToldAddresses {
    signed_us: BTreeMap<PeerId, u64>,
    count: usize,
}

impl ToldAddresses {
    /// Other peers of the document, of those known, whose addresses are news to the other end: as many as fit a frame and as
    /// it takes in one session.
    fn next(&mut self, session: &Session, known: &BTreeMap<PeerId, u64>) -> Vec<PeerId> {
        let room = PEERS_PER_FRAME.min(PEERS_PER_SESSION - self.count);
        let ends = [session.key.peer, session.document().node];
        let told = &self.signed_us;
        let news = |(peer, signed_us): &(&PeerId, &u64)| !ends.contains(*peer) && told.get(*peer) < Some(*signed_us);
        let news: Vec<_> = known.iter().filter(news).take(room).map(|(peer, signed_us)| (*peer, *signed_us)).collect();
        self.count += news.len();
        self.signed_us.extend(news.iter().copied());
        news.into_iter().map(|(peer, _)| peer).collect()
    }
}

fn pass_on_presence(session: &Session, passed_on: &mut PassedOn) {
    let (document, context) = (session.document(), &session.context);
    document.presence.renew_own(&context.identity, document.log, Instant::now(), context.clock.now_us());
    for presence in document.presence.unsent(&mut passed_on.presence, session.key.peer) {
        session.state().last_activity = Instant::now();
        if session.key.connection.send_datagram(presence.encode(session.key.token)).is_err() {
            context.metrics.presence_dropped.increment(1);
        }
    }
}

/// Frames that prove forks: both operations of each frozen author, and ours where the peer's heads contradict them.
async fn proofs(session: &Session, passed_on: &mut PassedOn) -> Result<Vec<u8>, SessionError> {
    let document = session.document();
    let mut out = Vec::new();
    let contested = std::mem::take(&mut session.state().contested);
    for (author, seq_num) in contested {
        let page = document.store.author_page(document.log, author, seq_num, seq_num).await?;
        put_proof(session, page.first().map(|stored| &stored.operation).into_iter(), &mut out);
    }
    let frozen = document.frozen();
    if frozen.iter().any(|author| !passed_on.proofs.contains(author)) {
        for proof in document.store.fork_proofs(document.log).await? {
            if passed_on.proofs.insert(proof.kept.author()) {
                put_proof(session, [&proof.kept, &proof.other].into_iter(), &mut out);
            }
        }
    }
    Ok(out)
}

/// Operations too large for a frame are left out: the peer learns of such a fork when the logs differ again.
fn put_proof<'a>(session: &Session, operations: impl Iterator<Item = &'a Operation>, out: &mut Vec<u8>) {
    let message_id = session.state().message_id();
    for operation in operations.filter(|operation| operation.size() <= CHUNK_BYTES) {
        put_operations(message_id, std::iter::once(operation), out);
    }
}
