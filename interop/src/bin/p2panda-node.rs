//! A real `p2panda::Node` 0.7.1 that does what the lines on stdin say and ends when stdin ends, so it never outlives its test.
//!
//! No mDNS, no relays, loopback only. What other Nodes it knows goes into its address book before it starts: p2panda has no
//! other way to learn a direct address.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use p2panda::network::MdnsDiscoveryMode;
use p2panda::operation::{Extensions, Header, LogId};
use p2panda::streams::{ProcessedOperation, StreamEvent, StreamPublisher, StreamSubscription};
use p2panda::{Node, NodeBuilder};
use p2panda_core::{Body, Hash, SeqNum, SigningKey, Topic, VerifyingKey};
use p2panda_net::AddressBook;
use p2panda_net::addrs::{NodeInfo, NodeTransportInfo, TransportAddress, TrustedTransportInfo};
use p2panda_net::iroh_endpoint::EndpointAddr;
use p2panda_net::utils::from_verifying_key;
use p2panda_store::logs::LogStore;
use p2panda_store::topics::TopicStore;
use p2panda_store::{SqliteStore, SqliteStoreBuilder};
use panda_network_interop::protocol::{Command, Event, Head, KnownNode, Operation, Payload, SessionEnd, Start, now_us};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Stdin};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// How long the endpoint may take to bind.
const BIND_DEADLINE: Duration = Duration::from_secs(10);
/// How often a Node is asked whether it has bound.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Lines that wait for the test to read them; then the Node waits.
const LINES_MAX: usize = 1024;

type AnyError = Box<dyn Error + Send + Sync>;

/// The body of our operations, as a Node's application sees it: `[1, bytes]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Envelope(u8, #[serde(with = "serde_bytes")] Vec<u8>);

#[tokio::main]
async fn main() -> Result<(), AnyError> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let Some(first) = lines.next_line().await? else { return Ok(()) };
    let Command::Start(start) = serde_json::from_str(&first)? else {
        return Err("the first line has to be `start`".into());
    };
    let (events, written) = mpsc::channel(LINES_MAX);
    let writer = tokio::spawn(write_events(written));
    let result = run(start, lines, events.clone()).await;
    if let Err(error) = &result {
        events.send(Event::Failed { what: error.to_string() }).await?;
    }
    drop(events);
    // Streams of the Node hold the channel too, so the writer is not waited for longer than it needs for what is there.
    let _ = tokio::time::timeout(Duration::from_secs(1), writer).await;
    result
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

async fn run(
    start: Start,
    mut lines: tokio::io::Lines<BufReader<Stdin>>,
    events: mpsc::Sender<Event>,
) -> Result<(), AnyError> {
    let store = open_store(&start).await?;
    let address_book = AddressBook::builder().store(store.clone()).spawn().await?;
    for known in &start.nodes {
        address_book.insert_node_info(node_info(known)?).await?;
    }
    let node = spawn(&start, &store).await?;
    let addresses = bound_addresses(&address_book, node.id(), start.port).await?;
    events.send(Event::Ready { key: node.id().to_hex(), addresses }).await?;
    let mut driver = Driver { node, store, events, publishers: HashMap::new() };
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line)? {
            Command::Stop => {
                driver.events.send(Event::Stopped).await?;
                break;
            }
            command => driver.obey(command).await?,
        }
    }
    Ok(())
}

async fn open_store(start: &Start) -> Result<SqliteStore, AnyError> {
    let Some(dir) = &start.dir else { return Ok(SqliteStoreBuilder::memory().build().await?) };
    let url = format!("sqlite://{dir}/node.sqlite");
    Ok(SqliteStoreBuilder::new().database_url(&url).build().await?)
}

async fn spawn(start: &Start, store: &SqliteStore) -> Result<Node, AnyError> {
    let key = start.key.as_ref().ok_or("a Node needs a key")?;
    let node = NodeBuilder::new()
        .signing_key(SigningKey::from_bytes(&bytes_32(key)?))
        .network_id(bytes_32(&start.network)?)
        .database_pool(store.pool().clone())
        .mdns_mode(MdnsDiscoveryMode::Disabled)
        .bind_ip_v4(Ipv4Addr::LOCALHOST)
        .bind_port_v4(start.port)
        .bind_ip_v6(Ipv6Addr::LOCALHOST)
        .spawn()
        .await?;
    Ok(node)
}

fn node_info(known: &KnownNode) -> Result<NodeInfo, AnyError> {
    let key = VerifyingKey::from_bytes(&bytes_32(&known.key)?)?;
    let address: SocketAddr = known.address.parse()?;
    let endpoint = EndpointAddr::new(from_verifying_key(key)).with_ip_addr(address);
    let mut info = NodeInfo::new(key).bootstrap();
    info.update_transports(TrustedTransportInfo::from(endpoint).into())?;
    Ok(info)
}

/// The endpoint writes where it listens into the address book, some time after the Node has started. On a port that is taken
/// it would listen elsewhere without a word.
async fn bound_addresses(book: &AddressBook, me: VerifyingKey, port: u16) -> Result<Vec<String>, AnyError> {
    let start = Instant::now();
    while start.elapsed() < BIND_DEADLINE {
        let transports = book.node_info(me).await?.and_then(|info| info.transports);
        let addresses: Vec<SocketAddr> = transports
            .iter()
            .flat_map(NodeTransportInfo::addresses)
            .flat_map(|TransportAddress::Iroh(address)| address.ip_addrs().copied().collect::<Vec<_>>())
            .filter(|address| address.is_ipv4() && (port == 0 || address.port() == port))
            .collect();
        if !addresses.is_empty() {
            return Ok(addresses.iter().map(ToString::to_string).collect());
        }
        sleep(POLL_INTERVAL).await;
    }
    Err(format!("the endpoint did not bind to port {port}").into())
}

