//! [`SimHost`]: a machine of the simulation, which moves between networks, crashes, and is a [`HostNetwork`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::lan::SimLanBoard;
use super::network::{SimError, SimNetwork};
use super::options::LinkOptions;
use super::site::SimSite;
use super::socket::SimSocket;
use super::tcp::{SimListener, SimStream};
use super::topology::{HostId, Node};
use crate::net::{ByteStream, DatagramSocket, Gateway, HostNetwork, LanBoard, StreamListener};
use crate::transport::BoxFuture;

/// One host of a [`SimNetwork`]. Clones are handles to the same host, wherever it goes.
#[derive(Debug, Clone)]
pub struct SimHost {
    network: SimNetwork,
    id: HostId,
}

impl SimHost {
    pub(super) fn new(network: SimNetwork, id: HostId) -> Self {
        Self { network, id }
    }

    /// Its address now, the first if it has several.
    pub fn ip(&self) -> IpAddr {
        self.network.hub.with(|state| state.router.topology.first_address(self.id))
    }

    /// The network it is part of.
    pub fn network(&self) -> &SimNetwork {
        &self.network
    }

    /// Binds a UDP socket on all addresses that the host has and will have; port 0 takes the next free ephemeral port.
    ///
    /// # Errors
    /// When the port is in use or a bound is reached.
    pub fn bind(&self, port: u16) -> Result<Arc<SimSocket>, SimError> {
        SimSocket::bind(&self.network.hub, self.id, None, port)
    }

    /// Moves the host to one address at another site, as when a laptop goes from one Wi-Fi to another, or to mobile. It
    /// loses all addresses it had. Sockets on all addresses keep their port and send from the new one; sockets on one
    /// address, and TCP connections, get nothing through any more.
    ///
    /// # Errors
    /// When another node has the address there, or it is not that of one host; the host has not moved then.
    pub fn move_to(&self, site: &SimSite, ip: IpAddr) -> Result<(), SimError> {
        self.network.hub.with(|state| {
            let moved = state.router.topology.move_host(self.id, site.spot(), ip);
            state.on_moved();
            moved
        })
    }

    /// Gives the host one more address, for a second interface, or for IPv6 beside IPv4. It sends from the first address
    /// of the family that the destination has.
    ///
    /// # Errors
    /// When the address is taken there, or is not that of one host.
    pub fn add_address(&self, site: &SimSite, ip: IpAddr) -> Result<(), SimError> {
        self.network.hub.with(|state| {
            let added = state.router.topology.add_address(self.id, site.spot(), ip);
            state.on_moved();
            added
        })
    }

    /// The line that everything to and from this host crosses from now on, on top of the links in its network; each
    /// direction on its own. Default: none. Loopback does not cross it.
    pub fn with_access_link(self, link: LinkOptions) -> Self {
        self.network.hub.with(|state| state.router.topology.set_access_link(self.id, link));
        self
    }

    /// The router that the host asks for ports from now on, until another is named. Default: none. Nothing answers at the
    /// address of a NAT itself: put a host there that plays this part of a router.
    pub fn with_router(self, router: Ipv4Addr) -> Self {
        self.network.hub.with(|state| state.routers.insert(self.id, router));
        self
    }

    /// Stops the host without a goodbye, as when its power fails: its ports are free at once, its old sockets and streams
    /// send and receive nothing from now on, whoever still holds them. It answers TCP with silence until something is
    /// bound on it again, then it refuses what it does not know.
    pub fn crash(&self) {
        // Dropped here, after the lock: wakers may own a socket.
        let _dropped = self.network.hub.with(|state| state.crash(self.id));
    }

    /// Cuts the host from all others until [`reconnect`](Self::reconnect), as when its cable is pulled. It still reaches
    /// itself, and its sockets stay bound and give no error.
    pub fn isolate(&self) {
        self.network.hub.with(|state| state.router.isolate(Node::Host(self.id)));
    }

    /// Ends the isolation.
    pub fn reconnect(&self) {
        self.network.hub.with(|state| state.router.reconnect(Node::Host(self.id)));
    }
}

/// The unspecified address, of either family, stands for all addresses that the host has and will have.
fn specified(address: SocketAddr) -> Option<IpAddr> {
    Some(address.ip().to_canonical()).filter(|ip| !ip.is_unspecified())
}

impl HostNetwork for SimHost {
    fn bind_udp(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        let socket = SimSocket::bind(&self.network.hub, self.id, specified(address), address.port())?;
        Ok(socket)
    }

    fn listen_tcp(&self, address: SocketAddr) -> io::Result<Box<dyn StreamListener>> {
        let hub = &self.network.hub;
        let (id, port) = hub.with(|state| state.listen(self.id, specified(address), address.port()))?;
        Ok(Box::new(SimListener::new(hub.clone(), id, SocketAddr::new(address.ip(), port))))
    }

    fn connect_tcp(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>> {
        let (hub, host) = (self.network.hub.clone(), self.id);
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        Box::pin(async move {
            let id = hub.with(|state| state.connect(host, address))?;
            let stream = SimStream::new(hub, id);
            stream.connected().await?;
            let stream: Box<dyn ByteStream> = Box::new(stream);
            Ok(stream)
        })
    }

    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let named = || self.network.hub.with(|state| state.names.get(&host.to_ascii_lowercase()).cloned());
        let addresses = literal.map_or_else(|_| named(), |ip| Some(vec![ip]));
        let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("no address is known for {host}"));
        let resolved = addresses.ok_or_else(unknown);
        Box::pin(async move { Ok(resolved?.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()) })
    }

    fn interface_addresses(&self) -> Vec<IpAddr> {
        let mut addresses = self.network.hub.with(|state| state.router.topology.addresses(self.id));
        addresses.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
        addresses
    }

    fn gateways(&self) -> Vec<Gateway> {
        self.network.hub.with(|state| {
            let ours = state.router.topology.addresses(self.id);
            let interface = ours.into_iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
            let router = state.routers.get(&self.id).copied();
            router.zip(interface).map(|(router, interface)| Gateway { router, interface }).into_iter().collect()
        })
    }

    fn lan_board(&self) -> io::Result<Box<dyn LanBoard>> {
        Ok(Box::new(SimLanBoard::open(&self.network.hub, self.id)))
    }
}
