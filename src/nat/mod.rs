//! NAT traversal as pure machines: no socket, no clock, no randomness of their own.

pub mod path;
pub mod path_selection;
