//! Test your own editor behind NATs, on a laptop that changes networks, without any network and without waiting: the whole
//! node runs, the internet and the clock are simulated, and the same seed gives the same packets.
//!
//! `cargo run --example nat_simulation --features sim,relay`

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use panda_network::clock::Clock;
use panda_network::identity::Identity;
use panda_network::relay::{Relay, RelayOptions};
use panda_network::rendezvous::address::HostPort;
use panda_network::sim::{self, LinkOptions, NatOptions, Sim, SimHost, SimNetwork};
use panda_network::{Document, DocumentEvent, Durability, PandaNetwork, PandaNetworkOptions, StartFrom, Subscription};
use tokio::time::{sleep, timeout};

/// How long a packet travels between any two places on the internet.
const DISTANCE: Duration = Duration::from_millis(30);

/// The editor under test: notes, one per operation. In a test of your own this is your application.
struct Notes {
    document: Document,
    events: Subscription,
    on_screen: Vec<String>,
}

impl Notes {
    async fn open(document: Document) -> Result<Self, Box<dyn Error>> {
        let events = document.subscribe(StartFrom::Start).await?;
        Ok(Self { document, events, on_screen: Vec::new() })
    }

    /// Waits until so many notes are on the screen. The time is virtual, so patience costs nothing.
    async fn shows(&mut self, notes: usize) -> Result<&[String], Box<dyn Error>> {
        while self.on_screen.len() < notes {
            let event =
                timeout(Duration::from_secs(10), self.events.next()).await?.ok_or("the node was shut down")??;
            if let DocumentEvent::Operation(stored) = event {
                self.on_screen.push(String::from_utf8(stored.operation.payload().to_vec())?);
            }
        }
        Ok(&self.on_screen)
    }
}

/// A relay on the internet that both know.
fn start_relay(sim: &Sim, network: &SimNetwork) -> Result<Relay, Box<dyn Error>> {
    let (name, ip) = ("relay.example.org", [203, 0, 113, 1].into());
    network.name(name, ip);
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let virtual_time = network.clone();
    let options = RelayOptions::new(Identity::from_seed(&sim.derive_seed("key of the relay")))
        .with_listen(any(443))
        .with_datagrams(any(3478))
        .with_public_address(HostPort::new(name, 443)?)
        .with_public_ips([ip])
        // What is needed so that a run can be repeated: the clock and the randomness of the simulation.
        .with_clock(Clock::new(move || virtual_time.now().as_micros() as u64))
        .with_seed(sim.derive_seed("randomness of the relay"));
    Ok(Relay::start(Arc::new(network.host(ip)), options)?)
}

/// A node as your application starts it, but on a simulated host.
async fn start_node(
    (sim, relay): (&Sim, &Relay),
    host: &SimHost,
    (name, dir): (&str, &Path),
) -> Result<PandaNetwork, Box<dyn Error>> {
    let options = PandaNetworkOptions::new(dir)
        .with_durability(Durability::Process)
        .with_relays([relay.address().to_string()])
        .with_simulation(host, 4000, sim.derive_seed(name));
    Ok(PandaNetwork::start(options).await?)
}

async fn scenario(sim: Sim) -> Result<(), Box<dyn Error>> {
    // Alice is at home; Bob's phone network is the worst kind of NAT. Both may use the same private addresses.
    let network = SimNetwork::new(sim.options().with_default_link(LinkOptions::new().with_latency(DISTANCE)));
    let relay = start_relay(&sim, &network)?;
    let home = network.nat([198, 51, 100, 1].into(), NatOptions::port_restricted())?;
    let laptop = network.nat([198, 51, 100, 2].into(), NatOptions::symmetric())?.host([192, 168, 1, 2].into());
    let (alice_dir, bob_dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let alice_node =
        start_node((&sim, &relay), &home.host([192, 168, 1, 2].into()), ("alice", alice_dir.path())).await?;
    let bob_node = start_node((&sim, &relay), &laptop, ("bob", bob_dir.path())).await?;

    // The ticket names the relay. That is enough to meet, and the relay carries what the two NATs do not let through.
    let mut alice = Notes::open(alice_node.create().await?).await?;
    let mut bob = Notes::open(bob_node.open(alice.document.ticket().await?).await?).await?;
    alice.document.publish("pandas eat bamboo").await?;
    assert_eq!(bob.shows(1).await?, ["pandas eat bamboo"]);
    sleep(Duration::from_secs(10)).await;
    println!("on his phone's network Bob's path is: {}", bob_node.connections()[0].0.path);

    // Bob's laptop joins a Wi-Fi while both are typing. The users must not notice, but for a moment.
    let cafe = network.nat([198, 51, 100, 3].into(), NatOptions::port_restricted())?;
    laptop.move_to(cafe.inside(), [10, 0, 0, 7].into())?;
    let moved = sim.now();
    alice.document.publish("pandas sleep").await?;
    bob.document.publish("pandas climb").await?;
    alice.shows(3).await?;
    bob.shows(3).await?;
    println!("in the cafe both have everything after {:.2?}", sim.now() - moved);
    assert!(sim.now() - moved < Duration::from_secs(2), "a user would have called support");

    sleep(Duration::from_secs(10)).await;
    println!("and soon no relay is in between any more: {}", bob_node.connections()[0].0.path);
    alice.on_screen.sort();
    bob.on_screen.sort();
    assert_eq!(alice.on_screen, bob.on_screen, "both show the same notes, none lost, none twice");
    Ok(())
}

/// A failure prints the seed.
fn main() -> Result<(), Box<dyn Error>> {
    sim::run(7, scenario)
}
