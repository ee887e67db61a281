//! Connecting to a peer: all its addresses at once, and only the key that was asked for counts.
//!
//! Addresses that nobody uses yet share one QUIC handshake, sent to all of them until one answers. Where a stranger
//! answers (a private address means another machine in every network), that address is left out and the rest is dialled
//! again at once, within the same deadline.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::connection::{Established, QuicConnection};
use super::errors::connection_error;
use super::hello;
use super::paths::RouteGuard;
use super::transport::QuicTransportImpl;
use crate::address::PeerAddress;
use crate::ids::PeerId;
use crate::limits::SOCKET_ROUTES;
use crate::transport::{TransportError, TransportKind};
use crate::transports::tls;

/// Connects to a peer. Dropping the future abandons all attempts.
pub(super) async fn connect(
    transport: &Arc<QuicTransportImpl>,
    address: &PeerAddress,
) -> Result<Arc<QuicConnection>, TransportError> {
    let candidates = address.addresses_for(TransportKind::Quic);
    let candidates: Vec<_> = candidates.filter(|candidate| transport.paths.reaches(candidate)).collect();
    if candidates.is_empty() {
        return Err(TransportError::NoAddress(TransportKind::Quic));
    }
    let mut race =
        Race { transport, peer: address.peer_id(), candidates, running: Vec::new(), attempts: JoinSet::new() };
    let established = race.run().await?;
    transport.counters.dialled.add();
    Ok(QuicConnection::start(transport, established))
}

/// Attempts at one peer. Usually one: more when a candidate is in use by another connection or a stranger answered.
struct Race<'a> {
    transport: &'a Arc<QuicTransportImpl>,
    peer: PeerId,
    /// Addresses that may still be the peer's.
    candidates: Vec<SocketAddr>,
    /// Virtual addresses that are being tried.
    running: Vec<SocketAddr>,
    attempts: JoinSet<Result<Established, Failure>>,
}

/// A failed attempt: under which virtual address, and who answered, if anybody.
struct Failure {
    virtual_address: SocketAddr,
    answered_from: Option<SocketAddr>,
    error: TransportError,
}

impl Race<'_> {
    /// The first attempt that succeeds, or why the last one did not.
    async fn run(&mut self) -> Result<Established, TransportError> {
        self.launch();
        let mut error = TransportError::Limit { what: "routes", limit: SOCKET_ROUTES };
        while let Some(ended) = self.attempts.join_next().await {
            match ended {
                Ok(Ok(established)) => return Ok(established),
                Ok(Err(failure)) => {
                    self.running.retain(|running| *running != failure.virtual_address);
                    if let Some(stranger) = failure.answered_from {
                        self.candidates.retain(|candidate| !same_address(candidate, &stranger));
                        if !self.candidates.is_empty() {
                            self.launch();
                        }
                    }
                    error = failure.error;
                }
                Err(stopped) => error = TransportError::Lost(stopped.to_string()),
            }
        }
        Err(error)
    }

    /// Starts an attempt for every candidate that has none.
    fn launch(&mut self) {
        for route in self.transport.paths.dial(&self.candidates) {
            if self.running.contains(&route.address()) {
                continue;
            }
            self.running.push(route.address());
            let (transport, peer) = (self.transport.clone(), self.peer);
            self.attempts.spawn(async move {
                let virtual_address = route.address();
                let attempted = attempt(&transport, peer, route).await;
                attempted.map_err(|(error, _route)| Failure {
                    virtual_address,
                    answered_from: transport.paths.path(&virtual_address).map(|path| path.remote),
                    error,
                })
            });
        }
    }
}

fn same_address(one: &SocketAddr, other: &SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

/// One handshake. On failure the route comes back, so that it can still be asked who answered.
async fn attempt(
    transport: &QuicTransportImpl,
    peer: PeerId,
    route: RouteGuard,
) -> Result<Established, (TransportError, RouteGuard)> {
    match handshake(transport, peer, route.address()).await {
        Ok((quinn, hello)) => Ok(Established { quinn, peer, hello, dialled: true, route }),
        Err(error) => Err((error, route)),
    }
}

async fn handshake(
    transport: &QuicTransportImpl,
    peer: PeerId,
    virtual_address: SocketAddr,
) -> Result<(quinn::Connection, bytes::Bytes), TransportError> {
    let idle = transport.options.idle_timeout;
    let (endpoint, limit) = (transport.endpoint()?, transport.options.max_connections);
    if endpoint.open_connections() >= limit {
        return Err(TransportError::Limit { what: "connections", limit });
    }
    let connecting = endpoint
        .connect_with(transport.client.clone(), virtual_address, &tls::server_name(&peer))
        .map_err(|error| TransportError::Lost(error.to_string()))?;
    let (quinn, asked) = match connecting.into_0rtt() {
        Ok((quinn, complete)) => {
            // An error here comes from the handshake, which is looked at next.
            let early = hello::ask(&quinn, &transport.options.hello, idle).await;
            let accepted = complete.await;
            if let Some(error) = quinn.close_reason() {
                return Err(connection_error(&error, idle));
            }
            match early {
                Ok(asked) if accepted => {
                    transport.counters.early_hellos.add();
                    (quinn, asked)
                }
                _ => {
                    transport.counters.early_rejected.add();
                    let asked = hello::ask(&quinn, &transport.options.hello, idle).await?;
                    (quinn, asked)
                }
            }
        }
        Err(connecting) => {
            let quinn = connecting.await.map_err(|error| connection_error(&error, idle))?;
            let asked = hello::ask(&quinn, &transport.options.hello, idle).await?;
            (quinn, asked)
        }
    };
    let hello = hello::answered(asked, idle).await?;
    // The verifier has seen to it; a resumed session remembers whom it was made with.
    if authenticated_peer(&quinn) == Some(peer) { Ok((quinn, hello)) } else { Err(TransportError::WrongPeer) }
}

/// The peer that the TLS handshake proved, once it is complete.
pub(super) fn authenticated_peer(quinn: &quinn::Connection) -> Option<PeerId> {
    let identity = quinn.peer_identity()?;
    let chain = identity.downcast_ref::<Vec<rustls::pki_types::CertificateDer<'static>>>()?;
    tls::peer_id(chain.first()?).ok()
}
