//! The receiving half of a connection: puts segments in order and says how much more fits.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::segment::Segment;

/// Bytes that wait for the reader. Full: the sender waits.
pub(super) const WINDOW_BYTES: u64 = 256 * 1024;

/// A window that opens by less is not worth a segment.
const WINDOW_STEP_BYTES: u64 = WINDOW_BYTES / 4;

#[derive(Debug, Default)]
pub(super) struct Receiving {
    /// The number of the next byte that is missing.
    pub(super) expected: u64,
    /// What the reader has not taken yet.
    unread: VecDeque<u8>,
    /// What came before its turn, by its first number; within the window.
    ahead: BTreeMap<u64, (Bytes, bool)>,
    /// The other side has said everything.
    pub(super) finished: bool,
    /// The first number that the sender was told it may not use.
    announced: u64,
}

impl Receiving {
    /// Takes what a segment brings; true if there is something new to read.
    pub(super) fn take(&mut self, segment: &Segment) -> bool {
        let end = segment.sequence + segment.length();
        if end <= self.expected || end > self.expected + self.window() + 1 {
            return false;
        }
        self.ahead.insert(segment.sequence, (segment.payload.clone(), segment.finish));
        let before = self.expected;
        while let Some(entry) = self.ahead.first_entry().filter(|entry| *entry.key() <= self.expected) {
            let (first, (payload, finish)) = entry.remove_entry();
            let skip = usize::try_from(self.expected - first).unwrap_or(usize::MAX);
            let new = payload.get(skip..).unwrap_or_default();
            self.unread.extend(new);
            self.expected += new.len() as u64;
            if finish && !self.finished && self.expected == first + payload.len() as u64 {
                self.finished = true;
                self.expected += 1;
            }
        }
        self.expected > before
    }

    /// Moves bytes to the reader; 0 when there are none.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> usize {
        let count = self.unread.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(self.unread.drain(..count)) {
            *to = from;
        }
        count
    }

    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    fn window(&self) -> u64 {
        WINDOW_BYTES.saturating_sub(self.unread.len() as u64)
    }

    /// The window, for a segment that goes out now.
    pub(super) fn announce(&mut self) -> u64 {
        self.announced = self.expected + self.window();
        self.window()
    }

    /// Whether the window opened so much that the sender should hear of it.
    pub(super) fn has_news(&self) -> bool {
        (self.expected + self.window()).saturating_sub(self.announced) >= WINDOW_STEP_BYTES
    }
}
