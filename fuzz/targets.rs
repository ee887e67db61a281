//! One function per decoder of bytes from strangers: none may panic, and what decodes must survive being encoded again.
//!
//! Shared by the libFuzzer targets in `fuzz_targets/` and by `tests/decoders.rs`, which runs them on mutated samples
//! without a fuzzer. Each returns whether its input was taken.

use std::time::Instant;

use bytes::Bytes;
#[cfg(feature = "bridge")]
use panda_network::bridge::wire as bridge;
use panda_network::discovery::lan::notice;
use panda_network::discovery::wire as discovery;
use panda_network::frame::FrameDecoder;
use panda_network::identity::Identity;
use panda_network::ids::{DocumentId, DocumentKey, LogId};
use panda_network::limits::{FRAME_MAX_BYTES, TURN_FRAME_MAX_BYTES};
use panda_network::nat::framing::{TurnFramer, parse_channel_data};
use panda_network::nat::port_mapping::{self, PortMappingMachine, Status, is_global, read_probe, upnp};
use panda_network::nat::stun::{Attribute, IntegrityKey, Response, Scanned, relayed};
use panda_network::net::Gateway;
use panda_network::rendezvous::address::RelayAddress;
use panda_network::rendezvous::record::RendezvousRecord;
use panda_network::rendezvous::seal;
use panda_network::rendezvous::signal::Signal;
use panda_network::rendezvous::wire::{NodeFrame, RelayFrame};
use panda_network::store::DocumentRecord;
use panda_network::sync::wire::{ControlFrame, DocumentFrame, StreamOpen};
use panda_network::{DocumentTicket, Operation, PeerAddress};

/// Bytes of length before every frame.
const PREFIX_BYTES: usize = 4;

/// The document that operations are decoded for.
pub const LOG: [u8; 32] = [9; 32];

/// The documents that notices are opened for.
pub const LAN_DOCUMENTS: [u8; 3] = [1, 2, 3];

/// Cuts the stream after the first byte into chunks as long as that byte says. True when it is frames to its end.
pub fn frames(data: &[u8]) -> bool {
    let Some((&chunk, stream)) = data.split_first() else { return false };
    let (mut decoder, mut again) = (FrameDecoder::new(), Vec::new());
    for chunk in stream.chunks(usize::from(chunk).max(1)) {
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    assert!((1..=FRAME_MAX_BYTES).contains(&frame.len()));
                    again.extend_from_slice(&(frame.len() as u32).to_be_bytes());
                    again.extend_from_slice(&frame);
                }
                Ok(None) => break,
                Err(_) => return false,
            }
        }
        let wanted = decoder.missing();
        assert!((1..=PREFIX_BYTES + FRAME_MAX_BYTES).contains(&wanted));
    }
    assert!(stream.starts_with(&again), "frames are what the stream says");
    assert_eq!(decoder.finish().is_ok(), again.len() == stream.len());
    decoder.finish().is_ok()
}

/// The content of a first frame.
pub fn stream_open(data: &[u8]) -> bool {
    frame_survives(data, StreamOpen::decode, StreamOpen::encode)
}

/// The content of a frame on the control stream.
pub fn control_frame(data: &[u8]) -> bool {
    frame_survives(data, ControlFrame::decode, ControlFrame::encode)
}

/// The content of a frame on a document or catch-up stream.
pub fn document_frame(data: &[u8]) -> bool {
    frame_survives(data, DocumentFrame::decode, DocumentFrame::encode)
}

/// The content of a frame from a node to a relay.
pub fn node_frame(data: &[u8]) -> bool {
    frame_survives(data, NodeFrame::decode, NodeFrame::encode)
}

/// The content of a frame from a relay to a node.
pub fn relay_frame(data: &[u8]) -> bool {
    frame_survives(data, RelayFrame::decode, RelayFrame::encode)
}

/// What two peers tell each other, out of its seal.
pub fn signal(data: &[u8]) -> bool {
    let Ok(signal) = Signal::decode(&Bytes::copy_from_slice(data)) else { return false };
    assert_eq!(Signal::decode(&signal.encode().into()), Ok(signal));
    true
}

/// A sealed signal to the identity of seed 2 from that of seed 1.
pub fn sealed(data: &[u8]) -> bool {
    let [from, to] = [1, 2].map(|seed| Identity::from_seed(&[seed; 32]));
    seal::open(&to, &from.peer_id(), data).is_ok()
}

/// A relay's address.
pub fn relay_address(data: &[u8]) -> bool {
    let Ok(address) = String::from_utf8_lossy(data).parse::<RelayAddress>() else { return false };
    assert_eq!(address.to_string().parse(), Ok(address));
    true
}

