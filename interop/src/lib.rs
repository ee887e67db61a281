//! p2panda 0.7.1 as an oracle for Panda Network: what its crates write ([`vectors`]), and how the tests drive a real
//! `p2panda::Node` and a node of ours in processes of their own ([`protocol`]).

pub mod protocol;
pub mod vectors;
