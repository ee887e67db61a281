//! Which of the paths to one peer carries its datagrams: connectivity checks, fail-over and upgrades, pure.
//!
//! Tell it of paths ([`PathSelection::add`]), of the peer's authenticated checks and answers (`on_*`), and of what the
//! connection itself sends and receives. Send what [`PathSelection::poll_check`] wants checked, call
//! [`PathSelection::handle_timeout`] when [`PathSelection::poll_timeout`] says so, and move the route on
//! [`PathSelection::poll_event`]. Each end chooses for itself: both receive on all paths.
//!
//! A path counts only after an authenticated answer to an own check, so nobody else's datagrams can move a route. A path
//! that never answered gets a bounded number of checks: a peer that names somebody else's address aims nothing at them.
//! Encoding, integrity and sending are not here.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

mod candidate;

use super::path::{Path, tier};
use crate::limits::{CHECKS_PER_ROUND, PATHS_PER_PEER};
use crate::transport::PathKind;
use candidate::{ANSWER_WAIT, Candidate, MISSED_MAX, Sent, State};

/// Between two checks of the selected path: it carries data, which tells as much.
const SELECTED_INTERVAL: Duration = Duration::from_secs(5);
/// Between two checks of a standby: below every NAT's shortest timeout (25 s at most).
const STANDBY_INTERVAL: Duration = Duration::from_secs(15);
/// Within one tier a path has to be this much faster to be worth a change.
const FASTER: Duration = Duration::from_millis(5);
/// Share of lost packets, in thousandths, from which a path is avoided if there is another.
const LOSS_MAX_PERMILLE: u32 = 150;
/// A path this many times slower than another, and by this much, is avoided even if its tier is better.
const SLOWER: (u32, Duration) = (4, Duration::from_millis(150));

/// A check to be sent: a STUN Binding request with integrity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// By which path.
    pub path: Path,
    /// Its number; the answer repeats it.
    pub number: u32,
    /// Size to pad the datagram to, in bytes; 0 for as small as it is.
    pub padded_to: u16,
    /// Whether this path is the one in use at this end.
    pub selected: bool,
    /// Whether the peer ever answered on it.
    pub proven: bool,
}

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathEvent {
    /// Datagrams go by this path from now on.
    Selected(Path),
    /// No path answers any more; the one in use, if it still exists, stays in use until another does.
    Lost,
}

/// All paths to one peer.
#[derive(Debug)]
pub struct PathSelection {
    paths: BTreeMap<Path, Candidate>,
    selected: Option<Path>,
    /// Whether this end goes along with the peer's choice, so that both directions use one path.
    follows: bool,
    peer_selected: Option<Path>,
    /// Since when the selected path is in doubt.
    doubt_since: Option<Instant>,
    /// Size of the datagrams that the connection sends; a path must carry them before it is selected.
    datagram_bytes: u16,
    next_number: u32,
    lost: bool,
    events: VecDeque<PathEvent>,
}

impl PathSelection {
    /// Without any path.
    pub fn new() -> Self {
        Self {
            paths: BTreeMap::new(),
            selected: None,
            follows: false,
            peer_selected: None,
            doubt_since: None,
            datagram_bytes: 0,
            next_number: 0,
            lost: false,
            events: VecDeque::new(),
        }
    }

    /// With the path that the connection was made on, which works for all that is known.
    pub fn on(now: Instant, path: Path, kind: PathKind, round_trip: Duration) -> Self {
        let mut selection = Self::new();
        // The acceptor learns half a round trip later that there is a connection: until then it answers no check.
        let mut candidate = Candidate::new(now + round_trip, kind);
        candidate.state = State::Answers { round_trip, missed: 0 };
        selection.paths.insert(path, candidate);
        selection.selected = Some(path);
        selection
    }

    /// This end goes along with what the peer selects, as long as it works here: for the acceptor of a connection.
    pub fn following(mut self) -> Self {
        self.follows = true;
        self
    }

    /// Whether the path in use may be dead.
    pub fn is_in_doubt(&self) -> bool {
        self.doubt_since.is_some()
    }

    /// The path in use.
    pub fn selected(&self) -> Option<(Path, PathKind)> {
        let path = self.selected?;
        Some((path, self.paths.get(&path)?.kind))
    }

    /// Every path with its kind and, if it answers, its round-trip time; for reports.
    pub fn paths(&self) -> impl Iterator<Item = (Path, PathKind, Option<Duration>)> {
        self.paths.iter().map(|(path, candidate)| match candidate.state {
            State::Answers { round_trip, .. } => (*path, candidate.kind, Some(round_trip)),
            State::Unanswered { .. } | State::Silent { .. } => (*path, candidate.kind, None),
        })
    }

