//! Birthday punching for live connections: opens the sockets, sends the packets, and keeps the one socket that met the peer.
//!
//! [`BirthdayMachine`] decides what is sent and when; a [`Birthday`] drives it for one connection, and [`Birthdays`] is what all
//! connections of a node share: one attempt at a time, and rest after each. The two ends agree over the relayed connection, whose
//! checks the packets are. So a hit is an authenticated check like any other, and selection, fail-over and keep-alives are those
//! of every path.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::checker::{Checker, is_private};
use super::{Traversal, lock};
use crate::ids::PeerId;
use crate::limits::{BIRTHDAY_PEERS, BIRTHDAY_REST};
use crate::nat::birthday::{Action, BirthdayMachine, Role};
use crate::nat::path::{Path, Via};
use crate::rendezvous::signal::{BirthdayWord, Candidate, CandidateKind};
use crate::transport::{NatMapping, PathKind};
use crate::transports::quic::addresses::canonical;
use crate::transports::quic::extra::ExtraSocket;
use crate::watch;

/// When it is looked again whether another peer's attempt is over.
const BUSY_AGAIN: Duration = Duration::from_secs(15);
/// How long the socket is kept on whose path nobody answers: a NAT that forgot it gives it another port, which nobody knows.
const KEPT_SILENT: Duration = Duration::from_secs(60);
/// When there is nothing to wait for.
const IDLE: Duration = Duration::from_secs(3600);

/// What the connections of a node share.
#[derive(Debug)]
pub(super) struct Birthdays {
    enabled: bool,
    mapping: watch::Sender<NatMapping>,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// An attempt is under way.
    busy: bool,
    tried: BTreeMap<PeerId, Tried>,
}

/// The last attempt with a peer.
#[derive(Debug, Clone, Copy)]
struct Tried {
    at: Instant,
    rest: Duration,
}

impl Birthdays {
    pub(super) fn new(enabled: bool) -> Self {
        Self { enabled, mapping: watch::Sender::new(NatMapping::Unknown), shared: Mutex::default() }
    }

    /// How our NAT maps, as far as is known now.
    pub(super) fn set_mapping(&self, mapping: NatMapping) {
        self.mapping.send_if_modified(|known| std::mem::replace(known, mapping) != mapping);
    }

    /// What was tried in another network says nothing about this one.
    pub(super) fn on_network_change(&self) {
        lock(&self.shared).tried.clear();
    }

    /// Takes the one place that there is, or says when to come again.
    fn begin(&self, peer: &PeerId, role: Role, now: Instant) -> Result<(), Instant> {
        let mut shared = lock(&self.shared);
        let rested = shared.tried.get(peer).map(|tried| match role {
            Role::Many => tried.at + tried.rest,
            // The peer asks when it has rested. Its time began a little earlier.
            Role::One => tried.at + tried.rest * 3 / 4,
        });
        match rested {
            Some(at) if now < at => Err(at),
            _ if shared.busy => Err(now + BUSY_AGAIN),
            _ => {
                shared.busy = true;
                Ok(())
            }
        }
    }

    /// An attempt with this peer begins in earnest.
    fn note(&self, peer: PeerId, now: Instant) {
        let tried = &mut lock(&self.shared).tried;
        let rest = tried.get(&peer).map_or(BIRTHDAY_REST.0, |tried| (tried.rest * 2).min(BIRTHDAY_REST.1));
        tried.insert(peer, Tried { at: now, rest });
        if tried.len() > BIRTHDAY_PEERS {
            let oldest = tried.iter().min_by_key(|(_, tried)| tried.at).map(|(peer, _)| *peer);
            oldest.and_then(|oldest| tried.remove(&oldest));
        }
    }

    fn end(&self) {
        lock(&self.shared).busy = false;
    }
}

/// Birthday punching with the peer of one connection.
#[derive(Debug)]
pub(super) struct Birthday {
    traversal: Arc<Traversal>,
    peer: PeerId,
    machine: BirthdayMachine,
    mapping: watch::Receiver<NatMapping>,
    /// Whether the node's one place is ours.
    begun: bool,
    /// By their numbers in the attempt; after it the one that met the peer.
    sockets: BTreeMap<usize, ExtraSocket>,
    /// Of an attempt under way, whether the two have met.
    met: Option<bool>,
    /// Since when nobody answers on that one.
    silent_since: Option<Instant>,
}

impl Birthday {
    pub(super) fn new(traversal: &Arc<Traversal>, peer: PeerId) -> Self {
        let mut mapping = traversal.birthdays.mapping.subscribe();
        mapping.mark_changed();
        Self {
            traversal: traversal.clone(),
            peer,
            machine: BirthdayMachine::new(traversal.random()),
            mapping,
            begun: false,
            sockets: BTreeMap::new(),
            met: None,
            silent_since: None,
        }
    }

