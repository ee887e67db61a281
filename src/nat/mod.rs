//! Getting through NATs: STUN, TURN and path selection as pure machines, without a socket, a clock or randomness of their own.
//!
//! - [`stun`] is the codec: scan, authenticate, decode; seal and encode.
//! - [`binding`] learns how STUN servers see a socket, and keeps the NAT's mapping.
//! - [`nat_type`] finds out what kind of NAT is in the way.
//! - [`allocation`] gets a relayed address from a TURN server, and carries payloads through it.
//! - [`credentials`] are what a TURN server wants to see.
//! - [`framing`] cuts a TURN server's byte stream, and wraps payloads as ChannelData.
//! - [`check`] is what peers ask each other to find out which paths work.
//! - [`port_mapping`] asks the router for a port that is let in.
//! - [`birthday`] lets two NATs meet by chance that would not meet otherwise.
//! - [`path`] names the ways to a peer, [`path_selection`] decides which one is used.
//!
//! A driver hands every datagram that [`stun::is_stun`] recognises to the machine that talks to its sender, sends what
//! `poll_transmit` gives, and calls `handle_timeout` when `poll_timeout` says so.

pub mod allocation;
pub mod binding;
pub mod birthday;
pub mod check;
pub mod credentials;
pub mod framing;
pub mod nat_type;
pub mod path;
pub mod path_selection;
pub mod port_mapping;
pub mod stun;
mod transaction;

pub use transaction::{RetransmitOptions, Transmit};
