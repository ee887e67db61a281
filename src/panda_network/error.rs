//! What a call on the node can fail with.

use std::sync::Arc;

use thiserror::Error;

use crate::address::AddressError;
use crate::documents::PresenceError;
use crate::error::IdentityError;
use crate::ids::DocumentId;
use crate::network_interface::NetworkError;
use crate::rendezvous::address::RelayAddressError;
use crate::store::StoreError;
use crate::transport::TransportError;

/// A call on the node failed; each variant says who erred and what to do.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum PandaError {
    /// Storage failed, or refused because a bound is reached.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The network could not be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A ticket or an address is not acceptable.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A relay's address is not acceptable. Whoever wrote it erred.
    #[error("relay {text:?}: {error}")]
    Relay {
        /// What was given.
        text: String,
        /// What is wrong with it.
        error: RelayAddressError,
    },
    /// A presence state is not acceptable.
    #[error(transparent)]
    Presence(#[from] PresenceError),
    /// The identity file cannot be used.
    #[error(transparent)]
    Identity(#[from] Arc<IdentityError>),
    /// No such document in this node's store. The caller erred.
    #[error("document {0:?} was never opened by this node; open it with a ticket")]
    UnknownDocument(DocumentId),
}

impl From<IdentityError> for PandaError {
    fn from(error: IdentityError) -> Self {
        Self::Identity(Arc::new(error))
    }
}

impl From<PandaError> for NetworkError {
    fn from(error: PandaError) -> Self {
        match error {
            PandaError::Store(error) => error.into(),
            PandaError::UnknownDocument(document) => Self::UnknownDocument(document),
            PandaError::Transport(_)
            | PandaError::Address(_)
            | PandaError::Relay { .. }
            | PandaError::Presence(_)
            | PandaError::Identity(_) => Self::Other(error.to_string()),
        }
    }
}
