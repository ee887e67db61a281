//! What comes by the paths: quinn's datagrams get virtual sources, what is not QUIC goes to whoever listens.

use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

use bytes::Bytes;
use quinn::udp::RecvMeta;

use super::{Paths, Received};
use crate::limits::SOCKET_INJECTED;
use crate::nat::path::{Path, Via};
use crate::rendezvous::forward::parse_forward;
use crate::transports::quic::addresses::canonical;
use crate::transports::quic::demux::{Protocol, protocol, retain_segments};

impl Paths {
    /// A datagram that came in another way than by the socket, as if it had come by this path.
    pub(in crate::transports::quic) fn inject(&self, path: Path, datagram: &[u8]) {
        if protocol(datagram) == Protocol::Stun {
            return self.on_stun(path, datagram);
        }
        let mut injected = self.injected();
        if injected.queue.len() >= SOCKET_INJECTED {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        injected.queue.push_back((path, datagram.to_vec()));
        let reader = injected.reader.take();
        drop(injected);
        reader.inspect(Waker::wake_by_ref);
    }

    /// Takes out what is not quinn's and puts virtual sources into the rest. A batch with nothing left becomes empty.
    pub(in crate::transports::quic) fn translate(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) {
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let len = meta.len.min(buffer.len());
            let (batch, source) = (&mut buffer[..len], canonical(meta.addr));
            meta.len = self.take_out(batch, meta.stride, source);
            let first = &buffer[..meta.stride.min(meta.len)];
            if meta.len > 0 {
                match self.routes().on_receive(Path::direct(source), first) {
                    Some(virtual_address) => meta.addr = virtual_address,
                    None => {
                        meta.len = 0;
                        self.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// Takes what is not QUIC out of a batch; returns the length of what is left.
    pub(super) fn take_out(&self, batch: &mut [u8], stride: usize, source: SocketAddr) -> usize {
        let turn = self.turn();
        let link = turn.iter().find(|(_, link)| link.server() == Some(source));
        if let Some((allocation, link)) = link.map(|(allocation, link)| (*allocation, link.clone())) {
            drop(turn);
            return retain_segments(batch, stride, |datagram| {
                match link.receive(datagram) {
                    Received::Payload { peer, payload } => {
                        self.inject(Path { via: Via::Turn { allocation }, remote: canonical(peer) }, payload);
                    }
                    Received::Taken => self.on_server_answer(source),
                    // A TURN server has no business to speak QUIC from this address.
                    Received::Other => _ = self.is_quic(source, datagram),
                }
                false
            });
        }
        drop(turn);
        retain_segments(batch, stride, |datagram| self.is_quic(source, datagram))
    }

    /// Whether a datagram is quinn's; others are handed on to whom they are for.
    pub(super) fn is_quic(&self, source: SocketAddr, datagram: &[u8]) -> bool {
        match protocol(datagram) {
            Protocol::Quic => return true,
            Protocol::Stun => self.on_stun(Path::direct(source), datagram),
            Protocol::Forward { flow } => {
                let from_relay = self.relays.read().unwrap_or_else(PoisonError::into_inner).contains_key(&source);
                if let (true, Some((_, payload))) = (from_relay, parse_forward(datagram)) {
                    self.inject(Path { via: Via::Forward { flow }, remote: source }, payload);
                }
            }
        }
        false
    }

    /// Fills buffers with what was injected; returns how many, or remembers whom to wake.
    pub(in crate::transports::quic) fn take_injected(
        &self,
        context: &Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> usize {
        let mut filled = 0;
        for (buffer, meta) in buffers.iter_mut().zip(metas) {
            let mut injected = self.injected();
            let Some((path, datagram)) = injected.queue.pop_front() else {
                injected.reader = Some(context.waker().clone());
                break;
            };
            drop(injected);
            let len = datagram.len().min(buffer.len());
            buffer[..len].copy_from_slice(&datagram[..len]);
            let source = self.routes().on_receive(path, &datagram);
            *meta = RecvMeta { len, stride: len, addr: self.local, ecn: None, dst_ip: None };
            match source {
                Some(virtual_address) => meta.addr = virtual_address,
                None => {
                    meta.len = 0;
                    self.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            filled += 1;
        }
        filled
    }

    pub(super) fn on_stun(&self, path: Path, datagram: &[u8]) {
        if self.stun.try_send((path, Bytes::copy_from_slice(datagram))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
