//! A peer that has a valid identity and the document's ticket, and speaks the wire protocol by hand.
//!
//! [`scene`] sets the stage: a node under test, an honest node that edits with it, and a [`Hostile`] on the same simulated
//! network. A [`Line`] is its connection to the node, a [`Stream`] one stream of that; an [`Author`] signs whatever one likes.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use p2panda_core::{Hash, Header, SigningKey};
use panda_network::frame::FrameDecoder;
use panda_network::identity::Identity;
use panda_network::ids::LogId;
use panda_network::operation::Head;
use panda_network::sim::{self, LinkOptions, Sim};
use panda_network::sync::hello::PROTOCOL_VERSIONS;
use panda_network::sync::tokens::{EXPORTER_LABEL, Role, Token};
use panda_network::sync::wire::{ControlFrame, DocumentFrame, Refusal, StreamOpen};
use panda_network::transport::{
    CloseReason, Connection, Priority, RecvHalf, SendHalf, Transport, TransportError, TransportKind,
};
use panda_network::transports::quic::{QuicTransport, QuicTransportOptions};
use panda_network::{DocumentStatus, DocumentTicket, PeerAddress, PeerId};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{Cluster, Running};

/// Virtual time after which something that should have happened did not. The slowest takes 120 s: four heartbeats of 15 s,
/// each after a pause of 15 s.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Seeds that every scene is played with.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=3;

/// Everybody in a scene. Node 0 is under test, node 1 is honest and goes on editing.
pub struct Stage {
    pub cluster: Cluster,
    pub hostile: Hostile,
}

/// Plays a scene once per seed, and checks afterwards that the honest go on as if nothing had happened.
pub fn scene<F: Future<Output = Stage>>(play: impl Fn(Stage) -> F) {
    for seed in SEEDS {
        sim::run(seed, async |sim| {
            let mut stage = play(Stage::set(&sim).await).await;
            stage.the_honest_go_on().await;
        });
    }
}

impl Stage {
    async fn set(sim: &Sim) -> Self {
        let link = LinkOptions::new()
            .with_latency(Duration::from_millis(20))
            .with_jitter(Duration::from_millis(5))
            .with_loss(0.01);
        let mut cluster = Cluster::start(sim, 2, link).await;
        for index in 0..2 {
            cluster.publish(index, b"before".to_vec()).await;
        }
        cluster.converge(PATIENCE).await;
        let hostile = Hostile::new(sim, &cluster);
        Self { cluster, hostile }
    }

    /// The honest publish and converge; nobody has anything that nobody is known to have published.
    pub async fn the_honest_go_on(&mut self) {
        for number in 0..20 {
            for index in 0..2 {
                self.cluster.publish(index, format!("after {number}").into_bytes()).await;
            }
        }
        self.cluster.converge(PATIENCE).await;
        self.cluster.assert_everything_arrived_once_in_order();
        for index in 0..2 {
            let stored: u64 = self.running(index).document.heads().iter().map(|(_, last)| u64::from(*last) + 1).sum();
            assert_eq!(stored, self.cluster.acknowledged.len() as u64, "node {index} has stored something else");
        }
    }

    /// The honest nodes must get this operation of the hostile peer's, too.
    pub fn expect(&mut self, operation: &Signed) {
        self.cluster.acknowledged.push((operation.author, operation.payload.to_vec()));
    }

    pub fn running(&self, index: usize) -> &Running {
        self.cluster.running(index)
    }

    pub fn status(&self, index: usize) -> DocumentStatus {
        self.running(index).document.status().borrow().clone()
    }

    /// Waits until the status of a node is as wanted.
    pub async fn until(&self, index: usize, what: &str, wanted: impl Fn(&DocumentStatus) -> bool) {
        let mut status = self.running(index).document.status();
        let reached = timeout(PATIENCE, status.wait_for(|status| wanted(status))).await;
        assert!(reached.is_ok(), "node {index}: {what} did not come true: {:?}", self.status(index));
    }

    /// How many peers the node under test has a session with.
    pub fn peers(&self) -> usize {
        self.status(0).peers
    }

    /// Makes the node under test dial the hostile peer, and takes its connection.
    pub async fn be_dialled(&self) -> Line {
        let document = &self.running(0).document;
        let ticket = document.ticket().await.unwrap();
        let ticket = DocumentTicket::new(ticket.document(), ticket.key().clone()).with_peers([self.hostile.record()]);
        self.running(0).network.open(ticket).await.unwrap();
        self.hostile.accept().await
    }
}

