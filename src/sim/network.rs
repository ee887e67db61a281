//! [`SimNetwork`]: the handle with which a test builds a network, breaks it, heals it, and looks at what happened.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::firewall::FirewallOptions;
use super::host::SimHost;
use super::hub::{Driver, Hub};
use super::nat::NatOptions;
use super::options::{LinkOptions, SimOptions};
use super::site::{SimNat, SimSite};
use super::socket::SimSocket;
use super::topology::{Node, Realm, Spot};
use super::trace::{SimStats, TraceEvent};

/// Addresses of one name. More: the newest are ignored.
const MAX_ADDRESSES_OF_A_NAME: usize = 16;

/// Something could not be had in the simulation. The caller's mistake in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SimError {
    /// A socket is bound there already.
    #[error("{0} is in use; drop the socket that holds it, and all clones of a quinn endpoint over it")]
    AddressInUse(SocketAddr),
    /// Hosts and NATs have unicast addresses.
    #[error("{0} is not the address of one host; bind to the host's own address")]
    NotAHost(IpAddr),
    /// The host does not have this address, or no longer.
    #[error("{0} is not an address of this host; bind to the unspecified address to use all it has")]
    NotAnAddressOfTheHost(IpAddr),
    /// Another host or NAT of the same network has it.
    #[error("{0} belongs to another host or NAT of this network; choose another")]
    AddressTaken(IpAddr),
    /// The host has no address of this family.
    #[error("the host has no address from which it could reach {0}")]
    NoRoute(SocketAddr),
    /// All ephemeral ports of the host are taken.
    #[error("no ephemeral port is free on {0}")]
    NoFreePort(IpAddr),
    /// The bound on sockets of one network is reached.
    #[error("too many sockets in one simulated network; drop some")]
    TooManySockets,
}

impl From<SimError> for io::Error {
    fn from(error: SimError) -> Self {
        let kind = match error {
            SimError::AddressInUse(_) | SimError::AddressTaken(_) => io::ErrorKind::AddrInUse,
            SimError::NotAHost(_) => io::ErrorKind::InvalidInput,
            SimError::NoRoute(_) => io::ErrorKind::NetworkUnreachable,
            SimError::NoFreePort(_) | SimError::TooManySockets | SimError::NotAnAddressOfTheHost(_) => {
                io::ErrorKind::AddrNotAvailable
            }
        };
        Self::new(kind, error)
    }
}

/// A simulated network. Clones are handles to the same network; so are its sockets, which keep it alive.
///
/// Everything takes effect at once, and after what had arrived before.
#[derive(Debug, Clone)]
pub struct SimNetwork {
    pub(super) hub: Arc<Hub>,
}

impl SimNetwork {
    /// A network without hosts; its time starts now.
    ///
    /// # Panics
    /// Outside a tokio runtime with time enabled. [`sim::run`](super::run) makes one, with a paused clock.
    pub fn new(options: SimOptions) -> Self {
        let hub = Arc::new(Hub::new(&options));
        tokio::spawn(Driver::new(Arc::downgrade(&hub)));
        Self { hub }
    }

    /// The network outside of all NATs. [`host`](Self::host), [`nat`](Self::nat), and [`firewall`](Self::firewall) are its.
    pub fn internet(&self) -> SimSite {
        SimSite::new(self.clone(), Spot { realm: Realm::INTERNET, firewall: None })
    }

    /// The host that has this address on the internet now, or a new one, see [`SimSite::host`].
    ///
    /// # Panics
    /// As [`SimSite::host`].
    pub fn host(&self, ip: IpAddr) -> SimHost {
        self.internet().host(ip)
    }

    /// A new NAT with this public address, see [`SimSite::nat`].
    ///
    /// # Errors
    /// As [`SimSite::nat`].
    pub fn nat(&self, ip: IpAddr, options: NatOptions) -> Result<SimNat, SimError> {
        self.internet().nat(ip, options)
    }

    /// A place on the internet behind a new firewall, see [`SimSite::firewall`].
    pub fn firewall(&self, options: FirewallOptions) -> SimSite {
        self.internet().firewall(options)
    }

