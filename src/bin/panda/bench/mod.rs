//! `panda bench`: what this machine gives, beside raw QUIC and a raw disk measured in the same run.

mod baseline;
#[cfg(feature = "sim")]
mod journey;
#[cfg(feature = "sim")]
mod nat;
#[cfg(feature = "sim")]
mod nat_report;
mod paths;
mod report;
mod scenario;

use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use panda_network::relay::Rate;

#[cfg(feature = "sim")]
use self::journey::Journey;
use self::report::{BenchReport, Round};
use self::scenario::Sizes;
use crate::child::process::Nodes;
use crate::demo::{print, progress_bar, supervised};
use crate::error::CliError;
use crate::figures::Latency;
use crate::options::DurabilityArg;

/// Without simulations it is not read.
#[cfg(not(feature = "sim"))]
type Journey = String;

/// Measure two nodes on this machine beside raw QUIC and a raw disk
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  panda bench                          a few minutes
  panda bench --quick                  a short run: fewer operations, rougher figures
  panda bench --paths                  what it costs to speak through a relay, in each way there is
  panda bench --nat                    how fast data flows while paths change, on simulated lines behind NATs
  panda bench --nat public,symmetric,udp-blocked
                                       Alice has no NAT, Bob is behind a symmetric one and moves to another place
  panda bench --quick --json           the last line of the output is JSON

Operations are 200 bytes. Raw QUIC and raw fsync are measured before and after each round, so that ratios can be read
from one run; the second process is on the same machine, so both share its cores and its disk.")]
pub struct BenchArgs {
    /// End with one line of JSON instead of the tables
    #[arg(long)]
    pub json: bool,
    /// Fewer operations
    #[arg(long)]
    pub quick: bool,
    /// Compare the paths instead: direct, forwarded by a relay, TURN over UDP and over TLS
    #[arg(long)]
    pub paths: bool,
    /// Fill a document while Bob moves from one kind of NAT to the next: Alice's, Bob's, and where he goes from there.
    /// On virtual time: the same figures on every machine
    #[arg(
        long,
        value_name = "ALICE,BOB[,BOB...]",
        num_args = 0..=1,
        default_missing_value = "port-restricted,port-restricted,symmetric,udp-blocked,port-restricted",
        conflicts_with_all = ["paths", "quick"]
    )]
    pub nat: Option<Journey>,
}

/// Runs the bench.
///
/// # Errors
/// When a node fails or something is in the way.
pub async fn run(args: BenchArgs) -> Result<(), CliError> {
    if let Some(journey) = args.nat {
        return travel(journey, args.json).await;
    }
    if args.paths {
        return print(&paths::run(args.quick).await?, args.json);
    }
    let sizes = if args.quick { Sizes::quick() } else { Sizes::full() };
    let bar = progress_bar(2 * (2 + scenario::STEPS));
    let mut rounds = Vec::new();
    for durability in [DurabilityArg::Power, DurabilityArg::Process] {
        // Before and after, because a shared machine changes from one minute to the next.
        let mut raw = Raw::default();
        raw.measure(&sizes, &bar).await?;
        let nodes = Nodes::start(2, durability)?;
        let panda = supervised(nodes, async |nodes| scenario::run(nodes, &sizes, &bar, durability).await).await?;
        raw.measure(&sizes, &bar).await?;
        let (echo, fsync) = (Latency::from_us(raw.echoes_us), Latency::from_us(raw.syncs_us));
        rounds.push(Round { durability: durability.to_string(), echo, fsync, panda });
    }
    bar.finish_and_clear();
    let report = BenchReport { operation_bytes: scenario::OPERATION_BYTES, rounds };
    print(&report, args.json)
}

#[cfg(feature = "sim")]
async fn travel(journey: Journey, json: bool) -> Result<(), CliError> {
    nat::run(journey, json).await
}

#[cfg(not(feature = "sim"))]
async fn travel(_: Journey, _: bool) -> Result<(), CliError> {
    Err(CliError::NoSimulation)
}

/// What the machine gives without us, in µs.
#[derive(Default)]
struct Raw {
    echoes_us: Vec<u64>,
    syncs_us: Vec<u64>,
}

impl Raw {
    async fn measure(&mut self, sizes: &Sizes, bar: &ProgressBar) -> Result<(), CliError> {
        bar.set_message("raw QUIC and raw disk");
        self.echoes_us.extend(baseline::quic_echo(sizes.echoes).await?);
        self.syncs_us.extend(tokio::task::block_in_place(|| baseline::append_and_sync(sizes.syncs))?);
        bar.inc(1);
        Ok(())
    }
}

/// How long any step may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(600);

/// For relays whose quotas are not what is measured.
const PLENTY: Rate = Rate { per_second: 10_000_000_000, burst: 10_000_000_000 };