    /// What the peer says where it is: all of it, so that what it left out does not hold any more.
    pub(super) fn on_candidates(&mut self, candidates: &[Candidate]) {
        let own: Vec<_> = self.traversal.candidates.borrow().iter().map(|candidate| candidate.address.ip()).collect();
        let fits = |address: &SocketAddr| {
            // A private address would let a peer have our own network searched; our own one is that of a neighbour.
            address.is_ipv4() && !is_private(address.ip()) && !own.contains(&address.ip())
        };
        let reflexive = candidates.iter().filter(|candidate| candidate.kind == CandidateKind::ServerReflexive);
        let mut addresses = reflexive.map(|candidate| canonical(candidate.address));
        self.machine.on_target(addresses.find(|address| fits(address) && self.traversal.paths.reaches(address)));
    }

    /// The peer said something about it.
    pub(super) fn on_word(&mut self, word: BirthdayWord) {
        let (birthdays, now) = (&self.traversal.birthdays, Instant::now());
        if !birthdays.enabled {
            return;
        }
        match word {
            BirthdayWord::Willing(mapping) => self.machine.on_peer(mapping),
            BirthdayWord::Ask => {
                let idle = !self.machine.is_busy() && self.sockets.is_empty();
                let fits = idle && self.machine.role() == Some(Role::One);
                if fits && birthdays.begin(&self.peer, Role::One, now).is_ok() {
                    (self.begun, self.met) = (true, Some(false));
                    birthdays.note(self.peer, now);
                    self.machine.go(now.into_std());
                }
            }
            BirthdayWord::Go => {
                if self.machine.on_go(now.into_std()) {
                    self.met = Some(false);
                    birthdays.note(self.peer, now);
                }
            }
        }
    }

    pub(super) fn on_network_change(&mut self) {
        self.machine.on_network_change(Instant::now().into_std());
    }

    /// An authenticated check of the peer came by this path. If that is one of our sockets, the others have done their part.
    pub(super) fn on_asked(&mut self, path: Path) {
        if !self.machine.is_busy() {
            return;
        }
        match path.via {
            Via::Extra { .. } => {
                self.sockets.retain(|_, socket| socket.path() == path);
                self.sockets.values().for_each(ExtraSocket::prove);
                self.machine.on_check(path.remote);
            }
            Via::Socket => self.machine.on_check(path.remote),
            Via::Forward { .. } | Via::Turn { .. } => {}
        }
        if !self.machine.is_busy() {
            self.met = Some(true);
        }
    }

    /// Does what is to be done now. Returns what is to be said to the peer.
    pub(super) fn drive(&mut self, checker: &mut Checker) -> Vec<BirthdayWord> {
        let mut words = Vec::new();
        if !self.traversal.birthdays.enabled {
            return words;
        }
        let now = Instant::now();
        let std_now = now.into_std();
        if self.mapping.has_changed() {
            let mapping = *self.mapping.borrow_and_update();
            self.machine.on_own(mapping);
            words.push(BirthdayWord::Willing(mapping));
        }
        let selected = checker.selection.selected().map(|(path, _)| checker.kind(path));
        self.machine.on_path(std_now, selected.is_some_and(is_relayed));
        self.look_at_sockets(checker, now);
        if self.machine.is_ready(std_now) && !self.sockets.is_empty() {
            // Not before it is certain that the socket from the last time is dead.
            self.machine.rest((now + BUSY_AGAIN).into_std());
        }
        if self.machine.is_ready(std_now) {
            match self.traversal.birthdays.begin(&self.peer, Role::Many, now) {
                Ok(()) => {
                    self.begun = true;
                    self.machine.ask(std_now);
                }
                Err(until) => self.machine.rest(until.into_std()),
            }
        }
        while let Some(action) = self.machine.poll_action(std_now) {
            match action {
                Action::Ask => words.push(BirthdayWord::Ask),
                Action::Go => words.push(BirthdayWord::Go),
                Action::Send { socket, to } => self.send(checker, socket, to),
                Action::Probe { to } => {
                    // Withheld is as good as lost.
                    if self.traversal.paths.may_guess(to) {
                        checker.knock(Path::direct(to));
                    }
                }
                Action::End => self.end(),
            }
        }
        words
    }

    /// Waits until there is something to do. Cancel-safe.
    pub(super) async fn next(&mut self) {
        let enabled = self.traversal.birthdays.enabled;
        let due = self.machine.poll_timeout().map(|(at, _)| Instant::from_std(at));
        let silent = self.silent_since.map(|since| since + KEPT_SILENT);
        let at = [due, silent].into_iter().flatten().min().filter(|_| enabled);
        tokio::select! {
            biased;
            Ok(()) = self.mapping.changed(), if enabled => {}
            () = sleep_until(at.unwrap_or_else(|| Instant::now() + IDLE)) => {}
        }
    }

