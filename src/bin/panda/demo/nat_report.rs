//! What the demo between two simulated NATs says at the end.

use std::fmt::{self, Display, Formatter};

use panda_network::transport::PathKind;
use serde::Serialize;

use super::nat_world::{JITTER, LATENCY};
use super::report::{CatchUp, StoryReport, last_row, row, yes};

/// Outcome of the demo between two simulated NATs. Times are virtual but for one.
#[derive(Debug, Clone, Serialize)]
pub struct NatReport {
    /// Alice's and Bob's.
    pub nat: [&'static str; 2],
    /// The paths that Alice and Bob used, one after the other, from the first operation on until Bob goes offline.
    pub paths: [PathsSeen; 2],
    /// From the start of Bob's node, which had never been anywhere, to the first operation in his editor.
    pub first_operation_ms: f64,
    /// How long it took on the clock on the wall.
    pub wall_seconds: f64,
    /// The figures of the demo between two processes.
    #[serde(flatten)]
    pub story: StoryReport,
}

/// The paths of one node, one after the other.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct PathsSeen(Vec<PathSeen>);

/// A path that was used.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PathSeen {
    /// Which kind.
    pub path: String,
    /// When it was seen first, from the start of Bob's node.
    pub after_ms: f64,
}

impl PathsSeen {
    /// Notes the path that is used now.
    pub fn note(&mut self, path: PathKind, after_ms: f64) {
        let path = path.to_string();
        if self.settled().is_none_or(|last| last.path != path) {
            self.0.push(PathSeen { path, after_ms });
        }
    }

    /// The last one.
    pub fn settled(&self) -> Option<&PathSeen> {
        self.0.last()
    }
}

impl Display for PathsSeen {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some((first, later)) = self.0.split_first() else { return f.write_str("none") };
        write!(f, "{}", first.path)?;
        later
            .iter()
            .try_for_each(|PathSeen { path, after_ms }| write!(f, ", then {path} after {:.2} s", after_ms / 1000.0))
    }
}

impl Display for NatReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let StoryReport { identical, characters, operations, queued_offline, lost, duplicates, latency, .. } =
            &self.story;
        let nearest = LATENCY.as_millis();
        row(f, "Alice is behind", format_args!("{}", self.nat[0]))?;
        row(f, "Bob is behind", format_args!("{}", self.nat[1]))?;
        let farthest = (LATENCY + JITTER).as_millis();
        row(f, "distance", format_args!("{nearest} to {farthest} ms each way between any two places, simulated"))?;
        row(f, "documents identical", format_args!("{} ({characters} characters)", yes(*identical)))?;
        row(f, "operations sent", format_args!("{operations}"))?;
        row(f, "queued while offline", format_args!("{queued_offline}"))?;
        row(f, "lost", format_args!("{lost} (after offline editing and one crash)"))?;
        row(f, "arrived twice", format_args!("{duplicates}"))?;
        row(
            f,
            "first operation after",
            format_args!("{:.0} ms from the start of Bob's node", self.first_operation_ms),
        )?;
        row(f, "Alice's path", format_args!("{}", self.paths[0]))?;
        row(f, "Bob's path", format_args!("{}", self.paths[1]))?;
        row(f, "latency", format_args!("{latency}"))?;
        let CatchUp { operations, seconds, .. } = &self.story.catch_up;
        row(f, "catch-up", format_args!("{operations} operations in {seconds:.2} s"))?;
        last_row(
            f,
            "took",
            format_args!("{:.1} s of virtual time, {:.1} s of yours", self.story.seconds, self.wall_seconds),
        )
    }
}
