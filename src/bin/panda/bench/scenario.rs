//! What two nodes are put through, step by step.

use indicatif::ProgressBar;

use super::PATIENCE;
use super::report::{Burst, CatchUp, Panda};
use crate::child::process::{Nodes, all_arrived};
use crate::child::protocol::{Command, Report, Work};
use crate::error::CliError;
use crate::figures::{Latency, per_second};
use crate::options::DurabilityArg;

/// Size of an operation's payload.
pub const OPERATION_BYTES: usize = 200;
/// Steps of a scenario, for the bar.
pub const STEPS: u64 = 5;
/// Operations a second while latency is measured.
pub const LIVE_RATE: u32 = 200;

/// Places in lists of both.
pub const PUBLISHER: usize = 0;
/// See [`PUBLISHER`].
pub const RECEIVER: usize = 1;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Echoes on raw QUIC.
    pub echoes: u32,
    /// Appends to a raw file.
    pub syncs: u32,
    /// Seconds of live operations.
    live_s: u32,
    /// Operations of the burst.
    burst: u32,
    /// Operations missed while offline, one run each.
    missed: [u32; 2],
}

impl Sizes {
    /// For figures to publish.
    pub fn full() -> Self {
        Self { echoes: 5000, syncs: 300, live_s: 15, burst: 10_000, missed: [10_000, 100_000] }
    }

    /// For a first look.
    pub fn quick() -> Self {
        Self { echoes: 1000, syncs: 50, live_s: 3, burst: 2000, missed: [1000, 10_000] }
    }
}

/// Runs all steps.
///
/// # Errors
/// When a node fails or a step does not end.
pub async fn run(
    nodes: &mut Nodes,
    sizes: &Sizes,
    bar: &ProgressBar,
    durability: DurabilityArg,
) -> Result<Panda, CliError> {
    let step = |text: &str| {
        bar.inc(1);
        bar.set_message(format!("{durability}: {text}"));
    };
    bar.set_message(format!("{durability}: connecting"));
    nodes.share_document().await?;
    let connected = |reports: &[Report]| reports.iter().all(|report| report.peers == 1);
    let reports = nodes.wait_until("both are connected", PATIENCE, |_| (), connected).await?;
    let connect_ms = reports[RECEIVER].connected_after_us.unwrap_or_default() as f64 / 1000.0;
    let memory_before_kib = memory(nodes);
    step("live latency");
    let (latency, wire_bytes_per_operation) = live(nodes, sizes.live_s).await?;
    step("burst");
    let burst = burst(nodes, sizes.burst).await?;
    let mut catch_up = Vec::new();
    for operations in sizes.missed {
        step(&format!("catching up on {operations} operations"));
        catch_up.push(miss_and_catch_up(nodes, operations).await?);
    }
    let memory_after_kib = memory(nodes);
    step("done");
    Ok(Panda { connect_ms, latency, wire_bytes_per_operation, burst, catch_up, memory_before_kib, memory_after_kib })
}

async fn live(nodes: &mut Nodes, seconds: u32) -> Result<(Latency, f64), CliError> {
    let operations = LIVE_RATE * seconds;
    let before = nodes.node(PUBLISHER).report().await?.wire_bytes;
    nodes.node(RECEIVER).tell(Command::Measure(true)).await?;
    publish(nodes, operations, LIVE_RATE).await?;
    let reports = nodes.wait_until("live operations have arrived", PATIENCE, |_| (), all_arrived).await?;
    let latencies = nodes.node(RECEIVER).latencies().await?;
    nodes.node(RECEIVER).tell(Command::Measure(false)).await?;
    let bytes = reports[PUBLISHER].wire_bytes.saturating_sub(before);
    Ok((Latency::from_us(latencies), bytes as f64 / f64::from(operations)))
}

async fn burst(nodes: &mut Nodes, operations: u32) -> Result<Burst, CliError> {
    publish(nodes, operations, 0).await?;
    let acknowledged = |reports: &[Report]| all_arrived(reports) && reports[PUBLISHER].acknowledged_after_us.is_some();
    let reports = nodes.wait_until("the burst is acknowledged", PATIENCE, |_| (), acknowledged).await?;
    let rate = |elapsed: Option<u64>| per_second(operations.into(), elapsed.unwrap_or(u64::MAX));
    Ok(Burst {
        operations,
        durable_per_second: rate(reports[PUBLISHER].durable_after_us),
        acknowledged_per_second: rate(reports[PUBLISHER].acknowledged_after_us),
    })
}

async fn miss_and_catch_up(nodes: &mut Nodes, operations: u32) -> Result<CatchUp, CliError> {
    nodes.node(RECEIVER).tell(Command::SetConnected(false)).await?;
    publish(nodes, operations, 0).await?;
    let published = |reports: &[Report]| !reports[PUBLISHER].working;
    let reports = nodes.wait_until("everything is published", PATIENCE, |_| (), published).await?;
    let before = reports[PUBLISHER].wire_bytes;
    nodes.node(RECEIVER).tell(Command::SetConnected(true)).await?;
    let reports = nodes.wait_until("the receiver has caught up", PATIENCE, |_| (), all_arrived).await?;
    let elapsed_us = reports[RECEIVER].caught_up_after_us.unwrap_or(u64::MAX);
    let bytes = reports[PUBLISHER].wire_bytes.saturating_sub(before);
    Ok(CatchUp {
        operations,
        seconds: elapsed_us as f64 / 1e6,
        per_second: per_second(operations.into(), elapsed_us),
        wire_bytes_per_operation: bytes as f64 / f64::from(operations),
    })
}

async fn publish(nodes: &mut Nodes, operations: u32, per_second: u32) -> Result<(), CliError> {
    let work = Work::Fill { operations, bytes: OPERATION_BYTES, per_second };
    nodes.node(PUBLISHER).tell(Command::Work(work)).await
}

fn memory(nodes: &mut Nodes) -> Vec<Option<u64>> {
    nodes.iter_mut().map(|node| node.resident_kib()).collect()
}
