//! The operating system's UDP socket as quinn wants it, but for one thing: errors of sending are reported.
//!
//! quinn's own socket swallows them. A network that says that it is gone is worth a fail-over at once, so
//! [`PathSocket`](super::path_socket::PathSocket) looks at them; it never hands them on to quinn.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

/// Size that is asked for the socket's buffers, in bytes; the system may give less.
const SOCKET_BUFFER_BYTES: usize = 2 * 1024 * 1024;

/// A bound socket.
#[derive(Debug)]
pub(super) struct Udp {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
}

impl Udp {
    /// Opens the socket: where it was asked for, else on all addresses of both families, else of IPv4.
    ///
    /// # Errors
    /// The environment's: the address is in use or not this machine's.
    pub(super) fn open(listen: Option<SocketAddr>) -> io::Result<Arc<Self>> {
        let socket = match listen {
            Some(address) => bind(address)?,
            None => bind((Ipv6Addr::UNSPECIFIED, 0).into()).or_else(|_| bind((Ipv4Addr::UNSPECIFIED, 0).into()))?,
        };
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Arc::new(Self { io: tokio::net::UdpSocket::from_std(socket)?, state }))
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    // Best effort: without them bursts are lost earlier, and QUIC repairs that.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl AsyncUdpSocket for Udp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(WaitWritable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), transmit))
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(context))?;
            match self.io.try_io(Interest::READABLE, || self.state.recv((&self.io).into(), buffers, metas)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                received => return Poll::Ready(received),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// One waiter for room in the socket; every connection has its own.
struct WaitWritable {
    socket: Arc<Udp>,
    waiting: Option<Waiting>,
}

impl UdpPoller for WaitWritable {
    fn poll_writable(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.socket.clone();
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(async move { socket.io.writable().await }));
        let ready = ready!(waiting.as_mut().poll(context));
        self.waiting = None;
        Poll::Ready(ready)
    }
}

impl std::fmt::Debug for WaitWritable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WaitWritable")
    }
}
