//! [`SimSocket`]: a UDP socket of the simulation, for quinn and for code that wants plain datagrams.

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::hub::Hub;
use super::inboxes::Inbox;
use super::network::SimError;
use super::packet::{Content, Packet};
use super::topology::HostId;
use crate::net::DatagramSocket;

/// Datagrams that one [`Transmit`] may carry (generic segmentation offload).
const TRANSMIT_SEGMENTS: usize = 10;

/// A bound UDP socket in a [`SimNetwork`](super::SimNetwork); hand it to [`quinn::Endpoint::new_with_abstract_socket`],
/// or use it as a [`DatagramSocket`].
///
/// Sending never blocks and never fails: as on a real network, what cannot pass is lost. One task at a time may wait
/// for datagrams. Dropping the last handle frees the port; datagrams that wait in it are gone.
///
/// Unless it is bound to one address, it goes where its host goes: it then sends from the new address and keeps its port.
#[derive(Debug)]
pub struct SimSocket {
    hub: Arc<Hub>,
    host: HostId,
    id: u64,
    /// `None`: all addresses of the host.
    ip: Option<IpAddr>,
    port: u16,
}

impl SimSocket {
    /// Binds a socket, on one address of the host or on all (`None`), with port 0 on a free port.
    pub(super) fn bind(hub: &Arc<Hub>, host: HostId, ip: Option<IpAddr>, port: u16) -> Result<Arc<Self>, SimError> {
        let (id, port) = hub.with(|state| state.bind(host, ip, port))?;
        Ok(Arc::new(Self { hub: hub.clone(), host, id, ip, port }))
    }

    /// Its address now: that of its host, the first if there are several.
    pub fn address(&self) -> SocketAddr {
        let first = || self.hub.with(|state| state.router.topology.first_address(self.host));
        SocketAddr::new(self.ip.unwrap_or_else(first), self.port)
    }

    /// Sends one datagram.
    pub fn send_to(&self, payload: impl Into<Bytes>, to: SocketAddr) {
        // Without an address of that family it is lost.
        let _ = self.send([payload.into()], to, None, None);
    }

    /// The next datagram and its sender. Cancel-safe. Never resolves after the host crashed.
    pub async fn recv_from(&self) -> (Bytes, SocketAddr) {
        poll_fn(|context| self.poll_inbox(context, |inbox| inbox.queue.pop_front().map(datagram))).await
    }

    /// Sends from `source` if that is an address of the host, else from the one it is bound to, else from the host's
    /// first of the family of `to`.
    fn send(
        &self,
        payloads: impl IntoIterator<Item = Bytes>,
        to: SocketAddr,
        source: Option<IpAddr>,
        ecn: Option<EcnCodepoint>,
    ) -> Result<(), SimError> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        self.hub.with(|state| {
            if state.inboxes.get(self.id).is_none() {
                return Ok(());
            }
            let topology = &state.router.topology;
            let source =
                source.filter(|ip| topology.interface(self.host, *ip).is_some() && ip.is_ipv4() == to.is_ipv4());
            let ip = self.ip.or(source).or_else(|| topology.source(self.host, to)).ok_or(SimError::NoRoute(to))?;
            for payload in payloads {
                let (from, content) = (SocketAddr::new(ip, self.port), Content::Datagram { ecn, payload });
                state.router.route(state.now, self.host, Packet { from, to, content });
            }
            Ok(())
        })
    }

    /// What `take` finds in the inbox, or a promise to wake the task.
    fn poll_inbox<T>(&self, context: &Context<'_>, take: impl FnOnce(&mut Inbox) -> Option<T>) -> Poll<T> {
        let (taken, _replaced): (_, Option<Waker>) = self.hub.with(|state| {
            let Some(inbox) = state.inboxes.get(self.id) else { return (None, None) };
            match take(inbox) {
                Some(taken) => (Some(taken), None),
                None => (None, inbox.reader.replace(context.waker().clone())),
            }
        });
        taken.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for SimSocket {
    fn drop(&mut self) {
        let _inbox = self.hub.with(|state| state.inboxes.unbind(self.id));
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let batch = Bytes::copy_from_slice(transmit.contents);
        let segment = transmit.segment_size.filter(|size| *size > 0).unwrap_or(batch.len());
        // An endpoint takes an error for its end; a datagram without a route is a lost one.
        let _ = self.send(segments(batch, segment), transmit.destination, transmit.src_ip, transmit.ecn);
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let taken = self.poll_inbox(context, |inbox| {
            let mut filled = 0;
            for (buffer, meta) in buffers.iter_mut().zip(metas) {
                let Some(packet) = inbox.queue.pop_front() else { break };
                *meta = fill(buffer, packet);
                filled += 1;
            }
            (filled > 0).then_some(filled)
        });
        taken.map(Ok)
    }

    /// The unspecified IPv6 address, as of a dual-stack socket, when it is on all addresses of a host that has both families.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        let addresses = self.hub.with(|state| state.router.topology.addresses(self.host));
        let has = |v4: bool| addresses.iter().any(|ip| ip.is_ipv4() == v4);
        let both = self.ip.is_none() && has(true) && has(false);
        Ok(if both { (Ipv6Addr::UNSPECIFIED, self.port).into() } else { self.address() })
    }

    fn max_transmit_segments(&self) -> usize {
        TRANSMIT_SEGMENTS
    }

    /// Links drop what is larger than their MTU, so MTU discovery works.
    fn may_fragment(&self) -> bool {
        false
    }
}

impl DatagramSocket for SimSocket {
    /// With the unspecified address when it goes where its host goes.
    fn local_address(&self) -> SocketAddr {
        let unspecified = || match self.address() {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        SocketAddr::new(self.ip.unwrap_or_else(unspecified), self.port)
    }

    fn try_send(&self, to: SocketAddr, datagram: &[u8]) -> io::Result<()> {
        self.send([Bytes::copy_from_slice(datagram)], to, None, None).map_err(io::Error::from)
    }

    fn poll_receive(&self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>> {
        self.poll_inbox(context, |inbox| {
            let (payload, from) = datagram(inbox.queue.pop_front()?);
            Some(Ok((copy(buffer, &payload), from)))
        })
    }
}

/// Cuts a batch into datagrams; an empty one is one empty datagram.
fn segments(mut batch: Bytes, segment: usize) -> impl Iterator<Item = Bytes> {
    let mut more = true;
    std::iter::from_fn(move || {
        let datagram = more.then(|| batch.split_to(segment.min(batch.len())));
        more = !batch.is_empty();
        datagram
    })
}

/// Copies one datagram, cut off at the end of the buffer as UDP does.
fn fill(buffer: &mut [u8], packet: Packet) -> RecvMeta {
    let dst_ip = Some(packet.to.ip());
    let ecn = match packet.content {
        Content::Datagram { ecn, .. } => ecn,
        Content::Segment(_) => None,
    };
    let (payload, addr) = datagram(packet);
    let len = copy(buffer, &payload);
    RecvMeta { addr, len, stride: len, ecn, dst_ip }
}

fn copy(buffer: &mut [u8], payload: &[u8]) -> usize {
    let len = payload.len().min(buffer.len());
    buffer[..len].copy_from_slice(&payload[..len]);
    len
}

/// Sockets get nothing but datagrams.
fn datagram(packet: Packet) -> (Bytes, SocketAddr) {
    match packet.content {
        Content::Datagram { payload, .. } => (payload, packet.from),
        Content::Segment(_) => (Bytes::new(), packet.from),
    }
}

/// Sending never waits.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
