//! One UDP socket under one quinn endpoint, with the peer's real address hidden behind a stable virtual one.
//!
//! quinn drops packets that come from another address than the one it dialled, so a path can only change below it. Going
//! out, [`PathSocket`] looks up the [`Route`] of the virtual destination and sends to the real address, or to all
//! candidates while a dial is under way. Coming in, it replaces the real source by its virtual address; a source that is
//! new gets one. Segmentation offload passes through in both directions: a batch always has one source.
//!
//! An error that a socket reports is about one datagram or one moment, but quinn takes any error for the end of the
//! endpoint. So errors are counted here and reported upwards only when nothing else comes any more.
//!
//! Not here: telling QUIC from other protocols on the same socket, and moving a settled route.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::routes::{Route, RouteTable};
use crate::limits::{SOCKET_RECEIVE_ERRORS, SOCKET_ROUTES};

/// Domain separation of the virtual addresses from what else is derived from one seed.
const ADDRESS_CONTEXT: &str = "panda-network 2026 virtual addresses";

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
}

/// What the transport knows of its paths; outlives the socket, which quinn alone owns.
#[derive(Debug)]
pub(super) struct Paths {
    /// Where the real socket listens.
    local: SocketAddr,
    routes: Mutex<RouteTable>,
    send_errors: AtomicU64,
    receive_errors: AtomicU64,
    dropped: AtomicU64,
}

impl Paths {
    /// Where the real socket listens.
    pub(super) fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// True when the socket can send to `address` at all.
    pub(super) fn reaches(&self, address: &SocketAddr) -> bool {
        let ip = address.ip().to_canonical();
        let sane = address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast();
        sane && (self.local.is_ipv6() || ip.is_ipv4())
    }

    /// Routes to dial so that all candidates are tried; empty when the table is full of connections.
    pub(super) fn dial(self: &Arc<Self>, candidates: &[SocketAddr]) -> Vec<RouteGuard> {
        let candidates: Vec<_> = candidates.iter().copied().map(canonical).collect();
        let dialled = self.routes().dial(&candidates);
        dialled.into_iter().map(|address| RouteGuard { paths: self.clone(), address }).collect()
    }

    /// Keeps the route of a connection that a peer makes; `None` when it was forgotten meanwhile.
    pub(super) fn hold(self: &Arc<Self>, address: SocketAddr) -> Option<RouteGuard> {
        let held = self.routes().pin(&address);
        held.then(|| RouteGuard { paths: self.clone(), address })
    }

    /// The real address that a virtual one stands for; `None` while a dial is open.
    pub(super) fn real_address(&self, virtual_address: &SocketAddr) -> Option<SocketAddr> {
        match self.routes().route(virtual_address) {
            Some(Route::Settled(real)) => Some(*real),
            Some(Route::Probing { .. }) | None => None,
        }
    }

    /// What went wrong so far.
    pub(super) fn stats(&self) -> SocketStats {
        SocketStats {
            routes: self.routes().len(),
            send_errors: self.send_errors.load(Ordering::Relaxed),
            receive_errors: self.receive_errors.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    fn routes(&self) -> MutexGuard<'_, RouteTable> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to send a transmit of quinn's.
    fn resolve(&self, transmit: &Transmit<'_>) -> Destination {
        let mut routes = self.routes();
        match routes.route(&transmit.destination) {
            None => Destination::Unknown,
            Some(Route::Settled(real)) => Destination::One(*real),
            Some(Route::Probing { candidates, .. }) => {
                let candidates = candidates.clone();
                routes.on_probe(&transmit.destination, transmit.contents);
                Destination::All(candidates)
            }
        }
    }

    /// Puts virtual sources into what was received. A batch of an unknown source in a full table becomes empty.
    fn translate(&self, buffers: &[IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        let mut routes = self.routes();
        for (buffer, meta) in buffers.iter().zip(metas) {
            let first = &buffer[..meta.stride.min(meta.len).min(buffer.len())];
            match routes.on_receive(canonical(meta.addr), first) {
                Some(virtual_address) => meta.addr = virtual_address,
                None => {
                    meta.len = 0;
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }
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
        let paths = Arc::new(Paths {
            local: inner.local_addr()?,
            routes: Mutex::new(RouteTable::new(SOCKET_ROUTES, blake3::derive_key(ADDRESS_CONTEXT, seed))),
            send_errors: AtomicU64::new(0),
            receive_errors: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        });
        let socket = Self { inner, paths: paths.clone(), receive_errors_in_a_row: AtomicU32::new(0) };
        Ok((Arc::new(socket), paths))
    }

    fn send_to(&self, real: SocketAddr, transmit: &Transmit<'_>) -> io::Result<()> {
        let source = transmit.src_ip.filter(|ip| ip.to_canonical().is_ipv4() == real.is_ipv4());
        let sent = self.inner.try_send(&Transmit {
            destination: self.for_inner(real),
            ecn: transmit.ecn,
            contents: transmit.contents,
            segment_size: transmit.segment_size,
            src_ip: source,
        });
        match sent {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                self.paths.send_errors.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, "a datagram could not be sent");
                Ok(())
            }
            sent => sent,
        }
    }

    /// A dual-stack socket wants IPv4 addresses in their IPv6 form.
    fn for_inner(&self, real: SocketAddr) -> SocketAddr {
        match real {
            SocketAddr::V4(v4) if self.paths.local.is_ipv6() => {
                SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0))
            }
            real => real,
        }
    }
}

enum Destination {
    One(SocketAddr),
    All(Vec<SocketAddr>),
    Unknown,
}

impl AsyncUdpSocket for PathSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.paths.resolve(transmit) {
            Destination::One(real) => self.send_to(real, transmit),
            Destination::All(candidates) => {
                let sent: Vec<_> = candidates.into_iter().map(|real| self.send_to(real, transmit)).collect();
                // Blocked for some is loss for them; blocked for all is worth waiting for.
                if sent.iter().any(Result::is_ok) { Ok(()) } else { sent.into_iter().next().unwrap_or(Ok(())) }
            }
            // The farewell of a dial that was given up, or of a connection whose route was needed elsewhere.
            Destination::Unknown => {
                self.paths.dropped.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match self.inner.poll_recv(context, buffers, metas) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(count)) => {
                self.receive_errors_in_a_row.store(0, Ordering::Relaxed);
                self.paths.translate(&buffers[..count], &mut metas[..count]);
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => {
                self.paths.receive_errors.fetch_add(1, Ordering::Relaxed);
                if self.receive_errors_in_a_row.fetch_add(1, Ordering::Relaxed) >= SOCKET_RECEIVE_ERRORS {
                    return Poll::Ready(Err(error));
                }
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    /// Always IPv6, or quinn would refuse our virtual addresses.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        let ip = match self.paths.local.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Ok(SocketAddr::from((ip, self.paths.local.port())))
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

/// Keeps a route while a dial or a connection needs it.
#[derive(Debug)]
pub(super) struct RouteGuard {
    paths: Arc<Paths>,
    address: SocketAddr,
}

impl RouteGuard {
    /// The virtual address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RouteGuard {
    fn drop(&mut self) {
        self.paths.routes().unpin(&self.address);
    }
}

/// One spelling per address: IPv4 as IPv4, no flow label.
fn canonical(address: SocketAddr) -> SocketAddr {
    match (address, address.ip().to_canonical()) {
        (SocketAddr::V6(v6), IpAddr::V6(ip)) => SocketAddr::V6(SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id())),
        (address, ip) => SocketAddr::new(ip, address.port()),
    }
}
