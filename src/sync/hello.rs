//! The hello: which versions of the protocol a peer understands. It rides in the first packets, before any stream.

use bytes::Bytes;
use minicbor::{Decoder, Encoder};

use crate::cbor::CborError;

/// The protocol version that this node speaks, and the oldest it still understands.
pub const PROTOCOL_VERSIONS: Hello = Hello { newest: 1, oldest: 1 };

/// What peers say to each other before anything else: which protocol versions they understand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// The newest version.
    pub newest: u16,
    /// The oldest version.
    pub oldest: u16,
}

impl Hello {
    /// The hello as bytes: the CBOR array `[newest, oldest]`.
    pub fn encode(&self) -> Bytes {
        let mut encoder = Encoder::new(Vec::new());
        // Writing to a Vec cannot fail.
        let _ = encoder.array(2).and_then(|e| e.u16(self.newest)).and_then(|e| e.u16(self.oldest));
        encoder.into_writer().into()
    }

    /// Reads a hello. A newer version may say more: what follows the two numbers is not for us.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn decode(hello: &[u8]) -> Result<Self, CborError> {
        let mut decoder = Decoder::new(hello);
        decoder.array()?;
        Ok(Self { newest: decoder.u16()?, oldest: decoder.u16()? })
    }

    /// The newest version that both understand.
    pub fn common(&self, other: &Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest && newest >= other.oldest).then_some(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_versions_meet_at_the_newest_that_both_understand() {
        let hello = |newest, oldest| Hello { newest, oldest };
        assert_eq!(hello(1, 1).common(&hello(3, 1)), Some(1));
        assert_eq!(hello(4, 2).common(&hello(3, 1)), Some(3));
        assert_eq!(hello(1, 1).common(&hello(3, 2)), None);
        assert_eq!(Hello::decode(&hello(700, 2).encode()), Ok(hello(700, 2)));
        assert!(Hello::decode(b"").is_err());
    }
}