/// The peer itself.
pub struct Hostile {
    pub identity: Identity,
    pub log: LogId,
    pub victim: PeerAddress,
    ticket: DocumentTicket,
    transport: QuicTransport,
}

impl Hostile {
    fn new(sim: &Sim, cluster: &Cluster) -> Self {
        let ticket = cluster.ticket.clone().unwrap();
        let seed = sim.derive_seed("hostile");
        let identity = Identity::from_seed(&seed);
        let socket = cluster.network.bind(SocketAddr::from(([10, 0, 9, 9], 4000))).unwrap();
        let hello = PROTOCOL_VERSIONS.encode();
        let options = QuicTransportOptions::new().with_socket(socket).with_rng_seed(seed).with_hello(hello);
        let transport = QuicTransport::start(&identity, options).unwrap();
        let log = LogId::of_topic(&ticket.key().topic(&ticket.document()));
        let victim = ticket.peers()[0].clone();
        Self { identity, log, victim, ticket, transport }
    }

    /// Where it can be reached, signed by itself.
    pub fn record(&self) -> PeerAddress {
        let addresses = self.transport.local_addresses();
        let addresses = addresses.into_iter().map(|address| (TransportKind::Quic, address)).collect();
        PeerAddress::sign(&self.identity, addresses, Vec::new(), 1).unwrap()
    }

    /// An author of its own making.
    pub fn author(&self, number: u32) -> Author {
        Author::new(numbered_key(number), self.log)
    }

    /// Connects to the node under test and says nothing yet.
    pub async fn connect(&self) -> Arc<dyn Connection> {
        self.transport.connect(&self.victim, PATIENCE).await.unwrap()
    }

    /// Connects, opens the control stream and shares the document, as the node does, too.
    pub async fn dial(&self) -> Line {
        let mut line = self.dial_with(&opened(StreamOpen::Control)).await;
        line.tell(&ControlFrame::Share(vec![line.ours])).await;
        line.is_shared().await;
        line
    }

    /// Connects, and starts with these bytes on a first stream.
    pub async fn dial_with(&self, first: &[u8]) -> Line {
        let connection = self.connect().await;
        let control = Stream::open(&connection, first).await;
        Line::new(self, connection, control, Role::Dialler)
    }

    async fn accept(&self) -> Line {
        let connection = timeout(PATIENCE, self.transport.accept()).await.unwrap().unwrap();
        // Streams have no order between them; a document's that comes first is dropped, which asks for another one.
        let control = loop {
            let (send, receive) = connection.accept_bi().await.unwrap();
            let mut stream = Stream { send, receive, decoder: FrameDecoder::new() };
            if StreamOpen::decode(&stream.frame().await.unwrap()) == Ok(StreamOpen::Control) {
                break stream;
            }
        };
        let mut line = Line::new(self, connection, control, Role::Acceptor);
        line.tell(&ControlFrame::Share(vec![line.ours])).await;
        line
    }
}

/// A connection to the node under test, whose heartbeats are answered until [`Line::play_dead`].
pub struct Line {
    pub connection: Arc<dyn Connection>,
    pub control: Stream,
    /// The document's token as this side says it, and as the node does.
    pub ours: Token,
    pub theirs: Token,
    heartbeats: JoinHandle<()>,
}

impl Line {
    fn new(hostile: &Hostile, connection: Arc<dyn Connection>, control: Stream, role: Role) -> Self {
        let exporter = connection.export_secret(EXPORTER_LABEL).unwrap();
        let token = |role| Token::new(hostile.ticket.key(), &hostile.ticket.document(), &exporter, role);
        let answering = Arc::clone(&connection);
        let heartbeats = tokio::spawn(async move {
            while let Ok(mut asked) = answering.accept_request().await {
                if asked.answer.write(asked.request).await.is_ok() {
                    asked.answer.finish();
                }
            }
        });
        Self { connection, control, ours: token(role), theirs: token(role.other()), heartbeats }
    }

    /// Answers no heartbeat any more.
    pub fn play_dead(&self) {
        self.heartbeats.abort();
    }

    pub async fn tell(&mut self, frame: &ControlFrame) {
        let mut out = Vec::new();
        frame.encode(&mut out);
        self.control.write(&out).await.unwrap();
    }

    /// Opens a stream with these first bytes.
    pub async fn stream(&self, bytes: &[u8]) -> Stream {
        Stream::open(&self.connection, bytes).await
    }

