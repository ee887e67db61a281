//! What was found, and what it means.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::doubts::{Doubt, doubts};
use super::expect::{PeerKind, Ways, expected_path, is_inside, seen_from_outside};
use crate::ids::PeerId;
use crate::nat::allocation::TurnFailure;
use crate::nat::nat_type::NatReport;
use crate::rendezvous::address::{HostPort, RelayAddress};
use crate::rendezvous::wire::TurnTransport;
use crate::transport::{PathKind, TransportError};
use crate::transports::port_mapping::PortMappingReport;
use crate::transports::quic::{Introduction, TriedPath};
use crate::transports::relay_client::RelayError;
use crate::transports::turn_tls::TurnTlsError;

/// Something could not be reached.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// No session with the relay. Says itself who erred.
    #[error(transparent)]
    Relay(#[from] Arc<RelayError>),
    /// No allocation. Says itself who erred.
    #[error(transparent)]
    Turn(#[from] TurnFailure),
    /// Another key than the pinned one, or no TLS at all.
    #[error(transparent)]
    TurnTls(#[from] TurnTlsError),
    /// The name may be wrong, or name resolution does not work here.
    #[error("its name cannot be resolved: {0}")]
    Resolve(std::io::Error),
    /// The environment, or the server is down.
    #[error("cannot be reached: {0}")]
    Io(#[from] std::io::Error),
    /// Nobody answered our datagrams: a firewall, or the server is down.
    #[error("no answer")]
    NoAnswer,
    /// Nobody answered in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The server said something that makes no sense.
    #[error("{0}")]
    Protocol(String),
}

/// The NAT, or its absence, for one family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatFinding {
    /// Whether this is about IPv6.
    pub ipv6: bool,
    /// What the tests found.
    pub report: NatReport,
}

impl NatFinding {
    /// The servers that were asked are in this very network: what they see says nothing about the way to the internet.
    pub fn is_local(&self) -> bool {
        self.report.mapped.is_some_and(|mapped| is_inside(mapped.ip()))
    }
}

/// A session that a relay gave us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelaySession {
    /// Where it was reached.
    pub address: SocketAddr,
    /// The key that it proved.
    pub key: PeerId,
    /// How it sees our TCP connections.
    pub observed: SocketAddr,
    /// Name, TCP, TLS and welcome.
    pub took: Duration,
}

/// One relay.
#[derive(Debug)]
pub struct RelayFinding {
    /// As it was named; with a key, nobody else is taken for it.
    pub address: RelayAddress,
    /// Its session by TLS over TCP.
    pub session: Result<RelaySession, ProbeError>,
    /// Its UDP ports, which forward as well.
    pub stun: Vec<StunFinding>,
    /// The TURN servers that it told us of.
    pub turn: Vec<TurnFinding>,
}

/// One STUN server.
#[derive(Debug)]
pub struct StunFinding {
    /// As it was named.
    pub server: HostPort,
    /// Which of its addresses was asked.
    pub address: Option<SocketAddr>,
    /// How it sees us.
    pub mapped: Option<SocketAddr>,
    /// How fast it answers.
    pub round_trip: Result<Duration, ProbeError>,
}

/// One TURN server by one transport.
#[derive(Debug)]
pub struct TurnFinding {
    /// By what it was asked.
    pub transport: TurnTransport,
    /// Where it is.
    pub server: HostPort,
    /// The addresses that it lent us: one, or one of each family.
    pub relayed: Vec<SocketAddr>,
    /// How long connecting and asking took.
    pub took: Result<Duration, ProbeError>,
}

/// One peer of the ticket.
#[derive(Debug)]
pub struct PeerFinding {
    /// Which one.
    pub peer: PeerId,
    /// Where the ticket says that it is.
    pub addresses: Vec<SocketAddr>,
    /// How long connecting took.
    pub connected: Result<Duration, TransportError>,
    /// The relays that were asked to introduce us.
    pub introductions: Vec<(HostPort, Introduction)>,
    /// The path in use, if it is connected.
    pub in_use: Option<(PathKind, SocketAddr)>,
    /// The paths that were tried, connected or not; best ones first.
    pub paths: Vec<TriedPath>,
}

/// Why connections to others are not expected to work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Trouble {
    /// Nobody was asked.
    #[error(
        "no relay is known: only peers in the same network, or with a public address, can be reached; ask your \
         cooperative for the address of its relay"
    )]
    NoRelay,
    /// None of the relays gave us a session.
    #[error("there is no relay that we could use: {0}")]
    NoRelayUp(String),
    /// Sessions work, but nothing that carries data.
    #[error("UDP is blocked here, and no relay offers TURN over TLS or TCP: nothing can carry data")]
    NothingCarries,
    /// None of the peers of the ticket answered.
    #[error("there is no way to any peer of the ticket: {0}")]
    NoPeer(String),
    /// A ticket that names nobody.
    #[error("the ticket names no peer: whoever made it was not reachable anywhere; ask for a new one")]
    EmptyTicket,
}

