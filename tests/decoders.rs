//! Every decoder of bytes from strangers on mutated samples: none panics, and what decodes survives being encoded again.
//!
//! The functions are those of the fuzzer (`fuzz/targets.rs`), so this is fuzzing without a fuzzer, on every run of the tests:
//! 100,000 to 200,000 inputs per decoder, from a fixed seed (`PANDA_SEED=<seed>` takes another).

#[path = "../fuzz/targets.rs"]
mod targets;

use std::time::Duration;

use bytes::Bytes;
use p2panda_core::{Hash, Header, SigningKey};
use panda_network::discovery::lan::notice;
use panda_network::discovery::wire as discovery;
use panda_network::identity::Identity;
use panda_network::ids::{DocumentId, DocumentKey, PeerId};
use panda_network::nat::framing::put_channel_data;
use panda_network::nat::stun::{
    AddressFamily, Attribute, ChannelNumber, ErrorCode, IntegrityKey, Request, Response, Scanned, TransactionId,
    relayed,
};
use panda_network::operation::Head;
use panda_network::rendezvous::address::{HostPort, RelayAddress};
use panda_network::rendezvous::pin::SpkiPin;
use panda_network::rendezvous::record::RendezvousRecord;
use panda_network::rendezvous::seal;
use panda_network::rendezvous::signal::{BirthdayWord, Candidate, CandidateKind, SessionSecret, Signal};
use panda_network::rendezvous::wire::{NodeFrame, RelayFrame, TurnServer, TurnTransport, Welcome};
use panda_network::store::DocumentRecord;
use panda_network::sync::tokens::{Role, Token};
use panda_network::sync::wire::{ControlFrame, DocumentFrame, Refusal, StreamOpen};
use panda_network::transport::TransportKind;
use panda_network::{DocumentTicket, PeerAddress};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Bytes that mean something in CBOR: the largest and smallest numbers, lengths, indefinite and nested items.
const TELLING: [u8; 16] =
    [0x00, 0x01, 0x17, 0x18, 0x1B, 0x40, 0x58, 0x5B, 0x5F, 0x7F, 0x80, 0x9B, 0x9F, 0xBF, 0xF6, 0xFF];

