//! Which finished streams the peer has not acknowledged yet, so that a shutdown can wait for them.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Finished streams after which the acknowledged ones are sorted out for the first time.
const FIRST_SWEEP: usize = 64;

type Acknowledged = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The finished streams of one connection. Bounded by the streams that may be open: an acknowledged one is sorted out.
#[derive(Default)]
pub(super) struct FlushSet(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    streams: VecDeque<Acknowledged>,
    sweep_at: usize,
}

impl std::fmt::Debug for FlushSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FlushSet({})", self.waiting().streams.len())
    }
}

impl FlushSet {
    /// Remembers a stream that was just finished.
    pub(super) fn add(&self, stream: &quinn::SendStream) {
        let stopped = stream.stopped();
        let acknowledged = Box::pin(async move {
            // Acknowledged, stopped by the peer or lost with the connection: nothing is left to wait for.
            let _ = stopped.await;
        });
        let mut waiting = self.waiting();
        waiting.streams.push_back(acknowledged);
        if waiting.streams.len() >= waiting.sweep_at.max(FIRST_SWEEP) {
            let mut context = Context::from_waker(Waker::noop());
            waiting.streams.retain_mut(|stream| stream.as_mut().poll(&mut context) == Poll::Pending);
            waiting.sweep_at = 2 * waiting.streams.len();
        }
    }

    /// Resolves when the peer has acknowledged all streams that were finished before.
    pub(super) async fn flushed(&self) {
        loop {
            let Some(stream) = self.waiting().streams.pop_front() else { return };
            stream.await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
