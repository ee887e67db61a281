//! [`SimSocket`]: a UDP socket of the simulation, for quinn and for code that wants plain datagrams.

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use super::hub::{Hub, Inbox};
use super::router::Packet;

/// Datagrams that one [`Transmit`] may carry (generic segmentation offload).
const TRANSMIT_SEGMENTS: usize = 10;

/// A bound UDP socket in a [`SimNetwork`](super::SimNetwork); hand it to [`quinn::Endpoint::new_with_abstract_socket`].
///
/// Sending never blocks and never fails: as on a real network, what cannot pass is lost. One task at a time may wait
/// for datagrams. Dropping the last handle frees the address; datagrams that wait in it are gone.
#[derive(Debug)]
pub struct SimSocket {
    hub: Arc<Hub>,
    address: SocketAddr,
    id: u64,
}

impl SimSocket {
    pub(super) fn new(hub: Arc<Hub>, address: SocketAddr, id: u64) -> Self {
        Self { hub, address, id }
    }

    /// The address it is bound to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends one datagram.
    pub fn send_to(&self, payload: impl Into<Bytes>, to: SocketAddr) {
        self.send([payload.into()], to, None);
    }

    /// The next datagram and its sender. Cancel-safe. Never resolves after the host crashed.
    pub async fn recv_from(&self) -> (Bytes, SocketAddr) {
        poll_fn(|context| {
            self.poll_inbox(context, |inbox| {
                let packet = inbox.queue.pop_front()?;
                Some((packet.payload, packet.from))
            })
        })
        .await
    }

    fn send(&self, payloads: impl IntoIterator<Item = Bytes>, to: SocketAddr, ecn: Option<EcnCodepoint>) {
        let (from, to) = (self.address, SocketAddr::new(to.ip(), to.port()));
        self.hub.with(|state| {
            if state.inbox(from, self.id).is_none() {
                return;
            }
            for payload in payloads {
                state.router.route(state.now, Packet { from, to, ecn, payload });
            }
        });
    }

    /// What `take` finds in the inbox, or a promise to wake the task.
    fn poll_inbox<T>(&self, context: &Context<'_>, take: impl FnOnce(&mut Inbox) -> Option<T>) -> Poll<T> {
        let (taken, _replaced): (_, Option<Waker>) = self.hub.with(|state| {
            let Some(inbox) = state.inbox(self.address, self.id) else { return (None, None) };
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
        let _inbox = self.hub.with(|state| state.unbind(self.address, self.id));
    }
}

impl AsyncUdpSocket for SimSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let batch = Bytes::copy_from_slice(transmit.contents);
        let segment = transmit.segment_size.filter(|size| *size > 0).unwrap_or(batch.len());
        self.send(segments(batch, segment), transmit.destination, transmit.ecn);
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
                *meta = fill(buffer, &packet);
                filled += 1;
            }
            (filled > 0).then_some(filled)
        });
        taken.map(Ok)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn max_transmit_segments(&self) -> usize {
        TRANSMIT_SEGMENTS
    }

    /// Links drop what is larger than their MTU, so MTU discovery works.
    fn may_fragment(&self) -> bool {
        false
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
fn fill(buffer: &mut [u8], packet: &Packet) -> RecvMeta {
    let len = packet.payload.len().min(buffer.len());
    buffer[..len].copy_from_slice(&packet.payload[..len]);
    RecvMeta { addr: packet.from, len, stride: len, ecn: packet.ecn, dst_ip: Some(packet.to.ip()) }
}

/// Sending never waits.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
