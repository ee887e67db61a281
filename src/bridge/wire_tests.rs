//! Frames and messages: what is read back, and what is refused.

use super::*;
use crate::identity::Identity;

fn log() -> LogId {
    LogId::from([9; 32])
}

fn framed(message: Message) -> Vec<u8> {
    let mut out = Vec::new();
    message.put(log(), &mut out);
    out
}

#[test]
fn messages_survive_the_wire() {
    let identity = Identity::from_seed(&[1; 32]);
    let operation = RawOperation::from(&Operation::sign(&identity, log(), None, 1, b"milk").unwrap());
    let messages = [
        Message::Have([(identity.peer_id(), 300)].into()),
        Message::PreSync { operations: 1, bytes: 400 },
        Message::Operation(operation.clone()),
        Message::Done,
        Message::Live(operation),
        Message::Close,
    ];
    let mut frames = Frames::default();
    messages.iter().for_each(|message| {
        // Byte by byte, as slow as a network can be.
        framed(message.clone()).chunks(1).for_each(|chunk| frames.push(chunk));
    });
    for message in messages {
        let Some(Cut::Frame(frame)) = frames.cut() else { panic!("no frame for {message:?}") };
        assert_eq!(Message::read(&frame, log()), Some(message));
    }
    assert_eq!(frames.cut(), None);
}

#[test]
fn a_frame_that_is_too_large_is_skipped_and_the_next_one_is_read() {
    let mut frames = Frames::default();
    let length = BRIDGE_FRAME_MAX_BYTES + 1;
    frames.push(&(length as u32).to_be_bytes());
    assert_eq!(frames.cut(), Some(Cut::Skipped));
    let mut left = length;
    while left > 0 {
        let chunk = vec![7; left.min(1 << 20)];
        left -= chunk.len();
        frames.push(&chunk);
        assert!(frames.buffered.is_empty(), "what is skipped is not kept");
    }
    frames.push(&framed(Message::Done));
    let Some(Cut::Frame(frame)) = frames.cut() else { panic!("the next frame is lost") };
    assert_eq!(Message::read(&frame, log()), Some(Message::Done));
}

#[test]
fn damaged_messages_are_refused() {
    let frame = framed(Message::Have([(Identity::from_seed(&[1; 32]).peer_id(), 3)].into()))[PREFIX_BYTES..].to_vec();
    for length in 0..frame.len() {
        assert_eq!(Message::read(&frame[..length], log()), None, "{length} bytes of {}", frame.len());
    }
    assert_eq!(Message::read(&[&frame[..], &[0]].concat(), log()), None, "bytes after the end");
    assert_eq!(Message::read(&[3], log()), None, "a variant that there is not");
    let mut no_point = frame;
    // Author: behind two variants, the number of authors and the length of a key.
    no_point[4..36].fill(2);
    assert_eq!(Message::read(&no_point, log()), None, "a key that is no key");
}

#[test]
fn heights_of_other_logs_are_not_ours() {
    let author = ByteArray::new(*Identity::from_seed(&[1; 32]).peer_id().as_bytes());
    let logs = BTreeMap::from([(ByteArray::new([1; 32]), 5)]);
    let mut out = Vec::new();
    put_frame(&TopicLogSync::Sync(LogSync::Have([(author, logs)].into())), &mut out);
    assert_eq!(Message::read(&out[PREFIX_BYTES..], log()), Some(Message::Have(Heights::new())));
}

proptest::proptest! {
    #[test]
    fn whatever_comes_is_read_or_refused(bytes: Vec<u8>, at: proptest::sample::Index, byte: u8) {
        let _ = (Message::read(&bytes, log()), Greeting::read(&bytes));
        let identity = Identity::from_seed(&[1; 32]);
        let operation = Operation::sign(&identity, log(), None, 1, b"milk").unwrap();
        let messages = [Message::Have([(identity.peer_id(), 3)].into()), Message::Live((&operation).into())];
        for message in messages {
            let mut damaged = framed(message)[PREFIX_BYTES..].to_vec();
            damaged.insert(at.index(damaged.len()), byte);
            let _ = Message::read(&damaged, log());
        }
        let mut frames = Frames::default();
        bytes.chunks(3).for_each(|chunk| frames.push(chunk));
        while frames.cut().is_some() {}
    }
}

