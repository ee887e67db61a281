//! What the transport counts: for its own statistics and, by the `metrics` facade, for whoever listens.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count, shown in both places. The handle of the facade is made once.
#[derive(Debug)]
pub(super) struct Count {
    value: AtomicU64,
    metric: metrics::Counter,
}

impl Count {
    fn new(metric: metrics::Counter) -> Self {
        Self { value: AtomicU64::new(0), metric }
    }

    /// Counts one more.
    pub(super) fn add(&self) {
        self.value.fetch_add(1, Ordering::Relaxed);
        self.metric.increment(1);
    }

    /// The count so far.
    pub(super) fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// All counts of one transport.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) dialled: Count,
    pub(super) accepted: Count,
    pub(super) failed: Count,
    pub(super) refused: Count,
    pub(super) retried: Count,
    pub(super) early_hellos: Count,
    pub(super) early_rejected: Count,
    pub(super) protocol_errors: Count,
}

impl Counters {
    pub(super) fn new() -> Self {
        Self {
            dialled: Count::new(metrics::counter!("panda_quic_dialled_total")),
            accepted: Count::new(metrics::counter!("panda_quic_accepted_total")),
            failed: Count::new(metrics::counter!("panda_quic_dial_failures_total")),
            refused: Count::new(metrics::counter!("panda_quic_refused_total")),
            retried: Count::new(metrics::counter!("panda_quic_retries_total")),
            early_hellos: Count::new(metrics::counter!("panda_quic_early_hellos_total")),
            early_rejected: Count::new(metrics::counter!("panda_quic_early_rejected_total")),
            protocol_errors: Count::new(metrics::counter!("panda_quic_protocol_errors_total")),
        }
    }
}
