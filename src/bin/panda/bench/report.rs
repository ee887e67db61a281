//! What the bench says at the end.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use crate::figures::Latency;

/// All figures of one run.
#[derive(Debug, Serialize)]
pub struct BenchReport {
    /// Size of an operation's payload.
    pub operation_bytes: usize,
    /// One per durability.
    pub rounds: Vec<Round>,
}

/// Baselines, then two nodes.
#[derive(Debug, Serialize)]
pub struct Round {
    /// What a publish survived.
    pub durability: String,
    /// Round trip on a raw QUIC stream.
    pub echo: Latency,
    /// Append to a raw file and fsync.
    pub fsync: Latency,
    /// Two nodes.
    pub panda: Panda,
}

/// Figures of two nodes.
#[derive(Debug, Serialize)]
pub struct Panda {
    /// From opening the ticket to the connection.
    pub connect_ms: f64,
    /// One way, from publish to the other's subscription, at 200 operations a second.
    pub latency: Latency,
    /// Both directions, while live.
    pub wire_bytes_per_operation: f64,
    /// As fast as possible.
    pub burst: Burst,
    /// After being offline.
    pub catch_up: Vec<CatchUp>,
    /// Resident memory of publisher and receiver when connected.
    pub memory_before_kib: Vec<Option<u64>>,
    /// And at the end.
    pub memory_after_kib: Vec<Option<u64>>,
}

/// Publishing as fast as possible.
#[derive(Debug, Serialize)]
pub struct Burst {
    /// How many.
    pub operations: u32,
    /// Until all were durable at the publisher.
    pub durable_per_second: f64,
    /// Until the publisher knew that all were durable at the receiver.
    pub acknowledged_per_second: f64,
}

/// Getting what was missed.
#[derive(Debug, Serialize)]
pub struct CatchUp {
    /// How many.
    pub operations: u32,
    /// From going online to the last one being durable at the receiver.
    pub seconds: f64,
    /// The rate.
    pub per_second: f64,
    /// Both directions.
    pub wire_bytes_per_operation: f64,
}

impl Display for BenchReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "Operations of {} bytes, two processes on loopback", self.operation_bytes)?;
        self.rounds.iter().try_for_each(|round| round.fmt(f))
    }
}

impl Display for Round {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { durability, echo, fsync, panda } = self;
        writeln!(f, "\nDurability: {durability}")?;
        writeln!(f, "  {:<28}{echo}", "raw QUIC echo")?;
        writeln!(f, "  {:<28}{fsync}", "raw append + fsync")?;
        writeln!(f, "  {:<28}{:.1} ms", "connected after", panda.connect_ms)?;
        writeln!(f, "  {:<28}{}", "live latency, one way", panda.latency)?;
        writeln!(f, "  {:<28}{:.0} B per operation", "on the wire, live", panda.wire_bytes_per_operation)?;
        let Burst { operations, durable_per_second, acknowledged_per_second } = &panda.burst;
        writeln!(f, "  {:<28}{durable_per_second:.0} operations/s durable here", format!("burst of {operations}"))?;
        writeln!(f, "  {:<28}{acknowledged_per_second:.0} operations/s acknowledged by the other", "")?;
        for CatchUp { operations, seconds, per_second, wire_bytes_per_operation } in &panda.catch_up {
            let label = format!("catch-up of {operations}");
            writeln!(
                f,
                "  {label:<28}{per_second:.0} operations/s ({seconds:.2} s, {wire_bytes_per_operation:.0} B each)"
            )?;
        }
        let (before, after) = (mebibytes(&panda.memory_before_kib), mebibytes(&panda.memory_after_kib));
        writeln!(f, "  {:<28}{before} → {after} MiB (publisher, receiver)", "memory")
    }
}

fn mebibytes(kib: &[Option<u64>]) -> String {
    let one = |kib: &Option<u64>| kib.map_or_else(|| "?".into(), |kib| format!("{:.0}", kib as f64 / 1024.0));
    kib.iter().map(one).collect::<Vec<_>>().join(", ")
}