/// What p2panda's own crates write; how it was made is said in the file.
mod vectors {
    use super::*;

    fn bytes(name: &str) -> Vec<u8> {
        let text = include_str!("../../tests/data/p2panda_vectors.txt");
        let lines = text.lines().filter_map(|line| line.split_once(" = "));
        let hex = lines.into_iter().find(|(found, _)| *found == name).map(|(_, hex)| hex);
        data_encoding::HEXLOWER.decode(hex.unwrap_or_else(|| panic!("no {name}")).as_bytes()).unwrap()
    }

    fn bytes_32(name: &str) -> [u8; 32] {
        bytes(name).try_into().unwrap()
    }

    fn log() -> LogId {
        LogId::from(bytes_32("log_id"))
    }

    fn author(name: char) -> PeerId {
        PeerId::from_bytes(&bytes_32(&format!("key.{name}.verifying"))).unwrap()
    }

    fn operation(name: &str) -> RawOperation {
        let body = bytes(&format!("operation.{name}.body"));
        RawOperation(ByteBuf::from(bytes(&format!("operation.{name}.header"))), Some(ByteBuf::from(body)))
    }

    #[test]
    fn the_application_protocol_is_named_as_nodes_name_it() {
        for network in ["fixed", "default"] {
            let id = bytes_32(&format!("network.{network}"));
            assert_eq!(protocol(&id).to_vec(), bytes(&format!("alpn.{network}.p2panda/log_sync/v1")));
        }
        assert_eq!(crate::nodes::P2pandaNetworkId::DEFAULT.as_bytes(), &bytes_32("network.default"));
    }

    #[test]
    fn greetings_are_what_p2panda_writes() {
        for (name, greeting) in
            [("topic", Greeting::Topic(ByteArray::new(bytes_32("topic")))), ("done", Greeting::Done)]
        {
            let mut out = Vec::new();
            greeting.put(&mut out);
            assert_eq!(out, bytes(&format!("frame.handshake.{name}")));
            assert_eq!(Greeting::read(&bytes(&format!("message.handshake.{name}"))), Some(greeting));
        }
    }

    #[test]
    fn messages_are_what_p2panda_writes() {
        let messages = [
            ("have.empty", Message::Have(Heights::new())),
            ("have.A2", Message::Have([(author('A'), 2)].into())),
            ("pre_sync.1_2", Message::PreSync { operations: 1, bytes: 2 }),
            ("pre_sync.10000_max", Message::PreSync { operations: 10_000, bytes: u32::MAX }),
            ("done", Message::Done),
            ("close", Message::Close),
            ("operation.A0", Message::Operation(operation("A0"))),
            ("operation.A2", Message::Operation(operation("A2"))),
            ("live.A0", Message::Live(operation("A0"))),
            ("live.B0", Message::Live(operation("B0"))),
        ];
        for (name, message) in messages {
            let mut out = Vec::new();
            message.clone().put(log(), &mut out);
            assert_eq!(out, bytes(&format!("frame.{name}")), "{name}");
            assert_eq!(Message::read(&bytes(&format!("message.{name}")), log()), Some(message), "{name}");
        }
    }

    #[test]
    fn heights_of_a_node_with_more_than_our_log_are_understood() {
        let heights = [(author('A'), 300), (author('B'), u32::MAX)].into();
        let read = Message::read(&bytes("message.have.A300_A0other_Bmax"), log());
        assert_eq!(read, Some(Message::Have(heights)));
        let read = Message::read(&bytes("message.have.A_without_logs"), log());
        assert_eq!(read, Some(Message::Have(Heights::new())));
    }

    #[test]
    fn operations_of_a_node_have_the_ids_that_p2panda_computes() {
        for name in ["A0", "A1", "A2", "B0", "B1"] {
            let (header, body) = operation(name).into_parts();
            let decoded = Operation::decode(log(), header, body.unwrap()).unwrap();
            assert_eq!(decoded.id().as_bytes().to_vec(), bytes(&format!("operation.{name}.id")), "{name}");
            assert_eq!(RawOperation::from(&decoded), operation(name));
        }
        let deleted = Message::read(&bytes("message.operation.B2"), log());
        let Some(Message::Operation(deleted)) = deleted else { panic!("{deleted:?}") };
        assert_eq!(deleted.into_parts().1, None);
    }
}
