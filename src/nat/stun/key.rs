//! What makes a message trustworthy: its transaction id, and the key of its MESSAGE-INTEGRITY.
//!
//! Both are handed in: no randomness here. Nothing of a key is ever printed.

use std::fmt;

use ring::hmac;
use zeroize::Zeroize;

/// Bytes of an HMAC-SHA1 (RFC 8489 §14.5).
pub(super) const HMAC_BYTES: usize = 20;

/// What a response repeats of its request: 96 random bits (RFC 8489 §5). Whoever cannot guess it cannot answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId([u8; 12]);

impl TransactionId {
    /// Takes 96 bits from a cryptographic generator; a new id for each new request.
    pub const fn from_random(bytes: [u8; 12]) -> Self {
        Self(bytes)
    }

    /// The bytes on the wire.
    pub const fn as_bytes(&self) -> &[u8; 12] {
        &self.0
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransactionId({})", data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// The key of MESSAGE-INTEGRITY, HMAC-SHA1 (RFC 8489 §9).
#[derive(Clone)]
pub struct IntegrityKey(hmac::Key);

impl IntegrityKey {
    /// Short-term credentials: the password itself, for us the secret of a session (RFC 8489 §9.1.1).
    pub fn short_term(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret))
    }

    /// Long-term credentials: `MD5(user:realm:password)`, as TURN servers want it (RFC 8489 §9.2.2).
    pub fn long_term(username: &str, realm: &str, password: &str) -> Self {
        let mut text = format!("{username}:{realm}:{password}");
        let mut digest = md5::compute(text.as_bytes()).0;
        text.zeroize();
        let key = Self::short_term(&digest);
        digest.zeroize();
        key
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; HMAC_BYTES] {
        let mut code = [0; HMAC_BYTES];
        code.copy_from_slice(hmac::sign(&self.0, message).as_ref());
        code
    }

    /// In constant time.
    pub(super) fn verify(&self, message: &[u8], code: &[u8]) -> bool {
        hmac::verify(&self.0, message, code).is_ok()
    }
}

impl fmt::Debug for IntegrityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IntegrityKey(..)")
    }
}
