//! `panda doctor`: says why this machine can connect to others, or cannot. What it finds out is in the library's `doctor`.

mod json;
mod text;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use panda_network::DocumentTicket;
use panda_network::doctor::{self, DoctorOptions, Report, Step};
use panda_network::rendezvous::address::{HostPort, RelayAddress, RelayAddressError};
use panda_network::transports::host::OsNetwork;
use tokio::sync::mpsc;

use crate::error::CliError;
use crate::options::stop_requested;

/// The port of a STUN server when none is written (RFC 8489, section 18.6).
const STUN_PORT: u16 = 3478;
/// Steps that wait to be shown.
const STEPS: usize = 64;
/// Between two pictures of the spinner.
const TICK: Duration = Duration::from_millis(100);

/// Say why this machine can connect to others, or cannot: NAT, relays, and the ways to the peers of a ticket
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  panda doctor --relay relay.example.org
                                       what kind of NAT there is, what the relay can do for us, whom we will reach and how
  panda doctor panda:aeqqb...          try the peers of a ticket, and show every way to them; leaves no trace at them
  panda doctor --stun stun.example.org what a STUN server tells, without a relay
  panda doctor --relay relay.example.org --json
                                       for programs and bug reports; it contains your addresses

Takes 15 seconds at most. Exit code 0: connections to others are expected to work (with a ticket: a peer was reached). 1: not,
and the reason is the last line.")]
pub struct DoctorArgs {
    /// A ticket whose peers to try; its relays are tried as well
    pub ticket: Option<String>,
    /// Relay to try; give several for several
    #[arg(long = "relay", env = "PANDA_RELAY", value_name = "HOST[:PORT][#KEY]", value_delimiter = ',')]
    pub relays: Vec<RelayAddress>,
    /// STUN server to ask besides the relays; one with two addresses tells NATs apart best
    #[arg(long, value_name = "HOST[:PORT]", value_parser = stun_server)]
    pub stun: Vec<HostPort>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

fn stun_server(text: &str) -> Result<HostPort, RelayAddressError> {
    HostPort::parse(text, STUN_PORT)
}

/// Looks around and tells.
///
/// # Errors
/// [`CliError::Trouble`] when connections are not expected to work; a wrong ticket; Ctrl-C.
pub async fn run(args: DoctorArgs) -> Result<(), CliError> {
    let (sender, steps) = mpsc::channel(STEPS);
    let mut options = DoctorOptions::new().with_relays(args.relays).with_stun_servers(args.stun).with_progress(sender);
    if let Some(ticket) = &args.ticket {
        options = options.with_ticket(ticket.parse::<DocumentTicket>()?);
    }
    let report = examine(options, steps).await?;
    if args.json {
        println!("{}", json::object(&report));
    } else {
        print!("{}", text::page(&report));
    }
    Ok(report.verdict()?)
}

/// Shows progress on a terminal. Ctrl-C drops all that runs.
async fn examine(options: DoctorOptions, mut steps: mpsc::Receiver<Step>) -> Result<Report, CliError> {
    let spinner = ProgressBar::new_spinner();
    spinner.enable_steady_tick(TICK);
    let examined = doctor::examine(Arc::new(OsNetwork), options);
    let stopped = stop_requested();
    tokio::pin!(examined, stopped);
    let result = loop {
        tokio::select! {
            biased;
            () = &mut stopped => break Err(CliError::Interrupted),
            report = &mut examined => break report.map_err(|error| CliError::Environment(error.to_string())),
            Some(step) = steps.recv() => spinner.set_message(step.to_string()),
        }
    };
    spinner.finish_and_clear();
    result
}
