//! What to send next to one peer of one document, and on which stream.
//!
//! Per author, the operations that the peer has form a prefix of the log, so a count says everything. An author is in one of
//! two lanes. `Live`: the peer has all we have, and new operations are pushed on the document stream as they are stored.
//! `CatchUp`: the peer lags, and pages are read from the store onto the catch-up stream, until everything was sent **and
//! acknowledged**; only then the author goes back to `Live`, so operations of one author never travel on two streams at once
//! and always arrive in order.
//!
//! Drive it with what happens (`on_*`), ask [`Delivery::takes_live`] for each newly stored operation in the order of
//! positions and [`Delivery::take_page`] for the catch-up stream. Nothing is sent before the peer's heads are known.

use std::collections::BTreeMap;

use super::wire::Refusal;
use crate::ids::PeerId;
use crate::limits::{CHUNK_BYTES, NACKS_PER_SESSION, PAGE_MAX_OPERATIONS, SESSION_MAX_AUTHORS};
use crate::operation::{Operation, SeqNum};
use crate::store::Heads;

/// A run of one author's operations, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Whose.
    pub author: PeerId,
    /// First sequence number.
    pub first: SeqNum,
    /// Last sequence number.
    pub last: SeqNum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Live,
    CatchUp,
    /// The peer wants nothing more of this author.
    Closed,
}

/// Counts of operations, so that 0 means none.
#[derive(Debug)]
struct Author {
    here: u64,
    sent: u64,
    acknowledged: u64,
    announced: u64,
    lane: Lane,
}

impl Author {
    fn choose_lane(&mut self) {
        self.lane = match self.lane {
            Lane::Closed => Lane::Closed,
            Lane::Live if self.sent >= self.here => Lane::Live,
            Lane::CatchUp if self.sent >= self.here && self.acknowledged >= self.sent => Lane::Live,
            Lane::Live | Lane::CatchUp => Lane::CatchUp,
        };
    }
}

/// The delivery state for one peer and one document. Lives as long as their session.
#[derive(Debug, Default)]
pub struct Delivery {
    authors: BTreeMap<PeerId, Author>,
    started: bool,
    refusals: u32,
    last_paged: Option<PeerId>,
}

fn count(seq_num: SeqNum) -> u64 {
    u64::from(seq_num) + 1
}

impl Delivery {
    /// A session that starts with these heads on our side.
    pub fn new(heads: &Heads) -> Self {
        let mut delivery = Self::default();
        for (author, head) in heads {
            delivery.author(*author).here = count(head.seq_num);
        }
        delivery
    }

    /// The peer has this author's operations up to and including `seq_num`: by its heads, or because it sent them to us.
    /// Forgotten when it speaks of too many authors: it may then be sent what it has.
    pub fn on_peer_has(&mut self, author: PeerId, seq_num: SeqNum) {
        if self.authors.len() >= SESSION_MAX_AUTHORS && !self.authors.contains_key(&author) {
            return;
        }
        let author = self.author(author);
        author.announced = author.announced.max(count(seq_num));
        author.acknowledged = author.acknowledged.max(count(seq_num));
        author.sent = author.sent.max(author.acknowledged);
        author.choose_lane();
    }

    /// All heads of the peer are in: what it lacks goes to catch-up, and sending may begin.
    pub fn on_heads_complete(&mut self) {
        self.started = true;
        self.authors.values_mut().for_each(Author::choose_lane);
    }

    /// The peer acknowledged an author's operations up to and including `seq_num`. True when that is news; never for an
    /// author of whom nothing was sent.
    pub fn on_acknowledged(&mut self, author: PeerId, seq_num: SeqNum) -> bool {
        let Some(state) = self.authors.get(&author) else { return false };
        let news = state.acknowledged < count(seq_num);
        // Acknowledging again what was refused since is no progress.
        if state.announced < count(seq_num) {
            self.refusals = 0;
        }
        if news {
            self.on_peer_has(author, seq_num);
        }
        news
    }

