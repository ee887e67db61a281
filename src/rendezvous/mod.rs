//! How peers find each other through a relay that they do not have to trust with more than their addresses.
//!
//! Pure: [`address`] is how a relay is written down, [`wire`] what a node and a relay say to each other on one TLS stream,
//! [`forward`] how datagrams travel through a relay's UDP port, [`signal`] what two peers tell each other through it,
//! [`seal`] how they keep that from the relay, [`record`] where a peer can be met, and [`pin`] which key a TURN server must
//! have. Not here: the relay itself (`relay/`), and the node's session with it.

pub mod address;
pub mod doorkeeper;
pub mod forward;
pub mod pin;
pub mod record;
pub mod seal;
pub mod signal;
pub mod wire;

/// The application protocol (RFC 7301) between a node and a relay, and its version.
pub const ALPN: &[u8] = b"panda-relay/1";
