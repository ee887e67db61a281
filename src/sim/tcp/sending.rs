//! The sending half of a connection: what is unacknowledged, what may go out, and what goes out again.
//!
//! Slow start and halving at a loss, as in RFC 5681. Three repeated acknowledgements bring one segment back, or fewer when
//! fewer can come (RFC 5827; systems get there by RFC 8985). When that was not the only one missing, or at a timeout,
//! everything from there on goes out again. Before the first timeout the last segment is sent once more, so that the
//! other end shows what it lacks: the tail loss probe of RFC 8985.

use std::collections::VecDeque;

use bytes::Bytes;

use super::receiving::WINDOW_BYTES;
use super::segment::MAX_SEGMENT_BYTES;

const SEGMENT: u64 = MAX_SEGMENT_BYTES as u64;

/// RFC 6928: ten segments before the first acknowledgement.
const INITIAL_CONGESTION_WINDOW: u64 = 10 * SEGMENT;

/// RFC 5681, section 3.2.
const DUPLICATES_OF_A_LOSS: u32 = 3;

#[derive(Debug)]
pub(super) struct Sending {
    /// From the first unacknowledged byte on.
    bytes: VecDeque<u8>,
    /// The number of the first unacknowledged byte.
    first: u64,
    /// The number of the next byte to go out.
    next: u64,
    finish: bool,
    finish_acknowledged: bool,
    /// The first number that the receiver has no room for.
    edge: u64,
    congestion: u64,
    threshold: u64,
    duplicates: u32,
    /// Where the segments end that are on their way.
    ends: VecDeque<u64>,
    /// A probe of the tail goes out next; was sent since the last news.
    probe: bool,
    probed: bool,
    /// A loss is being repaired.
    recovery: Option<Recovery>,
    resend: bool,
}

#[derive(Debug)]
struct Recovery {
    /// Until this number is acknowledged.
    until: u64,
    /// More than one segment was lost, and all were sent again.
    went_back: bool,
}

/// What to put into a segment.
pub(super) struct Chunk {
    pub(super) sequence: u64,
    pub(super) payload: Bytes,
    pub(super) finish: bool,
}

impl Chunk {
    /// The number after its last.
    pub(super) fn end(&self) -> u64 {
        self.sequence + self.payload.len() as u64 + u64::from(self.finish)
    }
}

impl Sending {
    pub(super) fn new() -> Self {
        Self {
            bytes: VecDeque::new(),
            first: 0,
            next: 0,
            finish: false,
            finish_acknowledged: false,
            edge: 0,
            congestion: INITIAL_CONGESTION_WINDOW,
            threshold: u64::MAX,
            duplicates: 0,
            ends: VecDeque::new(),
            probe: false,
            probed: false,
            recovery: None,
            resend: false,
        }
    }

