//! The first byte of every bidirectional stream: what the stream is, and how urgent.
//!
//! The lower four bits are the type, the upper four the priority class that the opener chose; the acceptor sends its half
//! with the same priority. Anything else is answered by resetting that one stream.

use quinn::VarInt;

use crate::transport::{CloseReason, Priority};

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamType {
    /// Handed to the application (type 0).
    Application(Priority),
    /// One request and its response (type 1).
    Request,
    /// The hello, first stream of a connection (type 2).
    Hello,
    /// Where both ends may be reached (type 3).
    Paths,
}

impl StreamType {
    /// The byte that opens such a stream.
    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::Application(Priority::Medium) => 0x00,
            Self::Application(Priority::Low) => 0x10,
            Self::Application(Priority::High) => 0x20,
            Self::Request => 0x01,
            Self::Hello => 0x02,
            Self::Paths => 0x03,
        }
    }

    /// What a stream is that starts with this byte.
    pub(super) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x00 => Some(Self::Application(Priority::Medium)),
            0x10 => Some(Self::Application(Priority::Low)),
            0x20 => Some(Self::Application(Priority::High)),
            0x01 => Some(Self::Request),
            0x02 => Some(Self::Hello),
            0x03 => Some(Self::Paths),
            _ => None,
        }
    }
}

/// quinn's number for a priority; streams of one number take turns.
pub(super) fn priority_number(priority: Priority) -> i32 {
    match priority {
        Priority::Low => -1,
        Priority::Medium => 0,
        Priority::High => 1,
    }
}

/// The number of a reason on the wire.
pub(super) fn code(reason: CloseReason) -> VarInt {
    VarInt::from_u32(reason as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_its_byte_and_every_other_byte_is_unknown() {
        let known = (0..=u8::MAX).filter_map(|byte| StreamType::from_byte(byte).map(|of| (byte, of.to_byte())));
        let known: Vec<_> = known.collect();
        assert_eq!(known.len(), 6);
        assert!(known.iter().all(|(byte, back)| byte == back));
    }
}
