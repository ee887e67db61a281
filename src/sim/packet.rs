//! What travels: one UDP datagram or one TCP segment, with its addresses as they are spelled where it is now.

use std::net::SocketAddr;

use bytes::Bytes;
use quinn::udp::EcnCodepoint;

use super::tcp::Segment;

/// What carries a packet. NATs and firewalls treat the two apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// Segments of a stream.
    Tcp,
}

/// One packet. NATs rewrite its addresses on the way.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) content: Content,
}

/// What is in a packet.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Datagram { ecn: Option<EcnCodepoint>, payload: Bytes },
    Segment(Segment),
}

impl Packet {
    pub(super) fn protocol(&self) -> Protocol {
        match self.content {
            Content::Datagram { .. } => Protocol::Udp,
            Content::Segment(_) => Protocol::Tcp,
        }
    }

    /// Bytes that links count: the payload, and what a TCP header has more than a UDP header.
    pub(super) fn size(&self) -> usize {
        match &self.content {
            Content::Datagram { payload, .. } => payload.len(),
            Content::Segment(segment) => segment.size(),
        }
    }
}
