//! `panda relay`: runs a cooperative's relay.

mod config;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use panda_network::PandaError;
use panda_network::identity::Identity;
use panda_network::relay::Relay;
use panda_network::rendezvous::address::DEFAULT_PORT;
use panda_network::transports::host::OsNetwork;
use serde::Serialize;

use self::config::{CONFIG_MAX_BYTES, Config, Server};
use crate::error::CliError;
use crate::options::{create_private_dir, stop_requested};

/// How long nodes are given to hear that the relay goes.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Run a relay: it helps nodes behind NATs to find and reach each other, and can read nothing of what they say
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  panda relay                          on this machine alone, to try it
  panda relay --config relay.toml      as the file says; relay.example.toml explains every key
  panda relay --listen '[::]:443' --public-address relay.example.org
                                       for others: give them the printed address
  curl http://127.0.0.1:9464/metrics   with admin = \"127.0.0.1:9464\" in the file

The address ends with the relay's key. Give `identity` a place in the file, or the key is another on every start.")]
pub struct RelayArgs {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to take TLS connections, over that in the configuration [default: 127.0.0.1:7443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where to take datagrams, over that in the configuration [default: port 3478 where it listens]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub datagrams: Option<SocketAddr>,
    /// What users reach the relay by, over that in the configuration [default: the listening address]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub public_address: Option<Server<DEFAULT_PORT>>,
    /// Print the address and what is listened on as one line of JSON
    #[arg(long)]
    pub json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Started {
    address: String,
    tls: SocketAddr,
    datagrams: SocketAddr,
    turn_tcp: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

/// Runs until Ctrl-C.
///
/// # Errors
/// When the configuration is wrong or an address cannot be bound.
pub async fn run(args: RelayArgs) -> Result<(), CliError> {
    let config = configuration(&args)?;
    let identity = match &config.identity {
        Some(path) => kept_identity(path)?,
        None => Identity::generate(),
    };
    let relay = Relay::start(Arc::new(OsNetwork), config.into_options(identity))?;
    let bound = relay.bound();
    let address = relay.address().to_string();
    if args.json {
        let started = Started {
            address,
            tls: bound.tls,
            datagrams: bound.datagrams,
            turn_tcp: bound.turn_tcp,
            admin: bound.admin,
        };
        println!("{}", serde_json::to_string(&started).map_err(|error| CliError::Environment(error.to_string()))?);
    } else {
        println!("{address}");
        if relay.address().server.ip().is_some_and(|ip| ip.is_unspecified()) {
            eprintln!("Nobody can reach this address: say with --public-address what users reach the relay by.");
        }
        eprintln!(
            "Relay on {} (TLS) and {} (UDP). Give users the address above. Ctrl-C stops it.",
            bound.tls, bound.datagrams
        );
    }
    stop_requested().await;
    relay.shutdown(SHUTDOWN).await;
    Ok(())
}

/// The key in that file; on the first start it is made, and the folder too.
fn kept_identity(path: &Path) -> Result<Identity, CliError> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        create_private_dir(folder).map_err(CliError::io("create", folder))?;
    }
    Ok(Identity::load_or_create(path).map_err(PandaError::from)?)
}

/// What the arguments ask for, over what the file says.
fn configuration(args: &RelayArgs) -> Result<Config, CliError> {
    let mut config = match &args.config {
        Some(path) => load(path)?,
        // For this machine alone it may send to this machine; for others it must not.
        None if is_local(args) => Config::local(),
        None => Config::default(),
    };
    config.listen = args.listen.or(config.listen);
    config.datagrams = args.datagrams.or(config.datagrams);
    config.public_address = args.public_address.clone().or(config.public_address);
    Ok(config)
}

/// Nobody from elsewhere is meant to come. A public address is for others, also where something in between passes them on.
fn is_local(args: &RelayArgs) -> bool {
    let listening = [args.listen, args.datagrams].into_iter().flatten().map(|address| Some(address.ip()));
    let public = args.public_address.iter().map(|Server(address)| address.ip());
    listening.chain(public).all(|ip| ip.is_some_and(|ip| ip.is_loopback()))
}

fn load(path: &Path) -> Result<Config, CliError> {
    let length = std::fs::metadata(path).map_err(CliError::io("read", path))?.len();
    if length > CONFIG_MAX_BYTES {
        return Err(CliError::Environment(format!("{}: {length} bytes are too many", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(CliError::io("read", path))?;
    Config::parse(&text).map_err(|error| CliError::Environment(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(listen: Option<&str>, datagrams: Option<&str>, public_address: Option<&str>) -> RelayArgs {
        RelayArgs {
            config: None,
            listen: listen.map(|text| text.parse().unwrap()),
            datagrams: datagrams.map(|text| text.parse().unwrap()),
            public_address: public_address.map(|text| text.parse().unwrap()),
            json: false,
        }
    }

    fn may_send_to_this_machine(args: &RelayArgs) -> [bool; 2] {
        let policy = configuration(args).unwrap().peer_policy();
        ["127.0.0.1", "::1"].map(|ip| policy.allows(ip.parse().unwrap()))
    }

    #[test]
    fn a_relay_without_a_configuration_sends_to_this_machine_only_if_it_is_for_this_machine_alone() {
        for local in [
            args(None, None, None),
            args(Some("127.0.0.1:443"), None, None),
            args(Some("[::1]:443"), Some("127.0.0.2:3478"), Some("127.0.0.1:443")),
        ] {
            assert_eq!(may_send_to_this_machine(&local), [true; 2], "{local:?}");
        }
        for public in [
            args(Some("0.0.0.0:443"), None, None),
            args(Some("[::]:443"), None, Some("relay.example.org")),
            args(Some("203.0.113.1:443"), None, None),
            args(None, Some("0.0.0.0:3478"), None),
            args(Some("127.0.0.1:443"), Some("[::]:3478"), None),
            args(None, None, Some("relay.example.org")),
            args(Some("127.0.0.1:443"), None, Some("203.0.113.1:443")),
        ] {
            assert_eq!(may_send_to_this_machine(&public), [false; 2], "{public:?}");
        }
    }

    #[test]
    fn a_key_whose_folder_is_missing_is_made_with_it_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("var/lib/relay/identity");
        let made = kept_identity(&path).unwrap().peer_id();
        assert_eq!(kept_identity(&path).unwrap().peer_id(), made);
        std::fs::write(directory.path().join("file"), "").unwrap();
        let error = kept_identity(&directory.path().join("file/identity")).unwrap_err();
        assert!(error.to_string().contains("create"), "{error}");
    }

    #[test]
    fn datagrams_are_taken_where_the_relay_listens_unless_it_is_told_otherwise() {
        for (listen, datagrams, expected) in [
            (None, None, "127.0.0.1:3478"),
            (Some("0.0.0.0:443"), None, "0.0.0.0:3478"),
            (Some("[::]:443"), None, "[::]:3478"),
            (Some("203.0.113.1:443"), Some("203.0.113.2:1"), "203.0.113.2:1"),
            (None, Some("127.0.0.1:1"), "127.0.0.1:1"),
        ] {
            let config = configuration(&args(listen, datagrams, None)).unwrap();
            assert_eq!(config.datagrams_address(), expected.parse().unwrap(), "{listen:?} {datagrams:?}");
        }
    }
}
