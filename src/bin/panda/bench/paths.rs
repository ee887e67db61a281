//! `panda bench --paths`: two processes that speak straight to each other, and through a relay in each way there is.
//!
//! Everything is on loopback, where no NAT is in between and no distance either: what is seen is the work of each path.

use std::fmt::{self, Display, Formatter};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use panda_network::identity::Identity;
use panda_network::relay::{PeerPolicy, Relay, RelayLimits, RelayOptions};
use panda_network::transport::PathKind;
use panda_network::transports::host::OsNetwork;
use serde::Serialize;
use tokio::time::sleep;

use super::PLENTY;
use super::scenario::{LIVE_RATE, OPERATION_BYTES, PUBLISHER, RECEIVER};
use crate::child::process::{Nodes, all_arrived};
use crate::child::protocol::{Command, Report, Work};
use crate::demo::{progress_bar, supervised};
use crate::error::CliError;
use crate::figures::{Latency, per_second};
use crate::options::DurabilityArg;

/// How long any step may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Time to find the best path that is allowed.
const SETTLE: Duration = Duration::from_secs(5);
/// Size of an operation when bytes are counted.
const LARGE_BYTES: usize = 64 * 1024;

/// Figures of all paths.
#[derive(Debug, Serialize)]
pub struct PathsReport {
    /// Size of a small operation's payload.
    pub operation_bytes: usize,
    /// One per path.
    pub paths: Vec<PathFigures>,
}

/// Figures of one path.
#[derive(Debug, Serialize)]
pub struct PathFigures {
    /// The path that was to be measured.
    pub wanted: String,
    /// The path that the publisher and the receiver say they used.
    pub used: [Option<String>; 2],
    /// One way, from publish to the other's subscription.
    pub latency: Latency,
    /// Small operations, until the publisher knew that all were durable at the receiver.
    pub operations_per_second: f64,
    /// Large ones, in MiB, likewise.
    pub mebibytes_per_second: f64,
}

/// Measures one path after the other.
///
/// # Errors
/// When a node or the relay fails, or a step does not end.
pub async fn run(quick: bool) -> Result<PathsReport, CliError> {
    let kinds = [PathKind::Direct, PathKind::Forwarded, PathKind::TurnUdp, PathKind::TurnTls];
    let bar = progress_bar(kinds.len() as u64);
    let mut paths = Vec::new();
    for path in kinds {
        bar.set_message(path.to_string());
        let relay = (path != PathKind::Direct).then(|| start_relay(path == PathKind::Forwarded)).transpose()?;
        let through =
            relay.iter().flat_map(|relay| ["--relay".to_owned(), relay.address().to_string()]).collect::<Vec<_>>();
        let no_udp = (path == PathKind::TurnTls).then(|| "--no-udp".to_owned());
        let publisher = through.iter().cloned().chain(no_udp).collect();
        let nodes = Nodes::start_with(vec![publisher, through], DurabilityArg::Process)?;
        paths.push(supervised(nodes, async |nodes| measure(nodes, path, quick).await).await?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(PathsReport { operation_bytes: OPERATION_BYTES, paths })
}

fn start_relay(forwards: bool) -> Result<Relay, CliError> {
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let limits = RelayLimits::new().with_bytes(PLENTY).with_bytes_per_client(PLENTY);
    let limits = if forwards { limits } else { limits.with_flows(0) };
    let loopback = "127.0.0.0/8".parse().ok();
    let options = RelayOptions::new(Identity::generate())
        .with_listen(here)
        .with_datagrams(here)
        .with_peer_policy(PeerPolicy::new().with_allowed(loopback))
        .with_limits(limits);
    Ok(Relay::start(Arc::new(OsNetwork), options)?)
}

async fn measure(nodes: &mut Nodes, path: PathKind, quick: bool) -> Result<PathFigures, CliError> {
    let (live_s, small, large) = if quick { (3, 2000, 256) } else { (10, 20_000, 2048) };
    nodes.share_document().await?;
    let connected = |reports: &[Report]| reports.iter().all(|report| report.peers == 1);
    nodes.wait_until("both are connected", PATIENCE, |_| (), connected).await?;
    sleep(SETTLE).await;
    nodes.node(RECEIVER).tell(Command::Measure(true)).await?;
    fill(nodes, LIVE_RATE * live_s, OPERATION_BYTES, LIVE_RATE).await?;
    let latency = Latency::from_us(nodes.node(RECEIVER).latencies().await?);
    nodes.node(RECEIVER).tell(Command::Measure(false)).await?;
    let small_us = fill(nodes, small, OPERATION_BYTES, 0).await?;
    let large_us = fill(nodes, large, LARGE_BYTES, 0).await?;
    let bytes = u64::from(large) * LARGE_BYTES as u64;
    let reports = nodes.reports().await?;
    Ok(PathFigures {
        wanted: path.to_string(),
        used: [PUBLISHER, RECEIVER].map(|node| reports[node].path.clone()),
        latency,
        operations_per_second: per_second(small.into(), small_us),
        mebibytes_per_second: per_second(bytes, large_us) / f64::from(1 << 20),
    })
}

/// Returns after how many µs the publisher knew that all were durable at the receiver.
async fn fill(nodes: &mut Nodes, operations: u32, bytes: usize, per_second: u32) -> Result<u64, CliError> {
    nodes.node(PUBLISHER).tell(Command::Work(Work::Fill { operations, bytes, per_second })).await?;
    let acknowledged = |reports: &[Report]| all_arrived(reports) && reports[PUBLISHER].acknowledged_after_us.is_some();
    let reports = nodes.wait_until("all is acknowledged", PATIENCE, |_| (), acknowledged).await?;
    Ok(reports[PUBLISHER].acknowledged_after_us.unwrap_or(u64::MAX))
}

impl Display for PathsReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "Operations of {} bytes, two processes and a relay on loopback", self.operation_bytes)?;
        for PathFigures { wanted, used: [here, there], latency, operations_per_second, mebibytes_per_second } in
            &self.paths
        {
            let used = |path: &Option<String>| path.clone().unwrap_or_else(|| "none".into());
            writeln!(f, "\n{wanted} (publisher: {}; receiver: {})", used(here), used(there))?;
            writeln!(f, "  {:<28}{latency}", "live latency, one way")?;
            writeln!(f, "  {:<28}{operations_per_second:.0} operations/s", "acknowledged by the other")?;
            writeln!(f, "  {:<28}{mebibytes_per_second:.1} MiB/s", "in operations of 64 KiB")?;
        }
        Ok(())
    }
}
