//! The doctor's report as a page for a person.

use std::fmt::{Display, Write};
use std::net::SocketAddr;
use std::time::Duration;

use panda_network::doctor::{NatFinding, PeerFinding, ProbeError, RelayFinding, Report, StunFinding, TurnFinding};
use panda_network::nat::nat_type::Mapping;
use panda_network::rendezvous::address::RelayAddress;
use panda_network::rendezvous::wire::TurnTransport;
use panda_network::transport::PathKind;
use panda_network::transports::port_mapping::PortMappingReport;
use panda_network::transports::quic::TriedPath;

/// Width of the first column.
const LABEL: usize = 18;
/// Width of a kind of peer, in the table of what to expect.
const PEER: usize = 66;

/// What the router does for us.
fn port_mapping(found: &PortMappingReport) -> String {
    let spoken = [("PCP", found.pcp), ("NAT-PMP", found.nat_pmp), ("UPnP", found.upnp)];
    let spoken: Vec<_> = spoken.into_iter().filter(|(_, spoken)| *spoken).map(|(name, _)| name).collect();
    match (&found.gateway, spoken.is_empty()) {
        (None, _) => "no router is known".into(),
        (Some(_), true) => "the router maps no ports".into(),
        (Some(_), false) if found.is_useful() => format!("the router maps ports, by {}", spoken.join(", ")),
        (Some(_), false) => {
            format!("the router maps ports, by {}, but is behind another NAT itself", spoken.join(", "))
        }
    }
}

/// The page, top down: us, our NAT, who helps, whom we reach.
pub fn page(report: &Report) -> String {
    let mut page = Page(String::new());
    page.title("This machine");
    page.line("addresses", list(&report.local));
    page.line("port mapping", port_mapping(&report.port_mapping));
    for nat in &report.nat {
        page.nat(nat);
    }
    if report.nat.is_empty() {
        page.title("NAT");
        page.line("unknown", "nobody was there to ask; give --relay or --stun");
    }
    report.relays.iter().for_each(|relay| page.relay(relay));
    if !report.stun.is_empty() {
        page.title("STUN servers");
        report.stun.iter().for_each(|stun| page.stun(stun));
    }
    let doubts = report.doubts();
    if !doubts.is_empty() {
        page.title("In doubt");
        doubts.iter().for_each(|doubt| page.sentence(doubt));
    }
    report.peers.iter().flatten().for_each(|peer| page.peer(peer));
    page.expected(report);
    page.0
}

struct Page(String);

impl Page {
    fn title(&mut self, title: impl Display) {
        let gap = if self.0.is_empty() { "" } else { "\n" };
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{gap}{title}");
    }

    fn line(&mut self, label: impl Display, text: impl Display) {
        let _ = writeln!(self.0, "  {:LABEL$} {text}", label.to_string());
    }

    fn sentence(&mut self, text: impl Display) {
        let _ = writeln!(self.0, "  {text}");
    }

    fn nat(&mut self, finding: &NatFinding) {
        let nat = &finding.report;
        self.title(if finding.ipv6 { "NAT (IPv6)" } else { "NAT (IPv4)" });
        let words = match finding.is_local() {
            true => {
                "The servers that were asked are in this network: what they see says nothing about the way to the internet."
            }
            false => nat.plain_words(),
        };
        let _ = writeln!(self.0, "  {words}");
        self.line("UDP", if nat.udp_blocked() { "blocked, or no server was reachable" } else { "works" });
        let Some(mapped) = nat.mapped else { return };
        self.line("seen from outside", mapped);
        let mapping = match nat.mapping {
            Mapping::NoNat => "none: servers see the address of this machine".to_owned(),
            Mapping::Unknown => "unknown: that needs a second server, give another --relay or --stun".to_owned(),
            mapping => format!("{mapping} (RFC 4787)"),
        };
        self.line("mapping", mapping);
        let filtering = nat.filtering.map(|filtering| format!("{filtering} (RFC 4787)"));
        self.line(
            "filtering",
            filtering.unwrap_or("unknown: that needs a server with two addresses (RFC 5780)".into()),
        );
        self.line("ports", answer(nat.port_preserved, "preserved", "changed"));
        self.line(
            "hairpin",
            answer(nat.hairpin, "own mapped addresses lead back", "own mapped addresses lead nowhere"),
        );
    }

