//! What changed between two texts, as patches in byte offsets that can be applied one after the other.
//!
//! Lines first, then characters within changed lines, so that a small edit stays small and concurrent edits of others in
//! the same line survive. Changed stretches too long for characters are replaced whole.

use std::time::{Duration, Instant};

use similar::{Algorithm, DiffTag, capture_diff_slices_deadline};

use crate::text_doc::Patch;

/// Longest changed stretch that is compared character by character, in bytes of old and new together.
const CHARACTERS_MAX_BYTES: usize = 64 * 1024;
/// How long to look for a smaller difference before taking a larger one.
const SEARCH_MAX: Duration = Duration::from_secs(1);

/// Patches that turn `old` into `new`, each relative to the text that the one before left.
pub fn diff(old: &str, new: &str) -> Vec<Patch> {
    let deadline = Instant::now() + SEARCH_MAX;
    let old_lines: Vec<&str> = old.split_inclusive('\n').collect();
    let new_lines: Vec<&str> = new.split_inclusive('\n').collect();
    let mut patches = Patches::default();
    for change in changes(&old_lines, &new_lines, deadline) {
        let (before, after) = (change.old.concat(), change.new.concat());
        let start = patches.skip(&old_lines, change.old_index);
        if before.is_empty() || after.is_empty() || before.len() + after.len() > CHARACTERS_MAX_BYTES {
            patches.replace(start, before.len(), &after);
        } else {
            patches.replace_characters(start, &before, &after, deadline);
        }
    }
    patches.patches
}

/// A run of unequal items.
struct Change<'a, T> {
    old_index: usize,
    old: &'a [T],
    new: &'a [T],
}

fn changes<'a, T: Eq + std::hash::Hash + Ord>(old: &'a [T], new: &'a [T], deadline: Instant) -> Vec<Change<'a, T>> {
    let mut changes = Vec::new();
    // Counted here: `similar` 2.7 moves operations together without moving the index in the other text.
    let (mut old_index, mut new_index) = (0, 0);
    for operation in capture_diff_slices_deadline(Algorithm::Myers, old, new, Some(deadline)) {
        let (old_len, new_len) = (operation.old_range().len(), operation.new_range().len());
        let (old_end, new_end) = (old_index + old_len, new_index + new_len);
        if operation.tag() != DiffTag::Equal {
            changes.push(Change { old_index, old: &old[old_index..old_end], new: &new[new_index..new_end] });
        }
        (old_index, new_index) = (old_end, new_end);
    }
    changes
}

/// Patches so far, and how far they moved what follows.
#[derive(Default)]
struct Patches {
    patches: Vec<Patch>,
    inserted: usize,
    deleted: usize,
    lines_seen: usize,
    bytes_seen: usize,
}

impl Patches {
    /// Byte offset in the old text of its line `index`; indices only grow.
    fn skip(&mut self, old_lines: &[&str], index: usize) -> usize {
        self.bytes_seen += old_lines[self.lines_seen..index].iter().map(|line| line.len()).sum::<usize>();
        self.lines_seen = index;
        self.bytes_seen
    }

    /// Replaces bytes of the old text.
    fn replace(&mut self, old_at: usize, delete: usize, insert: &str) {
        let at = (old_at + self.inserted - self.deleted) as u32;
        self.patches.push(Patch { at, delete: delete as u32, insert: insert.into() });
        self.inserted += insert.len();
        self.deleted += delete;
    }

    fn replace_characters(&mut self, start: usize, before: &str, after: &str, deadline: Instant) {
        let (old, new): (Vec<char>, Vec<char>) = (before.chars().collect(), after.chars().collect());
        let bytes = |characters: &[char]| characters.iter().map(|c| c.len_utf8()).sum::<usize>();
        for change in changes(&old, &new, deadline) {
            let insert: String = change.new.iter().collect();
            self.replace(start + bytes(&old[..change.old_index]), bytes(change.old), &insert);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::hash::{Hash, Hasher};

    use proptest::prelude::*;

    use super::*;

    fn apply(text: &str, patches: &[Patch]) -> String {
        let mut text = text.to_owned();
        for patch in patches {
            let at = patch.at as usize;
            text.replace_range(at..at + patch.delete as usize, &patch.insert);
        }
        text
    }

    proptest! {
        #[test]
        fn patches_turn_the_old_text_into_the_new(old in "[aé😀\r\n]{0,40}", new in "[aé😀\r\n]{0,40}") {
            prop_assert_eq!(apply(&old, &diff(&old, &new)), new);
        }
    }

    #[test]
    fn a_changed_word_changes_only_that_word() {
        let patches = diff("one\ntwo three\nfour\n", "one\ntwo 3hree\nfour\n");
        assert_eq!(patches, vec![Patch { at: 8, delete: 1, insert: "3".into() }]);
    }

    #[test]
    fn a_large_replacement_is_found() {
        let (old, new) = ("a\n".repeat(500_000), "b\n".repeat(500_000));
        assert_eq!(apply(&old, &diff(&old, &new)), new);
    }

    /// A line that counts how often lines are compared.
    #[derive(Debug, Eq, PartialOrd, Ord)]
    struct Counted<'a>(u32, &'a Cell<usize>);

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.1.set(self.1.get() + 1);
            self.0 == other.0
        }
    }

    impl Hash for Counted<'_> {
        fn hash<H: Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }

    #[test]
    fn a_search_that_is_out_of_time_compares_every_line_a_few_times_only() {
        const LINES: u32 = 5_000;
        let compared = Cell::new(0);
        let old: Vec<_> = (0..LINES).map(|line| Counted(line, &compared)).collect();
        let new: Vec<_> = (LINES..2 * LINES).map(|line| Counted(line, &compared)).collect();
        let changes = changes(&old, &new, Instant::now());
        assert_eq!(changes.iter().map(|change| change.old.len()).sum::<usize>(), old.len());
        assert!(compared.get() < 10 * LINES as usize, "{} comparisons", compared.get());
    }
}
