//! The work of a node process: typing at random, filling, replaying a trace. Runs until done; a failure is reported.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use panda_network::Document;
use rand::Rng;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::driver::{Node, Shared, lock};
use super::payload::{Content, HEADER_BYTES, Payload};
use super::protocol::Work;
use super::publisher::Publisher;
use crate::error::CliError;
use crate::text_doc::Patch;

/// Does the work and notes how long it took.
pub async fn run(shared: Arc<Shared>, document: Document, work: Work) {
    let start = Instant::now();
    let this_work = {
        let mut node = lock(&shared);
        node.report.working = true;
        (node.report.durable_after_us, node.report.acknowledged_after_us) = (None, None);
        node.work += 1;
        node.work
    };
    let counted = Arc::clone(&shared);
    let mut publisher = Publisher::new(document, move || lock(&counted).report.published += 1);
    let done = match work {
        Work::Type { operations, per_second } => {
            repeat(&shared, &mut publisher, operations, per_second, |node| node.type_something()).await
        }
        Work::Fill { operations, bytes, per_second } => {
            repeat(&shared, &mut publisher, operations, per_second, |node| Ok(node.fill(bytes))).await
        }
        Work::Replay => replay(&shared, &mut publisher).await,
    };
    let durable = match done {
        Ok(()) => publisher.flush().await.map_err(|error| error.to_string()),
        Err(reason) => Err(reason),
    };
    let elapsed_us = || Some(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
    {
        let mut node = lock(&shared);
        node.report.working = false;
        node.report.durable_after_us = elapsed_us();
        if let Err(reason) = &durable {
            node.report.failure = Some(reason.clone());
        }
    }
    if let Ok(Some(receipt)) = durable {
        receipt.delivered_to(1).await;
        let mut node = lock(&shared);
        if node.work == this_work {
            node.report.acknowledged_after_us = elapsed_us();
        }
    }
}

type Failure = String;

async fn repeat<F: Fn()>(
    shared: &Shared,
    publisher: &mut Publisher<F>,
    operations: u32,
    per_second: u32,
    mut make: impl FnMut(&mut Node) -> Result<Bytes, Failure>,
) -> Result<(), Failure> {
    let mut ticks = (per_second > 0).then(|| {
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        ticks
    });
    for _ in 0..operations {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        let payload = make(&mut lock(shared))?;
        publisher.publish(payload).await.map_err(describe)?;
    }
    Ok(())
}

async fn replay<F: Fn()>(shared: &Shared, publisher: &mut Publisher<F>) -> Result<(), Failure> {
    loop {
        // Asked for before looking, so that an arrival in between still wakes.
        let arrival = shared.arrival.notified();
        let step = {
            let mut node = lock(shared);
            match node.replay_step()? {
                Some(payload) => Some(payload),
                None if node.replay_is_done() => return Ok(()),
                None => None,
            }
        };
        match step {
            Some(payload) => publisher.publish(payload).await.map_err(describe)?,
            None => arrival.await,
        }
    }
}

fn describe(error: CliError) -> Failure {
    error.to_string()
}

impl Node {
    /// One random edit of the text: mostly words, sometimes a deletion.
    fn type_something(&mut self) -> Result<Bytes, Failure> {
        let patch = random_edit(&mut self.random, self.text.len());
        let update = self.text.edit(&[patch]).map_err(|error| error.to_string())?;
        Ok(self.next_payload(Content::Update, &update))
    }

    fn fill(&mut self, bytes: usize) -> Bytes {
        self.next_payload(Content::Nothing, &vec![0xA5; bytes.saturating_sub(HEADER_BYTES)])
    }

    fn replay_step(&mut self) -> Result<Option<Bytes>, Failure> {
        let replayer = self.replayer.as_mut().ok_or("no trace was loaded")?;
        let update = replayer.step().map_err(|error| error.to_string())?;
        Ok(update.map(|update| self.next_payload(Content::Update, &update)))
    }

    fn replay_is_done(&self) -> bool {
        self.replayer.as_ref().is_none_or(crate::trace::Replayer::is_done)
    }

    fn next_payload(&mut self, content: Content, bytes: &[u8]) -> Bytes {
        let number = self.next_number;
        self.next_number += 1;
        Payload { agent: self.agent, number, sent_us: self.clock.now_us(), content, bytes }.encode()
    }
}

/// An edit inside of an ASCII text of this length.
fn random_edit(random: &mut impl Rng, length: u32) -> Patch {
    const WORDS: [&str; 8] = ["panda ", "bamboo ", "tree ", "eats ", "the ", "sleeps ", "and\n", "climbs "];
    let at = random.random_range(0..=length);
    if length > 40 && random.random_ratio(1, 4) {
        return Patch { at, delete: (length - at).min(3), insert: String::new() };
    }
    Patch { at, delete: 0, insert: WORDS[random.random_range(0..WORDS.len())].into() }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn random_edits_stay_inside_of_the_text() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for length in 0..2000 {
            let patch = random_edit(&mut random, length);
            assert!(patch.at + patch.delete <= length && patch.insert.is_ascii());
        }
    }
}
