//! `panda`: Panda Network on the command line. One file or folder per subcommand.

#![forbid(unsafe_code)]

mod bench;
mod child;
mod demo;
mod doctor;
mod error;
mod figures;
mod file_sync;
mod join;
mod options;
mod reach;
mod relay;
mod share;
mod text_doc;
mod trace;

use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::error::CliError;

/// Share text documents between editors, without a server in the middle that can read them
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:
  panda share notes.md                 share a file, prints a ticket
  panda join panda:aeqqb... notes.md   keep a file in step with a shared one
  panda demo                           see it work: two nodes, offline editing, a crash, nothing lost
  panda demo --nat symmetric,udp-blocked
                                       the same between two simulated NATs
  panda bench                          measure it on this machine
  panda doctor                         say why this machine can connect to others, or cannot
  panda relay                          help others to reach each other

`panda help COMMAND` says more about each."
)]
struct Cli {
    /// Log to stderr; twice for more, or say what with RUST_LOG
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Share(share::ShareArgs),
    Join(join::JoinArgs),
    Demo(demo::DemoArgs),
    Bench(bench::BenchArgs),
    Doctor(doctor::DoctorArgs),
    Relay(Box<relay::RelayArgs>),
    #[command(hide = true)]
    Node(child::driver::NodeProcessArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("panda: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(run(cli.command));
    // A child's stdin is read on a thread that cannot be cancelled.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("panda: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<(), CliError> {
    match command {
        Command::Share(args) => share::run(args).await,
        Command::Join(args) => join::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Bench(args) => bench::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Relay(args) => relay::run(*args).await,
        Command::Node(args) => child::driver::run(args).await,
    }
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => "error",
        1 => "panda=info,panda_network=info",
        _ => "panda=debug,panda_network=debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn subcommands_take_their_options() {
        let Ok(Command::Share(args)) =
            parse("panda share notes.md --data-dir d --listen 127.0.0.1:7000 --durability process")
        else {
            panic!("share is not understood");
        };
        assert_eq!(args.node.durability, options::DurabilityArg::Process);
        assert_eq!(args.node.listen, Some("127.0.0.1:7000".parse().unwrap()));
        assert!(!args.node.no_lan && !args.ticket_without_addresses);
        assert!(matches!(parse("panda share n.md --ticket-without-addresses"),
            Ok(Command::Share(args)) if args.ticket_without_addresses));
        assert!(matches!(parse("panda share n.md --no-lan"), Ok(Command::Share(args)) if args.node.no_lan));
        assert!(
            matches!(parse("panda join panda:abc notes.md -v"), Ok(Command::Join(args)) if args.ticket.as_deref() == Some("panda:abc"))
        );
        assert!(matches!(parse("panda join notes.md"), Ok(Command::Join(args))
            if args.ticket.is_none() && args.file.to_str() == Some("notes.md")));
        assert!(
            matches!(parse("panda demo --json --trace t.gz"), Ok(Command::Demo(args)) if args.json && args.trace.is_some())
        );
        let Ok(Command::Demo(args)) = parse("panda demo --nat symmetric,port-restricted --json") else {
            panic!("two NATs are not understood");
        };
        assert!(args.nat.is_some() && args.json);
        assert!(matches!(parse("panda bench --quick --json"), Ok(Command::Bench(args)) if args.quick && args.json));
        assert!(matches!(parse("panda bench --paths"), Ok(Command::Bench(args)) if args.paths && !args.quick));
        let line = "panda relay --config r.toml --listen [::]:443 --public-address relay.example.org --json";
        let Ok(Command::Relay(args)) = parse(line) else { panic!("relay is not understood") };
        assert!(args.json && args.config.is_some());
        assert_eq!(args.public_address.unwrap().0.to_string(), "relay.example.org:443");
    }

    #[test]
    fn relays_are_given_once_each() {
        let Ok(Command::Share(args)) =
            parse("panda share --relay one.example.org --relay [::1]:7443 --relay-only n.md")
        else {
            panic!("share with relays is not understood");
        };
        let relays: Vec<_> = args.node.reach.relays.iter().map(ToString::to_string).collect();
        assert_eq!(relays, ["one.example.org:443", "[::1]:7443"]);
        assert_eq!((args.node.reach.relay_only, args.file.to_str()), (Some(true), Some("n.md")));
        let Ok(Command::Join(args)) = parse("panda join panda:abc n.md --relay-only=false --relay a,b:1") else {
            panic!("join with relays is not understood");
        };
        assert_eq!((args.node.reach.relay_only, args.node.reach.relays.len()), (Some(false), 2));
    }

    #[test]
    fn the_doctor_takes_relays_servers_and_a_ticket() {
        let Ok(Command::Doctor(args)) = parse(
            "panda doctor --relay relay.example.org --stun stun.example.org --stun 192.0.2.1:99 panda:abc --json",
        ) else {
            panic!("doctor is not understood");
        };
        let stun: Vec<_> = args.stun.iter().map(ToString::to_string).collect();
        assert_eq!(stun, ["stun.example.org:3478", "192.0.2.1:99"]);
        assert_eq!((args.relays.len(), args.ticket.as_deref(), args.json), (1, Some("panda:abc"), true));
        assert!(matches!(parse("panda doctor"), Ok(Command::Doctor(args)) if args.ticket.is_none()));
        for line in ["panda doctor --stun a:b", "panda share n.md --relay a#b", "panda doctor --relay :1"] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_wrong_command_line_is_a_usage_error() {
        for line in [
            "panda",
            "panda share",
            "panda join",
            "panda join panda:abc",
            "panda share x --durability never",
            "panda share x --ticket-without-addresses --no-lan",
            "panda fly",
            "panda demo --nat cone,public",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn the_node_subcommand_is_not_for_people() {
        assert!(!Cli::command().render_help().to_string().contains("node "));
    }
}
