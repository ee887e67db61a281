//! One Node's door: all documents with the Node wait here before they connect.
//!
//! A Node takes one connection per session, so many documents would dial a Node that is away many times over. Here few dial
//! at once, and a failure holds all of them back, longer and longer.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::backoff::ReconnectionPolicy;
use crate::limits::BRIDGE_DIALS_PER_NODE;
use crate::watch;

/// When the Node may be dialled.
#[derive(Debug)]
pub(super) struct Gate {
    policy: ReconnectionPolicy,
    dials: Semaphore,
    state: Mutex<State>,
    /// Goes up when waiting should end.
    nudges: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    random: ChaCha8Rng,
    failures: u32,
    failed_at: Option<Instant>,
    /// `None`: given up until the next nudge.
    not_before: Option<Instant>,
}

impl Gate {
    pub(super) fn new(policy: ReconnectionPolicy, seed: u64) -> Self {
        let random = ChaCha8Rng::seed_from_u64(seed);
        let state = State { random, failures: 0, failed_at: None, not_before: Some(Instant::now()) };
        Self {
            policy,
            dials: Semaphore::new(BRIDGE_DIALS_PER_NODE),
            state: Mutex::new(state),
            nudges: watch::Sender::new(0),
        }
    }

    /// Waits until the Node may be dialled; the dial is under way while the permit is held.
    pub(super) async fn admit(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        let permit = self.dials.acquire().await.ok()?;
        loop {
            let mut nudged = self.nudges.subscribe();
            let not_before = self.state().not_before;
            match not_before {
                Some(at) if at <= Instant::now() => return Some(permit),
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        _ = nudged.changed() => {}
                    }
                }
                None => _ = nudged.changed().await,
            }
        }
    }

    /// A dial that began then failed. Dials that began before the last failure add nothing to it.
    pub(super) fn on_failed(&self, began: Instant) {
        let mut state = self.state();
        let now = Instant::now();
        if state.failed_at.is_some_and(|at| began < at) {
            return;
        }
        state.failures = state.failures.saturating_add(1);
        state.failed_at = Some(now);
        let random = state.random.random();
        state.not_before = self.policy.delay_after(state.failures, random).map(|wait| now + wait);
    }

    /// The Node answered.
    pub(super) fn on_connected(&self) {
        let mut state = self.state();
        state.failures = 0;
        state.not_before = Some(Instant::now());
    }

    /// Waits after `failures` sessions in a row failed, until it is time to try again or somebody nudges.
    pub(super) async fn pause(&self, failures: u32) {
        let mut nudged = self.nudges.subscribe();
        let random = self.state().random.random();
        match self.policy.delay_after(failures, random) {
            Some(wait) => self.wait(wait).await,
            None => _ = nudged.changed().await,
        }
    }

    /// Waits that long, or until somebody nudges.
    pub(super) async fn wait(&self, wait: Duration) {
        let mut nudged = self.nudges.subscribe();
        // Late is what was asked for.
        let _ = tokio::time::timeout(wait, nudged.changed()).await;
    }

    /// The network changed: whoever waits tries at once.
    pub(super) fn nudge(&self) {
        self.on_connected();
        self.nudges.send_modify(|nudges| *nudges += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate::new(ReconnectionPolicy::new().with_jitter(0.0), 7)
    }

    async fn waited(gate: &Gate) -> u128 {
        let began = Instant::now();
        drop(gate.admit().await.unwrap());
        began.elapsed().as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_is_away_is_dialled_later_and_later_however_many_documents_want_it() {
        let gate = gate();
        assert_eq!(waited(&gate).await, 0);
        for expected in [500, 1000, 2000] {
            tokio::time::advance(Duration::from_millis(1)).await;
            // A whole flock of dials that began together fails together: one failure.
            let began = Instant::now();
            tokio::time::advance(Duration::from_millis(1)).await;
            (0..BRIDGE_DIALS_PER_NODE).for_each(|_| gate.on_failed(began));
            assert_eq!(waited(&gate).await, expected);
        }
        gate.on_connected();
        assert_eq!(waited(&gate).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_nudge_ends_all_waiting() {
        let gate = Gate::new(ReconnectionPolicy::new().with_max_attempts(1), 7);
        gate.on_failed(Instant::now());
        let ((), ()) = tokio::join!(
            async {
                drop(gate.admit().await.unwrap());
                assert!(gate.admit().await.is_some());
            },
            async {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                gate.nudge();
            }
        );
        let began = Instant::now();
        tokio::join!(gate.pause(5), async { gate.nudge() });
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
