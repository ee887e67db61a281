//! What a Node was sent and has not confirmed, from session to session. Pure.
//!
//! [`on_sent`](InFlight::on_sent) notes what goes out, [`on_heights`](InFlight::on_heights) what of it has arrived by the Node's
//! word. What does not arrive is taken for lost, and its author is *stuck*: offered again now and then, without holding up the
//! others.

use std::collections::BTreeSet;

use super::authors::count;
use super::heights::Heights;
use super::pace::Why;
use crate::ids::PeerId;
use crate::limits::BRIDGE_STALLED_ROUNDS;
use crate::operation::SeqNum;

/// What is in flight to one Node in one document.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    /// What the Node said last that it has.
    confirmed: Heights,
    /// The newest of what it was sent beyond that.
    sent: Heights,
    /// Authors of whom the Node does not take what it is sent.
    stuck: BTreeSet<PeerId>,
    /// Sessions in a row that found none of what is in flight arrived.
    stalled: u32,
    /// What is in flight should have arrived by now.
    overdue: bool,
    /// Times in a row that it had.
    verified: u32,
    /// Sessions in a row in which nothing was taken of the authors that are stuck.
    offered: u32,
}

impl InFlight {
    /// What was in flight is perhaps lost.
    pub(super) fn on_lost(&mut self) {
        self.sent.clear();
        (self.stalled, self.overdue, self.verified) = (0, false, 0);
    }

    /// This was sent; what an author sends who is stuck does not count.
    pub(super) fn on_sent(&mut self, author: PeerId, seq_num: SeqNum) {
        if !self.is_stuck(&author) {
            self.sent.insert(author, seq_num);
        }
    }

    /// What is in flight should have arrived by now: the next heights tell.
    pub(super) fn set_overdue(&mut self) {
        self.overdue = true;
    }

    /// The Node's heights. True when something was taken for lost.
    pub(super) fn on_heights(&mut self, heights: Heights) -> bool {
        let had = |heights: &Heights, author: &PeerId| count(heights.get(author).copied());
        let before: u64 = self.sent.keys().map(|author| had(&self.confirmed, author)).sum();
        let after: u64 = self.sent.keys().map(|author| had(&heights, author)).sum();
        let stuck = self.stuck.len();
        self.stuck.retain(|author| had(&heights, author) <= had(&self.confirmed, author));
        self.offered = if self.stuck.len() < stuck { 0 } else { self.offered.saturating_add(1) };
        self.confirmed = heights;
        self.sent.retain(|author, sent| self.confirmed.get(author).is_none_or(|height| height < sent));
        let arrives = after > before || self.sent.is_empty();
        self.stalled = if arrives { 0 } else { self.stalled + 1 };
        let overdue = std::mem::take(&mut self.overdue);
        if overdue {
            self.verified = if arrives { self.verified.saturating_add(1) } else { 0 };
        }
        let lost = overdue && !arrives || self.stalled >= BRIDGE_STALLED_ROUNDS;
        if lost {
            (self.stalled, self.offered) = (0, 0);
            self.stuck.extend(std::mem::take(&mut self.sent).into_keys());
        }
        lost
    }

    /// What the Node said last that it has.
    pub(super) fn confirmed(&self) -> &Heights {
        &self.confirmed
    }

    /// The newest operation of an author in flight.
    pub(super) fn newest_of(&self, author: &PeerId) -> Option<SeqNum> {
        self.sent.get(author).copied()
    }

    /// Authors of whom something is in flight, and how much.
    pub(super) fn counts(&self) -> impl Iterator<Item = (PeerId, usize)> {
        self.sent.iter().map(|(author, sent)| {
            let confirmed = count(self.confirmed.get(author).copied());
            (*author, count(Some(*sent)).saturating_sub(confirmed) as usize)
        })
    }

    /// Whether the Node does not take what it is sent of this author.
    pub(super) fn is_stuck(&self, author: &PeerId) -> bool {
        self.stuck.contains(author)
    }

    /// All of these authors.
    pub(super) fn stuck(&self) -> &BTreeSet<PeerId> {
        &self.stuck
    }

    /// Sessions in a row that found none of what is in flight arrived.
    pub(super) fn stalled(&self) -> u32 {
        self.stalled
    }

    /// Why the Node's heights should be asked for, by what is in flight alone.
    pub(super) fn reasons(&self) -> impl Iterator<Item = Why> {
        let verify = (!self.sent.is_empty()).then_some(Why::Verify(self.verified));
        let offer = (!self.stuck.is_empty()).then_some(Why::Stuck(self.offered));
        verify.into_iter().chain(offer)
    }
}