    /// A path that may work, to be checked from `at` on. False when there are as many as may be: paths that are asked no more
    /// make room for others, and those that never answered for relayed ones, which do.
    pub fn add(&mut self, at: Instant, path: Path, kind: PathKind) -> bool {
        if let Some(known) = self.paths.get_mut(&path) {
            known.kind = kind;
            return true;
        }
        if self.paths.len() >= PATHS_PER_PEER {
            let Some(replaced) = self.replaceable(kind) else { return false };
            self.paths.remove(&replaced);
        }
        self.paths.insert(path, Candidate::new(at, kind));
        true
    }

    fn replaceable(&self, kind: PathKind) -> Option<Path> {
        let unanswered = |(path, candidate): &(&Path, &Candidate)| {
            matches!(candidate.state, State::Unanswered { .. }) && self.selected != Some(**path)
        };
        let given_up = |(_, candidate): &(&Path, &Candidate)| !candidate.waiting && candidate.next_check.is_none();
        let worse = |(_, candidate): &(&Path, &Candidate)| tier(candidate.kind) < tier(kind);
        let mut candidates = self.paths.iter().filter(unanswered);
        let given_up = candidates.clone().find(given_up);
        given_up.or_else(|| candidates.find(worse)).map(|(path, _)| *path)
    }

    /// A path that is no more: its flow or allocation ended. When it was in use and no other answers, all are lost.
    pub fn remove(&mut self, now: Instant, path: &Path) {
        if self.paths.remove(path).is_none() || self.selected != Some(*path) {
            return;
        }
        self.selected = None;
        self.choose(now);
        if self.selected.is_none() {
            self.doubt(now);
            self.lose();
        }
    }

    /// The size of the datagrams that the connection sends now, in bytes.
    pub fn set_datagram_bytes(&mut self, bytes: u16) {
        self.datagram_bytes = bytes;
    }

    /// The peer's authenticated check came by this path: it is worth a check of ours at once. With `selected` the peer says
    /// that it sends by it.
    pub fn on_check(&mut self, now: Instant, path: Path, kind: PathKind, selected: bool) {
        if !self.paths.contains_key(&path) && !self.add(now, path, kind) {
            return;
        }
        if selected {
            self.on_peer_selected(now, path);
        }
        let Some(candidate) = self.paths.get_mut(&path) else { return };
        match &mut candidate.state {
            State::Unanswered { tries, .. } if !candidate.waiting => {
                *tries = (*tries).min(1);
                candidate.check_by(now);
            }
            State::Silent { .. } => candidate.check_by(now),
            State::Unanswered { .. } | State::Answers { .. } => {}
        }
    }

    fn on_peer_selected(&mut self, now: Instant, path: Path) {
        let news = self.peer_selected != Some(path);
        self.peer_selected = Some(path);
        if self.selected == Some(path) || !news {
            return;
        }
        if self.follows {
            self.choose(now);
        } else {
            // The peer left the path in use: it may be dead.
            self.doubt(now);
        }
    }

    /// The answer to an own check came by the path that the check went.
    pub fn on_answer(&mut self, now: Instant, path: Path, number: u32) {
        let Some(candidate) = self.paths.get_mut(&path) else { return };
        let Some(sent) = candidate.sent.iter().find(|sent| sent.number == number).copied() else { return };
        candidate.sent.clear();
        candidate.waiting = false;
        let measured = now.saturating_duration_since(sent.at);
        let round_trip = match candidate.state {
            State::Unanswered { .. } | State::Silent { .. } => measured,
            State::Answers { round_trip, .. } => (round_trip * 3 + measured) / 4,
        };
        candidate.state = State::Answers { round_trip, missed: 0 };
        if sent.padded_to >= candidate.proven {
            candidate.proven = sent.padded_to;
            candidate.unproven_tries = 0;
        }
        let in_use = self.selected == Some(path);
        candidate.next_check = Some(now + if in_use { SELECTED_INTERVAL } else { STANDBY_INTERVAL });
        if in_use {
            if !sent.selected {
                // The peer does not know yet that this is the path in use now.
                candidate.next_check = Some(now);
            }
            self.end_doubt(now);
        } else if self.doubt_since.is_none()
            && candidate.proven < self.datagram_bytes
            && candidate.unproven_tries < MISSED_MAX
        {
            // It answers small checks; whether it carries what the connection sends is asked at once.
            candidate.next_check = Some(now);
        }
        self.lost = false;
        self.choose(now);
    }

    /// A datagram could not be sent by this path: the network says that it is gone.
    pub fn on_send_error(&mut self, now: Instant, path: Path) {
        if self.selected == Some(path) {
            self.doubt(now);
        }
    }

