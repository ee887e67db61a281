//! Stores what was verified, tells the peer what is durable, and asks again for what could not be stored.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::context::Verified;
use super::error::SessionError;
use super::incoming::{claimed_author, newest_per_author};
use super::session::Session;
use crate::ids::PeerId;
use crate::limits::{DOCUMENT_MAX_AUTHORS, NACKS_PER_SESSION};
use crate::operation::{Operation, SeqNum};
use crate::store::{Refused, RefusedReason};
use crate::sync::wire::Refusal;

/// Operations that one transaction takes at most, if more than one batch waits.
const INGEST_MAX_OPERATIONS: usize = 1024;

/// Runs until the session ends.
pub(super) async fn run(session: Arc<Session>, mut batches: mpsc::Receiver<Vec<Verified>>) -> Result<(), SessionError> {
    while let Some(mut batch) = batches.recv().await {
        while batch.len() < INGEST_MAX_OPERATIONS
            && let Ok(more) = batches.try_recv()
        {
            batch.extend(more);
        }
        ingest(&session, batch).await?;
    }
    // The readers are gone, and the session with them.
    std::future::pending().await
}

async fn ingest(session: &Session, batch: Vec<Verified>) -> Result<(), SessionError> {
    let document = session.document();
    let mut operations = Vec::with_capacity(batch.len());
    for (received, verified) in batch {
        match verified {
            Ok(operation) => operations.push((received.message_id, operation)),
            Err(error) => {
                tracing::warn!(peer = %session.key.peer.short(), %error, "refused an operation");
                let author = claimed_author(&received.header)
                    .ok_or(SessionError::Misbehaved("an operation header without an author"))?;
                refuse(session, received.message_id, author, document.expected(&author), Refusal::Damaged)?;
            }
        }
    }
    let message_id = operations.last().map_or(0, |(message_id, _)| *message_id);
    let operations: Vec<Operation> = operations.into_iter().map(|(_, operation)| operation).collect();
    let newest = newest_per_author(&operations);
    let count = operations.len();
    for (author, seq_num) in &newest {
        session.state().delivery.on_peer_has(*author, *seq_num);
    }
    let ingested = document.store.ingest(document.log, operations).await?;
    let metrics = &session.context.metrics;
    metrics.received.increment(ingested.stored.len() as u64);
    metrics.duplicates.increment(ingested.duplicates as u64);
    for refused in &ingested.refused {
        on_refused(session, message_id, refused)?;
    }
    session.note_synced();
    if count > ingested.refused.len() {
        acknowledge(session, newest.keys());
    }
    if let Some(own) = newest.get(&document.node) {
        document.on_own_acknowledged(session.key.peer, *own).await?;
    }
    if newest.contains_key(&document.node) {
        session.note_own().await?;
    }
    session.wake.notify_one();
    Ok(())
}

/// Everything that is durable of these authors is acknowledged, which may be more than what just came.
fn acknowledge<'a>(session: &Session, authors: impl Iterator<Item = &'a PeerId>) {
    for author in authors {
        let durable = session.document().expected(author).checked_sub(1);
        let mut state = session.state();
        if let Some(seq_num) = durable {
            state.acknowledgements.insert(*author, seq_num);
            if state.asked_again.get(author).is_some_and(|expected| *expected <= seq_num) {
                state.asked_again.remove(author);
                state.refused = 0;
            }
        }
    }
}

fn on_refused(session: &Session, message_id: u64, refused: &Refused) -> Result<(), SessionError> {
    let refusal = match refused.reason {
        RefusedReason::Gap => Refusal::Gap,
        RefusedReason::Fork => {
            session.document().on_fork(refused.author);
            Refusal::Closed
        }
        RefusedReason::Frozen | RefusedReason::TooManyAuthors => Refusal::Closed,
    };
    let already_asked = session.state().asked_again.get(&refused.author) == Some(&refused.expected);
    if refusal == Refusal::Gap && already_asked {
        return Ok(());
    }
    refuse(session, message_id, refused.author, refused.expected, refusal)
}

fn refuse(
    session: &Session,
    message_id: u64,
    author: PeerId,
    expected: SeqNum,
    refusal: Refusal,
) -> Result<(), SessionError> {
    session.context.metrics.refused.increment(1);
    let mut state = session.state();
    state.refusals.insert(author, (message_id, expected, refusal));
    if state.refusals.len() > DOCUMENT_MAX_AUTHORS {
        return Err(SessionError::Misbehaved("it does not read what is refused"));
    }
    match refusal {
        Refusal::Closed => return Ok(()),
        Refusal::Gap | Refusal::Damaged => state.asked_again.insert(author, expected),
    };
    state.refused += 1;
    if state.refused > NACKS_PER_SESSION { Err(SessionError::Refused(state.refused)) } else { Ok(()) }
}
