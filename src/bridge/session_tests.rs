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

#[path = "session_scenes_tests.rs"]
mod scenes;

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
