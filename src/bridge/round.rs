//! One connection to a Node: greeting on the first stream, the session on the second. Reads while it writes.
//!
//! Reading does not wait for writing, since a Node writes whole logs before it reads again. Writing reads bounded pages from
//! the store. What the Node sends is stored before more of it is read, so a Node that is faster than the disk waits.

use std::time::Duration;

use bytes::Bytes;
use p2panda_core::Header;
use serde_bytes::ByteArray;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::error::BridgeError;
use super::link::{Link, add};
use super::session::{Heard, Say, Session};
use super::wire::{Cut, Frames, Greeting, Message, RawOperation};
use crate::error::OperationError;
use crate::extensions::NodeExtensions;
use crate::ids::PeerId;
use crate::limits::{
    BRIDGE_ANSWER_DEADLINE, BRIDGE_CLOSE_DEADLINE, BRIDGE_MALFORMED_PER_SESSION, BRIDGE_OFFER_AGAIN,
    BRIDGE_REFUSED_PER_SESSION, BRIDGE_VERIFY_AFTER, FRAME_MAX_BYTES, PAGE_MAX_BYTES, PAGE_MAX_OPERATIONS,
};
use crate::nodes::NodeConnection;
use crate::operation::Operation;
use crate::store::RefusedReason;
use crate::transport::{BiStream, CloseReason, RecvHalf, SendHalf, TransportError};

/// How long a session lasts at least in which something waits for the Node to store what is in flight, before its heights are
/// asked for. Doubles each time that nothing of it has arrived.
const DIGESTION: Duration = Duration::from_millis(300);
/// Longest such time.
const DIGESTION_MAX: Duration = Duration::from_secs(2);

/// Until when to wait at most, and what to do with the session then.
type Patience = (Instant, fn(&mut Session));

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
            match frames.next() {
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

/// Runs the session until it ends; `Ok` when it was closed from here, in good order.
pub(super) async fn run(
    link: &Link,
    connection: Box<dyn NodeConnection>,
    _greeted: Greeted,
) -> Result<(), BridgeError> {
    let (send, recv) = connection.open_bi().await?;
    let (heads, position) = link.document.heads();
    {
        let mut session = link.session();
        link.document.frozen().into_iter().for_each(|author| session.leave_out(author));
        session.begin(heads, position);
    }
    let wake = Notify::new();
    let mut reader = Reader::new(link, recv, &wake);
    let ended = tokio::select! {
        biased;
        ended = reader.run() => ended,
        ended = Writer::new(link, send, &wake).run() => ended,
    };
    let told = reader.told;
    match ended {
        Err(BridgeError::Connection(_)) | Ok(()) if link.session().is_closing() => Ok(()),
        Err(BridgeError::Connection(error @ TransportError::ClosedByPeer { .. })) if !told => {
            Err(BridgeError::NotOpenThere(error))
        }
        Err(error) => {
            connection.close(match error {
                BridgeError::Store(_) => CloseReason::InternalError,
                BridgeError::TooManyRefused(_) => CloseReason::BadOperation,
                _ => CloseReason::BadFrame,
            });
            Err(error)
        }
        // The Node's application closed the topic, or the Node stops.
        Ok(()) => Err(TransportError::ClosedByPeer { code: 0 }.into()),
    }
}

/// The next bytes of a stream; its end is the end of the session.
async fn read(recv: &mut dyn RecvHalf) -> Result<Bytes, TransportError> {
    recv.read(FRAME_MAX_BYTES).await?.ok_or(TransportError::ClosedByPeer { code: 0 })
}

/// Reads messages and stores what they bring.
struct Reader<'a> {
    link: &'a Link,
    recv: Box<dyn RecvHalf>,
    frames: Frames,
    wake: &'a Notify,
    /// Operations that wait to be stored together.
    batch: Vec<Operation>,
    batch_bytes: usize,
    refused: u32,
    malformed: u32,
    /// The Node told its heights.
    told: bool,
}

impl<'a> Reader<'a> {
    fn new(link: &'a Link, recv: Box<dyn RecvHalf>, wake: &'a Notify) -> Self {
        let frames = Frames::default();
        Self { link, recv, frames, wake, batch: Vec::new(), batch_bytes: 0, refused: 0, malformed: 0, told: false }
    }

