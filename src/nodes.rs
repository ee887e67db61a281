//! The port to p2panda Nodes, and how they are written down.
//!
//! A Node speaks QUIC as we do, but shows a raw public key instead of a certificate, and has one connection per session. So it
//! has a port of its own, which carries streams and nothing else; what is said on them is for `bridge/` to say.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

use crate::ids::{PeerId, ShortId};
use crate::limits::PEER_ADDRESS_MAX_ADDRESSES;
use crate::transport::{BiStream, BoxFuture, CloseReason, TransportError};

/// Which p2panda network a Node belongs to: 32 bytes that all its Nodes are set up with. Nodes of another network do not answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct P2pandaNetworkId([u8; 32]);

impl P2pandaNetworkId {
    /// The network of Nodes that were set up without an id.
    pub const DEFAULT: Self = Self([
        247, 69, 248, 242, 132, 120, 159, 230, 98, 100, 214, 200, 78, 40, 79, 94, 174, 8, 12, 27, 84, 195, 246, 159,
        132, 240, 79, 208, 1, 43, 132, 118,
    ]);

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for P2pandaNetworkId {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl Debug for P2pandaNetworkId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "P2pandaNetworkId({})", ShortId::of(&self.0))
    }
}

/// A Node and where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct P2pandaNode {
    key: PeerId,
    addresses: Vec<SocketAddr>,
}

impl P2pandaNode {
    /// The Node with this public key (`Node::id()`), at these addresses: the first 20 are dialled, all at once. Only who proves
    /// the key is taken for the Node.
    pub fn new(key: PeerId, addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { key, addresses: addresses.into_iter().take(PEER_ADDRESS_MAX_ADDRESSES).collect() }
    }

    /// Its public key.
    pub fn key(&self) -> PeerId {
        self.key
    }

    /// It listens here as well; of all, the first 20 are dialled.
    pub(crate) fn add_addresses(&mut self, addresses: &[SocketAddr]) {
        let new = addresses.iter().filter(|address| !self.addresses.contains(address));
        let new: Vec<_> = new.take(PEER_ADDRESS_MAX_ADDRESSES - self.addresses.len()).copied().collect();
        self.addresses.extend(new);
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// Makes connections to Nodes.
pub trait NodeDialler: Send + Sync + Debug {
    /// Connects to exactly this Node, for one application protocol (ALPN). Dropping the future abandons the attempt.
    fn dial_node<'a>(
        &'a self,
        node: &'a P2pandaNode,
        protocol: &'a [u8],
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn NodeConnection>, TransportError>>;
}

/// A connection to a Node. It closes when it is dropped, streams or not.
pub trait NodeConnection: Send + Sync + Debug {
    /// Opens a stream; the Node sees it with its first bytes.
    fn open_bi(&self) -> BoxFuture<'_, Result<BiStream, TransportError>>;
    /// Closes at once; the Node is told the reason.
    fn close(&self, reason: CloseReason);
}
