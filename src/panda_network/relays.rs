//! Where this node wants to be found: at the relays of its options, of the tickets of open documents, and of the peers that
//! earlier runs knew. A plain data structure. Relays that others name are none of these: the transport borrows them.

use std::sync::{Mutex, PoisonError};

use crate::address::PeerAddress;
use crate::ids::DocumentId;
use crate::limits::TICKET_MAX_RELAYS;
use crate::rendezvous::address::RelayAddress;
use crate::transports::quic::QuicTransport;

/// All of them.
#[derive(Debug)]
pub(super) struct HomeRelays {
    options: Vec<RelayAddress>,
    /// Of documents that are open, in the order of opening.
    documents: Mutex<Vec<OfDocument>>,
}

#[derive(Debug)]
struct OfDocument {
    document: DocumentId,
    /// Those of the last ticket that named any, at most 4.
    ticket: Vec<RelayAddress>,
    /// Those of its stored peers, at most 4.
    remembered: Vec<RelayAddress>,
}

impl OfDocument {
    fn new(document: DocumentId) -> Self {
        Self { document, ticket: Vec::new(), remembered: Vec::new() }
    }
}

impl HomeRelays {
    pub(super) fn new(options: Vec<RelayAddress>) -> Self {
        Self { options, documents: Mutex::default() }
    }

    /// A document was opened by a ticket that names these relays.
    pub(super) fn on_ticket(&self, quic: &QuicTransport, document: DocumentId, relays: &[String]) {
        if !relays.is_empty() {
            self.change(quic, |documents| entry(documents, document).ticket = parsed(relays));
        }
    }

    /// A document was opened whose peers, newest first, can be found at relays: where they are, this node should be found as well.
    pub(super) fn on_known_peers(&self, quic: &QuicTransport, document: DocumentId, peers: &[PeerAddress]) {
        let remembered = distinct(peers.iter().flat_map(|peer| parsed(peer.relays())), TICKET_MAX_RELAYS);
        self.change(quic, |documents| entry(documents, document).remembered = remembered);
    }

    /// A document was closed.
    pub(super) fn on_closed(&self, quic: &QuicTransport, document: &DocumentId) {
        self.change(quic, |documents| documents.retain(|of| of.document != *document));
    }

    fn change(&self, quic: &QuicTransport, change: impl FnOnce(&mut Vec<OfDocument>)) {
        let mut documents = self.documents.lock().unwrap_or_else(PoisonError::into_inner);
        let before = in_order(&self.options, &documents);
        change(&mut documents);
        let relays = in_order(&self.options, &documents);
        if relays != before {
            quic.keep_relays(&relays);
        }
    }
}

fn entry(documents: &mut Vec<OfDocument>, document: DocumentId) -> &mut OfDocument {
    let at = documents.iter().position(|of| of.document == document).unwrap_or_else(|| {
        documents.push(OfDocument::new(document));
        documents.len() - 1
    });
    &mut documents[at]
}

/// One whose name cannot be read is as good as one that does not answer.
fn parsed(relays: &[String]) -> Vec<RelayAddress> {
    distinct(relays.iter().filter_map(|relay| relay.parse().ok()), TICKET_MAX_RELAYS)
}

fn distinct(relays: impl Iterator<Item = RelayAddress>, limit: usize) -> Vec<RelayAddress> {
    let mut known: Vec<RelayAddress> = Vec::new();
    for relay in relays {
        if known.len() < limit && !known.contains(&relay) {
            known.push(relay);
        }
    }
    known
}

/// The options', then those of tickets, then the remembered ones; the first one of each document before the second one of any.
fn in_order(options: &[RelayAddress], documents: &[OfDocument]) -> Vec<RelayAddress> {
    let by_rank = |of: fn(&OfDocument) -> &Vec<RelayAddress>| {
        (0..TICKET_MAX_RELAYS).flat_map(move |rank| documents.iter().filter_map(move |document| of(document).get(rank)))
    };
    let tickets = by_rank(|of| &of.ticket);
    let all = options.iter().chain(tickets).chain(by_rank(|of| &of.remembered));
    distinct(all.cloned(), usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relays(names: &[&str]) -> Vec<RelayAddress> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn options_come_first_then_tickets_then_what_is_remembered_and_every_document_gets_its_turn() {
        let of = |number: u128, ticket: &[&str], remembered: &[&str]| OfDocument {
            document: DocumentId::from_uuid(uuid::Uuid::from_u128(number)),
            ticket: relays(ticket),
            remembered: relays(remembered),
        };
        let documents = [of(1, &["b", "c"], &["x", "a"]), of(2, &["d", "b", "e"], &["y"])];
        let expected = relays(&["a", "b", "d", "c", "e", "x", "y"]);
        assert_eq!(in_order(&relays(&["a"]), &documents), expected);
    }
}
