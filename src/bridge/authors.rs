//! Authors whose logs at a Node cannot be followed here, or have a gap: remembered from session to session, in bounded memory.
//!
//! Pure. [`leave_out`](Authors::leave_out), [`on_fork`](Authors::on_fork), [`on_gap`](Authors::on_gap) and
//! [`on_gap_in_log`](Authors::on_gap_in_log) note what is wrong, [`on_heights`](Authors::on_heights) forgets what is right
//! again, and [`asking`](Authors::asking) says whether it is worth asking.

use std::collections::BTreeMap;

use crate::ids::PeerId;
use crate::limits::{BRIDGE_SAME_GAP, BRIDGE_STALLED_ROUNDS, SESSION_MAX_AUTHORS};
use crate::operation::SeqNum;

/// What is wrong with whose log.
#[derive(Debug, Default)]
pub(super) struct Authors(BTreeMap<PeerId, Trouble>);

/// There is no room to remember one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// Two logs in one: nothing of it is wanted, and nothing is offered.
    Forked,
    /// What follows in it cannot be stored here. What is stored is offered.
    Unwanted,
    Gap(Gap),
}

#[derive(Debug, Clone, Copy)]
struct Gap {
    /// How many operations there are before it.
    count: u64,
    /// The Node's own log has it, in so many sessions in a row; 0 when it only passed on what does not follow.
    in_log: u32,
    /// Sessions in a row that began with the gap there.
    rounds: u32,
    /// It was met in this session.
    is_met: bool,
}

impl Authors {
    /// Nothing more of this author can be stored here. True when that is news.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn leave_out(&mut self, author: PeerId) -> Result<bool, Full> {
        match self.0.get(&author) {
            Some(Trouble::Forked | Trouble::Unwanted) => Ok(false),
            Some(Trouble::Gap(_)) | None => self.insert(author, Trouble::Unwanted).map(|()| true),
        }
    }

    /// The author's log is forked.
    ///
    /// # Errors
    /// [`Full`].
    pub(super) fn on_fork(&mut self, author: PeerId) -> Result<(), Full> {
        self.insert(author, Trouble::Forked)
    }

    /// The Node passed on what does not follow the `count` operations before it.
    pub(super) fn on_gap(&mut self, author: PeerId, count: u64) {
        match self.0.get_mut(&author) {
            Some(Trouble::Gap(gap)) => gap.is_met = true,
            Some(Trouble::Forked | Trouble::Unwanted) => {}
            None => self.insert_gap(author, Gap { count, in_log: 0, rounds: 0, is_met: true }),
        }
    }

    /// The Node's own log came with a gap behind `count` operations. Over and over: one operation in it is not to be had, and
    /// nothing more is wanted of the author.
    pub(super) fn on_gap_in_log(&mut self, author: PeerId, count: u64) {
        let (in_log, rounds) = match self.0.get(&author) {
            Some(Trouble::Forked | Trouble::Unwanted) => return,
            // Noted in this session.
            Some(Trouble::Gap(gap)) if gap.in_log > 0 && gap.is_met => return,
            Some(Trouble::Gap(gap)) if gap.in_log > 0 && gap.count == count => (gap.in_log + 1, gap.rounds),
            Some(Trouble::Gap(_)) | None => (1, 0),
        };
        if in_log >= BRIDGE_SAME_GAP {
            self.0.insert(author, Trouble::Unwanted);
        } else {
            self.insert_gap(author, Gap { count, in_log, rounds, is_met: true });
        }
    }

    /// A session begins: how many operations the Node has of an author, and how many are here. Forgets what this repairs.
    pub(super) fn on_heights(&mut self, at_node: impl Fn(&PeerId) -> u64, here: impl Fn(&PeerId) -> u64) {
        self.0.retain(|author, trouble| {
            let Trouble::Gap(gap) = trouble else { return true };
            gap.rounds = gap.rounds.saturating_add(1);
            gap.is_met = false;
            // A log that goes past the gap comes now, with the gap or without.
            here(author) <= gap.count && (at_node(author) > gap.count) == (gap.in_log > 0)
        });
    }

    /// Something may be missing that the Node's next heights bring: in how many sessions in a row they did not. `None`: no
    /// gaps, or asking brought nothing for long, and the Node does not come back to it either.
    pub(super) fn asking(&self) -> Option<u32> {
        let rounds = |trouble: &Trouble| match trouble {
            Trouble::Gap(gap) if gap.is_met || gap.rounds < BRIDGE_STALLED_ROUNDS => Some(gap.rounds),
            Trouble::Gap(_) | Trouble::Forked | Trouble::Unwanted => None,
        };
        self.0.values().filter_map(rounds).min()
    }

    /// Whether what follows of this author is wanted.
    pub(super) fn is_wanted(&self, author: &PeerId) -> bool {
        !matches!(self.0.get(author), Some(Trouble::Forked | Trouble::Unwanted))
    }

    /// Whether the author's log is forked.
    pub(super) fn is_forked(&self, author: &PeerId) -> bool {
        matches!(self.0.get(author), Some(Trouble::Forked))
    }

    /// Authors of whom nothing is wanted.
    pub(super) fn unwanted(&self) -> impl Iterator<Item = PeerId> {
        self.0.keys().filter(|author| !self.is_wanted(author)).copied()
    }

    fn insert(&mut self, author: PeerId, trouble: Trouble) -> Result<(), Full> {
        if self.0.len() >= SESSION_MAX_AUTHORS && !self.0.contains_key(&author) {
            return Err(Full);
        }
        self.0.insert(author, trouble);
        Ok(())
    }

    /// A gap that is not remembered is met again.
    fn insert_gap(&mut self, author: PeerId, gap: Gap) {
        let _ = self.insert(author, Trouble::Gap(gap));
    }
}