    /// Opens a document stream and says nothing on it.
    pub async fn document(&self) -> Stream {
        self.stream(&opened(StreamOpen::Document(self.ours))).await
    }

    /// Opens a document stream, says that it has nothing, and reads what the node has.
    pub async fn session(&self) -> Stream {
        let mut stream = self.document().await;
        stream.say(&DocumentFrame::Heads { heads: Vec::new(), last: true }).await;
        stream.until(|frame| matches!(frame, DocumentFrame::Heads { last: true, .. }).then_some(())).await;
        stream
    }

    pub async fn catch_up(&self) -> Stream {
        self.stream(&opened(StreamOpen::CatchUp(self.ours))).await
    }

    /// The next stream that the node opens, and what it is for.
    pub async fn accept(&self) -> (StreamOpen, Stream) {
        let (send, receive) = timeout(PATIENCE, self.connection.accept_bi()).await.unwrap().unwrap();
        let mut stream = Stream { send, receive, decoder: FrameDecoder::new() };
        (StreamOpen::decode(&stream.frame().await.unwrap()).unwrap(), stream)
    }

    /// Waits until the node closes the connection for this reason.
    pub async fn is_closed(&self, reason: CloseReason) {
        let closed = timeout(PATIENCE, self.connection.closed()).await;
        assert_eq!(closed, Ok(TransportError::ClosedByPeer { code: reason as u64 }));
    }

    /// Waits until the node says that it shares the document.
    async fn is_shared(&mut self) {
        let shared = Ok(ControlFrame::Share(vec![self.theirs]));
        let said = async { while ControlFrame::decode(&self.control.frame().await.unwrap()) != shared {} };
        timeout(PATIENCE, said).await.expect("the node does not share the document");
    }

    /// How often the node says within this time, and since it was last asked, that it shares documents.
    pub async fn shares_within(&mut self, time: Duration) -> usize {
        let mut shares = 0;
        let counting = async {
            while let Ok(frame) = self.control.frame().await {
                shares += usize::from(matches!(ControlFrame::decode(&frame), Ok(ControlFrame::Share(_))));
            }
        };
        // The connection stays open, so this ends by its time.
        let _ = timeout(time, counting).await;
        shares
    }

    /// Asks the node something, which it answers as long as the connection lives.
    pub async fn is_alive(&self) {
        let answer = self.connection.request(Bytes::from_static(&[0]), PATIENCE).await;
        assert_eq!(answer, Ok(Bytes::from_static(&[0])));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.heartbeats.abort();
    }
}

/// One stream, both ways.
pub struct Stream {
    pub send: Box<dyn SendHalf>,
    pub receive: Box<dyn RecvHalf>,
    decoder: FrameDecoder,
}

