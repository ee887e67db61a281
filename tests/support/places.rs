//! Nodes at home, in the office and on mobile: hosts behind simulated NATs, and a relay that they all reach.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use panda_network::clock::Clock;
use panda_network::identity::Identity;
use panda_network::relay::{Relay, RelayOptions};
use panda_network::rendezvous::address::HostPort;
use panda_network::sim::{FirewallOptions, LinkOptions, NatOptions, Sim, SimHost, SimNetwork};
use panda_network::{Document, DocumentEvent, Durability, PandaNetwork, PandaNetworkOptions, StartFrom};
use tempfile::TempDir;

/// What is between a node and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Public,
    FullCone,
    AddressRestricted,
    PortRestricted,
    Symmetric,
    SymmetricPreserving,
    CarrierGrade,
    UdpBlocked,
}

impl Place {
    pub const ALL: [Self; 8] = [
        Self::Public,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
        Self::SymmetricPreserving,
        Self::CarrierGrade,
        Self::UdpBlocked,
    ];
}

/// The internet with a relay.
pub struct World {
    pub network: SimNetwork,
    pub relay_host: SimHost,
    pub relay: Relay,
    sim: Sim,
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

/// A relay of this name, which tells everybody its address.
pub fn start_relay(sim: &Sim, network: &SimNetwork, name: &str, relay_ip: IpAddr) -> (SimHost, Relay) {
    let host = network.host(relay_ip);
    network.name(name, relay_ip);
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let clock = network.clone();
    let seed = |what: &str| sim.derive_seed(&format!("{name}{what}"));
    let options = RelayOptions::new(Identity::from_seed(&seed("")))
        .with_listen(any(443))
        .with_datagrams(any(3478))
        .with_public_address(HostPort::new(name, 443).unwrap())
        .with_public_ips([relay_ip])
        .with_relay_ips([relay_ip])
        .with_clock(Clock::new(move || clock.now().as_micros() as u64))
        .with_seed(seed("'s numbers"));
    let relay = Relay::start(Arc::new(host.clone()), options).unwrap();
    (host, relay)
}

impl World {
    /// `one_way` is the time between any two public addresses.
    pub async fn new(sim: &Sim, one_way: Duration) -> Self {
        let link = LinkOptions::new().with_latency(one_way);
        let network = SimNetwork::new(sim.options().with_default_link(link));
        let (relay_host, relay) = start_relay(sim, &network, "relay.example.org", ip([203, 0, 113, 1]));
        Self { network, relay_host, relay, sim: sim.clone() }
    }

    /// A host at a place of its own, whose name decides its addresses.
    pub fn host(&self, place: Place, name: &str) -> SimHost {
        let site = self.sim.derive_seed(name)[0] / 2 + 1;
        let (public, home) = (ip([198, 51, 100, site]), ip([192, 168, 1, 2]));
        let nat = |options: NatOptions| self.network.nat(public, options).unwrap().host(home);
        match place {
            Place::Public => self.network.host(public),
            Place::FullCone => nat(NatOptions::full_cone()),
            Place::AddressRestricted => nat(NatOptions::address_restricted()),
            Place::PortRestricted => nat(NatOptions::port_restricted()),
            Place::Symmetric => nat(NatOptions::symmetric()),
            Place::SymmetricPreserving => nat(NatOptions::symmetric_preserving_ports()),
            Place::CarrierGrade => {
                let carrier = self.network.nat(public, NatOptions::carrier_grade()).unwrap();
                carrier.nat(ip([100, 64, 0, site]), NatOptions::port_restricted()).unwrap().host(home)
            }
            Place::UdpBlocked => {
                let office = self.network.firewall(FirewallOptions::tcp_443_only());
                office.nat(public, NatOptions::port_restricted()).unwrap().host(home)
            }
        }
    }

    /// A node at a place of its own that knows the relay.
    pub async fn node(&self, place: Place, name: &str) -> Node {
        self.node_on(self.host(place, name), name).await
    }

    /// A node on this host.
    pub async fn node_on(&self, host: SimHost, name: &str) -> Node {
        self.node_with(host, name, &[&self.relay]).await
    }

    /// A node on this host that knows these relays.
    pub async fn node_with(&self, host: SimHost, name: &str, relays: &[&Relay]) -> Node {
        let directory = tempfile::tempdir().unwrap();
        let options = PandaNetworkOptions::new(directory.path())
            .with_durability(Durability::Process)
            .with_relays(relays.iter().map(|relay| relay.address().to_string()))
            .with_simulation(&host, 4000, self.sim.derive_seed(name));
        let network = PandaNetwork::start(options).await.unwrap();
        Node { network, host, _directory: directory }
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
