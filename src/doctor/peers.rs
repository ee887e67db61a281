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
use crate::address::{DocumentTicket, PeerAddress};
use crate::ids::{DocumentKey, PeerId};
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::doorkeeper::{Doorkeeper, Proof, proof};
use crate::sync::hello::PROTOCOL_VERSIONS;
use crate::transport::{CloseReason, PathKind, PathReport, Transport, TransportError, TransportKind};
use crate::transports::quic::{QuicTransport, QuicTransportOptions};

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
        Err(error) => return ticket.peers().iter().map(|peer| finding(peer, Err(error.clone()), vec![])).collect(),
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
    let connection = match transport.connect(peer, DEADLINE).await {
        Ok(connection) => connection,
        Err(error) => return finding(peer, Err(error), vec![]),
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
    finding(peer, Ok(took), paths)
}

/// Whether the best kind of path is in use: there is nothing to wait for.
fn is_straight(paths: &[PathReport]) -> bool {
    let straight = [PathKind::Lan, PathKind::Direct, PathKind::Punched, PathKind::Mapped];
    paths.iter().any(|path| path.selected && path.round_trip.is_some() && straight.contains(&path.kind))
        && paths.iter().all(|path| path.round_trip.is_some())
}

fn finding(peer: &PeerAddress, connected: Result<Duration, TransportError>, mut paths: Vec<PathReport>) -> PeerFinding {
    paths.sort_by_key(|path| (!path.selected, path.round_trip.is_none(), path.kind, path.round_trip));
    let addresses = peer.addresses_for(TransportKind::Quic).collect();
    PeerFinding { peer: peer.peer_id(), addresses, connected, paths }
}
