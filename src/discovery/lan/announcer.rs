//! When this node announces itself in the local network, and for which documents: a pure machine.
//!
//! Tell it what changes ([`Announcer::on_change`]); when [`Announcer::poll_timeout`] says so, ask what to announce
//! ([`Announcer::on_timeout`]) and put that in the place of what was announced before, under new names.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::ids::DocumentId;
use crate::limits::LAN_SLOTS;

/// How long an announcement, with its names, stays. Then another one takes its place, so that names lead nowhere.
pub const ROTATION: Duration = Duration::from_secs(15 * 60);
/// How long a turn takes when more documents are open than one announcement is for.
pub const TURN: Duration = Duration::from_secs(60);
/// Between two announcements at least: each is a few packets to everybody.
pub const GAP: Duration = Duration::from_secs(2);

/// Decides.
#[derive(Debug, Default)]
pub struct Announcer {
    /// The open documents: those of the next turn first.
    turns: VecDeque<DocumentId>,
    announced: bool,
    last: Option<Instant>,
    due: Option<Instant>,
}

impl Announcer {
    /// Nothing is open, and nothing announced.
    pub fn new() -> Self {
        Self::default()
    }

    /// These documents are open now, or the node's addresses are others. What was opened last is announced first.
    pub fn on_change(&mut self, documents: &[DocumentId], now: Instant) {
        self.turns.retain(|known| documents.contains(known));
        for document in documents {
            if !self.turns.contains(document) {
                self.turns.push_front(*document);
            }
        }
        let earliest = self.last.map_or(now, |last| (last + GAP).max(now));
        self.due = (self.announced || !self.turns.is_empty()).then_some(earliest);
    }

    /// When to ask.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// What to announce from now on, if it is time for that: at most 8 documents; none: nothing any more.
    pub fn on_timeout(&mut self, now: Instant) -> Option<Vec<DocumentId>> {
        self.due.filter(|due| *due <= now)?;
        let turn: Vec<_> = self.turns.iter().take(LAN_SLOTS).copied().collect();
        let all = turn.len() == self.turns.len();
        if !all {
            self.turns.rotate_left(LAN_SLOTS);
        }
        self.announced = !turn.is_empty();
        self.last = Some(now);
        self.due = self.announced.then(|| now + if all { ROTATION } else { TURN });
        Some(turn)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn documents(numbers: std::ops::Range<u128>) -> Vec<DocumentId> {
        numbers.map(|number| DocumentId::from_uuid(uuid::Uuid::from_u128(number))).collect()
    }

    #[test]
    fn a_document_is_announced_at_once_again_every_quarter_of_an_hour_and_withdrawn_when_it_is_closed() {
        let (mut announcer, now) = (Announcer::new(), Instant::now());
        assert_eq!(announcer.poll_timeout(), None);
        announcer.on_change(&documents(0..1), now);
        assert_eq!(announcer.poll_timeout(), Some(now));
        assert_eq!(announcer.on_timeout(now), Some(documents(0..1)));
        assert_eq!((announcer.poll_timeout(), announcer.on_timeout(now + TURN)), (Some(now + ROTATION), None));
        assert_eq!(announcer.on_timeout(now + ROTATION), Some(documents(0..1)));
        announcer.on_change(&[], now + 2 * ROTATION);
        assert_eq!(announcer.on_timeout(now + 2 * ROTATION), Some(Vec::new()));
        assert_eq!(announcer.poll_timeout(), None);
    }

    #[test]
    fn changes_in_a_row_are_announced_together_and_not_too_often() {
        let (mut announcer, now) = (Announcer::new(), Instant::now());
        announcer.on_change(&documents(0..1), now);
        announcer.on_timeout(now);
        for step in 1..10 {
            announcer.on_change(&documents(0..step), now + GAP / 20);
            assert_eq!(announcer.on_timeout(now + GAP / 10), None);
        }
        assert_eq!(announcer.poll_timeout(), Some(now + GAP));
    }

    #[test]
    fn more_documents_than_fit_take_turns_and_newly_opened_ones_go_first() {
        let (mut announcer, mut now) = (Announcer::new(), Instant::now());
        let open = documents(0..100);
        announcer.on_change(&open, now);
        let mut told = BTreeSet::new();
        for _ in 0..100usize.div_ceil(LAN_SLOTS) {
            let turn = announcer.on_timeout(now).unwrap();
            assert!(turn.len() <= LAN_SLOTS);
            told.extend(turn);
            now = announcer.poll_timeout().unwrap();
        }
        assert_eq!(told, open.iter().copied().collect(), "each had its turn within a round");
        announcer.on_change(&documents(0..101), now);
        assert_eq!(announcer.on_timeout(now).unwrap()[0], documents(100..101)[0]);
    }
}
