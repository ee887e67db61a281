//! Editing traces of several writers: reads the `kind: concurrent` format and replays one agent's part of it.
//!
//! A transaction's positions refer to the document at the version that its parents make. In these traces an agent never
//! edits at a version that lacks something it has seen or written before (this is checked, not assumed), so one CRDT document
//! per agent is enough: operations of others are held back until a transaction of ours needs them, so that the document is
//! at exactly that version when it is edited. Pure: bytes come in and go out, the network is the caller's.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;

use flate2::read::GzDecoder;
use serde::Deserialize;
use thiserror::Error;

use crate::text_doc::{Offsets, Patch, TextDoc, TextError};

/// Largest trace after decompression, in bytes.
const TRACE_MAX_BYTES: u64 = 256 * 1024 * 1024;
/// Most agents of a trace: each becomes a process.
const TRACE_MAX_AGENTS: usize = 16;

/// A trace cannot be replayed. Whoever made the file erred, or it is of another kind.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// Not gzip, or damaged.
    #[error("not a gzip file: {0}")]
    Gzip(std::io::Error),
    /// Decompresses to too much.
    #[error("more than {TRACE_MAX_BYTES} bytes after decompression; this is not an editing trace")]
    TooLarge,
    /// Not the expected JSON.
    #[error("not an editing trace: {0}")]
    Json(#[from] serde_json::Error),
    /// A trace of another kind.
    #[error("a trace of kind {0:?}; only \"concurrent\" ones are replayed")]
    Kind(String),
    /// Number of agents.
    #[error("{0} agents; from 2 to {TRACE_MAX_AGENTS} can be replayed")]
    Agents(usize),
    /// A transaction names an agent that there is not.
    #[error("transaction {index} is of agent {agent}, there are {agents}")]
    NoSuchAgent {
        /// The transaction.
        index: usize,
        /// Its agent.
        agent: usize,
        /// How many there are.
        agents: usize,
    },
    /// A parent comes after its child.
    #[error("transaction {index} has parent {parent}, which is not before it")]
    Parent {
        /// The transaction.
        index: usize,
        /// The parent.
        parent: usize,
    },
    /// The agent goes back to a version that lacks what it had.
    #[error("transaction {0} edits an older version than its agent had; such traces are not supported")]
    GoesBack(usize),
    /// An edit outside of the text.
    #[error("an edit does not fit: {0}")]
    Text(#[from] TextError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTrace {
    kind: String,
    end_content: String,
    num_agents: usize,
    txns: Vec<RawTransaction>,
}

#[derive(Deserialize)]
struct RawTransaction {
    parents: Vec<usize>,
    agent: usize,
    patches: Vec<(u32, u32, String)>,
}

/// A trace that can be replayed.
#[derive(Debug)]
pub struct Trace {
    /// The text that its reference CRDT ends with.
    pub end_content: String,
    transactions: Vec<Vec<Transaction>>,
    offsets: Offsets,
}

/// One transaction of one agent.
#[derive(Debug)]
struct Transaction {
    /// How many transactions of each agent make the version that it edits.
    version: Vec<u32>,
    patches: Vec<Patch>,
}

impl Trace {
    /// Reads a gzipped trace.
    ///
    /// # Errors
    /// [`TraceError`], which says what is wrong with it.
    pub fn read(gzip: impl Read) -> Result<Self, TraceError> {
        let mut json = Vec::new();
        GzDecoder::new(gzip).take(TRACE_MAX_BYTES + 1).read_to_end(&mut json).map_err(TraceError::Gzip)?;
        if json.len() as u64 > TRACE_MAX_BYTES {
            return Err(TraceError::TooLarge);
        }
        Self::from_raw(serde_json::from_slice(&json)?)
    }

    fn from_raw(raw: RawTrace) -> Result<Self, TraceError> {
        let agents = raw.num_agents;
        if raw.kind != "concurrent" {
            return Err(TraceError::Kind(raw.kind));
        }
        if !(2..=TRACE_MAX_AGENTS).contains(&agents) {
            return Err(TraceError::Agents(agents));
        }
        let basic = raw.txns.iter().flat_map(|txn| &txn.patches).all(|patch| patch.2.chars().all(|c| c <= '\u{FFFF}'));
        let offsets = if basic { Offsets::BasicCharacters } else { Offsets::AnyCharacters };
        let mut transactions: Vec<Vec<Transaction>> = (0..agents).map(|_| Vec::new()).collect();
        let mut after: Vec<Vec<u32>> = Vec::with_capacity(raw.txns.len());
        let mut newest = vec![vec![0; agents]; agents];
        for (index, txn) in raw.txns.into_iter().enumerate() {
            let agent = txn.agent;
            if agent >= agents {
                return Err(TraceError::NoSuchAgent { index, agent, agents });
            }
            let version = merge_parents(index, &txn.parents, &after, agents)?;
            if version.iter().zip(&newest[agent]).any(|(now, before)| now < before) {
                return Err(TraceError::GoesBack(index));
            }
            let mut next = version.clone();
            next[agent] += 1;
            newest[agent].clone_from(&next);
            after.push(next);
            let patches = txn.patches.into_iter().map(|(at, delete, insert)| Patch { at, delete, insert }).collect();
            transactions[agent].push(Transaction { version, patches });
        }
        Ok(Self { end_content: raw.end_content, transactions, offsets })
    }

    /// How many agents wrote it.
    pub fn agents(&self) -> usize {
        self.transactions.len()
    }

    /// How many transactions an agent made.
    pub fn count(&self, agent: usize) -> usize {
        self.transactions.get(agent).map_or(0, Vec::len)
    }
}

/// The version that several parents make together: the newest of each agent.
fn merge_parents(index: usize, parents: &[usize], after: &[Vec<u32>], agents: usize) -> Result<Vec<u32>, TraceError> {
    let mut version = vec![0; agents];
    for &parent in parents {
        let known = after.get(parent).ok_or(TraceError::Parent { index, parent })?;
        for (mine, theirs) in version.iter_mut().zip(known) {
            *mine = (*mine).max(*theirs);
        }
    }
    Ok(version)
}

/// One agent at work: takes updates of the others in their order, gives its own as soon as their version is there.
pub struct Replayer {
    trace: Arc<Trace>,
    agent: usize,
    doc: TextDoc,
    applied: Vec<u32>,
    waiting: Vec<VecDeque<Vec<u8>>>,
}

impl Replayer {
    /// An agent before its first transaction.
    pub fn new(trace: Arc<Trace>, agent: usize) -> Self {
        let agents = trace.agents();
        Self {
            agent,
            doc: TextDoc::of_author(trace.offsets, agent as u32),
            applied: vec![0; agents],
            waiting: (0..agents).map(|_| VecDeque::new()).collect(),
            trace,
        }
    }

    /// Takes the next update of another agent. Own updates and unknown agents are ignored.
    pub fn receive(&mut self, agent: usize, update: Vec<u8>) {
        if agent != self.agent
            && let Some(queue) = self.waiting.get_mut(agent)
        {
            queue.push_back(update);
        }
    }

    /// Makes the next transaction if its version is here: its update. `None` when it waits or all are made.
    ///
    /// # Errors
    /// [`TraceError::Text`] when an edit does not fit its version.
    pub fn step(&mut self) -> Result<Option<Vec<u8>>, TraceError> {
        let trace = Arc::clone(&self.trace);
        let made = self.applied[self.agent] as usize;
        let Some(next) = trace.transactions.get(self.agent).and_then(|own| own.get(made)) else { return Ok(None) };
        let is_here = |(agent, &needed): (usize, &u32)| {
            agent == self.agent || self.applied[agent] as usize + self.waiting[agent].len() >= needed as usize
        };
        if !next.version.iter().enumerate().all(is_here) {
            return Ok(None);
        }
        for (agent, &needed) in next.version.iter().enumerate() {
            self.apply_until(agent, needed)?;
        }
        let update = self.doc.edit(&next.patches)?;
        self.applied[self.agent] += 1;
        Ok(Some(update))
    }

    /// True when all own transactions are made.
    pub fn is_done(&self) -> bool {
        self.applied[self.agent] as usize >= self.trace.count(self.agent)
    }

    /// The text, with everything that has come; only after the last own transaction, whose version must stay exact.
    ///
    /// # Errors
    /// [`TraceError::Text`] when an update is none.
    pub fn final_text(&mut self) -> Result<String, TraceError> {
        for agent in 0..self.waiting.len() {
            self.apply_until(agent, u32::MAX)?;
        }
        Ok(self.doc.text())
    }

    fn apply_until(&mut self, agent: usize, count: u32) -> Result<(), TraceError> {
        while self.applied[agent] < count {
            let Some(update) = self.waiting[agent].pop_front() else { break };
            self.doc.apply(&update)?;
            self.applied[agent] += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(json: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(json.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn read(txns: &str) -> Result<Trace, TraceError> {
        let json = format!(r#"{{"kind":"concurrent","endContent":"Hello!?","numAgents":2,"txns":[{txns}]}}"#);
        Trace::read(gzip(&json).as_slice())
    }

    /// Runs all agents in one place; the last ones deliver late, so that holding back is exercised.
    fn replay(trace: Trace) -> Vec<String> {
        let trace = Arc::new(trace);
        let mut agents: Vec<_> = (0..trace.agents()).map(|agent| Replayer::new(Arc::clone(&trace), agent)).collect();
        while agents.iter().any(|agent| !agent.is_done()) {
            let mut progress = false;
            for from in 0..agents.len() {
                while let Some(update) = agents[from].step().unwrap() {
                    progress = true;
                    agents.iter_mut().for_each(|agent| agent.receive(from, update.clone()));
                }
            }
            assert!(progress, "the trace waits for itself");
        }
        agents.iter_mut().map(|agent| agent.final_text().unwrap()).collect()
    }

    #[test]
    fn two_agents_that_edit_at_once_reach_the_same_text() {
        let trace = read(
            r#"{"parents":[],"agent":0,"patches":[[0,0,"Hello"]]},
               {"parents":[0],"agent":0,"patches":[[5,0,"!"]]},
               {"parents":[0],"agent":1,"patches":[[5,0,"?"]]},
               {"parents":[1,2],"agent":1,"patches":[[0,1,"J"],[1,1,"a"]]}"#,
        );
        let texts = replay(trace.unwrap());
        assert_eq!(texts[0], texts[1]);
        assert!(["Jallo!?", "Jallo?!"].contains(&texts[0].as_str()), "{}", texts[0]);
    }

    #[test]
    fn a_damaged_trace_is_named_and_never_replayed() {
        assert!(matches!(Trace::read(b"nothing".as_slice()), Err(TraceError::Gzip(_))));
        assert!(matches!(Trace::read(gzip("{}").as_slice()), Err(TraceError::Json(_))));
        assert!(matches!(
            read(r#"{"parents":[0],"agent":0,"patches":[]}"#),
            Err(TraceError::Parent { index: 0, parent: 0 })
        ));
        assert!(matches!(read(r#"{"parents":[],"agent":7,"patches":[]}"#), Err(TraceError::NoSuchAgent { .. })));
        assert!(matches!(
            read(r#"{"parents":[],"agent":0,"patches":[]},{"parents":[],"agent":0,"patches":[]}"#),
            Err(TraceError::GoesBack(1))
        ));
        let sequential = r#"{"kind":"sequential","endContent":"","numAgents":2,"txns":[]}"#;
        assert!(matches!(Trace::read(gzip(sequential).as_slice()), Err(TraceError::Kind(_))));
        let mut outside =
            Replayer::new(Arc::new(read(r#"{"parents":[],"agent":0,"patches":[[3,0,"x"]]}"#).unwrap()), 0);
        assert!(matches!(outside.step(), Err(TraceError::Text(_))));
    }

    #[test]
    fn real_traces_end_with_the_reference_text_everywhere() {
        let Some(dir) = std::env::var_os("PANDA_TRACE_DIR") else {
            // Past the capture of tests. `.ci/run` sets it where there are traces.
            let _ = writeln!(std::io::stderr(), "NOT RUN: real traces, PANDA_TRACE_DIR is not set");
            return;
        };
        for name in ["clownschool", "friendsforever"] {
            let path = std::path::Path::new(&dir).join(format!("{name}.json.gz"));
            let trace = Trace::read(std::fs::File::open(&path).unwrap()).unwrap();
            let reference = trace.end_content.clone();
            let texts = replay(trace);
            assert!(texts.iter().all(|text| *text == texts[0]), "{name}: nodes differ");
            assert_eq!(texts[0], reference, "{name}: not what the reference CRDT ended with");
            eprintln!("{name}: {} characters, identical everywhere and to the reference", reference.chars().count());
        }
    }
}
