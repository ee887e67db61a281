//! Blinded document tokens: how two peers find out which documents they share, and learn nothing about the others.
//!
//! Each side sends, for each of its documents, a keyed hash over a secret that only the two ends of this connection know
//! (the TLS exporter) and the sender's role. Who knows the document's key can compute the same token and recognise it; for
//! everybody else it is noise, different on every connection. The role keeps a peer from echoing our tokens back to us.

use crate::ids::{DocumentId, DocumentKey};

/// Domain separation for the key that blinds tokens.
const TOKEN_CONTEXT: &str = "panda-network 2026 document token";

/// Label of the TLS exporter that tokens are bound to.
pub const EXPORTER_LABEL: &[u8] = b"panda-network/1 document tokens";

/// Bytes of a token: enough that nobody finds a second document with the same one.
pub const TOKEN_BYTES: usize = 16;

/// A document's name between two peers on one connection, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub(crate) [u8; TOKEN_BYTES]);

/// Which end of the connection says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The end that dialled.
    Dialler,
    /// The end that accepted.
    Acceptor,
}

impl Role {
    /// The role of the other end.
    pub fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Acceptor,
            Self::Acceptor => Self::Dialler,
        }
    }
}

impl Token {
    /// The token that the end with role `role` sends for a document on the connection with this exporter secret.
    pub fn new(key: &DocumentKey, document: &DocumentId, exporter: &[u8; 32], role: Role) -> Self {
        let mut derive = blake3::Hasher::new_derive_key(TOKEN_CONTEXT);
        derive.update(key.as_bytes()).update(document.as_uuid().as_bytes());
        let mut hasher = blake3::Hasher::new_keyed(derive.finalize().as_bytes());
        let role = match role {
            Role::Dialler => b"d",
            Role::Acceptor => b"a",
        };
        let mut token = [0; TOKEN_BYTES];
        hasher.update(exporter).update(role).finalize_xof().fill(&mut token);
        Self(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_depends_on_document_key_connection_and_direction() {
        let document = |n| DocumentId::from_uuid(uuid::Uuid::from_u128(n));
        let key = |n| DocumentKey::from_bytes([n; 32]);
        let tokens = [
            Token::new(&key(1), &document(1), &[1; 32], Role::Dialler),
            Token::new(&key(2), &document(1), &[1; 32], Role::Dialler),
            Token::new(&key(1), &document(2), &[1; 32], Role::Dialler),
            Token::new(&key(1), &document(1), &[2; 32], Role::Dialler),
            Token::new(&key(1), &document(1), &[1; 32], Role::Acceptor),
        ];
        let distinct: std::collections::BTreeSet<_> = tokens.iter().collect();
        assert_eq!(distinct.len(), tokens.len());
        assert_eq!(tokens[0], Token::new(&key(1), &document(1), &[1; 32], Role::Dialler));
    }
}
