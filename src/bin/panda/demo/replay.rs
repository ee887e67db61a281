//! Replays a recorded editing session through real nodes, one process per author, and checks the outcome.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::progress_bar;
use super::report::{AgentCount, ReplayReport};
use crate::child::process::{Nodes, all_arrived};
use crate::child::protocol::{Command, Report, Work};
use crate::error::CliError;
use crate::figures::{Latency, per_second};
use crate::options::DurabilityArg;
use crate::trace::Trace;

/// Finding each other.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// The whole replay: a slow disk at power-safe durability takes minutes.
const REPLAY_PATIENCE: Duration = Duration::from_secs(1800);

/// Reads the trace.
///
/// # Errors
/// When it cannot be read or replayed.
pub fn load(file: &Path) -> Result<Trace, CliError> {
    let gzip = std::fs::File::open(file).map_err(CliError::io("open", file))?;
    Trace::read(gzip).map_err(|source| CliError::Trace { path: file.to_path_buf(), source })
}

/// Replays it with one node per agent.
///
/// # Errors
/// When a node fails or the replay does not end. What a check finds is in the report.
pub async fn run(
    nodes: &mut Nodes,
    file: &Path,
    trace: &Trace,
    durability: DurabilityArg,
) -> Result<ReplayReport, CliError> {
    let absolute = std::path::absolute(file).map_err(CliError::io("find", file))?;
    for node in nodes.iter_mut() {
        node.tell(Command::LoadTrace { file: absolute.clone() }).await?;
    }
    nodes.share_document().await?;
    let connected = |reports: &[Report]| reports.iter().all(|report| report.peers > 0);
    nodes.wait_until("all are connected", CONNECT_PATIENCE, |_| (), connected).await?;
    let counts: Vec<usize> = (0..trace.agents()).map(|agent| trace.count(agent)).collect();
    let total: u64 = counts.iter().map(|count| *count as u64).sum();
    let bar = progress_bar(total * counts.len() as u64);
    bar.set_message(format!("{} authors, {total} edits, each to everyone", counts.len()));
    for node in nodes.iter_mut() {
        node.tell(Command::Measure(true)).await?;
    }
    let start = Instant::now();
    for node in nodes.iter_mut() {
        node.tell(Command::Work(Work::Replay)).await?;
    }
    let arrived = |report: &Report| report.arrived.values().map(|count| u64::from(*count)).sum::<u64>();
    let progress = |reports: &[Report]| bar.set_position(reports.iter().map(arrived).sum());
    let reports = nodes.wait_until("the trace is replayed", REPLAY_PATIENCE, progress, all_arrived).await?;
    let elapsed_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    bar.finish_and_clear();
    let (mut texts, mut latencies) = (Vec::new(), Vec::new());
    for node in nodes.iter_mut() {
        texts.push(node.text().await?);
        latencies.extend(node.latencies().await?);
    }
    Ok(ReplayReport {
        trace: file.display().to_string(),
        agents: counts.len(),
        operations: total,
        arrivals: count_arrivals(&reports, &counts),
        identical: texts.iter().all(|text| *text == texts[0]),
        identical_to_reference: texts[0] == trace.end_content,
        same_characters: sorted(&texts[0]) == sorted(&trace.end_content),
        characters: texts[0].chars().count(),
        lost: lost(&reports, &counts),
        duplicates: reports.iter().map(|report| report.duplicates).sum(),
        latency: Latency::from_us(latencies),
        operations_per_second: per_second(total, elapsed_us),
        durability: durability.to_string(),
        seconds: elapsed_us as f64 / 1e6,
    })
}

fn count_arrivals(reports: &[Report], counts: &[usize]) -> Vec<AgentCount> {
    let arrived = |agent: u8| reports.iter().map(|at| at.arrived.get(&agent).copied().unwrap_or(0)).collect();
    (0..=u8::MAX).zip(counts).map(|(agent, &written)| AgentCount { written, arrived: arrived(agent) }).collect()
}

fn lost(reports: &[Report], counts: &[usize]) -> u64 {
    let short = |count: &AgentCount| {
        count.arrived.iter().map(|n| (count.written as u64).saturating_sub((*n).into())).sum::<u64>()
    };
    count_arrivals(reports, counts).iter().map(short).sum()
}

fn sorted(text: &str) -> Vec<char> {
    let mut characters: Vec<char> = text.chars().collect();
    characters.sort_unstable();
    characters
}
