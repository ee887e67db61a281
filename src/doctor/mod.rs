//! Why this machine can or cannot connect: what kind of NAT is in the way, which relays and servers answer, and by which kind
//! of path which kind of peer will be reached.
//!
//! [`examine`] looks at everything at the same time, takes 15 s at most, and gives a [`Report`]. Dropping the future ends it
//! and leaves nothing behind. With a ticket it also connects to the document's peers, as a stranger that opens no document:
//! peers remember nothing of it. What a report means for the user is said by [`Report::verdict`] and, per kind of peer, by
//! [`expected_path`], which is pure.
//!
//! A report names addresses: it is for the user of this machine.

mod doubts;
mod expect;
mod nat;
mod options;
mod peers;
mod relays;
mod report;
mod stun;
mod tools;
mod turn;

use std::sync::Arc;

use tokio::time::Instant;

pub use doubts::Doubt;
pub use expect::{PeerKind, Ways, expected_path};
pub use options::{DoctorOptions, Step};
pub use report::{
    NatFinding, PeerFinding, ProbeError, RelayFinding, RelaySession, Report, StunFinding, Trouble, TurnFinding,
};

use crate::limits::RELAYS_PER_NODE;
use crate::net::HostNetwork;
use crate::rendezvous::address::RelayAddress;
use crate::transports::port_mapping;
use crate::transports::tls::TlsError;
use tools::Tools;

/// Looks around from this machine.
///
/// # Errors
/// [`TlsError`] when no key can be made to speak to relays with.
pub async fn examine(network: Arc<dyn HostNetwork>, options: DoctorOptions) -> Result<Report, TlsError> {
    let started = Instant::now();
    let (relays, ticket) = (relays_of(&options), options.ticket.clone());
    let (stun, quic) = (options.stun.clone(), options.quic.clone());
    let tools = Arc::new(Tools::new(network, options)?);
    let visits = async {
        match &ticket {
            Some(ticket) => Some(peers::visit(&tools, quic, &relays, ticket).await),
            None => None,
        }
    };
    let servers = async {
        let opened = relays::open(&tools, &relays).await;
        let behaviour = stun::examine(&tools, &opened, &stun);
        let (turn, behaviour) = tokio::join!(turn::examine(&tools, &opened), behaviour);
        (relays::findings(opened, &behaviour, turn), behaviour)
    };
    // Boxed: neither is small, and one of them is polled for nothing most of the time.
    let router = port_mapping::probe(&*tools.network);
    let (peers, (relays, behaviour), port_mapping) =
        tokio::join!(Box::pin(visits), Box::pin(servers), Box::pin(router));
    let mut local = tools.network.interface_addresses();
    local.retain(|ip| !ip.is_loopback());
    let (nat, stun) = (behaviour.nat, behaviour.named);
    Ok(Report { local, port_mapping, nat, relays, stun, peers, took: started.elapsed() })
}

/// The relays that were named, and those of the ticket.
fn relays_of(options: &DoctorOptions) -> Vec<RelayAddress> {
    let of_ticket = options.ticket.iter().flat_map(|ticket| {
        let of_peers = ticket.peers().iter().flat_map(|peer| peer.relays());
        ticket.relays().iter().chain(of_peers).filter_map(|relay| relay.parse().ok())
    });
    let mut relays: Vec<RelayAddress> = Vec::new();
    for relay in options.relays.iter().cloned().chain(of_ticket) {
        if relays.len() < RELAYS_PER_NODE && !relays.iter().any(|known| known.server == relay.server) {
            relays.push(relay);
        }
    }
    relays
}
