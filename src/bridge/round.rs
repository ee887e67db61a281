//! One connection to a Node: greeting on the first stream, the session on the second. Reads while it writes.
//!
//! Reading does not wait for writing, since a Node writes whole logs before it reads again. Writing reads bounded pages from
//! the store. What the Node sends is stored before more of it is read, so a Node that is faster than the disk waits.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use serde_bytes::ByteArray;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::error::BridgeError;
use super::link::Link;
use super::reader::Reader;
use super::wire::{Cut, Frames, Greeting};
use super::writer::Writer;
use crate::limits::{BRIDGE_ANSWER_DEADLINE, BRIDGE_PROGRESS_DEADLINE, FRAME_MAX_BYTES};
use crate::nodes::NodeConnection;
use crate::transport::{BiStream, CloseReason, RecvHalf, TransportError};

/// The first stream: it stays open, since ending it is not foreseen.
#[derive(Debug)]
pub(super) struct Greeted(#[expect(dead_code, reason = "kept open")] BiStream);

/// Tells the Node which topic this is about.
pub(super) async fn greet(link: &Link, connection: &dyn NodeConnection) -> Result<Greeted, BridgeError> {
    let greeting = async {
        let (mut send, mut recv) = connection.open_bi().await?;
        let record = link.document.record();
        let mut out = Vec::new();
        Greeting::Topic(ByteArray::new(*record.key.topic(&record.document).as_bytes())).put(&mut out);
        send.write(out.into()).await?;
        let mut frames = Frames::default();
        let answer = loop {
            match frames.cut() {
                Some(Cut::Frame(frame)) => break Greeting::read(&frame),
                Some(Cut::Skipped) => break None,
                None => frames.push(&read(&mut *recv).await?),
            }
        };
        if answer != Some(Greeting::Done) {
            return Err(BridgeError::Unreadable);
        }
        let mut out = Vec::new();
        Greeting::Done.put(&mut out);
        send.write(out.into()).await?;
        Ok(Greeted((send, recv)))
    };
    timeout(BRIDGE_ANSWER_DEADLINE, greeting).await.unwrap_or(Err(BridgeError::Silent))
}

/// What reader and writer of one session tell each other.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// Something was heard.
    pub(super) heard: Notify,
    /// Bytes went one way or the other.
    pub(super) moved: Notify,
    /// A write waits for the Node to make room.
    pub(super) is_writing: AtomicBool,
}

/// Runs the session until it ends; `Ok` when it was closed from here, and the Node took all that was said.
pub(super) async fn run(
    link: &Link,
    connection: Box<dyn NodeConnection>,
    _greeted: Greeted,
) -> Result<(), BridgeError> {
    let (send, recv) = connection.open_bi().await?;
    let (heads, position) = link.document.heads();
    {
        let mut session = link.session();
        for author in link.document.frozen() {
            session.authors.on_fork(author)?;
        }
        session.begin(heads, position);
    }
    let signals = Signals::default();
    let mut reader = Reader::new(link, recv, &signals);
    let ended = tokio::select! {
        biased;
        ended = reader.run() => ended,
        ended = Writer::new(link, send, &signals).run() => ended,
        error = watch(link, &signals) => Err(error),
    };
    let told = reader.told;
    match ended {
        Err(BridgeError::Connection(TransportError::ClosedByPeer { .. })) | Ok(()) if link.session().is_closing() => {
            Ok(())
        }
        Err(BridgeError::Connection(error @ TransportError::ClosedByPeer { .. })) if !told => {
            Err(BridgeError::NotOpenThere(error))
        }
        Err(error) => {
            connection.close(close_reason(&error));
            Err(error)
        }
        // The Node's application closed the topic, or the Node stops.
        Ok(()) => Err(TransportError::ClosedByPeer { code: 0 }.into()),
    }
}

/// What the Node is told when this ended its session.
fn close_reason(error: &BridgeError) -> CloseReason {
    match error {
        BridgeError::Store(_) => CloseReason::InternalError,
        BridgeError::TooManyRefused(_) => CloseReason::BadOperation,
        BridgeError::TooManyAuthors(_) => CloseReason::TooBusy,
        BridgeError::Silent => CloseReason::Unresponsive,
        BridgeError::Unreadable | BridgeError::OutOfTurn(_) => CloseReason::BadFrame,
        BridgeError::Connection(_) | BridgeError::NotOpenThere(_) => CloseReason::Done,
    }
}

/// Until no byte goes either way for too long although the Node owes some: it is not done, or does not take what is written.
async fn watch(link: &Link, signals: &Signals) -> BridgeError {
    loop {
        let moved = timeout(BRIDGE_PROGRESS_DEADLINE, signals.moved.notified()).await;
        let owes = !link.session().is_live() || signals.is_writing.load(Ordering::Relaxed);
        if moved.is_err() && owes {
            return BridgeError::Silent;
        }
    }
}

/// The next bytes of a stream; its end is the end of the session.
pub(super) async fn read(recv: &mut dyn RecvHalf) -> Result<Bytes, TransportError> {
    recv.read(FRAME_MAX_BYTES).await?.ok_or(TransportError::ClosedByPeer { code: 0 })
}
