//! The receiving half of a session: reads messages and stores what they bring.
//!
//! What came before an operation that cannot be stored is stored before its author is left out: nobody asks for it again.

use bytes::Bytes;
use p2panda_core::traits::Provenance;
use p2panda_core::{Hash, Header};
use tokio::time::timeout;

use super::authors::Full;
use super::error::BridgeError;
use super::link::{Link, add};
use super::round::{Signals, read};
use super::session::Heard;
use super::wire::{Cut, Frames, Message, RawOperation};
use crate::extensions::NodeExtensions;
use crate::ids::PeerId;
use crate::limits::{
    BRIDGE_ANSWER_DEADLINE, BRIDGE_MALFORMED_PER_SESSION, BRIDGE_REFUSED_PER_SESSION, PAGE_MAX_BYTES,
    PAGE_MAX_OPERATIONS, SESSION_MAX_AUTHORS,
};
use crate::operation::{Operation, SeqNum};
use crate::store::{Refused, RefusedReason};
use crate::transport::RecvHalf;

/// Reads messages and stores what they bring.
pub(super) struct Reader<'a> {
    link: &'a Link,
    recv: Box<dyn RecvHalf>,
    frames: Frames,
    signals: &'a Signals,
    /// Operations that wait to be stored together.
    batch: Vec<Operation>,
    batch_bytes: usize,
    refused: u32,
    malformed: u32,
    /// The Node told its heights.
    pub(super) told: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(link: &'a Link, recv: Box<dyn RecvHalf>, signals: &'a Signals) -> Self {
        let frames = Frames::default();
        Self { link, recv, frames, signals, batch: Vec::new(), batch_bytes: 0, refused: 0, malformed: 0, told: false }
    }

    /// Until the Node ends the session.
    pub(super) async fn run(&mut self) -> Result<(), BridgeError> {
        loop {
            while let Some(cut) = self.frames.cut() {
                match cut {
                    Cut::Skipped => self.link.refuse(1),
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
            self.signals.heard.notify_one();
            let chunk = match self.told {
                true => read(&mut *self.recv).await?,
                false => {
                    let answer = timeout(BRIDGE_ANSWER_DEADLINE, read(&mut *self.recv)).await;
                    answer.map_err(|_| BridgeError::Silent)??
                }
            };
            self.signals.moved.notify_one();
            self.frames.push(&chunk);
        }
    }

    /// True when the Node wants the session to end.
    async fn on_message(&mut self, message: Message) -> Result<bool, BridgeError> {
        if message == Message::Done {
            // What came until now was the Node's own log, and is judged as that.
            self.store().await?;
        }
        if matches!(&message, Message::Have(heights) if heights.len() > SESSION_MAX_AUTHORS) {
            return Err(Full.into());
        }
        let heard = self.link.session().hear(message)?;
        match heard {
            Heard::Nothing => {}
            Heard::Close => return Ok(true),
            Heard::Heights => {
                self.told = true;
                self.link.on_connected();
                self.on_own_announced().await?;
            }
            Heard::Operation(operation) => self.on_operation(operation).await?,
            Heard::Done => self.on_done().await?,
        }
        if self.link.session().is_live() {
            self.link.on_live();
        }
        Ok(false)
    }

    /// The Node says how many of this node's own operations it has: what is not here is missing.
    async fn on_own_announced(&mut self) -> Result<(), BridgeError> {
        let count = self.link.session().count_of(&self.link.context.own);
        Ok(self.link.document.on_own_announced(count).await?)
    }

    /// All of the Node's log was read. What it has stored of this node's own operations is delivered, unless they are others.
    async fn on_done(&mut self) -> Result<(), BridgeError> {
        let (own, document) = (self.link.context.own, &self.link.document);
        let confirmed = {
            let mut session = self.link.session();
            session.on_all_here(|author| document.newest_of(author));
            session.confirmed_of(&own).filter(|_| !session.authors.is_forked(&own))
        };
        if let Some(confirmed) = confirmed {
            document.on_own_acknowledged(self.link.node.node.key(), confirmed).await?;
        }
        Ok(())
    }

    async fn on_operation(&mut self, operation: RawOperation) -> Result<(), BridgeError> {
        let (header, body) = operation.into_parts();
        let decoded = body.clone().map(|body| Operation::decode(self.link.log, header.clone(), body));
        if let Some(Ok(operation)) = decoded {
            self.link.session().on_theirs(operation.author(), operation.seq_num());
            self.batch_bytes += operation.size();
            self.batch.push(operation);
            return Ok(());
        }
        if let Some((author, seq_num)) = signed(&header, body) {
            return self.on_foreign(author, seq_num).await;
        }
        tracing::debug!(node = %self.link.node.node.key().short(), ?decoded, "refused a damaged operation");
        self.store().await?;
        self.malformed += 1;
        if self.malformed > BRIDGE_MALFORMED_PER_SESSION {
            return Err(BridgeError::TooManyRefused(self.malformed));
        }
        self.refuse(1)
    }

    /// An author signed what no editor here could apply, or it has no body any more. What follows it has no place without it.
    async fn on_foreign(&mut self, author: PeerId, seq_num: SeqNum) -> Result<(), BridgeError> {
        if !self.link.session().authors.is_wanted(&author) {
            self.link.refuse(1);
            return Ok(());
        }
        self.store().await?;
        if self.link.document.newest_of(&author) >= Some(seq_num) {
            // The Node deleted the body, or writes it otherwise: nothing is missing here.
            self.link.refuse(1);
            return Ok(());
        }
        self.link.session().authors.leave_out(author)?;
        tracing::warn!(author = %author.short(), document = %self.link.log.short(),
            "an author's log at a Node has operations of another kind, and is left out from there on");
        self.refuse(1)
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
        let refused = self.on_refused(&ingested.refused)?;
        if has_own {
            self.on_own_announced().await?;
        }
        self.link.refuse((ingested.refused.len() - refused as usize) as u64);
        self.refuse(refused)
    }

    /// Returns how many of them count: not those whose authors are left out already.
    fn on_refused(&self, refused: &[Refused]) -> Result<u32, BridgeError> {
        let mut session = self.link.session();
        let mut counted = 0;
        for refused in refused {
            let mut counts = session.authors.is_wanted(&refused.author);
            match refused.reason {
                // Frozen: the store may know of a fork that the document was not told of.
                RefusedReason::Fork | RefusedReason::Frozen => {
                    self.link.document.on_fork(refused.author);
                    session.authors.on_fork(refused.author)?;
                }
                // There may be any number of them. Those whose logs the Node has are not asked for again.
                RefusedReason::TooManyAuthors if session.confirmed_of(&refused.author).is_none() => counts = false,
                RefusedReason::TooManyAuthors => _ = session.authors.leave_out(refused.author)?,
                RefusedReason::Gap => session.on_gap(refused.author, refused.expected),
            }
            counted += u32::from(counts);
        }
        Ok(counted)
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

/// Who signed an operation that cannot be stored, and its place in the log. `None`: it is not as it was signed, so the Node
/// damaged it, or whoever gave it to the Node.
fn signed(header: &[u8], body: Option<Bytes>) -> Option<(PeerId, SeqNum)> {
    let header = Header::<NodeExtensions>::decode(header).ok()?;
    let is_whole = body.is_none_or(|body| {
        header.payload_size as usize == body.len() && header.payload_hash == Some(Hash::digest(&body))
    });
    (is_whole && header.verify()).then(|| (header.verifying_key.into(), header.seq_num))
}
