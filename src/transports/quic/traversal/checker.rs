//! Drives the checks of one session with one peer: sends them, takes what comes back, and tells which path is selected.
//!
//! [`PathSelection`] decides; this encodes, waits and looks up what kind a path is. One per meeting and one per connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::Traversal;
use super::turn::Lease;
use crate::limits::{CHECKS_WAITING, PATHS_PER_PEER, SIGNAL_CANDIDATES};
use crate::nat::check::{self, Session, Side};
use crate::nat::path::{Path, Via};
use crate::nat::path_selection::{Check, PathEvent, PathSelection};
use crate::nat::stun::{IntegrityKey, Scanned, TransactionId};
use crate::rendezvous::signal::{Candidate, CandidateKind};
use crate::transport::PathKind;
pub(super) use crate::transports::quic::addresses::is_private;
use crate::transports::quic::addresses::{canonical, is_destination};
use crate::transports::quic::attempt::PathOutcome;
use crate::watch;

/// The number of checks that are not the selection's, which counts from 0.
const KNOCK: u32 = u32::MAX;

/// What the socket brings for one session.
#[derive(Debug)]
pub(super) enum CheckInput {
    /// The peer's authenticated check came by this path; `in_use` says that the peer sends by it.
    Asked { path: Path, in_use: bool },
    /// A STUN response that repeats our transaction id; not authenticated yet.
    Answered { path: Path, message: Bytes },
}

/// How a session is found by what the socket brings.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) key: IntegrityKey,
    pub(super) input: mpsc::Sender<CheckInput>,
    /// First four bytes of the transaction ids of its checks.
    pub(super) consumer: u32,
    /// For the session of a connection: its path.
    pub(super) in_use: Option<InUse>,
}

/// The path that a connection uses.
#[derive(Debug, Clone, Copy)]
pub(super) struct InUse {
    pub(super) path: Path,
    pub(super) direct: bool,
    /// Since when it has been direct, or not.
    pub(super) since: Instant,
}

/// The checks of one session.
#[derive(Debug)]
pub(super) struct Checker {
    traversal: Arc<Traversal>,
    /// The peer is a stranger, whose addresses have a share only.
    pub(super) stranger: bool,
    pub(super) selection: PathSelection,
    /// The session as this end asks in it.
    session: Session,
    key: IntegrityKey,
    consumer: u32,
    input: mpsc::Receiver<CheckInput>,
    remote: Remote,
    /// Paths by which the peer's checks came since the session's task took them.
    pub(super) asked: Vec<Path>,
    /// Whether a check on the selected path was answered since, likewise.
    pub(super) answered: bool,
    /// Relayed paths that are new, for a dial: the relay takes packets, whatever the peer does with them.
    pub(super) relayed: Vec<Path>,
    turns: watch::Receiver<u64>,
    /// Paths through allocations of ours, and whether they are among those that are checked.
    leases: BTreeMap<Path, (Lease, bool)>,
    /// Paths on which checks were sent; on the others they were withheld.
    sent: BTreeSet<Path>,
}

/// What the peer said about its addresses.
#[derive(Debug, Default)]
struct Remote(BTreeMap<SocketAddr, CandidateKind>);

impl Remote {
    /// The peer names its addresses, all that it has. Those of before stay known, for it may be there again, until there are too
    /// many: then only those that are still `used`. Returns what is not known any more.
    fn hear(&mut self, named: &[Candidate], used: impl Fn(&SocketAddr) -> bool) -> Vec<SocketAddr> {
        let is_named = |address: &SocketAddr| named.iter().any(|candidate| candidate.address == *address);
        let new = named.iter().filter(|candidate| !self.0.contains_key(&candidate.address)).count();
        let mut forgotten = Vec::new();
        if self.0.len() + new > 2 * SIGNAL_CANDIDATES {
            forgotten.extend(self.0.keys().copied().filter(|address| !is_named(address) && !used(address)));
            forgotten.iter().for_each(|address| _ = self.0.remove(address));
        }
        for candidate in named {
            if self.0.contains_key(&candidate.address) || self.0.len() < 2 * SIGNAL_CANDIDATES {
                self.0.insert(candidate.address, candidate.kind);
            }
        }
        forgotten
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.traversal.unregister(self.session, self.consumer);
    }
}

impl Checker {
    /// Starts to listen for the session's checks. `None` when there are as many sessions as may be.
    pub(super) fn start(
        traversal: &Arc<Traversal>,
        number: u64,
        side: Side,
        secret: &[u8; 32],
        selection: PathSelection,
    ) -> Option<Self> {
        let (sender, input) = mpsc::channel(CHECKS_WAITING);
        let session = Session { number, asker: side };
        let key = IntegrityKey::short_term(secret);
        let registered = IntegrityKey::short_term(secret);
        // Only a connection has a path before the first check.
        let in_use = selection.selected();
        let consumer = traversal.register(session, registered, sender, in_use.is_some())?;
        let mut checker = Self {
            traversal: traversal.clone(),
            stranger: false,
            selection,
            session,
            key,
            consumer,
            input,
            remote: Remote::default(),
            asked: Vec::new(),
            answered: false,
            relayed: Vec::new(),
            turns: traversal.turns.subscribe(),
            leases: BTreeMap::new(),
            sent: BTreeSet::new(),
        };
        in_use.into_iter().for_each(|(path, _)| checker.keep_turn_path(path));
        Some(checker)
    }

