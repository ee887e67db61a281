//! One UDP socket under one quinn endpoint, with the peer's real address hidden behind a stable virtual one.
//!
//! quinn drops packets that come from another address than the one it dialled, so a path can only change below it. Going
//! out, [`PathSocket`] looks up the route of the virtual destination and sends by its path, or by all candidates while a
//! dial is under way. Coming in, it takes out what is not QUIC, and replaces the source by its virtual address; a source that
//! is new gets one. Segmentation offload passes through in both directions: a batch always has one source.
//!
//! An error that a socket reports is about one datagram or one moment, but quinn takes any error for the end of the
//! endpoint. So errors are counted, and reported upwards only when nothing else comes any more.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::paths::Paths;
use crate::limits::SOCKET_RECEIVE_ERRORS;

/// What went wrong on a socket since it was opened. None of it stops the socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketStats {
    /// Network addresses that the socket knows now.
    pub routes: usize,
    /// Datagrams (or batches) that could not be sent.
    pub send_errors: u64,
    /// Errors while receiving.
    pub receive_errors: u64,
    /// Datagrams (or batches) that were dropped: from new addresses while every route is in use, or to a forgotten one.
    pub dropped: u64,
    /// Packets that were not sent because too many went unanswered.
    pub withheld: u64,
    /// Datagrams that were sent once more on another path, or after a doubt, since nobody may have heard them.
    pub repeated: u64,
    /// Sockets of birthday punching that are open now.
    pub extra: usize,
}

/// The socket that quinn gets.
#[derive(Debug)]
pub(super) struct PathSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    paths: Arc<Paths>,
    receive_errors_in_a_row: AtomicU32,
}

impl PathSocket {
    /// A socket over `inner`, with virtual addresses drawn from `seed`, and what it will know of its paths.
    ///
    /// # Errors
    /// What `inner` says about its local address.
    pub(super) fn open(inner: Arc<dyn AsyncUdpSocket>, seed: &[u8; 32]) -> io::Result<(Arc<Self>, Arc<Paths>)> {
        let paths = Arc::new(Paths::new(inner.local_addr()?, &inner, seed));
        let socket = Self { inner, paths: paths.clone(), receive_errors_in_a_row: AtomicU32::new(0) };
        Ok((Arc::new(socket), paths))
    }
}

impl AsyncUdpSocket for PathSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.paths.transmit(&*self.inner, transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let injected = self.paths.take_injected(context, buffers, metas);
            if injected > 0 {
                return Poll::Ready(Ok(injected));
            }
            match self.inner.poll_recv(context, buffers, metas) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(count)) => {
                    self.receive_errors_in_a_row.store(0, Ordering::Relaxed);
                    self.paths.translate(&mut buffers[..count], &mut metas[..count]);
                    if metas[..count].iter().any(|meta| meta.len > 0) {
                        return Poll::Ready(Ok(count));
                    }
                }
                Poll::Ready(Err(error)) => {
                    self.paths.receive_errors.fetch_add(1, Ordering::Relaxed);
                    if self.receive_errors_in_a_row.fetch_add(1, Ordering::Relaxed) >= SOCKET_RECEIVE_ERRORS {
                        return Poll::Ready(Err(error));
                    }
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
    }

    /// Always IPv6, or quinn would refuse our virtual addresses.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        let ip = match self.paths.local_address().ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Ok(SocketAddr::from((ip, self.paths.local_address().port())))
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Sends a transmit to a real address. A source address that is gone must not keep it: without one the system chooses.
pub(super) fn send_to(
    socket: &dyn AsyncUdpSocket,
    local: SocketAddr,
    real: SocketAddr,
    transmit: &Transmit<'_>,
) -> io::Result<()> {
    let send = |src_ip| {
        let destination = match real {
            // A dual-stack socket wants IPv4 addresses in their IPv6 form.
            SocketAddr::V4(v4) if local.is_ipv6() => {
                SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
            }
            real => real,
        };
        socket.try_send(&Transmit {
            destination,
            ecn: transmit.ecn,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip,
        })
    };
    let source = transmit.src_ip.filter(|ip: &IpAddr| ip.to_canonical().is_ipv4() == real.is_ipv4());
    match send(source) {
        Err(error) if source.is_some() && error.kind() != io::ErrorKind::WouldBlock => send(None),
        sent => sent,
    }
}