impl Stream {
    async fn open(connection: &Arc<dyn Connection>, bytes: &[u8]) -> Self {
        let (send, receive) = connection.open_bi(Priority::High).await.unwrap();
        let mut stream = Self { send, receive, decoder: FrameDecoder::new() };
        stream.write(bytes).await.unwrap();
        stream
    }

    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        match bytes.is_empty() {
            true => Ok(()),
            false => self.send.write(Bytes::copy_from_slice(bytes)).await,
        }
    }

    pub async fn say(&mut self, frame: &DocumentFrame) {
        self.try_say(frame).await.unwrap();
    }

    pub async fn try_say(&mut self, frame: &DocumentFrame) -> Result<(), TransportError> {
        let mut out = Vec::new();
        frame.encode(&mut out);
        self.write(&out).await
    }

    /// Sends operations in one frame; the message's number says which attempt it was.
    pub async fn send(&mut self, message_id: u64, operations: &[&Signed]) {
        self.say(&operations_frame(message_id, operations)).await;
    }

    async fn frame(&mut self) -> Result<Bytes, TransportError> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Ok(frame);
            }
            match self.receive.read(64 * 1024).await? {
                Some(chunk) => self.decoder.push(chunk),
                None => return Err(TransportError::ClosedByPeer { code: CloseReason::Done as u64 }),
            }
        }
    }

    /// What the node says next.
    pub async fn next(&mut self) -> Result<DocumentFrame, TransportError> {
        let frame = timeout(PATIENCE, self.frame()).await.expect("the node says nothing")?;
        Ok(DocumentFrame::decode(&frame).unwrap())
    }

    /// Reads on until the node says what is wanted.
    pub async fn until<T>(&mut self, wanted: impl Fn(&DocumentFrame) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(&self.next().await.unwrap()) {
                return found;
            }
        }
    }

    /// Waits for the refusal of an author's operation: what is expected instead, and why.
    pub async fn refusal(&mut self, of: PeerId) -> (u32, Refusal) {
        self.until(|frame| match frame {
            DocumentFrame::Refuse { author, expected, refusal, .. } if *author == of => Some((*expected, *refusal)),
            _ => None,
        })
        .await
    }

    /// Waits until the node has an author's operations up to this one.
    pub async fn acknowledged(&mut self, of: PeerId, seq_num: u32) {
        self.until(|frame| match frame {
            DocumentFrame::Acknowledge(authors) => authors.contains(&(of, seq_num)).then_some(()),
            _ => None,
        })
        .await;
    }

    /// Waits until the node ends the stream for this reason; a document stream may say something before.
    pub async fn is_closed(&mut self, reason: CloseReason) {
        let code = loop {
            match timeout(PATIENCE, self.receive.read(64 * 1024)).await.expect("the stream stays open") {
                Ok(Some(_)) => {}
                Ok(None) => break CloseReason::Done as u64,
                Err(TransportError::ClosedByPeer { code }) => break code,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(code, reason as u64, "not {reason:?}");
    }

    /// Waits until the node stops reading the stream for this reason.
    pub async fn is_stopped(&mut self, reason: CloseReason) {
        let written = async {
            loop {
                // A frame that would be refused if anybody read it.
                if let Err(error) = self.write(&[0; 1]).await {
                    return error;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let stopped = timeout(PATIENCE, written).await;
        assert_eq!(stopped, Ok(TransportError::ClosedByPeer { code: reason as u64 }));
    }
}

/// The first frame of a stream.
pub fn opened(open: StreamOpen) -> Vec<u8> {
    let mut out = Vec::new();
    open.encode(&mut out);
    out
}

/// A frame around any content.
pub fn framed(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_be_bytes(), content].concat()
}

pub fn operations_frame(message_id: u64, operations: &[&Signed]) -> DocumentFrame {
    let parts = operations.iter().map(|operation| (operation.header.clone(), operation.body.clone()));
    DocumentFrame::Operations { message_id, operations: parts.collect() }
}

/// One of as many keys as wanted.
pub fn numbered_key(number: u32) -> SigningKey {
    SigningKey::from_bytes(blake3::hash(&number.to_be_bytes()).as_bytes())
}

/// The extensions of our operations, as they are encoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Extensions(u16, u16, Hash, u64, bool);

/// Somebody who signs one log, or more than one.
#[derive(Clone)]
pub struct Author {
    pub id: PeerId,
    pub next: u32,
    pub backlink: Option<Hash>,
    key: SigningKey,
    log: LogId,
}

/// An operation with a valid signature, whatever else may be wrong with it.
#[derive(Clone)]
pub struct Signed {
    pub author: PeerId,
    pub seq_num: u32,
    pub header: Bytes,
    pub body: Bytes,
    pub payload: Bytes,
    pub id: Hash,
}

impl Author {
    pub fn new(key: SigningKey, log: LogId) -> Self {
        Self { id: key.verifying_key().into(), next: 0, backlink: None, key, log }
    }

    /// Signs the next operation of the log.
    pub fn sign(&mut self, payload: &[u8]) -> Signed {
        let mut body = minicbor::Encoder::new(Vec::new());
        body.array(2).unwrap().u64(1).unwrap().bytes(payload).unwrap();
        let body = body.into_writer();
        let extensions = Extensions(1, 0, (*self.log.as_bytes()).into(), 7, false);
        let builder = Header::builder().seq_num(self.next).backlink(self.backlink).body(&body);
        let header = builder.build(&self.key, extensions);
        let (seq_num, id) = (self.next, header.hash());
        (self.next, self.backlink) = (self.next + 1, Some(id));
        let payload = Bytes::copy_from_slice(payload);
        Signed { author: self.id, seq_num, header: header.encode().into(), body: body.into(), payload, id }
    }
}

impl Signed {
    pub fn head(&self) -> (PeerId, Head) {
        (self.author, Head { seq_num: self.seq_num, id: (*self.id.as_bytes()).into() })
    }

    /// The same with one bit of the header changed, at the end: that is not where the author stands.
    pub fn damaged(&self) -> Self {
        let mut header = self.header.to_vec();
        let last = header.len() - 60;
        header[last] ^= 1;
        Self { header: header.into(), ..self.clone() }
    }
}