/// A ticket: as text, or, after an odd first byte, as the bytes that the text stands for, with the checksum that fits.
pub fn ticket(data: &[u8]) -> bool {
    let text = match data.split_first() {
        Some((first, bytes)) if first % 2 == 1 => {
            let sum = blake3::hash(bytes);
            let bytes = [bytes, &sum.as_bytes()[..4]].concat();
            format!("panda:{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
        }
        Some((_, text)) => String::from_utf8_lossy(text).into_owned(),
        None => String::new(),
    };
    let Ok(ticket) = text.parse::<DocumentTicket>() else { return false };
    assert_eq!(ticket.to_string().parse(), Ok(ticket));
    true
}

/// An address record.
pub fn peer_address(data: &[u8]) -> bool {
    let Ok(address) = PeerAddress::decode(data) else { return false };
    assert_eq!(PeerAddress::decode(&address.encode()), Ok(address));
    true
}

/// Where a peer can be met.
pub fn rendezvous_record(data: &[u8]) -> bool {
    let Ok(record) = RendezvousRecord::decode(&Bytes::copy_from_slice(data)) else { return false };
    assert_eq!(RendezvousRecord::decode(&record.encode()), Ok(record));
    true
}

/// The content of a frame of confidential discovery.
pub fn discovery_frame(data: &[u8]) -> bool {
    let data = &data[..data.len().min(FRAME_MAX_BYTES)];
    let (mut forged, mut again) = (0, 0);
    let Ok(message) = discovery::decode(&Bytes::copy_from_slice(data), &mut forged) else { return false };
    let encoded = discovery::encode(&message);
    let message = discovery::decode(&Bytes::from(encoded.clone()).slice(PREFIX_BYTES..), &mut again);
    assert_eq!(message.map(|message| discovery::encode(&message)), Ok(encoded));
    assert_eq!(again, 0, "what was kept is not forged");
    true
}

/// A stream of a session with a p2panda Node, cut into chunks as long as the first byte says: the greetings when the second
/// byte is even, else what follows them. True when it is messages to its end.
#[cfg(feature = "bridge")]
pub fn node_stream(data: &[u8]) -> bool {
    let &[chunk, greets, ref stream @ ..] = data else { return false };
    let (mut frames, mut taken) = (bridge::Frames::default(), 0);
    for chunk in stream.chunks(usize::from(chunk).max(1)) {
        frames.push(chunk);
        while let Some(cut) = frames.cut() {
            let bridge::Cut::Frame(frame) = cut else { return false };
            let mut again = Vec::new();
            if greets % 2 == 0 {
                let Some(greeting) = bridge::Greeting::read(&frame) else { return false };
                greeting.put(&mut again);
                assert_eq!(bridge::Greeting::read(&again[PREFIX_BYTES..]), Some(greeting));
            } else {
                let Some(message) = bridge::Message::read(&frame, LogId::from(LOG)) else { return false };
                message.clone().put(LogId::from(LOG), &mut again);
                assert_eq!(bridge::Message::read(&again[PREFIX_BYTES..], LogId::from(LOG)), Some(message));
            }
            taken += PREFIX_BYTES + frame.len();
        }
    }
    assert!(taken <= stream.len());
    taken == stream.len()
}

/// A notice in the local network, with the keys of three documents. Who it names, the notice's maker chose.
pub fn lan_notice(data: &[u8]) -> bool {
    let documents = LAN_DOCUMENTS.map(|number| DocumentRecord {
        document: DocumentId::from_uuid(uuid::Uuid::from_u128(number.into())),
        key: DocumentKey::from_bytes([number; 32]),
    });
    let Ok(opened) = notice::open(data, &documents) else { return false };
    assert!(notice::is_well_formed(data));
    assert!(!opened.documents.is_empty() && opened.documents.len() <= documents.len());
    assert_eq!(opened.peer.peer_id(), Identity::from_seed(&[1; 32]).peer_id());
    true
}

/// An operation: two bytes of length and that much header, then the body.
pub fn operation(data: &[u8]) -> bool {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return false };
    let header = usize::from(u16::from_be_bytes(*length)).min(rest.len());
    let (header, body) = rest.split_at(header);
    let (header, body) = (Bytes::copy_from_slice(header), Bytes::copy_from_slice(body));
    let Ok(operation) = Operation::decode(LogId::from(LOG), header.clone(), body.clone()) else { return false };
    assert_eq!((operation.header(), operation.body()), (&header, &body));
    assert!(body.ends_with(operation.payload()));
    assert_eq!(Operation::decode(LogId::from(LOG), header, body), Ok(operation));
    true
}

