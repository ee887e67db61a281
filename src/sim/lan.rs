//! Boards of the simulated hosts ([`LanBoard`]): what a host posts is heard, at once, by every host in a network with it.
//!
//! A network here is the inside of a NAT; on the internet nobody hears anybody. Who comes later, or moves there, hears what is
//! posted then. Nothing is lost and nothing takes time: this stands for multicast as nodes see it, not for its packets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::hub::Hub;
use super::topology::{HostId, Realm, Topology};
use crate::net::LanBoard;

/// All boards of a simulated network.
#[derive(Debug, Default)]
pub(super) struct Boards {
    boards: BTreeMap<u64, Board>,
    next_board: u64,
    next_post: u64,
}

#[derive(Debug)]
struct Board {
    host: HostId,
    posted: Option<(u64, Vec<u8>)>,
    /// Posts that were heard here.
    heard: BTreeSet<u64>,
    reader: Option<Waker>,
}

impl Boards {
    fn open(&mut self, host: HostId) -> u64 {
        let number = self.next_board;
        self.next_board += 1;
        self.boards.insert(number, Board { host, posted: None, heard: BTreeSet::new(), reader: None });
        number
    }

    /// Returns who has to be woken.
    fn post(&mut self, number: u64, notice: Option<Vec<u8>>) -> Vec<Waker> {
        let post = self.next_post;
        self.next_post += 1;
        let Some(board) = self.boards.get_mut(&number) else { return Vec::new() };
        board.posted = notice.map(|notice| (post, notice));
        self.readers()
    }

    /// Everybody who waits: something was posted, or somebody moved.
    pub(super) fn readers(&mut self) -> Vec<Waker> {
        self.boards.values_mut().filter_map(|board| board.reader.take()).collect()
    }

    /// The boards of a host end with it.
    pub(super) fn crash(&mut self, host: HostId) -> Vec<Waker> {
        self.boards.retain(|_, board| board.host != host);
        self.readers()
    }

    fn poll(&mut self, number: u64, topology: &Topology, context: &Context<'_>) -> Poll<Option<Vec<u8>>> {
        let Some(board) = self.boards.get(&number) else { return Poll::Ready(None) };
        let networks = homes(topology, board.host);
        let near = |other: &&Board| homes(topology, other.host).iter().any(|network| networks.contains(network));
        let posted = self.boards.values().filter(near).filter_map(|other| other.posted.as_ref());
        let news = posted.filter(|(post, _)| !board.heard.contains(post)).min_by_key(|(post, _)| *post).cloned();
        let current: BTreeSet<_> = self.boards.values().filter_map(|other| Some(other.posted.as_ref()?.0)).collect();
        let Some(board) = self.boards.get_mut(&number) else { return Poll::Ready(None) };
        board.heard.retain(|post| current.contains(post));
        match news {
            Some((post, notice)) => {
                board.heard.insert(post);
                Poll::Ready(Some(notice))
            }
            None => {
                board.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn homes(topology: &Topology, host: HostId) -> Vec<Realm> {
    topology.realms(host).filter(|realm| *realm != Realm::INTERNET).collect()
}

/// A host's board.
#[derive(Debug)]
pub(super) struct SimLanBoard {
    hub: Arc<Hub>,
    number: u64,
}

impl SimLanBoard {
    pub(super) fn open(hub: &Arc<Hub>, host: HostId) -> Self {
        Self { hub: hub.clone(), number: hub.with(|state| state.lan.open(host)) }
    }
}

impl LanBoard for SimLanBoard {
    fn post(&mut self, notice: Option<Vec<u8>>) {
        let woken = self.hub.with(|state| state.lan.post(self.number, notice));
        woken.into_iter().for_each(Waker::wake);
    }

    fn poll_heard(&mut self, context: &mut Context<'_>) -> Poll<Option<Vec<u8>>> {
        self.hub.with(|state| state.lan.poll(self.number, &state.router.topology, context))
    }
}

impl Drop for SimLanBoard {
    fn drop(&mut self) {
        let _gone = self.hub.with(|state| state.lan.boards.remove(&self.number));
    }
}
