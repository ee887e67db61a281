//! What the peer missed, page by page from the store, on a stream of its own beside the live one.

use std::sync::Arc;

use bytes::Bytes;

use super::error::SessionError;
use super::outgoing::put_operations;
use super::session::{Half, Session};
use crate::limits::CHUNK_BYTES;
use crate::operation::Operation;
use crate::store::StoredOperation;
use crate::sync::wire::{DocumentFrame, StreamOpen};
use crate::transport::{Priority, SendHalf};

/// Opens a stream whenever the peer lags, and closes it when the peer acknowledged everything that went over it.
pub(super) async fn run(session: Arc<Session>) -> Result<(), SessionError> {
    loop {
        while !session.state().delivery.has_page() {
            session.wake_catch_up.notified().await;
        }
        let (send, _receive) = session.key.connection.open_bi(Priority::Medium).await?;
        let mut send = Half::new(&session, send, |send, reason| send.reset(reason));
        let result = send_pages(&session, &mut send.half).await;
        match &result {
            Ok(()) => send.half.finish(),
            Err(error) => send.half.reset(error.close_reason()),
        }
        result?;
    }
}

async fn send_pages(session: &Session, send: &mut Box<dyn SendHalf>) -> Result<(), SessionError> {
    let mut out = Vec::new();
    StreamOpen::CatchUp(session.key.token).encode(&mut out);
    send.write(out.into()).await?;
    loop {
        let next = session.state().delivery.take_page();
        let Some(range) = next else {
            if !session.state().delivery.is_catching_up() {
                return Ok(());
            }
            session.wake_catch_up.notified().await;
            continue;
        };
        let document = session.document();
        let page = document.store.author_page(document.log, range.author, range.first, range.last).await?;
        let Some(last) = page.last() else {
            return Err(SessionError::Misbehaved("the store lacks operations that its heads promise"));
        };
        session.state().delivery.on_page_cut(range.author, last.operation.seq_num());
        write_page(session, send, &page).await?;
        session.context.metrics.sent.increment(page.len() as u64);
    }
}

/// Writes a page as frames of at most `CHUNK_BYTES`; an operation larger than that goes in chunks.
async fn write_page(
    session: &Session,
    send: &mut Box<dyn SendHalf>,
    page: &[StoredOperation],
) -> Result<(), SessionError> {
    let mut rest = page;
    while let Some(first) = rest.first() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|stored| {
            bytes += stored.operation.size();
            bytes <= CHUNK_BYTES
        });
        let (batch, after) = rest.split_at(fits.count().max(1));
        rest = after;
        let message_id = session.state().message_id();
        if first.operation.size() > CHUNK_BYTES {
            write_large(message_id, send, &first.operation).await?;
            continue;
        }
        let mut out = Vec::with_capacity(CHUNK_BYTES + CHUNK_BYTES / 8);
        put_operations(message_id, batch.iter().map(|stored| &stored.operation), &mut out);
        send.write(out.into()).await?;
    }
    Ok(())
}

async fn write_large(message_id: u64, send: &mut Box<dyn SendHalf>, operation: &Operation) -> Result<(), SessionError> {
    let (header, body) = (operation.header().clone(), operation.body());
    let mut out = Vec::new();
    // Bodies are at most 16 MiB and an envelope long.
    DocumentFrame::Large { message_id, header, body_len: body.len() as u32 }.encode(&mut out);
    send.write(out.into()).await?;
    for start in (0..body.len()).step_by(CHUNK_BYTES) {
        let chunk: Bytes = body.slice(start..body.len().min(start + CHUNK_BYTES));
        let mut out = Vec::with_capacity(chunk.len() + 16);
        DocumentFrame::Chunk(chunk).encode(&mut out);
        send.write(out.into()).await?;
    }
    Ok(())
}
