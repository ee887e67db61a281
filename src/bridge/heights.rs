//! How far each author's log goes, and what that leaves to send: p2panda's `compare` for one log per author.

use std::collections::BTreeMap;

use crate::ids::PeerId;
use crate::operation::SeqNum;

/// Newest sequence number per author.
pub(super) type Heights = BTreeMap<PeerId, SeqNum>;

/// Operations of one author, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) author: PeerId,
    pub(super) first: SeqNum,
    pub(super) last: SeqNum,
}

/// What a Node with heights `theirs` lacks of what we have.
pub(super) fn lacking(ours: &Heights, theirs: &Heights) -> Vec<Range> {
    let range = |(author, last): (&PeerId, &SeqNum)| {
        let first = theirs.get(author).map_or(Some(0), |height| height.checked_add(1))?;
        (first <= *last).then_some(Range { author: *author, first, last: *last })
    };
    ours.iter().filter_map(range).collect()
}
