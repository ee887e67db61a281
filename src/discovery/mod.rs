//! Finding peers of the documents that are open here, beyond the addresses in a ticket.
//!
//! A **finder** looks for peers in one way (the local network, other peers, relays). It asks a [`NodeView`] what this node
//! has open, and puts whom it found into [`Finds`]: a signed record, the document, and the [`Source`]. Whoever takes the
//! other end decides by the [`policy`] who is connected to. Finders make no connections, and a find is a hint: the key in
//! the record decides who is dialled, and TLS proves who answers.

use tokio::sync::mpsc;

pub mod lan;
mod options;
pub mod policy;
mod run;
pub mod topics;
pub mod walk;
pub mod wire;

pub use options::DiscoveryOptions;

use crate::address::{AddressError, PeerAddress};
use crate::ids::DocumentId;
use crate::limits::DISCOVERY_QUEUE;
use crate::store::DocumentRecord;
use crate::watch;

/// How a peer was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The ticket of the document named it.
    Ticket,
    /// It was a peer of the document before this node was started.
    Store,
    /// A connected peer passed its address on, or it connected to this node itself.
    Peer,
    /// It announced itself in the local network.
    Lan,
    /// By asking peers which documents they share (confidential discovery).
    Discovery,
    /// A relay that it uses had its record.
    Rendezvous,
}

/// A peer that shares a document, as far as a finder can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it says it can be reached; the signature was verified.
    pub peer: PeerAddress,
    /// The document.
    pub document: DocumentId,
    /// How it was found.
    pub source: Source,
}

/// Where finders put what they found. Clones are handles on one bounded queue.
#[derive(Debug, Clone)]
pub struct Finds(mpsc::Sender<Found>);

impl Finds {
    /// A queue, and the end that finds are taken from.
    pub fn new() -> (Self, mpsc::Receiver<Found>) {
        let (sender, receiver) = mpsc::channel(DISCOVERY_QUEUE);
        (Self(sender), receiver)
    }

    /// Waits while the queue is full. False when nobody takes finds any more: the finder may end. Cancel-safe: what was not
    /// taken is not in the queue.
    pub async fn report(&self, found: Found) -> bool {
        self.0.send(found).await.is_ok()
    }
}

/// What finders see of the node that they work for. All is empty once it has ended.
pub trait NodeView: Send + Sync + std::fmt::Debug {
    /// The documents that peers are looked for of: those that are open, none while the node is offline on purpose.
    fn documents(&self) -> Vec<DocumentRecord>;

    /// Where this node can be reached now, signed just now.
    fn address(&self) -> Option<Result<PeerAddress, AddressError>>;

    /// Counts the changes of documents and addresses; ends with the node.
    fn changes(&self) -> Option<watch::Receiver<u64>>;
}
