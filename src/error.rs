//! Errors of the vocabulary: what could not be read, and what to do about it.
//!
//! Each slice has its own error enum beside its code; the ones here belong to the shared words of the ground floor.

use thiserror::Error;

/// A text or byte string that names something is damaged. The giver of the text erred.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IdError {
    /// Not an Ed25519 public key.
    #[error("not a peer id: expected the 64 hexadecimal digits of an Ed25519 public key")]
    PeerId,
    /// Not a UUID.
    #[error("not a document id: expected a UUID such as 67e55044-10b1-426f-9247-bb680e5fe0c8")]
    DocumentId,
}

/// The identity of this node could not be read or made. The environment erred.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The key file could not be read or written.
    #[error("cannot use the identity file {path}: {source}; check that its directory exists and is yours")]
    Io {
        /// The key file.
        path: std::path::PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The key file has the wrong size.
    #[error(
        "the identity file {path} is damaged: {actual} bytes instead of 32; restore it from a backup, or remove it to start as a new peer"
    )]
    Damaged {
        /// The key file.
        path: std::path::PathBuf,
        /// Its size in bytes.
        actual: u64,
    },
    /// Others may read the key file.
    #[error(
        "the identity file {path} has mode {mode:o}, others can read it; run `chmod 600` on it and consider the key known"
    )]
    Exposed {
        /// The key file.
        path: std::path::PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// An operation was refused before it reached the store. Its sender erred.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OperationError {
    /// The header is larger than any header of ours or of a Node.
    #[error("operation header of {actual} bytes, at most {limit} are allowed")]
    HeaderTooLarge {
        /// Its size.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// The payload is over the limit.
    #[error("operation payload of {actual} bytes, at most {limit} are allowed; split it")]
    PayloadTooLarge {
        /// Its size.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// The header is not a p2panda header, or its signature is wrong.
    #[error("operation header refused: {0}")]
    Header(String),
    /// The header fields contradict each other or the body.
    #[error("operation refused: {0}")]
    Invalid(String),
    /// The operation belongs to another document.
    #[error("operation belongs to another document")]
    WrongLog,
    /// The extensions are of a kind that this node does not know.
    #[error(
        "operation extensions of version {version} and variant {variant}, this node knows version 1 and variant 0; update panda-network"
    )]
    UnknownExtensions {
        /// Their version.
        version: u16,
        /// Their variant.
        variant: u16,
    },
    /// The body is not the envelope that it should be.
    #[error("operation body is not an envelope: {0}")]
    Envelope(&'static str),
}