    fn relay(&mut self, relay: &RelayFinding) {
        self.title(format_args!("Relay {}", relay.address.server));
        match (&relay.address.key, &relay.session) {
            (Some(_), Ok(_)) => self.line("key", "pinned, and it is the one"),
            (Some(_), Err(_)) => self.line("key", "pinned"),
            (None, Ok(session)) => {
                let pinned = RelayAddress { server: relay.address.server.clone(), key: Some(session.key) };
                self.line(
                    "key",
                    format_args!(
                        "not pinned: anybody could pose as this relay. If you trust it now, use\n{:LABEL$}   {pinned}",
                        ""
                    ),
                );
            }
            (None, Err(_)) => self.line("key", "not pinned"),
        }
        match &relay.session {
            Ok(session) => {
                self.line("session (TLS)", format_args!("{}: {}", session.address, ms(session.took)));
                self.line("sees us at", format_args!("{} (TCP)", session.observed));
            }
            Err(error) => self.line("session (TLS)", format_args!("FAILED, {error}")),
        }
        relay.stun.iter().for_each(|stun| self.stun(stun));
        relay.turn.iter().for_each(|turn| self.turn(turn));
    }

    fn stun(&mut self, stun: &StunFinding) {
        let at = match stun.address {
            Some(address) if stun.server.ip().is_none() => format!("{} at {address}", stun.server),
            Some(address) => address.to_string(),
            None => stun.server.to_string(),
        };
        let seen = stun.mapped.map_or_else(String::new, |mapped| format!(", sees us at {mapped}"));
        self.line("STUN (UDP)", format_args!("{at}: {}{seen}", outcome(&stun.round_trip)));
    }

    fn turn(&mut self, turn: &TurnFinding) {
        let relayed: Vec<_> = turn.relayed.iter().map(ToString::to_string).collect();
        let relayed = if relayed.is_empty() { String::new() } else { format!(", lends us {}", relayed.join(" and ")) };
        let label = format!("TURN ({})", transport(turn.transport));
        self.line(label, format_args!("{}: {}{relayed}", turn.server, outcome(&turn.took)));
    }

    fn peer(&mut self, peer: &PeerFinding) {
        self.title(format_args!("Peer {}", peer.peer.short()));
        match &peer.connected {
            Ok(took) => self.line("connected", format_args!("in {}", ms(*took))),
            Err(error) => self.line("connected", format_args!("NO, {error}")),
        }
        self.line("ticket says", list(&peer.addresses));
        for (relay, what) in &peer.introductions {
            self.line("introduction", format_args!("by {relay}: {what}"));
        }
        peer.paths.iter().for_each(|path| self.path(path, peer.in_use));
    }

    fn path(&mut self, path: &TriedPath, in_use: Option<(PathKind, SocketAddr)>) {
        let outcome = path.round_trip().map_or_else(|| path.outcome.to_string(), ms);
        let used = if in_use == Some((path.kind, path.remote)) { ", in use" } else { "" };
        self.line(path.kind, format_args!("{}: {outcome}{used}", path.remote));
    }

    fn expected(&mut self, report: &Report) {
        self.title("How peers are reached from here");
        for (peer, path) in report.expected() {
            let path = path.map_or("not at all".into(), |path| path.to_string());
            let _ = writeln!(self.0, "  {:PEER$} {path}", peer.to_string());
        }
        if report.ways().nat.is_some_and(|nat| nat.mapping == Mapping::Unknown && !nat.udp_blocked()) {
            let _ = writeln!(self.0, "  What could not be found out counts for the worse.");
        }
        let works = if report.verdict().is_ok() { "are" } else { "are not" };
        let _ = writeln!(self.0, "\nConnections to others {works} expected to work.");
    }
}

/// By what a TURN server is asked.
pub fn transport(transport: TurnTransport) -> &'static str {
    match transport {
        TurnTransport::Udp => "UDP",
        TurnTransport::Tcp => "TCP",
        TurnTransport::Tls => "TLS",
    }
}

fn answer(found: Option<bool>, yes: &'static str, no: &'static str) -> &'static str {
    match found {
        Some(true) => yes,
        Some(false) => no,
        None => "unknown",
    }
}

fn outcome(took: &Result<Duration, ProbeError>) -> String {
    match took {
        Ok(took) => ms(*took),
        Err(error) => format!("FAILED, {error}"),
    }
}

fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

fn list<T: Display>(all: &[T]) -> String {
    if all.is_empty() {
        return "none".into();
    }
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