    /// Until the Node ends the session.
    async fn run(&mut self) -> Result<(), BridgeError> {
        loop {
            while let Some(cut) = self.frames.next() {
                match cut {
                    Cut::Skipped => self.refuse(1)?,
                    Cut::Frame(frame) => {
                        let message = Message::read(&frame, self.link.log).ok_or(BridgeError::Unreadable)?;
                        if self.on_message(message).await? {
                            return self.store().await;
                        }
                    }
                }
                if self.batch.len() >= PAGE_MAX_OPERATIONS || self.batch_bytes >= PAGE_MAX_BYTES {
                    self.store().await?;
                }
            }
            self.store().await?;
            self.wake.notify_one();
            let chunk = match self.told {
                true => read(&mut *self.recv).await?,
                false => {
                    let answer = timeout(BRIDGE_ANSWER_DEADLINE, read(&mut *self.recv)).await;
                    answer.map_err(|_| BridgeError::Silent)??
                }
            };
            self.frames.push(&chunk);
        }
    }

    /// True when the Node wants the session to end.
    async fn on_message(&mut self, message: Message) -> Result<bool, BridgeError> {
        if message == Message::Done {
            // What came until now was the Node's own log, and is judged as that.
            self.store().await?;
        }
        let heard = self.link.session().hear(message);
        match heard.map_err(|what| BridgeError::OutOfTurn(what.0))? {
            Heard::Nothing => {}
            Heard::Close => return Ok(true),
            Heard::Heights => {
                self.told = true;
                self.link.on_connected();
                self.on_own().await?;
            }
            Heard::Operation(operation) => self.on_operation(operation)?,
        }
        if self.link.session().is_live() {
            self.link.on_live();
        }
        Ok(false)
    }

    /// The Node says what it has of this node's own operations: what it has stored is delivered, and what is not here is missing.
    async fn on_own(&mut self) -> Result<(), BridgeError> {
        let own = self.link.context.own;
        let (stored, count) = {
            let session = self.link.session();
            (session.confirmed_of(&own), session.count_of(&own))
        };
        let document = &self.link.document;
        document.on_own_announced(count).await?;
        if let Some(stored) = stored {
            document.on_own_acknowledged(self.link.node.node.key(), stored).await?;
        }
        Ok(())
    }

    fn on_operation(&mut self, operation: RawOperation) -> Result<(), BridgeError> {
        let (header, body) = operation.into_parts();
        let Some(body) = body else {
            self.leave_out(&header);
            return self.refuse(1);
        };
        match Operation::decode(self.link.log, header.clone(), body) {
            Ok(operation) => {
                self.link.session().on_theirs(operation.author(), operation.seq_num());
                self.batch_bytes += operation.size();
                self.batch.push(operation);
                Ok(())
            }
            Err(OperationError::Envelope(_) | OperationError::UnknownExtensions { .. }) => {
                self.leave_out(&header);
                self.refuse(1)
            }
            // A topic may have further logs.
            Err(OperationError::WrongLog) => self.refuse(1),
            Err(error) => {
                tracing::debug!(node = %self.link.node.node.key().short(), %error, "refused an operation");
                self.malformed += 1;
                if self.malformed > BRIDGE_MALFORMED_PER_SESSION {
                    return Err(BridgeError::TooManyRefused(self.malformed));
                }
                self.refuse(1)
            }
        }
    }

    /// Its author signed what no editor here could apply, and what follows it has no place without it.
    fn leave_out(&self, header: &[u8]) {
        if let Ok(header) = Header::<NodeExtensions>::decode(header) {
            let author = PeerId::from(header.verifying_key);
            tracing::warn!(author = %author.short(), document = %self.link.log.short(),
                "an author's log at a Node has operations of another kind, and is left out from there on");
            self.link.session().leave_out(author);
        }
    }

