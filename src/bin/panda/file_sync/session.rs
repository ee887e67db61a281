//! Follows one file until Ctrl-C: the driver of the merge engine.
//!
//! Everything ends in [`Session::settle`]: read the file, publish what changed in it, write what others changed. It runs
//! soon after a file event or a remote operation, and every two seconds in case an event was missed.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::Duration;

use panda_network::discovery::Source;
use panda_network::{Document, DocumentEvent, NetworkEvent, NetworkEvents, PandaNetwork, StartFrom, Subscription};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::atomic_write::{Replaced, replace};
use super::file_text::{FILE_MAX_BYTES, FileProblem, read_text};
use super::state_file::StateFile;
use super::status_line::{Connectivity, Pause, StatusLine, StatusView};
use super::text_merge::{TextMerge, Write};
use super::watcher::FileWatcher;
use crate::error::CliError;
use crate::options::{now_us, stop_requested};
use crate::reach::Reach;

/// Wait after a file event: editors write in several steps.
const FILE_DEBOUNCE: Duration = Duration::from_millis(100);
/// Longest wait while events keep coming.
const FILE_DEBOUNCE_MAX: Duration = Duration::from_secs(1);
/// Wait after a remote operation, so that a burst becomes one write.
const REMOTE_DEBOUNCE: Duration = Duration::from_millis(30);
/// A file that is suddenly empty is looked at again after this: some editors empty it before they write.
const EMPTY_RECHECK: Duration = Duration::from_millis(500);
/// Looking without an event.
const POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Between two looks at the status: catching up changes it thousands of times a second.
const REDRAW_INTERVAL: Duration = Duration::from_millis(500);
/// Rounds of reading and writing before others get their turn; a file may change faster than it is written.
const SETTLE_ROUNDS: usize = 8;
/// How long goodbyes may take.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// One followed file.
pub struct Session {
    network: PandaNetwork,
    /// Of the node, since it was started.
    events: NetworkEvents,
    document: Document,
    state: StateFile,
    file: PathBuf,
    reach: Reach,
    merge: TextMerge,
    /// The log is read: before that, comparing with the file would mean nothing.
    ready: bool,
    outgoing: VecDeque<Vec<u8>>,
    empty_since: Option<Instant>,
    line: StatusLine,
    pause: Option<Pause>,
    due: Option<Instant>,
    first_event: Option<Instant>,
}

/// What a round of reading and writing found.
#[derive(PartialEq, Eq)]
enum Round {
    Settled,
    Again,
}

impl Session {
    /// A session that has not read anything yet. `file` is resolved: no symbolic link.
    pub fn new(
        network: PandaNetwork,
        events: NetworkEvents,
        document: Document,
        state: StateFile,
        file: PathBuf,
        reach: Reach,
    ) -> Self {
        Self {
            merge: TextMerge::new(state.written().unwrap_or(0)),
            network,
            events,
            document,
            state,
            file,
            reach,
            ready: false,
            outgoing: VecDeque::new(),
            empty_since: None,
            line: StatusLine::default(),
            pause: None,
            due: None,
            first_event: None,
        }
    }

    /// Follows until Ctrl-C or SIGTERM, then says goodbye.
    ///
    /// # Errors
    /// When the node or the state file fails; a bad file only pauses.
    pub async fn run(mut self) -> Result<(), CliError> {
        let result = tokio::select! {
            result = self.follow() => result,
            () = stop_requested() => Ok(()),
        };
        if result.is_ok() {
            if self.ready {
                // What was typed just before Ctrl-C.
                self.settle().await?;
            }
            self.line.say("Stopped. The same command goes on from here.");
        }
        let goodbye = self.network.shutdown(SHUTDOWN_DEADLINE).await;
        result?;
        Ok(goodbye?)
    }

