//! What a test says to the nodes that it started, and what they say: one JSON value per line, on stdin and stdout.
//!
//! A Node and a node of ours speak the same: `p2panda-node` and `editor` both include this file. Bytes are lower-case hex.

use serde::{Deserialize, Serialize};

/// From the test.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The first line: start.
    Start(Start),
    /// Make a document. A node of ours alone can; a Node opens its topic.
    Create,
    /// Take part in a document: a Node by its topic, a node of ours by its ticket or, from its own data directory, by its
    /// topic.
    Open {
        /// 32 bytes in hex.
        topic: Option<String>,
        /// `panda:…`
        ticket: Option<String>,
    },
    /// Publish; every operation is answered with [`Event::Published`], in order.
    Publish {
        /// In this document.
        topic: String,
        /// How many operations.
        count: u32,
        /// How they begin; their number and the time follow, see [`Payload`].
        prefix: String,
        /// How many a second; 0 for as fast as possible.
        per_second: u32,
    },
    /// Ask for [`Event::Heads`].
    Heads {
        /// Of this document.
        topic: String,
    },
    /// Say goodbye and end.
    Stop,
}

/// How a node starts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// 32 bytes in hex: the network that Nodes are in.
    pub network: String,
    /// A Node's signing key, 32 bytes in hex. A node of ours keeps its own.
    pub key: Option<String>,
    /// Where it keeps its data; a Node without one keeps all in memory.
    pub dir: Option<String>,
    /// The UDP port on 127.0.0.1; 0 for any.
    pub port: u16,
    /// Nodes that it knows: a Node has them in its address book, ours dials them over the bridge.
    pub nodes: Vec<KnownNode>,
}

/// A Node and where it listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownNode {
    /// Its public key in hex.
    pub key: String,
    /// IP address and port.
    pub address: String,
}

/// From a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// It runs.
    Ready {
        /// Its public key in hex.
        key: String,
        /// Where it listens.
        addresses: Vec<String>,
    },
    /// A document is open.
    Opened {
        /// 32 bytes in hex.
        topic: String,
        /// From a node of ours.
        ticket: Option<String>,
    },
    /// An operation of its own is durable.
    Published(Operation),
    /// An operation reached the application, an own one after a restart included.
    Received(Operation),
    /// What it holds.
    Heads {
        /// Of this document.
        topic: String,
        /// One per author.
        heads: Vec<Head>,
    },
    /// How it goes, for people who read the output of a test that failed.
    Note {
        /// In words.
        text: String,
    },
    /// A session of a Node with a peer began or ended.
    Session {
        /// Of this document.
        topic: String,
        /// The peer's public key in hex.
        remote: String,
        /// How the session went, `None` when it begins.
        end: Option<SessionEnd>,
    },
    /// An operation or a command was refused.
    Failed {
        /// In words.
        what: String,
    },
    /// It ends in an orderly way.
    Stopped,
}

/// The end of a Node's first exchange with a peer; the session goes on, live, when there was no error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionEnd {
    /// What the Node says was wrong.
    pub error: Option<String>,
    /// Operations that it received.
    pub received: u32,
    /// Operations that it sent.
    pub sent: u32,
}

/// An operation, as the node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Operation {
    /// The document.
    pub topic: String,
    /// Public key in hex.
    pub author: String,
    /// Position in the author's log.
    pub seq: u32,
    /// Id in hex.
    pub id: String,
    /// The header as the node would send it, in hex.
    pub header: String,
    /// The body as the node would send it, in hex.
    pub body: String,
    /// When it was published or received, µs since the Unix epoch.
    pub at_us: u64,
}

/// The newest operation of an author.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Public key in hex.
    pub author: String,
    /// Position in the author's log.
    pub seq: u32,
    /// Id in hex.
    pub id: String,
}

/// What operations of the tests carry: `prefix:number:sent`, where `sent` is µs since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Which run of [`Command::Publish`].
    pub prefix: String,
    /// Position in this run, from 0.
    pub number: u32,
    /// When it was handed to the node.
    pub sent_us: u64,
}

impl Payload {
    /// As text.
    pub fn encode(&self) -> String {
        format!("{}:{}:{}", self.prefix, self.number, self.sent_us)
    }

    /// `None` when nobody encoded it so.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut parts = std::str::from_utf8(bytes).ok()?.splitn(3, ':');
        let (prefix, number, sent) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { prefix: prefix.into(), number: number.parse().ok()?, sent_us: sent.parse().ok()? })
    }
}

/// µs since the Unix epoch: one machine runs all nodes of a test, so their clocks agree.
pub fn now_us() -> u64 {
    let elapsed = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}
