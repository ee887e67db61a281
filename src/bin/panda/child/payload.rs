//! What an operation of a demo or bench node carries: who made it, its number, when, and an edit or nothing.

use bytes::Bytes;

/// Bytes before the content.
pub const HEADER_BYTES: usize = 14;

/// What follows the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Filling.
    Nothing = 0,
    /// An update of the text.
    Update = 1,
}

/// One operation, decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Payload<'a> {
    /// Who made it.
    pub agent: u8,
    /// Its number among the agent's, from 0, without gaps.
    pub number: u32,
    /// When it was published, µs since the epoch.
    pub sent_us: u64,
    /// What follows.
    pub content: Content,
    /// The update, or filling.
    pub bytes: &'a [u8],
}

impl<'a> Payload<'a> {
    /// Encodes an operation.
    pub fn encode(&self) -> Bytes {
        let mut encoded = Vec::with_capacity(HEADER_BYTES + self.bytes.len());
        encoded.extend_from_slice(&[self.content as u8, self.agent]);
        encoded.extend_from_slice(&self.number.to_le_bytes());
        encoded.extend_from_slice(&self.sent_us.to_le_bytes());
        encoded.extend_from_slice(self.bytes);
        encoded.into()
    }

    /// Decodes an operation; `None` when it is none of ours.
    pub fn decode(encoded: &'a [u8]) -> Option<Self> {
        let (&[content, agent], rest) = encoded.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (sent_us, bytes) = rest.split_first_chunk()?;
        let content = match content {
            0 => Content::Nothing,
            1 => Content::Update,
            _ => return None,
        };
        Some(Self { agent, number: u32::from_le_bytes(*number), sent_us: u64::from_le_bytes(*sent_us), content, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_survives_its_encoding() {
        let payload = Payload { agent: 2, number: 77, sent_us: 1 << 50, content: Content::Update, bytes: b"edit" };
        let encoded = payload.encode();
        assert_eq!(encoded.len(), HEADER_BYTES + 4);
        assert_eq!(Payload::decode(&encoded), Some(payload));
        assert_eq!(Payload::decode(&encoded[..HEADER_BYTES - 1]), None);
    }
}
