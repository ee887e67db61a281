//! What can end a session or a link, and whose fault it is.

use thiserror::Error;

use crate::cbor::CborError;
use crate::frame::FrameError;
use crate::store::StoreError;
use crate::sync::hello::PROTOCOL_VERSIONS;
use crate::transport::{CloseReason, TransportError};

/// A session with a peer about a document, or the whole link to it, ended early. What was acknowledged is safe; the next
/// session goes on from there.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The peer sent bytes that are not frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer sent a frame that says nothing sensible.
    #[error(transparent)]
    Wire(#[from] CborError),
    /// The peer broke the order of the protocol.
    #[error("peer broke the protocol: {0}")]
    Misbehaved(&'static str),
    /// The peer keeps refusing what we send, or we what it sends.
    #[error("operations were refused {0} times without progress")]
    Refused(u32),
    /// The peer speaks no version of the protocol that we do.
    #[error("peer speaks versions {oldest} to {newest} of the protocol, this node {}; update the older one", PROTOCOL_VERSIONS.newest)]
    UnknownVersion {
        /// The peer's newest.
        newest: u16,
        /// The peer's oldest.
        oldest: u16,
    },
    /// The peer does not answer heartbeats.
    #[error("the peer stopped answering")]
    Unresponsive,
    /// The connection or stream failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// Our store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SessionError {
    /// The code that the peer is told.
    pub(super) fn close_reason(&self) -> CloseReason {
        match self {
            Self::Frame(_) | Self::Wire(_) | Self::Misbehaved(_) => CloseReason::BadFrame,
            Self::Refused(_) => CloseReason::BadOperation,
            Self::UnknownVersion { .. } => CloseReason::UnknownVersion,
            Self::Unresponsive => CloseReason::Unresponsive,
            Self::Transport(_) => CloseReason::Done,
            Self::Store(_) => CloseReason::InternalError,
        }
    }

    /// True when the peer erred, so that it is counted against it.
    pub(super) fn is_peers_fault(&self) -> bool {
        match self {
            Self::Frame(_) | Self::Wire(_) | Self::Misbehaved(_) | Self::Refused(_) => true,
            Self::UnknownVersion { .. } | Self::Unresponsive | Self::Transport(_) | Self::Store(_) => false,
        }
    }
}
