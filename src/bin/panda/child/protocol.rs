//! What parent and child say: one JSON value per line, one [`Reply`] per [`Command`].

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// From the parent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Edit as an agent of this trace. Before any document is opened.
    LoadTrace {
        /// The trace.
        file: PathBuf,
    },
    /// Make a document.
    Create,
    /// Open a document by its ticket.
    Open {
        /// The ticket.
        ticket: String,
    },
    /// Open the only document of the data directory, after a restart.
    Reopen,
    /// Start to work; answered at once.
    Work(Work),
    /// Go offline or online.
    SetConnected(bool),
    /// Measure the latency of operations that are sent from now on, or stop.
    Measure(bool),
    /// How far it is.
    Report,
    /// The latencies measured so far.
    Latencies,
    /// The text.
    Text,
    /// Say goodbye and end.
    Shutdown,
}

/// What a node does in the background.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Edits the text at random.
    Type {
        /// How many edits.
        operations: u32,
        /// How many a second; 0 for as fast as they become durable.
        per_second: u32,
    },
    /// Publishes bytes that mean nothing.
    Fill {
        /// How many operations.
        operations: u32,
        /// How large each is.
        bytes: usize,
        /// How many a second; 0 for as fast as they become durable.
        per_second: u32,
    },
    /// Replays its agent's part of the trace.
    Replay,
}

/// From the child.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done.
    Done,
    /// A document is open.
    Opened {
        /// Its ticket.
        ticket: String,
    },
    /// How far it is.
    Report(Report),
    /// Latencies in µs, in order of arrival.
    Latencies(Vec<u64>),
    /// The text.
    Text(String),
    /// The command failed.
    Failed(String),
}

/// How far a node is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Connected peers.
    pub peers: usize,
    /// How it speaks to the first of them.
    pub path: Option<String>,
    /// Own operations that nobody acknowledged.
    pub pending: usize,
    /// Own operations whose publish has returned, in all runs.
    pub published: u32,
    /// Operations that arrived, by agent, own ones included.
    pub arrived: BTreeMap<u8, u32>,
    /// Operations that arrived a second time.
    pub duplicates: u32,
    /// Operations that were skipped: a later one of the same agent arrived first.
    pub skipped: u32,
    /// True while work is under way.
    pub working: bool,
    /// Why the work stopped early.
    pub failure: Option<String>,
    /// Bytes sent and received on all connections since the node started.
    pub wire_bytes: u64,
    /// From opening the document to the first peer, µs.
    pub connected_after_us: Option<u64>,
    /// From the last time it went online to the newest operation that arrived, µs.
    pub caught_up_after_us: Option<u64>,
    /// From the start of the last work until all of it was durable here, µs.
    pub durable_after_us: Option<u64>,
    /// From the start of the last work until a peer had acknowledged all of it, µs.
    pub acknowledged_after_us: Option<u64>,
}
