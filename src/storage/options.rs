//! Where and how a [`SqliteStore`](super::SqliteStore) keeps its data.

use std::path::PathBuf;

use super::engine::OutboxLimits;
use crate::clock::Clock;
use crate::limits::{OUTBOX_MAX_BYTES, OUTBOX_MAX_OPERATIONS};
use crate::store::Durability;

/// Options of a store.
#[derive(Clone)]
pub struct StorageOptions {
    /// `None`: in memory.
    pub(super) directory: Option<PathBuf>,
    pub(super) durability: Durability,
    pub(super) outbox: OutboxLimits,
    pub(super) inline: bool,
    pub(super) clock: Clock,
}

impl std::fmt::Debug for StorageOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StorageOptions")
            .field("directory", &self.directory)
            .field("durability", &self.durability)
            .field("outbox", &self.outbox)
            .field("inline", &self.inline)
            .finish_non_exhaustive()
    }
}

impl StorageOptions {
    /// Keeps everything in this directory, which is made when it is missing, for its owner alone. One store at a time.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: Some(directory.into()),
            durability: Durability::default(),
            outbox: OutboxLimits { operations: OUTBOX_MAX_OPERATIONS, bytes: OUTBOX_MAX_BYTES },
            inline: false,
            clock: Clock::system(),
        }
    }

    /// Keeps everything in memory until the store is dropped, inline. For simulations and tests.
    pub fn in_memory() -> Self {
        Self { directory: None, inline: true, ..Self::new(PathBuf::new()) }
    }

    /// What a returned write survives. Default: [`Durability::Power`]. [`Durability::Process`] is faster where commits are
    /// few at a time, and a power cut may then take back operations that peers have already seen: the node would use their
    /// sequence numbers again, which peers take for a fork.
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Most own operations that wait for a peer, and most bytes of these, per document. Default: 1,000,000 and 1 GiB.
    /// Too small: an editor that is offline for long cannot publish any more. Too large: the disk fills up instead.
    pub fn with_outbox_limits(mut self, operations: usize, bytes: u64) -> Self {
        self.outbox = OutboxLimits { operations, bytes };
        self
    }

    /// Does everything at the call, in the first poll of its future, without a thread. Default: off. For simulations, whose
    /// clock must not wait for a thread; elsewhere it blocks the runtime while the disk works. Acknowledgements are then
    /// written with the next commit, or when the store is closed. A store in memory is always inline.
    pub fn with_inline(mut self, inline: bool) -> Self {
        self.inline = inline || self.directory.is_none();
        self
    }

    /// The clock for the timestamps of operations, in µs since the Unix epoch. Default: the system's.
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }
}
