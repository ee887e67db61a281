//! The simulated world of `panda demo --nat`: a host at each kind of place, a relay, and nodes that a story can crash.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use panda_network::clock::Clock;
use panda_network::identity::Identity;
use panda_network::relay::{Relay, RelayLimits, RelayOptions};
use panda_network::rendezvous::address::HostPort;
use panda_network::sim::{LinkOptions, Place, Sim, SimHost, SimNetwork, SimSite};
use panda_network::{Durability, PandaNetwork, PandaNetworkOptions};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::child::driver::Driver;
use crate::error::CliError;

/// From any public address to any other, at least.
pub const LATENCY: Duration = Duration::from_millis(20);
/// And at most so much more.
pub const JITTER: Duration = Duration::from_millis(5);
/// The port of every node.
const PORT: u16 = 4000;
/// What the relay is called.
const RELAY: &str = "relay.example.org";

/// The internet with a relay.
pub struct World {
    network: SimNetwork,
    relay: Relay,
    sim: Sim,
}

impl World {
    /// With nobody in it yet, this much between any two public addresses, and a relay of these limits.
    ///
    /// # Errors
    /// When the relay cannot start.
    pub fn new(sim: Sim, link: LinkOptions, limits: RelayLimits) -> Result<Self, CliError> {
        let network = SimNetwork::new(sim.options().with_default_link(link));
        let ip = IpAddr::from([203, 0, 113, 1]);
        network.name(RELAY, ip);
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let name = HostPort::new(RELAY, 443).map_err(|error| CliError::Environment(error.to_string()))?;
        let options = RelayOptions::new(Identity::from_seed(&sim.derive_seed("identity of the relay")))
            .with_listen(any(443))
            .with_datagrams(any(3478))
            .with_public_address(name)
            .with_public_ips([ip])
            .with_relay_ips([ip])
            .with_limits(limits)
            .with_clock(clock(&network))
            .with_seed(sim.derive_seed("randomness of the relay"));
        let relay = Relay::start(Arc::new(network.host(ip)), options)?;
        Ok(Self { network, relay, sim })
    }

    /// A place, and the address of a host there; places have different numbers.
    ///
    /// # Errors
    /// When the number is taken.
    pub fn place(&self, place: Place, number: u8) -> Result<(SimSite, IpAddr), CliError> {
        place.site(&self.network, number).map_err(|error| CliError::Environment(error.to_string()))
    }

    /// A host at a place of its own.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub fn host(&self, place: Place, number: u8) -> Result<SimHost, CliError> {
        let (site, ip) = self.place(place, number)?;
        Ok(site.host(ip))
    }

    /// Starts a node that knows the relay; after a crash with the same directory.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn node(&self, host: &SimHost, agent: u8, dir: &Path) -> Result<PandaNetwork, CliError> {
        let options = PandaNetworkOptions::new(dir)
            .with_durability(Durability::Process)
            .with_relays([self.relay.address().to_string()])
            .with_simulation(host, PORT, self.sim.derive_seed(&format!("node {agent}")));
        Ok(PandaNetwork::start(options).await?)
    }

    /// Starts a node with an author who types. `run` counts its starts.
    ///
    /// # Errors
    /// As [`node`](Self::node).
    pub async fn start(&self, host: &SimHost, agent: u8, dir: &Path, run: u32) -> Result<Driver, CliError> {
        let network = self.node(host, agent, dir).await?;
        let random = ChaCha8Rng::from_seed(self.sim.derive_seed(&format!("typing of {agent}, run {run}")));
        Ok(Driver::new(network, agent, clock(&self.network), random))
    }
}

/// Virtual time.
fn clock(network: &SimNetwork) -> Clock {
    let network = network.clone();
    Clock::new(move || u64::try_from(network.now().as_micros()).unwrap_or(u64::MAX))
}
