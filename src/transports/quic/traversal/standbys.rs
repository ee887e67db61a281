//! The relays that one live connection may need: those where its peer may be found, and those that forward to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Traversal;
use super::leases::RelayLease;
use crate::nat::path::Path;
use crate::rendezvous::address::RelayAddress;

/// Holds them for as long as the connection lives, or until somebody needs their slots more.
#[derive(Debug)]
pub(super) struct Standbys {
    /// Where the peer may be found.
    named: Vec<RelayAddress>,
    leases: Vec<RelayLease>,
}

impl Standbys {
    pub(super) fn new(named: Vec<RelayAddress>) -> Self {
        Self { named, leases: Vec::new() }
    }

    /// The flows to the peer, and the path in use, `None` while none answers: then relays that made room are opened again.
    pub(super) fn update(
        &mut self,
        traversal: &Arc<Traversal>,
        flows: &BTreeMap<RelayAddress, Path>,
        selected: Option<Path>,
    ) {
        let Self { named, leases } = self;
        let is_named = |lease: &RelayLease| named.iter().any(|relay| relay.server == lease.address().server);
        leases.retain(|lease| lease.is_open() && (is_named(lease) || flows.contains_key(lease.address())));
        for relay in named {
            if !leases.iter().any(|lease| lease.address().server == relay.server) {
                leases.extend(match selected {
                    Some(_) => traversal.lease_relay(relay),
                    None => traversal.borrow_relay(relay),
                });
            }
        }
        for relay in flows.keys() {
            if !leases.iter().any(|lease| lease.address() == relay) {
                leases.extend(traversal.lease_relay(relay));
            }
        }
        for lease in leases {
            lease.set_needed(selected.is_none_or(|path| flows.get(lease.address()) == Some(&path)));
        }
    }

    /// Where a flow to the peer can be asked for.
    pub(super) fn without_flow(&self, flows: &BTreeMap<RelayAddress, Path>) -> impl Iterator<Item = &RelayAddress> {
        let up = self.leases.iter().filter(|lease| lease.is_up()).map(RelayLease::address);
        up.filter(|relay| !flows.contains_key(*relay))
    }
}
