//! What an allocation is asked for with, what it tells, and why it fails.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::nat::stun::{AddressFamily, ErrorCode};
use crate::nat::transaction::RetransmitOptions;

/// RFC 8656 §7.2: the default of servers.
const LIFETIME: Duration = Duration::from_secs(600);

/// How frames reach the server. It changes padding and retransmission only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TurnTransport {
    /// One frame per datagram; requests are repeated.
    Udp,
    /// A byte stream, to be cut by [`TurnFramer`](crate::nat::framing::TurnFramer).
    Tcp,
    /// A byte stream inside TLS.
    Tls,
}

impl TurnTransport {
    /// Whether frames travel in a byte stream.
    pub fn is_stream(self) -> bool {
        match self {
            Self::Udp => false,
            Self::Tcp | Self::Tls => true,
        }
    }
}

/// Which relayed addresses to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Families {
    One(AddressFamily),
    Both,
}

/// How to ask for an allocation.
#[derive(Debug, Clone, Copy)]
pub struct TurnOptions {
    pub(super) transport: TurnTransport,
    pub(super) families: Families,
    pub(super) lifetime: Duration,
    pub(super) retransmit: RetransmitOptions,
    pub(super) credentials_until: Option<Instant>,
}

impl TurnOptions {
    /// An IPv4 address for 600 s at a time.
    pub fn new(transport: TurnTransport) -> Self {
        let retransmit = RetransmitOptions::new();
        let families = Families::One(AddressFamily::V4);
        Self { transport, families, lifetime: LIFETIME, retransmit, credentials_until: None }
    }

    /// The family of the relayed address; default IPv4. A peer of the other family cannot be reached from it.
    pub fn with_address_family(mut self, family: AddressFamily) -> Self {
        self.families = Families::One(family);
        self
    }

    /// Relayed addresses of both families, so that peers of either are reached. From a server that has one family only, that
    /// one. Costs the server a second port.
    pub fn with_both_families(mut self) -> Self {
        self.families = Families::Both;
        self
    }

    /// How long to ask for, 60 to 3,600 s; default 600 s. The server decides. Short: more packets. Long: the server keeps the
    /// ports of clients that died.
    pub fn with_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime.clamp(Duration::from_secs(60), Duration::from_secs(3600));
        self
    }

    /// Until when the credentials are good; default: always. A server that refuses them later is believed and the allocation
    /// given up, so that another one can be made with fresh ones; over a stream only, since over UDP the server keeps the
    /// place of the old one until that expires. Too early: whoever forges a refusal ends the allocation.
    pub fn with_credentials_until(mut self, until: Instant) -> Self {
        self.credentials_until = Some(until);
        self
    }

    /// How requests are repeated over UDP, and when they are given up over any transport.
    pub fn with_retransmit(mut self, retransmit: RetransmitOptions) -> Self {
        self.retransmit = retransmit;
        self
    }
}

/// What the driver should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TurnEvent {
    /// There is a relayed address.
    Allocated {
        /// Where peers reach us: a relayed candidate.
        relayed: SocketAddr,
        /// The same of the other family, if both were asked for and the server has it.
        also_relayed: Option<SocketAddr>,
        /// How the server sees us: a server-reflexive candidate.
        mapped: SocketAddr,
        /// How long the server promises it, from its answer on. It is refreshed in time.
        lifetime: Duration,
    },
    /// Payloads go to this peer and come from it from here on, by indications or by its channel.
    PeerReady {
        /// Which one.
        peer: SocketAddr,
    },
    /// The server does not relay to this peer.
    PeerRefused {
        /// Which one.
        peer: SocketAddr,
        /// Why.
        code: ErrorCode,
    },
    /// There is no relayed address, or no longer.
    Failed {
        /// Why.
        why: TurnFailure,
        /// When the machine tries again by itself; `None`: not before it is told to.
        retry_at: Option<Instant>,
    },
    /// The allocation was given back.
    Released,
}

/// Why there is no allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TurnFailure {
    /// The environment: nothing that can be trusted came back.
    #[error("the TURN server did not answer{}", unsigned.map(hint).unwrap_or_default())]
    NoAnswer {
        /// An error response without a valid signature, which anybody on the path could have sent.
        unsigned: Option<ErrorCode>,
    },
    /// 401 to a signed Allocate, or to anything once the credentials have expired, and 441: the caller's user name or password is wrong, or has expired.
    #[error(
        "the TURN server does not accept our credentials: check user name, password and expiry; if a relay made them, \
         check that it has the server's secret and that the clocks of both are right"
    )]
    CredentialsRefused,
    /// 437 to Allocate: the server has an allocation for this socket already. If it was ours it has been deleted now;
    /// otherwise another local port helps.
    #[error("the TURN server has another allocation for this socket: use another local port, or wait")]
    AddressInUse,
    /// 403: the server's operator does not want us.
    #[error("the TURN server forbids it")]
    Forbidden,
    /// 440, 442: not with this server.
    #[error("the TURN server does not support what we ask for (error {})", .0.number())]
    Unsupported(ErrorCode),
    /// 486, 508: the server has no room.
    #[error("the TURN server {} (error {})", busy(.0), .0.number())]
    Busy(ErrorCode),
    /// Another error.
    #[error("the TURN server refused with error {}", .0.number())]
    Refused(ErrorCode),
    /// The server answered something that makes no sense.
    #[error("the TURN server answered without what its answer must have")]
    BadResponse,
    /// 437 later on, or it could not be refreshed in time: the relayed address is gone.
    #[error("the TURN server has forgotten the allocation")]
    Lost,
    /// The environment: the stream to the server ended, and the allocation with it.
    #[error("the connection to the TURN server was lost")]
    TransportLost,
}

fn busy(code: &ErrorCode) -> &'static str {
    match code {
        ErrorCode::AllocationQuotaReached => "lends us no more addresses: our quota or that of our network is used up",
        _ => "has no room for us: all its addresses are lent, ask its operator for more",
    }
}

fn hint(code: ErrorCode) -> String {
    format!(", but somebody sent error {} without a signature", code.number())
}