    /// The peer said where it may be reached.
    pub(super) fn add_candidates(&mut self, candidates: &[Candidate]) {
        let now = Instant::now().into_std();
        let named = candidates.iter().take(SIGNAL_CANDIDATES);
        let named = named.map(|candidate| Candidate { address: canonical(candidate.address), ..*candidate });
        let named: Vec<_> = named.filter(|candidate| is_destination(&candidate.address)).collect();
        self.hear(now, &named);
        for Candidate { kind, address } in named.into_iter().filter(|named| self.remote.0.contains_key(&named.address))
        {
            // What this node's socket cannot reach may be reached from a relayed address. Who hides sends from there only: a
            // TURN server tells its client where packets come from, and a peer may call any address relayed.
            let paths = &self.traversal.paths;
            let hides = self.traversal.options.relay_only;
            if paths.reaches(&address) && !hides && (!self.stranger || paths.may_visit(address)) {
                let path = Path::direct(address);
                self.selection.add(now, path, self.kind(path));
                if kind == CandidateKind::Relayed {
                    self.relayed.push(path);
                }
            }
        }
        self.look_at_turns();
    }

    fn hear(&mut self, now: std::time::Instant, named: &[Candidate]) {
        let answering = self.selection.paths().filter(|(.., round_trip)| round_trip.is_some()).map(|(path, ..)| path);
        let selected = self.selection.selected().map(|(path, _)| path);
        let used: BTreeSet<_> = answering.chain(selected).map(|path| path.remote).collect();
        let forgotten = self.remote.hear(named, |address| used.contains(address));
        for address in &forgotten {
            self.selection.remove(now, &Path::direct(*address));
        }
        let selection = &mut self.selection;
        self.leases.retain(|path, _| {
            let kept = !forgotten.contains(&path.remote);
            if !kept {
                selection.remove(now, path);
            }
            kept
        });
    }

    /// Every candidate of the peer through every allocation of ours: as soon as the server lets packets pass.
    fn look_at_turns(&mut self) {
        let (turns, now) = (&self.traversal.turns, Instant::now().into_std());
        let selection = &mut self.selection;
        self.leases.retain(|path, _| {
            let kept = matches!(path.via, Via::Turn { allocation } if turns.has(allocation));
            if !kept {
                selection.remove(now, path);
            }
            kept
        });
        for lease in self.remote.0.keys().flat_map(|remote| turns.leases(*remote)) {
            self.leases.entry(lease.path()).or_insert((lease, false));
        }
        for (path, (lease, checked)) in &mut self.leases {
            if !*checked && lease.is_ready() {
                *checked = selection.add(now, *path, lease.kind());
                self.relayed.push(*path);
            }
        }
    }

    /// Makes sure that a path that is in use, or that the peer used, can be used by us.
    fn keep_turn_path(&mut self, path: Path) {
        let Via::Turn { allocation } = path.via else { return };
        if !self.leases.contains_key(&path)
            && let Some(lease) = self.traversal.turns.lease(allocation, path.remote)
        {
            self.leases.insert(path, (lease, true));
            self.relayed.push(path);
            // It may be known as something else, or not yet.
            self.selection.add(Instant::now().into_std(), path, self.kind(path));
        }
    }

    /// What the connection uses now.
    pub(super) fn note_in_use(&self, path: Path, kind: PathKind) {
        self.traversal.note_in_use(self.session, path, kind);
    }

    /// Both ends begin to open their NATs after this time.
    pub(super) fn punch(&mut self, after: Duration) {
        self.selection.punch((Instant::now() + after).into_std());
    }

    /// A path that relays offer.
    pub(super) fn add_relayed(&mut self, path: Path) {
        let kind = self.kind(path);
        self.selection.add(Instant::now().into_std(), path, kind);
    }

