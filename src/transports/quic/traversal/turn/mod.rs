//! TURN: relayed addresses of this node at TURN servers, and the paths through them.
//!
//! `policy` decides at which servers a node needs an allocation, `manager` starts and stops them (the hub drives it),
//! `driver` runs one over UDP, TCP or TLS, and `link` is what the socket and the checkers see of it. [`Turns`] is what they
//! share. Peers take nothing on trust from a TURN server: it carries encrypted QUIC, and checks that only the peer can answer.

mod driver;
mod link;
mod manager;
mod policy;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use super::lock;
use crate::nat::path::Path;
use crate::transport::PathKind;
use crate::transports::quic::paths::Paths;
use crate::watch;
use driver::TurnError;
pub(super) use link::{Lease, Link};
pub(super) use manager::{Manager, Seen};

/// The allocations of one node, for everybody who uses them.
#[derive(Debug)]
pub(super) struct Turns {
    links: Mutex<BTreeMap<u8, Arc<Link>>>,
    /// Drivers that ended since the manager looked.
    ended: Mutex<Vec<Ended>>,
    /// Counts what is new: relayed addresses, peers that are ready, ends.
    changed: watch::Sender<u64>,
}

/// The end of an allocation.
#[derive(Debug)]
struct Ended {
    id: u8,
    /// Whether there was a relayed address.
    lived: bool,
    why: TurnError,
}

impl Turns {
    /// Without any.
    pub(super) fn new() -> Self {
        Self { links: Mutex::default(), ended: Mutex::default(), changed: watch::Sender::new(0) }
    }

    /// Hears of relayed addresses, peers that are ready, and ends.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// What kind of path an allocation makes.
    pub(super) fn kind(&self, allocation: u8) -> PathKind {
        lock(&self.links).get(&allocation).map_or(PathKind::TurnUdp, |link| link.kind)
    }

    /// Where peers reach this node.
    pub(super) fn relayed_addresses(&self) -> Vec<SocketAddr> {
        lock(&self.links).values().flat_map(|link| link.relayed_addresses()).collect()
    }

    /// All allocations, made or under way.
    pub(super) fn links(&self) -> Vec<Arc<Link>> {
        lock(&self.links).values().cloned().collect()
    }

    /// Wants to reach a peer through an allocation.
    pub(super) fn lease(&self, allocation: u8, peer: SocketAddr) -> Option<Lease> {
        let link = lock(&self.links).get(&allocation).cloned()?;
        link.lease(Instant::now().into_std(), peer)
    }

    /// Wants to reach a peer through every allocation that can.
    pub(super) fn leases(&self, peer: SocketAddr) -> Vec<Lease> {
        let now = Instant::now().into_std();
        self.links().iter().filter_map(|link| link.lease(now, peer)).collect()
    }

    /// Whether an allocation is still there.
    pub(super) fn has(&self, allocation: u8) -> bool {
        lock(&self.links).contains_key(&allocation)
    }

    /// Whether an allocation may have outlived a change of the network.
    fn outlives(&self, allocation: u8, interfaces: &[IpAddr]) -> bool {
        lock(&self.links).get(&allocation).is_some_and(|link| link.on_network_change(interfaces))
    }

    fn add(&self, paths: &Paths, link: &Arc<Link>) {
        paths.set_turn(link.id, Some(link.clone()));
        lock(&self.links).insert(link.id, link.clone());
    }

    /// Takes an allocation out; `why` is for the manager, unless it asked for the end itself.
    fn end(&self, paths: &Paths, id: u8, why: Option<TurnError>) {
        paths.set_turn(id, None);
        let link = lock(&self.links).remove(&id);
        let farewell = link.as_ref().and_then(|link| link.farewell(Instant::now().into_std()));
        if let Some((server, frame)) = farewell {
            paths.send(Path::direct(server), &frame);
        }
        if let Some(why) = why {
            let lived = link.is_some_and(|link| link.lived());
            lock(&self.ended).push(Ended { id, lived, why });
        }
        self.tell();
    }

    fn tell(&self) {
        self.changed.send_modify(|version| *version += 1);
    }
}
