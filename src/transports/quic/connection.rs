//! One connection to one peer, as the port offers it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use quinn::SendDatagramError;
use tokio::sync::oneshot;

use super::errors::connection_error;
use super::flush::FlushSet;
use super::inbound::Inbound;
use super::paths::{Paths, RouteGuard};
use super::peer_state::Live;
use super::stream_pool::StreamPool;
use super::streams::{Link, open};
use super::transport::QuicTransportImpl;
use super::traversal::{Kept, keep_paths};
use super::wire::{StreamType, code};
use crate::ids::PeerId;
use crate::rendezvous::address::RelayAddress;
use crate::transport::{
    BiStream, BoxFuture, CloseReason, Connection, ConnectionInfo, ConnectionStats, IncomingRequest, PathKind, Priority,
    TransportError, TransportKind,
};
use crate::watch;

/// A handshake that is complete, with the peer proved and its hello read.
#[derive(Debug)]
pub(super) struct Established {
    pub(super) quinn: quinn::Connection,
    pub(super) peer: PeerId,
    pub(super) hello: Bytes,
    pub(super) dialled: bool,
    pub(super) route: RouteGuard,
    /// Counts its moves to other paths.
    pub(super) epoch: Arc<AtomicU64>,
    /// Relays at which the peer may be found.
    pub(super) relays: Vec<RelayAddress>,
}

/// A live connection. It closes with [`CloseReason::Done`] when this and all its streams are dropped.
#[derive(Debug)]
pub(super) struct QuicConnection {
    peer: PeerId,
    hello: Bytes,
    dialled: bool,
    link: Arc<Link>,
    inbound: Arc<Inbound>,
    requests: StreamPool,
    paths: Arc<Paths>,
    path_kind: watch::Receiver<PathKind>,
}

impl QuicConnection {
    /// Counts a connection in and starts its one task, which sorts streams until the connection is gone.
    pub(super) fn start(transport: &QuicTransportImpl, established: Established) -> Arc<Self> {
        let Established { quinn, peer, hello, dialled, route, epoch, relays } = established;
        let flush = Arc::new(FlushSet::default());
        let idle_timeout = transport.options.idle_timeout;
        let link = Arc::new(Link { quinn: quinn.clone(), flush: flush.clone(), idle_timeout });
        let (path_stream, stream) = oneshot::channel();
        let inbound = Arc::new(Inbound::new(transport.counters.clone(), path_stream));
        let kind = watch::Sender::new(PathKind::Direct);
        let path_kind = kind.subscribe();
        let reports = Arc::default();
        if let Some(traversal) = transport.traversal.clone() {
            let paths = Arc::clone(&reports);
            let kept = Kept { quinn: quinn.clone(), peer, dialled, epoch, kind, paths, stream, relays };
            tokio::spawn(keep_paths(traversal, kept));
        }
        transport.pool.add(peer, Live { quinn: quinn.clone(), flush, paths: reports });
        tracing::debug!(peer = %peer.short(), dialled, "connected");

        let (pool, sorting, weak_link) = (transport.pool.clone(), inbound.clone(), Arc::downgrade(&link));
        tokio::spawn(async move {
            sorting.run(&quinn, &weak_link).await;
            let reason = connection_error(&quinn.closed().await, idle_timeout);
            tracing::debug!(peer = %peer.short(), %reason, "disconnected");
            pool.remove(&peer, quinn.stable_id());
            drop(route);
        });
        let paths = transport.paths.clone();
        Arc::new(Self { peer, hello, dialled, link, inbound, requests: StreamPool::new(), paths, path_kind })
    }

    /// Why there is nothing more to come. Only asked once the connection is gone.
    async fn reason(&self) -> TransportError {
        self.link.error(&self.link.quinn.closed().await)
    }
}

impl Drop for QuicConnection {
    fn drop(&mut self) {
        // Streams that nobody took would keep the connection open.
        self.inbound.clear();
    }
}

impl Connection for QuicConnection {
    fn info(&self) -> ConnectionInfo {
        ConnectionInfo {
            peer_id: self.peer,
            transport: TransportKind::Quic,
            dialled: self.dialled,
            remote_address: self.paths.path(&self.link.quinn.remote_address()).map(|path| path.remote),
            path: *self.path_kind.borrow(),
        }
    }

    fn stats(&self) -> ConnectionStats {
        let stats = self.link.quinn.stats();
        ConnectionStats {
            round_trip: stats.path.rtt,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            lost_packets: stats.path.lost_packets,
        }
    }

    fn peer_hello(&self) -> Bytes {
        self.hello.clone()
    }

    fn open_bi(&self, priority: Priority) -> BoxFuture<'_, Result<BiStream, TransportError>> {
        Box::pin(async move {
            let (send, recv) = open(&self.link, StreamType::Application(priority), priority).await?;
            Ok((Box::new(send) as _, Box::new(recv) as _))
        })
    }

    fn accept_bi(&self) -> BoxFuture<'_, Result<BiStream, TransportError>> {
        Box::pin(async move {
            match self.inbound.streams.pop().await {
                Some(stream) => Ok(stream),
                None => Err(self.reason().await),
            }
        })
    }

    fn send_datagram(&self, bytes: Bytes) -> Result<(), TransportError> {
        self.link.quinn.send_datagram(bytes).map_err(|error| match error {
            SendDatagramError::TooLarge => TransportError::Limit {
                what: "datagram bytes",
                limit: self.link.quinn.max_datagram_size().unwrap_or(0),
            },
            SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled => {
                TransportError::Protocol("the peer takes no datagrams".into())
            }
            SendDatagramError::ConnectionLost(error) => self.link.error(&error),
        })
    }

    fn read_datagram(&self) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(async move { self.link.quinn.read_datagram().await.map_err(|error| self.link.error(&error)) })
    }

    fn request(&self, request: Bytes, deadline: Duration) -> BoxFuture<'_, Result<Bytes, TransportError>> {
        Box::pin(self.requests.request(&self.link, request, deadline))
    }

    fn accept_request(&self) -> BoxFuture<'_, Result<IncomingRequest, TransportError>> {
        Box::pin(async move {
            match self.inbound.requests.pop().await {
                Some(request) => Ok(request),
                None => Err(self.reason().await),
            }
        })
    }

    fn export_secret(&self, label: &[u8]) -> Result<[u8; 32], TransportError> {
        let mut secret = [0; 32];
        let exported = self.link.quinn.export_keying_material(&mut secret, label, b"");
        exported.map_err(|_| TransportError::Protocol("no secret can be exported with this label".into()))?;
        Ok(secret)
    }

    fn close(&self, reason: CloseReason) {
        self.link.quinn.close(code(reason), b"");
    }

    fn closed(&self) -> BoxFuture<'_, TransportError> {
        Box::pin(self.reason())
    }
}

#[cfg(test)]
impl QuicConnection {
    /// quinn's own connection, for tests that break the protocol.
    pub(super) fn quinn(&self) -> &quinn::Connection {
        &self.link.quinn
    }
}
