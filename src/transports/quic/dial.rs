//! Connecting to a peer: all its addresses at once, and only the key that was asked for counts.
//!
//! Addresses that nobody uses yet share one QUIC handshake, sent to all of them until one answers. Where a stranger
//! answers (a private address means another machine in every network), that address is left out and the rest is dialled
//! again at once, within the same deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::task::{AbortHandle, JoinSet};

use super::addresses::canonical;
use super::attempt::{Attempt, PathOutcome, kind_of_own};
use super::connection::{Established, QuicConnection};
use super::errors::connection_error;
use super::hello;
use super::paths::RouteGuard;
use super::repeat;
use super::transport::QuicTransportImpl;
use super::traversal::{DialNews, Meeting};
use crate::address::PeerAddress;
use crate::ids::PeerId;
use crate::limits::{SOCKET_ROUTES, TICKET_MAX_RELAYS};
use crate::nat::path::Path;
use crate::rendezvous::address::RelayAddress;
use crate::transport::{TransportError, TransportKind};
use crate::transports::tls;

/// Connects to a peer, and writes down what is tried. Dropping the future abandons all attempts. For a `stranger` no session with
/// a relay is opened.
pub(super) async fn connect(
    transport: &Arc<QuicTransportImpl>,
    address: &PeerAddress,
    stranger: bool,
    attempt: &Attempt,
) -> Result<Arc<QuicConnection>, TransportError> {
    let candidates = candidates_of(transport, address, stranger, attempt);
    let relays = relays_of(transport, address, stranger);
    if candidates.is_empty() && relays.is_empty() {
        return Err(TransportError::NoAddress(TransportKind::Quic));
    }
    let peer = address.peer_id();
    let meeting = transport.traversal.as_ref().filter(|_| !relays.is_empty());
    let meeting = meeting.map(|traversal| Meeting::new(traversal, stranger, attempt));
    let race = Race {
        transport,
        peer,
        candidates,
        attempt,
        meeting: meeting.as_ref(),
        relays: &relays,
        running: Vec::new(),
        attempts: JoinSet::new(),
    };
    let meet = async {
        match &meeting {
            Some(meeting) => meeting.run(peer, relays.clone()).await,
            None => std::future::pending().await,
        }
    };
    let established = tokio::select! {
        biased;
        established = race.run() => established?,
        never = meet => match never {},
    };
    transport.counters.dialled.add();
    Ok(QuicConnection::start(transport, established))
}

/// The peer's addresses that are dialled.
fn candidates_of(
    transport: &QuicTransportImpl,
    address: &PeerAddress,
    stranger: bool,
    attempt: &Attempt,
) -> Vec<SocketAddr> {
    // A packet to any of them would show where this node is.
    let hidden = transport.options.relay_only;
    let mut candidates: Vec<_> = address.addresses_for(TransportKind::Quic).collect();
    candidates.retain(|candidate| {
        let outcome = match transport.paths.reaches(candidate) {
            _ if hidden => PathOutcome::Withheld,
            false => PathOutcome::NoRoute,
            true if stranger && !transport.paths.may_visit(canonical(*candidate)) => PathOutcome::Withheld,
            true => PathOutcome::NoAnswer,
        };
        attempt.tried(Path::direct(canonical(*candidate)), kind_of_own(candidate.ip()), outcome);
        outcome == PathOutcome::NoAnswer
    });
    candidates
}

/// Where the peer can be found, by its own word, and where we are ourselves: it may be there as well. A stranger's word is not
/// enough for a session of its own.
fn relays_of(transport: &QuicTransportImpl, address: &PeerAddress, stranger: bool) -> Vec<RelayAddress> {
    let Some(traversal) = &transport.traversal else { return Vec::new() };
    let theirs = address.relays().iter().filter_map(|relay| relay.parse().ok());
    let theirs = theirs.filter(|relay| !stranger || traversal.has_relay(relay));
    let ours = traversal.relays().into_iter().map(|(relay, _)| relay);
    let mut relays: Vec<RelayAddress> = Vec::new();
    for relay in theirs.chain(ours) {
        if relays.len() < TICKET_MAX_RELAYS && !relays.iter().any(|known| known.server == relay.server) {
            relays.push(relay);
        }
    }
    relays
}

