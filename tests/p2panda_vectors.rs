//! Operations as p2panda's own crates write them: `data/p2panda_vectors.txt` is made by the package in `interop/`, which runs
//! them against a real Node as well. What a Node signs is what we read, and what we sign is what a Node would have signed.

use std::collections::BTreeMap;

use bytes::Bytes;
use panda_network::identity::Identity;
use panda_network::ids::{LogId, PeerId};
use panda_network::operation::{Head, Operation};

const VECTORS: &str = include_str!("data/p2panda_vectors.txt");
/// The time in the first vector, µs; each further one is a µs later.
const FIRST_TIMESTAMP_US: u64 = 1_790_000_000_000_000;

struct Vectors(BTreeMap<&'static str, Bytes>);

impl Vectors {
    fn read() -> Self {
        let lines = VECTORS.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.map(|line| line.split_once(" = ").expect("`name = hex`"));
        let decode = |hex: &str| Bytes::from(data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("hex"));
        Self(pairs.map(|(name, hex)| (name, decode(hex))).collect())
    }

    fn get(&self, name: &str) -> Bytes {
        self.0.get(name).unwrap_or_else(|| panic!("there is no vector {name}")).clone()
    }

    fn bytes_32(&self, name: &str) -> [u8; 32] {
        self.get(name).as_ref().try_into().expect("32 bytes")
    }

    fn log(&self) -> LogId {
        LogId::of_topic(&self.bytes_32("topic").into())
    }

    fn operation(&self, name: &str) -> Operation {
        let part = |part: &str| self.get(&format!("operation.{name}.{part}"));
        Operation::decode(self.log(), part("header"), part("body")).expect("p2panda wrote it")
    }
}

#[test]
fn the_log_of_a_topic_is_named_as_nodes_name_it() {
    let vectors = Vectors::read();
    assert_eq!(vectors.log().as_bytes(), &vectors.bytes_32("log_id"));
}

#[test]
fn an_operation_that_a_node_signed_is_read_with_its_id() {
    let vectors = Vectors::read();
    let long: Vec<u8> = (0..=255u8).cycle().take(300).collect();
    let expected: [(&str, char, u32, u64, &[u8]); 5] = [
        ("A0", 'A', 0, 0, b"hello"),
        ("A1", 'A', 1, 1, b""),
        ("A2", 'A', 2, 2, &long),
        ("B0", 'B', 0, 3, "p\u{e4}nda".as_bytes()),
        // Pruning is asked for and not done: nothing is deleted here.
        ("B1", 'B', 1, 4, b"snapshot"),
    ];
    for (name, author, seq_num, timestamp, payload) in expected {
        let operation = vectors.operation(name);
        let author = vectors.bytes_32(&format!("key.{author}.verifying"));
        assert_eq!(operation.id().as_bytes(), &vectors.bytes_32(&format!("operation.{name}.id")));
        assert_eq!(operation.author(), PeerId::from_bytes(&author).expect("a key"));
        assert_eq!((operation.seq_num(), operation.payload()), (seq_num, payload));
        assert_eq!(operation.timestamp_us(), FIRST_TIMESTAMP_US + timestamp);
    }
}

#[test]
fn an_operation_that_we_sign_is_the_one_that_a_node_would_have_signed() {
    let vectors = Vectors::read();
    let identity = Identity::from_seed(&vectors.bytes_32("key.A.signing"));
    let mut head: Option<Head> = None;
    for name in ["A0", "A1", "A2"] {
        let theirs = vectors.operation(name);
        let ours = Operation::sign(&identity, vectors.log(), head, theirs.timestamp_us(), theirs.payload())
            .expect("it can be signed");
        assert_eq!((ours.header(), ours.body(), ours.id()), (theirs.header(), theirs.body(), theirs.id()));
        head = Some(ours.head());
    }
}

#[test]
fn an_operation_without_a_body_is_refused() {
    let vectors = Vectors::read();
    let decoded = Operation::decode(vectors.log(), vectors.get("operation.B2.header"), Bytes::new());
    assert!(decoded.is_err(), "{decoded:?}");
}
