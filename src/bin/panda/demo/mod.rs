//! `panda demo`: shows on this machine that the promises hold, and measures it.

#[cfg(feature = "sim")]
mod nat_pair;
#[cfg(feature = "sim")]
mod nat_report;
#[cfg(feature = "sim")]
mod nat_story;
#[cfg(feature = "sim")]
pub mod nat_world;
mod replay;
mod report;
mod story;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tempfile::TempDir;

#[cfg(feature = "sim")]
use self::nat_pair::NatPair;
use crate::child::process::Nodes;
use crate::error::CliError;
use crate::options::{DurabilityArg, stop_requested};

/// Without simulations it is not read.
#[cfg(not(feature = "sim"))]
type NatPair = String;

/// Two nodes edit one document; one goes offline, one is killed; nothing may be lost
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  panda demo                           two processes, about 15 seconds, then a report
  panda demo --json                    the same, the last line of the output is JSON
  panda demo --nat symmetric,port-restricted
                                       two nodes behind simulated NATs, our relay, seconds of virtual time
  panda demo --trace friendsforever.json.gz
                                       replay a recorded editing session, one process per author

Kinds of NAT: public, full-cone, address-restricted, port-restricted, symmetric, symmetric-preserving, carrier-grade,
udp-blocked. Alice is behind the first, Bob behind the second.

Exits with 1 when documents differ or an operation was lost. Everything is in temporary directories.")]
pub struct DemoArgs {
    /// End with one line of JSON instead of the report
    #[arg(long)]
    pub json: bool,
    /// Replay an editing trace (gzipped JSON, kind \"concurrent\"), one process per agent
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Play it between two simulated NATs in this process: whole nodes, a relay, virtual time, the same figures every time
    #[arg(long, value_name = "ALICE,BOB", conflicts_with_all = ["trace", "durability"])]
    pub nat: Option<NatPair>,
    /// What an edit survives once it counts as saved [default: power; with --trace: process, as a replay waits for others
    /// thousands of times]
    #[arg(long, value_enum)]
    pub durability: Option<DurabilityArg>,
}

/// Runs the demo.
///
/// # Errors
/// When a check fails or something is in the way.
pub async fn run(args: DemoArgs) -> Result<(), CliError> {
    if let Some(pair) = args.nat {
        return run_simulated(pair, args.json).await;
    }
    match &args.trace {
        None => {
            let durability = args.durability.unwrap_or(DurabilityArg::Power);
            let nodes = Nodes::start(2, durability)?;
            let report = supervised(nodes, async |nodes| story::run(nodes, durability).await).await?;
            print(&report, args.json)?;
            report.check()
        }
        Some(file) => {
            let durability = args.durability.unwrap_or(DurabilityArg::Process);
            let trace = replay::load(file)?;
            let nodes = Nodes::start(trace.agents(), durability)?;
            let report = supervised(nodes, async |nodes| replay::run(nodes, file, &trace, durability).await).await?;
            print(&report, args.json)?;
            report.check()
        }
    }
}

#[cfg(feature = "sim")]
async fn run_simulated(pair: NatPair, json: bool) -> Result<(), CliError> {
    // Out here, so that they go when the story is interrupted.
    let (alice, bob) = (node_dir()?, node_dir()?);
    let paths = [alice.path().to_path_buf(), bob.path().to_path_buf()];
    // The simulation brings a runtime of its own.
    let story = tokio::task::spawn_blocking(move || nat_story::run(pair, [&paths[0], &paths[1]]));
    let report = tokio::select! {
        biased;
        () = stop_requested() => return Err(CliError::Interrupted),
        told = story => told.map_err(|error| CliError::Environment(error.to_string()))??,
    };
    print(&report, json)?;
    report.story.check()
}

#[cfg(not(feature = "sim"))]
async fn run_simulated(_: NatPair, _: bool) -> Result<(), CliError> {
    Err(CliError::NoSimulation)
}

/// A temporary directory for a node.
///
/// # Errors
/// When it cannot be made.
pub fn node_dir() -> Result<TempDir, CliError> {
    let made = tempfile::Builder::new().prefix("panda-node-").tempdir();
    made.map_err(CliError::io("make a directory in", &std::env::temp_dir()))
}

/// Runs with nodes that are stopped whatever happens, Ctrl-C included.
pub async fn supervised<T>(
    mut nodes: Nodes,
    work: impl AsyncFnOnce(&mut Nodes) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let result = tokio::select! {
        // First, because Ctrl-C may also disturb the work.
        biased;
        () = stop_requested() => Err(CliError::Interrupted),
        result = work(&mut nodes) => result,
    };
    nodes.stop(result.is_ok()).await;
    result
}

/// A bar on stderr, if that is a terminal.
pub fn progress_bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    // A template that does not parse would be a defect; the default bar does as well.
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3} %  {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// One line of JSON, or for people.
///
/// # Errors
/// When it is no JSON, which would be a defect.
pub fn print(report: &(impl serde::Serialize + std::fmt::Display), json: bool) -> Result<(), CliError> {
    if json {
        let line = serde_json::to_string(report).map_err(|error| CliError::Environment(error.to_string()))?;
        println!("{line}");
    } else {
        println!("{report}");
    }
    Ok(())
}
