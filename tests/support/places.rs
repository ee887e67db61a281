//! Nodes at home, in the office and on mobile: hosts behind simulated NATs, and a relay that they all reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use panda_network::clock::Clock;
use panda_network::identity::Identity;
use panda_network::relay::{Relay, RelayOptions, TurnMode};
use panda_network::rendezvous::address::HostPort;
pub use panda_network::sim::Place;
use panda_network::sim::{FirewallOptions, LinkOptions, Sim, SimHost, SimNetwork};
use panda_network::{Document, DocumentEvent, Durability, PandaNetwork, PandaNetworkOptions, StartFrom};
use tempfile::TempDir;

/// The internet with relays.
pub struct World {
    pub network: SimNetwork,
    pub relays: Vec<(SimHost, Relay)>,
    sim: Sim,
    sites: AtomicU8,
}

/// A node that runs.
pub struct Node {
    pub network: PandaNetwork,
    pub host: SimHost,
    _directory: TempDir,
}

fn ip(octets: [u8; 4]) -> IpAddr {
    octets.into()
}

fn six(site: u8) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, site.into(), 0, 0, 0, 1).into()
}

impl World {
    /// With one relay. `one_way` is the time between any two public addresses.
    pub fn new(sim: &Sim, one_way: Duration) -> Self {
        Self::with_relays(sim, LinkOptions::new().with_latency(one_way), 1)
    }

    /// `link` is between any two public addresses.
    pub fn with_relays(sim: &Sim, link: LinkOptions, relays: u8) -> Self {
        let network = SimNetwork::new(sim.options().with_default_link(link).with_recorded_events(100_000));
        let relays = (1..=relays).map(|number| start_relay(sim, &network, number, None, TurnMode::Embedded)).collect();
        Self { network, relays, sim: sim.clone(), sites: AtomicU8::new(0) }
    }

    /// With one relay that is reached over IPv4 and over IPv6.
    pub fn dual_stack(sim: &Sim, one_way: Duration) -> Self {
        let world = Self::with_relays(sim, LinkOptions::new().with_latency(one_way), 0);
        let relay = start_relay(sim, &world.network, 1, Some(six(0)), TurnMode::Embedded);
        Self { relays: vec![relay], ..world }
    }

    /// With one relay that introduces and forwards, and lends no addresses.
    pub fn without_turn(sim: &Sim, one_way: Duration) -> Self {
        let world = Self::with_relays(sim, LinkOptions::new().with_latency(one_way), 0);
        let relay = start_relay(sim, &world.network, 1, None, TurnMode::Off);
        Self { relays: vec![relay], ..world }
    }

    /// A host at a place of its own with IPv6 besides: at a global address behind this firewall.
    pub fn dual_stack_host(&self, place: Place, firewall: FirewallOptions) -> SimHost {
        let host = self.host(place);
        let site = self.sites.fetch_add(1, Ordering::Relaxed) + 1;
        host.add_address(&self.network.firewall(firewall), six(site)).unwrap();
        host
    }

    /// A host that has nothing but IPv6, at a global address behind this firewall.
    pub fn six_only_host(&self, firewall: FirewallOptions) -> SimHost {
        let site = self.sites.fetch_add(1, Ordering::Relaxed) + 1;
        self.network.firewall(firewall).host(six(site))
    }

    /// A host at a place of its own.
    pub fn host(&self, place: Place) -> SimHost {
        place.host(&self.network, self.sites.fetch_add(1, Ordering::Relaxed) + 1).unwrap()
    }

    /// A node at a place of its own that knows the relay.
    pub async fn node(&self, place: Place, name: &str) -> Node {
        self.node_on(self.host(place), name).await
    }

    /// A node that tells nobody its addresses.
    pub async fn hidden_node(&self, place: Place, name: &str) -> Node {
        self.node_with(self.host(place), name, |options| options.with_relay_only(true)).await
    }

    /// A node on this host.
    pub async fn node_on(&self, host: SimHost, name: &str) -> Node {
        self.node_with(host, name, |options| options).await
    }

    /// A node on this host with other options than usual.
    pub async fn node_with(
        &self,
        host: SimHost,
        name: &str,
        change: impl FnOnce(PandaNetworkOptions) -> PandaNetworkOptions,
    ) -> Node {
        let directory = tempfile::tempdir().unwrap();
        let options = PandaNetworkOptions::new(directory.path())
            .with_durability(Durability::Process)
            .with_relays(self.relays.iter().map(|(_, relay)| relay.address().to_string()))
            .with_simulation(&host, 4000, self.sim.derive_seed(name));
        let network = PandaNetwork::start(change(options)).await.unwrap();
        Node { network, host, _directory: directory }
    }
}

fn start_relay(sim: &Sim, network: &SimNetwork, number: u8, six: Option<IpAddr>, turn: TurnMode) -> (SimHost, Relay) {
    let (name, address) = (format!("relay-{number}.example.org"), ip([203, 0, 113, number]));
    let host = network.host(address);
    six.inspect(|six| host.add_address(&network.internet(), *six).unwrap());
    // Whoever has one family only has to see for itself which address is for it.
    let ips: Vec<_> = [address].into_iter().chain(six).collect();
    ips.iter().rev().for_each(|ip| network.name(&name, *ip));
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let clock = network.clone();
    let options = RelayOptions::new(Identity::from_seed(&sim.derive_seed(&name)))
        .with_listen(any(443))
        .with_datagrams(any(3478))
        .with_public_address(HostPort::new(&name, 443).unwrap())
        .with_public_ips(ips.clone())
        .with_relay_ips(ips)
        .with_turn(turn)
        .with_clock(Clock::new(move || clock.now().as_micros() as u64))
        .with_seed(sim.derive_seed(&format!("numbers of {name}")));
    let relay = Relay::start(Arc::new(host.clone()), options).unwrap();
    (host, relay)
}

/// `PANDA_SEED` alone, or as many seeds as `PANDA_SEEDS` says, or `count`.
pub fn seeds(count: u64) -> Vec<u64> {
    let from_environment = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    match (from_environment("PANDA_SEED"), from_environment("PANDA_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, asked) => (0..asked.unwrap_or(count)).collect(),
    }
}

/// The first operations that an editor of the document sees.
pub async fn payloads(document: &Document, count: usize) -> Vec<String> {
    let mut events = document.subscribe(StartFrom::Start).await.unwrap();
    let mut payloads = Vec::new();
    while payloads.len() < count {
        if let DocumentEvent::Operation(stored) = events.next().await.unwrap().unwrap() {
            payloads.push(String::from_utf8(stored.operation.payload().to_vec()).unwrap());
        }
    }
    payloads
}