/// Feeds a decoder with its samples, and with mutations of them; returns how many of those were taken.
fn feed(target: fn(&[u8]) -> bool, samples: &[Vec<u8>], inputs: usize) -> usize {
    let seed = std::env::var("PANDA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for sample in samples {
        assert!(target(sample), "a sample is not taken: {sample:02x?}");
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut taken = 0;
    for number in 0..inputs {
        let mut input = samples[random.random_range(0..samples.len())].clone();
        for _ in 0..random.random_range(1..=4) {
            mutate(&mut input, samples, &mut random);
        }
        let result = std::panic::catch_unwind(|| target(&input));
        let told = result.unwrap_or_else(|_| panic!("seed {seed}, input {number}: {input:02x?}"));
        taken += usize::from(told);
    }
    taken
}

fn mutate(input: &mut Vec<u8>, samples: &[Vec<u8>], random: &mut ChaCha8Rng) {
    if input.is_empty() {
        return input.push(random.random());
    }
    let at = random.random_range(0..input.len());
    let length = random.random_range(1..=(input.len() - at).min(16));
    match random.random_range(0..8) {
        0 => input[at] ^= 1 << random.random_range(0..8),
        1 => input[at] = TELLING[random.random_range(0..TELLING.len())],
        2 => input[at] = random.random(),
        3 => input.insert(at, TELLING[random.random_range(0..TELLING.len())]),
        4 => drop(input.drain(at..at + length)),
        5 => input.truncate(at),
        6 => input.extend_from_within(at..at + length),
        _ => {
            let other = &samples[random.random_range(0..samples.len())];
            let from = random.random_range(0..other.len());
            let end = other.len().min(from + length);
            input.splice(at..at, other[from..end].iter().copied());
        }
    }
}

fn identity(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

fn peer(seed: u8) -> PeerId {
    identity(seed).peer_id()
}

fn token(seed: u8) -> Token {
    let document = DocumentId::from_uuid(uuid::Uuid::from_u128(seed.into()));
    Token::new(&DocumentKey::from_bytes([seed; 32]), &document, &[seed; 32], Role::Dialler)
}

/// The content of one frame.
fn content(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out.split_off(4)
}

fn stream_opens() -> Vec<Vec<u8>> {
    let opens = [StreamOpen::Control, StreamOpen::Document(token(1)), StreamOpen::CatchUp(token(2))];
    opens.iter().map(|open| content(|out| open.encode(out))).collect()
}

fn control_frames() -> Vec<Vec<u8>> {
    let frames = [
        ControlFrame::Share(vec![token(1); 5]),
        ControlFrame::Unshare(Vec::new()),
        ControlFrame::Address(address(1).encode().into()),
        ControlFrame::Goodbye,
    ];
    frames.iter().map(|frame| content(|out| frame.encode(out))).collect()
}

fn document_frames() -> Vec<Vec<u8>> {
    let bytes = |length: usize| Bytes::from(vec![7; length]);
    let head = |seq_num| Head { seq_num, id: [3; 32].into() };
    let frames = [
        DocumentFrame::Heads { heads: vec![(peer(1), head(0)), (peer(2), head(u32::MAX))], last: true },
        DocumentFrame::Operations { message_id: 9, operations: vec![(bytes(221), bytes(40)), (bytes(1), bytes(0))] },
        DocumentFrame::Large { message_id: u64::MAX, header: bytes(221), body_len: 16 << 20 },
        DocumentFrame::Chunk(bytes(300)),
        DocumentFrame::Acknowledge(vec![(peer(1), 0), (peer(2), 70_000)]),
        DocumentFrame::Refuse { message_id: 9, author: peer(1), expected: 3, refusal: Refusal::Gap },
        DocumentFrame::Peers(vec![bytes(100), bytes(0)]),
    ];
    frames.iter().map(|frame| content(|out| frame.encode(out))).collect()
}

fn record(seed: u8) -> RendezvousRecord {
    let relays = vec!["relay.example.org".parse().unwrap(), "192.0.2.1:8443".parse().unwrap()];
    RendezvousRecord::sign(&Identity::from_seed(&[seed; 32]), relays, 7)
}

fn node_frames() -> Vec<Vec<u8>> {
    let to = peer(1);
    let frames = [
        NodeFrame::Signal { to, sealed: Bytes::from(vec![7; 100]) },
        NodeFrame::Forward { to },
        NodeFrame::Punch { to, session: 9 },
        NodeFrame::Credentials,
        NodeFrame::Ping { nonce: u64::MAX },
        NodeFrame::Pong { nonce: 0 },
        NodeFrame::Publish { record: record(1).encode() },
        NodeFrame::Lookup { peer: to },
    ];
    frames.iter().map(|frame| content(|out| frame.encode(out))).collect()
}

fn relay_frames() -> Vec<Vec<u8>> {
    let peer = peer(1);
    let turn = TurnServer {
        transport: TurnTransport::Tls,
        server: HostPort::new("turn.example.org", 443).unwrap(),
        username: "1700000000:abc".into(),
        password: "password".into(),
        lifetime_s: 3600,
        pin: Some(SpkiPin::of(b"its key")),
    };
    let datagrams = ["0.0.0.0:3478", "[2001:db8::1]:3478"].map(|text| text.parse().unwrap()).to_vec();
    let stun = vec![HostPort::new("192.0.2.1", 3478).unwrap()];
    let observed = "192.0.2.7:4000".parse().unwrap();
    let frames = [
        RelayFrame::Welcome(Box::new(Welcome { observed, datagrams, turn: vec![turn.clone()], stun })),
        RelayFrame::Signal { from: peer, sealed: Bytes::from(vec![7; 100]) },
        RelayFrame::NotHere { to: peer },
        RelayFrame::Flow { peer, flow: u64::MAX },
        RelayFrame::FlowClosed { flow: 1 },
        RelayFrame::Punch { peer, session: 9, after_ms: 1000 },
        RelayFrame::Credentials { turn: vec![turn.clone(), turn] },
        RelayFrame::Ping { nonce: 1 },
        RelayFrame::Pong { nonce: 1 },
        RelayFrame::Record { peer, record: Some(record(1).encode()) },
        RelayFrame::GoingAway,
        RelayFrame::Busy { to: peer },
    ];
    frames.iter().map(|frame| content(|out| frame.encode(out))).collect()
}

fn signals() -> Vec<Vec<u8>> {
    let candidate = |kind, text: &str| Candidate { kind, address: text.parse().unwrap() };
    let candidates = vec![
        candidate(CandidateKind::Host, "192.0.2.1:7000"),
        candidate(CandidateKind::Relayed, "[2001:db8::1]:65535"),
    ];
    let signals = [
        Signal::Offer {
            session: u64::MAX,
            secret: SessionSecret([1; 32]),
            candidates: candidates.clone(),
            proofs: vec![[2; 16]; 2],
        },
        Signal::Answer { session: 1, candidates: Vec::new() },
        Signal::Candidates { session: 1, candidates },
        Signal::Refused { session: 1 },
        Signal::Birthday { session: 0, word: BirthdayWord::Go },
    ];
    signals.iter().map(Signal::encode).collect()
}

fn address(seed: u8) -> PeerAddress {
    let addresses = ["192.0.2.1:7000", "[2001:db8::1]:7000"].map(|text| (TransportKind::Quic, text.parse().unwrap()));
    PeerAddress::sign(&identity(seed), addresses.to_vec(), Vec::new(), 1 << 50).unwrap()
}

fn tickets() -> Vec<Vec<u8>> {
    let bare = DocumentTicket::new(DocumentId::from_uuid(uuid::Uuid::from_u128(7)), DocumentKey::from_bytes([3; 32]));
    let full = bare.clone().with_peers([address(1), address(2)]).with_relays(["relay.example.org:7000".into()]);
    let texts = [bare, full].map(|ticket| ticket.to_string());
    let as_text = texts.iter().map(|text| [b"t", text.as_bytes()].concat());
    let as_bytes = texts.iter().map(|text| {
        let encoded = text.trim_start_matches("panda:").to_ascii_uppercase();
        let bytes = data_encoding::BASE32_NOPAD.decode(encoded.as_bytes()).unwrap();
        [b"\x01", &bytes[..bytes.len() - 4]].concat()
    });
    as_text
        .chain(as_bytes)
        .map(|mut sample| {
            // Text is told by an even first byte.
            sample[0] = if sample[0] == 1 { 1 } else { b't' };
            sample
        })
        .collect()
}

/// Signed by hand: the extensions are those of `operation.rs`.
fn operations() -> Vec<Vec<u8>> {
    let key = SigningKey::from_bytes(&[1; 32]);
    let sign = |seq_num, backlink: Option<Hash>, payload: &[u8]| {
        let mut body = minicbor::Encoder::new(Vec::new());
        body.array(2).unwrap().u64(1).unwrap().bytes(payload).unwrap();
        let body = body.into_writer();
        let extensions = (1u16, 0u16, Hash::from(targets::LOG), 1u64 << 50, false);
        let header = Header::builder().seq_num(seq_num).backlink(backlink).body(&body).build(&key, extensions).encode();
        [&(header.len() as u16).to_be_bytes()[..], &header, &body].concat()
    };
    vec![
        sign(0, None, b"hello"),
        sign(7, Some(Hash::from([5; 32])), &[7; 300]),
        sign(u32::MAX, Some([6; 32].into()), b""),
    ]
}

/// Without FINGERPRINT and MESSAGE-INTEGRITY, or hardly a mutation would get past them, and with them.
fn stun_messages() -> Vec<Vec<u8>> {
    let (id, key) = (TransactionId::from_random([7; 12]), IntegrityKey::short_term(b"secret"));
    let texts = [Attribute::Username("7:anna".into()), Attribute::Realm("r".into()), Attribute::Nonce("n".into())];
    let addresses = ["192.0.2.1:7000", "[2001:db8::1]:7000"].map(|text| text.parse().unwrap());
    let channel = ChannelNumber::new(0x4001).unwrap();
    let requests = [
        Request::binding().with(Attribute::ChangeRequest { ip: true, port: false }),
        Request::binding().with(Attribute::Priority(7)).with(texts[0].clone()).padded_to(300),
        texts.iter().cloned().fold(Request::allocate(AddressFamily::V6, Duration::from_secs(600)), Request::with),
        Request::channel_bind(channel, addresses[0]),
        Request::create_permission(addresses[1].ip()),
    ];
    let mut samples: Vec<_> = requests.iter().map(|request| request.seal(id, None).unwrap().bytes().to_vec()).collect();
    let request = requests[0].seal(id, None).unwrap();
    let request = Scanned::scan(request.bytes()).unwrap();
    let response = addresses.iter().fold(Response::success(&request), |response, address| {
        let all: [fn(_) -> Attribute; 3] =
            [Attribute::XorMappedAddress, Attribute::XorRelayedAddress, Attribute::OtherAddress];
        all.iter().fold(response, |response, attribute| response.with(attribute(*address)))
    });
    samples.push(response.encode(None).unwrap());
    samples.push(Response::unknown_attributes(&request, &[0x0018, 0x7FFF]).encode(None).unwrap());
    samples.push(Response::error(&request, ErrorCode::StaleNonce).encode(None).unwrap());
    for sample in &mut samples {
        sample.truncate(sample.len() - 8);
        sample[3] -= 8;
    }
    samples.push(requests[1].seal(id, Some(&key)).unwrap().bytes().to_vec());
    for address in addresses {
        samples.push(Vec::new());
        assert!(relayed::put_send(id, address, b"a payload", samples.last_mut().unwrap()));
    }
    samples
}

#[test]
fn a_stun_message_is_understood_or_dropped() {
    let taken = feed(targets::stun, &stun_messages(), 200_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_turn_stream_is_cut_or_refused() {
    let mut frame = Vec::new();
    assert!(put_channel_data(ChannelNumber::MIN, b"12345", true, &mut frame));
    let stream = [&stun_messages().concat()[..], &frame].concat();
    let samples: Vec<_> = [1u8, 3, 64, 255].iter().map(|chunk| [&[*chunk][..], &stream].concat()).collect();
    let taken = feed(targets::turn_stream, &samples, 50_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_routers_answer_is_understood_or_dropped() {
    let mut pcp = vec![2, 0x81, 0, 0, 0, 0, 0x0e, 0x10];
    pcp.resize(24, 0);
    pcp.extend([7; 12]);
    pcp.extend([17, 0, 0, 0, 0x0f, 0xa0, 0x1b, 0x58, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 9]);
    let nat_pmp = [0, 128, 0, 0, 0, 0, 0, 1, 203, 0, 113, 9];
    let service =
        "<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/c</controlURL>";
    let texts = [
        "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nLOCATION: http://192.168.1.1:5/d\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10;x\r\n0123456789abcdef\r\n0\r\n\r\n",
        &format!("<?xml version=\"1.0\"?><root xmlns=\"urn:x\"><device><service>{service}</service></device></root>"),
        "<s:Envelope xmlns:s=\"http://s\"><NewExternalIPAddress>203.0.113.9</NewExternalIPAddress></s:Envelope>",
    ];
    let samples: Vec<_> = texts.iter().map(|text| text.as_bytes().to_vec()).chain([pcp, nat_pmp.to_vec()]).collect();
    let taken = feed(targets::router, &samples, 100_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_stream_of_frames_is_cut_or_refused() {
    let stream = |parts: &[&[u8]]| {
        let frames = parts.iter().flat_map(|part| [&(part.len() as u32).to_be_bytes()[..], part].concat());
        frames.collect::<Vec<u8>>()
    };
    let streams = [stream(&[b"one", b"two, longer", b"3"]), stream(&[&[7; 300], b"x"]), stream(&[])];
    let chunks = [1u8, 3, 4, 7, 255];
    let samples = chunks.iter().flat_map(|chunk| streams.iter().map(|stream| [&[*chunk][..], stream].concat()));
    let taken = feed(targets::frames, &samples.collect::<Vec<_>>(), 100_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_first_frame_is_understood_or_refused() {
    let taken = feed(targets::stream_open, &stream_opens(), 200_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_control_frame_is_understood_or_refused() {
    let taken = feed(targets::control_frame, &control_frames(), 200_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_document_frame_is_understood_or_refused() {
    let taken = feed(targets::document_frame, &document_frames(), 200_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_frame_from_a_node_is_understood_or_refused() {
    let taken = feed(targets::node_frame, &node_frames(), 100_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_frame_from_a_relay_is_understood_or_refused() {
    let taken = feed(targets::relay_frame, &relay_frames(), 100_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_signal_between_peers_is_understood_or_refused() {
    let taken = feed(targets::signal, &signals(), 200_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_seal_that_was_changed_is_not_opened() {
    let seal = |content: &[u8], random| seal::seal(&identity(1), &peer(2), content, [random; 32]).unwrap();
    let samples = [seal(b"", 3), seal(b"offer", 4)];
    let taken = feed(targets::sealed, &samples, 20_000);
    // Some mutations change nothing.
    assert!(taken < 200, "{taken} changed seals were opened");
}

#[test]
fn a_relay_address_is_understood_or_refused() {
    let samples = ["relay.example.org:443", "[2001:db8::1]:7000", "192.0.2.1"];
    let samples = samples.map(|server| RelayAddress { key: Some(peer(1)), ..server.parse().unwrap() }.to_string());
    let samples = samples.iter().cloned().chain(["localhost".into()]).map(String::into_bytes).collect::<Vec<_>>();
    let taken = feed(targets::relay_address, &samples, 100_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn a_ticket_is_understood_or_refused() {
    let taken = feed(targets::ticket, &tickets(), 100_000);
    assert!(taken > 100, "{taken} mutations were taken");
}

#[test]
fn an_address_record_is_believed_or_refused() {
    // Whatever is changed in a signed record breaks it, but for the ways in which CBOR can say the same.
    feed(targets::peer_address, &[address(1).encode(), address(2).encode()], 100_000);
}

#[test]
fn a_notice_in_the_local_network_is_opened_or_ignored() {
    let document = |number| DocumentRecord {
        document: DocumentId::from_uuid(uuid::Uuid::from_u128(u128::from(number))),
        key: DocumentKey::from_bytes([number; 32]),
    };
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut sealed = |numbers: &[u8]| {
        let documents: Vec<_> = numbers.iter().copied().map(document).collect();
        notice::seal(&address(1), &documents, &mut random).unwrap()
    };
    let samples = [sealed(&[1]), sealed(&[2, 3, 9]), sealed(&[8, 1, 7, 2, 6, 3, 5, 4])];
    // What is changed in a slot that is for nobody here changes nothing.
    let taken = feed(targets::lan_notice, &samples, 100_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn where_a_peer_can_be_met_is_believed_or_refused() {
    let samples = [record(1).encode().to_vec(), record(2).encode().to_vec()];
    let taken = feed(targets::rendezvous_record, &samples, 20_000);
    assert!(taken < 200, "{taken} changed records were believed");
}

#[test]
fn a_frame_of_confidential_discovery_is_understood_or_refused() {
    let topics = |count: u8| (0..count).map(|topic| [topic; 32].into()).collect();
    let known = [1, 2, 3].map(|seed| (peer(seed), address(seed)));
    let messages = [
        discovery::Message::AliceSaltHalf { alice_salt_half: [7; 32] },
        discovery::Message::BobSaltHalfAndHashedData { bob_salt_half: [8; 32], topics_for_alice: topics(5) },
        discovery::Message::AliceHashedData { topics_for_bob: topics(0) },
        discovery::Message::Nodes { transport_infos: known.into() },
    ];
    let samples = messages.map(|message| discovery::encode(&message).split_off(4));
    let taken = feed(targets::discovery_frame, &samples, 50_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[cfg(feature = "bridge")]
#[test]
fn a_stream_of_a_node_is_understood_or_refused() {
    use panda_network::Operation;
    use panda_network::bridge::wire::{Greeting, Message, RawOperation};

    let operation = Operation::sign(&identity(1), targets::LOG.into(), None, 1, b"milk").unwrap();
    let raw = || RawOperation::from(&operation);
    let messages = [
        Message::Have([(peer(1), 0), (peer(2), 70_000)].into()),
        Message::PreSync { operations: 1, bytes: 400 },
        Message::Operation(raw()),
        Message::Done,
        Message::Live(raw()),
        Message::Close,
    ];
    let (mut greetings, mut session) = (vec![3, 0], vec![100, 1]);
    [Greeting::Topic([5; 32].into()), Greeting::Done].iter().for_each(|greeting| greeting.put(&mut greetings));
    messages.into_iter().for_each(|message| message.put(targets::LOG.into(), &mut session));
    let taken = feed(targets::node_stream, &[greetings, session], 100_000);
    assert!(taken > 1000, "{taken} mutations were taken");
}

#[test]
fn an_operation_is_believed_or_refused() {
    let taken = feed(targets::operation, &operations(), 100_000);
    assert!(taken < 1000, "{taken} changed operations were believed");
}
