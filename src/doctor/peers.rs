//! Connecting to the peers of a ticket, and trying all ways to them.
//!
//! As a stranger: the connection opens no document, so the peers learn of nobody to remember. Relays introduce it because it
//! proves that it knows the document.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::options::Step;
use super::relays::in_order;
use super::report::PeerFinding;
use super::tools::Tools;
use crate::address::PeerAddress;
use crate::ids::{DocumentKey, PeerId};
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::doorkeeper::{Doorkeeper, Proof, proof};
use crate::sync::hello::PROTOCOL_VERSIONS;
use crate::ticket::DocumentTicket;
use crate::transport::{CloseReason, PathKind, PathReport, Transport, TransportError, TransportKind};
use crate::transports::quic::{DialReport, Introduction, PathOutcome, QuicTransport, QuicTransportOptions, TriedPath};

/// How long everything about peers may take.
const DEADLINE: Duration = Duration::from_secs(14);
/// How long further paths are tried after the first one worked: three rounds of checks.
const SETTLING: Duration = Duration::from_secs(4);
/// How often it is looked whether they were found.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How long goodbyes may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// Shows that we know a document, and lets nobody in.
#[derive(Debug)]
struct TicketHolder {
    me: PeerId,
    key: DocumentKey,
}

impl Doorkeeper for TicketHolder {
    fn proofs(&self, peer: &PeerId, session: u64) -> Vec<Proof> {
        vec![proof(&self.key, (&self.me, peer), session)]
    }

    fn admits(&self, _peer: &PeerId, _session: u64, _proofs: &[Proof]) -> bool {
        false
    }
}

/// Tries all peers of the ticket at once.
pub(super) async fn visit(
    tools: &Arc<Tools>,
    quic: QuicTransportOptions,
    relays: &[RelayAddress],
    ticket: &DocumentTicket,
) -> Vec<PeerFinding> {
    let quic = quic
        .with_network(tools.network.clone())
        .with_relays(relays.iter().cloned())
        .with_rng_seed(tools.random())
        .with_hello(PROTOCOL_VERSIONS.encode());
    let transport = match QuicTransport::start(&tools.identity, quic) {
        Ok(transport) => transport,
        Err(error) => {
            let none = |peer| finding(peer, Err(error.clone()), DialReport::default(), &[]);
            return ticket.peers().iter().map(none).collect();
        }
    };
    transport.set_doorkeeper(Arc::new(TicketHolder { me: tools.identity.peer_id(), key: ticket.key().clone() }));
    let (started, mut tasks) = (Instant::now(), JoinSet::new());
    for (at, peer) in ticket.peers().iter().cloned().enumerate() {
        let (tools, transport) = (tools.clone(), transport.clone());
        tasks.spawn(async move { (at, visit_one(&tools, &transport, &peer, started).await) });
    }
    let findings = in_order(tasks).await;
    transport.shutdown(GOODBYE).await;
    findings
}

async fn visit_one(tools: &Tools, transport: &QuicTransport, peer: &PeerAddress, started: Instant) -> PeerFinding {
    let id = peer.peer_id();
    tools.tell(Step::Peer(id));
    let (connected, tried) = transport.connect_and_tell(peer, DEADLINE).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => return finding(peer, Err(error), tried, &[]),
    };
    let took = started.elapsed();
    tools.tell(Step::Paths(id));
    let until = (Instant::now() + SETTLING).min(started + DEADLINE + LOOK_INTERVAL);
    let mut paths = transport.peer_paths(&id);
    while Instant::now() < until && !is_straight(&paths) {
        sleep(LOOK_INTERVAL).await;
        let current = transport.peer_paths(&id);
        // A connection that is lost keeps what was known of it.
        if !current.is_empty() {
            paths = current;
        }
    }
    connection.close(CloseReason::Done);
    finding(peer, Ok(took), tried, &paths)
}

/// Whether the best kind of path is in use: there is nothing to wait for.
fn is_straight(paths: &[PathReport]) -> bool {
    let straight = [PathKind::Lan, PathKind::Direct, PathKind::Punched, PathKind::Mapped];
    paths.iter().any(|path| path.selected && path.round_trip.is_some() && straight.contains(&path.kind))
        && paths.iter().all(|path| path.round_trip.is_some())
}

/// What the dial tried, and what the connection made of it.
fn finding(
    peer: &PeerAddress,
    connected: Result<Duration, TransportError>,
    tried: DialReport,
    current: &[PathReport],
) -> PeerFinding {
    let in_use = current.iter().find(|path| path.selected).map(|path| (path.kind, path.remote));
    let mut paths: Vec<_> = current.iter().map(tried_path).collect();
    let known = |tried: &TriedPath| current.iter().any(|path| (path.kind, path.remote) == (tried.kind, tried.remote));
    // The connection checks the dial's paths anew; those that it left out say why.
    let explains = |tried: &TriedPath| !matches!(tried.outcome, PathOutcome::NoAnswer | PathOutcome::Answered { .. });
    let of_dial = tried.paths.into_iter().filter(|tried| current.is_empty() || explains(tried) && !known(tried));
    paths.extend(of_dial);
    paths.sort_by_key(|path| (in_use != Some((path.kind, path.remote)), path.round_trip().is_none(), path.kind));
    let addresses = peer.addresses_for(TransportKind::Quic).collect();
    // Who is connected need not have answered the relay first.
    let told = |introduction: &(_, Introduction)| connected.is_err() || introduction.1 == Introduction::Answered;
    let introductions = tried.introductions.into_iter().filter(told).collect();
    PeerFinding { peer: peer.peer_id(), addresses, connected, introductions, in_use, paths }
}

fn tried_path(path: &PathReport) -> TriedPath {
    let outcome = path.round_trip.map_or(PathOutcome::NoAnswer, |round_trip| PathOutcome::Answered { round_trip });
    TriedPath { kind: path.kind, remote: path.remote, outcome }
}
