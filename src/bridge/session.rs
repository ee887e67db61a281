//! What this node and a Node say to each other about one document, as a pure machine: p2panda's log sync, session by session.
//!
//! [`Session::begin`] starts a connection. Then [`say`](Session::say) tells what to do next, and [`hear`](Session::hear) takes
//! what the Node said, in any interleaving. Both sides tell their heights, send what the other lacks, say that they are
//! done, and send what is new from then on.
//!
//! A Node acknowledges nothing, and drops what comes faster than it stores it. So what was sent counts as *in flight* until
//! heights of the Node show it, which only the next connection brings: when too much is in flight, or some of it for long, the
//! session is closed in good order and begun again. An author of whom something is still in flight then waits: nothing must
//! follow a gap, since a Node refuses that and does not take it later either. What does not arrive is sent again from the
//! Node's heights on.
//!
//! Heights do not tell forks apart. So once after connecting, heads are compared: heights are told one lower than they are,
//! and the Node sends its head operation once more, which the store knows or finds to contradict what it has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::heights::{Heights, Range, lacking};
use super::wire::{Message, RawOperation};
use crate::ids::PeerId;
use crate::limits::{BRIDGE_CHUNK_BYTES, BRIDGE_SAME_GAP, BRIDGE_STALLED_ROUNDS};
use crate::operation::{Operation, SeqNum};
use crate::store::{Heads, Position, StoredOperation};

/// What to do next.
#[derive(Debug)]
pub(super) enum Say {
    /// Send this.
    Send(Message),
    /// Read a page of this range and hand it to [`Session::on_range`].
    ReadRange(Range),
    /// Read a page of what is stored after this position and hand it to [`Session::on_newer`].
    ReadAfter(Position),
    /// Nothing until something is heard or stored.
    Wait,
}

/// What a message of the Node brings.
#[derive(Debug)]
pub(super) enum Heard {
    /// The Node's heights.
    Heights,
    /// An operation, not looked at yet.
    Operation(RawOperation),
    /// Nothing to act upon.
    Nothing,
    /// The Node wants the session to end.
    Close,
}

/// The Node said what it may not say now: what it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutOfTurn(pub(super) &'static str);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hearing {
    Heights,
    Announcement,
    Operations,
    Live,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Saying {
    Heights,
    WaitForHeights,
    /// Reads what the Node lacks, as much as one session may send.
    Gathering,
    /// Sends that, after its announcement.
    Sending,
    /// Sends what is new.
    Live,
    /// Closes as soon as the Node is done.
    Ending,
    Closing,
}

/// Whose heads are asked for once more.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Compare {
    Everybody,
    These(BTreeSet<PeerId>),
}

/// One document with one Node.
#[derive(Debug)]
pub(super) struct Session {
    most_in_flight: usize,
    /// What the Node said last that it has.
    confirmed: Heights,
    /// The newest of what it was sent beyond that.
    in_flight: Heights,
    /// Authors of whom the Node does not take what it is sent: offered again now and then, without holding up the others.
    stuck: BTreeSet<PeerId>,
    /// Authors of whom nothing is wanted from this Node: their logs cannot be followed here.
    left_out: BTreeSet<PeerId>,
    /// Authors of whose log the Node, by its own word, has all, and sent us what does not follow what is here: what was
    /// expected, and how often.
    gaps: BTreeMap<PeerId, (SeqNum, u32)>,
    compare: Compare,
    /// Sessions in a row that found none of what is in flight arrived.
    stalled: u32,
    /// What is in flight should have arrived by now.
    overdue: bool,

    heads: Heads,
    position: Position,
    newest: Position,
    /// How many operations of each author the Node has, or will have once what is in flight arrives.
    counts: BTreeMap<PeerId, u64>,
    unverified: usize,
    /// Authors of whom something was in flight when the connection began.
    waiting: BTreeSet<PeerId>,
    /// Authors of whom something came that does not follow what is here.
    gapped: BTreeSet<PeerId>,
    hearing: Hearing,
    saying: Saying,
    lacking: VecDeque<Range>,
    /// Read and not sent yet.
    outgoing: VecDeque<Operation>,
    gathered_bytes: usize,
    sent: usize,
}

impl Session {
    /// Before the first connection. At most `most_in_flight` operations go out before the Node's heights are asked for.
    pub(super) fn new(most_in_flight: usize) -> Self {
        Self {
            most_in_flight,
            confirmed: Heights::new(),
            in_flight: Heights::new(),
            stuck: BTreeSet::new(),
            left_out: BTreeSet::new(),
            gaps: BTreeMap::new(),
            compare: Compare::Everybody,
            stalled: 0,
            overdue: false,
            heads: Heads::new(),
            position: 0,
            newest: 0,
            counts: BTreeMap::new(),
            unverified: 0,
            waiting: BTreeSet::new(),
            gapped: BTreeSet::new(),
            hearing: Hearing::Heights,
            saying: Saying::Heights,
            lacking: VecDeque::new(),
            outgoing: VecDeque::new(),
            gathered_bytes: 0,
            sent: 0,
        }
    }

