//! The parent's side: starts node processes, asks them, kills them. Dropping a [`NodeProcess`] kills it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::{Instant, sleep, timeout};

use super::protocol::{Command, Reply, Report};
use crate::demo::node_dir;
use crate::error::CliError;
use crate::options::DurabilityArg;

/// How long a node may take for one answer; reading a long log at start is the slowest.
const ANSWER_DEADLINE: Duration = Duration::from_secs(120);
/// How long a node may take to say goodbye before it is killed.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(8);
/// Between two looks at nodes that work.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// One node in a process of its own.
pub struct NodeProcess {
    /// Its number, which its operations carry.
    pub agent: u8,
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl NodeProcess {
    /// Starts a process with its own data directory.
    ///
    /// # Errors
    /// When the process cannot be started.
    pub fn spawn(agent: u8, data_dir: &Path, durability: DurabilityArg, reach: &[String]) -> Result<Self, CliError> {
        let program = std::env::current_exe().map_err(CliError::io("find the program", Path::new("panda")))?;
        let mut child = tokio::process::Command::new(&program)
            .arg("node")
            .args(["--agent", &agent.to_string(), "--durability", &durability.to_string(), "--data-dir"])
            .arg(data_dir)
            .args(reach)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(CliError::io("start", &program))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (stdin, stdout) = pipes.ok_or_else(|| CliError::Environment("a process without pipes".into()))?;
        Ok(Self { agent, child, stdin, lines: BufReader::new(stdout).lines() })
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// When the process is gone, is too slow, or says that it failed.
    pub async fn ask(&mut self, command: Command) -> Result<Reply, CliError> {
        let mut line = serde_json::to_vec(&command).map_err(|error| self.failed(&error.to_string()))?;
        line.push(b'\n');
        self.stdin.write_all(&line).await.map_err(|error| self.failed(&error.to_string()))?;
        let answer = timeout(ANSWER_DEADLINE, self.lines.next_line()).await;
        match answer {
            Err(_) => Err(self.failed(&format!("no answer within {ANSWER_DEADLINE:?}"))),
            Ok(Err(error)) => Err(self.failed(&error.to_string())),
            Ok(Ok(None)) => Err(self.failed("it ended unexpectedly")),
            Ok(Ok(Some(answer))) => match serde_json::from_str(&answer) {
                Ok(Reply::Failed(reason)) => Err(self.failed(&reason)),
                Ok(reply) => Ok(reply),
                Err(error) => Err(self.failed(&format!("{error} in {answer:?}"))),
            },
        }
    }

    /// Sends a command that is answered by `Done`.
    ///
    /// # Errors
    /// As [`NodeProcess::ask`], and when the answer is another.
    pub async fn tell(&mut self, command: Command) -> Result<(), CliError> {
        match self.ask(command).await? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Makes or opens a document; its ticket.
    ///
    /// # Errors
    /// As [`NodeProcess::ask`].
    pub async fn open(&mut self, command: Command) -> Result<String, CliError> {
        match self.ask(command).await? {
            Reply::Opened { ticket } => Ok(ticket),
            other => Err(self.unexpected(&other)),
        }
    }

    /// How far it is. An error when its work failed.
    ///
    /// # Errors
    /// As [`NodeProcess::ask`].
    pub async fn report(&mut self) -> Result<Report, CliError> {
        match self.ask(Command::Report).await? {
            Reply::Report(Report { failure: Some(reason), .. }) => Err(self.failed(&reason)),
            Reply::Report(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The latencies that it measured, µs.
    ///
    /// # Errors
    /// As [`NodeProcess::ask`].
    pub async fn latencies(&mut self) -> Result<Vec<u64>, CliError> {
        match self.ask(Command::Latencies).await? {
            Reply::Latencies(latencies) => Ok(latencies),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Its text.
    ///
    /// # Errors
    /// As [`NodeProcess::ask`].
    pub async fn text(&mut self) -> Result<String, CliError> {
        match self.ask(Command::Text).await? {
            Reply::Text(text) => Ok(text),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Ends it without a warning: SIGKILL. Returns when it is gone.
    ///
    /// # Errors
    /// What the operating system says.
    pub async fn kill(&mut self) -> Result<(), CliError> {
        self.child.kill().await.map_err(|error| self.failed(&error.to_string()))
    }

    /// Asks it to end; false when it did not in time.
    async fn say_goodbye(&mut self) -> bool {
        let goodbye = async { self.tell(Command::Shutdown).await.is_ok() && self.child.wait().await.is_ok() };
        timeout(GOODBYE_DEADLINE, goodbye).await.unwrap_or(false)
    }

    /// Resident memory in KiB, where the system tells.
    pub fn resident_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    fn failed(&self, reason: &str) -> CliError {
        CliError::Node { name: name(self.agent), reason: reason.into() }
    }

    fn unexpected(&self, reply: &Reply) -> CliError {
        self.failed(&format!("an answer that fits no question: {reply:?}"))
    }
}

/// What people call a node.
pub fn name(agent: u8) -> String {
    match agent {
        0 => "Alice".into(),
        1 => "Bob".into(),
        2 => "Carol".into(),
        other => format!("Peer {other}"),
    }
}

/// Some nodes and their temporary directories, which go when this goes.
pub struct Nodes {
    // Before the directories: fields are dropped in this order.
    processes: Vec<NodeProcess>,
    dirs: Vec<TempDir>,
    durability: DurabilityArg,
    /// Arguments about how each is reached.
    reach: Vec<Vec<String>>,
}

impl Nodes {
    /// Starts `count` nodes.
    ///
    /// # Errors
    /// When a process or a directory cannot be made.
    pub fn start(count: usize, durability: DurabilityArg) -> Result<Self, CliError> {
        Self::start_with(vec![Vec::new(); count], durability)
    }

    /// Starts one node for each list of arguments about how it is reached.
    ///
    /// # Errors
    /// When a process or a directory cannot be made.
    pub fn start_with(reach: Vec<Vec<String>>, durability: DurabilityArg) -> Result<Self, CliError> {
        let mut nodes = Self { processes: Vec::new(), dirs: Vec::new(), durability, reach };
        for (agent, reach) in (0..=u8::MAX).zip(&nodes.reach) {
            let dir = node_dir()?;
            nodes.processes.push(NodeProcess::spawn(agent, dir.path(), durability, reach)?);
            nodes.dirs.push(dir);
        }
        Ok(nodes)
    }

    /// All of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut NodeProcess> {
        self.processes.iter_mut()
    }

    /// One of them; the number is one that `start` made.
    pub fn node(&mut self, agent: usize) -> &mut NodeProcess {
        &mut self.processes[agent]
    }

    /// Kills one and starts it again with what it had on disk.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn restart(&mut self, agent: u8) -> Result<(), CliError> {
        let index = usize::from(agent);
        let (dir, reach) = (self.dirs[index].path(), &self.reach[index]);
        self.processes[index] = NodeProcess::spawn(agent, dir, self.durability, reach)?;
        Ok(())
    }

    /// The first makes a document, the others open it.
    ///
    /// # Errors
    /// When one of them fails.
    pub async fn share_document(&mut self) -> Result<(), CliError> {
        let (first, others) = self.processes.split_at_mut(1);
        let ticket = first[0].open(Command::Create).await?;
        for node in others {
            node.open(Command::Open { ticket: ticket.clone() }).await?;
        }
        Ok(())
    }

    /// How far they are.
    ///
    /// # Errors
    /// When one of them fails.
    pub async fn reports(&mut self) -> Result<Vec<Report>, CliError> {
        let mut reports = Vec::new();
        for node in &mut self.processes {
            reports.push(node.report().await?);
        }
        Ok(reports)
    }

    /// Waits until they are as wanted, telling `progress` on the way.
    ///
    /// # Errors
    /// [`CliError::TimedOut`], or when one of them fails.
    pub async fn wait_until(
        &mut self,
        what: &str,
        deadline: Duration,
        mut progress: impl FnMut(&[Report]),
        wanted: impl Fn(&[Report]) -> bool,
    ) -> Result<Vec<Report>, CliError> {
        let start = Instant::now();
        loop {
            let reports = self.reports().await?;
            progress(&reports);
            if wanted(&reports) {
                return Ok(reports);
            }
            if start.elapsed() > deadline {
                return Err(CliError::TimedOut { what: what.into(), state: describe(&reports) });
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Ends them in an orderly way, or kills those that do not want; then their directories go.
    pub async fn stop(mut self, orderly: bool) {
        for node in &mut self.processes {
            if !(orderly && node.say_goodbye().await) {
                let _ = node.kill().await;
            }
        }
        self.dirs.drain(..).for_each(|dir| {
            let path: PathBuf = dir.path().to_path_buf();
            if let Err(error) = dir.close() {
                tracing::warn!(%error, path = %path.display(), "a temporary directory stays");
            }
        });
    }
}

/// How far they are, on one line.
pub fn describe(reports: &[Report]) -> String {
    let one = |(agent, report): (u8, &Report)| {
        let Report { peers, pending, published, arrived, .. } = report;
        let arrived: Vec<String> =
            arrived.iter().map(|(from, count)| format!("{count} from {}", name(*from))).collect();
        let arrived = arrived.join(", ");
        format!("{} has published {published} ({pending} pending), has {arrived}, {peers} connected", name(agent))
    };
    (0..=u8::MAX).zip(reports).map(one).collect::<Vec<_>>().join("; ")
}

/// True when every node is done with its work and has every operation that any of them published.
pub fn all_arrived(reports: &[Report]) -> bool {
    let complete = |to: &Report| {
        (0..=u8::MAX).zip(reports).all(|(agent, from)| to.arrived.get(&agent).copied().unwrap_or(0) >= from.published)
    };
    reports.iter().all(|report| !report.working && report.pending == 0) && reports.iter().all(complete)
}
