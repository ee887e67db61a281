//! What a process told, and whether it is what was promised.

use std::collections::{BTreeMap, VecDeque};

use panda_network_interop::protocol::{Event, Head, Operation, Payload, SessionEnd};

/// Failures that a message shows; there may be thousands.
const FAILURES_SHOWN: usize = 5;

/// Everything that one run of a process told.
#[derive(Default)]
pub struct Seen {
    /// Key and first address.
    pub ready: Option<(String, String)>,
    /// Topic and ticket.
    pub opened: Vec<(String, Option<String>)>,
    /// Its own operations, in order.
    pub own: Vec<Operation>,
    /// Operations of others, in the order in which the application got them.
    pub received: Vec<Operation>,
    /// Answers, with their topics.
    pub heads: Vec<(String, Vec<Head>)>,
    /// Topic, remote, end.
    pub sessions: Vec<(String, String, Option<SessionEnd>)>,
    /// What was refused.
    pub failures: VecDeque<String>,
    /// What it told for people, last.
    pub note: String,
    /// It said goodbye.
    pub stopped: bool,
}

impl Seen {
    /// Adds what it told now.
    pub fn note(&mut self, event: Event) {
        match event {
            Event::Ready { key, addresses } => self.ready = Some((key, addresses.first().cloned().unwrap_or_default())),
            Event::Opened { topic, ticket } => self.opened.push((topic, ticket)),
            Event::Published(operation) => self.own.push(operation),
            Event::Received(operation) => self.received.push(operation),
            Event::Heads { topic, heads } => self.heads.push((topic, heads)),
            Event::Session { topic, remote, end } => self.sessions.push((topic, remote, end)),
            Event::Failed { what } => self.failures.push_back(what),
            Event::Note { text } => self.note = text,
            Event::Stopped => self.stopped = true,
        }
    }

    /// Own operations of one run of publishing.
    pub fn published(&self, prefix: &str) -> impl Iterator<Item = &Operation> {
        self.own.iter().filter(move |operation| payload(operation).prefix == prefix)
    }

    /// Operations of others of one run of publishing.
    pub fn received(&self, prefix: &str) -> impl Iterator<Item = &Operation> {
        self.received.iter().filter(move |operation| payload(operation).prefix == prefix)
    }

    /// Numbers of the operations that arrived, in order of arrival.
    pub fn numbers(&self, prefix: &str) -> Vec<u32> {
        self.received(prefix).map(|operation| payload(operation).number).collect()
    }

    /// Arrival after publishing, µs, sorted.
    pub fn latencies_us(&self, prefix: &str) -> Vec<u64> {
        let latency = |operation: &Operation| operation.at_us.saturating_sub(payload(operation).sent_us);
        let mut latencies: Vec<u64> = self.received(prefix).map(latency).collect();
        latencies.sort_unstable();
        latencies
    }

    /// Sessions that ended with an error.
    pub fn session_errors(&self) -> Vec<&str> {
        let ends = self.sessions.iter().filter_map(|(_, _, end)| end.as_ref());
        ends.filter_map(|end| end.error.as_deref()).collect()
    }

    /// The newest operation of each author, own ones included, of all that it told.
    pub fn newest(&self) -> Vec<Head> {
        let mut heads: BTreeMap<&str, &Operation> = BTreeMap::new();
        for operation in self.own.iter().chain(&self.received) {
            let head = heads.entry(&operation.author).or_insert(operation);
            if operation.seq > head.seq {
                *head = operation;
            }
        }
        let head = |operation: &&Operation| Head {
            author: operation.author.clone(),
            seq: operation.seq,
            id: operation.id.clone(),
        };
        heads.values().map(head).collect()
    }

    /// For messages.
    pub fn summary(&self) -> String {
        let Self { own, received, sessions, failures, note, .. } = self;
        let errors = self.session_errors();
        format!(
            "{} published, {} received, {} session events, session errors {errors:?}, {} failures, first {:?}, {note}",
            own.len(),
            received.len(),
            sessions.len(),
            failures.len(),
            failures.iter().take(FAILURES_SHOWN).collect::<Vec<_>>()
        )
    }
}

/// What the test put into an operation: behind the envelope, which is `[1, bytes]`.
fn payload(operation: &Operation) -> Payload {
    let body = data_encoding::HEXLOWER.decode(operation.body.as_bytes()).expect("hex");
    // Array of two, the version, and a byte string of up to 23 bytes, or of a length in one, two or four.
    let text = match body.as_slice() {
        [0x82, 0x01, 0x40..=0x57, text @ ..]
        | [0x82, 0x01, 0x58, _, text @ ..]
        | [0x82, 0x01, 0x59, _, _, text @ ..]
        | [0x82, 0x01, 0x5a, _, _, _, _, text @ ..] => text,
        _ => panic!("not our envelope: {}", operation.body),
    };
    Payload::decode(text).unwrap_or_else(|| panic!("not a payload of these tests: {}", operation.body))
}

/// Asserts that both sides have the same operations: author, place, id, and header and body byte for byte.
///
/// # Panics
/// When they differ, at the first difference.
pub fn same<'a>(published: impl IntoIterator<Item = &'a Operation>, received: impl IntoIterator<Item = &'a Operation>) {
    let strip = |operation: &Operation| Operation { at_us: 0, ..operation.clone() };
    let (mut published, mut received) = (published.into_iter().map(strip), received.into_iter().map(strip));
    let mut count = 0;
    loop {
        match (published.next(), received.next()) {
            (None, None) => break,
            (published, received) => assert_eq!(published, received, "operation {count} differs"),
        }
        count += 1;
    }
    assert!(count > 0, "nothing was compared");
}
