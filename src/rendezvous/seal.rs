//! Sealing what two peers say through a relay: only the peer it is for can open it, and it knows who sealed it.
//!
//! Two Diffie-Hellman exchanges over Curve25519, as in HPKE's authenticated mode (RFC 9180, section 5.1.3): a fresh
//! ephemeral key with the recipient's, and the sender's with the recipient's. BLAKE3 derives one ChaCha20-Poly1305 key from
//! both results, the ephemeral key and both peer ids. X25519 uses the Ed25519 keys of the peers (birational map of
//! RFC 7748, section 4.1); it never signs, and the derivation has a context of its own, so that no signature helps it.
//!
//! What it gives: the relay learns the length. A seal is good for one sender, one recipient and one use. What it does not:
//! - forward secrecy against the recipient: whoever has its key later opens old seals. What is inside is short-lived, and
//!   the connection that follows has keys of its own;
//! - protection from replays: whoever opens a seal has to remember what it acted upon (nodes remember offers);
//! - proof to others: the recipient could have made the seal itself, and whoever stole *its* key can seal to it as anyone.

use curve25519_dalek::montgomery::MontgomeryPoint;
use ed25519_dalek::{SigningKey, VerifyingKey};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::identity::Identity;
use crate::ids::PeerId;
use crate::limits::SIGNAL_SEALED_MAX_BYTES;

/// Domain separation of the key.
const KEY_CONTEXT: &str = "panda-network 2026 sealed signalling";
/// Version of the construction, the first byte of a seal.
const VERSION: u8 = 1;
/// Version and ephemeral key.
const HEADER_BYTES: usize = 1 + 32;
/// What a seal adds to its content: version, ephemeral key, tag.
pub const SEAL_BYTES: usize = HEADER_BYTES + 16;

/// A message cannot be sealed, or is not what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SealError {
    /// The content does not fit a signal. The caller erred.
    #[error("content of {0} bytes does not fit a sealed signal")]
    TooLarge(usize),
    /// The other peer's key is no key that one can exchange a secret with. The peer erred.
    #[error("peer has a weak key")]
    WeakKey,
    /// Not a seal of ours: too short, too long, or of an unknown version. The sender erred.
    #[error("sealed message is malformed")]
    Malformed,
    /// Damaged, for somebody else, or sealed by somebody else. Sender or relay erred.
    #[error("sealed message was not sealed by that peer for this one")]
    NotAuthentic,
}

