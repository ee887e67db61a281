//! The session against a Node that is modelled slowly and plainly: whatever the interleaving, whatever it loses.

use std::collections::HashMap;

use p2panda_core::VerifyingKey;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::identity::Identity;
use crate::ids::{LogId, OperationId};
use crate::limits::{BRIDGE_SAME_GAP, BRIDGE_STALLED_ROUNDS, PAGE_MAX_OPERATIONS};

const LIMIT: usize = 8;
/// What the modelled Node keeps of what it was sent before it stores it; more is lost.
const NODE_QUEUE: usize = 12;

fn log() -> LogId {
    LogId::from([9; 32])
}

fn author(number: u8) -> Identity {
    Identity::from_seed(&[number + 1; 32])
}

/// A log that grows.
#[derive(Default)]
struct Logs(BTreeMap<PeerId, Vec<Operation>>);

impl Logs {
    fn heights(&self) -> Heights {
        self.0.iter().map(|(author, log)| (*author, log.len() as SeqNum - 1)).collect()
    }

    fn heads(&self) -> Heads {
        self.0.iter().filter_map(|(author, log)| Some((*author, log.last()?.head()))).collect()
    }

    fn sign(&self, identity: &Identity, payload: &[u8]) -> Operation {
        let head = self.heads().get(&identity.peer_id()).copied();
        Operation::sign(identity, log(), head, 1, payload).unwrap()
    }

    /// Only what follows what is there.
    fn add(&mut self, operation: Operation) -> bool {
        let here = self.0.get(&operation.author()).map_or(0, Vec::len);
        let follows = operation.seq_num() as usize == here;
        if follows {
            self.0.entry(operation.author()).or_default().push(operation);
        }
        follows
    }

    fn ids(&self) -> BTreeMap<PeerId, Vec<OperationId>> {
        self.0.iter().map(|(author, log)| (*author, log.iter().map(Operation::id).collect())).collect()
    }
}

/// Our side: the store and the driver around the machine.
struct Ours {
    logs: Logs,
    order: Vec<Operation>,
    session: Session,
}

impl Ours {
    fn new() -> Self {
        Self { logs: Logs::default(), order: Vec::new(), session: Session::new(author(0).peer_id(), LIMIT) }
    }

    fn store(&mut self, operation: Operation) {
        if self.logs.add(operation.clone()) {
            self.order.push(operation);
        }
    }

    fn begin(&mut self) {
        let position = self.order.len() as Position;
        self.session.begin(self.logs.heads(), position);
    }

    /// The next message, `None` to wait.
    fn say(&mut self, page: usize) -> Option<Message> {
        let stored = |operation: &Operation| StoredOperation { position: 0, operation: operation.clone() };
        loop {
            self.session.on_stored(self.order.len() as Position);
            match self.session.say() {
                Say::Send(message) => return Some(message),
                Say::Wait => return None,
                Say::ReadRange(range) => {
                    let log = &self.logs.0[&range.author];
                    let range = range.first as usize..=range.last as usize;
                    self.session.on_range(log[range].iter().take(page).map(stored).collect());
                }
                Say::ReadAfter(after) => {
                    let newer = (1..).zip(&self.order).skip(after as usize).take(page.min(PAGE_MAX_OPERATIONS));
                    let newer =
                        newer.map(|(position, operation)| StoredOperation { position, operation: operation.clone() });
                    self.session.on_newer(newer.collect());
                }
            }
        }
    }

    /// What the session waits for, but for time.
    fn waits(&self) -> Option<Why> {
        self.session.reasons().find(|why| matches!(why, Why::Waits(_) | Why::Gap(_)))
    }

    fn hear(&mut self, message: Message) {
        if let Heard::Operation(raw) = self.session.hear(message).unwrap() {
            let operation = decoded(raw);
            self.session.on_theirs(operation.author(), operation.seq_num());
            self.store(operation);
        }
    }
}

