//! The child's side: one node that does what its parent says on stdin and ends when stdin ends, so it never outlives it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use clap::Args;
use panda_network::DocumentTicket;
use panda_network::clock::Clock;
use panda_network::operation::Operation;
use panda_network::rendezvous::address::RelayAddress;
use panda_network::transports::host::OsNetwork;
use panda_network::transports::quic::QuicTransportOptions;
use panda_network::{Document, DocumentEvent, PandaNetwork, PandaNetworkOptions, StartFrom, Subscription};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::blocked::BlockedSocket;
use super::ledger::Ledger;
use super::payload::{Content, Payload};
use super::protocol::{Command, Reply, Report};
use super::work;
use crate::error::CliError;
use crate::options::DurabilityArg;
use crate::text_doc::{Offsets, TextDoc};
use crate::trace::{Replayer, Trace};

/// How long goodbyes may take.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// A node driven by its parent; not for people
#[derive(Debug, Args)]
pub struct NodeProcessArgs {
    /// Its data directory
    #[arg(long)]
    pub data_dir: PathBuf,
    /// What a publish survives
    #[arg(long, value_enum)]
    pub durability: DurabilityArg,
    /// Its number among the nodes
    #[arg(long)]
    pub agent: u8,
    /// The relay that it speaks through, and only through that
    #[arg(long)]
    pub relay: Option<RelayAddress>,
    /// No datagram leaves it or reaches it
    #[arg(long, requires = "relay")]
    pub no_udp: bool,
}

/// What the driver, the receiver and the work share.
pub struct Shared {
    node: Mutex<Node>,
    /// Something arrived.
    pub arrival: Notify,
}

/// The state of a node process.
pub struct Node {
    pub agent: u8,
    pub text: TextDoc,
    pub clock: Clock,
    pub random: ChaCha8Rng,
    pub replayer: Option<Replayer>,
    pub ledger: Ledger,
    pub next_number: u32,
    pub report: Report,
    /// Counts the works, so that a late acknowledgement is not taken for that of a later work.
    pub work: u32,
    measuring_since_us: Option<u64>,
    latencies_us: Vec<u64>,
    online_since_us: Option<u64>,
}

/// The state. A panic elsewhere leaves counters at worst one behind.
pub fn lock(shared: &Shared) -> MutexGuard<'_, Node> {
    shared.node.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs until the parent says so or is gone.
///
/// # Errors
/// When the node cannot start.
pub async fn run(args: NodeProcessArgs) -> Result<(), CliError> {
    let mut options = PandaNetworkOptions::new(&args.data_dir).with_durability(args.durability.into());
    if args.no_udp {
        let quic = QuicTransportOptions::new().with_socket(Arc::new(BlockedSocket)).with_network(Arc::new(OsNetwork));
        options = options.with_quic(quic);
    } else {
        options = options.with_listen_address(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    }
    if let Some(relay) = args.relay {
        options = options.with_relays([relay.to_string()]).with_relay_only(true);
    }
    let network = PandaNetwork::start(options).await?;
    #[allow(clippy::disallowed_methods, reason = "a demo types whatever comes to its mind")]
    let random = ChaCha8Rng::from_rng(&mut rand::rng());
    let mut driver = Driver::new(network, args.agent, Clock::system(), random);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut stdout = tokio::io::stdout();
    let stdin_gone = |error| CliError::Environment(format!("the parent process is gone: {error}"));
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line.map_err(stdin_gone)?,
            // Ctrl-C reaches the whole process group; the parent decides what it means.
            _ = tokio::signal::ctrl_c() => continue,
        };
        let Some(line) = line else { break };
        let (reply, end) = match serde_json::from_str(&line) {
            Ok(Command::Shutdown) => (Reply::Done, true),
            Ok(command) => (driver.obey(command).await.unwrap_or_else(|error| Reply::Failed(error.to_string())), false),
            Err(error) => (Reply::Failed(error.to_string()), false),
        };
        if end {
            driver.network.shutdown(SHUTDOWN_DEADLINE).await?;
        }
        let mut answer = serde_json::to_vec(&reply).unwrap_or_default();
        answer.push(b'\n');
        stdout.write_all(&answer).await.map_err(stdin_gone)?;
        stdout.flush().await.map_err(stdin_gone)?;
        if end {
            break;
        }
    }
    Ok(())
}

