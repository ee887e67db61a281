//! The ways by which datagrams can reach a peer.

use std::net::SocketAddr;

use crate::transport::PathKind;

/// Through what a datagram leaves this node, or came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// The node's own UDP socket, straight to the peer.
    Socket,
    /// A flow that a relay forwards; the remote address is the relay's.
    Forward {
        /// The number of this end of the flow.
        flow: u64,
    },
    /// A socket beside the node's own, straight to the peer: one that met it by birthday punching.
    Extra {
        /// Its number; none is used twice.
        socket: u32,
    },
    /// An allocation of ours on a TURN server; the remote address is the peer's as the server sees it.
    Turn {
        /// Which of this node's allocations.
        allocation: u8,
    },
}

/// How datagrams travel between this node and one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path {
    /// Through what they leave.
    pub via: Via,
    /// Where they are sent to.
    pub remote: SocketAddr,
}

impl Path {
    /// A path from the node's own socket.
    pub fn direct(remote: SocketAddr) -> Self {
        Self { via: Via::Socket, remote }
    }
}

/// Paths are chosen by tier: a lower one wins whatever its round-trip time.
pub(super) fn tier(kind: PathKind) -> u8 {
    match kind {
        PathKind::Lan => 0,
        PathKind::Direct | PathKind::Punched | PathKind::Mapped => 1,
        PathKind::Forwarded => 2,
        PathKind::TurnUdp => 3,
        PathKind::TurnTcp => 4,
        PathKind::TurnTls => 5,
    }
}