    async fn store(&mut self) -> Result<(), BridgeError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        let own = self.link.context.own;
        let has_own = batch.iter().any(|operation| operation.author() == own);
        let ingested = self.link.context.store.ingest(self.link.log, batch).await?;
        add(&self.link.node.received, ingested.stored.len() as u64);
        for refused in &ingested.refused {
            match refused.reason {
                RefusedReason::Fork => {
                    self.link.document.on_fork(refused.author);
                    self.link.session().leave_out(refused.author);
                }
                RefusedReason::Frozen | RefusedReason::TooManyAuthors => self.link.session().leave_out(refused.author),
                RefusedReason::Gap => self.link.session().on_gap(refused.author, refused.expected),
            }
        }
        if has_own {
            self.on_own().await?;
        }
        self.refuse(ingested.refused.len() as u32)
    }

    fn refuse(&mut self, count: u32) -> Result<(), BridgeError> {
        self.link.refuse(u64::from(count));
        self.refused += count;
        match self.refused {
            0..=BRIDGE_REFUSED_PER_SESSION => Ok(()),
            refused => Err(BridgeError::TooManyRefused(refused)),
        }
    }
}

/// Does what the session says, and waits when it has nothing to say.
struct Writer<'a> {
    link: &'a Link,
    send: Box<dyn SendHalf>,
    out: Vec<u8>,
    wake: &'a Notify,
    began: Instant,
    /// Operations of this session that are counted already.
    sent: usize,
    /// When the last of them were sent.
    sent_at: Instant,
}

impl<'a> Writer<'a> {
    fn new(link: &'a Link, send: Box<dyn SendHalf>, wake: &'a Notify) -> Self {
        let now = Instant::now();
        Self { link, send, out: Vec::new(), wake, began: now, sent: 0, sent_at: now }
    }

    async fn run(mut self) -> Result<(), BridgeError> {
        let mut newest = self.link.document.newest();
        let (store, log) = (&self.link.context.store, self.link.log);
        loop {
            let stored = *newest.borrow_and_update();
            let say = {
                let mut session = self.link.session();
                session.on_stored(stored);
                session.say()
            };
            match say {
                Say::Send(message) => {
                    message.put(log, &mut self.out);
                    if self.out.len() >= FRAME_MAX_BYTES {
                        self.flush().await?;
                    }
                }
                Say::ReadRange(range) => {
                    let page = store.author_page(log, range.author, range.first, range.last).await?;
                    self.link.session().on_range(page);
                }
                Say::ReadAfter(position) => {
                    let page = store.page_after(log, position).await?;
                    self.link.session().on_newer(page);
                }
                Say::Wait => {
                    self.flush().await?;
                    let patience = self.patience();
                    let enough = patience.map_or_else(|| Instant::now() + BRIDGE_CLOSE_DEADLINE, |(enough, _)| enough);
                    tokio::select! {
                        biased;
                        () = self.wake.notified() => {}
                        Ok(()) = newest.changed(), if patience.is_some() => {}
                        () = sleep_until(enough) => match patience {
                            Some((_, then)) => then(&mut self.link.session()),
                            // The Node does not close what was closed here.
                            None => return Ok(()),
                        },
                    }
                }
            }
        }
    }

    /// How long to wait for something to send; `None` when the session is closing.
    fn patience(&mut self) -> Option<Patience> {
        let session = self.link.session();
        let now = Instant::now();
        if session.is_closing() {
            return None;
        }
        if session.is_live() {
            self.link.on_live();
        }
        let patience: Patience = if let Some(times) = session.held_back() {
            // What came over a long time is stored by now, but for the last of it: live operations do not wait.
            let pause = (DIGESTION * 2_u32.saturating_pow(times)).min(DIGESTION_MAX);
            (self.began + pause, Session::end)
        } else if session.is_unverified() {
            (self.sent_at + BRIDGE_VERIFY_AFTER, Session::verify)
        } else if session.is_stuck() {
            (self.began + BRIDGE_OFFER_AGAIN, Session::end)
        } else {
            // Nothing to find out: until something happens.
            (now + Duration::from_secs(24 * 60 * 60), Session::end)
        };
        Some(patience)
    }

    async fn flush(&mut self) -> Result<(), BridgeError> {
        if !self.out.is_empty() {
            self.send.write(std::mem::take(&mut self.out).into()).await?;
        }
        let sent = self.link.session().sent();
        if sent > self.sent {
            add(&self.link.node.sent, (sent - self.sent) as u64);
            (self.sent, self.sent_at) = (sent, Instant::now());
        }
        Ok(())
    }
}
