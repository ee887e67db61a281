//! The bridge with its store, and a Node that is played in memory: what arrives, what is refused, and how often it is dialled.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::heights::Heights;
use super::wire::{Cut, Frames, Greeting, Message, RawOperation};
use super::*;
use crate::identity::Identity;
use crate::ids::{DocumentKey, LogId};
use crate::limits::{BRIDGE_MALFORMED_PER_SESSION, BRIDGE_REFUSED_PER_SESSION, BRIDGE_VERIFY_AFTER};
use crate::nodes::NodeConnection;
use crate::operation::{Head, Operation};
use crate::storage::{SqliteStore, StorageOptions};
use crate::store::{CommitObserver, StoredOperation};
use crate::transport::{BiStream, CloseReason, RecvHalf, SendHalf, TransportError};

mod nodes_that_err;

/// In virtual time: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(600);

fn identity(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

fn record(number: u8) -> DocumentRecord {
    let document = DocumentId::from_uuid(Uuid::from_u128(number.into()));
    DocumentRecord { document, key: DocumentKey::from_bytes([number; 32]) }
}

fn chain(author: &Identity, log: LogId, mut head: Option<Head>, payloads: &[&str]) -> Vec<Operation> {
    let sign = |payload: &&str| {
        let operation = Operation::sign(author, log, head, 1, payload.as_bytes()).unwrap();
        head = Some(operation.head());
        operation
    };
    payloads.iter().map(sign).collect()
}

/// What an open document does for the bridge, and nothing else.
#[derive(Debug)]
struct Document {
    record: DocumentRecord,
    state: Mutex<(Heads, Position)>,
    newest: watch::Sender<Position>,
    forks: Mutex<Vec<PeerId>>,
    acknowledged: AtomicU64,
    closed: AtomicBool,
}

impl CommitObserver for Document {
    fn on_commit(&self, operations: &[StoredOperation]) {
        let mut state = self.state.lock().unwrap();
        for stored in operations {
            state.0.insert(stored.operation.author(), stored.operation.head());
            state.1 = stored.position;
        }
        self.newest.send_replace(state.1);
    }
}

impl BridgedDocument for Document {
    fn record(&self) -> &DocumentRecord {
        &self.record
    }
    fn heads(&self) -> (Heads, Position) {
        self.state.lock().unwrap().clone()
    }
    fn newest_of(&self, author: &PeerId) -> Option<SeqNum> {
        self.state.lock().unwrap().0.get(author).map(|head| head.seq_num)
    }
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
    fn frozen(&self) -> Vec<PeerId> {
        self.forks.lock().unwrap().clone()
    }
    fn newest(&self) -> watch::Receiver<Position> {
        self.newest.subscribe()
    }
    fn on_fork(&self, author: PeerId) {
        self.forks.lock().unwrap().push(author);
    }
    fn on_own_announced(&self, _: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }
    fn on_own_acknowledged(&self, _: PeerId, seq_num: SeqNum) -> BoxFuture<'_, Result<(), StoreError>> {
        self.acknowledged.store(u64::from(seq_num) + 1, Ordering::Relaxed);
        Box::pin(async { Ok(()) })
    }
}

/// One half of a stream in memory.
#[derive(Debug)]
struct Pipe(mpsc::Sender<Bytes>);

impl SendHalf for Pipe {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, Result<(), TransportError>> {
        Box::pin(async { self.0.send(bytes).await.map_err(|_| TransportError::ClosedByPeer { code: 0 }) })
    }
    fn finish(&mut self) {}
    fn reset(&mut self, _: CloseReason) {}
}

#[derive(Debug)]
struct Spout(mpsc::Receiver<Bytes>);

impl RecvHalf for Spout {
    fn read(&mut self, _: usize) -> BoxFuture<'_, Result<Option<Bytes>, TransportError>> {
        Box::pin(async { self.0.recv().await.map_or(Err(TransportError::ClosedByPeer { code: 0 }), |b| Ok(Some(b))) })
    }
    fn stop(&mut self, _: CloseReason) {}
}

fn stream() -> (BiStream, (Pipe, Spout)) {
    let ((out, at_node), (at_us, back)) = (mpsc::channel(8), mpsc::channel(8));
    ((Box::new(Pipe(out)), Box::new(Spout(back))), (Pipe(at_us), Spout(at_node)))
}

/// What a Node sees of one connection: its streams.
type Accepted = mpsc::Receiver<(Pipe, Spout)>;

/// A Node that hands the streams of every connection to the test.
#[derive(Debug)]
struct Dialler {
    dials: AtomicUsize,
    accepting: Mutex<Option<mpsc::Sender<Accepted>>>,
}

#[derive(Debug)]
struct Wire(mpsc::Sender<(Pipe, Spout)>);

