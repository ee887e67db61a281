//! A congestion controller that starts afresh when the connection moves to another path.
//!
//! quinn cannot see the move, since the peer's virtual address stays. What was learned on the old path would hold a faster
//! one back or flood a slower one, and what was lost with the old path says nothing about the new one.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Makes controllers that follow the count of one connection's moves.
#[derive(Debug)]
pub(super) struct PathEpoch {
    moves: Arc<AtomicU64>,
    cubic: Arc<CubicConfig>,
}

impl PathEpoch {
    /// For the one connection whose moves `moves` counts.
    pub(super) fn new(moves: Arc<AtomicU64>) -> Self {
        Self { moves, cubic: Arc::default() }
    }
}

impl ControllerFactory for PathEpoch {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let inner = self.cubic.clone().build(now, mtu);
        Box::new(OnPath { seen: self.moves.load(Ordering::Relaxed), since: None, mtu, inner, factory: self })
    }
}

struct OnPath {
    /// The count of moves when `inner` was made.
    seen: u64,
    /// When that was, but for the first path.
    since: Option<Instant>,
    mtu: u16,
    inner: Box<dyn Controller>,
    factory: Arc<PathEpoch>,
}

impl OnPath {
    fn follow(&mut self, now: Instant) {
        let moves = self.factory.moves.load(Ordering::Relaxed);
        if moves != self.seen {
            self.seen = moves;
            self.since = Some(now);
            self.inner = self.factory.cubic.clone().build(now, self.mtu);
        }
    }

    fn is_of_the_old_path(&self, sent: Instant) -> bool {
        self.since.is_some_and(|since| sent < since)
    }
}

impl Controller for OnPath {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.follow(now);
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.follow(now);
        if !self.is_of_the_old_path(sent) {
            self.inner.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_acked: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.follow(now);
        if !self.is_of_the_old_path(sent) {
            self.inner.on_congestion_event(now, sent, persistent, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.mtu = mtu;
        self.inner.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self {
            seen: self.seen,
            since: self.since,
            mtu: self.mtu,
            inner: self.inner.clone_box(),
            factory: self.factory.clone(),
        })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_move_the_window_is_the_first_one_and_losses_of_before_do_not_count() {
        let moves = Arc::new(AtomicU64::new(0));
        let start = Instant::now();
        let second = std::time::Duration::from_secs(1);
        let mut controller = Arc::new(PathEpoch::new(moves.clone())).build(start, 1200);
        controller.on_congestion_event(start + second, start + second, false, 1200);
        let reduced = controller.window();
        assert!(reduced < controller.initial_window());
        moves.fetch_add(1, Ordering::Relaxed);
        controller.on_sent(start + 2 * second, 1200, 2);
        assert_eq!(controller.window(), controller.initial_window());
        controller.on_congestion_event(start + 3 * second, start + second, false, 1200);
        assert_eq!(controller.window(), controller.initial_window());
        controller.on_congestion_event(start + 4 * second, start + 3 * second, false, 1200);
        assert!(controller.window() < controller.initial_window());
    }
}