/// Attempts at one peer. Usually one: more when a candidate is in use by another connection or a stranger answered.
struct Race<'a> {
    transport: &'a Arc<QuicTransportImpl>,
    peer: PeerId,
    /// Addresses that may still be the peer's.
    candidates: Vec<SocketAddr>,
    attempt: &'a Attempt,
    /// Finds further paths meanwhile.
    meeting: Option<&'a Meeting<'a>>,
    relays: &'a [RelayAddress],
    /// Virtual addresses that are being tried, and how to give them up.
    running: Vec<(SocketAddr, AbortHandle)>,
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
    async fn run(mut self) -> Result<Established, TransportError> {
        self.launch();
        let mut error = TransportError::Limit { what: "routes", limit: SOCKET_ROUTES };
        loop {
            let news = async {
                match self.meeting {
                    Some(meeting) => meeting.news().await,
                    None => std::future::pending().await,
                }
            };
            let ended = tokio::select! {
                biased;
                ended = self.attempts.join_next() => match ended {
                    Some(ended) => ended,
                    None => break,
                },
                news = news => {
                    match news {
                        DialNews::Held(route) => self.attempt(route),
                        DialNews::Afresh(virtual_address) => self.begin_again(virtual_address),
                    }
                    continue;
                }
            };
            match ended {
                Ok(Ok(established)) => return Ok(established),
                Ok(Err(failure)) => {
                    self.running.retain(|(running, _)| *running != failure.virtual_address);
                    let before = self.candidates.len();
                    if let Some(stranger) = failure.answered_from {
                        if failure.error == TransportError::WrongPeer
                            && self.candidates.iter().any(|known| same_address(known, &stranger))
                        {
                            let (path, kind) = (Path::direct(canonical(stranger)), kind_of_own(stranger.ip()));
                            self.attempt.tried(path, kind, PathOutcome::Stranger);
                        }
                        self.candidates.retain(|candidate| !same_address(candidate, &stranger));
                    }
                    // Who answered through a relay and refused would only do it again.
                    let fewer = self.candidates.len() < before;
                    if fewer && (!self.candidates.is_empty() || self.meeting.is_some()) {
                        self.launch();
                    }
                    error = failure.error;
                }
                Err(stopped) if stopped.is_cancelled() => {}
                Err(stopped) => error = TransportError::Lost(stopped.to_string()),
            }
        }
        Err(error)
    }

    /// Starts an attempt for every candidate that has none.
    fn launch(&mut self) {
        let mut routes = self.transport.paths.dial(&self.candidates);
        if let Some(meeting) = self.meeting {
            // What the meeting finds needs a route that nobody answered yet.
            let open = |route: &RouteGuard| self.transport.paths.path(&route.address()).is_none();
            if !routes.iter().any(open) {
                routes.extend(self.transport.paths.dial(&[]));
            }
            if let Some(route) = routes.iter().find(|route| open(route)) {
                meeting.use_route(route.address());
            }
        }
        routes.into_iter().for_each(|route| self.attempt(route));
    }

    /// Starts an attempt on a route, unless there is one.
    fn attempt(&mut self, route: RouteGuard) {
        let address = route.address();
        if !self.running.iter().any(|(running, _)| *running == address) {
            let (transport, peer, relays) = (self.transport.clone(), self.peer, self.relays.to_vec());
            let attempt = self.attempts.spawn(async move {
                let virtual_address = route.address();
                let attempted = attempt(&transport, peer, route, relays).await;
                attempted.map_err(|(error, _route)| Failure {
                    virtual_address,
                    answered_from: transport.paths.path(&virtual_address).map(|path| path.remote),
                    error,
                })
            });
            self.running.push((address, attempt));
        }
    }

    /// Gives up a handshake that nobody answered for a new one on the same route.
    fn begin_again(&mut self, virtual_address: SocketAddr) {
        let Some(route) = self.transport.paths.hold(virtual_address) else { return };
        if let Some(place) = self.running.iter().position(|(running, _)| *running == virtual_address) {
            self.running.swap_remove(place).1.abort();
        }
        self.attempt(route);
    }
}

pub(super) fn same_address(one: &SocketAddr, other: &SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

/// One handshake. On failure the route comes back, so that it can still be asked who answered.
async fn attempt(
    transport: &QuicTransportImpl,
    peer: PeerId,
    route: RouteGuard,
    relays: Vec<RelayAddress>,
) -> Result<Established, (TransportError, RouteGuard)> {
    let epoch = Arc::default();
    match handshake(transport, peer, route.address(), &epoch).await {
        Ok((quinn, hello)) => {
            transport.paths.path(&route.address()).inspect(|path| transport.paths.prove(path));
            Ok(Established { quinn, peer, hello, dialled: true, route, epoch, relays })
        }
        Err(error) => Err((error, route)),
    }
}

async fn handshake(
    transport: &QuicTransportImpl,
    peer: PeerId,
    virtual_address: SocketAddr,
    epoch: &Arc<AtomicU64>,
) -> Result<(quinn::Connection, bytes::Bytes), TransportError> {
    let idle = transport.options.idle_timeout;
    let (endpoint, limit) = (transport.endpoint()?, transport.options.max_connections);
    if endpoint.open_connections() >= limit {
        return Err(TransportError::Limit { what: "connections", limit });
    }
    let connecting = endpoint
        .connect_with(transport.client_config(epoch), virtual_address, &tls::server_name(&peer))
        .map_err(|error| TransportError::Lost(error.to_string()))?;
    let (quinn, _said) = match connecting.into_0rtt() {
        Ok((quinn, complete)) => {
            // An error here comes from the handshake, which is looked at next.
            let early = hello::say(&quinn, &transport.options.hello, idle).await;
            let accepted = complete.await;
            if let Some(error) = quinn.close_reason() {
                return Err(connection_error(&error, idle));
            }
            match early {
                Ok(said) if accepted => {
                    transport.counters.early_hellos.add();
                    (quinn, said)
                }
                _ => {
                    transport.counters.early_rejected.add();
                    let said = hello::say(&quinn, &transport.options.hello, idle).await?;
                    (quinn, said)
                }
            }
        }
        Err(connecting) => {
            let quinn = connecting.await.map_err(|error| connection_error(&error, idle))?;
            let said = hello::say(&quinn, &transport.options.hello, idle).await?;
            (quinn, said)
        }
    };
    tokio::spawn(repeat::until_confirmed(transport.paths.clone(), quinn.clone()));
    let hello = hello::hear(&quinn, idle).await?;
    // The verifier has seen to it; a resumed session remembers whom it was made with.
    if authenticated_peer(&quinn) == Some(peer) { Ok((quinn, hello)) } else { Err(TransportError::WrongPeer) }
}

/// The peer that the TLS handshake proved, once it is complete.
pub(super) fn authenticated_peer(quinn: &quinn::Connection) -> Option<PeerId> {
    let identity = quinn.peer_identity()?;
    let chain = identity.downcast_ref::<Vec<rustls::pki_types::CertificateDer<'static>>>()?;
    tls::peer_id(chain.first()?).ok()
}