/// How many operations there are up to and including this one.
pub(super) fn count(newest: Option<SeqNum>) -> u64 {
    newest.map_or(0, |newest| u64::from(newest) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn author(number: u32) -> PeerId {
        let mut seed = [1; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        crate::identity::Identity::from_seed(&seed).peer_id()
    }

    #[test]
    fn no_more_authors_are_remembered_than_a_session_may_have() {
        let mut authors = Authors::default();
        let mut refused = 0;
        for number in 0..10_000 {
            authors.on_gap(author(number), 0);
            refused += usize::from(authors.leave_out(author(number)).is_err());
        }
        assert_eq!((authors.0.len(), refused), (SESSION_MAX_AUTHORS, 10_000 - SESSION_MAX_AUTHORS));
        assert_eq!(authors.leave_out(author(0)), Ok(false), "known");
        assert_eq!(authors.on_fork(author(0)), Ok(()));
        assert!(authors.is_forked(&author(0)));
    }

    #[test]
    fn a_gap_is_forgotten_when_the_node_has_more_or_it_was_filled_here() {
        let bob = author(1);
        for (at_node, here, left) in [(2, 2, Some(1)), (3, 2, None), (2, 3, None)] {
            let mut authors = Authors::default();
            authors.on_gap(bob, 2);
            assert_eq!(authors.asking(), Some(0));
            authors.on_heights(|_| at_node, |_| here);
            assert_eq!(authors.asking(), left, "{at_node} at the Node, {here} here");
        }
    }

    #[test]
    fn a_gap_that_stays_is_asked_for_some_times_and_then_when_it_is_met_again() {
        let (mut authors, bob) = (Authors::default(), author(1));
        authors.on_gap(bob, 2);
        for round in 1..BRIDGE_STALLED_ROUNDS {
            authors.on_heights(|_| 2, |_| 2);
            assert_eq!(authors.asking(), Some(round));
        }
        authors.on_heights(|_| 2, |_| 2);
        assert_eq!(authors.asking(), None);
        authors.on_gap(bob, 2);
        assert_eq!(authors.asking(), Some(BRIDGE_STALLED_ROUNDS));
    }

    #[test]
    fn a_log_with_the_same_gap_over_and_over_is_not_wanted_and_one_whose_gap_moves_is() {
        for moves in [0, 1] {
            let (mut authors, bob) = (Authors::default(), author(1));
            for session in 0..u64::from(BRIDGE_SAME_GAP) {
                assert!(authors.is_wanted(&bob));
                let gap = session * moves;
                authors.on_heights(|_| 9, |_| gap);
                (0..9).for_each(|_| authors.on_gap_in_log(bob, gap));
            }
            assert_eq!(authors.is_wanted(&bob), moves == 1);
        }
    }
}
