//! What every session and link of the node needs: who we are, the clock, the processor for signatures, the counters.

use bytes::Bytes;
use metrics::{Counter, counter};
use tokio::sync::mpsc;

use crate::address::PeerAddress;
use crate::clock::Clock;
use crate::error::OperationError;
use crate::identity::Identity;
use crate::ids::{DocumentId, LogId};
use crate::operation::Operation;

/// Batches up to this size are verified where they arrive: handing them over would take longer.
const VERIFY_HERE: usize = 8;
/// Threads that verify one batch.
const VERIFY_THREADS: usize = 4;

/// A peer that shares a document, and where it can be reached.
pub type Learned = (DocumentId, PeerAddress);

/// Shared by all sessions and links.
#[derive(Debug)]
pub(super) struct Context {
    pub identity: Identity,
    pub clock: Clock,
    /// Verify on the task itself: for simulation, where other threads would upset the order of events.
    pub inline: bool,
    /// Addresses of peers that share a document, for whoever makes connections. Full: left out, they come again.
    pub learned: mpsc::Sender<Learned>,
    pub metrics: Metrics,
}

/// Counters, made once.
pub(super) struct Metrics {
    pub sent: Counter,
    pub received: Counter,
    pub duplicates: Counter,
    pub refused: Counter,
    pub protocol_errors: Counter,
    pub presence_dropped: Counter,
}

impl Metrics {
    pub fn new() -> Self {
        Self {
            sent: counter!("panda_operations_sent_total"),
            received: counter!("panda_operations_received_total"),
            duplicates: counter!("panda_operations_duplicate_total"),
            refused: counter!("panda_operations_refused_total"),
            protocol_errors: counter!("panda_protocol_errors_total"),
            presence_dropped: counter!("panda_presence_dropped_total"),
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

/// An operation as it came, and the message that it came in.
#[derive(Debug, Clone)]
pub(super) struct Received {
    pub message_id: u64,
    pub header: Bytes,
    pub body: Bytes,
}

/// An operation that was verified, or what is wrong with it.
pub(super) type Verified = (Received, Result<Operation, OperationError>);

impl Context {
    /// Decodes and verifies a batch, on several threads when that pays. Keeps the order.
    pub async fn verify(&self, log: LogId, batch: Vec<Received>) -> Vec<Verified> {
        if self.inline || batch.len() <= VERIFY_HERE {
            return verify_all(log, batch);
        }
        let share = batch.len().div_ceil(VERIFY_THREADS).max(VERIFY_HERE);
        let shares: Vec<_> = batch
            .chunks(share)
            .map(|share| share.to_vec())
            .map(|share| tokio::task::spawn_blocking(move || verify_all(log, share)))
            .collect();
        let mut verified = Vec::with_capacity(batch.len());
        for (index, task) in shares.into_iter().enumerate() {
            match task.await {
                Ok(share) => verified.extend(share),
                // The runtime is shutting down: verify the share here, nothing is skipped.
                Err(_) => verified.extend(verify_all(log, batch.chunks(share).nth(index).unwrap_or_default().to_vec())),
            }
        }
        verified
    }
}

fn verify_all(log: LogId, batch: Vec<Received>) -> Vec<Verified> {
    batch
        .into_iter()
        .map(|received| {
            let operation = Operation::decode(log, received.header.clone(), received.body.clone());
            (received, operation)
        })
        .collect()
}
