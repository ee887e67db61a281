//! Options that several subcommands share, and starting a node from them.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use panda_network::store::Durability;
use panda_network::{DiscoveryOptions, PandaNetwork, PandaNetworkOptions};

use crate::error::CliError;
use crate::reach::{Reach, ReachArgs};

/// What survives when something stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DurabilityArg {
    /// A returned write survives a power cut; every commit waits for the disk.
    Power,
    /// A returned write survives the death of the process; faster. After a power cut sequence numbers may be used twice, and
    /// peers that saw the first use take nothing more of this node.
    Process,
}

impl From<DurabilityArg> for Durability {
    fn from(durability: DurabilityArg) -> Self {
        match durability {
            DurabilityArg::Power => Self::Power,
            DurabilityArg::Process => Self::Process,
        }
    }
}

impl std::fmt::Display for DurabilityArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Power => "power",
            Self::Process => "process",
        })
    }
}

/// Options of a node that follows a file.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Where the node keeps its identity and operations [default: below $XDG_DATA_HOME/panda-network, one per file]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address and port to listen on [default: all addresses, the port of the last run]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// What an edit survives once it counts as saved
    #[arg(long, value_enum, default_value_t = DurabilityArg::Power)]
    pub durability: DurabilityArg,
    /// Do not look for peers in the local network, and do not announce this node there
    #[arg(long)]
    pub no_lan: bool,
    #[command(flatten)]
    pub reach: ReachArgs,
}

impl NodeArgs {
    /// The data directory for a file. It may not be there yet.
    ///
    /// # Errors
    /// When there is no home directory.
    pub fn data_dir_for(&self, file: &Path) -> Result<PathBuf, CliError> {
        match &self.data_dir {
            Some(dir) => Ok(dir.clone()),
            None => Ok(default_data_root()?.join(directory_name(file))),
        }
    }

    /// Starts the node; without `--listen` on the port that peers remember, if that is free. The data directory is made if
    /// it is not there, private to the user.
    ///
    /// # Errors
    /// What the node says, or when the directory cannot be made.
    pub async fn start(
        &self,
        data_dir: &Path,
        last_port: Option<u16>,
        reach: &Reach,
    ) -> Result<PandaNetwork, CliError> {
        create_private_dir(data_dir).map_err(CliError::io("make the directory", data_dir))?;
        let options = PandaNetworkOptions::new(data_dir)
            .with_durability(self.durability.into())
            .with_discovery(DiscoveryOptions::new().with_lan(!self.no_lan));
        let options = reach.apply(options);
        if let Some(listen) = self.listen {
            return Ok(PandaNetwork::start(options.with_listen_address(listen)).await?);
        }
        if let Some(port) = last_port {
            let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            match PandaNetwork::start(options.clone().with_listen_address(address)).await {
                Ok(network) => return Ok(network),
                Err(panda_network::PandaError::Transport(error)) => {
                    tracing::info!(%error, port, "the port of the last run cannot be used, taking another");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(PandaNetwork::start(options).await?)
    }
}

fn default_data_root() -> Result<PathBuf, CliError> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .or_else(|| absolute("LOCALAPPDATA"))
        .map(|root| root.join("panda-network"))
        .ok_or_else(|| CliError::Environment("neither XDG_DATA_HOME nor HOME is set; give --data-dir".into()))
}

/// One directory per file: the hash of its path, since any character may be in a path.
fn directory_name(file: &Path) -> String {
    blake3::hash(file.as_os_str().as_encoded_bytes()).to_hex().as_str()[..32].to_owned()
}

/// Makes a directory that only its owner can look into, and those above it, where there is none.
#[cfg(unix)]
pub fn create_private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Makes a directory, and those above it, where there is none.
#[cfg(not(unix))]
pub fn create_private_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)
}

/// Resolves on Ctrl-C or when asked to terminate.
pub async fn stop_requested() {
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        return;
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Wall clock in µs since the Unix epoch: two processes on one machine read the same.
pub fn now_us() -> u64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_a_directory_of_its_own() {
        let (one, two) = (directory_name(Path::new("/a/b")), directory_name(Path::new("/a/c")));
        assert_ne!(one, two);
        assert_eq!(one.len(), 32);
    }
}
