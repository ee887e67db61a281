//! The one line that says how a followed file is doing.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use panda_network::transport::PathKind;
use panda_network::transports::relay_client::RelayState;
use panda_network::{DocumentStatus, PandaNetwork};

use super::file_text::FileProblem;

/// By what kinds of path peers are reached, and whether relays are up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connectivity {
    /// Connections by the kind of path they use, best first.
    pub paths: BTreeMap<PathKind, usize>,
    /// Relays whose sessions are up.
    pub relays_up: usize,
    /// Relays in all.
    pub relays: usize,
}

impl Connectivity {
    /// Of a node, now.
    pub fn of(network: &PandaNetwork) -> Self {
        let mut paths = BTreeMap::new();
        for (info, _) in network.connections() {
            *paths.entry(info.path).or_default() += 1;
        }
        let relays = network.relays();
        let relays_up = relays.iter().filter(|(_, state)| matches!(state, RelayState::Up(_))).count();
        Self { paths, relays_up, relays: relays.len() }
    }

    fn paths(&self) -> String {
        let only = self.paths.values().sum::<usize>() == 1;
        let kinds =
            self.paths.iter().map(|(kind, count)| if only { kind.to_string() } else { format!("{count} {kind}") });
        kinds.collect::<Vec<_>>().join(", ")
    }

    fn relays(&self) -> Option<String> {
        match (self.relays_up, self.relays) {
            (_, 0) => None,
            (0, 1) => Some("relay not reached".into()),
            (_, 1) => Some("relay up".into()),
            (up, all) => Some(format!("{up} of {all} relays up")),
        }
    }
}

/// What the line shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusView {
    /// Connected peers.
    pub peers: usize,
    /// How they and the relays are reached.
    pub connectivity: Connectivity,
    /// Own operations that nobody else has.
    pub pending: usize,
    /// Operations that others have and we do not.
    pub missing: usize,
    /// Last exchange with a peer, µs since the epoch.
    pub last_sync_us: Option<u64>,
    /// Why the file is not followed now.
    pub pause: Option<Pause>,
}

/// Why a file is not followed for the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pause {
    /// Joined, but nothing has arrived yet.
    AwaitsDocument,
    /// The file is not fit.
    Problem(FileProblem),
    /// The document has become larger than a file may be.
    DocumentTooLarge(usize),
    /// An edit could not be published yet.
    NotPublished(String),
    /// The file could not be written.
    NotWritten(String),
}

impl std::fmt::Display for Pause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AwaitsDocument => f.write_str("waiting for the other side"),
            Self::Problem(FileProblem::Missing) => f.write_str("PAUSED: the file is gone; put it back to go on"),
            Self::Problem(problem) => write!(f, "PAUSED: {problem}"),
            Self::DocumentTooLarge(bytes) => {
                write!(f, "PAUSED: the document has grown to {bytes} bytes, over the limit")
            }
            Self::NotPublished(reason) => write!(f, "RETRYING: an edit is not published yet: {reason}"),
            Self::NotWritten(reason) => write!(f, "RETRYING: the file cannot be written: {reason}"),
        }
    }
}

impl StatusView {
    /// What the line says of a document.
    pub fn new(status: &DocumentStatus, connectivity: Connectivity, pause: Option<Pause>) -> Self {
        let DocumentStatus { peers, pending, missing, last_sync_us, .. } = *status;
        Self { peers, connectivity, pending, missing, last_sync_us, pause }
    }

    /// The line without the time, which changes by itself.
    pub fn summary(&self) -> String {
        let mut line: String = match self.peers {
            0 => "no peer connected".into(),
            1 => "1 peer".into(),
            peers => format!("{peers} peers"),
        };
        if self.peers > 0 && !self.connectivity.paths.is_empty() {
            line += &format!(" ({})", self.connectivity.paths());
        }
        if let Some(relays) = self.connectivity.relays() {
            line += &format!(" · {relays}");
        }
        line += &format!(" · {} pending", self.pending);
        if self.missing > 0 {
            line += &format!(" · {} to come", self.missing);
        }
        if let Some(pause) = &self.pause {
            line += &format!(" · {pause}");
        }
        line
    }

    /// The whole line at a time, µs since the epoch.
    pub fn line(&self, now_us: u64) -> String {
        let sync = match self.last_sync_us {
            None => "not synced yet".into(),
            Some(then) => format!("last sync {}", ago(Duration::from_micros(now_us.saturating_sub(then)))),
        };
        format!("{} · {sync}", self.summary())
    }
}

fn ago(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        0..=1 => "just now".into(),
        seconds @ 2..=59 => format!("{seconds} s ago"),
        seconds @ 60..=3599 => format!("{} min ago", seconds / 60),
        seconds => format!("{} h ago", seconds / 3600),
    }
}

/// Where the line goes: redrawn in place on a terminal, else printed when it changes.
#[derive(Debug, Default)]
pub struct StatusLine {
    shown: String,
}

impl StatusLine {
    /// Shows the state.
    pub fn show(&mut self, view: &StatusView, now_us: u64) {
        let mut stderr = std::io::stderr().lock();
        let on_terminal = stderr.is_terminal();
        let key = if on_terminal { view.line(now_us) } else { view.summary() };
        if key == self.shown {
            return;
        }
        // A status line that cannot be shown is no reason to stop.
        let _ = if on_terminal {
            write!(stderr, "\r\x1b[2K{key}").and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{}", view.line(now_us))
        };
        self.shown = key;
    }

    /// Says something that stays, above the line.
    pub fn say(&mut self, message: &str) {
        let mut stderr = std::io::stderr().lock();
        let clear = if stderr.is_terminal() { "\r\x1b[2K" } else { "" };
        let _ = writeln!(stderr, "{clear}{message}");
        self.shown.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> StatusView {
        let connectivity = Connectivity::default();
        StatusView { peers: 0, connectivity, pending: 3, missing: 0, last_sync_us: None, pause: None }
    }

    #[test]
    fn the_line_says_peers_pending_and_last_sync() {
        assert_eq!(view().line(0), "no peer connected · 3 pending · not synced yet");
        let synced = StatusView { peers: 2, missing: 9, last_sync_us: Some(1_000_000), ..view() };
        assert_eq!(synced.line(1_500_000), "2 peers · 3 pending · 9 to come · last sync just now");
        assert!(synced.line(43_000_000).ends_with("last sync 42 s ago"));
        assert!(synced.line(7_300_000_000).ends_with("last sync 2 h ago"));
    }

    #[test]
    fn the_line_says_how_peers_and_relays_are_reached() {
        let with = |peers, paths: &[(PathKind, usize)], relays_up, relays| {
            let connectivity = Connectivity { paths: paths.iter().copied().collect(), relays_up, relays };
            StatusView { peers, connectivity, ..view() }.summary()
        };
        assert_eq!(with(1, &[(PathKind::Punched, 1)], 1, 1), "1 peer (punched) · relay up · 3 pending");
        let several = [(PathKind::Forwarded, 1), (PathKind::Lan, 2)];
        assert_eq!(with(3, &several, 1, 2), "3 peers (2 same network, 1 relayed) · 1 of 2 relays up · 3 pending");
        assert_eq!(with(0, &[], 0, 1), "no peer connected · relay not reached · 3 pending");
    }

    #[test]
    fn a_pause_says_what_to_do() {
        let paused = StatusView { pause: Some(Pause::Problem(FileProblem::Missing)), ..view() };
        assert!(paused.summary().ends_with("PAUSED: the file is gone; put it back to go on"));
    }
}