fn decoded(raw: RawOperation) -> Operation {
    let (header, body) = raw.into_parts();
    Operation::decode(log(), header, body.unwrap()).unwrap()
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Phase {
    Heights,
    Announcement,
    Operations,
    Live,
}

/// A Node, as p2panda 0.7.1 behaves: it reads nothing while it sends logs, stores later, loses what does not fit its queue,
/// and after that takes nothing in until the next session.
struct Node {
    logs: Logs,
    queue: VecDeque<Operation>,
    deaf: bool,
    phase: Phase,
    /// Heights as it told them.
    told: Heights,
    sending: VecDeque<Message>,
    /// New ones, which wait until both sides are done.
    live: VecDeque<Message>,
    /// In this session: what we sent it, and what it sent.
    heard: HashMap<OperationId, usize>,
    said: BTreeSet<OperationId>,
    done: bool,
    closed: bool,
}

impl Node {
    fn new() -> Self {
        Self {
            logs: Logs::default(),
            queue: VecDeque::new(),
            deaf: false,
            phase: Phase::Heights,
            told: Heights::new(),
            sending: VecDeque::new(),
            live: VecDeque::new(),
            heard: HashMap::new(),
            said: BTreeSet::new(),
            done: false,
            closed: false,
        }
    }

    fn begin(&mut self) {
        self.phase = Phase::Heights;
        self.told = self.logs.heights();
        self.sending = VecDeque::from([Message::Have(self.told.clone())]);
        self.live.clear();
        self.heard.clear();
        self.said.clear();
        (self.done, self.closed, self.deaf) = (false, false, false);
    }

    fn publish(&mut self, identity: &Identity, payload: &[u8]) {
        let operation = self.logs.sign(identity, payload);
        self.live.push_back(Message::Live(RawOperation::from(&operation)));
        self.logs.add(operation);
    }

    fn say(&mut self) -> Option<Message> {
        let is_live = self.done && self.phase == Phase::Live;
        let live = if is_live { self.live.pop_front() } else { None };
        let message = self.sending.pop_front().or(live)?;
        match &message {
            Message::Operation(raw) | Message::Live(raw) => _ = self.said.insert(decoded(raw.clone()).id()),
            Message::Done => self.done = true,
            Message::Have(_) | Message::PreSync { .. } | Message::Close => {}
        }
        Some(message)
    }

    fn hear(&mut self, message: Message) {
        match (self.phase, message) {
            (Phase::Heights, Message::Have(theirs)) => {
                let missing: Vec<_> = lacking(&self.told, &theirs)
                    .into_iter()
                    .flat_map(|range| &self.logs.0[&range.author][range.first as usize..=range.last as usize])
                    .map(|operation| Message::Operation(RawOperation::from(operation)))
                    .collect();
                if !missing.is_empty() {
                    self.sending.push_back(Message::PreSync { operations: missing.len() as u32, bytes: 1 });
                }
                self.sending.extend(missing);
                self.sending.push_back(Message::Done);
                self.phase = Phase::Announcement;
            }
            (Phase::Announcement, Message::PreSync { operations, .. }) => {
                assert!(operations > 0);
                self.phase = Phase::Operations;
            }
            (Phase::Announcement | Phase::Operations, Message::Done) => self.phase = Phase::Live,
            (Phase::Operations, Message::Operation(raw)) => self.take(&decoded(raw)),
            (Phase::Live, Message::Live(raw)) => self.take(&decoded(raw)),
            (Phase::Live, Message::Close) => {
                assert!(self.done, "closed before the Node was done");
                self.closed = true;
            }
            (phase, message) => panic!("{message:?} in {phase:?}"),
        }
    }

    fn take(&mut self, operation: &Operation) {
        assert!(!self.said.contains(&operation.id()), "sent back to whom it came from");
        let times = self.heard.entry(operation.id()).or_default();
        *times += 1;
        assert_eq!(*times, 1, "sent twice in one session");
        self.deaf |= self.queue.len() >= NODE_QUEUE;
        if !self.deaf {
            // It would be refused, and not be taken later either.
            let author = operation.author();
            let waiting = self.queue.iter().filter(|waiting| waiting.author() == author).map(Operation::seq_num).max();
            let stored = self.logs.heights().get(&author).copied();
            let expected = waiting.max(stored).map_or(0, |newest| newest + 1);
            assert!(operation.seq_num() <= expected, "{} sent, {expected} expected", operation.seq_num());
            self.queue.push_back(operation.clone());
        }
    }

    fn digest(&mut self) -> bool {
        let Some(operation) = self.queue.pop_front() else { return false };
        self.logs.add(operation);
        true
    }
}

struct World {
    ours: Ours,
    node: Node,
    to_node: VecDeque<Message>,
    to_us: VecDeque<Message>,
    sessions: usize,
    /// The Node is killed between this session and the next, and nobody notices.
    restarts: bool,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            ours: Ours::new(),
            node: Node::new(),
            to_node: VecDeque::new(),
            to_us: VecDeque::new(),
            sessions: 0,
            restarts: false,
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.sessions += 1;
        self.to_node.clear();
        self.to_us.clear();
        if std::mem::take(&mut self.restarts) {
            self.node.queue.clear();
        }
        self.ours.begin();
        self.node.begin();
    }

    /// One step of what goes on by itself; false when there was nothing to do.
    fn step(&mut self, kind: u8, page: usize) -> bool {
        let did = match kind {
            0 => self.ours.say(page).map(|message| self.to_node.push_back(message)).is_some(),
            1 => self.node.say().map(|message| self.to_us.push_back(message)).is_some(),
            // While it sends its log it does not read.
            2 if self.node.phase == Phase::Live && !self.node.done => false,
            2 => self.to_node.pop_front().map(|message| self.node.hear(message)).is_some(),
            3 => self.to_us.pop_front().map(|message| self.ours.hear(message)).is_some(),
            _ => self.node.digest(),
        };
        if self.node.closed {
            assert!(self.ours.session.is_closing());
            self.connect();
        }
        did
    }

    fn settle(&mut self) {
        for _ in 0..200 {
            while (0..5).any(|kind| self.step(kind, 3)) {}
            if self.ours.logs.ids() == self.node.logs.ids() && self.ours.session.in_flight.counts().next().is_none() {
                return;
            }
            // The driver's timers.
            match self.ours.waits() {
                Some(_) => self.ours.session.end(),
                None => self.ours.session.verify(),
            }
        }
        panic!("{} here, {} there", self.ours.logs.0.len(), self.node.logs.0.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_both_end_with_everything(seed: u64) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut world = World::new();
        // From a Node that stores at once to one that hardly does.
        let digestion = random.random_range(0..6);
        for step in 0..random.random_range(10..400u32) {
            let payload = step.to_be_bytes();
            match random.random_range(0..20) {
                0..=2 => {
                    let operation = world.ours.logs.sign(&author(random.random_range(0..3)), &payload);
                    world.ours.store(operation);
                }
                3 | 4 => world.node.publish(&author(random.random_range(3..5)), &payload),
                5 if random.random_bool(0.1) => {
                    world.ours.session.on_lost();
                    world.connect();
                }
                6 if random.random_bool(0.2) => world.ours.session.verify(),
                7 if random.random_bool(0.1) => world.restarts = true,
                kind => {
                    let kind = kind % 5;
                    if kind != 4 || random.random_range(0..6) < digestion {
                        world.step(kind, random.random_range(1..5));
                    }
                }
            }
        }
        world.settle();
        let sessions = world.sessions;
        world.settle();
        prop_assert_eq!(world.sessions, sessions, "nothing to do, and still a new session");
    }

    #[test]
    fn what_is_lacking_is_what_p2panda_says(ours: Vec<(u8, u32)>, theirs: Vec<(u8, u32)>) {
        let heights = |heights: &[(u8, u32)]| -> Heights {
            heights.iter().map(|(number, height)| (author(number % 4).peer_id(), *height)).collect()
        };
        let (ours, theirs) = (heights(&ours), heights(&theirs));
        let upstream = |heights: &Heights| -> BTreeMap<VerifyingKey, BTreeMap<u8, u32>> {
            heights.iter().map(|(author, height)| (author.verifying_key().unwrap(), [(7, *height)].into())).collect()
        };
        let expected: Vec<_> = p2panda_core::logs::compare(&upstream(&ours), &upstream(&theirs))
            .into_iter()
            .map(|(author, logs)| {
                let (after, until) = logs[&7];
                Range { author: author.into(), first: after.map_or(0, |after| after + 1), last: until.unwrap() }
            })
            .collect();
        prop_assert_eq!(lacking(&ours, &theirs), expected);
    }
}

/// A session that has greeted, with these operations here, and the Node's heights heard.
fn met(ours: &mut Ours, theirs: Heights) -> Heights {
    ours.begin();
    let Some(Message::Have(told)) = ours.say(9) else { panic!("heights come first") };
    ours.hear(Message::Have(theirs));
    told
}

fn ours_with(count: usize) -> Ours {
    let mut ours = Ours::new();
    for _ in 0..count {
        let operation = ours.logs.sign(&author(0), b"x");
        ours.store(operation);
    }
    ours
}

#[test]
fn heads_are_compared_once_after_connecting_by_asking_for_them_again() {
    let mut ours = ours_with(3);
    let me = author(0).peer_id();
    assert_eq!(met(&mut ours, [(me, 2)].into()), [(me, 1)].into(), "the Node sends its head at height 2");
    ours.hear(Message::Done);
    assert_eq!(met(&mut ours, [(me, 2)].into()), [(me, 2)].into(), "in good order: no need");
    ours.session.on_lost();
    assert_eq!(met(&mut ours, [(me, 0)].into()), [(me, 1)].into());
    ours.session.on_lost();
    assert_eq!(met(&mut ours, [(me, 0)].into()), Heights::new(), "the Node is at height 0: it sends its first");
}

#[test]
fn nothing_is_wanted_of_an_author_whose_log_cannot_be_followed() {
    let mut ours = ours_with(1);
    ours.session.authors.leave_out(author(7).peer_id()).unwrap();
    let told = met(&mut ours, [(author(7).peer_id(), 5)].into());
    assert_eq!(told.get(&author(7).peer_id()), Some(&SeqNum::MAX));
}

/// What is sent until there is nothing more to say, the last message included.
fn said(ours: &mut Ours) -> Vec<Message> {
    std::iter::from_fn(|| ours.say(9)).collect()
}

fn operations(messages: &[Message]) -> usize {
    messages.iter().filter(|message| matches!(message, Message::Operation(_) | Message::Live(_))).count()
}

#[test]
fn a_node_that_stores_nothing_is_not_flooded() {
    let mut ours = ours_with(10 * LIMIT);
    let mut sent = 0;
    for round in 0..BRIDGE_STALLED_ROUNDS {
        met(&mut ours, Heights::new());
        ours.hear(Message::Done);
        sent += operations(&said(&mut ours));
        assert_eq!(ours.waits(), Some(Why::Waits(round)), "asked for its heights later and later");
        ours.session.end();
        assert_eq!(said(&mut ours), [Message::Close]);
    }
    assert_eq!(sent, LIMIT, "and what is in flight is not sent again, until it is taken for lost");
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    assert_eq!(operations(&said(&mut ours)), LIMIT / 2, "the others need room");
    assert!(ours.session.reasons().eq([Why::Stuck(0)]));
}

#[test]
fn nothing_follows_what_may_be_lost() {
    let mut ours = ours_with(2);
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    assert_eq!(operations(&said(&mut ours)), 2);
    ours.session.end();
    said(&mut ours);
    let another = ours.logs.sign(&author(1), b"another author's");
    let next = ours.logs.sign(&author(0), b"the next");
    [another, next].into_iter().for_each(|operation| ours.store(operation));
    // The Node has stored none of them: if it never will, a third one would be refused.
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    let later = ours.logs.sign(&author(0), b"live");
    ours.store(later);
    assert_eq!(operations(&said(&mut ours)), 1, "only the other author's");
    assert_eq!(ours.waits(), Some(Why::Waits(1)));
    ours.session.end();
    said(&mut ours);
    met(&mut ours, [(author(0).peer_id(), 1), (author(1).peer_id(), 0)].into());
    ours.hear(Message::Done);
    assert_eq!(operations(&said(&mut ours)), 2);
}

#[test]
fn a_node_that_passes_on_what_it_may_lack_the_beginning_of_is_asked_for_its_heights() {
    let mut ours = ours_with(0);
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    said(&mut ours);
    let mut bobs = Logs::default();
    for _ in 0..3 {
        let operation = bobs.sign(&author(1), b"x");
        bobs.add(operation);
    }
    let log = &bobs.0[&author(1).peer_id()];
    ours.hear(Message::Live((&log[0]).into()));
    assert_eq!(ours.waits(), None);
    // The second came here from a peer, and the Node passes on the third.
    ours.store(log[1].clone());
    ours.hear(Message::Live((&log[2]).into()));
    assert_eq!(ours.waits(), Some(Why::Gap(0)));
}

#[test]
fn a_session_is_not_ended_before_the_node_is_done() {
    let mut ours = ours_with(5 * LIMIT);
    met(&mut ours, Heights::new());
    assert_eq!(operations(&said(&mut ours)), LIMIT);
    assert_eq!(ours.session.reasons().next(), None, "although the Node lacks more");
    ours.session.end();
    ours.session.verify();
    assert_eq!(said(&mut ours), []);
    ours.hear(Message::Done);
    assert_eq!(ours.waits(), Some(Why::Waits(0)));
    ours.session.end();
    assert_eq!(said(&mut ours), [Message::Close]);
}

#[test]
fn the_own_head_is_compared_whenever_some_of_the_own_log_was_in_flight() {
    let mut ours = ours_with(3);
    let me = author(0).peer_id();
    for (theirs, told) in [(0, 1), (2, 1), (2, 2)] {
        assert_eq!(met(&mut ours, [(me, theirs)].into()), [(me, told)].into());
        ours.hear(Message::Done);
        said(&mut ours);
        ours.session.verify();
        said(&mut ours);
    }
}

#[test]
fn no_more_is_in_flight_than_may_be_and_what_is_stuck_leaves_room_for_the_others() {
    let mut ours = ours_with(10 * LIMIT);
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    said(&mut ours);
    ours.session.verify();
    said(&mut ours);
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    assert_eq!(operations(&said(&mut ours)), LIMIT / 2, "offered again");
    for number in 0..2 {
        for _ in 0..3 * LIMIT {
            let operation = ours.logs.sign(&author(number), b"live");
            ours.store(operation);
        }
    }
    let live = said(&mut ours);
    assert_eq!(operations(&live), LIMIT - LIMIT / 2);
    for message in live {
        let Message::Live(raw) = message else { panic!("{message:?}") };
        assert_eq!(decoded(raw).author(), author(1).peer_id(), "nothing more of who is stuck");
    }
    assert_eq!(ours.waits(), Some(Why::Waits(0)));
}

#[test]
fn the_more_often_all_has_arrived_the_later_it_is_asked_for_until_something_is_lost() {
    let mut ours = ours_with(0);
    let me = author(0).peer_id();
    let mut theirs = Heights::new();
    for round in 0..5 {
        met(&mut ours, theirs.clone());
        ours.hear(Message::Done);
        let operation = ours.logs.sign(&author(0), b"x");
        ours.store(operation);
        said(&mut ours);
        let mut reasons: Vec<_> = ours.session.reasons().collect();
        assert_eq!(reasons.pop(), Some(Why::Verify(round)));
        ours.session.verify();
        said(&mut ours);
        theirs = [(me, round)].into();
    }
    ours.session.on_lost();
    met(&mut ours, [(me, 3)].into());
    ours.hear(Message::Done);
    said(&mut ours);
    assert!(ours.session.reasons().eq([Why::Verify(0)]));
}

#[test]
fn what_heights_promise_and_never_comes_is_left_out() {
    let mut ours = ours_with(0);
    let bob = author(1).peer_id();
    for _ in 0..BRIDGE_SAME_GAP {
        assert_eq!(met(&mut ours, [(bob, 5)].into()), Heights::new());
        ours.session.on_all_here(|_| None);
        ours.hear(Message::Done);
        said(&mut ours);
        ours.session.end();
        said(&mut ours);
    }
    assert_eq!(met(&mut ours, [(bob, 5)].into()), [(bob, SeqNum::MAX)].into());
}

#[test]
fn a_log_that_is_not_wanted_is_offered_and_a_forked_one_is_not() {
    for (forked, sent) in [(false, 3), (true, 0)] {
        let mut ours = ours_with(3);
        let me = author(0).peer_id();
        match forked {
            true => ours.session.authors.on_fork(me).unwrap(),
            false => _ = ours.session.authors.leave_out(me).unwrap(),
        }
        assert_eq!(met(&mut ours, Heights::new()), [(me, SeqNum::MAX)].into());
        assert_eq!(operations(&said(&mut ours)), sent);
    }
}

#[test]
fn authors_that_a_node_makes_up_take_no_memory_without_end() {
    let mut ours = ours_with(0);
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    for number in 0..10_000_u32 {
        let mut seed = [3; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        ours.session.on_theirs(Identity::from_seed(&seed).peer_id(), 9);
    }
    assert_eq!(ours.session.counts.len(), SESSION_MAX_AUTHORS);
}

#[test]
fn a_node_that_speaks_out_of_turn_is_told_apart() {
    let operation = || RawOperation::from(&Logs::default().sign(&author(0), b"x"));
    let out_of_turn: [(&[Message], Message); 8] = [
        (&[], Message::Done),
        (&[], Message::Live(operation())),
        (&[], Message::Close),
        (&[Message::Have(Heights::new())], Message::Have(Heights::new())),
        (&[Message::Have(Heights::new())], Message::Operation(operation())),
        (&[Message::Have(Heights::new())], Message::Live(operation())),
        (&[Message::Have(Heights::new()), Message::Done], Message::Operation(operation())),
        (&[Message::Have(Heights::new()), Message::Done], Message::PreSync { operations: 1, bytes: 1 }),
    ];
    for (before, message) in out_of_turn {
        let mut session = Session::new(author(0).peer_id(), LIMIT);
        session.begin(Heads::new(), 0);
        before.iter().for_each(|message| _ = session.hear(message.clone()).unwrap());
        assert!(session.hear(message.clone()).is_err(), "{message:?} after {before:?}");
    }
}
