//! STUN messages (RFC 8489), with what TURN (RFC 8656), ICE (RFC 8445) and behaviour discovery (RFC 5780) add to them.
//!
//! **In**: [`Scanned::scan`] checks the bounds, the lengths and the fingerprint without allocating. The transaction id is
//! compared next, then [`Scanned::check_integrity`], and only then [`Scanned::decode`] looks into attributes.
//! **Out**: a [`Request`] gets on the wire only by being [sealed](Request::seal) with a fresh transaction id, a
//! [`Response`] is made from the request that it answers.
//!
//! `stun_codec` encodes and decodes attributes. The scan, HMAC-SHA1, the fingerprint, PADDING and the data path
//! ([`relayed`]) are ours: its integrity check clones the message per attribute and does not compare in constant
//! time, it does not know PADDING, and it copies payloads.
//!
//! Not here: MESSAGE-INTEGRITY-SHA256, USERHASH and the other password algorithms of RFC 8489; SASLprep (user names and
//! passwords are compared as they are, so use ASCII). SOFTWARE is never sent.

mod attribute;
mod build;
mod key;
mod message;
pub mod relayed;
mod scan;
#[cfg(test)]
mod tests;

use thiserror::Error;

pub use attribute::{AddressFamily, Attribute, ChannelNumber, ErrorCode};
pub use build::{Request, Response, Sealed, keep_alive};
pub use key::{IntegrityKey, TransactionId};
pub use message::{Class, Message, Method};
pub use scan::Scanned;

/// RFC 8489 §5: fixed bits that tell STUN from other protocols on one socket.
pub const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xA4, 0x42];
/// RFC 8489 §5: type, length, cookie, transaction id.
pub const HEADER_BYTES: usize = 20;

/// Whether a datagram claims to be STUN: two zero bits and the cookie (RFC 8489 §6.3). QUIC sets the second bit in every
/// packet (unless its greasing is negotiated), so one socket carries both. ChannelData sets it as well: look for that only
/// in what a TURN server sent.
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.len() >= HEADER_BYTES && datagram[0] & 0xC0 == 0 && datagram[4..8] == MAGIC_COOKIE
}

/// What is wrong with a STUN message: the sender's fault, except where it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StunError {
    /// No STUN header.
    #[error("not a STUN message")]
    NotStun,
    /// Over the limit.
    #[error("a STUN message of {actual} bytes, at most {max} are allowed")]
    TooLarge {
        /// Its size in bytes.
        actual: usize,
        /// The limit for its kind.
        max: usize,
    },
    /// The header's length is not that of the datagram, or no multiple of four.
    #[error("a STUN header announces {announced} bytes of attributes, {actual} are there")]
    Length {
        /// What the header says.
        announced: usize,
        /// What follows it.
        actual: usize,
    },
    /// A method that none of our roles has.
    #[error("unknown STUN method {0:#05x}")]
    UnknownMethod(u16),
    /// More attributes than `STUN_MAX_ATTRIBUTES`.
    #[error("more than {} STUN attributes", crate::limits::STUN_MAX_ATTRIBUTES)]
    TooManyAttributes,
    /// An attribute that reaches over the end of the message.
    #[error("STUN attribute {0:#06x} is longer than its message")]
    Truncated(u16),
    /// MESSAGE-INTEGRITY twice or of another length, or FINGERPRINT elsewhere than at the end.
    #[error("STUN attribute {0:#06x} is misplaced")]
    Misplaced(u16),
    /// The checksum does not fit the message.
    #[error("STUN fingerprint does not fit the message")]
    WrongFingerprint,
    /// An attribute whose value cannot be read.
    #[error("a STUN attribute has an invalid value")]
    InvalidValue,
    /// Integrity was asked for, and the message has none.
    #[error("STUN message is not signed")]
    Unsigned,
    /// The signature is not of this key, or the message was changed.
    #[error("STUN message is signed by another key, or was changed")]
    WrongIntegrity,
    /// The caller's fault: a message that we wanted to send is over a limit or holds a text that is too long.
    #[error("a STUN message of ours cannot be encoded: a text or the message is too long")]
    Unencodable,
}
