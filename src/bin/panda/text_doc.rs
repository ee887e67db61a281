//! One text in a yrs document: edits become updates, updates become text. All the CRDT that the command line needs.
//!
//! Not thread-safe by itself in a useful way: callers keep it behind their own lock and never across an await.

use thiserror::Error;
use yrs::block::ClientID;
use yrs::updates::decoder::Decode;
use yrs::{Doc, GetString, OffsetKind, Options, ReadTxn, Text, TextRef, Transact, Update};

/// Name of the text inside the document; part of what two versions of `panda` must agree on.
const TEXT_NAME: &str = "text";

/// A text could not be edited or updated.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TextError {
    /// The bytes are no yrs update. Their author erred.
    #[error("an operation is not a text edit: {0}")]
    NotAnUpdate(String),
    /// An edit outside of the text. The caller erred.
    #[error("an edit at {at} of {delete} is outside of the text of length {length}")]
    OutOfRange {
        /// Where it starts.
        at: u32,
        /// How much it deletes.
        delete: u32,
        /// The length of the text.
        length: u32,
    },
}

/// Replaces a part of a text. Offsets count what the [`TextDoc`] counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Where it starts.
    pub at: u32,
    /// How much is deleted there.
    pub delete: u32,
    /// What is inserted there.
    pub insert: String,
}

/// What offsets count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offsets {
    /// Bytes of UTF-8.
    Bytes,
    /// Unicode characters, all of them in the Basic Multilingual Plane.
    BasicCharacters,
    /// Unicode characters of any plane; every edit costs a walk through the text.
    AnyCharacters,
}

/// A text with its history.
pub struct TextDoc {
    doc: Doc,
    text: TextRef,
    offsets: Offsets,
}

impl TextDoc {
    /// An empty text whose client id is random: unique per run of the program.
    pub fn new(offsets: Offsets) -> Self {
        Self::with_client(offsets, ClientID::random())
    }

    /// An empty text of an author who writes it once: of two concurrent insertions in one place the lower author's is first.
    pub fn of_author(offsets: Offsets, author: u32) -> Self {
        Self::with_client(offsets, ClientID::new(u64::from(author) + 1))
    }

    fn with_client(offsets: Offsets, client_id: ClientID) -> Self {
        let offset_kind = match offsets {
            Offsets::Bytes => OffsetKind::Bytes,
            Offsets::BasicCharacters | Offsets::AnyCharacters => OffsetKind::Utf16,
        };
        let doc = Doc::with_options(Options { offset_kind, client_id, ..Options::default() });
        let text = doc.get_or_insert_text(TEXT_NAME);
        Self { doc, text, offsets }
    }

    /// Applies patches one after the other, each to the text that the one before left, and returns them as one update.
    ///
    /// # Errors
    /// [`TextError::OutOfRange`]; the patches before it are applied then, so the caller should give up.
    pub fn edit(&self, patches: &[Patch]) -> Result<Vec<u8>, TextError> {
        let mut transaction = self.doc.transact_mut();
        for patch in patches {
            let Patch { at, delete, .. } = *patch;
            let (at, delete) = self.native(at, delete, &transaction);
            let length = self.text.len(&transaction);
            if at.checked_add(delete).is_none_or(|end| end > length) {
                return Err(TextError::OutOfRange { at, delete, length });
            }
            if delete > 0 {
                self.text.remove_range(&mut transaction, at, delete);
            }
            if !patch.insert.is_empty() {
                self.text.insert(&mut transaction, at, &patch.insert);
            }
        }
        Ok(transaction.encode_update_v1())
    }

    /// Applies an update of any author, in any order; a second time changes nothing.
    ///
    /// # Errors
    /// [`TextError::NotAnUpdate`] when the bytes are none.
    pub fn apply(&self, update: &[u8]) -> Result<(), TextError> {
        let update = Update::decode_v1(update).map_err(|error| TextError::NotAnUpdate(error.to_string()))?;
        let mut transaction = self.doc.transact_mut();
        transaction.apply_update(update).map_err(|error| TextError::NotAnUpdate(error.to_string()))
    }

    /// The text now.
    pub fn text(&self) -> String {
        self.text.get_string(&self.doc.transact())
    }

    /// Length of the text in the units of its offsets (for [`Offsets::AnyCharacters`]: in UTF-16 units).
    pub fn len(&self) -> u32 {
        self.text.len(&self.doc.transact())
    }

    /// Offsets as yrs counts them.
    fn native(&self, at: u32, delete: u32, transaction: &impl ReadTxn) -> (u32, u32) {
        if self.offsets != Offsets::AnyCharacters {
            return (at, delete);
        }
        let text = self.text.get_string(transaction);
        let mut units = text.chars().map(|character| character.len_utf16() as u32);
        // Past the end one unit per character keeps an offset out of range, so that it is refused.
        let mut take = |count: u32| -> u32 { (0..count).map(|_| units.next().unwrap_or(1)).sum() };
        (take(at), take(delete))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(at: u32, delete: u32, insert: &str) -> Patch {
        Patch { at, delete, insert: insert.into() }
    }

    #[test]
    fn characters_of_any_plane_count_one() {
        let doc = TextDoc::new(Offsets::AnyCharacters);
        doc.edit(&[patch(0, 0, "a😀b"), patch(2, 1, "ö"), patch(1, 1, "😎😎")]).unwrap();
        assert_eq!(doc.text(), "a😎😎ö");
        assert!(doc.edit(&[patch(4, 1, "")]).is_err());
    }

    #[test]
    fn an_edit_outside_of_the_text_is_an_error_and_not_a_panic() {
        let doc = TextDoc::new(Offsets::Bytes);
        assert_eq!(doc.edit(&[patch(1, 0, "x")]), Err(TextError::OutOfRange { at: 1, delete: 0, length: 0 }));
        assert!(matches!(doc.apply(b"nonsense"), Err(TextError::NotAnUpdate(_))));
    }
}