    /// Takes what there is room for.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.room());
        self.bytes.extend(&bytes[..count]);
        count
    }

    pub(super) fn room(&self) -> usize {
        (WINDOW_BYTES as usize).saturating_sub(self.bytes.len())
    }

    pub(super) fn finish(&mut self) {
        self.finish = true;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finish
    }

    /// Everything arrived, the end included.
    pub(super) fn is_finish_acknowledged(&self) -> bool {
        self.finish_acknowledged
    }

    /// Something is on its way.
    pub(super) fn is_outstanding(&self) -> bool {
        self.first < self.next
    }

    /// How many segments are on their way.
    pub(super) fn outstanding(&self) -> usize {
        self.ends.len()
    }

    /// Whether a probe of the tail may still come before the next timeout.
    pub(super) fn may_probe(&self) -> bool {
        self.is_outstanding() && !self.probed && self.recovery.is_none()
    }

    /// The last segment goes out once more.
    pub(super) fn probe_tail(&mut self) {
        (self.probe, self.probed) = (true, true);
    }

    /// Something waits, for an acknowledgement or for room.
    pub(super) fn is_busy(&self) -> bool {
        self.first < self.end()
    }

    /// An acknowledgement; true if it is of something new.
    pub(super) fn on_acknowledged(&mut self, acknowledged: u64, window: u64, is_bare: bool) -> bool {
        if acknowledged > self.end() {
            return false;
        }
        self.edge = self.edge.max(acknowledged + window);
        if acknowledged <= self.first {
            if acknowledged == self.first && is_bare && self.is_outstanding() {
                self.on_duplicate();
            }
            return false;
        }
        let count = acknowledged - self.first;
        let of_bytes = count.min(self.bytes.len() as u64);
        self.bytes.drain(..of_bytes as usize);
        self.finish_acknowledged |= count > of_bytes;
        self.first = acknowledged;
        self.next = self.next.max(acknowledged);
        self.ends.retain(|end| *end > acknowledged);
        (self.duplicates, self.probed) = (0, false);
        match &mut self.recovery {
            Some(recovery) if acknowledged < recovery.until => {
                if !std::mem::replace(&mut recovery.went_back, true) {
                    self.go_back();
                }
            }
            _ => {
                self.recovery = None;
                let growth =
                    if self.congestion < self.threshold { count } else { (SEGMENT * count / self.congestion).max(1) };
                self.congestion = (self.congestion + growth).min(WINDOW_BYTES);
            }
        }
        true
    }

    /// Nothing was acknowledged for too long: starts again from the first unacknowledged byte.
    pub(super) fn on_timeout(&mut self) {
        self.threshold = ((self.next - self.first) / 2).max(2 * SEGMENT);
        self.congestion = 2 * SEGMENT;
        self.go_back();
        (self.duplicates, self.probed) = (0, true);
        self.recovery = None;
        self.resend = false;
    }

    /// What may go out now.
    pub(super) fn poll_chunk(&mut self) -> Option<Chunk> {
        if std::mem::take(&mut self.resend) && self.is_outstanding() {
            return Some(self.chunk(self.first, self.next));
        }
        if std::mem::take(&mut self.probe) && self.is_outstanding() {
            let before = self.ends.iter().rev().nth(1).copied().unwrap_or(self.first);
            return Some(self.chunk(before.max(self.first), self.next));
        }
        let limit = self.end().min(self.edge).min(self.first + self.congestion);
        // The end needs no room.
        let end_alone = self.finish && self.next == self.first + self.bytes.len() as u64;
        if self.next >= limit && !(end_alone && self.next < self.end()) {
            return None;
        }
        let chunk = self.chunk(self.next, limit);
        self.next = chunk.end();
        self.ends.push_back(self.next);
        Some(chunk)
    }

    /// Everything unacknowledged goes out again.
    fn go_back(&mut self) {
        self.next = self.first;
        self.ends.clear();
        self.probe = false;
    }

    fn on_duplicate(&mut self) {
        self.duplicates += 1;
        let others = u32::try_from(self.ends.len().saturating_sub(1)).unwrap_or(u32::MAX);
        if self.duplicates >= others.clamp(1, DUPLICATES_OF_A_LOSS) && self.recovery.is_none() {
            self.threshold = ((self.next - self.first) / 2).max(2 * SEGMENT);
            self.congestion = self.threshold;
            self.recovery = Some(Recovery { until: self.next, went_back: false });
            self.resend = true;
        }
    }

    fn chunk(&self, sequence: u64, limit: u64) -> Chunk {
        let start = (sequence - self.first) as usize;
        let most = limit.saturating_sub(sequence).min(SEGMENT) as usize;
        let end = (start + most).min(self.bytes.len()).max(start);
        let payload = self.bytes.range(start..end).copied().collect();
        let finish = self.finish && end == self.bytes.len();
        Chunk { sequence, payload, finish }
    }

    fn end(&self) -> u64 {
        self.first + self.bytes.len() as u64 + u64::from(self.finish && !self.finish_acknowledged)
    }
}
