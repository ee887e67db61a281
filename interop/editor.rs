//! A node of ours that does what the lines on stdin say, beside the `p2panda-node` of the interop package.
//!
//! Not an example for people: it is one so that the main package builds it, with its own lock file and without iroh and sqlx.

#[allow(dead_code, reason = "the tests use what this side does not")]
#[path = "src/protocol.rs"]
mod protocol;

use std::collections::HashMap;
use std::error::Error;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use panda_network::DocumentTicket;
use panda_network::ids::PeerId;
use panda_network::nodes::{P2pandaNetworkId, P2pandaNode};
use panda_network::{Document, DocumentEvent, PandaNetwork, PandaNetworkOptions, StartFrom, Subscription};
use protocol::{Command, Event, Head, KnownNode, Operation, Payload, Start, now_us};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// How long goodbyes may take.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// Lines that wait for the test to read them; then the editor waits.
const LINES_MAX: usize = 1024;
/// Publishes under way at once, sharing commits.
const IN_FLIGHT_MAX: usize = 256;

type AnyError = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let Some(first) = lines.next_line().await? else { return Ok(()) };
    let Command::Start(start) = serde_json::from_str(&first)? else {
        return Err("the first line has to be `start`".into());
    };
    let network = PandaNetwork::start(options(&start)?).await?;
    let (events, written) = mpsc::channel(LINES_MAX);
    let writer = tokio::spawn(write_events(written));
    let addresses = network.local_addresses().iter().map(ToString::to_string).collect();
    events.send(Event::Ready { key: network.node_id().to_string(), addresses }).await?;
    let mut editor = Editor { network, events, documents: HashMap::new() };
    while let Some(line) = lines.next_line().await? {
        let command = serde_json::from_str(&line)?;
        let stop = matches!(command, Command::Stop);
        if let Err(error) = editor.obey(command).await {
            editor.events.send(Event::Failed { what: error.to_string() }).await?;
        }
        if stop {
            writer.await??;
            break;
        }
    }
    Ok(())
}

fn options(start: &Start) -> Result<PandaNetworkOptions, AnyError> {
    let dir = start.dir.as_ref().ok_or("a node of ours needs a directory")?;
    let options = PandaNetworkOptions::new(dir).with_listen_address(SocketAddr::from(([127, 0, 0, 1], start.port)));
    let network = P2pandaNetworkId::from(bytes_32(&start.network)?);
    start.nodes.iter().try_fold(options, |options, known| Ok(options.with_p2panda_bridge(network, node(known)?)))
}

fn node(known: &KnownNode) -> Result<P2pandaNode, AnyError> {
    let address: SocketAddr = known.address.parse()?;
    Ok(P2pandaNode::new(PeerId::from_bytes(&bytes_32(&known.key)?)?, [address]))
}

fn bytes_32(hex: &str) -> Result<[u8; 32], AnyError> {
    let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes())?;
    <[u8; 32]>::try_from(bytes).map_err(|_| "not 32 bytes".into())
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

async fn write_events(mut events: mpsc::Receiver<Event>) -> Result<(), AnyError> {
    let mut stdout = tokio::io::stdout();
    while let Some(event) = events.recv().await {
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        stdout.write_all(&line).await?;
        stdout.flush().await?;
        if event == Event::Stopped {
            break;
        }
    }
    Ok(())
}

/// The newest operation of each author that the editor was given.
type Heads = Arc<Mutex<HashMap<String, Head>>>;

fn lock(heads: &Heads) -> MutexGuard<'_, HashMap<String, Head>> {
    heads.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Editor {
    network: PandaNetwork,
    events: mpsc::Sender<Event>,
    documents: HashMap<String, (Document, Heads)>,
}