/// All that was found.
#[derive(Debug)]
pub struct Report {
    /// Addresses of this machine, without loopback.
    pub local: Vec<IpAddr>,
    /// What the router says when it is asked for a port.
    pub port_mapping: PortMappingReport,
    /// The NAT, per family of addresses that servers could be asked by.
    pub nat: Vec<NatFinding>,
    /// The relays, in the order they were named, those of the ticket last.
    pub relays: Vec<RelayFinding>,
    /// Further STUN servers: those that were named, then those that relays told us of.
    pub stun: Vec<StunFinding>,
    /// The peers of the ticket; `None` without a ticket.
    pub peers: Option<Vec<PeerFinding>>,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// What this machine has to reach others by.
    pub fn ways(&self) -> Ways {
        let up = || self.relays.iter().filter(|relay| relay.session.is_ok());
        let turn =
            |transport| up().flat_map(|relay| &relay.turn).any(|turn| turn.transport == transport && turn.took.is_ok());
        Ways {
            // IPv4 is what everybody has.
            nat: self.nat.first().map(|nat| seen_from_outside(nat.report)),
            relay: up().next().is_some(),
            forwarding: up().flat_map(|relay| &relay.stun).any(|stun| stun.round_trip.is_ok()),
            turn_udp: turn(TurnTransport::Udp),
            turn_tcp: turn(TurnTransport::Tcp),
            turn_tls: turn(TurnTransport::Tls),
        }
    }

    /// What STUN servers answered, those of relays included, that no NAT explains: what is said of the NAT may be wrong then.
    pub fn doubts(&self) -> Vec<Doubt> {
        let of_relays = self.relays.iter().flat_map(|relay| &relay.stun);
        doubts(&self.local, of_relays.chain(&self.stun))
    }

    /// By which kind of path each common kind of peer will be reached; `None`: not at all.
    pub fn expected(&self) -> Vec<(PeerKind, Option<PathKind>)> {
        let ways = self.ways();
        PeerKind::ALL.into_iter().map(|peer| (peer, expected_path(&ways, peer))).collect()
    }

    /// Whether connections to others are expected to work: with a ticket, whether one of its peers was reached; otherwise
    /// whether most people, behind their home routers, will be.
    ///
    /// # Errors
    /// [`Trouble`] says why not, and what to do.
    pub fn verdict(&self) -> Result<(), Trouble> {
        if let Some(peers) = &self.peers {
            let mut failed = peers.iter().map(|peer| peer.connected.as_ref().err()).peekable();
            return match failed.peek() {
                None => Err(Trouble::EmptyTicket),
                Some(_) if peers.iter().any(|peer| peer.connected.is_ok()) => Ok(()),
                Some(first) => Err(Trouble::NoPeer(first.map(ToString::to_string).unwrap_or_default())),
            };
        }
        let ways = self.ways();
        if expected_path(&ways, PeerKind::PortRestricted).is_some() {
            return Ok(());
        }
        let first_error = self.relays.iter().find_map(|relay| relay.session.as_ref().err());
        Err(match first_error {
            _ if ways.relay => Trouble::NothingCarries,
            Some(error) => Trouble::NoRelayUp(error.to_string()),
            None => Trouble::NoRelay,
        })
    }
}
