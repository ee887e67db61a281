//! One peer: its live connections and what its dead ones have carried.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;

use super::flush::FlushSet;
use crate::transport::PathReport;

/// Facts about one peer that is connected now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PeerStats {
    /// Its live connections: more than one only while a newer one takes over.
    pub connections: usize,
    /// Round-trip time of the newest.
    pub round_trip: Duration,
    /// Bytes sent to it since it has been connected without a break.
    pub sent_bytes: u64,
    /// Bytes received, likewise.
    pub received_bytes: u64,
}

/// A live connection, as the pool holds it.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) quinn: Connection,
    pub(super) flush: Arc<FlushSet>,
    /// Its paths, as the task that keeps them last saw them.
    pub(super) paths: Arc<Mutex<Vec<PathReport>>>,
}

/// The state of one peer. Counters of dead connections have atomics of their own, so that reading them blocks nobody.
#[derive(Debug, Default)]
pub(super) struct PeerState {
    /// Oldest first: the last is the current one.
    live: Mutex<Vec<Live>>,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl PeerState {
    /// A connection was made.
    pub(super) fn add(&self, live: Live) {
        self.live().push(live);
    }

    /// A connection is gone: keeps its counters. True when it was the last one.
    pub(super) fn retire(&self, stable_id: usize) -> bool {
        let mut live = self.live();
        if let Some(index) = live.iter().position(|live| live.quinn.stable_id() == stable_id) {
            let stats = live.remove(index).quinn.stats();
            self.sent_bytes.fetch_add(stats.udp_tx.bytes, Ordering::Relaxed);
            self.received_bytes.fetch_add(stats.udp_rx.bytes, Ordering::Relaxed);
        }
        live.is_empty()
    }

    /// All live connections, oldest first.
    pub(super) fn connections(&self) -> Vec<Live> {
        self.live().clone()
    }

    /// The paths of the newest connection.
    pub(super) fn paths(&self) -> Vec<PathReport> {
        let current = self.live().last().map(|live| live.paths.clone());
        current.map(|paths| paths.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }

    /// The counters of all connections, dead and alive.
    pub(super) fn stats(&self) -> PeerStats {
        let live = self.live();
        let mut stats = PeerStats {
            connections: live.len(),
            round_trip: live.last().map(|current| current.quinn.rtt()).unwrap_or_default(),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
        };
        for connection in live.iter() {
            let of_connection = connection.quinn.stats();
            stats.sent_bytes += of_connection.udp_tx.bytes;
            stats.received_bytes += of_connection.udp_rx.bytes;
        }
        stats
    }

    fn live(&self) -> MutexGuard<'_, Vec<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
