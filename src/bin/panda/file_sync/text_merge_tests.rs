//! Tests of the merge engine: two files and two texts, no disk and no network.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// One side: the engine, its file, and the log that its node keeps.
struct Side {
    merge: TextMerge,
    file: String,
    log: Vec<(Position, bool, Vec<u8>)>,
    written: Position,
    outgoing: Vec<Vec<u8>>,
    sent: usize,
}

impl Side {
    fn new() -> Self {
        Self { merge: TextMerge::new(0), file: String::new(), log: vec![], written: 0, outgoing: vec![], sent: 0 }
    }

    fn read_file(&mut self) {
        for update in self.merge.on_file(&self.file).unwrap() {
            self.log.push((self.log.len() as Position + 1, true, update.clone()));
            self.outgoing.push(update);
        }
    }

    fn receive(&mut self, update: Vec<u8>) {
        let position = self.log.len() as Position + 1;
        self.log.push((position, false, update.clone()));
        self.merge.on_remote(position, update).unwrap();
    }

    /// One round: read, plan, perhaps an edit in between, and write only if the file is as it was.
    fn settle(&mut self, meddle: impl FnOnce(&mut String)) {
        self.read_file();
        let Some(write) = self.merge.plan_write() else { return };
        meddle(&mut self.file);
        if self.file == self.merge.base() {
            self.file.clone_from(&write.text);
            self.written = write.position;
            self.merge.on_written(write).unwrap();
        }
    }

    /// The process dies and starts again from its log and its one number.
    fn restart(&mut self) {
        self.merge = TextMerge::new(self.written);
        for (position, own, update) in self.log.clone() {
            self.merge.replay(position, own, update).unwrap();
        }
        self.merge.replayed();
    }
}

fn deliver(from: &mut Side, to: &mut Side, limit: usize) {
    let end = from.outgoing.len().min(from.sent.saturating_add(limit));
    from.outgoing[from.sent..end].iter().for_each(|update| to.receive(update.clone()));
    from.sent = end;
}

fn insert(text: &mut String, at: usize, character: char) {
    let offsets: Vec<usize> = text.char_indices().map(|(offset, _)| offset).chain([text.len()]).collect();
    text.insert(offsets[at % offsets.len()], character);
}

fn remove(text: &mut String, at: usize) -> Option<char> {
    let characters: Vec<(usize, char)> = text.char_indices().collect();
    let (offset, character) = *characters.get(at % characters.len().max(1))?;
    text.remove(offset);
    Some(character)
}

#[derive(Debug, Clone)]
enum Step {
    Insert(usize, usize),
    Remove(usize, usize),
    Deliver(usize, usize),
    Settle(usize),
    SettleWhileTyping(usize, usize),
    Restart(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let side = 0..2usize;
    let step = prop_oneof![
        4 => (side.clone(), 0..64usize).prop_map(|(side, at)| Step::Insert(side, at)),
        1 => (side.clone(), 0..64usize).prop_map(|(side, at)| Step::Remove(side, at)),
        3 => (side.clone(), 1..4usize).prop_map(|(side, count)| Step::Deliver(side, count)),
        3 => side.clone().prop_map(Step::Settle),
        2 => (side.clone(), 0..64usize).prop_map(|(side, at)| Step::SettleWhileTyping(side, at)),
        1 => side.prop_map(Step::Restart),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_edit_is_ever_lost_or_doubled(steps in steps()) {
        let mut sides = [Side::new(), Side::new()];
        let mut expected = BTreeSet::new();
        let mut removed = BTreeSet::new();
        // Every insertion is a character of its own, so that a lost or doubled one shows.
        let mut fresh = ('\u{1F300}'..'\u{1F3FF}').chain('\u{4E00}'..'\u{9FFF}');
        for step in steps {
            match step {
                Step::Insert(side, at) => {
                    let character = fresh.next().unwrap();
                    expected.insert(character);
                    insert(&mut sides[side].file, at, character);
                }
                Step::Remove(side, at) => removed.extend(remove(&mut sides[side].file, at)),
                Step::Deliver(from, count) => {
                    let [a, b] = &mut sides;
                    if from == 0 { deliver(a, b, count) } else { deliver(b, a, count) }
                }
                Step::Settle(side) => sides[side].settle(|_| ()),
                Step::SettleWhileTyping(side, at) => {
                    let character = fresh.next().unwrap();
                    let mut typed = false;
                    sides[side].settle(|file| { typed = true; insert(file, at, character) });
                    if typed { expected.insert(character); }
                }
                Step::Restart(side) => sides[side].restart(),
            }
        }
        for _ in 0..3 {
            let [a, b] = &mut sides;
            a.settle(|_| ());
            b.settle(|_| ());
            deliver(a, b, usize::MAX);
            deliver(b, a, usize::MAX);
        }
        let [a, b] = &sides;
        prop_assert_eq!(&a.file, &b.file);
        let left: Vec<char> = a.file.chars().collect();
        let distinct: BTreeSet<char> = left.iter().copied().collect();
        prop_assert_eq!(left.len(), distinct.len(), "a character is there twice");
        prop_assert_eq!(distinct, expected.difference(&removed).copied().collect::<BTreeSet<_>>());
    }
}

#[test]
fn a_remote_edit_and_a_local_edit_of_one_line_both_stay() {
    let (mut a, mut b) = (Side::new(), Side::new());
    a.file = "the quick fox\n".into();
    a.settle(|_| ());
    deliver(&mut a, &mut b, 9);
    b.settle(|_| ());
    assert_eq!(b.file, a.file);
    a.file = "the very quick fox\n".into();
    b.file = "the quick brown fox\n".into();
    a.settle(|_| ());
    b.settle(|_| ());
    deliver(&mut a, &mut b, 9);
    deliver(&mut b, &mut a, 9);
    a.settle(|_| ());
    b.settle(|_| ());
    assert_eq!(a.file, "the very quick brown fox\n");
    assert_eq!(b.file, a.file);
}

#[test]
fn carriage_returns_and_a_missing_last_newline_are_text() {
    let (mut a, mut b) = (Side::new(), Side::new());
    a.file = "one\r\ntwo".into();
    a.settle(|_| ());
    deliver(&mut a, &mut b, 9);
    b.settle(|_| ());
    assert_eq!(b.file, "one\r\ntwo");
}

#[test]
fn a_large_file_becomes_operations_below_the_limit() {
    let mut merge = TextMerge::new(0);
    let text = "äöü\n".repeat(500_000);
    let updates = merge.on_file(&text).unwrap();
    assert_eq!(updates.len(), 4);
    assert!(updates.iter().all(|update| update.len() < INSERT_MAX_BYTES + 1024));
    let mut other = TextMerge::new(0);
    for (position, update) in (1..).zip(updates) {
        other.on_remote(position, update).unwrap();
    }
    assert_eq!(other.plan_write().unwrap().text, text);
}

#[test]
fn an_empty_shared_document_is_not_an_unborn_one() {
    let mut a = TextMerge::new(0);
    assert!(a.is_unborn());
    let update = a.birth().unwrap();
    let mut b = TextMerge::new(0);
    b.on_remote(1, update).unwrap();
    assert!(!b.is_unborn() && !a.is_unborn());
}
