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
#[cfg(feature = "sim")]
pub mod sim;
pub mod store;
pub mod sync;
pub mod transport;
