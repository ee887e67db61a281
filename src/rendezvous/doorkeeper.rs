//! Who is answered when a relay introduces somebody.

use super::signal::PROOF_BYTES;
use crate::ids::PeerId;

/// Proof that both ends know one document, for the first words between two nodes that never met.
pub type Proof = [u8; PROOF_BYTES];

/// Answers those who know a document that is open here, and nobody else: a stranger could aim our packets otherwise.
pub trait Doorkeeper: Send + Sync + std::fmt::Debug {
    /// Proofs for an offer of `session` from this node to `peer`, at most 8.
    fn proofs(&self, peer: &PeerId, session: u64) -> Vec<Proof>;
    /// Whether an offer of `session` from `peer` to this node proves enough.
    fn admits(&self, peer: &PeerId, session: u64, proofs: &[Proof]) -> bool;
}
