//! The names of things: peers, documents, operations. All are fixed-size values, cheap to copy and to compare.
//!
//! `Debug` and [`ShortId`] never show an identifier itself but the first bytes of its hash, so that a log line
//! can tell two peers apart without naming one. `Display` shows the whole value and is for people, not for logs.

use std::fmt;
use std::str::FromStr;

use p2panda_core::{Hash, Signature, Topic, VerifyingKey};
use uuid::Uuid;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::IdError;

/// Domain separation for the topic of a document.
const TOPIC_CONTEXT: &str = "panda-network 2026 topic";

/// Eight hexadecimal digits of the BLAKE3 hash of an identifier: fit for logs, spans and metrics labels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortId([u8; 4]);

impl ShortId {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let hash = blake3::hash(bytes);
        let mut short = [0; 4];
        short.copy_from_slice(&hash.as_bytes()[..4]);
        Self(short)
    }
}

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The Ed25519 public key of a node (32 bytes). It signs operations and authenticates TLS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 32]);

impl PeerId {
    /// Reads a key of 32 bytes.
    ///
    /// # Errors
    /// [`IdError::PeerId`] if the bytes are not a point of the curve.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, IdError> {
        VerifyingKey::from_bytes(bytes).map(Self::from).map_err(|_| IdError::PeerId)
    }

    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Name for logs and spans.
    pub fn short(&self) -> ShortId {
        ShortId::of(self.as_bytes())
    }

    /// Whether `signature` is this peer's under `message`.
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.verifying_key().is_some_and(|key| key.verify(message, &Signature::from_bytes(signature)))
    }

    /// The key as p2panda knows it, five times the size: the point of the curve is worked out. It is one, this was checked.
    pub(crate) fn verifying_key(&self) -> Option<VerifyingKey> {
        VerifyingKey::from_bytes(&self.0).ok()
    }
}

impl From<VerifyingKey> for PeerId {
    fn from(key: VerifyingKey) -> Self {
        Self(*key.as_bytes())
    }
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.short())
    }
}

impl FromStr for PeerId {
    type Err = IdError;

    /// Reads 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, IdError> {
        text.parse::<VerifyingKey>().map(Self::from).map_err(|_| IdError::PeerId)
    }
}

/// A document: a UUID. Peers never send it; they prove to each other that they know the document instead.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentId(Uuid);

impl DocumentId {
    /// The document with this UUID.
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// The UUID.
    pub fn as_uuid(&self) -> &Uuid {
        &self.0
    }

    /// Name for logs and spans.
    pub fn short(&self) -> ShortId {
        ShortId::of(self.0.as_bytes())
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DocumentId({})", self.short())
    }
}

impl FromStr for DocumentId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Uuid::parse_str(text).map(Self).map_err(|_| IdError::DocumentId)
    }
}

/// 32 secret bytes made with the document; knowing them is the capability to take part. Wiped from memory on drop.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct DocumentKey([u8; 32]);

impl DocumentKey {
    /// The key with these bytes. They must come from a cryptographic random number generator.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret bytes: handle them like a password.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The p2panda topic of a document: `BLAKE3.derive_key("panda-network 2026 topic", key ‖ id)`.
    pub fn topic(&self, document: &DocumentId) -> Topic {
        let mut hasher = blake3::Hasher::new_derive_key(TOPIC_CONTEXT);
        hasher.update(&self.0).update(document.0.as_bytes());
        Topic::from(*hasher.finalize().as_bytes())
    }
}

impl fmt::Debug for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DocumentKey(***)")
    }
}

/// The log of a document: every author has one log under this id. `BLAKE3(topic)`, as p2panda Nodes name theirs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(Hash);

impl LogId {
    /// The log of a topic.
    pub fn of_topic(topic: &Topic) -> Self {
        Self(Hash::digest(topic.as_bytes()))
    }

    /// The 32 bytes of the id.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Name for logs and spans.
    pub fn short(&self) -> ShortId {
        ShortId::of(self.as_bytes())
    }

    pub(crate) fn hash(&self) -> Hash {
        self.0
    }
}

impl From<[u8; 32]> for LogId {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LogId({})", self.short())
    }
}

/// The BLAKE3 hash of an operation's header: its name everywhere, and the backlink of the next one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId([u8; 32]);

impl OperationId {
    /// The 32 bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn hash(&self) -> Hash {
        Hash::from(self.0)
    }
}

impl From<[u8; 32]> for OperationId {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl From<Hash> for OperationId {
    fn from(hash: Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OperationId({})", ShortId::of(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_log_line_never_shows_an_identifier() {
        let document = DocumentId::from_uuid(Uuid::from_u128(7));
        let key = DocumentKey::from_bytes([0xAB; 32]);
        let shown = format!("{document:?} {key:?} {:?}", LogId::of_topic(&key.topic(&document)));
        assert!(!shown.contains(&document.to_string()));
        assert!(!shown.to_lowercase().contains("abab"));
    }

    #[test]
    fn the_topic_depends_on_the_key_and_on_the_document() {
        let (one, two) = (DocumentId::from_uuid(Uuid::from_u128(1)), DocumentId::from_uuid(Uuid::from_u128(2)));
        let (a, b) = (DocumentKey::from_bytes([1; 32]), DocumentKey::from_bytes([2; 32]));
        assert_ne!(a.topic(&one), a.topic(&two));
        assert_ne!(a.topic(&one), b.topic(&one));
    }

    #[test]
    fn peers_are_in_the_order_of_their_keys() {
        let mut peers: Vec<_> = (1..=32).map(|seed| Identity::from_seed(&[seed; 32]).peer_id()).collect();
        peers.sort();
        assert!(peers.is_sorted_by_key(|peer| peer.verifying_key()));
        assert!(peers.is_sorted_by_key(|peer| peer.to_string()));
    }

    #[test]
    fn identifiers_survive_their_text_form() {
        let document = DocumentId::from_uuid(Uuid::from_u128(7));
        assert_eq!(document.to_string().parse::<DocumentId>().unwrap(), document);
        assert!("not a uuid".parse::<DocumentId>().is_err());
        assert!("zz".parse::<PeerId>().is_err());
    }
}