fn bytes_32(hex: &str) -> Result<[u8; 32], AnyError> {
    let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes())?;
    <[u8; 32]>::try_from(bytes).map_err(|_| "not 32 bytes".into())
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

struct Driver {
    node: Node,
    store: SqliteStore,
    events: mpsc::Sender<Event>,
    publishers: HashMap<String, StreamPublisher<Envelope>>,
}

impl Driver {
    async fn obey(&mut self, command: Command) -> Result<(), AnyError> {
        match command {
            Command::Open { topic: Some(topic), .. } => self.open(topic).await?,
            Command::Publish { topic, count, prefix, per_second } => {
                let publisher = self.publishers.get(&topic).ok_or("this topic is not open")?.clone();
                let events = self.events.clone();
                tokio::spawn(async move {
                    if let Err(error) = publish(publisher, count, prefix, per_second).await {
                        let _ = events.send(Event::Failed { what: format!("publish: {error}") }).await;
                    }
                });
            }
            Command::Heads { topic } => {
                let heads = self.heads(&topic).await?;
                self.events.send(Event::Heads { topic, heads }).await?;
            }
            Command::Start(_) | Command::Create | Command::Open { topic: None, .. } | Command::Stop => {
                return Err("not for a Node, or not now".into());
            }
        }
        Ok(())
    }

    async fn open(&mut self, topic: String) -> Result<(), AnyError> {
        let (publisher, subscription) = self.node.stream::<Envelope>(Topic::from(bytes_32(&topic)?)).await?;
        self.publishers.insert(topic.clone(), publisher);
        self.events.send(Event::Opened { topic: topic.clone(), ticket: None }).await?;
        tokio::spawn(receive(topic, self.node.id(), subscription, self.events.clone()));
        Ok(())
    }

    async fn heads(&self, topic: &str) -> Result<Vec<Head>, AnyError> {
        let topic = Topic::from(bytes_32(topic)?);
        let logs = TopicStore::<Topic, VerifyingKey, LogId>::resolve(&self.store, &topic).await?;
        let mut heads = Vec::new();
        for (author, logs) in logs {
            for log in logs {
                let latest = <SqliteStore as LogStore<
                    p2panda::operation::Operation,
                    VerifyingKey,
                    LogId,
                    SeqNum,
                    Hash,
                >>::get_latest_entry(&self.store, &author, &log)
                .await?;
                heads.extend(latest.map(|operation| Head {
                    author: author.to_hex(),
                    seq: operation.header.seq_num,
                    id: operation.hash.to_hex(),
                }));
            }
        }
        heads.sort();
        Ok(heads)
    }
}

async fn publish(
    publisher: StreamPublisher<Envelope>,
    count: u32,
    prefix: String,
    per_second: u32,
) -> Result<(), AnyError> {
    let mut ticks = (per_second > 0).then(|| {
        let mut ticks = interval(Duration::from_secs(1) / per_second);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        ticks
    });
    for number in 0..count {
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
        let payload = Payload { prefix: prefix.clone(), number, sent_us: now_us() };
        // Not waited for: it comes back through the stream, as `Published`.
        publisher.publish(Envelope(1, payload.encode().into_bytes())).await?;
    }
    Ok(())
}

/// Passes on what the application of this Node would see, but an own operation once: p2panda tells of some twice.
async fn receive(
    topic: String,
    me: VerifyingKey,
    mut stream: StreamSubscription<Envelope>,
    events: mpsc::Sender<Event>,
) {
    let mut own = HashSet::new();
    while let Some(event) = stream.next().await {
        let event = match event {
            StreamEvent::Processed { operation, .. } => {
                let operation = describe(&topic, &operation);
                match operation.author == me.to_hex() {
                    true if own.insert(operation.seq) => Event::Published(operation),
                    true => continue,
                    false => Event::Received(operation),
                }
            }
            StreamEvent::SyncStarted { remote_node_id, .. } => {
                Event::Session { topic: topic.clone(), remote: remote_node_id.to_hex(), end: None }
            }
            StreamEvent::SyncEnded { remote_node_id, received_operations, sent_operations, error, .. } => {
                let error = error.map(|error| error.to_string());
                let end = SessionEnd { error, received: received_operations, sent: sent_operations };
                Event::Session { topic: topic.clone(), remote: remote_node_id.to_hex(), end: Some(end) }
            }
            StreamEvent::ProcessingFailed { event, error, .. } => failed(event.header(), &error),
            StreamEvent::DecodeFailed { event, error } => failed(event.header(), &error),
            StreamEvent::AckFailed { event, error } => failed(event.header(), &error),
            StreamEvent::ReplayFailed { error } => Event::Failed { what: format!("replay: {error}") },
            StreamEvent::ReplayStarted { total_operations } => {
                Event::Note { text: format!("replays {total_operations} operations") }
            }
            StreamEvent::ReplayEnded | StreamEvent::ImportStarted { .. } | StreamEvent::ImportEnded { .. } => continue,
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

fn failed(header: &p2panda_core::Header<Extensions>, error: &dyn Error) -> Event {
    Event::Failed { what: format!("{} #{}: {error}", header.verifying_key.to_hex(), header.seq_num) }
}

fn describe(topic: &str, operation: &ProcessedOperation<Envelope>) -> Operation {
    let header: &Header = operation.processed().header();
    Operation {
        topic: topic.into(),
        author: operation.author().to_hex(),
        seq: header.seq_num,
        id: operation.id().to_hex(),
        header: hex(&header.encode()),
        body: hex(&operation.processed().body().map(Body::to_bytes).unwrap_or_default()),
        at_us: now_us(),
    }
}
