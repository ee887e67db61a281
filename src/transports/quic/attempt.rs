//! What a dial tried, and what came of each way: for a person who wants to know why a peer was not reached.
//!
//! A dial writes into its [`Attempt`] while it lasts, meetings when they end, however they do. The [`DialReport`] is taken out
//! when the dial is over.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::addresses::is_private;
use crate::limits::{PATHS_PER_PEER, TICKET_MAX_RELAYS};
use crate::nat::path::Path;
use crate::rendezvous::address::HostPort;
use crate::transport::PathKind;

/// What came of one way to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathOutcome {
    /// The peer answered.
    Answered {
        /// After this time.
        round_trip: Duration,
    },
    /// Nobody did.
    NoAnswer,
    /// Somebody did who does not have the peer's key: another machine has that address here.
    Stranger,
    /// Nothing was sent: too much had gone there that nobody answered, or this node hides where it is.
    Withheld,
    /// This machine cannot send there: it has no address of that family.
    NoRoute,
    /// The TURN server does not relay to that address.
    Refused {
        /// Its error code (RFC 8656, section 19).
        code: u16,
    },
}

/// One way to a peer that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TriedPath {
    /// Which kind it is, as far as that is known.
    pub kind: PathKind,
    /// Where datagrams were sent: the peer, or the relay that forwards.
    pub remote: SocketAddr,
    /// What came of it.
    pub outcome: PathOutcome,
}

impl TriedPath {
    /// The round trip, if the peer answered.
    pub fn round_trip(&self) -> Option<Duration> {
        match self.outcome {
            PathOutcome::Answered { round_trip } => Some(round_trip),
            PathOutcome::NoAnswer
            | PathOutcome::Stranger
            | PathOutcome::Withheld
            | PathOutcome::NoRoute
            | PathOutcome::Refused { .. } => None,
        }
    }
}

impl fmt::Display for PathOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { .. } => f.write_str("answered"),
            Self::NoAnswer => f.write_str("no answer"),
            Self::Stranger => f.write_str("another machine answered"),
            Self::Withheld => f.write_str("withheld"),
            Self::NoRoute => f.write_str("no address of that family here"),
            Self::Refused { code } => write!(f, "refused by the TURN server (error {code})"),
        }
    }
}

/// What came of asking one relay to introduce us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Introduction {
    /// There was no session with the relay.
    NoSession,
    /// The relay says that the peer has no session with it.
    NotHere,
    /// The peer was told, and did not answer.
    NoAnswer,
    /// The peer does not want to meet us.
    Refused,
    /// The peer answered, and said where it is.
    Answered,
}

impl fmt::Display for Introduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSession => "there is no session with it",
            Self::NotHere => "the peer is not there",
            Self::NoAnswer => "the peer does not answer",
            Self::Refused => "the peer does not want to meet us",
            Self::Answered => "the peer answered",
        })
    }
}

/// All that one dial tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DialReport {
    /// The relays that were asked for an introduction.
    pub introductions: Vec<(HostPort, Introduction)>,
    /// The paths, at most 40 for each relay that introduced us.
    pub paths: Vec<TriedPath>,
}

/// A dial under way.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    introductions: Mutex<BTreeMap<HostPort, Introduction>>,
    paths: Mutex<BTreeMap<Path, (PathKind, PathOutcome)>>,
}

impl Attempt {
    /// What came of asking a relay so far. A peer that answered once is there.
    pub(super) fn introduced(&self, relay: &HostPort, what: Introduction) {
        let mut introductions = self.introductions.lock().unwrap_or_else(PoisonError::into_inner);
        if introductions.get(relay) != Some(&Introduction::Answered) {
            introductions.insert(relay.clone(), what);
        }
    }

    /// What came of a path. Better news of the same path wins, in whatever order they come.
    pub(super) fn tried(&self, path: Path, kind: PathKind, outcome: PathOutcome) {
        let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
        let full = paths.len() >= PATHS_PER_PEER * TICKET_MAX_RELAYS;
        match paths.get_mut(&path) {
            Some(known) if rank(outcome) < rank(known.1) => *known = (kind, outcome),
            Some(_) => {}
            None if full => {}
            None => _ = paths.insert(path, (kind, outcome)),
        }
    }

    /// All of it; best paths first.
    pub(super) fn report(&self) -> DialReport {
        let introductions = self.introductions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let tried = |(path, (kind, outcome)): (Path, _)| TriedPath { kind, remote: path.remote, outcome };
        let mut paths: Vec<_> = paths.into_iter().map(tried).collect();
        paths.sort_by_key(|path| (rank(path.outcome), path.kind));
        DialReport { introductions: introductions.into_iter().collect(), paths }
    }
}

/// What says more about a path, first.
fn rank(outcome: PathOutcome) -> u8 {
    match outcome {
        PathOutcome::Answered { .. } => 0,
        PathOutcome::Stranger => 1,
        PathOutcome::Refused { .. } => 2,
        PathOutcome::NoAnswer => 3,
        PathOutcome::Withheld => 4,
        PathOutcome::NoRoute => 5,
    }
}

/// What kind of path leads to an address that a peer names as its own.
pub(super) fn kind_of_own(ip: IpAddr) -> PathKind {
    if is_private(ip) { PathKind::Lan } else { PathKind::Direct }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_more_is_kept_and_comes_first() {
        let attempt = Attempt::default();
        let path = |text: &str| Path::direct(text.parse().unwrap());
        let (one, other) = (path("192.0.2.1:1"), path("10.0.0.1:1"));
        let answered = PathOutcome::Answered { round_trip: Duration::from_millis(5) };
        for outcome in [PathOutcome::Withheld, PathOutcome::NoAnswer, answered, PathOutcome::NoRoute] {
            attempt.tried(one, PathKind::Direct, outcome);
        }
        attempt.tried(other, kind_of_own(other.remote.ip()), PathOutcome::NoAnswer);
        let relay = HostPort::new("relay.example.org", 443).unwrap();
        for what in [Introduction::NotHere, Introduction::Answered, Introduction::NotHere] {
            attempt.introduced(&relay, what);
        }
        let report = attempt.report();
        assert_eq!(report.introductions, [(relay, Introduction::Answered)]);
        let found: Vec<_> = report.paths.iter().map(|path| (path.kind, path.outcome)).collect();
        assert_eq!(found, [(PathKind::Direct, answered), (PathKind::Lan, PathOutcome::NoAnswer)]);
    }
}