    /// Binds a UDP socket of a host on the internet; port 0 takes the next free ephemeral port. Dropping the socket frees
    /// the port.
    ///
    /// # Errors
    /// When the port is in use, the address is not that of one host, or a bound is reached.
    pub fn bind(&self, address: SocketAddr) -> Result<Arc<SimSocket>, SimError> {
        self.internet().find_host(address.ip())?.bind(address.port())
    }

    /// Lets a name stand for an address, everywhere and at once; several calls give it several, up to 16.
    pub fn name(&self, name: &str, ip: IpAddr) {
        self.hub.with(|state| {
            let addresses = state.names.entry(name.to_ascii_lowercase()).or_default();
            if addresses.len() < MAX_ADDRESSES_OF_A_NAME && !addresses.contains(&ip) {
                addresses.push(ip);
            }
        });
    }

    /// Conditions for packets from `from` to `to`, in this direction only, instead of the default. Packets on their
    /// way keep the arrival time they have.
    ///
    /// The addresses are those that the packet carries where both are: between two hosts behind NATs on the internet,
    /// the public addresses of the NATs; between two hosts of one home, their own.
    pub fn set_link(&self, from: IpAddr, to: IpAddr, link: LinkOptions) {
        self.hub.with(|state| state.router.set_link(from, to, link));
    }

    /// The same conditions in both directions; bandwidth counts for each on its own.
    pub fn set_link_both_ways(&self, a: IpAddr, b: IpAddr, link: LinkOptions) {
        self.set_link(a, b, link.clone());
        self.set_link(b, a, link);
    }

    /// Conditions between all addresses on the internet for which nothing else was set. With 50 ms here and no access
    /// links, every round trip between two homes takes 100 ms.
    pub fn set_default_link(&self, link: LinkOptions) {
        self.hub.with(|state| state.router.set_default_link(link));
    }

    /// Cuts every host of `left` from every host of `right`, both ways, until [`heal`](Self::heal). Packets on their
    /// way are cut too. Partitions add up; hosts within one group, and hosts in neither, are not affected. The address of
    /// a NAT stands for all hosts behind it, as in [`set_link`](Self::set_link).
    pub fn partition(&self, left: &[IpAddr], right: &[IpAddr]) {
        self.hub.with(|state| state.router.partition(left, right));
    }

    /// Ends all partitions. Isolated hosts stay isolated.
    pub fn heal(&self) {
        self.hub.with(|state| state.router.heal());
    }

    /// Cuts the host or NAT with this address on the internet from all others until [`reconnect`](Self::reconnect), as
    /// when its cable is pulled. It still reaches itself, and its sockets stay bound and give no error.
    pub fn isolate(&self, ip: IpAddr) {
        if let Some(node) = self.node(ip) {
            self.hub.with(|state| state.router.isolate(node));
        }
    }

    /// Ends the isolation of a host or NAT. Partitions it is part of stay.
    pub fn reconnect(&self, ip: IpAddr) {
        if let Some(node) = self.node(ip) {
            self.hub.with(|state| state.router.reconnect(node));
        }
    }

    /// Stops the host with this address on the internet, see [`SimHost::crash`].
    pub fn crash(&self, ip: IpAddr) {
        if let Ok(host) = self.internet().find_host(ip) {
            host.crash();
        }
    }

    /// Who is at an address on the internet; a host, if there was nobody.
    fn node(&self, ip: IpAddr) -> Option<Node> {
        // An error says that a NAT is there, or that nobody can be.
        let _ = self.internet().find_host(ip);
        self.hub.with(|state| state.router.topology.place(Realm::INTERNET, ip).map(|place| place.node))
    }

    /// Time since the network was created.
    pub fn now(&self) -> Duration {
        self.hub.with(|state| state.now)
    }

    /// Digest over all events so far. Two runs of one program with one seed have the same digest at the same time;
    /// where they differ, something outside the seed took part in a decision.
    pub fn trace_digest(&self) -> u64 {
        self.hub.with(|state| state.router.digest())
    }

    /// The newest events, oldest first; as many as [`SimOptions::with_recorded_events`] keeps.
    pub fn trace(&self) -> Vec<TraceEvent> {
        self.hub.with(|state| state.router.events())
    }

    /// Counters since the network was created.
    pub fn stats(&self) -> SimStats {
        self.hub.with(|state| state.router.stats())
    }
}