impl NodeDialler for Dialler {
    fn dial_node<'a>(
        &'a self,
        _: &'a P2pandaNode,
        protocol: &'a [u8],
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Box<dyn NodeConnection>, TransportError>> {
        assert_eq!(protocol, wire::protocol(P2pandaNetworkId::DEFAULT.as_bytes()));
        self.dials.fetch_add(1, Ordering::Relaxed);
        let accepting = self.accepting.lock().unwrap().clone();
        Box::pin(async move {
            let (streams, accepted) = mpsc::channel(2);
            match accepting {
                Some(accepting) if accepting.send(accepted).await.is_ok() => Ok(Box::new(Wire(streams)) as _),
                _ => {
                    sleep(deadline).await;
                    Err(TransportError::Timeout(deadline))
                }
            }
        })
    }
}

impl NodeConnection for Wire {
    fn open_bi(&self) -> BoxFuture<'_, Result<BiStream, TransportError>> {
        Box::pin(async {
            let (ours, theirs) = stream();
            self.0.send(theirs).await.map_err(|_| TransportError::ClosedByPeer { code: 0 })?;
            Ok(ours)
        })
    }
    fn close(&self, _: CloseReason) {}
}

/// The Node's end of a session, after the greeting. Dropping it closes the connection.
struct AtNode {
    log: LogId,
    send: Pipe,
    recv: Spout,
    frames: Frames,
    _streams: (Pipe, Spout, Accepted),
}

impl AtNode {
    async fn say(&mut self, message: Message) {
        let mut out = Vec::new();
        message.put(self.log, &mut out);
        // Over when they closed.
        let _ = self.send.write(out.into()).await;
    }

    async fn hear(&mut self) -> Option<Message> {
        loop {
            match self.frames.cut() {
                Some(Cut::Frame(frame)) => return Some(Message::read(&frame, self.log).unwrap()),
                Some(Cut::Skipped) => panic!("too large"),
                None => self.frames.push(&timeout(PATIENCE, self.recv.0.recv()).await.unwrap()?),
            }
        }
    }

