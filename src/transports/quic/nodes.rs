//! Dials p2panda Nodes over the same socket and endpoint: raw public keys, no hello, plain streams.
//!
//! A Node is not in the pool of peers, and its paths are not watched over: it does not answer our checks. Its route is kept
//! while the connection is there, so that others at its address do not take it away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::IdleTimeout;
use quinn::crypto::rustls::QuicClientConfig;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::dial::same_address;
use super::errors::connection_error;
use super::flush::FlushSet;
use super::paths::RouteGuard;
use super::streams::{Link, QuicRecv, QuicSend};
use super::transport::{QuicTransport, QuicTransportImpl};
use super::wire::code;
use crate::limits::{BRIDGE_IDLE_TIMEOUT, BRIDGE_SEND_WINDOW_BYTES, SOCKET_ROUTES};
use crate::nodes::{NodeConnection, NodeDialler, P2pandaNode};
use crate::transport::{BiStream, BoxFuture, CloseReason, Priority, TransportError, TransportKind};
use crate::transports::tls;

impl NodeDialler for QuicTransport {
    fn dial_node<'a>(
        &'a self,
        node: &'a P2pandaNode,
        protocol: &'a [u8],
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn NodeConnection>, TransportError>> {
        Box::pin(async move {
            let dialled = timeout(deadline, dial(self.inner(), node, protocol)).await;
            let connection = dialled.unwrap_or(Err(TransportError::Timeout(deadline)))?;
            Ok(Box::new(connection) as Box<dyn NodeConnection>)
        })
    }
}

/// A live connection to a Node.
#[derive(Debug)]
struct Connected {
    link: Arc<Link>,
    _route: RouteGuard,
}

async fn dial(
    transport: &Arc<QuicTransportImpl>,
    node: &P2pandaNode,
    protocol: &[u8],
) -> Result<Connected, TransportError> {
    // A packet to any address would show where this node is.
    let hidden = transport.traversal.as_ref().is_some_and(|traversal| traversal.options.relay_only);
    let addresses = node.addresses().iter().copied().filter(|address| !hidden && transport.paths.reaches(address));
    let mut addresses: Vec<_> = addresses.collect();
    let mut error = TransportError::NoAddress(TransportKind::Quic);
    while !addresses.is_empty() {
        let before = addresses.len();
        match race(transport, node, &addresses, protocol).await {
            Ok(connected) => return Ok(connected),
            Err((failed, strangers)) => {
                error = failed;
                addresses.retain(|address| !strangers.iter().any(|stranger| same_address(address, stranger)));
            }
        }
        // Only a stranger who answered gives reason to ask again who else is there.
        if addresses.len() == before {
            break;
        }
    }
    Err(error)
}

/// One handshake for all addresses that nobody else uses. When it fails: why, and who answered.
async fn race(
    transport: &Arc<QuicTransportImpl>,
    node: &P2pandaNode,
    addresses: &[SocketAddr],
    protocol: &[u8],
) -> Result<Connected, (TransportError, Vec<SocketAddr>)> {
    let mut error = TransportError::Limit { what: "routes", limit: SOCKET_ROUTES };
    let mut strangers = Vec::new();
    let mut attempts = JoinSet::new();
    for route in transport.paths.dial(addresses) {
        let (transport, node, protocol) = (transport.clone(), node.clone(), protocol.to_vec());
        attempts.spawn(async move {
            let quinn = handshake(&transport, &node, &route, &protocol).await;
            let answered = transport.paths.path(&route.address()).map(|path| path.remote);
            quinn.map(|link| Connected { link, _route: route }).map_err(|error| (error, answered))
        });
    }
    while let Some(attempted) = attempts.join_next().await {
        match attempted {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err((failed, answered))) => {
                error = failed;
                strangers.extend(answered);
            }
            Err(stopped) => error = TransportError::Lost(stopped.to_string()),
        }
    }
    Err((error, strangers))
}

async fn handshake(
    transport: &QuicTransportImpl,
    node: &P2pandaNode,
    route: &RouteGuard,
    protocol: &[u8],
) -> Result<Arc<Link>, TransportError> {
    let idle_timeout = transport.options.idle_timeout.min(BRIDGE_IDLE_TIMEOUT);
    let (endpoint, limit) = (transport.endpoint()?, transport.options.max_connections);
    if endpoint.open_connections() >= limit {
        return Err(TransportError::Limit { what: "connections", limit });
    }
    let config = transport.node_client_config(protocol)?;
    let connecting = endpoint
        .connect_with(config, route.address(), &tls::server_name(&node.key()))
        .map_err(|error| TransportError::Lost(error.to_string()))?;
    let quinn = connecting.await.map_err(|error| connection_error(&error, idle_timeout))?;
    transport.paths.path(&route.address()).inspect(|path| transport.paths.prove(path));
    Ok(Arc::new(Link { quinn, flush: Arc::new(FlushSet::default()), idle_timeout }))
}

impl QuicTransportImpl {
    /// How to dial a Node.
    fn node_client_config(&self, protocol: &[u8]) -> Result<quinn::ClientConfig, TransportError> {
        let failed = |reason: String| TransportError::Protocol(reason);
        let tls = self.tls.raw_key_client(protocol).map_err(|error| failed(error.to_string()))?;
        let tls = QuicClientConfig::try_from(tls).map_err(|error| failed(error.to_string()))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        let mut parameters = self.options.transport_config(&Arc::default());
        let idle_timeout = self.options.idle_timeout.min(BRIDGE_IDLE_TIMEOUT);
        parameters.max_idle_timeout(IdleTimeout::try_from(idle_timeout).ok()).send_window(BRIDGE_SEND_WINDOW_BYTES);
        config.transport_config(Arc::new(parameters));
        Ok(config)
    }
}

impl NodeConnection for Connected {
    fn open_bi(&self) -> BoxFuture<'_, Result<BiStream, TransportError>> {
        Box::pin(async move {
            let (send, recv) = self.link.quinn.open_bi().await.map_err(|error| self.link.error(&error))?;
            let send = QuicSend::new(send, self.link.clone(), Priority::Medium);
            let recv = QuicRecv::new(recv, self.link.clone());
            Ok((Box::new(send) as _, Box::new(recv) as _))
        })
    }

    fn close(&self, reason: CloseReason) {
        self.link.quinn.close(code(reason), b"");
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.close(CloseReason::Done);
    }
}
