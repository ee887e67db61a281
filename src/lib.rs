//! Panda Network: a network node that a collaborative editor embeds.
pub mod address;
pub mod backoff;
pub mod error;
pub mod frame;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod network_interface;
pub mod operation;
pub mod store;
pub mod transport;
pub mod panda_network;
pub use panda_network::{Document, DocumentEvent, DocumentStatus, From, PandaError, PandaNetwork, PandaNetworkOptions, Presence, PresenceChange, Receipt, Subscription};