    /// Tells heights and sends operations; returns the heights that were told and the operations that came, up to done.
    async fn catch_up(&mut self, heights: Heights, operations: &[Operation]) -> (Heights, Vec<SeqNum>) {
        self.say(Message::Have(heights)).await;
        let Some(Message::Have(told)) = self.hear().await else { panic!("heights come first") };
        if !operations.is_empty() {
            self.say(Message::PreSync { operations: operations.len() as u32, bytes: 1 }).await;
        }
        for operation in operations {
            self.say(Message::Operation(operation.into())).await;
        }
        self.say(Message::Done).await;
        let mut came = Vec::new();
        loop {
            match self.hear().await {
                Some(Message::Done) => return (told, came),
                Some(Message::Operation(raw)) => came.push(seq_num(self.log, raw)),
                Some(Message::PreSync { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn seq_num(log: LogId, raw: RawOperation) -> SeqNum {
    let (header, body) = raw.into_parts();
    Operation::decode(log, header, body.unwrap()).unwrap().seq_num()
}

struct World {
    store: Arc<dyn Store>,
    documents: VecDeque<Arc<Document>>,
    dialler: Arc<Dialler>,
    accepted: mpsc::Receiver<Accepted>,
    bridge: Bridge,
}

impl World {
    async fn new(documents: u8) -> Self {
        let options = StorageOptions::in_memory().with_inline(true);
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(options, identity(1)).unwrap());
        let (accepting, accepted) = mpsc::channel(256);
        let dialler = Arc::new(Dialler { dials: AtomicUsize::new(0), accepting: Mutex::new(Some(accepting)) });
        let node = P2pandaNode::new(identity(9).peer_id(), ["127.0.0.1:1".parse().unwrap()]);
        let nodes = vec![(P2pandaNetworkId::DEFAULT, node)];
        let parts = (Arc::clone(&store), Arc::clone(&dialler) as _);
        let bridge = Bridge::start(identity(1).peer_id(), nodes, parts, &ReconnectionPolicy::new(), 7);
        let mut world = Self { store, documents: VecDeque::new(), dialler, accepted, bridge };
        for number in 0..documents {
            let document = Arc::new(Document {
                record: record(number),
                state: Mutex::default(),
                newest: watch::Sender::new(0),
                forks: Mutex::default(),
                acknowledged: AtomicU64::new(0),
                closed: AtomicBool::new(false),
            });
            world.store.open_document(record(number), Arc::clone(&document) as _).await.unwrap();
            world.documents.push_back(document);
        }
        world
    }

    fn document(&self) -> &Arc<Document> {
        &self.documents[0]
    }

    fn open(&self) {
        self.documents.iter().for_each(|document| self.bridge.open(Arc::clone(document) as _));
    }

    fn log(&self) -> LogId {
        self.document().record.log()
    }

    async fn publish(&self, payload: &'static str) -> Operation {
        self.store.publish(self.log(), Bytes::from_static(payload.as_bytes())).await.unwrap().operation
    }

    fn height(&self, author: &Identity) -> Option<SeqNum> {
        self.document().heads().0.get(&author.peer_id()).map(|head| head.seq_num)
    }

    /// The next connection, greeted.
    async fn accept(&mut self) -> AtNode {
        let mut streams = timeout(PATIENCE, self.accepted.recv()).await.unwrap().unwrap();
        let (mut send, mut recv) = streams.recv().await.unwrap();
        let mut frames = Frames::default();
        frames.push(&recv.0.recv().await.unwrap());
        let Some(Cut::Frame(frame)) = frames.cut() else { panic!("no greeting") };
        let Some(Greeting::Topic(topic)) = Greeting::read(&frame) else { panic!("no topic") };
        let mut done = Vec::new();
        Greeting::Done.put(&mut done);
        send.write(done.into()).await.unwrap();
        let (session, back) = timeout(PATIENCE, streams.recv()).await.unwrap().unwrap();
        let topic = p2panda_core::Topic::from(topic.into_array());
        let log = LogId::of_topic(&topic);
        AtNode { log, send: session, recv: back, frames: Frames::default(), _streams: (send, recv, streams) }
    }

    async fn until(&self, what: impl Fn(&Self) -> bool) {
        let reached = async {
            while !what(self) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, reached).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn operations_go_both_ways_and_nothing_goes_back() {
    let mut world = World::new(1).await;
    let bob = identity(2);
    world.publish("before").await;
    world.open();
    let mut node = world.accept().await;
    let bobs = chain(&bob, world.log(), None, &["one", "two", "three"]);
    let (told, came) = node.catch_up([(bob.peer_id(), 1)].into(), &bobs[..2]).await;
    assert_eq!((told, came), (Heights::new(), vec![0]));
    world.publish("live").await;
    let Some(Message::Live(raw)) = node.hear().await else { panic!("not live") };
    assert_eq!(seq_num(node.log, raw), 1);
    node.say(Message::Live((&bobs[2]).into())).await;
    world.until(|world| world.height(&bob) == Some(2)).await;
    let status = &world.bridge.status()[0];
    assert_eq!((status.connected, status.live, status.sent, status.received, status.refused), (1, 1, 2, 3, 0));
    // Quiet: the Node's heights are asked for. Bob's, which came from there, never went back.
    let quiet = Instant::now();
    assert_eq!(node.hear().await, Some(Message::Close));
    assert!(quiet.elapsed() <= BRIDGE_VERIFY_AFTER + Duration::from_secs(1));
    drop(node);
    let mut node = world.accept().await;
    let theirs = [(identity(1).peer_id(), 1), (bob.peer_id(), 2)].into();
    let (told, came) = node.catch_up(theirs, &[]).await;
    assert_eq!((told.len(), came), (2, vec![]));
    world.until(|world| world.document().acknowledged.load(Ordering::Relaxed) == 2).await;
    assert_eq!(timeout(PATIENCE, node.recv.0.recv()).await.ok(), None, "nothing to verify: the session stays");
}

#[tokio::test(start_paused = true)]
async fn what_a_lost_connection_took_along_is_sent_again() {
    let mut world = World::new(1).await;
    world.open();
    let mut node = world.accept().await;
    node.catch_up(Heights::new(), &[]).await;
    world.publish("lost").await;
    assert!(matches!(node.hear().await, Some(Message::Live(_))));
    drop(node);
    let mut node = world.accept().await;
    let (_, came) = node.catch_up(Heights::new(), &[]).await;
    assert_eq!(came, [0]);
}

#[tokio::test(start_paused = true)]
async fn a_fork_at_equal_height_is_found_and_its_author_is_left_out() {
    let mut world = World::new(1).await;
    let bob = identity(2);
    let (here, there) = (chain(&bob, world.log(), None, &["one"]), chain(&bob, world.log(), None, &["other"]));
    world.store.ingest(world.log(), here).await.unwrap();
    world.open();
    let mut node = world.accept().await;
    let (told, _) = node.catch_up([(bob.peer_id(), 0)].into(), &there).await;
    assert_eq!(told, Heights::new(), "as if nothing was here, so that the Node shows its head");
    world.until(|world| !world.document().frozen().is_empty()).await;
    assert_eq!(world.store.fork_proofs(world.log()).await.unwrap().len(), 1);
    drop(node);
    let mut node = world.accept().await;
    let (told, came) = node.catch_up([(bob.peer_id(), 0)].into(), &[]).await;
    assert_eq!((told, came), ([(bob.peer_id(), SeqNum::MAX)].into(), vec![]));
}

/// What an application there writes that knows nothing of our envelope.
fn foreign(author: &Identity, log: LogId) -> RawOperation {
    use p2panda_core::{Body, Header};
    let body = Body::from(vec![0x63, b'a', b'b', b'c']);
    let extensions = (1u16, 0u16, p2panda_core::Hash::from(*log.as_bytes()), 1u64, false);
    let header = Header::builder().seq_num(0).body(&body).build(author.signing_key(), extensions);
    raw(&header.encode(), &body.to_bytes())
}

fn raw(header: &[u8], body: &[u8]) -> RawOperation {
    let bytes = postcard::to_allocvec(&(header, Some(body))).unwrap();
    postcard::from_bytes(&bytes).unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_author_who_writes_something_else_is_left_out_and_the_others_arrive() {
    let mut world = World::new(1).await;
    let (bob, carol) = (identity(2), identity(3));
    world.open();
    let mut node = world.accept().await;
    node.catch_up(Heights::new(), &[]).await;
    node.say(Message::Live(foreign(&bob, node.log))).await;
    for operation in chain(&carol, node.log, None, &["one", "two"]) {
        node.say(Message::Live((&operation).into())).await;
    }
    world.until(|world| world.height(&carol) == Some(1)).await;
    assert_eq!(world.bridge.status()[0].refused, 1);
    drop(node);
    let (told, _) = world.accept().await.catch_up([(bob.peer_id(), 0)].into(), &[]).await;
    assert_eq!(told.get(&bob.peer_id()), Some(&SeqNum::MAX));
}

#[tokio::test(start_paused = true)]
async fn a_flood_ends_the_session_and_the_next_one_comes_later_and_later() {
    let mut world = World::new(1).await;
    world.open();
    let mut times = Vec::new();
    for _ in 0..4 {
        let mut node = world.accept().await;
        times.push(Instant::now());
        node.say(Message::Have(Heights::new())).await;
        node.say(Message::PreSync { operations: 1000, bytes: 1 }).await;
        for _ in 0..=BRIDGE_MALFORMED_PER_SESSION.max(BRIDGE_REFUSED_PER_SESSION) {
            node.say(Message::Operation(raw(b"nonsense", b""))).await;
        }
        while node.hear().await.is_some() {}
    }
    let waits: Vec<_> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert!(waits[0] >= 400 && waits[1] >= 800 && waits[2] >= 1600, "{waits:?}");
    let status = &world.bridge.status()[0];
    assert_eq!(status.refused, 4 * u64::from(BRIDGE_MALFORMED_PER_SESSION));
    assert!(matches!(status.problem, Some(BridgeError::TooManyRefused(_))), "{:?}", status.problem);
}

#[tokio::test(start_paused = true)]
async fn many_documents_do_not_flood_a_node_that_is_away() {
    let mut world = World::new(100).await;
    let accepting = world.dialler.accepting.lock().unwrap().take();
    world.open();
    sleep(Duration::from_secs(3600)).await;
    let dials = world.dialler.dials.load(Ordering::Relaxed);
    // 10 s for every dial and 30 s between them, eight at once.
    assert!((8 * 80..8 * 120).contains(&dials), "{dials} dials in an hour");
    assert!(matches!(world.bridge.status()[0].problem, Some(BridgeError::Connection(_))));
    // Back again: every document gets its session, without waiting for each other's backoff.
    *world.dialler.accepting.lock().unwrap() = accepting;
    world.bridge.retry_now();
    let mut sessions = Vec::new();
    for _ in 0..100 {
        let mut node = world.accept().await;
        node.catch_up(Heights::new(), &[]).await;
        sessions.push(node);
    }
    world.until(|world| world.bridge.status()[0].live == 100).await;
    assert_eq!(world.dialler.dials.load(Ordering::Relaxed), dials + 100, "one session per document, and it stays");
}

#[tokio::test(start_paused = true)]
async fn a_closed_document_and_a_node_off_line_have_no_sessions() {
    let mut world = World::new(1).await;
    world.open();
    let mut node = world.accept().await;
    node.catch_up(Heights::new(), &[]).await;
    world.bridge.set_online(false);
    while node.hear().await.is_some() {}
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.dialler.dials.load(Ordering::Relaxed), 1);
    world.bridge.set_online(true);
    let mut node = world.accept().await;
    node.catch_up(Heights::new(), &[]).await;
    world.bridge.close(&record(0).document);
    assert_eq!(world.bridge.status()[0].documents, 1, "another one by now");
    world.document().closed.store(true, Ordering::Relaxed);
    world.bridge.close(&record(0).document);
    while node.hear().await.is_some() {}
    assert_eq!(world.bridge.status()[0].documents, 0);
    world.open();
    assert_eq!(world.bridge.status()[0].documents, 0, "closed before it was bridged");
}
