//! Panda Network: a network node that a collaborative editor embeds.
pub mod address;
pub mod backoff;
pub mod clock;
pub mod connections;
pub mod documents;
pub mod error;
pub mod frame;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod network_interface;
pub mod operation;
pub mod panda_network;
#[cfg(feature = "sim")]
pub mod sim;
pub mod storage;
pub mod store;
pub mod sync;
pub mod transport;
pub mod transports;
pub mod watch;

pub use address::{DocumentTicket, PeerAddress};
pub use backoff::ReconnectionPolicy;
pub use documents::{DocumentEvent, DocumentStatus, PeerProgress, PresenceChange, Receipt, StartFrom, Subscription};
pub use ids::{DocumentId, DocumentKey, OperationId, PeerId};
pub use network_interface::{ConnectionState, NetworkError, NetworkInterface, NetworkMessage};
pub use operation::Operation;
pub use panda_network::{
    Document, InMemoryHub, InMemoryNetwork, PandaError, PandaNetwork, PandaNetworkOptions, Presence,
};
pub use store::{Durability, StoredOperation};
