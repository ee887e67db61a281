//! The own operations that wait for a first peer, as they were at one moment: what is published later is not waited for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::open_document::OpenDocument;

/// What was queued when it was looked. It does not grow.
#[derive(Debug)]
pub struct Queued {
    /// Documents with something queued: how many own operations there were, and how many of them some peer had.
    documents: Vec<(Arc<OpenDocument>, usize, usize)>,
}

impl Queued {
    pub(super) fn new(documents: Vec<Arc<OpenDocument>>) -> Self {
        let counted = documents.into_iter().map(|document| {
            let (own, delivered) = document.own();
            (document, own, delivered)
        });
        Self { documents: counted.filter(|(_, own, delivered)| delivered < own).collect() }
    }

    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// How much of it was acknowledged since.
    pub fn acknowledged(&self) -> usize {
        self.documents.iter().map(|(document, own, before)| document.own().1.min(*own).saturating_sub(*before)).sum()
    }

    /// Waits until all of it was acknowledged, or for so long that nothing of it was in `patience`.
    pub async fn drain(&self, patience: Duration) {
        let emptied = async {
            for (document, own, _) in &self.documents {
                let (mut progress, mut closed) = (document.watch_progress(), document.watch_closed());
                tokio::select! {
                    biased;
                    _ = progress.wait_for(|_| document.own().1 >= *own) => {}
                    // Nobody is told of it any more.
                    _ = closed.wait_for(|closed| *closed) => {}
                }
            }
        };
        let mut emptied = std::pin::pin!(emptied);
        let mut acknowledged = self.acknowledged();
        while timeout(patience, &mut emptied).await.is_err() {
            let before = std::mem::replace(&mut acknowledged, self.acknowledged());
            if before == acknowledged {
                break;
            }
        }
    }
}