/// Seals `plaintext` for `to`. `ephemeral_random` must be fresh from a secure generator for every call.
///
/// # Errors
/// [`SealError::TooLarge`], or [`SealError::WeakKey`] of the recipient.
pub fn seal(
    from: &Identity,
    to: &PeerId,
    plaintext: &[u8],
    mut ephemeral_random: [u8; 32],
) -> Result<Vec<u8>, SealError> {
    if plaintext.len() > SIGNAL_SEALED_MAX_BYTES - SEAL_BYTES {
        return Err(SealError::TooLarge(plaintext.len()));
    }
    let recipient = montgomery(to)?;
    let ephemeral = MontgomeryPoint::mul_base_clamped(ephemeral_random);
    let fresh = exchange(ephemeral_random, recipient)?;
    ephemeral_random.zeroize();
    let lasting = exchange(*static_secret(from), recipient)?;
    let key = message_key(&fresh, &lasting, &ephemeral, &from.peer_id(), to)?;

    let mut out = Vec::with_capacity(plaintext.len() + SEAL_BYTES);
    out.push(VERSION);
    out.extend_from_slice(ephemeral.as_bytes());
    out.extend_from_slice(plaintext);
    let tag = key
        .seal_in_place_separate_tag(only_nonce(), Aad::from([VERSION]), &mut out[HEADER_BYTES..])
        .map_err(|_| SealError::TooLarge(plaintext.len()))?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

/// Opens what `from` sealed for us.
///
/// # Errors
/// [`SealError`]; nothing of the content is known then.
pub fn open(to: &Identity, from: &PeerId, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    if !(SEAL_BYTES..=SIGNAL_SEALED_MAX_BYTES).contains(&sealed.len()) || sealed[0] != VERSION {
        return Err(SealError::Malformed);
    }
    let (ephemeral, rest) = sealed[1..].split_first_chunk::<32>().ok_or(SealError::Malformed)?;
    let ephemeral = MontgomeryPoint(*ephemeral);
    let secret = static_secret(to);
    let fresh = exchange(*secret, ephemeral)?;
    let lasting = exchange(*secret, montgomery(from)?)?;
    let key = message_key(&fresh, &lasting, &ephemeral, from, &to.peer_id())?;

    let mut content = rest.to_vec();
    let length =
        key.open_in_place(only_nonce(), Aad::from([VERSION]), &mut content).map_err(|_| SealError::NotAuthentic)?.len();
    content.truncate(length);
    Ok(content)
}

/// Every message has a key of its own, so that one nonce is enough.
fn only_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// The peer's key on the Montgomery curve. Weak ones, which give the same secret with everybody, are refused.
fn montgomery(peer: &PeerId) -> Result<MontgomeryPoint, SealError> {
    let key = VerifyingKey::from_bytes(peer.as_bytes()).map_err(|_| SealError::WeakKey)?;
    if key.is_weak() { Err(SealError::WeakKey) } else { Ok(key.to_montgomery()) }
}

/// The X25519 secret of an Ed25519 key; clamped where it is used.
fn static_secret(identity: &Identity) -> Zeroizing<[u8; 32]> {
    let key = SigningKey::from_bytes(identity.signing_key().as_bytes());
    Zeroizing::new(key.to_scalar_bytes())
}

/// X25519, which must not give zero (RFC 7748, section 6.1): then the point was of low order.
fn exchange(secret: [u8; 32], point: MontgomeryPoint) -> Result<Zeroizing<[u8; 32]>, SealError> {
    let shared = Zeroizing::new(point.mul_clamped(secret).to_bytes());
    let bits = shared.iter().fold(0, |bits, byte| bits | byte);
    if bits == 0 { Err(SealError::WeakKey) } else { Ok(shared) }
}

fn message_key(
    fresh: &[u8; 32],
    lasting: &[u8; 32],
    ephemeral: &MontgomeryPoint,
    from: &PeerId,
    to: &PeerId,
) -> Result<LessSafeKey, SealError> {
    let mut hasher = blake3::Hasher::new_derive_key(KEY_CONTEXT);
    for part in [fresh, lasting, ephemeral.as_bytes(), from.as_bytes(), to.as_bytes()] {
        hasher.update(part);
    }
    let mut key = Zeroizing::new([0; 32]);
    hasher.finalize_xof().fill(key.as_mut());
    hasher.zeroize();
    let key = UnboundKey::new(&CHACHA20_POLY1305, key.as_ref()).map_err(|_| SealError::Malformed)?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(n: u8) -> Identity {
        Identity::from_seed(&[n; 32])
    }

    #[test]
    fn the_recipient_opens_what_the_sender_sealed() {
        let (alice, bob) = (identity(1), identity(2));
        for content in [&b""[..], b"offer", &[7; SIGNAL_SEALED_MAX_BYTES - SEAL_BYTES]] {
            let sealed = seal(&alice, &bob.peer_id(), content, [3; 32]).unwrap();
            assert_eq!(sealed.len(), content.len() + SEAL_BYTES);
            assert_eq!(open(&bob, &alice.peer_id(), &sealed).as_deref(), Ok(content));
        }
    }

    #[test]
    fn nobody_else_opens_it_and_nobody_else_could_have_sealed_it() {
        let (alice, bob, mallory) = (identity(1), identity(2), identity(3));
        let sealed = seal(&alice, &bob.peer_id(), b"offer", [3; 32]).unwrap();
        assert_eq!(open(&mallory, &alice.peer_id(), &sealed), Err(SealError::NotAuthentic));
        assert_eq!(open(&bob, &mallory.peer_id(), &sealed), Err(SealError::NotAuthentic));
        let forged = seal(&mallory, &bob.peer_id(), b"offer", [3; 32]).unwrap();
        assert_eq!(open(&bob, &alice.peer_id(), &forged), Err(SealError::NotAuthentic));
        // What comes back to its sender is not taken for an answer.
        assert_eq!(open(&alice, &bob.peer_id(), &sealed), Err(SealError::NotAuthentic));
    }

    #[test]
    fn no_changed_bit_and_no_truncation_is_accepted() {
        let (alice, bob) = (identity(1), identity(2));
        let sealed = seal(&alice, &bob.peer_id(), b"offer", [3; 32]).unwrap();
        for length in 0..sealed.len() {
            assert!(open(&bob, &alice.peer_id(), &sealed[..length]).is_err(), "cut at {length}");
        }
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&bob, &alice.peer_id(), &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn ephemeral_points_of_low_order_are_refused() {
        let (alice, bob) = (identity(1), identity(2));
        let sealed = seal(&alice, &bob.peer_id(), b"offer", [3; 32]).unwrap();
        for point in curve25519_dalek::constants::EIGHT_TORSION {
            let mut forged = sealed.clone();
            forged[1..33].copy_from_slice(point.to_montgomery().as_bytes());
            assert_eq!(open(&bob, &alice.peer_id(), &forged), Err(SealError::WeakKey));
        }
    }

    #[test]
    fn a_peer_with_a_weak_key_is_refused() {
        let alice = identity(1);
        for point in curve25519_dalek::constants::EIGHT_TORSION {
            let Ok(weak) = PeerId::from_bytes(point.compress().as_bytes()) else { continue };
            assert_eq!(seal(&alice, &weak, b"offer", [3; 32]), Err(SealError::WeakKey));
            assert_eq!(open(&alice, &weak, &[VERSION; SEAL_BYTES]), Err(SealError::WeakKey));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let alice = identity(1);
        let content = vec![0; SIGNAL_SEALED_MAX_BYTES];
        assert!(matches!(seal(&alice, &alice.peer_id(), &content, [3; 32]), Err(SealError::TooLarge(_))));
        assert_eq!(open(&alice, &alice.peer_id(), &[VERSION; SIGNAL_SEALED_MAX_BYTES + 1]), Err(SealError::Malformed));
    }

    /// So that two versions of this code understand each other.
    #[test]
    fn the_construction_stays_as_it_is() {
        let sealed = seal(&identity(1), &identity(2).peer_id(), b"offer", [3; 32]).unwrap();
        assert_eq!(
            blake3::hash(&sealed).to_hex().as_str(),
            "f8676fcaeda8fc160961584d33df149014832b1d4ede2e00d29a2a48aeb0eac2"
        );
    }
}
