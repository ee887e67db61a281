//! A simulated network on a virtual clock, for tests of this crate and of editors that embed it.
//!
//! Hosts, links with latency, jitter, loss, reordering, duplication, bandwidth and MTU, partitions, and crashes; NATs by
//! their behaviour in the words of RFC 4787, NATs behind NATs, firewalls, and hosts that move between networks. A
//! [`SimHost`] is a [`HostNetwork`](crate::net::HostNetwork) with UDP, TCP, names and a board in its home network, and a [`SimSocket`] is a
//! [`quinn::AsyncUdpSocket`], so real node code runs over it unchanged. One seed decides everything: the same program with
//! the same seed gives the same packets at the same times, which [`SimNetwork::trace_digest`] proves. A simulated day
//! takes seconds.
//!
//! ```
//! use std::time::Duration;
//! use panda_network::sim::{self, LinkOptions, SimNetwork};
//!
//! let elapsed = sim::run(42, |sim| async move {
//!     let mobile = LinkOptions::new().with_latency(Duration::from_millis(60)).with_loss(0.5);
//!     let network = SimNetwork::new(sim.options().with_default_link(mobile));
//!     let alice = network.host([203, 0, 113, 1].into()).bind(4433)?;
//!     let bob = network.host([203, 0, 113, 2].into()).bind(4433)?;
//!
//!     let wait = Duration::from_secs(1); // of virtual time
//!     while let Err(_lost) = {
//!         alice.send_to("hello", bob.address());
//!         tokio::time::timeout(wait, bob.recv_from()).await
//!     } {}
//!
//!     network.partition(&[[203, 0, 113, 1].into()], &[[203, 0, 113, 2].into()]);
//!     alice.send_to("nobody hears this", bob.address());
//!     assert!(tokio::time::timeout(wait, bob.recv_from()).await.is_err());
//!     assert_eq!(network.stats().partitioned, 1);
//!     Ok::<_, sim::SimError>(sim.now())
//! })?;
//! assert!(elapsed > Duration::from_secs(1));
//! # Ok::<_, sim::SimError>(())
//! ```
//!
//! # NATs
//!
//! A NAT has an address in one network and another network inside. Two homes may use the same private addresses. Here two
//! laptops learn from a server how they look from outside, and reach each other by sending first:
//!
//! ```
//! use panda_network::sim::{self, NatOptions, SimNetwork, SimSocket};
//!
//! sim::run(7, |sim| async move {
//!     let network = SimNetwork::new(sim.options());
//!     let home = network.nat([198, 51, 100, 1].into(), NatOptions::port_restricted())?;
//!     let carrier = network.nat([198, 51, 100, 2].into(), NatOptions::carrier_grade())?;
//!     let far_home = carrier.nat([100, 64, 0, 9].into(), NatOptions::full_cone())?;
//!     let alice = home.host([192, 168, 1, 2].into()).bind(4433)?;
//!     let bob = far_home.host([192, 168, 1, 2].into()).bind(4433)?;
//!     let server = network.host([203, 0, 113, 1].into()).bind(3478)?;
//!
//!     let mut seen = Vec::new();
//!     for laptop in [&alice, &bob] {
//!         laptop.send_to("how do I look?", server.address());
//!         seen.push(server.recv_from().await.1);
//!     }
//!     alice.send_to("lost at bob's carrier, but lets him in", seen[1]);
//!     bob.send_to("hello", seen[0]);
//!     assert_eq!(alice.recv_from().await.0, "hello");
//!     Ok::<_, sim::SimError>(())
//! })?;
//! # Ok::<_, sim::SimError>(())
//! ```
//!
//! [`SimHost::move_to`] takes a laptop from one Wi-Fi to another, [`SimNat::reboot`] makes a box forget its mappings, and
//! [`SimNetwork::firewall`] puts a firewall before hosts and NATs. Links are found by the addresses that a packet carries
//! where it travels ([`SimNetwork::set_link`]); hosts and NATs may have an access link on top.
//!
//! # Whole nodes
//!
//! [`PandaNetworkOptions::with_simulation`](crate::PandaNetworkOptions::with_simulation) starts a node on a simulated host, and
//! a relay takes one too. `examples/nat_simulation.rs` shows the test of an editor that embeds a node: two laptops behind
//! NATs, a relay, and a change of network while both are typing. `panda demo --nat symmetric,port-restricted` plays a longer
//! story through any two kinds of NAT.
//!
//! # What breaks determinism
//!
//! - **Other threads.** `spawn_blocking` and multi-threaded runtimes: the clock does not move by itself while blocking
//!   work runs, and jumps ahead of work on threads tokio knows nothing of. Run storage inline.
//! - **`tokio::select!`** picks its first branch at random: write `biased;`.
//! - **Iteration over `HashMap` and `HashSet`**, whose order changes from process to process, where it decides what is
//!   sent first.
//! - **Wall clocks.** `std::time::Instant` and `SystemTime` do not follow the virtual clock; use `tokio::time::Instant`.
//! - **Randomness of the operating system** where it decides times, sizes or order. For quinn set
//!   [`quinn::EndpointConfig::rng_seed`] from [`Sim::derive_seed`]. Certificates must have one size in all runs: Ed25519
//!   keys (ECDSA signatures vary in length) and a fixed serial number (DER drops its leading zeros).
//!
//! # What it is not
//!
//! Tokio's timers tick in milliseconds. Links reckon in nanoseconds, and the trace shows those, but a socket is handed
//! a packet at the first tick at or after its arrival. Computing takes no time: a slow host cannot be simulated.
//! There is no ICMP, no DNS traffic, and no fragmentation: what is larger than an MTU vanishes. Addresses are never
//! translated between IPv4 and IPv6. TCP is enough to carry real protocols and to stall, be refused, and die as it does
//! in life, but it has no options and no keep-alives, and NATs do not let two sides open a connection at once.

mod firewall;
mod host;
mod hub;
mod inboxes;
mod lan;
mod link;
mod nat;
mod network;
mod options;
mod packet;
mod router;
mod run;
mod site;
mod socket;
mod tcp;
mod topology;
mod trace;

pub use firewall::FirewallOptions;
pub use host::SimHost;
pub use nat::{Behaviour, NatOptions, PortAllocation};
pub use network::{SimError, SimNetwork};
pub use options::{LinkOptions, SimOptions};
pub use packet::Protocol;
pub use run::{Sim, run};
pub use site::{SimNat, SimSite};
pub use socket::SimSocket;
pub use trace::{Fate, SimStats, TraceEvent};
