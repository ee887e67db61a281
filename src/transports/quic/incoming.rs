//! Accepting peers: who is let in, who must prove its address first, and who is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn::{Connecting, Endpoint};
use tokio::time::timeout;

use super::connection::{Established, QuicConnection};
use super::dial::authenticated_peer;
use super::errors::connection_error;
use super::hello;
use super::paths::RouteGuard;
use super::repeat;
use super::transport::QuicTransportImpl;
use crate::nat::path::Via;
use crate::transport::{CloseReason, Connection, TransportError};

/// Accepts until the endpoint is closed. Handshakes run side by side, bounded by the limit on connections.
pub(super) async fn run(transport: Arc<QuicTransportImpl>, endpoint: Endpoint) {
    while let Some(incoming) = endpoint.accept().await {
        let comes_by = transport.paths.path(&incoming.remote_address());
        if transport.options.relay_only && comes_by.is_none_or(|path| path.via == Via::Socket) {
            // Any answer would confirm where a node is that hides.
            incoming.ignore();
            continue;
        }
        if transport.is_stopping() || endpoint.open_connections() >= transport.options.max_connections {
            transport.counters.refused.add();
            incoming.refuse();
            continue;
        }
        let crowded = transport.handshakes.load(Ordering::Relaxed) >= transport.options.handshakes_before_retry;
        if crowded && !incoming.remote_address_validated() {
            transport.counters.retried.add();
            // An address that is not validated may always be asked to prove itself.
            let _ = incoming.retry();
            continue;
        }
        // Counted before the next one is looked at: a burst must not slip past the limits.
        let handshake = UnderWay::new(transport.clone());
        let Some(route) = transport.paths.hold(incoming.remote_address()) else {
            transport.counters.refused.add();
            incoming.refuse();
            continue;
        };
        transport.paths.set_finishing(&route.address(), true);
        let epoch = Arc::default();
        let Ok(connecting) = incoming.accept_with(transport.server_config(&epoch)) else { continue };
        tokio::spawn(async move {
            let deadline = handshake.0.options.accept_deadline;
            let accepted = timeout(deadline, accept(&handshake.0, connecting, route, epoch)).await;
            if let Err(error) = accepted.unwrap_or(Err(TransportError::Timeout(deadline))) {
                tracing::debug!(%error, "an incoming connection was not completed");
            }
        });
    }
    transport.accepted.clear();
}

/// One handshake from the first packet to the application's queue.
async fn accept(
    transport: &QuicTransportImpl,
    connecting: Connecting,
    route: RouteGuard,
    epoch: Arc<AtomicU64>,
) -> Result<(), TransportError> {
    let idle = transport.options.idle_timeout;
    let Ok((quinn, complete)) = connecting.into_0rtt() else {
        return Err(TransportError::Lost("not an incoming connection".into()));
    };
    // Only hellos are exchanged before the handshake is complete.
    let complete = async {
        repeat::until_complete(&transport.paths, &route.address(), complete).await;
        Ok(())
    };
    let (say, hear) = (hello::say(&quinn, &transport.options.hello, idle), hello::hear(&quinn, idle));
    let ((), _said, hello) = tokio::try_join!(biased; complete, say, hear)?;
    if let Some(error) = quinn.close_reason() {
        return Err(connection_error(&error, idle));
    }
    let peer = authenticated_peer(&quinn).ok_or(TransportError::WrongPeer)?;
    transport.counters.accepted.add();
    let connection = QuicConnection::start(
        transport,
        Established { quinn, peer, hello, dialled: false, route, epoch, relays: Vec::new() },
    );
    if let Err(connection) = transport.accepted.push(connection) {
        transport.counters.refused.add();
        connection.close(CloseReason::TooBusy);
    }
    Ok(())
}

/// Counts a handshake while it is under way.
struct UnderWay(Arc<QuicTransportImpl>);

impl UnderWay {
    fn new(transport: Arc<QuicTransportImpl>) -> Self {
        transport.handshakes.fetch_add(1, Ordering::Relaxed);
        Self(transport)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}
