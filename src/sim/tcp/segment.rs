//! What two ends of a simulated TCP connection say to each other.

use std::time::Duration;

use bytes::Bytes;

/// Bytes of the stream in one segment, at most; fits every link that QUIC can use.
pub(super) const MAX_SEGMENT_BYTES: usize = 1_160;

/// What a TCP header has more than the UDP header that links do not count.
const HEADER_BYTES: usize = 12;

/// One segment. Both directions number their bytes from 0; the end of a direction counts as one byte.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Segment {
    pub(super) kind: Kind,
    /// The number of the first byte.
    pub(super) sequence: u64,
    /// The number of the byte that is expected next from the other side.
    pub(super) acknowledged: u64,
    /// Bytes from there that the sender of this segment has room for.
    pub(super) window: u64,
    /// When it was sent, and when what it answers was (RFC 7323).
    pub(super) sent: Duration,
    pub(super) echo: Option<Duration>,
    pub(super) payload: Bytes,
    /// Nothing comes after the payload.
    pub(super) finish: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first of a connection.
    Syn,
    /// The answer to it.
    SynAck,
    /// All others.
    Data,
    /// Asks whether the window is still closed.
    Probe,
    /// There is no such connection here.
    Reset,
}

impl Segment {
    pub(super) fn reset() -> Self {
        let (sequence, acknowledged, window, sent, echo) = (0, 0, 0, Duration::ZERO, None);
        Self { kind: Kind::Reset, sequence, acknowledged, window, sent, echo, payload: Bytes::new(), finish: false }
    }

    pub(in crate::sim) fn size(&self) -> usize {
        self.payload.len() + HEADER_BYTES
    }

    /// How many numbers it takes.
    pub(super) fn length(&self) -> u64 {
        self.payload.len() as u64 + u64::from(self.finish)
    }
}
