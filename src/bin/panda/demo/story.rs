//! The demo's plot: edit together, go offline, come back, be killed, come back, be equal.

use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::{Instant, sleep};

use super::progress_bar;
use super::report::{CatchUp, StoryReport};
use crate::child::process::{Nodes, all_arrived};
use crate::child::protocol::{Command, Report, Work};
use crate::error::CliError;
use crate::figures::{Latency, per_second};
use crate::options::DurabilityArg;

/// Edits a second of each writer.
const TYPING_RATE: u32 = 100;
/// How long they edit together, in seconds.
const LIVE_S: u32 = 4;
/// How long they edit apart.
const APART_S: u32 = 2;
/// Edits that each makes as fast as it can while apart.
const APART_BURST: u32 = 1000;
/// How long each types around the kill.
const KILL_S: u32 = 2;
/// How long anything may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(40);
/// Steps of the bar.
const CHAPTERS: u64 = 7;

/// Places in lists of both.
pub const ALICE: usize = 0;
/// See [`ALICE`].
pub const BOB: usize = 1;

/// Plays it with two nodes.
///
/// # Errors
/// When a node fails or something does not happen in time. What a check finds is in the report.
pub async fn run(nodes: &mut Nodes, durability: DurabilityArg) -> Result<StoryReport, CliError> {
    let start = Instant::now();
    let bar = progress_bar(CHAPTERS);
    let chapter = |text: &'static str| {
        bar.inc(1);
        bar.set_message(text);
    };
    bar.set_message("Alice makes a document, Bob joins with her ticket");
    let connect_ms = meet(nodes).await?;
    chapter("both edit at the same time");
    let latency = edit_together(nodes).await?;
    chapter("Bob goes offline, both keep editing");
    let queued_offline = edit_apart(nodes).await?;
    chapter("Bob is back and catches up");
    let catch_up = catch_up(nodes, queued_offline).await?;
    chapter("both edit, Bob is killed (SIGKILL), Alice keeps editing");
    let acknowledged_before_kill = kill_bob(nodes).await?;
    chapter("Bob is restarted and edits on");
    revive_bob(nodes).await?;
    chapter("waiting until both have everything");
    let reports = finish(nodes, &bar, acknowledged_before_kill).await?;
    let texts = [nodes.node(ALICE).text().await?, nodes.node(BOB).text().await?];
    bar.finish_and_clear();
    Ok(StoryReport {
        identical: texts[0] == texts[1],
        characters: texts[0].chars().count(),
        operations: reports.iter().map(|report| u64::from(report.published)).sum(),
        queued_offline,
        lost: lost(&reports, acknowledged_before_kill),
        duplicates: reports.iter().map(|report| report.duplicates).sum(),
        latency,
        catch_up,
        connect_ms,
        durability: durability.to_string(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

async fn meet(nodes: &mut Nodes) -> Result<f64, CliError> {
    nodes.share_document().await?;
    let connected = |reports: &[Report]| reports.iter().all(|report| report.peers == 1);
    let reports = nodes.wait_until("both are connected", PATIENCE, |_| (), connected).await?;
    Ok(reports[BOB].connected_after_us.unwrap_or_default() as f64 / 1000.0)
}

async fn edit_together(nodes: &mut Nodes) -> Result<Latency, CliError> {
    for node in nodes.iter_mut() {
        node.tell(Command::Measure(true)).await?;
    }
    type_both(nodes, TYPING_RATE * LIVE_S, TYPING_RATE).await?;
    nodes.wait_until("both have what the other typed", PATIENCE, |_| (), all_arrived).await?;
    let mut latencies = Vec::new();
    for node in nodes.iter_mut() {
        node.tell(Command::Measure(false)).await?;
        latencies.extend(node.latencies().await?);
    }
    Ok(Latency::from_us(latencies))
}

/// Returns how many operations waited for the other side at the end.
async fn edit_apart(nodes: &mut Nodes) -> Result<u64, CliError> {
    nodes.node(BOB).tell(Command::SetConnected(false)).await?;
    let done = |reports: &[Report]| reports.iter().all(|report| !report.working);
    type_both(nodes, TYPING_RATE * APART_S, TYPING_RATE).await?;
    nodes.wait_until("both have typed offline", PATIENCE, |_| (), done).await?;
    type_both(nodes, APART_BURST, 0).await?;
    let reports = nodes.wait_until("both have typed offline", PATIENCE, |_| (), done).await?;
    Ok(reports.iter().map(|report| report.pending as u64).sum())
}

async fn catch_up(nodes: &mut Nodes, operations: u64) -> Result<CatchUp, CliError> {
    let start = Instant::now();
    nodes.node(BOB).tell(Command::SetConnected(true)).await?;
    nodes.wait_until("both have caught up", PATIENCE, |_| (), all_arrived).await?;
    let elapsed_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(CatchUp { operations, seconds: elapsed_us as f64 / 1e6, per_second: per_second(operations, elapsed_us) })
}

/// Returns how many of his operations Bob had called durable when he died.
async fn kill_bob(nodes: &mut Nodes) -> Result<u32, CliError> {
    type_both(nodes, TYPING_RATE * 2 * KILL_S, TYPING_RATE).await?;
    sleep(Duration::from_secs(KILL_S.into())).await;
    let last_words = nodes.node(BOB).report().await?;
    nodes.node(BOB).kill().await?;
    Ok(last_words.published)
}

async fn revive_bob(nodes: &mut Nodes) -> Result<(), CliError> {
    sleep(Duration::from_secs(1)).await;
    nodes.restart(1)?;
    let bob = nodes.node(BOB);
    bob.open(Command::Reopen).await?;
    bob.tell(Command::Work(Work::Type { operations: TYPING_RATE * KILL_S, per_second: TYPING_RATE })).await
}

async fn finish(nodes: &mut Nodes, bar: &ProgressBar, acknowledged: u32) -> Result<Vec<Report>, CliError> {
    let wanted = |reports: &[Report]| all_arrived(reports) && reports[BOB].published >= acknowledged;
    match nodes.wait_until("both have everything", PATIENCE, |_| (), wanted).await {
        // Not having everything is what the report is there to say.
        Err(CliError::TimedOut { .. }) => {
            bar.set_message("something is missing");
            nodes.reports().await
        }
        other => other,
    }
}

async fn type_both(nodes: &mut Nodes, operations: u32, per_second: u32) -> Result<(), CliError> {
    for node in nodes.iter_mut() {
        node.tell(Command::Work(Work::Type { operations, per_second })).await?;
    }
    Ok(())
}

/// Operations that their author called durable and that are missing on some node, the author's own included.
pub fn lost(reports: &[Report], bob_before_kill: u32) -> u64 {
    let missing = |at: &Report, agent: u8, promised: u32| {
        u64::from(promised.saturating_sub(at.arrived.get(&agent).copied().unwrap_or(0)))
    };
    let promised = [reports[ALICE].published, reports[BOB].published.max(bob_before_kill)];
    reports.iter().flat_map(|at| (0..).zip(promised).map(move |(agent, count)| missing(at, agent, count))).sum()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_was_promised_before_the_kill_counts_as_lost_when_it_is_gone() {
        let report = |published, alice, bob| Report {
            published,
            arrived: BTreeMap::from([(0, alice), (1, bob)]),
            ..Report::default()
        };
        let reports = [report(10, 10, 5), report(5, 9, 5)];
        assert_eq!(lost(&reports, 5), 1);
        assert_eq!(lost(&reports, 7), 5);
        assert!(!all_arrived(&reports));
    }
}
