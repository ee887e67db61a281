//! Why the bridge to a Node does not work, or did not for a moment.

use thiserror::Error;

use super::authors::Full;
use super::session::OutOfTurn;
use crate::limits::SESSION_MAX_AUTHORS;
use crate::store::StoreError;
use crate::transport::TransportError;

/// Why a session with a Node ended or could not begin. It is tried again, later and later.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// The Node cannot be reached, or the connection was lost. The network, the Node's absence, or a wrong key or address.
    #[error("the Node is not reached: {0}")]
    Connection(#[from] TransportError),
    /// The Node closed the connection without telling its heights: no application there has the document's topic open.
    #[error("the Node has not opened this document's topic: {0}")]
    NotOpenThere(TransportError),
    /// The Node did not answer in time, or neither sent what it owes nor took what it was sent. The Node or the network.
    #[error("the Node did not answer")]
    Silent,
    /// The Node sent what is no message of the protocol. The Node erred, or has another version.
    #[error("the Node sent what cannot be read; is it p2panda 0.7?")]
    Unreadable,
    /// The Node sent a message that may not come at this point. The Node erred.
    #[error("the Node sent {0} out of turn")]
    OutOfTurn(&'static str),
    /// The Node sent too many operations that are damaged or cannot be stored here. The Node erred, or authors there write
    /// something else than our operations.
    #[error("{0} operations of the Node were damaged or cannot be stored here")]
    TooManyRefused(u32),
    /// The Node speaks of more authors in one document than are kept track of. The Node erred, or the document has outgrown us.
    #[error("the Node speaks of more than {0} authors in one document")]
    TooManyAuthors(usize),
    /// This side's store failed. The environment erred.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Full> for BridgeError {
    fn from(_: Full) -> Self {
        Self::TooManyAuthors(SESSION_MAX_AUTHORS)
    }
}

impl From<OutOfTurn> for BridgeError {
    fn from(error: OutOfTurn) -> Self {
        Self::OutOfTurn(error.0)
    }
}
