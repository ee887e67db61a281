//! The merge engine: keeps a file and a shared text in step. Pure: no file, no network, no clock.
//!
//! It holds two versions of the document. `disk` is exactly what the file was when we last saw or wrote it, so a change of
//! the file becomes edits at the right places even when others edited meanwhile; `live` is that and everything that came
//! since. Drive it: [`TextMerge::on_remote`] for every operation, [`TextMerge::on_file`] with the file's content and
//! publish what it returns, [`TextMerge::plan_write`] for what the file should become, then, only once that is in the
//! file, [`TextMerge::on_written`]. A write that did not happen needs no undoing.
//!
//! What survives a restart is a number: the newest position (in this node's order of operations) that is in the file. Own
//! operations are always in `disk`, because they were read from the file.

use std::collections::VecDeque;

use panda_network::store::Position;

use super::diff::diff;
use crate::text_doc::{Offsets, Patch, TextDoc, TextError};

/// Longest insertion in one operation, in bytes: far below the limit of an operation.
const INSERT_MAX_BYTES: usize = 1024 * 1024;

/// A file and a text, and how far apart they are.
pub struct TextMerge {
    disk: TextDoc,
    live: TextDoc,
    /// The text of `disk`: the file's content as last seen or written.
    base: String,
    written: Position,
    unwritten: VecDeque<(Position, Vec<u8>)>,
    operations_seen: usize,
}

/// What the file should become.
#[derive(Debug, PartialEq, Eq)]
pub struct Write {
    /// The new content.
    pub text: String,
    /// The newest position in it: what a restart has to know.
    pub position: Position,
    /// How many unwritten operations it contains.
    operations: usize,
}

impl TextMerge {
    /// An empty document and a file that was last written with everything up to `written`, 0 for never.
    pub fn new(written: Position) -> Self {
        Self {
            disk: TextDoc::new(Offsets::Bytes),
            live: TextDoc::new(Offsets::Bytes),
            base: String::new(),
            written,
            unwritten: VecDeque::new(),
            operations_seen: 0,
        }
    }

    /// Replays one operation of the log at start. `own` ones were read from the file.
    ///
    /// # Errors
    /// [`TextError`] when the operation is no text edit; it is left out.
    pub fn replay(&mut self, position: Position, own: bool, update: Vec<u8>) -> Result<(), TextError> {
        if !own && position > self.written {
            return self.on_remote(position, update);
        }
        self.live.apply(&update)?;
        self.disk.apply(&update)?;
        self.operations_seen += 1;
        Ok(())
    }

    /// After the last [`TextMerge::replay`]: what the file was when the program stopped is known now.
    pub fn replayed(&mut self) {
        self.base = self.disk.text();
    }

    /// An operation of somebody else.
    ///
    /// # Errors
    /// [`TextError`] when the operation is no text edit; it is left out.
    pub fn on_remote(&mut self, position: Position, update: Vec<u8>) -> Result<(), TextError> {
        self.live.apply(&update)?;
        self.unwritten.push_back((position, update));
        self.operations_seen += 1;
        Ok(())
    }

    /// The file contains `text` now. Returns the operations to publish, in this order; none when nothing changed.
    ///
    /// # Errors
    /// [`TextError`] would be a defect: the edits are computed from this very text.
    pub fn on_file(&mut self, text: &str) -> Result<Vec<Vec<u8>>, TextError> {
        if text == self.base {
            return Ok(Vec::new());
        }
        let mut updates = Vec::new();
        for patches in split_large(diff(&self.base, text)) {
            let update = self.disk.edit(&patches)?;
            self.live.apply(&update)?;
            updates.push(update);
        }
        self.operations_seen += updates.len();
        text.clone_into(&mut self.base);
        Ok(updates)
    }

    /// What the file should become, `None` when it is as it should be.
    pub fn plan_write(&self) -> Option<Write> {
        let &(position, _) = self.unwritten.back()?;
        Some(Write { text: self.live.text(), position, operations: self.unwritten.len() })
    }

    /// The planned write is in the file now.
    ///
    /// # Errors
    /// [`TextError`] would be a defect: the operations were applied to the other version before.
    pub fn on_written(&mut self, write: Write) -> Result<(), TextError> {
        for (_, update) in self.unwritten.drain(..write.operations.min(self.unwritten.len())) {
            self.disk.apply(&update)?;
        }
        self.written = write.position;
        self.base = write.text;
        Ok(())
    }

    /// The file's content as last seen or written.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// True when no operation has made this document yet: it was never shared, or nothing has arrived.
    pub fn is_unborn(&self) -> bool {
        self.operations_seen == 0
    }

    /// An operation that changes nothing, so that a shared empty file can be told from one that has not arrived.
    ///
    /// # Errors
    /// None in practice; it edits nothing.
    pub fn birth(&mut self) -> Result<Vec<u8>, TextError> {
        self.operations_seen += 1;
        self.disk.edit(&[])
    }
}

/// Groups patches into operations that are far below the size limit, splitting long insertions.
fn split_large(patches: Vec<Patch>) -> Vec<Vec<Patch>> {
    let mut groups = vec![Vec::new()];
    let mut size = 0;
    for mut patch in patches {
        while size + patch.insert.len() > INSERT_MAX_BYTES {
            let cut = patch.insert.floor_char_boundary(INSERT_MAX_BYTES - size);
            let rest = patch.insert.split_off(cut);
            let at = patch.at + cut as u32;
            push(&mut groups, std::mem::replace(&mut patch, Patch { at, delete: 0, insert: rest }));
            groups.push(Vec::new());
            size = 0;
        }
        size += patch.insert.len();
        push(&mut groups, patch);
    }
    groups.retain(|group| !group.is_empty());
    groups
}

fn push(groups: &mut [Vec<Patch>], patch: Patch) {
    if let Some(group) = groups.last_mut() {
        group.push(patch);
    }
}

#[cfg(test)]
#[path = "text_merge_tests.rs"]
mod tests;
