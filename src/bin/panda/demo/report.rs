//! What the demo says at the end: for people as a table, for programs as JSON, and whether the promises held.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::child::process::name;
use crate::error::CliError;
use crate::figures::Latency;

/// How fast a node that was away got what it missed, and gave what the others missed.
#[derive(Debug, Clone, Serialize)]
pub struct CatchUp {
    /// How many, both ways.
    pub operations: u64,
    /// How long, from going online.
    pub seconds: f64,
    /// The rate.
    pub per_second: f64,
}

/// Outcome of the demo.
#[derive(Debug, Clone, Serialize)]
pub struct StoryReport {
    /// Both texts are the same.
    pub identical: bool,
    /// Their length.
    pub characters: usize,
    /// Operations that both published.
    pub operations: u64,
    /// Operations that waited for the other side while it was offline.
    pub queued_offline: u64,
    /// Operations that were called durable and are missing somewhere.
    pub lost: u64,
    /// Operations that arrived twice.
    pub duplicates: u32,
    /// From one editor to the other, while both were online.
    pub latency: Latency,
    /// After being offline.
    pub catch_up: CatchUp,
    /// From opening the ticket to the connection.
    pub connect_ms: f64,
    /// What a publish survived.
    pub durability: String,
    /// The whole demo.
    pub seconds: f64,
}

impl StoryReport {
    /// Whether the promises held.
    ///
    /// # Errors
    /// [`CliError::CheckFailed`] with what did not.
    pub fn check(&self) -> Result<(), CliError> {
        check(self.identical, self.lost, self.duplicates)
    }
}

impl Display for StoryReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        row(f, "documents identical", format_args!("{} ({} characters)", yes(self.identical), self.characters))?;
        row(f, "operations sent", format_args!("{}", self.operations))?;
        row(f, "queued while offline", format_args!("{}", self.queued_offline))?;
        row(f, "lost", format_args!("{} (after offline editing and one SIGKILL)", self.lost))?;
        row(f, "arrived twice", format_args!("{}", self.duplicates))?;
        row(f, "latency", format_args!("{}", self.latency))?;
        let CatchUp { operations, seconds, per_second } = &self.catch_up;
        row(f, "catch-up", format_args!("{per_second:.0} operations/s ({operations} in {seconds:.2} s)"))?;
        row(f, "connected after", format_args!("{:.1} ms", self.connect_ms))?;
        row(f, "durability", format_args!("{}", self.durability))?;
        last_row(f, "took", format_args!("{:.1} s", self.seconds))
    }
}

/// How many operations of one agent arrived, by node.
#[derive(Debug, Clone, Serialize)]
pub struct AgentCount {
    /// How many the agent made in the trace.
    pub written: usize,
    /// How many arrived on each node, each counted once.
    pub arrived: Vec<u32>,
}

/// Outcome of a replay.
#[derive(Debug, Clone, Serialize)]
pub struct ReplayReport {
    /// The trace.
    pub trace: String,
    /// Its authors.
    pub agents: usize,
    /// Its operations.
    pub operations: u64,
    /// What arrived where.
    pub arrivals: Vec<AgentCount>,
    /// All nodes have the same text.
    pub identical: bool,
    /// It is the text that the trace's own CRDT ended with; another CRDT may order concurrent insertions differently.
    pub identical_to_reference: bool,
    /// At least its characters are the same.
    pub same_characters: bool,
    /// Its length.
    pub characters: usize,
    /// Operations missing somewhere.
    pub lost: u64,
    /// Operations that arrived twice.
    pub duplicates: u32,
    /// From publish to arrival, waiting for earlier operations included.
    pub latency: Latency,
    /// Operations of all authors per second, each arriving everywhere.
    pub operations_per_second: f64,
    /// What a publish survived.
    pub durability: String,
    /// The replay.
    pub seconds: f64,
}

impl ReplayReport {
    /// Whether all nodes reached the same text with every operation exactly once.
    ///
    /// # Errors
    /// [`CliError::CheckFailed`] with what did not hold.
    pub fn check(&self) -> Result<(), CliError> {
        check(self.identical, self.lost, self.duplicates)
    }
}

impl Display for ReplayReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        row(f, "trace", format_args!("{} ({} authors, {} operations)", self.trace, self.agents, self.operations))?;
        row(f, "documents identical", format_args!("{} ({} characters)", yes(self.identical), self.characters))?;
        row(f, "as the reference", format_args!("{}", yes(self.identical_to_reference)))?;
        if !self.identical_to_reference {
            row(f, "", format_args!("same characters: {}", yes(self.same_characters)))?;
        }
        for (agent, count) in (0..).zip(&self.arrivals) {
            let AgentCount { written, arrived } = count;
            row(f, &format!("from {}", name(agent)), format_args!("{written} made, arrived by node: {arrived:?}"))?;
        }
        row(f, "lost", format_args!("{}", self.lost))?;
        row(f, "arrived twice", format_args!("{}", self.duplicates))?;
        row(f, "latency", format_args!("{}", self.latency))?;
        row(f, "rate", format_args!("{:.0} operations/s", self.operations_per_second))?;
        row(f, "durability", format_args!("{}", self.durability))?;
        last_row(f, "took", format_args!("{:.1} s", self.seconds))
    }
}

fn check(identical: bool, lost: u64, duplicates: u32) -> Result<(), CliError> {
    match (identical, lost, duplicates) {
        (true, 0, 0) => Ok(()),
        (_, 1.., _) => Err(CliError::CheckFailed(format!("{lost} operations were lost"))),
        (_, 0, 1..) => Err(CliError::CheckFailed(format!("{duplicates} operations arrived twice"))),
        (false, 0, 0) => Err(CliError::CheckFailed("the documents differ".into())),
    }
}

/// For people.
pub fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "NO" }
}

/// A label and a value.
///
/// # Errors
/// What the formatter says.
pub fn row(f: &mut Formatter<'_>, label: &str, value: fmt::Arguments<'_>) -> fmt::Result {
    last_row(f, label, value)?;
    f.write_str("\n")
}

/// The same without an end of the line.
///
/// # Errors
/// What the formatter says.
pub fn last_row(f: &mut Formatter<'_>, label: &str, value: fmt::Arguments<'_>) -> fmt::Result {
    write!(f, "  {label:<22}{value}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kept_promise_passes() {
        assert!(check(true, 0, 0).is_ok());
        for broken in [(false, 0, 0), (true, 1, 0), (true, 0, 1)] {
            assert!(check(broken.0, broken.1, broken.2).is_err());
        }
    }
}