    /// A connection begins, with what is stored here up to `position`.
    pub(super) fn begin(&mut self, heads: Heads, position: Position) {
        self.heads = heads;
        (self.position, self.newest) = (position, position);
        self.counts.clear();
        self.unverified = 0;
        self.waiting.clear();
        self.gapped.clear();
        (self.hearing, self.saying) = (Hearing::Heights, Saying::Heights);
        self.lacking.clear();
        self.outgoing.clear();
        (self.gathered_bytes, self.sent) = (0, 0);
    }

    /// The connection was lost, or an error ended it, and with it perhaps what was in flight. The Node may have another store now.
    pub(super) fn on_lost(&mut self) {
        self.compare = Compare::Everybody;
        self.in_flight.clear();
        (self.stalled, self.overdue) = (0, false);
    }

    /// An author's log cannot be followed here: forked, or not made of our operations. Nothing more of it is wanted.
    pub(super) fn leave_out(&mut self, author: PeerId) {
        self.left_out.insert(author);
    }

    /// What came of an author does not follow what is here. A Node passes on what it could not store itself, or loses some: the
    /// next session asks again. But when its own log comes with the same gap over and over, it will always: one operation in it
    /// is not to be had.
    pub(super) fn on_gap(&mut self, author: PeerId, expected: SeqNum) {
        let first = self.gapped.insert(author);
        if first && self.hearing != Hearing::Live {
            let gap = self.gaps.entry(author).or_default();
            let times = if gap.0 == expected { gap.1 + 1 } else { 1 };
            *gap = (expected, times);
            if times >= BRIDGE_SAME_GAP {
                self.gaps.remove(&author);
                self.leave_out(author);
            }
        }
    }

    /// The Node has this operation, since it sent it.
    pub(super) fn on_theirs(&mut self, author: PeerId, seq_num: SeqNum) {
        // Passed on by the Node, which may lack what comes before: its next heights tell.
        if self.hearing == Hearing::Live && u64::from(seq_num) > self.count_of(&author) {
            self.gapped.insert(author);
        }
        self.note_count(author, seq_num);
    }

    fn note_count(&mut self, author: PeerId, seq_num: SeqNum) {
        let count = self.counts.entry(author).or_default();
        *count = (*count).max(u64::from(seq_num) + 1);
    }

    /// How many operations of an author the Node has, as far as is known.
    pub(super) fn count_of(&self, author: &PeerId) -> u64 {
        self.counts.get(author).copied().unwrap_or(0)
    }

    /// How many operations of an author the Node said to have stored.
    pub(super) fn confirmed_of(&self, author: &PeerId) -> Option<SeqNum> {
        self.confirmed.get(author).copied()
    }

    /// Something was stored here.
    pub(super) fn on_stored(&mut self, newest: Position) {
        self.newest = self.newest.max(newest);
    }

    /// What is in flight should have arrived by now: closes the session, and the heights of the next one tell.
    pub(super) fn verify(&mut self) {
        self.overdue = true;
        self.end();
    }

    /// Closes the session in good order once all that was begun is sent: the next one begins with the Node's heights.
    pub(super) fn end(&mut self) {
        if self.saying == Saying::Live {
            self.saying = Saying::Ending;
        }
    }

    /// Whether both sides said that they are done.
    pub(super) fn is_live(&self) -> bool {
        self.hearing == Hearing::Live && self.saying == Saying::Live
    }

    /// Whether the session was closed from here: what comes now is its end.
    pub(super) fn is_closing(&self) -> bool {
        self.saying == Saying::Closing
    }

    /// Something waits until the Node's heights show more of what is in flight, or for what is missing before something that came. In how many sessions in a row nothing of that
    /// arrived: to ask later and later. `None`: nothing waits.
    pub(super) fn held_back(&self) -> Option<u32> {
        let full = self.unverified >= self.most_in_flight && self.newest > self.position;
        (full || !self.waiting.is_empty() || !self.gapped.is_empty() || self.is_lacking()).then_some(self.stalled)
    }

    /// Whether operations are in flight.
    pub(super) fn is_unverified(&self) -> bool {
        self.unverified > 0
    }

