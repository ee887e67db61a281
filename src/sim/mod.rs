//! A simulated UDP network on a virtual clock, for tests of this crate and of editors that embed it.
//!
//! Hosts, links with latency, jitter, loss, reordering, duplication, bandwidth and MTU, partitions, and crashes. A
//! [`SimSocket`] is a [`quinn::AsyncUdpSocket`], so real node code runs over it unchanged. One seed decides everything:
//! the same program with the same seed gives the same packets at the same times, which [`SimNetwork::trace_digest`]
//! proves. A simulated day takes seconds.
//!
//! ```
//! use std::time::Duration;
//! use panda_network::sim::{self, LinkOptions, SimNetwork};
//!
//! let elapsed = sim::run(42, |sim| async move {
//!     let mobile = LinkOptions::new().with_latency(Duration::from_millis(60)).with_loss(0.5);
//!     let network = SimNetwork::new(sim.options().with_default_link(mobile));
//!     let alice = network.host([10, 0, 0, 1].into()).bind(4433)?;
//!     let bob = network.host([10, 0, 0, 2].into()).bind(4433)?;
//!
//!     let wait = Duration::from_secs(1); // of virtual time
//!     while let Err(_lost) = {
//!         alice.send_to("hello", bob.address());
//!         tokio::time::timeout(wait, bob.recv_from()).await
//!     } {}
//!
//!     network.partition(&[[10, 0, 0, 1].into()], &[[10, 0, 0, 2].into()]);
//!     alice.send_to("nobody hears this", bob.address());
//!     assert!(tokio::time::timeout(wait, bob.recv_from()).await.is_err());
//!     assert_eq!(network.stats().partitioned, 1);
//!     Ok::<_, sim::SimError>(sim.now())
//! })?;
//! assert!(elapsed > Duration::from_secs(1));
//! # Ok::<_, sim::SimError>(())
//! ```
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
//! A host has one address, and addresses are never rewritten: a socket on an IPv6 address does not reach IPv4 hosts,
//! not even by IPv4-mapped addresses.

mod firewall;
mod host;
mod hub;
mod inboxes;
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
