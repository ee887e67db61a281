//! QUIC on UDP: one socket, one endpoint, one connection per peer.
//!
//! Make [`QuicTransportOptions`], start a [`QuicTransport`] with them, and use it through the port in
//! [`crate::transport`]. From the wire up: `path_socket` (and its `routes`) hides which address a peer is reached at;
//! `dial` and `incoming` make connections, with `hello` as their last step; `connection`, `streams`, `inbound` and
//! `stream_pool` are one connection; `pool` and `peer_state` count them all.
//!
//! The first byte of every bidirectional stream says what it is (the `wire` module); applications never see it.

mod addresses;
mod attempt;
mod connection;
mod counters;
mod demux;
mod dial;
mod errors;
mod extra;
mod flush;
mod hello;
mod inbound;
mod incoming;
#[cfg(feature = "bridge")]
mod nodes;
mod options;
mod path_epoch;
mod path_socket;
mod paths;
mod peer_state;
mod pool;
mod queue;
mod repeat;
mod routes;
mod stream_pool;
mod streams;
mod transport;
mod traversal;
mod udp;
mod unproven;
mod wire;

pub use attempt::{DialReport, Introduction, PathOutcome, TriedPath};
pub use options::QuicTransportOptions;
pub use path_socket::SocketStats;
pub use peer_state::PeerStats;
pub use transport::{QuicStats, QuicTransport};

#[cfg(test)]
mod tests;
