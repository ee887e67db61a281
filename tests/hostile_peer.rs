//! What one hostile peer can do to a node that edits with an honest one: nothing that the honest notice.
//!
//! The hostile peer has an identity and the document's ticket, and speaks the wire protocol by hand on virtual time
//! (`support/hostile.rs`). Every scene is played with several seeds, and ends with the honest two editing on and
//! converging; what the node stored is then counted. A failure prints its seed.
#![cfg(feature = "sim")]

#[path = "support/hostile.rs"]
mod hostile;
#[allow(dead_code, reason = "other tests crash and restart nodes, these do not")]
mod support;

#[path = "hostile_peer/connections.rs"]
mod connections;
#[path = "hostile_peer/floods.rs"]
mod floods;
#[path = "hostile_peer/frames.rs"]
mod frames;
#[path = "hostile_peer/operations.rs"]
mod operations;
#[path = "hostile_peer/sessions.rs"]
mod sessions;
