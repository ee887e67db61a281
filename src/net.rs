//! The port to the network of the machine: UDP sockets, TCP streams, names and interfaces.
//!
//! Nodes and relays take everything that leaves the machine from one [`HostNetwork`], so that the same code runs on the
//! operating system's network (`transports::host`) and on a simulated one (`sim`). Free of a runtime: sockets are polled,
//! and each half of a socket has one task that polls it.

use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::transport::BoxFuture;

/// The network as one machine sees it.
pub trait HostNetwork: Send + Sync + Debug {
    /// Binds a UDP socket; port 0 takes a free one.
    ///
    /// # Errors
    /// The environment's: the address is in use or not this machine's.
    fn bind_udp(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>>;

    /// Listens for TCP connections; port 0 takes a free one.
    ///
    /// # Errors
    /// As [`bind_udp`](Self::bind_udp).
    fn listen_tcp(&self, address: SocketAddr) -> io::Result<Box<dyn StreamListener>>;

    /// Connects by TCP, without waiting for segments to fill (`TCP_NODELAY`). No deadline: the caller has one.
    fn connect_tcp(&self, address: SocketAddr) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>>;

    /// The addresses of a name, or the address that it spells; at most 16.
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

    /// The addresses of the interfaces that are up, loopback among them.
    fn interface_addresses(&self) -> Vec<IpAddr>;

    /// The routers that lead out of this machine's networks, best first; a guess where the system does not tell. Default: none.
    fn gateways(&self) -> Vec<Gateway> {
        Vec::new()
    }

    /// A board in the local networks, for notices to everybody there. Default: there is none.
    ///
    /// # Errors
    /// The environment's: `Unsupported` where there is none.
    fn lan_board(&self) -> io::Result<Box<dyn LanBoard>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Where machines of one network post notices for whoever is there. Anybody can post anything, as often as they like.
/// Dropping it takes back what this machine posted.
pub trait LanBoard: Send + Debug {
    /// Puts a notice of at most `limits::LAN_NOTICE_MAX_BYTES` in the place of the last one, under names that tell
    /// nothing more; `None` takes it back. Best effort, and at once.
    fn post(&mut self, notice: Option<Vec<u8>>);

    /// The next notice that was heard, perhaps this machine's own; `None` when the board is gone.
    fn poll_heard(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<u8>>>;
}

/// A router, and the address of ours that it knows. IPv4: it is asked for ports, which IPv6 has no need of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    /// The router's address in our network.
    pub router: Ipv4Addr,
    /// Ours.
    pub interface: Ipv4Addr,
}

/// A bound UDP socket. Nothing that one datagram causes ends the socket: errors are about that datagram or that moment.
pub trait DatagramSocket: Send + Sync + Debug {
    /// Where it is bound, with the port that was chosen.
    fn local_address(&self) -> SocketAddr;

    /// Sends one datagram now or not at all.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full: the datagram is as good as lost. Otherwise what the system says.
    fn try_send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()>;

    /// The next datagram and who sent it; what does not fit the buffer is cut off. IPv4 senders are spelled as IPv4.
    fn poll_receive(&self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>>;
}

/// A stream of bytes in both directions. Dropping it closes it.
pub trait ByteStream: Send + Debug {
    /// Reads what is there; 0 is the end.
    fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
    /// Writes what there is room for.
    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;
    /// Says that nothing more will be written.
    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// The address of ours that it hangs on: when no interface has it any more, nothing more will come. `None`: not known.
    fn local_ip(&self) -> Option<IpAddr>;
}

/// Takes TCP connections.
pub trait StreamListener: Send + Debug {
    /// Where it listens, with the port that was chosen.
    fn local_address(&self) -> SocketAddr;
    /// The next connection and who made it.
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<io::Result<(Box<dyn ByteStream>, SocketAddr)>>;
}