/// One node and what it is told to do. Dropping it stops both.
pub struct Driver {
    /// The node.
    pub network: PandaNetwork,
    shared: Arc<Shared>,
    document: Option<Document>,
    tasks: Vec<JoinHandle<()>>,
}

impl Driver {
    /// `clock` stamps operations: all nodes must have the same. `random` decides what is typed.
    pub fn new(network: PandaNetwork, agent: u8, clock: Clock, mut random: ChaCha8Rng) -> Self {
        let node = Node {
            agent,
            text: TextDoc::of_author(Offsets::Bytes, random.random()),
            clock,
            random,
            replayer: None,
            ledger: Ledger::default(),
            next_number: 0,
            report: Report::default(),
            work: 0,
            measuring_since_us: None,
            latencies_us: Vec::new(),
            online_since_us: None,
        };
        let shared = Arc::new(Shared { node: Mutex::new(node), arrival: Notify::new() });
        Self { network, shared, document: None, tasks: Vec::new() }
    }

    /// Does as told; what takes longer goes on in the background.
    ///
    /// # Errors
    /// When it cannot be done.
    pub async fn obey(&mut self, command: Command) -> Result<Reply, CliError> {
        match command {
            Command::LoadTrace { file } => self.load_trace(file)?,
            Command::Create => return self.opened(self.network.create().await?).await,
            Command::Open { ticket } => {
                let ticket: DocumentTicket = ticket.parse()?;
                return self.opened(self.network.open(ticket).await?).await;
            }
            Command::Reopen => return self.reopen().await,
            Command::Work(work) => {
                let document = self.document()?.clone();
                lock(&self.shared).report.working = true;
                self.tasks.push(tokio::spawn(work::run(Arc::clone(&self.shared), document, work)));
            }
            Command::SetConnected(connected) => {
                self.note_online(connected);
                self.network.set_connected(connected).await;
            }
            Command::Measure(on) => {
                let mut node = lock(&self.shared);
                node.measuring_since_us = on.then(|| node.clock.now_us());
                if on {
                    node.latencies_us.clear();
                }
            }
            Command::Report => return Ok(Reply::Report(self.report()?)),
            Command::Latencies => return Ok(Reply::Latencies(lock(&self.shared).latencies_us.clone())),
            Command::Text => return self.text(),
            Command::Shutdown => {}
        }
        Ok(Reply::Done)
    }

    fn note_online(&self, connected: bool) {
        let mut node = lock(&self.shared);
        node.online_since_us = connected.then(|| node.clock.now_us());
    }

    fn load_trace(&self, path: PathBuf) -> Result<(), CliError> {
        let file = std::fs::File::open(&path).map_err(CliError::io("open", &path))?;
        let trace = Trace::read(file).map_err(|source| CliError::Trace { path, source })?;
        let mut node = lock(&self.shared);
        node.replayer = Some(Replayer::new(Arc::new(trace), usize::from(node.agent)));
        Ok(())
    }

    async fn reopen(&mut self) -> Result<Reply, CliError> {
        let documents = self.network.documents().await?;
        let Some(&document) = documents.first() else {
            return Ok(Reply::Failed("there is no document in the data directory".into()));
        };
        self.opened(self.network.reopen(document).await?).await
    }

