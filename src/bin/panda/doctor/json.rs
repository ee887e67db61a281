//! The doctor's report as one JSON object, with all that was found.

use std::time::Duration;

use panda_network::doctor::{NatFinding, PeerFinding, PeerKind, RelayFinding, Report, StunFinding, TurnFinding};
use panda_network::rendezvous::address::HostPort;
use panda_network::transports::quic::{Introduction, TriedPath};
use serde_json::{Value, json};

use super::text::transport;

/// The object. Times are in milliseconds; what was not found out is `null`.
pub fn object(report: &Report) -> Value {
    let verdict = report.verdict();
    let expected = report.expected().into_iter();
    let expected =
        expected.map(|(peer, path)| json!({ "peer": name(peer), "path": path.map(|path| path.to_string()) }));
    json!({
        "works": verdict.is_ok(),
        "reason": verdict.err().map(|trouble| trouble.to_string()),
        "took_ms": ms(report.took),
        "local_addresses": report.local,
        "port_mapping": {
            "gateway": report.port_mapping.gateway.map(|gateway| gateway.router.to_string()),
            "pcp": report.port_mapping.pcp,
            "nat_pmp": report.port_mapping.nat_pmp,
            "upnp": report.port_mapping.upnp,
            "external": report.port_mapping.external.map(|ip| ip.to_string()),
            "useful": report.port_mapping.is_useful(),
        },
        "nat": report.nat.iter().map(nat).collect::<Vec<_>>(),
        "relays": report.relays.iter().map(relay).collect::<Vec<_>>(),
        "stun": report.stun.iter().map(stun).collect::<Vec<_>>(),
        "doubts": report.doubts().iter().map(ToString::to_string).collect::<Vec<_>>(),
        "expected": expected.collect::<Vec<_>>(),
        "peers": report.peers.as_ref().map(|peers| peers.iter().map(peer).collect::<Vec<_>>()),
    })
}

fn name(peer: PeerKind) -> &'static str {
    match peer {
        PeerKind::SameNetwork => "same network",
        PeerKind::Public => "public",
        PeerKind::FullCone => "full cone",
        PeerKind::AddressRestricted => "address-restricted",
        PeerKind::PortRestricted => "port-restricted",
        PeerKind::Symmetric => "symmetric",
        PeerKind::UdpBlocked => "UDP blocked",
    }
}

fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

/// Time and error of something that was tried; one of both is `null`.
fn outcome<E: ToString>(took: &Result<Duration, E>) -> (Option<f64>, Option<String>) {
    (took.as_ref().ok().map(|took| ms(*took)), took.as_ref().err().map(ToString::to_string))
}

fn nat(finding: &NatFinding) -> Value {
    let nat = &finding.report;
    json!({
        "family": if finding.ipv6 { "ipv6" } else { "ipv4" },
        "servers_are_local": finding.is_local(),
        "udp_blocked": nat.udp_blocked(),
        "mapped": nat.mapped,
        "mapping": nat.mapping.to_string(),
        "filtering": nat.filtering.map(|filtering| filtering.to_string()),
        "port_preserved": nat.port_preserved,
        "hairpin": nat.hairpin,
        "plain_words": nat.plain_words(),
    })
}

fn relay(relay: &RelayFinding) -> Value {
    let session = relay.session.as_ref().ok();
    json!({
        "address": relay.address.to_string(),
        "pinned": relay.address.key.is_some(),
        "up": session.is_some(),
        "error": relay.session.as_ref().err().map(ToString::to_string),
        "reached_at": session.map(|session| session.address),
        "key": session.map(|session| session.key.to_string()),
        "sees_us_at": session.map(|session| session.observed),
        "session_ms": session.map(|session| ms(session.took)),
        "stun": relay.stun.iter().map(stun).collect::<Vec<_>>(),
        "turn": relay.turn.iter().map(turn).collect::<Vec<_>>(),
    })
}

fn stun(stun: &StunFinding) -> Value {
    let (round_trip_ms, error) = outcome(&stun.round_trip);
    json!({
        "server": stun.server.to_string(),
        "address": stun.address,
        "mapped": stun.mapped,
        "round_trip_ms": round_trip_ms,
        "error": error,
    })
}

fn turn(turn: &TurnFinding) -> Value {
    let (took_ms, error) = outcome(&turn.took);
    json!({
        "transport": transport(turn.transport),
        "server": turn.server.to_string(),
        "relayed": turn.relayed,
        "took_ms": took_ms,
        "error": error,
    })
}

fn peer(peer: &PeerFinding) -> Value {
    let (connected_ms, error) = outcome(&peer.connected);
    json!({
        "peer": peer.peer.to_string(),
        "addresses": peer.addresses,
        "connected_ms": connected_ms,
        "error": error,
        "introductions": peer.introductions.iter().map(introduction).collect::<Vec<_>>(),
        "paths": peer.paths.iter().map(|tried| path(tried, peer)).collect::<Vec<_>>(),
    })
}

fn introduction((relay, what): &(HostPort, Introduction)) -> Value {
    json!({ "relay": relay.to_string(), "outcome": what.to_string() })
}

fn path(path: &TriedPath, peer: &PeerFinding) -> Value {
    json!({
        "kind": path.kind.to_string(),
        "remote": path.remote,
        "outcome": path.outcome.to_string(),
        "round_trip_ms": path.round_trip().map(ms),
        "in_use": peer.in_use == Some((path.kind, path.remote)),
    })
}
