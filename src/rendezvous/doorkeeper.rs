//! Who is answered when a relay introduces somebody.

use super::signal::PROOF_BYTES;
use crate::ids::{DocumentKey, PeerId};

/// Domain separation of proofs.
const PROOF_CONTEXT: &str = "panda-network 2026 introduction";

/// Proof that both ends know one document, for the first words between two nodes that never met.
pub type Proof = [u8; PROOF_BYTES];

/// That `from` knows the document with this key, for `to` alone and for one session.
pub fn proof(key: &DocumentKey, (from, to): (&PeerId, &PeerId), session: u64) -> Proof {
    let mut hasher = blake3::Hasher::new_derive_key(PROOF_CONTEXT);
    for part in [key.as_bytes(), from.as_bytes(), to.as_bytes()] {
        hasher.update(part);
    }
    hasher.update(&session.to_be_bytes());
    let mut proof = Proof::default();
    hasher.finalize_xof().fill(&mut proof);
    proof
}

/// Answers those who know a document that is open here, and nobody else: a stranger could aim our packets otherwise. Hears
/// besides who was found by a relay.
pub trait Doorkeeper: Send + Sync + std::fmt::Debug {
    /// Proofs for an offer of `session` from this node to `peer`, at most 8.
    fn proofs(&self, peer: &PeerId, session: u64) -> Vec<Proof>;
    /// Whether an offer of `session` from `peer` to this node proves enough.
    fn admits(&self, peer: &PeerId, session: u64, proofs: &[Proof]) -> bool;
    /// Whether `peer` may connect by what a relay forwards without such a proof. It is not told where this node is before.
    fn lets_connect(&self, _peer: &PeerId) -> bool {
        false
    }

    /// A relay said that `peer`, which this node dials, is at another one. Must return at once.
    fn moved(&self, _peer: &PeerId) {}
}