    /// What the connection itself sees of the path in use: since when it has sent without anything coming back. Longer than a
    /// round trip or two, and the path is in doubt.
    pub fn on_traffic(&mut self, now: Instant, unanswered_since: Option<Instant>) {
        let Some(round_trip) = self.selected.and_then(|path| self.round_trip(&path)) else { return };
        let Some(sent) = unanswered_since else { return };
        // The first packet after the last that came: QUIC acknowledges within 25 ms.
        let patience = (round_trip * 2).clamp(ANSWER_WAIT.0, ANSWER_WAIT.1);
        if now.saturating_duration_since(sent) >= patience {
            self.doubt(now);
        }
    }

    /// What the connection measured on the path in use since the last time: lost packets in thousandths, and its round-trip time.
    pub fn on_quality(&mut self, now: Instant, lost_permille: u32, round_trip: Duration) {
        let Some(path) = self.selected else { return };
        let fastest = self.answering().filter(|(other, _)| **other != path).map(|(_, round_trip)| round_trip).min();
        let Some(fastest) = fastest else { return };
        if lost_permille >= LOSS_MAX_PERMILLE || round_trip > (fastest * SLOWER.0).max(fastest + SLOWER.1) {
            if let Some(candidate) = self.paths.get_mut(&path) {
                candidate.avoid(now);
            }
            self.choose(now);
        }
    }

    /// Both ends begin to open their NATs at `at`: paths that never answered are asked from then on.
    pub fn punch(&mut self, at: Instant) {
        for candidate in self.paths.values_mut() {
            if let State::Unanswered { tries, .. } = &mut candidate.state {
                *tries = 0;
                (candidate.waiting, candidate.next_check) = (false, Some(at));
            }
        }
    }

    /// Everything is to be tried again: the network changed.
    pub fn on_network_change(&mut self, now: Instant) {
        for candidate in self.paths.values_mut() {
            candidate.avoided_until = None;
            match &mut candidate.state {
                State::Unanswered { tries, rounds } => (*tries, *rounds) = (0, 0),
                State::Silent { tries } => *tries = 0,
                State::Answers { .. } => {}
            }
            candidate.check_by(now);
        }
        self.doubt_since = Some(now);
    }