    /// Whether there are authors of whom the Node does not take what it is sent.
    pub(super) fn is_stuck(&self) -> bool {
        !self.stuck.is_empty()
    }

    /// Operations sent in this session.
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    /// What to do next.
    pub(super) fn say(&mut self) -> Say {
        match self.saying {
            Saying::Heights => {
                // The Node's may be here already.
                let waits = self.hearing == Hearing::Heights;
                self.saying = if waits { Saying::WaitForHeights } else { Saying::Gathering };
                Say::Send(Message::Have(self.told_heights()))
            }
            Saying::WaitForHeights | Saying::Closing => Say::Wait,
            Saying::Gathering => match self.next_range() {
                Some(range) => Say::ReadRange(range),
                None => Say::Send(self.announce()),
            },
            Saying::Sending => match self.outgoing.pop_front() {
                Some(operation) => Say::Send(Message::Operation(RawOperation::from(&operation))),
                None => {
                    self.saying = Saying::Live;
                    Say::Send(Message::Done)
                }
            },
            Saying::Live => match self.outgoing.pop_front() {
                Some(operation) => Say::Send(Message::Live(RawOperation::from(&operation))),
                None if self.newest > self.position && self.unverified < self.most_in_flight => {
                    Say::ReadAfter(self.position)
                }
                None => Say::Wait,
            },
            // A Node that is not live yet takes a close for an error.
            Saying::Ending if self.hearing != Hearing::Live => Say::Wait,
            Saying::Ending => match self.outgoing.pop_front() {
                Some(operation) => Say::Send(Message::Live(RawOperation::from(&operation))),
                None => {
                    self.saying = Saying::Closing;
                    Say::Send(Message::Close)
                }
            },
        }
    }

    /// What the Node says.
    ///
    /// # Errors
    /// [`OutOfTurn`]; the session cannot go on.
    pub(super) fn hear(&mut self, message: Message) -> Result<Heard, OutOfTurn> {
        match (self.hearing, message) {
            (Hearing::Heights, Message::Have(heights)) => {
                self.hearing = Hearing::Announcement;
                self.on_heights(heights);
                Ok(Heard::Heights)
            }
            (Hearing::Announcement, Message::PreSync { .. }) => {
                self.hearing = Hearing::Operations;
                Ok(Heard::Nothing)
            }
            (Hearing::Announcement | Hearing::Operations, Message::Done) => {
                self.hearing = Hearing::Live;
                Ok(Heard::Nothing)
            }
            (Hearing::Operations, Message::Operation(operation)) | (Hearing::Live, Message::Live(operation)) => {
                Ok(Heard::Operation(operation))
            }
            // A Node that has nothing to send of ranges that it announced says so twice.
            (Hearing::Live, Message::Done) => Ok(Heard::Nothing),
            (Hearing::Live, Message::Close) => Ok(Heard::Close),
            (_, Message::Have(_)) => Err(OutOfTurn("heights")),
            (_, Message::PreSync { .. }) => Err(OutOfTurn("an announcement")),
            (_, Message::Operation(_)) => Err(OutOfTurn("an operation")),
            (_, Message::Live(_)) => Err(OutOfTurn("a live operation")),
            (_, Message::Done) => Err(OutOfTurn("the end of operations")),
            (_, Message::Close) => Err(OutOfTurn("a close")),
        }
    }

    /// A page of the range that was asked for.
    pub(super) fn on_range(&mut self, page: Vec<StoredOperation>) {
        let Some(mut range) = self.lacking.pop_front() else { return };
        let Some(last) = page.last().map(|stored| stored.operation.seq_num()) else { return };
        for StoredOperation { operation, .. } in page {
            self.gathered_bytes += operation.size();
            self.take(operation);
        }
        if last < range.last {
            range.first = last.saturating_add(1);
            self.lacking.push_front(range);
        }
    }

    /// A page of what is new since the position that was asked for.
    pub(super) fn on_newer(&mut self, page: Vec<StoredOperation>) {
        let Some(last) = page.last().map(|stored| stored.position) else {
            self.position = self.newest;
            return;
        };
        self.position = last;
        for StoredOperation { operation, .. } in page {
            // What comes before it was not sent, and is not in this session.
            if u64::from(operation.seq_num()) == self.count_of(&operation.author()) && !self.waits(&operation.author())
            {
                self.take(operation);
            }
        }
    }

    fn waits(&self, author: &PeerId) -> bool {
        self.waiting.contains(author)
    }

