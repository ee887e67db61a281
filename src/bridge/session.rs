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
//! and the Node sends its head operation once more, which the store knows or finds to contradict what it has. The head of this
//! node's own log is compared whenever some of it was in flight.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::authors::{Authors, count};
use super::heights::{Heights, Range, lacking};
use super::in_flight::InFlight;
use super::pace::Why;
use super::wire::{Message, RawOperation};
use crate::ids::PeerId;
use crate::limits::{BRIDGE_CHUNK_BYTES, SESSION_MAX_AUTHORS};
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
    /// All is here that the Node's heights promised, as far as it was wanted.
    Done,
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
    own: PeerId,
    most_in_flight: usize,
    in_flight: InFlight,
    /// Authors whose logs at the Node are not as they should be.
    pub(super) authors: Authors,
    compare: Compare,

    heads: Heads,
    position: Position,
    newest: Position,
    /// How many operations of each author the Node has, or will have once what is in flight arrives.
    counts: BTreeMap<PeerId, u64>,
    /// Operations that the Node was sent and did not confirm, of authors that are stuck as well.
    unverified: usize,
    /// Of these, those of authors that are stuck.
    unverified_stuck: usize,
    /// Authors of whom something was in flight when the connection began.
    waiting: BTreeSet<PeerId>,
    hearing: Hearing,
    saying: Saying,
    lacking: VecDeque<Range>,
    /// Read and not sent yet.
    outgoing: VecDeque<Operation>,
    gathered_bytes: usize,
    sent: usize,
}