    fn send(&mut self, checker: &Checker, number: usize, to: SocketAddr) {
        let traversal = &self.traversal;
        if !traversal.paths.may_guess(to) {
            return;
        }
        let socket = match self.sockets.entry(number) {
            Entry::Occupied(open) => open.into_mut(),
            Entry::Vacant(place) => match ExtraSocket::open(&traversal.paths, &*traversal.options.network, to) {
                Ok(socket) => place.insert(socket),
                Err(error) => {
                    tracing::debug!(%error, number, "no further socket for birthday punching");
                    return self.machine.on_no_socket(number);
                }
            },
        };
        checker.knock(socket.path());
    }

    /// Closes what is of no use any more, and forgets its paths.
    fn look_at_sockets(&mut self, checker: &mut Checker, now: Instant) {
        let answers = |(path, _, round_trip): (Path, _, Option<Duration>)| {
            matches!(path.via, Via::Extra { .. }) && round_trip.is_some()
        };
        let silent = !self.sockets.is_empty() && !self.machine.is_busy() && !checker.selection.paths().any(answers);
        self.silent_since = silent.then(|| self.silent_since.unwrap_or(now));
        if self.silent_since.is_some_and(|since| now >= since + KEPT_SILENT) {
            self.sockets.clear();
            self.silent_since = None;
        }
        let open = |path: &Path| self.sockets.values().any(|socket| socket.path() == *path);
        let extra = checker.selection.paths().map(|(path, ..)| path);
        let closed: Vec<_> = extra.filter(|path| matches!(path.via, Via::Extra { .. }) && !open(path)).collect();
        closed.iter().for_each(|path| checker.selection.remove(now.into_std(), path));
    }

    /// The attempt is over. If the two met, the one socket is left that they met at.
    fn end(&mut self) {
        if self.met != Some(true) {
            self.sockets.clear();
        }
        if let Some(met) = self.met.take() {
            tracing::info!(peer = %self.peer.short(), met, "birthday punching is over");
        }
        self.give_back();
    }

    fn give_back(&mut self) {
        if std::mem::take(&mut self.begun) {
            self.traversal.birthdays.end();
        }
    }
}

impl Drop for Birthday {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Whether a relay carries the connection.
fn is_relayed(kind: PathKind) -> bool {
    match kind {
        PathKind::Forwarded | PathKind::TurnUdp | PathKind::TurnTcp | PathKind::TurnTls => true,
        PathKind::Lan | PathKind::Direct | PathKind::Punched | PathKind::Mapped => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn peer(number: u8) -> PeerId {
        Identity::from_seed(&[number; 32]).peer_id()
    }

    #[test]
    fn one_attempt_at_a_time_and_rest_after_each_that_doubles() {
        let (birthdays, now) = (Birthdays::new(true), Instant::now());
        let begin = |number, at| birthdays.begin(&peer(number), Role::Many, at);
        assert_eq!(begin(1, now), Ok(()));
        assert_eq!(begin(2, now), Err(now + BUSY_AGAIN), "one at a time");
        birthdays.note(peer(1), now);
        birthdays.end();
        assert_eq!(begin(2, now), Ok(()), "another peer");
        birthdays.end();
        let (mut at, mut rest) = (now, BIRTHDAY_REST.0);
        for _ in 0..8 {
            assert_eq!(begin(1, at), Err(at + rest));
            assert!(birthdays.begin(&peer(1), Role::One, at + rest / 2).is_err());
            assert_eq!(
                birthdays.begin(&peer(1), Role::One, at + rest * 3 / 4),
                Ok(()),
                "the peer's clock may be ahead"
            );
            birthdays.end();
            at += rest;
            assert_eq!(begin(1, at), Ok(()));
            birthdays.note(peer(1), at);
            birthdays.end();
            rest = (rest * 2).min(BIRTHDAY_REST.1);
        }
        assert_eq!(rest, BIRTHDAY_REST.1);
        birthdays.on_network_change();
        assert_eq!(begin(1, at), Ok(()), "another network, another NAT");
    }

    #[test]
    fn what_is_remembered_of_peers_is_bounded() {
        let (birthdays, now) = (Birthdays::new(true), Instant::now());
        for number in 0..=BIRTHDAY_PEERS {
            let identity = Identity::from_seed(blake3::hash(&number.to_be_bytes()).as_bytes());
            birthdays.note(identity.peer_id(), now + Duration::from_secs(number as u64));
        }
        assert_eq!(lock(&birthdays.shared).tried.len(), BIRTHDAY_PEERS);
    }
}