    /// Runs until the selected path changes, the peer used a path that was not known (`asked`), or there are new relayed paths
    /// (`relayed`). Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<PathEvent> {
        loop {
            let now = Instant::now().into_std();
            if self.selection.poll_timeout().is_some_and(|(at, _)| at <= now) {
                self.selection.handle_timeout(now);
            }
            while let Some(check) = self.selection.poll_check(now) {
                self.send(check);
            }
            if let Some(event) = self.selection.poll_event() {
                return Some(event);
            }
            if self.answered || !self.asked.is_empty() || !self.relayed.is_empty() {
                return None;
            }
            let timeout = self.selection.poll_timeout().map(|(at, _)| at.into());
            tokio::select! {
                biased;
                // The sender lives in the registry for as long as this does.
                Some(input) = self.input.recv() => self.on_input(input),
                Ok(()) = self.turns.changed() => self.look_at_turns(),
                () = sleep_until(timeout.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))) => {}
            }
        }
    }

    fn on_input(&mut self, input: CheckInput) {
        let now = Instant::now().into_std();
        match input {
            CheckInput::Asked { path, in_use } => {
                self.keep_turn_path(path);
                let kind = self.kind(path);
                self.selection.on_check(now, path, kind, in_use);
                if !self.asked.contains(&path) {
                    self.asked.push(path);
                }
            }
            CheckInput::Answered { path, message } => {
                let Ok(scanned) = Scanned::scan(&message) else { return };
                let Some(number) = scanned.transaction_id().as_bytes()[4..8].try_into().ok().map(u32::from_be_bytes)
                else {
                    return;
                };
                if check::read_answer(&scanned, &self.key).is_some() {
                    self.traversal.paths.prove(&path);
                    self.answered |= self.selection.selected().is_some_and(|(selected, _)| selected == path);
                    self.selection.on_answer(now, path, number);
                }
            }
        }
    }

    fn send(&mut self, check: Check) {
        // Withheld is as good as lost.
        if check.proven || self.traversal.paths.may_send(&check.path) {
            let request = self.request(check.number, check.selected, check.padded_to);
            request.inspect(|request| self.traversal.paths.send(check.path, request));
            if self.sent.len() >= 2 * PATHS_PER_PEER {
                let known: BTreeSet<_> = self.selection.paths().map(|(path, ..)| path).collect();
                self.sent.retain(|path| known.contains(path));
            }
            self.sent.insert(check.path);
        }
    }

    fn request(&self, number: u32, in_use: bool, padded_to: u16) -> Option<Vec<u8>> {
        let mut id = [0; 12];
        id[..4].copy_from_slice(&self.consumer.to_be_bytes());
        id[4..8].copy_from_slice(&number.to_be_bytes());
        id[8..].copy_from_slice(&self.traversal.random::<4>());
        check::request(self.session, &self.key, TransactionId::from_random(id), in_use, padded_to)
    }

    /// A check beside those of the selection, sent by a path that may lead nowhere: for the peer to notice it.
    pub(super) fn knock(&self, path: Path) {
        self.request(KNOCK, false, 0).inspect(|request| self.traversal.paths.send(path, request));
    }

    /// What came of all paths so far.
    pub(super) fn outcomes(&self) -> Vec<(Path, PathKind, PathOutcome)> {
        let checked = self.selection.paths().map(|(path, _, round_trip)| {
            let silent = if self.sent.contains(&path) { PathOutcome::NoAnswer } else { PathOutcome::Withheld };
            let outcome = round_trip.map_or(silent, |round_trip| PathOutcome::Answered { round_trip });
            (path, self.kind(path), outcome)
        });
        let unchecked = self.leases.iter().filter(|(_, (_, checked))| !checked).map(|(path, (lease, _))| {
            let refused = lease.refusal().map(|code| PathOutcome::Refused { code: code.number() });
            (*path, lease.kind(), refused.unwrap_or(PathOutcome::NoAnswer))
        });
        checked.chain(unchecked).collect()
    }

    /// What kind of path this is, by what both ends know of their addresses.
    pub(super) fn kind(&self, path: Path) -> PathKind {
        match path.via {
            Via::Forward { .. } => PathKind::Forwarded,
            Via::Extra { .. } => PathKind::Punched,
            Via::Turn { allocation } => self.traversal.turns.kind(allocation),
            Via::Socket => match self.remote.0.get(&path.remote) {
                Some(CandidateKind::Relayed) => PathKind::TurnUdp,
                Some(CandidateKind::Mapped) => PathKind::Mapped,
                Some(CandidateKind::Host) if is_private(path.remote.ip()) => PathKind::Lan,
                Some(CandidateKind::Host) => PathKind::Direct,
                Some(CandidateKind::ServerReflexive | CandidateKind::PeerReflexive) | None => {
                    let public = self.traversal.has_public_address(path.remote.is_ipv4());
                    if public { PathKind::Direct } else { PathKind::Punched }
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(network: u8) -> Vec<Candidate> {
        let address = |host: usize| SocketAddr::from(([198, 51, network, host as u8], 4000));
        (0..SIGNAL_CANDIDATES).map(|host| Candidate { kind: CandidateKind::Host, address: address(host) }).collect()
    }

    #[test]
    fn a_peer_that_has_been_in_many_networks_is_looked_for_where_it_is_and_where_it_answers() {
        let mut remote = Remote::default();
        let used = candidates(0)[0].address;
        for network in 0..100 {
            let named = candidates(network);
            let forgotten = remote.hear(&named, |address| *address == used);
            assert!(forgotten.iter().all(|address| !remote.0.contains_key(address)));
            assert!(named.iter().all(|candidate| remote.0.contains_key(&candidate.address)), "network {network}");
            assert!(remote.0.contains_key(&used) && remote.0.len() <= 2 * SIGNAL_CANDIDATES);
        }
    }

    #[test]
    fn while_there_is_room_addresses_of_before_stay_known() {
        let mut remote = Remote::default();
        for network in [0, 1, 0] {
            assert!(remote.hear(&candidates(network), |_| false).is_empty());
        }
        assert_eq!(remote.0.len(), 2 * SIGNAL_CANDIDATES);
    }
}
