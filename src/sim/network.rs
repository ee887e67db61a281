//! [`SimNetwork`]: the handle with which a test builds a network, breaks it, heals it, and looks at what happened.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::hub::{Driver, Hub};
use super::options::{LinkOptions, SimOptions};
use super::socket::SimSocket;
use super::trace::{SimStats, TraceEvent};

/// A socket could not be bound in the simulation. The caller's mistake in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SimError {
    /// A socket is bound there already.
    #[error("{0} is in use; drop the socket that holds it, and all clones of a quinn endpoint over it")]
    AddressInUse(SocketAddr),
    /// A simulated host has exactly one unicast address.
    #[error("{0} is not the address of one host; bind to the host's own address")]
    NotAHost(IpAddr),
    /// All ephemeral ports of the host are taken.
    #[error("no ephemeral port is free on {0}")]
    NoFreePort(IpAddr),
    /// The bound on sockets of one network is reached.
    #[error("more than {0} sockets in one simulated network")]
    TooManySockets(usize),
}

impl From<SimError> for io::Error {
    fn from(error: SimError) -> Self {
        let kind = match error {
            SimError::AddressInUse(_) => io::ErrorKind::AddrInUse,
            SimError::NotAHost(_) => io::ErrorKind::InvalidInput,
            SimError::NoFreePort(_) | SimError::TooManySockets(_) => io::ErrorKind::AddrNotAvailable,
        };
        Self::new(kind, error)
    }
}

/// A simulated UDP network. Clones are handles to the same network; so are its sockets, which keep it alive.
///
/// Everything takes effect at once, and after what had arrived before.
#[derive(Debug, Clone)]
pub struct SimNetwork {
    hub: Arc<Hub>,
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

    /// The host with this address. Hosts need no declaration: this is a handle, not a resource.
    pub fn host(&self, ip: IpAddr) -> SimHost {
        SimHost { network: self.clone(), ip }
    }

    /// Binds a socket; port 0 takes the next free ephemeral port. Dropping the socket frees the address.
    ///
    /// # Errors
    /// When the address is in use, is not that of one host, or a bound is reached.
    pub fn bind(&self, address: SocketAddr) -> Result<Arc<SimSocket>, SimError> {
        let (address, id) = self.hub.with(|state| state.bind(address))?;
        Ok(Arc::new(SimSocket::new(self.hub.clone(), address, id)))
    }

    /// Conditions for packets from `from` to `to`, in this direction only, instead of the default. Packets on their
    /// way keep the arrival time they have.
    pub fn set_link(&self, from: IpAddr, to: IpAddr, link: LinkOptions) {
        self.hub.with(|state| state.router.set_link(from, to, link));
    }

    /// The same conditions in both directions; bandwidth counts for each on its own.
    pub fn set_link_both_ways(&self, a: IpAddr, b: IpAddr, link: LinkOptions) {
        self.set_link(a, b, link.clone());
        self.set_link(b, a, link);
    }

    /// Conditions between all hosts for which nothing else was set.
    pub fn set_default_link(&self, link: LinkOptions) {
        self.hub.with(|state| state.router.set_default_link(link));
    }

    /// Cuts every host of `left` from every host of `right`, both ways, until [`heal`](Self::heal). Packets on their
    /// way are cut too. Partitions add up; hosts within one group, and hosts in neither, are not affected.
    pub fn partition(&self, left: &[IpAddr], right: &[IpAddr]) {
        self.hub.with(|state| state.router.partition(left, right));
    }

    /// Ends all partitions. Isolated hosts stay isolated.
    pub fn heal(&self) {
        self.hub.with(|state| state.router.heal());
    }

    /// Cuts a host from all others until [`reconnect`](Self::reconnect), as when its cable is pulled. It still reaches
    /// itself, and its sockets stay bound and give no error.
    pub fn isolate(&self, host: IpAddr) {
        self.hub.with(|state| state.router.isolate(host));
    }

    /// Ends the isolation of a host. Partitions it is part of stay.
    pub fn reconnect(&self, host: IpAddr) {
        self.hub.with(|state| state.router.reconnect(host));
    }

    /// Stops a host without a goodbye, as when its power fails: its addresses are free at once, its old sockets send
    /// and receive nothing from now on, whoever still holds them.
    pub fn crash(&self, host: IpAddr) {
        // The inboxes are dropped here, after the lock: their wakers may own a socket.
        let _inboxes = self.hub.with(|state| state.unbind_all(host));
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

/// One host of a [`SimNetwork`].
#[derive(Debug, Clone)]
pub struct SimHost {
    network: SimNetwork,
    ip: IpAddr,
}

impl SimHost {
    /// Its address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Binds a socket on this host, see [`SimNetwork::bind`].
    ///
    /// # Errors
    /// As [`SimNetwork::bind`].
    pub fn bind(&self, port: u16) -> Result<Arc<SimSocket>, SimError> {
        self.network.bind(SocketAddr::new(self.ip, port))
    }
}