    /// The peer refused an operation and wants `expected` next. False when it refused too often without any progress.
    pub fn on_refused(&mut self, author: PeerId, expected: SeqNum, refusal: Refusal) -> bool {
        self.refusals += 1;
        match (refusal, self.authors.get_mut(&author)) {
            // Nothing of this author was sent.
            (_, None) => {}
            (Refusal::Closed, Some(author)) => author.lane = Lane::Closed,
            (Refusal::Gap | Refusal::Damaged, Some(author)) => {
                author.sent = author.sent.min(u64::from(expected));
                author.acknowledged = author.acknowledged.min(author.sent);
                author.choose_lane();
            }
        }
        refusal == Refusal::Closed || self.refusals <= NACKS_PER_SESSION
    }

    /// Session and store lost step (the session was slower than the cache of recent operations): these are our heads now.
    pub fn on_resync(&mut self, heads: &Heads) {
        for (author, head) in heads {
            let author = self.author(*author);
            author.here = author.here.max(count(head.seq_num));
            author.choose_lane();
        }
    }

    /// An operation was stored here: true when it is to be pushed to the peer now, on the document stream.
    ///
    /// To be asked in the order of positions. False when the peer has it, or gets it by catch-up.
    pub fn takes_live(&mut self, operation: &Operation) -> bool {
        let started = self.started;
        let author = self.author(operation.author());
        let number = count(operation.seq_num());
        author.here = author.here.max(number);
        let in_step = author.lane == Lane::Live && author.sent + 1 == number;
        if started && in_step && operation.size() <= CHUNK_BYTES {
            author.sent = number;
            return true;
        }
        author.choose_lane();
        false
    }

    /// What to read from the store and put onto the catch-up stream next, at most a page; authors take turns.
    /// It counts as sent from now on; a refusal that comes in meanwhile is not forgotten.
    pub fn take_page(&mut self) -> Option<Range> {
        if !self.started {
            return None;
        }
        let after = self.last_paged.and_then(|last| self.behind().find(|(author, _)| **author > last));
        let (author, state) = after.or_else(|| self.behind().next())?;
        let last = state.here.min(state.sent + PAGE_MAX_OPERATIONS as u64) - 1;
        // Counts are at most 2³², so these fit.
        let range = Range { author: *author, first: state.sent as SeqNum, last: last as SeqNum };
        self.last_paged = Some(range.author);
        self.author(range.author).sent = u64::from(range.last) + 1;
        Some(range)
    }

    /// The page that was taken last ended early, with `last`: the rest is to be taken again.
    pub fn on_page_cut(&mut self, author: PeerId, last: SeqNum) {
        let author = self.author(author);
        author.sent = author.sent.min(count(last)).max(author.acknowledged);
        author.choose_lane();
    }

    /// True when there is a page to take.
    pub fn has_page(&self) -> bool {
        self.started && self.behind().next().is_some()
    }

    /// True while the catch-up stream is needed: something is unsent in that lane, or sent and not acknowledged.
    pub fn is_catching_up(&self) -> bool {
        self.authors.values().any(|author| author.lane == Lane::CatchUp)
    }

    /// How many operations of each author the peer says there are.
    pub fn announced(&self) -> impl Iterator<Item = (&PeerId, u64)> {
        self.authors.iter().map(|(author, state)| (author, state.announced))
    }

    /// How many operations of one author the peer says there are, `None` before its heads are complete.
    pub fn announced_of(&self, author: &PeerId) -> Option<u64> {
        self.started.then(|| self.authors.get(author).map_or(0, |author| author.announced))
    }

    /// Operations that are here and that the peer has not acknowledged.
    pub fn unacknowledged(&self) -> u64 {
        let open = self.authors.values().filter(|author| author.lane != Lane::Closed);
        open.map(|author| author.here.saturating_sub(author.acknowledged)).sum()
    }

    fn author(&mut self, author: PeerId) -> &mut Author {
        self.authors.entry(author).or_insert(Author {
            here: 0,
            sent: 0,
            acknowledged: 0,
            announced: 0,
            lane: Lane::Live,
        })
    }