    /// Heights as they are told: one lower where heads are compared, all there is where nothing is wanted.
    fn told_heights(&mut self) -> Heights {
        let compare = std::mem::replace(&mut self.compare, Compare::These(BTreeSet::new()));
        let told = |(author, head): (&PeerId, &crate::operation::Head)| {
            let compared = match &compare {
                Compare::Everybody => true,
                Compare::These(authors) => authors.contains(author),
            };
            if !compared {
                return Some((*author, head.seq_num));
            }
            let common = self.confirmed_of(author).map_or(head.seq_num, |theirs| theirs.min(head.seq_num));
            Some((*author, common.checked_sub(1)?))
        };
        let mut heights: Heights = self.heads.iter().filter_map(told).collect();
        heights.extend(self.left_out.iter().map(|author| (*author, SeqNum::MAX)));
        heights
    }

    /// The Node's heights: what of the operations in flight has arrived, and what it lacks.
    fn on_heights(&mut self, heights: Heights) {
        let had = |heights: &Heights, author: &PeerId| heights.get(author).map_or(0, |height| u64::from(*height) + 1);
        let before: u64 = self.in_flight.keys().map(|author| had(&self.confirmed, author)).sum();
        let after: u64 = self.in_flight.keys().map(|author| had(&heights, author)).sum();
        self.stuck.retain(|author| had(&heights, author) <= had(&self.confirmed, author));
        self.confirmed = heights;
        self.in_flight.retain(|author, sent| self.confirmed.get(author).is_none_or(|height| height < sent));
        if after > before || self.in_flight.is_empty() {
            self.stalled = 0;
        } else {
            self.stalled += 1;
        }
        let overdue = std::mem::take(&mut self.overdue) && self.stalled > 0;
        if overdue || self.stalled >= BRIDGE_STALLED_ROUNDS {
            self.give_up_in_flight();
        }
        self.counts = self.confirmed.iter().map(|(author, height)| (*author, u64::from(*height) + 1)).collect();
        for (author, sent) in &self.in_flight {
            self.unverified += (u64::from(*sent) + 1).saturating_sub(had(&self.confirmed, author)) as usize;
            self.waiting.insert(*author);
        }
        self.find_lacking();
        if self.saying == Saying::WaitForHeights {
            self.saying = Saying::Gathering;
        }
    }

    /// What is in flight never arrived. Perhaps its authors' logs are forked: their heads are compared in the next session.
    fn give_up_in_flight(&mut self) {
        self.stalled = 0;
        self.stuck.extend(self.in_flight.keys().copied());
        self.in_flight.clear();
        if let Compare::These(authors) = &mut self.compare {
            authors.extend(self.stuck.iter().copied());
        }
    }

    /// What the Node lacks of what is here, authors that it does not take last.
    fn find_lacking(&mut self) {
        let ours = self.heads.iter().filter(|(author, _)| !self.left_out.contains(*author) && !self.waits(author));
        let ours: Heights = ours.map(|(author, head)| (*author, head.seq_num)).collect();
        let theirs = |(author, count): (&PeerId, &u64)| Some((*author, SeqNum::try_from(count.checked_sub(1)?).ok()?));
        let theirs: Heights = self.counts.iter().filter_map(theirs).collect();
        let (stuck, others): (Vec<_>, Vec<_>) =
            lacking(&ours, &theirs).into_iter().partition(|range| self.stuck.contains(&range.author));
        self.lacking = others.into_iter().chain(stuck).collect();
    }

    /// The next range to read for this session, if there is room for it.
    fn next_range(&self) -> Option<Range> {
        let room = self.most_in_flight.saturating_sub(self.unverified.max(self.outgoing.len()));
        let range = self.lacking.front()?;
        if room == 0 || self.gathered_bytes >= BRIDGE_CHUNK_BYTES {
            return None;
        }
        let last = range.last.min(range.first.saturating_add(room as SeqNum - 1));
        Some(Range { last, ..*range })
    }

    fn announce(&mut self) -> Message {
        if self.outgoing.is_empty() {
            self.saying = Saying::Live;
            return Message::Done;
        }
        self.saying = Saying::Sending;
        let operations = self.outgoing.len() as u32;
        Message::PreSync { operations, bytes: self.gathered_bytes.try_into().unwrap_or(u32::MAX) }
    }

    /// Whether there is more that the Node lacks than this session may send; what it does not take anyway aside.
    fn is_lacking(&self) -> bool {
        self.lacking.iter().any(|range| !self.stuck.contains(&range.author))
    }

    /// This operation goes out.
    fn take(&mut self, operation: Operation) {
        let author = operation.author();
        self.note_count(author, operation.seq_num());
        if !self.stuck.contains(&author) {
            self.in_flight.insert(author, operation.seq_num());
            self.unverified += 1;
        }
        self.sent += 1;
        self.outgoing.push_back(operation);
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
