//! A process inside a namespace: killed on drop, its output in a file that is shown when the scene fails.
//!
//! Standard output and error are one log, in the order of writing. Standard input stays open until the process is dropped.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::shell::{self, PATIENCE};

/// Lines of a log that a failure shows.
const SHOWN_LINES: usize = 60;

#[derive(Debug)]
pub struct Process {
    label: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` (program, arguments, environment, working directory; its pipes are ours) in a namespace.
    #[track_caller]
    pub fn spawn(namespace: &str, label: &str, command: &Command, log: PathBuf) -> Self {
        let mut inside = enter(namespace, command);
        let file = File::create(&log).unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let both = file.try_clone().unwrap_or_else(|error| panic!("{}: {error}", log.display()));
        let spawned = inside.stdin(Stdio::piped()).stdout(file).stderr(both).spawn();
        let child = spawned.unwrap_or_else(|error| panic!("{label}: {inside:?}: {error}"));
        Self { label: label.into(), child, log }
    }

    /// Everything that was written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The first whole line of the log that `look` makes something of, also of what was written before the call. Panics
    /// after `patience`, or as soon as the process has ended without such a line.
    #[track_caller]
    pub fn wait_for<T>(&mut self, what: &str, patience: Duration, mut look: impl FnMut(&str) -> Option<T>) -> T {
        let label = self.label.clone();
        shell::until(&format!("{label}: {what}"), patience, || {
            // In this order: what it wrote before it ended counts.
            let ended = self.child.try_wait().ok().flatten();
            let log = self.log();
            let whole = log.rfind('\n').map_or("", |end| &log[..end]);
            let found = whole.lines().find_map(&mut look);
            assert!(found.is_some() || ended.is_none(), "{label} ended ({ended:?}) before: {what}");
            found
        })
    }

    /// What follows `prefix` on the first line that starts with it.
    #[track_caller]
    pub fn wait_for_prefix(&mut self, prefix: &str) -> String {
        self.wait_for(&format!("a line `{prefix}..`"), PATIENCE, |line| line.strip_prefix(prefix).map(str::to_owned))
    }

    /// Writes a line to its standard input.
    #[track_caller]
    pub fn send_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().unwrap_or_else(|| panic!("{}: no standard input", self.label));
        writeln!(stdin, "{line}").unwrap_or_else(|error| panic!("{}: {error}", self.label));
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let what = format!("{} ends", self.label);
        shell::until(&what, patience, || self.child.try_wait().ok().flatten())
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGTERM; it has yet to end.
    #[track_caller]
    pub fn terminate(&mut self) {
        if self.is_running() {
            shell::signal("TERM", &self.child.id().to_string()).unwrap_or_else(|problem| panic!("{problem}"));
        }
    }

    /// SIGKILL; it has ended when this returns.
    pub fn kill(&mut self) {
        // Fails for a process that has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The command, to be run inside of a namespace. `ip netns exec` becomes the program: a signal reaches it.
pub fn enter(namespace: &str, command: &Command) -> Command {
    let mut inside = Command::new("ip");
    inside.args(["netns", "exec", namespace]).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(key, value),
            None => inside.env_remove(key),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        inside.current_dir(directory);
    }
    inside
}

/// The end of a log, for the message of a failure.
pub fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    let hidden = lines.len().saturating_sub(SHOWN_LINES);
    let note = if hidden > 0 { format!("({hidden} lines before)\n") } else { String::new() };
    note + &lines[hidden..].join("\n")
}
