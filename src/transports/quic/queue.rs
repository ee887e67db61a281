//! A bounded queue that any number of tasks may wait on, without a lock across an await.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// First in, first out. Full is an answer to the producer, never a wait and never a silent drop.
#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Notify,
    limit: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    /// A queue of at most `limit` items.
    pub(super) fn new(limit: usize) -> Self {
        let state = Mutex::new(State { items: VecDeque::new(), closed: false });
        Self { state, changed: Notify::new(), limit }
    }

    /// Adds an item, or gives it back when the queue is full or closed.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        let mut state = self.state();
        if state.closed || state.items.len() >= self.limit {
            return Err(item);
        }
        state.items.push_back(item);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// The next item; `None` once the queue is closed and empty. Cancel-safe.
    pub(super) async fn pop(&self) -> Option<T> {
        loop {
            {
                let mut state = self.state();
                let item = state.items.pop_front();
                // One permit may stand for several items: whoever takes one wakes the next for the rest.
                if state.closed || !state.items.is_empty() {
                    self.changed.notify_one();
                }
                if item.is_some() || state.closed {
                    return item;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Takes no more items; what is queued can still be taken.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Takes no more items and drops the queued ones.
    pub(super) fn clear(&self) {
        let items = {
            let mut state = self.state();
            state.closed = true;
            std::mem::take(&mut state.items)
        };
        self.changed.notify_one();
        drop(items);
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_full_queue_gives_the_item_back() {
        let queue = Queue::new(2);
        assert_eq!((queue.push(1), queue.push(2), queue.push(3)), (Ok(()), Ok(()), Err(3)));
        assert_eq!(queue.pop().await, Some(1));
    }

    #[tokio::test]
    async fn every_waiting_task_gets_its_item_and_all_learn_of_the_end() {
        let queue = Arc::new(Queue::new(100));
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let queue = queue.clone();
                tokio::spawn(async move { queue.pop().await })
            })
            .collect();
        for item in 0..5 {
            assert_eq!(queue.push(item), Ok(()));
        }
        queue.close();
        let mut taken = Vec::new();
        for task in waiting {
            taken.extend(task.await.unwrap());
        }
        taken.sort_unstable();
        assert_eq!(taken, [0, 1, 2, 3, 4]);
    }
}