impl Editor {
    async fn obey(&mut self, command: Command) -> Result<(), AnyError> {
        match command {
            Command::Create => {
                let document = self.network.create().await?;
                self.opened(document).await?;
            }
            Command::Open { ticket: Some(ticket), .. } => {
                let document = self.network.open(ticket.parse()?).await?;
                self.opened(document).await?;
            }
            Command::Open { .. } => {
                for id in self.network.documents().await? {
                    let document = self.network.reopen(id).await?;
                    self.opened(document).await?;
                }
            }
            Command::Publish { topic, count, prefix, per_second } => {
                let (document, _) = self.documents.get(&topic).ok_or("this document is not open")?;
                let (document, events) = (document.clone(), self.events.clone());
                tokio::spawn(async move {
                    if let Err(error) = publish(document, count, &prefix, per_second).await {
                        let _ = events.send(Event::Failed { what: format!("publish: {error}") }).await;
                    }
                });
            }
            Command::Heads { topic } => {
                let heads = self.heads(&topic)?;
                self.events.send(Event::Note { text: format!("{:?}", self.network.bridge_status()) }).await?;
                self.events.send(Event::Heads { topic, heads }).await?;
            }
            Command::Stop => {
                self.network.shutdown(SHUTDOWN_DEADLINE).await?;
                self.events.send(Event::Stopped).await?;
            }
            Command::Start(_) => return Err("it runs already".into()),
        }
        Ok(())
    }

    async fn opened(&mut self, document: Document) -> Result<(), AnyError> {
        let ticket: DocumentTicket = document.ticket().await?;
        let topic = hex(ticket.key().topic(&ticket.document()).as_bytes());
        let heads = Heads::default();
        self.events.send(Event::Opened { topic: topic.clone(), ticket: Some(ticket.to_string()) }).await?;
        let subscription = document.subscribe(StartFrom::Start).await?;
        let me = self.network.node_id();
        tokio::spawn(receive(topic.clone(), me, subscription, heads.clone(), self.events.clone()));
        self.documents.insert(topic, (document, heads));
        Ok(())
    }

    /// What is stored; an id that the editor was not given yet is empty.
    fn heads(&self, topic: &str) -> Result<Vec<Head>, AnyError> {
        let (document, given) = self.documents.get(topic).ok_or("this document is not open")?;
        let given = lock(given);
        let head = |(author, seq): (PeerId, u32)| {
            let author = author.to_string();
            let id = given.get(&author).filter(|head| head.seq == seq).map(|head| head.id.clone());
            Head { author, seq, id: id.unwrap_or_default() }
        };
        let mut heads: Vec<Head> = document.heads().into_iter().map(head).collect();
        heads.sort();
        Ok(heads)
    }
}

async fn publish(document: Document, count: u32, prefix: &str, per_second: u32) -> Result<(), AnyError> {
    let mut ticks = (per_second > 0).then(|| {
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        ticks
    });
    let mut in_flight = JoinSet::new();
    for number in 0..count {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        if in_flight.len() >= IN_FLIGHT_MAX
            && let Some(done) = in_flight.join_next().await
        {
            done??;
        }
        let document = document.clone();
        let payload = Payload { prefix: prefix.into(), number, sent_us: now_us() }.encode();
        let mut call = Box::pin(async move { document.publish(payload).await });
        // The first poll takes the place in the order of calls.
        match poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await {
            Poll::Ready(published) => drop(published?),
            Poll::Pending => drop(in_flight.spawn(call)),
        }
    }
    while let Some(done) = in_flight.join_next().await {
        done??;
    }
    Ok(())
}

/// Passes on what the editor is given, and notes it.
async fn receive(topic: String, me: PeerId, mut given: Subscription, heads: Heads, events: mpsc::Sender<Event>) {
    while let Some(event) = given.next().await {
        let event = match event {
            Ok(DocumentEvent::Operation(stored)) => {
                let operation = describe(&topic, &stored.operation);
                let Operation { author, seq, id, .. } = operation.clone();
                lock(&heads).insert(author.clone(), Head { author, seq, id });
                if stored.operation.author() == me { Event::Published(operation) } else { Event::Received(operation) }
            }
            Ok(DocumentEvent::Fork(author)) => Event::Failed { what: format!("{author} forked its log") },
            Ok(_) => continue,
            Err(error) => Event::Failed { what: error.to_string() },
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

fn describe(topic: &str, operation: &panda_network::operation::Operation) -> Operation {
    Operation {
        topic: topic.into(),
        author: operation.author().to_string(),
        seq: operation.seq_num(),
        id: hex(operation.id().as_bytes()),
        header: hex(operation.header()),
        body: hex(operation.body()),
        at_us: now_us(),
    }
}