    async fn follow(&mut self) -> Result<(), CliError> {
        let port = self.network.local_addresses().first().map(std::net::SocketAddr::port);
        self.state.set_port_and_reach(port, self.reach.clone())?;
        let mut subscription = self.replay().await?;
        let mut watcher = FileWatcher::new(&self.file);
        let status = self.document.status();
        let mut poll = interval(POLL_INTERVAL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut redraw = interval(REDRAW_INTERVAL);
        redraw.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.due;
            tokio::select! {
                event = subscription.next() => match event {
                    Some(event) => self.on_event(event?),
                    None => return Ok(()),
                },
                // A line that is missed matters little, and the end of the node shows elsewhere.
                Some(event) = self.events.next() => if let Ok(event) = event { self.on_network_event(&event) },
                () = watcher.changed() => self.on_file_event(),
                () = wait_until(due) => self.settle().await?,
                _ = poll.tick() => self.settle().await?,
                _ = redraw.tick() => {
                    let view = StatusView::new(&status.borrow(), Connectivity::of(&self.network), self.pause.clone());
                    self.line.show(&view, now_us());
                }
            }
        }
    }

    /// Rebuilds the document from the log, which is the truth.
    async fn replay(&mut self) -> Result<Subscription, CliError> {
        let me = self.network.node_id();
        let logged: u64 = self.document.heads().iter().map(|(_, seq_num)| u64::from(*seq_num) + 1).sum();
        let mut subscription = self.document.subscribe(StartFrom::Start).await?;
        let mut replayed = 0;
        while replayed < logged {
            let Some(event) = subscription.next().await else { break };
            let DocumentEvent::Operation(stored) = event? else { continue };
            let (own, update) = (stored.operation.author() == me, stored.operation.payload().to_vec());
            if let Err(error) = self.merge.replay(stored.position, own, update) {
                self.line.say(&format!("An operation was left out: {error}."));
            }
            replayed += 1;
        }
        self.merge.replayed();
        self.ready = true;
        if self.state.written().is_some() && self.merge.is_unborn() {
            self.outgoing.push_back(self.merge.birth()?);
        }
        Ok(subscription)
    }

    fn on_event(&mut self, event: DocumentEvent) {
        match event {
            DocumentEvent::Operation(stored) if stored.operation.author() != self.network.node_id() => {
                let update = stored.operation.payload().to_vec();
                if let Err(error) = self.merge.on_remote(stored.position, update) {
                    self.line.say(&format!("An operation was left out: {error}."));
                }
                self.due.get_or_insert_with(|| Instant::now() + REMOTE_DEBOUNCE);
            }
            DocumentEvent::Fork(peer) => self.line.say(&format!(
                "Peer {} wrote two histories (a copied data directory?); nothing more of it is accepted.",
                peer.short()
            )),
            _ => {}
        }
    }

    fn on_network_event(&mut self, event: &NetworkEvent) {
        if let NetworkEvent::PeerFound { document, source: Source::Lan, .. } = event
            && *document == self.document.id()
        {
            self.line.say("Found a peer in the local network.");
        }
    }

    fn on_file_event(&mut self) {
        let now = Instant::now();
        let first = *self.first_event.get_or_insert(now);
        self.due = Some((now + FILE_DEBOUNCE).min(first + FILE_DEBOUNCE_MAX));
    }

    /// Brings file and document in step, as far as possible now.
    async fn settle(&mut self) -> Result<(), CliError> {
        (self.due, self.first_event) = (None, None);
        for _ in 0..SETTLE_ROUNDS {
            // Reading, comparing and writing block; other tasks of the node go on elsewhere meanwhile.
            let round = tokio::task::block_in_place(|| self.round())?;
            self.publish().await?;
            if round == Round::Settled {
                return Ok(());
            }
        }
        self.due = Some(Instant::now() + FILE_DEBOUNCE);
        Ok(())
    }

    fn round(&mut self) -> Result<Round, CliError> {
        self.pause = None;
        if self.state.written().is_none() {
            return self.adopt();
        }
        let text = match read_text(&self.file) {
            Ok(text) => text,
            Err(problem) => return Ok(self.pause(Pause::Problem(problem))),
        };
        if self.emptied_just_now(&text) {
            self.due = Some(Instant::now() + EMPTY_RECHECK);
            return Ok(Round::Settled);
        }
        self.outgoing.extend(self.merge.on_file(&text)?);
        match self.merge.plan_write() {
            Some(write) => self.write(write, Some(&text)),
            None => Ok(Round::Settled),
        }
    }

