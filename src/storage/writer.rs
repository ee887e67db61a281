//! The writer: one thread that owns the [`Engine`] and gathers what waits into one transaction.
//!
//! Callers wait for their turn, in the order in which they were first polled, for room in the queue, which is bounded in
//! commands and in bytes, and then for their answer. A call that is
//! dropped before the thread takes it up did not happen; one that is dropped later happens as a whole.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::engine::{Engine, Job, job};
use super::errors::Outcome;
use crate::limits::{STORE_ACKNOWLEDGED_DELAY, STORE_BATCH, STORE_BATCH_BYTES, STORE_QUEUE, STORE_QUEUE_BYTES};
use crate::store::StoreError;

/// Room in the queue is counted in pieces of this many bytes, so that one count bounds commands and bytes.
const PIECE_BYTES: usize = STORE_QUEUE_BYTES / QUEUE_PIECES;
/// Pieces in the queue.
const QUEUE_PIECES: usize = STORE_QUEUE * COMMAND_PIECES;
/// Pieces that the smallest command takes.
const COMMAND_PIECES: usize = 16;

/// Who waits for the end of the thread.
type Closer = oneshot::Sender<Result<(), StoreError>>;

/// What the thread is told.
enum Message {
    /// Do this, which takes this room in the queue.
    Run(Box<dyn Job>, OwnedSemaphorePermit),
    /// Do what came before, finish and end.
    Close(Closer),
}

/// Handle on the writer thread.
pub(super) struct Writer {
    sender: SyncSender<Message>,
    turn: tokio::sync::Mutex<()>,
    room: Arc<Semaphore>,
    closing: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(engine: Engine) -> Result<Self, StoreError> {
        // One more than there is room for: the message that closes never waits.
        let (sender, receiver) = sync_channel(STORE_QUEUE + 1);
        let thread = std::thread::Builder::new()
            .name("panda-store".into())
            .spawn(move || run(engine, &receiver))
            .map_err(|error| StoreError::Io(format!("cannot start the writer thread: {error}")))?;
        Ok(Self {
            sender,
            turn: tokio::sync::Mutex::new(()),
            room: Arc::new(Semaphore::new(QUEUE_PIECES)),
            closing: AtomicBool::new(false),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Has the thread do something that carries `bytes` of operations, and waits until it is committed.
    pub(super) async fn call<T, F>(&self, bytes: usize, call: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Engine) -> Outcome<T> + Send + 'static,
    {
        let pieces = bytes.div_ceil(PIECE_BYTES).clamp(COMMAND_PIECES, QUEUE_PIECES);
        let submit = async {
            // Turns are given in the order of first polls; room alone would not do, whoever got it may be overtaken.
            let _turn = self.turn.lock().await;
            // Fits: there are fewer pieces than u32::MAX.
            let room = Arc::clone(&self.room).acquire_many_owned(pieces as u32).await;
            let room = room.map_err(|_| StoreError::Closed)?;
            let (job, answer) = job(call);
            self.sender.try_send(Message::Run(job, room)).map_err(|_| StoreError::Closed)?;
            Ok::<_, StoreError>(answer)
        };
        // A task whose budget is used up would not get its turn at the first poll.
        let answer = tokio::task::unconstrained(submit).await?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Waits for what is queued, finishes and ends the thread.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        let finished = self.begin_close().ok_or(StoreError::Closed)?;
        let result = finished.await.map_err(|_| StoreError::Closed)?;
        self.join();
        result
    }

    /// Ends the thread and blocks until it has: what is queued and still waited for is done, the rest is left out.
    pub(super) fn close_now(&self) {
        self.begin_close();
        self.join();
    }

    /// Tells the thread to end, once.
    fn begin_close(&self) -> Option<oneshot::Receiver<Result<(), StoreError>>> {
        if self.closing.swap(true, Ordering::Relaxed) {
            return None;
        }
        self.room.close();
        let (reply, finished) = oneshot::channel();
        self.sender.try_send(Message::Close(reply)).ok()?;
        Some(finished)
    }

    /// Waits for the end of the thread, which gives the database and its lock back.
    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // An observer may hold the last handle on the store: then this is the thread itself, which ends after the commit.
        let other = thread.filter(|thread| thread.thread().id() != std::thread::current().id());
        if other.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the writer thread panicked");
        }
    }
}

impl Drop for Writer {
    /// Waits for the transaction under way. Nobody waits for what is queued after it any more, so it is left out.
    fn drop(&mut self) {
        self.close_now();
    }
}

fn run(mut engine: Engine, receiver: &Receiver<Message>) {
    let mut acknowledged_since = None;
    loop {
        let first = match next(receiver, acknowledged_since) {
            Ok(message) => Some(message),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let (jobs, closing) = gather(first, receiver);
        if !jobs.is_empty() {
            engine.run(jobs);
        }
        if let Some(reply) = closing {
            let finished = engine.finish();
            drop(engine);
            // Whoever closed may have gone.
            let _ = reply.send(finished);
            return;
        }
        acknowledged_since = engine.has_acknowledged().then(|| acknowledged_since.unwrap_or_else(Instant::now));
        if acknowledged_since.is_some_and(|since| since.elapsed() >= STORE_ACKNOWLEDGED_DELAY) {
            if let Err(error) = engine.write_acknowledged() {
                tracing::warn!(%error, "acknowledgements cannot be written; trying again");
            }
            acknowledged_since = None;
        }
    }
}

/// The next message; when acknowledgements wait to be written, not later than they may.
fn next(receiver: &Receiver<Message>, acknowledged_since: Option<Instant>) -> Result<Message, RecvTimeoutError> {
    match acknowledged_since {
        None => receiver.recv().map_err(|_| RecvTimeoutError::Disconnected),
        Some(since) => receiver.recv_timeout(STORE_ACKNOWLEDGED_DELAY.saturating_sub(since.elapsed())),
    }
}

/// Takes what else waits, up to the size of a batch.
fn gather(first: Option<Message>, receiver: &Receiver<Message>) -> (Vec<Box<dyn Job>>, Option<Closer>) {
    let mut jobs = Vec::new();
    let mut pieces = 0;
    let mut message = first;
    loop {
        match message {
            Some(Message::Run(job, room)) if !job.is_cancelled() => {
                pieces += room.num_permits();
                jobs.push(job);
            }
            Some(Message::Run(..)) => {}
            Some(Message::Close(reply)) => return (jobs, Some(reply)),
            None => return (jobs, None),
        }
        if jobs.len() >= STORE_BATCH || pieces >= STORE_BATCH_BYTES / PIECE_BYTES {
            return (jobs, None);
        }
        message = receiver.try_recv().ok();
    }
}