    /// The next check to send. Ask until it is `None`.
    pub fn poll_check(&mut self, now: Instant) -> Option<Check> {
        let due = |candidate: &Candidate| !candidate.waiting && candidate.next_check.is_some_and(|next| next <= now);
        let path = *self.paths.iter().find(|(_, candidate)| due(candidate))?.0;
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1);
        let (selected, datagram_bytes) = (self.selected == Some(path), self.datagram_bytes);
        let candidate = self.paths.get_mut(&path)?;
        // In doubt what counts is which path lives.
        let prove = self.doubt_since.is_none()
            && matches!(candidate.state, State::Answers { .. })
            && !selected
            && candidate.proven < datagram_bytes
            && candidate.unproven_tries < MISSED_MAX;
        let padded_to = if prove { datagram_bytes } else { 0 };
        candidate.sent.truncate(CHECKS_PER_ROUND - 1);
        candidate.sent.push_front(Sent { number, at: now, padded_to, selected });
        candidate.waiting = true;
        let proven = !matches!(candidate.state, State::Unanswered { .. });
        Some(Check { path, number, padded_to, selected, proven })
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) or [`poll_check`](Self::poll_check), and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let checks = self.paths.values().filter(|candidate| !candidate.waiting);
        let checks = checks.filter_map(|candidate| Some((candidate.next_check?, "next check")));
        let answers = self.paths.values().filter_map(|candidate| Some((candidate.answer_by()?, "answer to a check")));
        let avoided =
            self.paths.values().filter_map(|candidate| Some((candidate.avoided_until?, "avoided path again")));
        checks.chain(answers).chain(avoided).min()
    }

    /// Notes the checks that nobody answered in time.
    pub fn handle_timeout(&mut self, now: Instant) {
        let doubt = self.doubt_since.is_some();
        let mut dead = Vec::new();
        for (path, candidate) in &mut self.paths {
            if candidate.avoided_until.is_some_and(|until| until <= now) {
                candidate.avoided_until = None;
            }
            if candidate.answer_by().is_some_and(|by| by <= now) && candidate.on_missed(now, doubt) {
                dead.push(*path);
            }
        }
        if self.selected.is_some_and(|path| self.missed(&path) > 0) {
            self.doubt(now);
        }
        if self.selected.is_some_and(|path| dead.contains(&path)) && !self.answering().any(|_| true) {
            self.lose();
        }
        self.choose(now);
    }

    /// What changed since the last time.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    /// No path answers; said once until one does.
    fn lose(&mut self) {
        if !std::mem::replace(&mut self.lost, true) {
            self.events.push_back(PathEvent::Lost);
        }
    }

    /// The selected path may be dead: it and its standbys are asked at short intervals.
    fn doubt(&mut self, now: Instant) {
        if self.doubt_since.is_some() {
            return;
        }
        self.doubt_since = Some(now);
        for candidate in self.paths.values_mut() {
            if let State::Answers { .. } = candidate.state {
                candidate.check_by(now);
            }
        }
    }

    /// Which paths carry the connection's datagrams was not asked meanwhile.
    fn end_doubt(&mut self, now: Instant) {
        if self.doubt_since.take().is_some() {
            let datagram_bytes = self.datagram_bytes;
            let narrow = |candidate: &&mut Candidate| {
                matches!(candidate.state, State::Answers { .. })
                    && candidate.proven < datagram_bytes
                    && candidate.unproven_tries < MISSED_MAX
            };
            self.paths.values_mut().filter(narrow).for_each(|candidate| candidate.check_by(now));
        }
    }

    fn choose(&mut self, now: Instant) {
        let Some(best) = self.best(now) else { return };
        let change = match self.selected {
            None => true,
            Some(current) if current == best => false,
            Some(current) => self.is_worth_changing(now, current, best),
        };
        if !change {
            return;
        }
        if let Some(current) = self.selected.and_then(|path| self.paths.get_mut(&path)) {
            match current.state {
                // It carried them until now.
                State::Answers { missed: 0, .. } => current.proven = current.proven.max(self.datagram_bytes),
                State::Answers { .. } | State::Silent { .. } | State::Unanswered { .. } => current.avoid(now),
            }
        }
        self.selected = Some(best);
        self.end_doubt(now);
        if let Some(candidate) = self.paths.get_mut(&best) {
            // The peer is told at once.
            candidate.check_by(now);
        }
        self.events.push_back(PathEvent::Selected(best));
    }

    fn is_worth_changing(&self, now: Instant, current: Path, best: Path) -> bool {
        let (Some(old), Some(new)) = (self.paths.get(&current), self.paths.get(&best)) else { return true };
        let State::Answers { round_trip: new_rtt, .. } = new.state else { return false };
        match old.state {
            State::Unanswered { .. } | State::Silent { .. } => true,
            State::Answers { .. } if self.is_followed(&best) => true,
            // In doubt and silent while the other answers: no need to wait for the third missed check.
            State::Answers { missed, .. } if missed >= MISSED_MAX - 1 => true,
            State::Answers { .. } if old.is_avoided(now) && !new.is_avoided(now) => true,
            State::Answers { .. } if new.is_avoided(now) => false,
            State::Answers { round_trip, .. } => match tier(new.kind).cmp(&tier(old.kind)) {
                std::cmp::Ordering::Less => true,
                std::cmp::Ordering::Equal => new_rtt + FASTER < round_trip,
                std::cmp::Ordering::Greater => false,
            },
        }
    }

    fn is_followed(&self, path: &Path) -> bool {
        self.follows && self.peer_selected == Some(*path)
    }

    /// The best of the paths that answer and, unless none does, carry the connection's datagrams.
    fn best(&self, now: Instant) -> Option<Path> {
        let rank = |(path, candidate): (&Path, &Candidate)| match candidate.state {
            State::Answers { round_trip, missed } => {
                let silent = missed >= MISSED_MAX - 1;
                let narrow = candidate.proven < self.datagram_bytes && self.selected != Some(*path);
                let undecided = narrow && candidate.unproven_tries < MISSED_MAX;
                let avoided = candidate.is_avoided(now);
                Some((
                    (silent, !self.is_followed(path), undecided, avoided, tier(candidate.kind), narrow, round_trip),
                    *path,
                ))
            }
            State::Unanswered { .. } | State::Silent { .. } => None,
        };
        self.paths.iter().filter_map(rank).min().map(|(_, path)| path)
    }

    fn answering(&self) -> impl Iterator<Item = (&Path, Duration)> {
        self.paths.iter().filter_map(|(path, candidate)| match candidate.state {
            State::Answers { round_trip, missed } if missed < MISSED_MAX => Some((path, round_trip)),
            State::Answers { .. } | State::Unanswered { .. } | State::Silent { .. } => None,
        })
    }

    fn round_trip(&self, path: &Path) -> Option<Duration> {
        match self.paths.get(path)?.state {
            State::Answers { round_trip, .. } => Some(round_trip),
            State::Unanswered { .. } | State::Silent { .. } => None,
        }
    }

    fn missed(&self, path: &Path) -> u32 {
        match self.paths.get(path).map(|candidate| candidate.state) {
            Some(State::Answers { missed, .. }) => missed,
            Some(State::Unanswered { .. } | State::Silent { .. }) | None => 0,
        }
    }
}

impl Default for PathSelection {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