    fn emptied_just_now(&mut self, text: &str) -> bool {
        if !text.is_empty() || self.merge.base().is_empty() {
            self.empty_since = None;
            return false;
        }
        self.empty_since.get_or_insert_with(Instant::now).elapsed() < EMPTY_RECHECK
    }

    /// The first time: the document replaces the file; what the file was is kept beside it.
    fn adopt(&mut self) -> Result<Round, CliError> {
        let incomplete = self.document.status().borrow().missing > 0;
        let Some(write) = self.merge.plan_write().filter(|_| !incomplete) else {
            return Ok(self.pause(Pause::AwaitsDocument));
        };
        let before = match read_text(&self.file) {
            Ok(text) => Some(text),
            Err(FileProblem::Missing) => None,
            Err(problem) => return Ok(self.pause(Pause::Problem(problem))),
        };
        if let Some(text) = before.as_deref().filter(|text| !text.is_empty() && *text != write.text) {
            let kept = keep_copy(&self.file, text).map_err(CliError::io("keep a copy of", &self.file))?;
            self.line.say(&format!("What was in {} is kept in {}.", self.file.display(), kept.display()));
        }
        self.write(write, before.as_deref())
    }

    fn write(&mut self, write: Write, expected: Option<&str>) -> Result<Round, CliError> {
        if write.text.len() as u64 > FILE_MAX_BYTES {
            return Ok(self.pause(Pause::DocumentTooLarge(write.text.len())));
        }
        let position = write.position;
        if expected != Some(write.text.as_str()) {
            let note = |temporary: Option<&Path>| match temporary {
                Some(temporary) => {
                    self.state.begin_write(position, temporary, expected.unwrap_or_default(), &write.text)
                }
                None => self.state.abandon_write(),
            };
            match replace(&self.file, expected, &write.text, note) {
                Ok(Replaced::Done) => {}
                Ok(Replaced::Changed) => return Ok(Round::Again),
                Err(error) => return Ok(self.pause(Pause::NotWritten(error.to_string()))),
            }
        }
        // The file has changed: the engine must know before anything else can fail.
        self.merge.on_written(write)?;
        self.state.set_written(position)?;
        Ok(Round::Settled)
    }

    /// Publishes what was read from the file, in order; what cannot be published now is tried again later.
    async fn publish(&mut self) -> Result<(), CliError> {
        while let Some(update) = self.outgoing.front() {
            match self.document.publish(update.clone()).await {
                Ok(_) => self.outgoing.pop_front(),
                Err(error @ panda_network::PandaError::Store(_)) => {
                    self.pause(Pause::NotPublished(error.to_string()));
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(())
    }

    fn pause(&mut self, pause: Pause) -> Round {
        self.pause = Some(pause);
        Round::Settled
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Writes a copy beside the file under a name that is free.
fn keep_copy(file: &Path, text: &str) -> std::io::Result<PathBuf> {
    let name = |number: u32| {
        let mut name = file.as_os_str().to_owned();
        name.push(".before-join");
        if number > 1 {
            name.push(format!("-{number}"));
        }
        PathBuf::from(name)
    };
    for copy in (1..1000).map(name) {
        match std::fs::File::create_new(&copy) {
            Ok(mut target) => {
                std::io::Write::write_all(&mut target, text.as_bytes())?;
                target.sync_all()?;
                return Ok(copy);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::Error::other("there are 999 copies already; remove some"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.md");
        assert_eq!(keep_copy(&file, "one").unwrap(), dir.path().join("notes.md.before-join"));
        assert_eq!(keep_copy(&file, "two").unwrap(), dir.path().join("notes.md.before-join-2"));
        assert_eq!(std::fs::read_to_string(dir.path().join("notes.md.before-join")).unwrap(), "one");
    }
}