    /// Reads what is in the log already, then goes on receiving in the background.
    async fn opened(&mut self, document: Document) -> Result<Reply, CliError> {
        let opened_us = lock(&self.shared).clock.now_us();
        let logged: u64 = document.heads().iter().map(|(_, seq_num)| u64::from(*seq_num) + 1).sum();
        let mut subscription = document.subscribe(StartFrom::Start).await?;
        let mut replayed = 0;
        while replayed < logged {
            let Some(event) = subscription.next().await else { break };
            if let DocumentEvent::Operation(stored) = event? {
                lock(&self.shared).receive(&stored.operation);
                replayed += 1;
            }
        }
        {
            let mut node = lock(&self.shared);
            node.next_number = node.ledger.next(node.agent);
            node.report.published = node.next_number;
        }
        let ticket = document.ticket().await?.to_string();
        self.tasks.push(tokio::spawn(receive(Arc::clone(&self.shared), subscription)));
        self.tasks.push(tokio::spawn(await_peer(Arc::clone(&self.shared), document.clone(), opened_us)));
        self.document = Some(document);
        Ok(Reply::Opened { ticket })
    }

    fn document(&self) -> Result<&Document, CliError> {
        self.document.as_ref().ok_or_else(|| CliError::Environment("no document is open".into()))
    }

    /// How far it is.
    ///
    /// # Errors
    /// When no document is open.
    pub fn report(&self) -> Result<Report, CliError> {
        let status = self.document()?.status().borrow().clone();
        let stats = self.network.transport_stats();
        let node = lock(&self.shared);
        Ok(Report {
            peers: status.peers,
            path: self.network.connections().first().map(|(connection, _)| connection.path.to_string()),
            pending: status.pending,
            arrived: node.ledger.arrived(),
            duplicates: node.ledger.duplicates,
            skipped: node.ledger.skipped(),
            wire_bytes: stats.sent_bytes + stats.received_bytes,
            ..node.report.clone()
        })
    }

    fn text(&self) -> Result<Reply, CliError> {
        let mut node = lock(&self.shared);
        match &mut node.replayer {
            Some(replayer) if !replayer.is_done() => Ok(Reply::Failed("the trace is not replayed yet".into())),
            Some(replayer) => {
                Ok(replayer.final_text().map_or_else(|error| Reply::Failed(error.to_string()), Reply::Text))
            }
            None => Ok(Reply::Text(node.text.text())),
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn receive(shared: Arc<Shared>, mut subscription: Subscription) {
    while let Some(event) = subscription.next().await {
        match event {
            Ok(DocumentEvent::Operation(stored)) => {
                lock(&shared).receive(&stored.operation);
                shared.arrival.notify_one();
            }
            Ok(_) => {}
            Err(error) => {
                lock(&shared).report.failure = Some(error.to_string());
                break;
            }
        }
    }
}

async fn await_peer(shared: Arc<Shared>, document: Document, opened_us: u64) {
    let mut status = document.status();
    if status.wait_for(|status| status.peers > 0).await.is_ok() {
        let mut node = lock(&shared);
        node.report.connected_after_us = Some(node.clock.now_us().saturating_sub(opened_us));
    }
}

impl Node {
    fn receive(&mut self, operation: &Operation) {
        let Some(payload) = Payload::decode(operation.payload()) else {
            self.report.failure = Some("an operation that no demo node made".into());
            return;
        };
        if !self.ledger.note(payload.agent, payload.number) {
            return;
        }
        let now = self.clock.now_us();
        if payload.agent != self.agent {
            self.report.caught_up_after_us = self.online_since_us.map(|since| now.saturating_sub(since));
            if self.measuring_since_us.is_some_and(|since| payload.sent_us >= since) {
                self.latencies_us.push(now.saturating_sub(payload.sent_us));
            }
        }
        match (payload.content, &mut self.replayer) {
            (Content::Nothing, _) => {}
            (Content::Update, Some(replayer)) => replayer.receive(usize::from(payload.agent), payload.bytes.to_vec()),
            (Content::Update, None) => {
                if let Err(error) = self.text.apply(payload.bytes) {
                    self.report.failure = Some(error.to_string());
                }
            }
        }
    }
}
