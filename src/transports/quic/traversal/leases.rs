//! Using relays: what the traversal does with [`Relays`](super::relays::Relays), and leases of those that others name.

use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use tokio::time::Instant;

use super::relays::Session;
use super::{Traversal, lock};
use crate::ids::PeerId;
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::wire::NodeFrame;
use crate::transports::relay_client::{RelayClient, RelayState};
use crate::watch;

impl Session for RelayClient {
    fn key(&self) -> Option<PeerId> {
        self.info().map(|info| info.key)
    }
}

impl Traversal {
    /// Keeps sessions with these relays from now on, best first, and no others: this node is found there. At most 8; further
    /// ones are left out.
    pub(in crate::transports::quic) fn keep_relays(&self, relays: &[RelayAddress]) {
        let new = lock(&self.relays).keep(relays, Instant::now(), |relay| self.open_session(relay));
        let Some(record) = lock(&self.record).clone() else { return };
        for relay in new {
            // Not up: it gets the record with its welcome.
            self.say(&relay, NodeFrame::Publish { record: record.clone() });
        }
    }

    /// The relays that sessions are kept with, best first, and how those are.
    pub(in crate::transports::quic) fn relays(&self) -> Vec<(RelayAddress, RelayState)> {
        let relays = lock(&self.relays);
        let state = |session: &RelayClient| session.state().borrow().clone();
        relays.kept().into_iter().map(|known| (known.address.clone(), state(&known.session))).collect()
    }

    /// All relays that there are sessions with, those that are kept first.
    pub(super) fn all_relays(&self) -> Vec<RelayAddress> {
        lock(&self.relays).all().map(|known| known.address.clone()).collect()
    }

    /// Whether there is a session with that relay, kept or borrowed, up or not.
    pub(in crate::transports::quic) fn has_relay(&self, relay: &RelayAddress) -> bool {
        lock(&self.relays).has(relay)
    }

    /// Leases a relay that a peer names, and opens a session with it if there is none. `None` while there are as many as may be.
    pub(super) fn borrow_relay(self: &Arc<Self>, relay: &RelayAddress) -> Option<RelayLease> {
        let mut relays = lock(&self.relays);
        let (number, known) = relays.borrow(relay, Instant::now(), |relay| self.open_session(relay))?;
        Some(RelayLease::new(self, number, &known.address, &known.session))
    }

    /// Leases a relay if there is a session with it.
    pub(super) fn lease_relay(self: &Arc<Self>, relay: &RelayAddress) -> Option<RelayLease> {
        let mut relays = lock(&self.relays);
        let (number, known) = relays.lease(relay, Instant::now())?;
        Some(RelayLease::new(self, number, &known.address, &known.session))
    }

    fn open_session(&self, relay: &RelayAddress) -> RelayClient {
        let mut jitter = ChaCha20Rng::from_seed(self.random());
        let (network, tls, heard) = (self.options.network.clone(), self.tls.clone(), self.heard.clone());
        RelayClient::start(network, tls, relay.clone(), heard, move || jitter.random())
    }
}

/// Keeps a relay from being let go while it may be needed. As good as none after the relay had to make room for another one.
#[derive(Debug)]
pub(super) struct RelayLease {
    traversal: Arc<Traversal>,
    number: u64,
    address: RelayAddress,
    state: watch::Receiver<RelayState>,
    needed: bool,
}

impl RelayLease {
    fn new(traversal: &Arc<Traversal>, number: u64, address: &RelayAddress, session: &RelayClient) -> Self {
        let (traversal, state) = (traversal.clone(), session.state());
        Self { traversal, number, address: address.clone(), state, needed: true }
    }

    /// What the relay is called here: with or without its key, whoever named it how.
    pub(super) fn address(&self) -> &RelayAddress {
        &self.address
    }

    /// How its session is.
    pub(super) fn state(&self) -> watch::Receiver<RelayState> {
        self.state.clone()
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(&*self.state.borrow(), RelayState::Up(_))
    }

    /// The relay is there still.
    pub(super) fn is_open(&self) -> bool {
        lock(&self.traversal.relays).is_open(self.number)
    }

    /// Whether it has to stay, or may make room for one that is needed.
    pub(super) fn set_needed(&mut self, needed: bool) {
        if std::mem::replace(&mut self.needed, needed) != needed {
            lock(&self.traversal.relays).set_needed(self.number, needed);
        }
    }
}

impl Drop for RelayLease {
    fn drop(&mut self) {
        lock(&self.traversal.relays).release(self.number, self.needed, Instant::now());
    }
}
