//! Nodes in processes of their own, and what tests ask of them. Every wait has a deadline, and says what it saw when that passes.

#![allow(dead_code, reason = "each test file is a crate of its own and uses a part")]

pub mod build;
mod seen;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use panda_network_interop::protocol::{Command, Event, Head, KnownNode, Start};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::{MutexGuard as Turn, watch};
use tokio::time::timeout;

#[allow(unused_imports, reason = "as above")]
pub use seen::{Seen, same};

/// For what takes moments on an idle machine; this one may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For thousands of operations.
pub const LONG_PATIENCE: Duration = Duration::from_secs(240);
/// How often heads are asked for.
pub const POLL_INTERVAL: Duration = Duration::from_millis(100);

static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A p2panda network of its own and a place for data. Tests take turns: several at once would measure each other.
pub struct World {
    dir: PathBuf,
    pub network: String,
    next_key: Mutex<u8>,
    _turn: Turn<'static, ()>,
}

impl World {
    /// `name` is the test's, which has to be unique in its file.
    pub async fn new(name: &str) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a directory for the test");
        let network = hex(blake3::hash(name.as_bytes()).as_bytes());
        Self { dir, network, next_key: Mutex::new(1), _turn: turn }
    }

    /// A folder for the data of one node.
    pub fn place(&self, name: &str) -> String {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).expect("a directory for the node");
        dir.to_str().expect("UTF-8").into()
    }

    /// A p2panda Node that keeps its data on disk and knows these others.
    pub async fn node(&self, name: &str, knows: &[&Process]) -> Process {
        let mut next_key = self.next_key.lock().unwrap_or_else(PoisonError::into_inner);
        let key = [*next_key; 32];
        *next_key += 1;
        drop(next_key);
        let start = Start {
            network: self.network.clone(),
            key: Some(hex(&key)),
            dir: Some(self.place(name)),
            port: 0,
            nodes: knows.iter().map(|node| node.known()).collect(),
        };
        Process::start(name, PathBuf::from(env!("CARGO_BIN_EXE_p2panda-node")), start).await
    }

    /// A node of ours that dials these p2panda Nodes. Started again under its name it finds its data.
    pub async fn editor(&self, name: &str, nodes: &[&Process]) -> Process {
        let start = Start {
            network: self.network.clone(),
            key: None,
            dir: Some(self.place(name)),
            port: 0,
            nodes: nodes.iter().map(|node| node.known()).collect(),
        };
        Process::start(name, build::example("interop_editor"), start).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// A document that is open.
pub struct Opened {
    /// In hex.
    pub topic: String,
    /// A node of ours has one.
    pub ticket: Option<String>,
}

/// A node in a process of its own. It ends with its handle.
pub struct Process {
    /// For messages.
    pub name: String,
    /// Public key in hex.
    pub key: String,
    /// Where it listens.
    pub address: String,
    program: PathBuf,
    start: Start,
    child: Child,
    stdin: ChildStdin,
    seen: Arc<Mutex<Seen>>,
    changed: watch::Receiver<u64>,
}

impl Process {
    async fn start(name: &str, program: PathBuf, start: Start) -> Self {
        let mut child = tokio::process::Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", program.display()));
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let (seen, (change, changed)) = (Arc::new(Mutex::new(Seen::default())), watch::channel(0));
        tokio::spawn(read(name.into(), stdout, seen.clone(), change));
        let (name, key, address) = (name.into(), String::new(), String::new());
        let mut process = Self { name, key, address, program, start, child, stdin, seen, changed };
        process.say(&Command::Start(process.start.clone())).await;
        process.wait("it runs", PATIENCE, |seen| seen.ready.is_some()).await;
        let ready = process.seen().ready.clone();
        (process.key, process.address) = ready.expect("it was waited for");
        process
    }

    /// Its key and address, for others to know.
    pub fn known(&self) -> KnownNode {
        KnownNode { key: self.key.clone(), address: self.address.clone() }
    }

    async fn say(&mut self, command: &Command) {
        let mut line = serde_json::to_vec(command).expect("plain values");
        line.push(b'\n');
        self.stdin.write_all(&line).await.unwrap_or_else(|error| panic!("{} is gone: {error}", self.name));
    }

    /// What it told so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has told what is wanted.
    ///
    /// # Panics
    /// When the deadline passes, or when it tells no more.
    pub async fn wait(&mut self, what: &str, deadline: Duration, wanted: impl Fn(&Seen) -> bool) {
        if self.try_wait(deadline, &wanted).await {
            return;
        }
        panic!("{}: not in {deadline:?}: {what}; {}", self.name, self.seen().summary());
    }

    /// As [`Self::wait`]; false when the deadline passes.
    pub async fn try_wait(&mut self, deadline: Duration, wanted: impl Fn(&Seen) -> bool) -> bool {
        let seen = self.seen.clone();
        let reached = || wanted(&seen.lock().unwrap_or_else(PoisonError::into_inner));
        let waited = timeout(deadline, self.changed.wait_for(|_| reached())).await;
        matches!(waited, Ok(Ok(_))) || reached()
    }

    /// Makes a document.
    pub async fn create(&mut self) -> Opened {
        self.open_by(Command::Create).await
    }

    /// Takes part by topic; a node of ours opens its own documents so, after a start.
    pub async fn open(&mut self, topic: &str) -> Opened {
        self.open_by(Command::Open { topic: Some(topic.into()), ticket: None }).await
    }

    /// Takes part by ticket.
    pub async fn join(&mut self, ticket: &str) -> Opened {
        self.open_by(Command::Open { topic: None, ticket: Some(ticket.into()) }).await
    }

    async fn open_by(&mut self, command: Command) -> Opened {
        let before = self.seen().opened.len();
        self.say(&command).await;
        self.wait("a document is open", PATIENCE, |seen| seen.opened.len() > before).await;
        let seen = self.seen();
        let (topic, ticket) = seen.opened[before].clone();
        Opened { topic, ticket }
    }

    /// Begins to publish; `per_second` 0 is as fast as it can.
    pub async fn publish(&mut self, topic: &str, count: u32, prefix: &str, per_second: u32) {
        let (topic, prefix) = (topic.into(), prefix.into());
        self.say(&Command::Publish { topic, count, prefix, per_second }).await;
    }

    /// Waits until all of these are durable where they were published.
    pub async fn published(&mut self, prefix: &str, count: usize) {
        self.wait("all is published", LONG_PATIENCE, |seen| seen.published(prefix).count() >= count).await;
    }

    /// What it holds now.
    pub async fn heads(&mut self, topic: &str) -> Vec<Head> {
        let before = self.seen().heads.len();
        self.say(&Command::Heads { topic: topic.into() }).await;
        self.wait("its heads", PATIENCE, |seen| seen.heads.len() > before).await;
        let seen = self.seen();
        seen.heads[before].1.clone()
    }

    /// Waits until it holds exactly these heads.
    ///
    /// # Panics
    /// When the deadline passes.
    pub async fn holds(&mut self, topic: &str, wanted: &[Head], deadline: Duration) {
        let reached = timeout(deadline, async {
            while self.heads(topic).await != wanted {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        });
        if reached.await.is_err() {
            let held = self.heads(topic).await;
            panic!("{} holds {held:?} after {deadline:?}, not {wanted:?}; {}", self.name, self.seen().summary());
        }
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// Ends it in an orderly way.
    pub async fn stop(mut self) {
        self.say(&Command::Stop).await;
        self.wait("it says goodbye", PATIENCE, |seen| seen.stopped).await;
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.expect("it ends").expect("its status");
        assert!(status.success(), "{} ended with {status}", self.name);
    }

    /// The same node again, after its end: with its directory, and a Node at its address too.
    pub async fn restart(self, nodes: &[&Process]) -> Self {
        let mut start = self.start.clone();
        start.nodes = nodes.iter().map(|node| node.known()).collect();
        if start.key.is_some() {
            start.port = self.address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
        }
        Self::start(&self.name, self.program.clone(), start).await
    }
}

async fn read(name: String, stdout: ChildStdout, seen: Arc<Mutex<Seen>>, change: watch::Sender<u64>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let event: Event = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{name} says {line}: {error}"));
        seen.lock().unwrap_or_else(PoisonError::into_inner).note(event);
        change.send_modify(|version| *version += 1);
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}