impl Session {
    /// Before the first connection of the node `own`. At most `most_in_flight` operations go out before the Node's heights are
    /// asked for.
    pub(super) fn new(own: PeerId, most_in_flight: usize) -> Self {
        Self {
            own,
            most_in_flight,
            in_flight: InFlight::default(),
            authors: Authors::default(),
            compare: Compare::Everybody,
            heads: Heads::new(),
            position: 0,
            newest: 0,
            counts: BTreeMap::new(),
            unverified: 0,
            unverified_stuck: 0,
            waiting: BTreeSet::new(),
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
        (self.unverified, self.unverified_stuck) = (0, 0);
        self.waiting.clear();
        (self.hearing, self.saying) = (Hearing::Heights, Saying::Heights);
        self.lacking.clear();
        self.outgoing.clear();
        (self.gathered_bytes, self.sent) = (0, 0);
    }

    /// The connection was lost, or an error ended it, and with it perhaps what was in flight. The Node may have another store now.
    pub(super) fn on_lost(&mut self) {
        self.compare = Compare::Everybody;
        self.in_flight.on_lost();
    }

    /// What came of an author does not follow what is here. A Node passes on what it could not store itself, or loses some: the
    /// next session asks again. But when its own log comes with the same gap over and over, it will always: one operation in it
    /// is not to be had.
    pub(super) fn on_gap(&mut self, author: PeerId, expected: SeqNum) {
        match self.hearing {
            Hearing::Live => self.authors.on_gap(author, expected.into()),
            Hearing::Heights | Hearing::Announcement | Hearing::Operations => {
                self.authors.on_gap_in_log(author, expected.into());
            }
        }
    }

    /// All of the Node's log has come: what its heights promised and is not here, by `newest`, did not.
    pub(super) fn on_all_here(&mut self, newest: impl Fn(&PeerId) -> Option<SeqNum>) {
        for (author, height) in self.in_flight.confirmed() {
            let here = newest(author);
            if here < Some(*height) {
                self.authors.on_gap_in_log(*author, count(here));
            }
        }
    }

    /// The Node has this operation, since it sent it.
    pub(super) fn on_theirs(&mut self, author: PeerId, seq_num: SeqNum) {
        let count = self.count_of(&author);
        // Passed on by the Node, which may lack what comes before: its next heights tell.
        if self.hearing == Hearing::Live && u64::from(seq_num) > count {
            self.authors.on_gap(author, count);
        }
        if self.counts.len() < SESSION_MAX_AUTHORS || self.counts.contains_key(&author) {
            self.note_count(author, seq_num);
        }
    }

    fn note_count(&mut self, author: PeerId, seq_num: SeqNum) {
        let count = self.counts.entry(author).or_default();
        *count = (*count).max(u64::from(seq_num) + 1);
    }

    /// How many operations of an author the Node has, as far as is known.
    pub(super) fn count_of(&self, author: &PeerId) -> u64 {
        self.counts.get(author).copied().unwrap_or(0)
    }

    /// The newest operation of an author that the Node said to have stored.
    pub(super) fn confirmed_of(&self, author: &PeerId) -> Option<SeqNum> {
        self.in_flight.confirmed().get(author).copied()
    }

    /// Something was stored here.
    pub(super) fn on_stored(&mut self, newest: Position) {
        self.newest = self.newest.max(newest);
    }

    /// What is in flight should have arrived by now: closes the session, and the heights of the next one tell.
    pub(super) fn verify(&mut self) {
        if self.is_live() {
            self.in_flight.set_overdue();
            self.end();
        }
    }

    /// Closes a session that is live, in good order, once all that was begun is sent: the next one begins with the Node's heights.
    /// A Node that is not live yet would take a close for an error.
    pub(super) fn end(&mut self) {
        if self.is_live() {
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

    /// Why the session should be ended before long; nothing unless it is live.
    pub(super) fn reasons(&self) -> impl Iterator<Item = Why> {
        let is_full = self.is_full() && self.newest > self.position;
        let waits = is_full || !self.waiting.is_empty() || self.is_lacking();
        let waits = waits.then_some(Why::Waits(self.in_flight.stalled()));
        let reasons = waits.into_iter().chain(self.authors.asking().map(Why::Gap)).chain(self.in_flight.reasons());
        reasons.filter(|_| self.is_live())
    }

    /// Whether no more operations may go out before the Node's heights are heard.
    fn is_full(&self) -> bool {
        self.unverified >= self.most_in_flight
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
                None if self.newest > self.position && !self.is_full() => Say::ReadAfter(self.position),
                None => Say::Wait,
            },
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
                Ok(Heard::Done)
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
        if page.is_empty() {
            self.position = self.newest;
        }
        for StoredOperation { position, operation } in page {
            if self.is_full() {
                return;
            }
            self.position = position;
            let author = operation.author();
            // What comes before it was not sent, and is not in this session.
            let follows = u64::from(operation.seq_num()) == self.count_of(&author);
            if follows && !self.waits(&author) && !self.in_flight.is_stuck(&author) {
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
                let in_flight = self.in_flight.newest_of(author).filter(|_| *author == self.own);
                return in_flight.map_or(Some(head.seq_num), |sent| sent.checked_sub(1)).map(|told| (*author, told));
            }
            let common = self.confirmed_of(author).map_or(head.seq_num, |theirs| theirs.min(head.seq_num));
            Some((*author, common.checked_sub(1)?))
        };
        let mut heights: Heights = self.heads.iter().filter_map(told).collect();
        heights.extend(self.authors.unwanted().map(|author| (author, SeqNum::MAX)));
        heights
    }

    /// The Node's heights: what of the operations in flight has arrived, and what it lacks.
    fn on_heights(&mut self, heights: Heights) {
        let here = |author: &PeerId| count(self.heads.get(author).map(|head| head.seq_num));
        self.authors.on_heights(|author| count(heights.get(author).copied()), here);
        // Perhaps the logs of those that are stuck are forked: their heads are compared in the next session.
        if self.in_flight.on_heights(heights)
            && let Compare::These(authors) = &mut self.compare
        {
            authors.extend(self.in_flight.stuck());
        }
        let counts = |(author, height): (&PeerId, &SeqNum)| (*author, count(Some(*height)));
        self.counts = self.in_flight.confirmed().iter().map(counts).collect();
        for (author, operations) in self.in_flight.counts() {
            self.unverified += operations;
            self.waiting.insert(author);
        }
        self.find_lacking();
        if self.saying == Saying::WaitForHeights {
            self.saying = Saying::Gathering;
        }
    }

    /// What the Node lacks of what is here, authors that it does not take last.
    fn find_lacking(&mut self) {
        let ours = self.heads.iter().filter(|(author, _)| !self.authors.is_forked(author) && !self.waits(author));
        let ours: Heights = ours.map(|(author, head)| (*author, head.seq_num)).collect();
        let theirs = |(author, count): (&PeerId, &u64)| Some((*author, SeqNum::try_from(count.checked_sub(1)?).ok()?));
        let theirs: Heights = self.counts.iter().filter_map(theirs).collect();
        let (stuck, others): (Vec<_>, Vec<_>) =
            lacking(&ours, &theirs).into_iter().partition(|range| self.in_flight.is_stuck(&range.author));
        self.lacking = others.into_iter().chain(stuck).collect();
    }

    /// The next range to read for this session, if there is room for it.
    fn next_range(&self) -> Option<Range> {
        let range = self.lacking.front()?;
        let mut room = self.most_in_flight.saturating_sub(self.unverified);
        if self.in_flight.is_stuck(&range.author) {
            // What is new of the others needs room.
            room = room.min((self.most_in_flight / 2).saturating_sub(self.unverified_stuck));
        }
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
        self.lacking.iter().any(|range| !self.in_flight.is_stuck(&range.author))
    }

    /// This operation goes out.
    fn take(&mut self, operation: Operation) {
        let author = operation.author();
        self.note_count(author, operation.seq_num());
        self.in_flight.on_sent(author, operation.seq_num());
        self.unverified += 1;
        self.unverified_stuck += usize::from(self.in_flight.is_stuck(&author));
        self.sent += 1;
        self.outgoing.push_back(operation);
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
