//! What to look at.

use tokio::sync::mpsc;

use crate::ids::PeerId;
use crate::limits::{RELAYS_PER_NODE, STUN_MAX_SERVERS};
use crate::rendezvous::address::{HostPort, RelayAddress};
use crate::ticket::DocumentTicket;
use crate::transports::quic::QuicTransportOptions;

/// Something that has just begun, for whoever shows progress.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// A session with a relay is being made.
    Relay(HostPort),
    /// STUN servers are asked how they see us, and how the NAT behaves.
    Nat,
    /// A TURN server is asked for an address.
    Turn(HostPort),
    /// A peer of the ticket is dialled.
    Peer(PeerId),
    /// It answered; further paths to it are tried.
    Paths(PeerId),
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Relay(server) => write!(f, "connecting to the relay {server}"),
            Self::Nat => f.write_str("finding out what kind of NAT there is"),
            Self::Turn(server) => write!(f, "asking {server} for a relayed address"),
            Self::Peer(peer) => write!(f, "dialling peer {}", peer.short()),
            Self::Paths(peer) => write!(f, "trying all ways to peer {}", peer.short()),
        }
    }
}

/// Options of [`examine`](super::examine).
#[derive(Debug, Clone, Default)]
pub struct DoctorOptions {
    pub(super) relays: Vec<RelayAddress>,
    pub(super) stun: Vec<HostPort>,
    pub(super) ticket: Option<DocumentTicket>,
    pub(super) quic: QuicTransportOptions,
    pub(super) seed: Option<[u8; 32]>,
    pub(super) steps: Option<mpsc::Sender<Step>>,
}

impl DoctorOptions {
    /// Looks at the interfaces only.
    pub fn new() -> Self {
        Self::default()
    }

    /// Relays to try, at most 8. Default: none but those of the ticket. Without any, nothing is learnt about the NAT.
    pub fn with_relays(mut self, relays: impl IntoIterator<Item = RelayAddress>) -> Self {
        self.relays = relays.into_iter().take(RELAYS_PER_NODE).collect();
        self
    }

    /// STUN servers to ask besides the relays, at most 8. Default: none. One with two addresses (RFC 5780), or two on different
    /// hosts, are needed to tell NATs apart.
    pub fn with_stun_servers(mut self, servers: impl IntoIterator<Item = HostPort>) -> Self {
        self.stun = servers.into_iter().take(STUN_MAX_SERVERS).collect();
        self
    }

    /// A document whose peers to try. Default: none. It is not opened, and nothing of it is stored.
    pub fn with_ticket(mut self, ticket: DocumentTicket) -> Self {
        self.ticket = Some(ticket);
        self
    }

    /// How peers are dialled. Default: from a free port of all addresses. In a simulation it must bring a socket.
    /// Network, relays, seed and hello are the doctor's own, whatever it says.
    pub fn with_quic(mut self, options: QuicTransportOptions) -> Self {
        self.quic = options;
        self
    }

    /// What keys and all random numbers come from. Default: the operating system. For simulations only.
    pub fn with_seed(mut self, seed: [u8; 32]) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Where to tell what is being done. Full: steps are left out.
    pub fn with_progress(mut self, steps: mpsc::Sender<Step>) -> Self {
        self.steps = Some(steps);
        self
    }
}
