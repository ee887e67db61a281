//! The sending half of a connection: what is unacknowledged, what may go out, and what goes out again.
//!
//! Slow start and halving at a loss, as in RFC 5681. Three repeated acknowledgements bring one segment back; when that was
//! not the only one missing, or at a timeout, everything from there on goes out again.

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
    /// The number after the last byte that ever went out.
    highest: u64,
    finish: bool,
    finish_acknowledged: bool,
    /// The first number that the receiver has no room for.
    edge: u64,
    congestion: u64,
    threshold: u64,
    duplicates: u32,
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
    pub(super) is_repeated: bool,
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
            highest: 0,
            finish: false,
            finish_acknowledged: false,
            edge: 0,
            congestion: INITIAL_CONGESTION_WINDOW,
            threshold: u64::MAX,
            duplicates: 0,
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
        self.duplicates = 0;
        match &mut self.recovery {
            Some(recovery) if acknowledged < recovery.until => {
                if !std::mem::replace(&mut recovery.went_back, true) {
                    self.next = self.first;
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
        self.next = self.first;
        self.duplicates = 0;
        self.recovery = None;
        self.resend = false;
    }

    /// What may go out now.
    pub(super) fn poll_chunk(&mut self) -> Option<Chunk> {
        if std::mem::take(&mut self.resend) && self.is_outstanding() {
            return Some(self.chunk(self.first, self.next));
        }
        let limit = self.end().min(self.edge).min(self.first + self.congestion);
        // The end needs no room.
        let end_alone = self.finish && self.next == self.first + self.bytes.len() as u64;
        if self.next >= limit && !(end_alone && self.next < self.end()) {
            return None;
        }
        let chunk = self.chunk(self.next, limit);
        self.next = chunk.end();
        self.highest = self.highest.max(self.next);
        Some(chunk)
    }

    fn on_duplicate(&mut self) {
        self.duplicates += 1;
        if self.duplicates == DUPLICATES_OF_A_LOSS && self.recovery.is_none() {
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
        let (finish, is_repeated) = (self.finish && end == self.bytes.len(), sequence < self.highest);
        Chunk { sequence, payload, finish, is_repeated }
    }

    fn end(&self) -> u64 {
        self.first + self.bytes.len() as u64 + u64::from(self.finish && !self.finish_acknowledged)
    }
}
