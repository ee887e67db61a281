//! How a node finds peers, and whom it connects to.

use std::collections::BTreeSet;

use super::policy::Refusal;
use crate::ids::PeerId;
use crate::limits::{DISCOVERED_PEERS, DISCOVERED_PEERS_PER_DOCUMENT};

/// Options of discovery. Everything has a default.
#[derive(Debug, Clone)]
pub struct DiscoveryOptions {
    pub(crate) lan: bool,
    pub(crate) topics: bool,
    pub(crate) rendezvous: bool,
    allowed: Option<BTreeSet<PeerId>>,
    denied: BTreeSet<PeerId>,
    pub(super) max_peers: usize,
    pub(super) max_peers_per_document: usize,
}

impl DiscoveryOptions {
    /// Peers are found by tickets, and by what connected peers pass on; everybody with a document in common is welcome.
    pub fn new() -> Self {
        Self {
            lan: false,
            topics: false,
            rendezvous: true,
            allowed: None,
            denied: BTreeSet::new(),
            max_peers: DISCOVERED_PEERS,
            max_peers_per_document: DISCOVERED_PEERS_PER_DOCUMENT,
        }
    }

    /// Announce this node in the local network, and look for peers there (multicast DNS). Default: off. Others in the network
    /// see that a node is there, but not whose, and not which documents it has open; who has a document's key finds the
    /// node and connects. Needs UDP port 5353, which is shared with other programs. Without effect on a node that speaks
    /// through relays only, since it hides its addresses.
    pub fn with_lan(mut self, lan: bool) -> Self {
        self.lan = lan;
        self
    }

    /// Ask other peers which documents they share, and answer those who ask (confidential discovery). Default: off. Peers are
    /// asked at whom [`PandaNetwork::add_peer`](crate::PandaNetwork::add_peer) points, and at whom those point in turn. Whoever
    /// asks or is asked learns which open documents are shared, the number of the others, and this node's key, addresses and
    /// relays; these are also named to others who take part. Nobody learns of a document without having its key. Off, or
    /// where the other one has it off, peers are found in the other ways. Whom others point at is looked for at its addresses, and
    /// at relays that this node uses already; others are not connected to on a stranger's word.
    pub fn with_topics(mut self, topics: bool) -> Self {
        self.topics = topics;
        self
    }

    /// Have the relays that this node uses keep where else it can be met, a week long, for whoever knows its key and asks:
    /// the names of its relays and nothing else. Default: on. Off, who has an old ticket does not find a node that moved to
    /// other relays.
    pub fn with_rendezvous(mut self, rendezvous: bool) -> Self {
        self.rendezvous = rendezvous;
        self
    }

    /// Connect to these peers only, whoever dials and wherever they were found, in a ticket as well. Default: everybody with a
    /// document in common. Empty: nobody.
    pub fn with_allowed_peers(mut self, peers: impl IntoIterator<Item = PeerId>) -> Self {
        self.allowed = Some(peers.into_iter().collect());
        self
    }

    /// Never connect to these peers, whoever dials; one that is allowed as well is denied. Default: nobody. What such a peer
    /// wrote still arrives through others, and in a local network it can read this node's notices: this is about
    /// connections, not about a document's members.
    pub fn with_denied_peers(mut self, peers: impl IntoIterator<Item = PeerId>) -> Self {
        self.denied = peers.into_iter().collect();
        self
    }

    /// How many discovered peers are kept connected: for one document, and in all. Default: 64, and 256. Those beyond wait until
    /// one of the others has not been reached for half a minute. Too few: operations take more hops, and a peer that is hard
    /// to reach may be left alone. Too many: each costs about 40 kB here and a packet every 5 s. Peers of tickets, those met in
    /// earlier runs, and those who dial this node come on top, these until they are gone for half a minute.
    pub fn with_max_peers(mut self, per_document: usize, in_all: usize) -> Self {
        (self.max_peers_per_document, self.max_peers) = (per_document, in_all);
        self
    }

    /// Whether this peer may be connected at all, in either direction.
    ///
    /// # Errors
    /// Why it may not.
    pub fn admits(&self, peer: &PeerId) -> Result<(), Refusal> {
        if self.denied.contains(peer) {
            return Err(Refusal::Denied);
        }
        match &self.allowed {
            Some(allowed) if !allowed.contains(peer) => Err(Refusal::NotAllowed),
            _ => Ok(()),
        }
    }
}

impl Default for DiscoveryOptions {
    fn default() -> Self {
        Self::new()
    }
}
