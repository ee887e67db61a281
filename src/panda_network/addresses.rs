//! Where this node can be reached, and noticing when that changes.

use std::net::SocketAddr;
use std::sync::Weak;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Node;
use crate::address::TransportKind;
use crate::discovery::topics::TopicDiscovery;
use crate::limits::{PEER_ADDRESS_MAX_ADDRESSES, RENDEZVOUS_PUBLISH_INTERVAL, TICKET_MAX_RELAYS};
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::signal::CandidateKind;
use crate::transports::quic::QuicTransport;
use crate::transports::relay_client::RelayState;

/// How often it is looked whether the machine slept.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A pause in our own running that is longer than this means that the machine slept.
const SLEPT: Duration = Duration::from_secs(15);

/// Addresses to dial, and relays to ask at, with the keys that those showed.
pub(super) fn reachable(quic: &QuicTransport) -> (Vec<(TransportKind, SocketAddr)>, Vec<String>) {
    let candidates = quic.candidates().borrow().clone();
    // A relayed address lets in only whom a relay introduced.
    let told = candidates.into_iter().filter(|candidate| candidate.kind != CandidateKind::Relayed);
    let addresses = told.map(|candidate| (TransportKind::Quic, candidate.address));
    (addresses.take(PEER_ADDRESS_MAX_ADDRESSES).collect(), best(quic.relays()))
}

/// As many as a record names, best first: one that is down is left out for one that is up.
fn best(relays: Vec<(RelayAddress, RelayState)>) -> Vec<String> {
    let mut ranked: Vec<_> = relays.into_iter().enumerate().collect();
    ranked.sort_by_key(|(place, (_, state))| (!matches!(state, RelayState::Up(_)), *place));
    ranked.truncate(TICKET_MAX_RELAYS);
    // A relay that goes down and up again is no reason for a new order, which peers would be told of.
    ranked.sort_by_key(|(place, _)| *place);
    let named = ranked.into_iter().map(|(_, (mut relay, state))| {
        if let RelayState::Up(info) = state {
            relay.key = Some(info.key);
        }
        relay.to_string()
    });
    named.collect()
}

/// Follows the node's addresses and relays: when they changed, peers hear of it; when the machine slept as well,
/// everybody who is not connected is dialled at once.
/// With `rendezvous` relays hear of it as well.
pub(super) async fn follow(node: Weak<Node>, rendezvous: bool) {
    let Some(mut candidates) = node.upgrade().map(|node| node.quic.candidates()) else { return };
    let (mut last, mut published) = (None, None);
    while let Some(node) = node.upgrade() {
        let now = (reachable(&node.quic), node.clock.now_us());
        if let Some((reached, at_us)) = &last {
            let slept = Duration::from_micros(now.1.saturating_sub(*at_us)) > SLEPT;
            if slept {
                tracing::info!("the machine slept");
                node.quic.on_network_change();
            }
            if *reached != now.0 || slept {
                if let Ok(address) = node.address() {
                    node.documents.set_address(address);
                }
                node.discovery.on_change();
                node.topics.get().into_iter().for_each(TopicDiscovery::on_network_change);
                node.connections.retry_now();
            }
        }
        let due = published.as_ref().is_none_or(|(relays, at): &(Vec<String>, Instant)| {
            *relays != now.0.1 || at.elapsed() >= RENDEZVOUS_PUBLISH_INTERVAL
        });
        if rendezvous && due {
            node.publish_record();
            published = Some((now.0.1.clone(), Instant::now()));
        }
        last = Some(now);
        drop(node);
        // Ended: looked at all the same, for the sleep.
        if let Ok(Err(_)) = timeout(LOOK_INTERVAL, candidates.changed()).await {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }
}