/// A STUN message. Its attributes are put into a signed response, which must bring them back.
pub fn stun(data: &[u8]) -> bool {
    let Ok(scanned) = Scanned::scan(data) else { return false };
    let key = IntegrityKey::short_term(b"secret");
    assert!(scanned.check_integrity(&IntegrityKey::short_term(b"nobody's")).is_err());
    if let Some((_, range)) = relayed::payload(&scanned) {
        assert!(range.end <= data.len());
    }
    let Ok(message) = scanned.decode() else { return false };
    let mut response = Response::success(&scanned);
    let plain = message.attributes().iter().filter(|attribute| !matches!(attribute, Attribute::Padding(_)));
    for attribute in plain.clone() {
        response = response.with(attribute.clone());
    }
    // Too large with a signature, or too many.
    let Ok(again) = response.encode(Some(&key)) else { return true };
    let scanned = Scanned::scan(&again).expect("what we encode is in bounds");
    assert_eq!(scanned.check_integrity(&key), Ok(()));
    assert!(scanned.decode().expect("what we encode is valid").attributes().iter().eq(plain));
    true
}

/// A TURN stream, cut into chunks as long as the first byte says. True when it is frames to its end.
pub fn turn_stream(data: &[u8]) -> bool {
    let Some((&chunk, stream)) = data.split_first() else { return false };
    let (mut framer, mut taken) = (TurnFramer::new(), 0);
    for chunk in stream.chunks(usize::from(chunk).max(1)) {
        framer.push(chunk);
        loop {
            match framer.next_frame() {
                Ok(Some(frame)) => {
                    assert!((1..=TURN_FRAME_MAX_BYTES).contains(&frame.len()));
                    taken += frame.len();
                    if let Some((_, payload)) = parse_channel_data(&frame) {
                        assert!(frame.len() - payload.end < 4, "the rest is padding");
                    }
                }
                Ok(None) => break,
                Err(_) => return false,
            }
        }
    }
    assert!(taken <= stream.len());
    taken == stream.len()
}

fn frame_survives<T: PartialEq + std::fmt::Debug, E: PartialEq + std::fmt::Debug>(
    data: &[u8],
    decode: fn(&Bytes) -> Result<T, E>,
    encode: fn(&T, &mut Vec<u8>),
) -> bool {
    // Longer frames are refused before they are decoded.
    let data = &data[..data.len().min(FRAME_MAX_BYTES)];
    let Ok(frame) = decode(&Bytes::copy_from_slice(data)) else { return false };
    let mut again = Vec::new();
    encode(&frame, &mut again);
    assert_eq!(decode(&Bytes::from(again).slice(PREFIX_BYTES..)), Ok(frame));
    true
}

/// What a router says when it is asked for a port: by PCP, by NAT-PMP, and every message of UPnP.
pub fn router(data: &[u8]) -> bool {
    let gateway = Gateway { router: [192, 168, 1, 1].into(), interface: [192, 168, 1, 2].into() };
    let (now, router) = (Instant::now(), (gateway.router, port_mapping::PORT).into());
    let mut machine = PortMappingMachine::new(now, gateway, 4000, [7; 12]);
    machine.handle_input(now, router, data);
    let mapped = matches!(machine.status(), Status::Mapped(external) if is_global(*external.ip()));
    assert!(mapped || !matches!(machine.status(), Status::Mapped(_)));
    let place = upnp::location(data, router);
    if let Some(place) = &place {
        assert_eq!(*place.address.ip(), gateway.router);
        assert_eq!(place.get().matches("\r\n").count(), 4);
    }
    let answered = upnp::response(data, true);
    if let Some((_, body)) = &answered {
        assert!(body.len() <= data.len());
    }
    mapped || read_probe(data).is_some() || place.is_some() || answered.is_some() || description(data)
}

/// The documents of UPnP. What is asked stays at the router and within its lines.
fn description(data: &[u8]) -> bool {
    let found = "HTTP/1.1 200 OK\r\nST: x:InternetGatewayDevice:1\r\nLOCATION: http://192.168.1.1:5000/\r\n\r\n";
    let place = upnp::location(found.as_bytes(), ([192, 168, 1, 1], 1900).into());
    let (Some(place), Ok(text)) = (place, std::str::from_utf8(data)) else { return false };
    let service = upnp::Service::find(text, &place);
    if let Some(service) = &service {
        assert_eq!(service.control.address.ip(), place.address.ip());
        let request = upnp::Action::ExternalAddress.request(service);
        let head = request.split("\r\n\r\n").next().unwrap_or_default();
        assert_eq!(head.lines().count(), 6);
    }
    service.is_some() || upnp::external_address(text).is_some() || upnp::error_code(text).is_some()
}
