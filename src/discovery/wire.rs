//! The messages of confidential discovery as frames: p2panda's, in our encoding, each list bounded before it is read.
//!
//! A record that its peer did not sign is left out and counted; the run goes on without it.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use p2panda_core::Topic;
use p2panda_discovery::psi_hash::PsiHashMessage;

use crate::address::PeerAddress;
use crate::cbor::{self, CborError, Encoded, Out, Reader};
use crate::frame::put_frame;
use crate::ids::PeerId;
use crate::limits::{DISCOVERY_RECORDS, DISCOVERY_RECORDS_MAX_BYTES, DISCOVERY_TOPICS, FRAME_MAX_BYTES};
use crate::store::KnownPeer;

/// What travels in one run.
pub type Message = PsiHashMessage<PeerId, KnownPeer>;

/// A message as one frame.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    put_frame(&mut out, |out| match message {
        Message::AliceSaltHalf { alice_salt_half } => {
            cbor::encode(out, 2, 0, |e| e.bytes(alice_salt_half).map(|_| ()));
        }
        Message::BobSaltHalfAndHashedData { bob_salt_half, topics_for_alice } => cbor::encode(out, 3, 1, |e| {
            e.bytes(bob_salt_half)?;
            put_topics(e, topics_for_alice)
        }),
        Message::AliceHashedData { topics_for_bob } => {
            cbor::encode(out, 2, 2, |e| put_topics(e, topics_for_bob));
        }
        Message::Nodes { transport_infos } => cbor::encode(out, 2, 3, |e| {
            let records: Vec<_> = transport_infos.values().map(PeerAddress::encode).collect();
            cbor::put_list(e, fitting(&records), |e, record| e.bytes(record).map(|_| ()))
        }),
    });
    out
}

/// As many as fit into one message.
fn fitting(records: &[Vec<u8>]) -> &[Vec<u8>] {
    let mut bytes = 0;
    let fit = records.iter().take(DISCOVERY_RECORDS).take_while(|record| {
        bytes += record.len();
        bytes <= DISCOVERY_RECORDS_MAX_BYTES
    });
    &records[..fit.count()]
}

/// Sorted, so that their order tells nothing.
fn put_topics(e: &mut Out<'_>, topics: &HashSet<Topic>) -> Encoded {
    let mut topics: Vec<_> = topics.iter().collect();
    topics.sort_unstable();
    cbor::put_list(e, &topics, |e, topic| e.bytes(topic.as_bytes()).map(|_| ()))
}

/// Reads the content of a frame; `forged` counts records that were left out.
///
/// # Errors
/// [`CborError`] when it is damaged or a list is over its limit.
pub fn decode(frame: &Bytes, forged: &mut usize) -> Result<Message, CborError> {
    cbor::decode(frame, |reader, kind| match kind {
        0 => Ok(Message::AliceSaltHalf { alice_salt_half: reader.fixed()? }),
        1 => Ok(Message::BobSaltHalfAndHashedData {
            bob_salt_half: reader.fixed()?,
            topics_for_alice: read_topics(reader)?,
        }),
        2 => Ok(Message::AliceHashedData { topics_for_bob: read_topics(reader)? }),
        3 => {
            let records = reader.list("records", DISCOVERY_RECORDS, |reader| reader.bytes("bytes", FRAME_MAX_BYTES))?;
            let mut transport_infos = BTreeMap::new();
            for record in records {
                match PeerAddress::decode(&record) {
                    Ok(record) => _ = transport_infos.insert(record.peer_id(), record),
                    Err(_) => *forged += 1,
                }
            }
            Ok(Message::Nodes { transport_infos })
        }
        kind => Err(CborError::UnknownKind(kind)),
    })
}

fn read_topics(reader: &mut Reader<'_>) -> Result<HashSet<Topic>, CborError> {
    let topics = reader.list("topics", DISCOVERY_TOPICS, |reader| reader.fixed::<32>().map(Topic::from))?;
    Ok(topics.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameDecoder;
    use crate::identity::Identity;
    use proptest::prelude::*;

    fn cut(out: Vec<u8>) -> Bytes {
        let mut decoder = FrameDecoder::new();
        decoder.push(out.into());
        decoder.next_frame().unwrap().unwrap()
    }

    fn record(number: u8) -> PeerAddress {
        PeerAddress::sign(&Identity::from_seed(&[number; 32]), Vec::new(), Vec::new(), 5).unwrap()
    }

    fn topics(count: usize) -> HashSet<Topic> {
        (0..count).map(|n| Topic::from(*blake3::hash(&n.to_be_bytes()).as_bytes())).collect()
    }

    fn nodes(count: u8) -> Message {
        Message::Nodes { transport_infos: (0..count).map(|n| (record(n).peer_id(), record(n))).collect() }
    }

    #[test]
    fn every_message_survives_its_frame_also_when_it_is_as_large_as_may_be() {
        let messages = [
            Message::AliceSaltHalf { alice_salt_half: [7; 32] },
            Message::BobSaltHalfAndHashedData { bob_salt_half: [8; 32], topics_for_alice: topics(DISCOVERY_TOPICS) },
            Message::AliceHashedData { topics_for_bob: topics(0) },
            nodes(DISCOVERY_RECORDS as u8),
        ];
        for message in messages {
            let (encoded, mut forged) = (encode(&message), 0);
            let decoded = decode(&cut(encoded.clone()), &mut forged).unwrap();
            assert_eq!((encode(&decoded), forged), (encoded, 0));
        }
    }

    #[test]
    fn forged_records_are_left_out_and_counted_and_lists_over_their_limit_refused() {
        let mut out = encode(&nodes(3));
        let forged_at = out.len() - 1;
        out[forged_at] ^= 1;
        let mut forged = 0;
        let Message::Nodes { transport_infos } = decode(&cut(out), &mut forged).unwrap() else { panic!("no nodes") };
        assert_eq!((transport_infos.len(), forged), (2, 1));
        let huge = Bytes::from_static(&[0x82, 0x03, 0x9A, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert!(matches!(decode(&huge, &mut forged), Err(CborError::TooMany { what: "records", .. })));
        let message = Message::AliceHashedData { topics_for_bob: topics(DISCOVERY_TOPICS + 1) };
        assert!(matches!(decode(&cut(encode(&message)), &mut forged), Err(CborError::TooMany { what: "topics", .. })));
        let Message::Nodes { transport_infos } = decode(&cut(encode(&nodes(200))), &mut forged).unwrap() else {
            panic!("no nodes")
        };
        assert_eq!(transport_infos.len(), DISCOVERY_RECORDS, "more are left out");
    }

    proptest! {
        #[test]
        fn arbitrary_and_damaged_bytes_never_panic(
            noise in prop::collection::vec(any::<u8>(), 0..300),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut forged = 0;
            let _ = decode(&Bytes::from(noise), &mut forged);
            let mut frame = cut(encode(&nodes(2))).to_vec();
            for (index, value) in flips {
                let index = index.index(frame.len());
                frame[index] = value;
            }
            let _ = decode(&frame.into(), &mut forged);
        }
    }
}
