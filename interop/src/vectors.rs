//! Golden vectors: what p2panda 0.7.1 itself signs, encodes and frames for fixed keys and values.
//!
//! One `name = hex` per line. The main package includes the text in its tests, and a test here says when it is not what
//! p2panda writes.

use std::collections::BTreeMap;
use std::fmt::Write;

use p2panda::operation::{Extensions, LogId};
use p2panda_core::cbor::{decode_cbor, encode_cbor};
use p2panda_core::{Body, Hash, Header, SigningKey, Topic};
use p2panda_net::codec::Codec;
use p2panda_sync::protocols::{LogSyncMessage, TopicHandshakeMessage, TopicLogSyncMessage};
use serde::Serialize;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Encoder;

/// The network id of the ALPN vectors, beside p2panda's default one.
const NETWORK: [u8; 32] = [3; 32];
/// Micros since the Unix epoch, increased by one for every operation.
const TIMESTAMP_US: u64 = 1_790_000_000_000_000;

/// All vectors, with a heading.
pub fn text() -> String {
    let mut lines = String::from(
        "# What p2panda 0.7.1 writes. Made by `cargo run --ignore-rust-version --bin p2panda-vectors` in interop/, whose tests compare it.\n\
         # Names: keys and topic are the input; `header`, `body` and `id` belong to one operation, `message` is postcard,\n\
         # `frame` the same behind its length, as p2panda-net sends it.\n",
    );
    for (name, bytes) in vectors() {
        writeln!(lines, "{name} = {}", hex(&bytes)).expect("a string takes everything");
    }
    lines
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn vectors() -> Vec<(String, Vec<u8>)> {
    let mut vectors = Vectors(Vec::new());
    vectors.alpns();
    let topic = topic();
    vectors.put("topic", topic.as_bytes());
    vectors.put("log_id", LogId::from_topic(topic).as_bytes());
    let operations = operations();
    for operation in &operations {
        vectors.operation(operation);
    }
    vectors.handshake(topic);
    vectors.log_sync(&operations);
    vectors.0
}

fn topic() -> Topic {
    let bytes: Vec<u8> = (0..32).collect();
    Topic::from_bytes(&bytes).expect("32 bytes")
}

fn signing_key(author: char) -> SigningKey {
    let byte = u8::try_from(author).expect("ASCII");
    SigningKey::from_bytes(&[byte; 32])
}

struct Signed {
    name: String,
    author: char,
    header: Header<Extensions>,
    body: Option<Vec<u8>>,
}

/// A Node's header with a chosen time: its own constructor reads the clock.
fn extensions(timestamp_us: u64, prune: bool) -> Extensions {
    let log_id = LogId::from_topic(topic());
    let fields = encode_cbor(&(1u16, 0u16, log_id, timestamp_us, prune)).expect("plain values");
    decode_cbor(fields.as_slice()).expect("what a Node reads")
}

/// Our envelope around a payload: the CBOR array `[1, payload]`.
fn envelope(payload: &[u8]) -> Vec<u8> {
    encode_cbor(&(1u8, serde_bytes::Bytes::new(payload))).expect("plain values")
}

fn operations() -> Vec<Signed> {
    let long: Vec<u8> = (0..=255u8).cycle().take(300).collect();
    let mut signed = Vec::new();
    let mut backlinks: BTreeMap<char, (u32, Hash)> = BTreeMap::new();
    let script: [(char, Option<&[u8]>, bool); 6] = [
        ('A', Some(b"hello"), false),
        ('A', Some(b""), false),
        ('A', Some(&long), false),
        ('B', Some("p\u{e4}nda".as_bytes()), false),
        // What we do not take: a log that is pruned, and an operation without a body.
        ('B', Some(b"snapshot"), true),
        ('B', None, true),
    ];
    for (index, (author, payload, prune)) in (0..).zip(script) {
        let last = backlinks.get(&author).copied();
        let (seq, backlink) = last.map_or((0, None), |(seq, id)| (seq + 1, Some(id)));
        let body = payload.map(envelope);
        let mut builder = Header::<Extensions>::builder().seq_num(seq).backlink(backlink);
        let core_body = body.as_ref().map(|bytes| Body::from(bytes.clone()));
        if let Some(body) = &core_body {
            builder = builder.body(body);
        }
        let header = builder.build(&signing_key(author), extensions(TIMESTAMP_US + index, prune));
        backlinks.insert(author, (seq, header.hash()));
        signed.push(Signed { name: format!("operation.{author}{seq}"), author, header, body });
    }
    signed
}

struct Vectors(Vec<(String, Vec<u8>)>);

impl Vectors {
    fn put(&mut self, name: impl Into<String>, bytes: &[u8]) {
        self.0.push((name.into(), bytes.to_vec()));
    }

    /// Both encodings of one message.
    fn message<M: Serialize>(&mut self, name: &str, message: M) {
        let postcard = postcard::to_allocvec(&message).expect("plain values");
        let mut frame = BytesMut::new();
        Codec::new().encode(message, &mut frame).expect("small");
        self.put(format!("message.{name}"), &postcard);
        self.put(format!("frame.{name}"), &frame);
    }

    /// p2panda-net hashes protocol and network in a private function; a Node that answers proves these.
    fn alpns(&mut self) {
        for (network, id) in [("fixed", NETWORK), ("default", p2panda_net::DEFAULT_NETWORK_ID)] {
            self.put(format!("network.{network}"), &id);
            for protocol in ["p2panda/log_sync/v1", "confidential_discovery/v1"] {
                let alpn = Hash::digest([protocol.as_bytes(), &id].concat());
                self.put(format!("alpn.{network}.{protocol}"), alpn.as_bytes());
            }
        }
    }

    fn operation(&mut self, operation: &Signed) {
        let Signed { name, author, header, body } = operation;
        let key = signing_key(*author);
        if header.seq_num == 0 {
            self.put(format!("key.{author}.signing"), key.as_bytes());
            self.put(format!("key.{author}.verifying"), key.verifying_key().as_bytes());
        }
        self.put(format!("{name}.header"), &header.encode());
        if let Some(body) = body {
            self.put(format!("{name}.body"), body);
        }
        self.put(format!("{name}.id"), header.hash().as_bytes());
    }

    fn handshake(&mut self, topic: Topic) {
        self.message("handshake.topic", TopicHandshakeMessage::Topic(topic));
        self.message("handshake.done", TopicHandshakeMessage::<Topic>::Done);
    }

    fn log_sync(&mut self, operations: &[Signed]) {
        let log = LogId::from_topic(topic());
        let other_log = LogId::from_topic(Topic::from_bytes(&[9; 32]).expect("32 bytes"));
        let (a, b) = (signing_key('A').verifying_key(), signing_key('B').verifying_key());
        let sync = TopicLogSyncMessage::<LogId>::Sync;
        self.put("log_id.other", other_log.as_bytes());
        self.message("have.empty", sync(LogSyncMessage::Have(BTreeMap::new())));
        self.message("have.A2", sync(LogSyncMessage::Have([(a, [(log, 2)].into())].into())));
        // Heights of one, two and five bytes, and an author with two logs.
        let heights = [(a, [(log, 300), (other_log, 0)].into()), (b, [(log, u32::MAX)].into())];
        self.message("have.A300_A0other_Bmax", sync(LogSyncMessage::Have(heights.into())));
        self.message("have.A_without_logs", sync(LogSyncMessage::Have([(a, BTreeMap::new())].into())));
        let pre_sync = |total_operations, total_bytes| LogSyncMessage::PreSync { total_operations, total_bytes };
        self.message("pre_sync.1_2", sync(pre_sync(1, 2)));
        self.message("pre_sync.10000_max", sync(pre_sync(10_000, u32::MAX)));
        self.message("done", sync(LogSyncMessage::Done));
        self.message("close", TopicLogSyncMessage::<LogId>::Close);
        for Signed { name, header, body, .. } in operations {
            let raw = (header.encode(), body.clone());
            let name = name.trim_start_matches("operation.");
            self.message(&format!("operation.{name}"), sync(LogSyncMessage::Operation(raw.clone())));
            self.message(&format!("live.{name}"), TopicLogSyncMessage::<LogId>::Live(raw));
        }
    }
}
