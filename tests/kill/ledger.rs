//! What two nodes have said so far, and what must therefore hold: the model that `tests/kill.rs` holds reality against.
//!
//! Tell it every receipt and every operation that a node shows; it keeps what contradicts the promises as problems. Pure.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use panda_network::{Document, PeerId, StoredOperation};

/// An operation as a line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub author: PeerId,
    pub seq_num: u32,
    pub id: String,
    pub payload: String,
}

impl Seen {
    pub fn of(stored: &StoredOperation) -> Self {
        let operation = &stored.operation;
        let payload = String::from_utf8(operation.payload().to_vec()).unwrap();
        Self { author: operation.author(), seq_num: operation.seq_num(), id: operation.id().to_string(), payload }
    }

    pub fn parse(text: &str) -> Self {
        let [author, seq_num, id, payload] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text:?}") };
        let (author, seq_num) = (author.parse().unwrap(), seq_num.parse().unwrap());
        Self { author, seq_num, id: id.into(), payload: payload.into() }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.author, self.seq_num, self.id, self.payload)
    }
}

/// The newest operation of each author.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heads(pub BTreeMap<PeerId, u32>);

impl Heads {
    pub fn of(document: &Document) -> Self {
        Self(document.heads().into_iter().collect())
    }

    pub fn parse(text: &str) -> Self {
        let heads = text.split_whitespace().map(|head| head.split_once(':').unwrap());
        Self(heads.map(|(author, seq_num)| (author.parse().unwrap(), seq_num.parse().unwrap())).collect())
    }

    /// Whether everything up to this operation of this author is in it.
    fn has(&self, author: &PeerId, seq_num: u32) -> bool {
        self.0.get(author).is_some_and(|head| *head >= seq_num)
    }
}

impl fmt::Display for Heads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(author, seq_num)| write!(f, "{author}:{seq_num} "))
    }
}

/// The digest of a row of operations.
#[derive(Debug, Clone, Default)]
pub struct Digest {
    hasher: blake3::Hasher,
    count: usize,
}

impl Digest {
    /// Adds the next operation and returns how many there are now.
    pub fn add(&mut self, seen: &Seen) -> usize {
        self.hasher.update(format!("{seen}\n").as_bytes());
        self.count += 1;
        self.count
    }

    pub fn count(&self) -> usize {
        self.count
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hasher.finalize().to_hex())
    }
}

/// What one node has shown of its log, over all its lives.
#[derive(Debug, Default)]
pub struct View {
    pub heads: Heads,
    pub digest: Digest,
}

/// Everything that either node has said.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Every operation there ever was, by its place.
    places: BTreeMap<(PeerId, u32), Seen>,
    /// Payloads differ, so that one operation in two places shows.
    payloads: HashMap<String, (PeerId, u32)>,
    /// The newest operation whose publish resolved, per author.
    acknowledged: Heads,
    pub receipts: usize,
    pub at_child: View,
    pub at_peer: View,
    pub problems: Vec<String>,
}

impl Ledger {
    /// A publish resolved.
    pub fn on_receipt(&mut self, seen: Seen) {
        self.receipts += 1;
        let newest = self.acknowledged.0.entry(seen.author).or_default();
        *newest = seen.seq_num.max(*newest);
        self.on_place(seen);
    }

    /// A node showed the next operation of its log.
    pub fn on_operation(&mut self, view: fn(&mut Self) -> &mut View, seen: Seen) {
        let next = view(self).heads.0.get(&seen.author).map_or(0, |head| head + 1);
        if seen.seq_num != next {
            self.problems.push(format!("{seen} was shown where {next} of its author is next"));
        }
        let view = view(self);
        view.heads.0.insert(seen.author, seen.seq_num);
        view.digest.add(&seen);
        self.on_place(seen);
    }

    /// A node started and says what it has: what it showed before, and everything of its own that it acknowledged.
    pub fn on_started(&mut self, own: PeerId, heads: &Heads) {
        let acknowledged = self.acknowledged.0.get_key_value(&own);
        for (author, seq_num) in self.at_child.heads.0.iter().chain(acknowledged) {
            if !heads.has(author, *seq_num) {
                self.problems.push(format!("operation {seq_num} of {author} is lost, the heads are {heads}"));
            }
        }
    }

    /// A node started and says what the operations were that it has shown before.
    pub fn on_known(&mut self, digest: &str) {
        if digest != self.at_child.digest.to_string() {
            self.problems.push(format!("the first {} operations changed over a restart", self.at_child.digest.count()));
        }
    }

    /// Whether both nodes have shown the same, and everything that was acknowledged.
    pub fn is_settled(&self) -> bool {
        let all = self.acknowledged.0.iter().all(|(author, seq_num)| self.at_child.heads.has(author, *seq_num));
        all && self.at_child.heads == self.at_peer.heads
    }

    /// How many operations there are.
    pub fn operations(&self) -> usize {
        self.places.len()
    }

    /// No place holds two operations, and no operation is in two places.
    fn on_place(&mut self, seen: Seen) {
        let place = (seen.author, seen.seq_num);
        let first = self.places.entry(place).or_insert_with(|| seen.clone());
        if *first != seen {
            self.problems.push(format!("a sequence number was used twice: {first} and {seen}"));
        }
        let first = *self.payloads.entry(seen.payload.clone()).or_insert(place);
        if first != place {
            self.problems.push(format!("one operation in two places: {seen} and {}", first.1));
        }
    }
}
