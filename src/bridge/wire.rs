//! What is said on a session's streams, byte for byte as Nodes say it (`p2panda/log_sync/v1` of p2panda 0.7).
//!
//! Every message is postcard behind a length of four bytes, big-endian. The first stream of a connection carries
//! [`Greeting`]s, the second [`Message`]s. Nodes speak of any number of logs per author; here only the document's counts.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

use super::heights::Heights;
use crate::ids::{LogId, PeerId};
use crate::limits::BRIDGE_FRAME_MAX_BYTES;
use crate::operation::{Operation, SeqNum};

/// Hashed with the network id it is the application protocol (ALPN).
const LOG_SYNC: &[u8] = b"p2panda/log_sync/v1";
/// Length of a frame.
const PREFIX_BYTES: usize = 4;

/// Name of the application protocol in a network.
pub(super) fn protocol(network: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(LOG_SYNC).update(network);
    *hasher.finalize().as_bytes()
}

/// On the first stream: who dialled names the topic, both say that they are done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Greeting {
    /// The topic of the session.
    Topic(ByteArray<32>),
    /// Understood.
    Done,
}

/// On the second stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Newest sequence number per author, of what the sender has stored.
    Have(Heights),
    /// What the sender will send now because of that.
    PreSync {
        /// How many.
        operations: u32,
        /// Bytes of their headers and bodies.
        bytes: u32,
    },
    /// One of these.
    Operation(RawOperation),
    /// That was all, or there was nothing to send.
    Done,
    /// A new operation, after everything is done.
    Live(RawOperation),
    /// The sender wants the session to end; the other side closes the connection.
    Close,
}

/// An operation as it travels: header, and a body unless that was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawOperation(ByteBuf, Option<ByteBuf>);

impl RawOperation {
    /// Header and body.
    pub fn into_parts(self) -> (Bytes, Option<Bytes>) {
        (self.0.into_vec().into(), self.1.map(|body| body.into_vec().into()))
    }
}

impl From<&Operation> for RawOperation {
    fn from(operation: &Operation) -> Self {
        Self(ByteBuf::from(operation.header().to_vec()), Some(ByteBuf::from(operation.body().to_vec())))
    }
}

/// Author to log to newest sequence number.
type LogHeights = BTreeMap<ByteArray<32>, BTreeMap<ByteArray<32>, SeqNum>>;

#[derive(Serialize, Deserialize)]
enum TopicLogSync {
    Sync(LogSync),
    Live(RawOperation),
    Close,
}

#[derive(Serialize, Deserialize)]
enum LogSync {
    Have(LogHeights),
    PreSync { total_operations: u32, total_bytes: u32 },
    Operation(RawOperation),
    Done,
}

impl Message {
    /// Appends the message as a frame.
    pub fn put(self, log: LogId, out: &mut Vec<u8>) {
        let message = match self {
            Self::Have(heights) => {
                let log = ByteArray::new(*log.as_bytes());
                let in_log = |(author, height): (PeerId, SeqNum)| {
                    (ByteArray::new(*author.as_bytes()), BTreeMap::from([(log, height)]))
                };
                TopicLogSync::Sync(LogSync::Have(heights.into_iter().map(in_log).collect()))
            }
            Self::PreSync { operations, bytes } => {
                TopicLogSync::Sync(LogSync::PreSync { total_operations: operations, total_bytes: bytes })
            }
            Self::Operation(operation) => TopicLogSync::Sync(LogSync::Operation(operation)),
            Self::Done => TopicLogSync::Sync(LogSync::Done),
            Self::Live(operation) => TopicLogSync::Live(operation),
            Self::Close => TopicLogSync::Close,
        };
        put_frame(&message, out);
    }

    /// Reads the content of a frame. `None`: it is no message.
    pub fn read(frame: &[u8], log: LogId) -> Option<Self> {
        Some(match read_frame(frame)? {
            TopicLogSync::Sync(LogSync::Have(heights)) => Self::Have(heights_in(&heights, log)?),
            TopicLogSync::Sync(LogSync::PreSync { total_operations, total_bytes }) => {
                Self::PreSync { operations: total_operations, bytes: total_bytes }
            }
            TopicLogSync::Sync(LogSync::Operation(operation)) => Self::Operation(operation),
            TopicLogSync::Sync(LogSync::Done) => Self::Done,
            TopicLogSync::Live(operation) => Self::Live(operation),
            TopicLogSync::Close => Self::Close,
        })
    }
}

fn heights_in(heights: &LogHeights, log: LogId) -> Option<Heights> {
    let log = ByteArray::new(*log.as_bytes());
    let in_log = heights.iter().filter_map(|(author, logs)| Some((author, *logs.get(&log)?)));
    in_log.map(|(author, height)| Some((PeerId::from_bytes(author).ok()?, height))).collect()
}

impl Greeting {
    /// Appends it as a frame.
    pub fn put(&self, out: &mut Vec<u8>) {
        put_frame(self, out);
    }

    /// Reads the content of a frame.
    pub fn read(frame: &[u8]) -> Option<Self> {
        read_frame(frame)
    }
}

fn put_frame(message: &impl Serialize, out: &mut Vec<u8>) {
    // Fails for no type of ours: an allocation is all that it needs.
    if let Ok(content) = postcard::to_allocvec(message) {
        out.extend_from_slice(&(content.len() as u32).to_be_bytes());
        out.extend_from_slice(&content);
    }
}

fn read_frame<'a, T: Deserialize<'a>>(frame: &'a [u8]) -> Option<T> {
    match postcard::take_from_bytes(frame) {
        Ok((message, [])) => Some(message),
        Ok(_) | Err(_) => None,
    }
}

/// What is next on a stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Cut {
    /// A whole frame.
    Frame(Bytes),
    /// One that is larger than may be; its bytes are skipped as they come.
    Skipped,
}

/// Cuts frames out of a stream. Holds at most one frame and what came behind it.
#[derive(Debug, Default)]
pub struct Frames {
    buffered: BytesMut,
    to_skip: usize,
}

impl Frames {
    /// Takes the next bytes.
    pub fn push(&mut self, chunk: &[u8]) {
        let skipped = self.to_skip.min(chunk.len());
        self.to_skip -= skipped;
        self.buffered.extend_from_slice(&chunk[skipped..]);
    }

    /// The next frame; `None` when more bytes are needed.
    pub fn cut(&mut self) -> Option<Cut> {
        let length = u32::from_be_bytes(*self.buffered.first_chunk::<PREFIX_BYTES>()?) as usize;
        if length > BRIDGE_FRAME_MAX_BYTES {
            self.buffered.advance(PREFIX_BYTES);
            let here = length.min(self.buffered.len());
            self.buffered.advance(here);
            self.to_skip = length - here;
            return Some(Cut::Skipped);
        }
        if self.buffered.len() < PREFIX_BYTES + length {
            return None;
        }
        self.buffered.advance(PREFIX_BYTES);
        Some(Cut::Frame(self.buffered.split_to(length).freeze()))
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