    fn behind(&self) -> impl Iterator<Item = (&PeerId, &Author)> {
        self.authors.iter().filter(|(_, author)| author.lane == Lane::CatchUp && author.sent < author.here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::ids::LogId;
    use crate::operation::Head;
    use proptest::prelude::*;

    fn log_of(seed: u8, length: usize) -> Vec<Operation> {
        let identity = Identity::from_seed(&[seed; 32]);
        let mut log: Vec<Operation> = Vec::new();
        for _ in 0..length {
            let head = log.last().map(Operation::head);
            log.push(Operation::sign(&identity, LogId::from([0; 32]), head, 0, b"x").unwrap());
        }
        log
    }

    fn heads(logs: &[Vec<Operation>], stored: &[usize]) -> Heads {
        let of = |(log, stored): (&Vec<Operation>, &usize)| stored.checked_sub(1).map(|last| log[last].head());
        logs.iter().zip(stored).filter_map(|pair| of(pair).map(|head: Head| (pair.0[0].author(), head))).collect()
    }

    #[test]
    fn nothing_is_sent_before_the_peer_said_what_it_has() {
        let logs = [log_of(1, 2)];
        let mut delivery = Delivery::new(&heads(&logs, &[1]));
        assert_eq!(delivery.take_page(), None);
        assert!(!delivery.takes_live(&logs[0][1]));
        delivery.on_heads_complete();
        let author = logs[0][0].author();
        assert_eq!(delivery.take_page(), Some(Range { author, first: 0, last: 1 }));
    }

    #[test]
    fn an_author_goes_live_only_after_its_catch_up_was_acknowledged() {
        let logs = [log_of(1, 3)];
        let author = logs[0][0].author();
        let mut delivery = Delivery::new(&heads(&logs, &[1]));
        delivery.on_heads_complete();
        assert_eq!(delivery.take_page(), Some(Range { author, first: 0, last: 0 }));
        assert!(!delivery.takes_live(&logs[0][1]), "the first is still on the other stream");
        assert_eq!(delivery.take_page(), Some(Range { author, first: 1, last: 1 }));
        assert!(delivery.is_catching_up());
        assert!(delivery.on_acknowledged(author, 1));
        assert!(!delivery.is_catching_up());
        assert!(delivery.takes_live(&logs[0][2]));
    }

    #[test]
    fn what_the_peer_sent_us_is_not_sent_back() {
        let logs = [log_of(1, 1)];
        let mut delivery = Delivery::new(&Heads::new());
        delivery.on_heads_complete();
        delivery.on_peer_has(logs[0][0].author(), 0);
        assert_eq!(delivery.announced().collect::<Vec<_>>(), [(&logs[0][0].author(), 1)]);
        assert!(!delivery.takes_live(&logs[0][0]));
        assert_eq!(delivery.take_page(), None);
    }

    #[test]
    fn a_peer_that_refuses_for_ever_is_given_up() {
        let logs = [log_of(1, 1)];
        let author = logs[0][0].author();
        let mut delivery = Delivery::new(&heads(&logs, &[1]));
        delivery.on_heads_complete();
        let refused = (0..=NACKS_PER_SESSION).map(|_| delivery.on_refused(author, 0, Refusal::Damaged));
        assert_eq!(refused.filter(|forgiven| *forgiven).count(), NACKS_PER_SESSION as usize);
    }

    fn stranger(number: usize) -> PeerId {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&number.to_be_bytes());
        Identity::from_seed(&seed).peer_id()
    }

    #[test]
    fn a_peer_that_names_authors_without_end_is_remembered_a_bounded_number_of_them() {
        let mut delivery = Delivery::new(&Heads::new());
        delivery.on_heads_complete();
        for number in 0..SESSION_MAX_AUTHORS {
            assert!(!delivery.on_acknowledged(stranger(number), 5));
            assert!(delivery.on_refused(stranger(number), 5, Refusal::Closed));
        }
        assert_eq!(delivery.authors.len(), 0);
        for number in 0..SESSION_MAX_AUTHORS + 100 {
            delivery.on_peer_has(stranger(number), 0);
        }
        assert_eq!(delivery.authors.len(), SESSION_MAX_AUTHORS);
    }

    #[test]
    fn acknowledging_again_what_was_refused_since_is_no_progress() {
        let logs = [log_of(1, 1)];
        let author = logs[0][0].author();
        let mut delivery = Delivery::new(&heads(&logs, &[1]));
        delivery.on_heads_complete();
        let mut rounds = 0;
        while delivery.on_refused(author, 0, Refusal::Damaged) && rounds < 100 {
            delivery.on_acknowledged(author, 0);
            rounds += 1;
        }
        assert_eq!(rounds, NACKS_PER_SESSION + 1, "the first was progress");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Store(usize),
        Page(u32),
        DeliverLive,
        DeliverPage,
        Acknowledge,
        Refuse(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0usize..3).prop_map(Step::Store),
            3 => (0u32..4).prop_map(Step::Page),
            3 => Just(Step::DeliverLive),
            3 => Just(Step::DeliverPage),
            3 => Just(Step::Acknowledge),
            1 => (0usize..3).prop_map(Step::Refuse),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// A peer that takes what fits its logs, and two streams, each in order, that run at their own pace.
    struct Peer {
        stored: [usize; 3],
        live: std::collections::VecDeque<(usize, usize)>,
        pages: std::collections::VecDeque<(usize, usize)>,
    }

    impl Peer {
        fn take(&mut self, from: Option<(usize, usize)>, gaps_are_allowed: bool) {
            let Some((author, number)) = from else { return };
            assert!(gaps_are_allowed || number <= self.stored[author], "author {author} has a gap before {number}");
            if number == self.stored[author] {
                self.stored[author] += 1;
            }
        }
    }

    proptest! {
        #[test]
        fn in_any_interleaving_everything_arrives_in_order(
            here in prop::array::uniform3(0usize..6),
            there in prop::array::uniform3(0usize..6),
            steps in steps(),
        ) {
            let logs: Vec<_> = (1..=3).map(|seed| log_of(seed, 40)).collect();
            let mut here = here;
            let mut peer = Peer { stored: there, live: Default::default(), pages: Default::default() };
            let mut delivery = Delivery::new(&heads(&logs, &here));
            let mut refused = false;
            for (author, head) in heads(&logs, &there) {
                delivery.on_peer_has(author, head.seq_num);
            }
            delivery.on_heads_complete();
            let settle = std::iter::repeat_n([Step::Page(3), Step::DeliverLive, Step::DeliverPage, Step::Acknowledge], 400);
            for step in steps.into_iter().chain(settle.flatten()) {
                match step {
                    Step::Store(author) if here[author] < 40 => {
                        let operation = &logs[author][here[author]];
                        here[author] += 1;
                        if delivery.takes_live(operation) {
                            peer.live.push_back((author, here[author] - 1));
                        }
                    }
                    Step::Page(cut) => if let Some(range) = delivery.take_page() {
                        let author = logs.iter().position(|log| log[0].author() == range.author).unwrap();
                        let last = range.last.min(range.first + cut);
                        peer.pages.extend((range.first..=last).map(|number| (author, number as usize)));
                        delivery.on_page_cut(range.author, last);
                    },
                    Step::DeliverLive => { let next = peer.live.pop_front(); peer.take(next, refused) }
                    Step::DeliverPage => { let next = peer.pages.pop_front(); peer.take(next, refused) }
                    Step::Acknowledge => for (author, log) in logs.iter().enumerate() {
                        if let Some(last) = peer.stored[author].checked_sub(1) {
                            delivery.on_acknowledged(log[0].author(), last as u32);
                        }
                    },
                    Step::Refuse(author) => {
                        refused = true;
                        let expected = peer.stored[author].min(here[author]) as u32;
                        delivery.on_refused(logs[author][0].author(), expected, Refusal::Damaged);
                    }
                    Step::Store(_) => {}
                }
            }
            for author in 0..3 {
                prop_assert!(peer.stored[author] >= here[author], "author {author} misses operations");
            }
            prop_assert!(!delivery.is_catching_up());
            prop_assert_eq!(delivery.unacknowledged(), 0);
        }
    }
}
