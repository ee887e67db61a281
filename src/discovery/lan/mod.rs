//! Finding peers in the local network, with no address in the ticket and no server.
//!
//! A node posts a [`notice`] on the [`LanBoard`] of its network: who holds the key of one of its open documents learns its
//! signed record from it, others learn that some node is there. [`Announcer`] decides when, [`Watcher`] what becomes of the
//! notices of others, and [`run`] is the driver of both. A notice is a hint: it leads to addresses, the key in the signed
//! record decides who is dialled, and TLS proves who answers.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};

use rand_chacha::ChaCha20Rng;
use tokio::time::{Instant, sleep_until};

mod announcer;
pub mod notice;
mod watcher;

pub use announcer::{Announcer, GAP, ROTATION, TURN};
pub use watcher::{LanCounters, Watcher};

use super::{Finds, NodeView};
use crate::clock::Clock;
use crate::ids::{DocumentId, PeerId};
use crate::net::LanBoard;
use crate::store::DocumentRecord;

/// What a finder counted so far. Clones are handles.
#[derive(Debug, Clone, Default)]
pub struct LanStats(Arc<Mutex<LanCounters>>);

impl LanStats {
    /// The counters now.
    pub fn counters(&self) -> LanCounters {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, counters: LanCounters) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

/// Announces the node and looks for its peers until one of `view`, `finds` and `board` is gone.
pub async fn run(
    node: PeerId,
    view: Arc<dyn NodeView>,
    mut board: Box<dyn LanBoard>,
    finds: Finds,
    stats: LanStats,
    clock: Clock,
    mut random: ChaCha20Rng,
) {
    let Some(mut changes) = view.changes() else { return };
    let (mut announcer, mut watcher) = (Announcer::new(), Watcher::new(node, Instant::now()));
    let (mut documents, mut seen, mut warned) = (Vec::new(), 0, false);
    changes.mark_changed();
    loop {
        let timeout = [announcer.poll_timeout(), watcher.poll_timeout()].into_iter().flatten().min();
        tokio::select! {
            biased;
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let count = *changes.borrow_and_update();
                if count > std::mem::replace(&mut seen, count) + 1 {
                    // Several changes: a document may have been closed and opened again, and its peers be forgotten.
                    watcher.on_documents(Vec::new());
                }
                documents = view.documents();
                announcer.on_change(&ids(&documents), Instant::now());
                watcher.on_documents(documents.clone());
            }
            () = async { sleep_until(timeout.unwrap_or_else(Instant::now)).await }, if timeout.is_some() => {}
            heard = poll_fn(|context| board.poll_heard(context)) => match heard {
                Some(heard) => watcher.on_heard(&heard),
                None => return,
            },
        }
        if let Some(turn) = announcer.on_timeout(Instant::now()) {
            let Some(address) = view.address() else { return };
            let turn: Vec<_> = documents.iter().filter(|record| turn.contains(&record.document)).cloned().collect();
            let sealed =
                address.ok().filter(|_| !turn.is_empty()).and_then(|own| notice::seal(&own, &turn, &mut random));
            tracing::debug!(documents = turn.len(), announced = sealed.is_some(), "local network");
            board.post(sealed);
        }
        while let Some(found) = watcher.poll_found(Instant::now(), clock.now_us()) {
            tracing::debug!(peer = %found.peer.peer_id().short(), "found in the local network");
            if !finds.report(found).await {
                return;
            }
        }
        if watcher.counters().stale > 0 && !std::mem::replace(&mut warned, true) {
            tracing::warn!("a peer in the local network is not taken: its clock and ours are more than a day apart");
        }
        stats.set(watcher.counters());
    }
}

fn ids(documents: &[DocumentRecord]) -> Vec<DocumentId> {
    documents.iter().map(|record| record.document).collect()
}
