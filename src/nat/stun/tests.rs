//! The codec against the vectors of RFC 5769, against itself, and against what strangers may send.

use std::net::SocketAddr;
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use proptest::prelude::*;

use super::*;
use crate::limits::{STUN_MAX_ATTRIBUTES, STUN_MESSAGE_MAX_BYTES, STUN_TEXT_MAX_BYTES, TURN_FRAME_MAX_BYTES};

/// RFC 5769 §2.1.
const REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74\
    002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020\
    000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf";
/// RFC 5769 §2.2.
const RESPONSE_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
    002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
/// RFC 5769 §2.3.
const RESPONSE_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
    002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c";
/// RFC 5769 §2.4.
const LONG_TERM: &str = "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b90000\
    0015001c662f2f3439396b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e6f726700\
    00080014f67024656dd64a3e02b8e0712e85c9a28ca89666";
const PASSWORD: &[u8] = b"VOkJxbRl1RmTxUk/WvJxBt";

const ID: TransactionId = TransactionId::from_random([9; 12]);

fn bytes(hex: &str) -> Vec<u8> {
    HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).unwrap()
}

fn key() -> IntegrityKey {
    IntegrityKey::short_term(&[3; 32])
}

fn addresses() -> [SocketAddr; 2] {
    ["192.0.2.1:32853", "[2001:db8:1234:5678:11:2233:4455:6677]:32853"].map(|text| text.parse().unwrap())
}

fn decode(bytes: &[u8]) -> Message {
    Scanned::scan(bytes).unwrap().decode().unwrap()
}

/// A message with these attributes as they are on the wire.
fn raw(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = [&kind.to_be_bytes()[..], &[0, 0], &MAGIC_COOKIE, ID.as_bytes()].concat();
    for (kind, value) in attributes {
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&(value.len() as u16).to_be_bytes());
        message.extend_from_slice(value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let end = message.len();
    scan::set_length(&mut message, end);
    message
}

#[test]
fn the_request_of_rfc_5769_is_read_and_its_signature_checked() {
    let bytes = bytes(REQUEST);
    let scanned = Scanned::scan(&bytes).unwrap();
    assert_eq!((scanned.class(), scanned.method()), (Class::Request, Method::Binding));
    assert_eq!(scanned.check_integrity(&IntegrityKey::short_term(PASSWORD)), Ok(()));
    assert_eq!(scanned.check_integrity(&key()), Err(StunError::WrongIntegrity));
    let message = scanned.decode().unwrap();
    assert_eq!(message.username(), Some("evtj:h6vY"));
    assert_eq!(message.priority(), Some(0x6E00_01FF));
    assert_eq!(message.unknown_attributes(), [0u16; 0], "ICE-CONTROLLED and SOFTWARE may be ignored");
}

#[test]
fn the_responses_of_rfc_5769_are_read_and_their_signatures_checked() {
    for (hex, address) in [RESPONSE_V4, RESPONSE_V6].into_iter().zip(addresses()) {
        let bytes = bytes(hex);
        let scanned = Scanned::scan(&bytes).unwrap();
        assert_eq!((scanned.class(), scanned.method()), (Class::Success, Method::Binding));
        assert_eq!(scanned.check_integrity(&IntegrityKey::short_term(PASSWORD)), Ok(()));
        assert_eq!(scanned.decode().unwrap().mapped_address(), Some(address));
    }
}

#[test]
fn the_long_term_request_of_rfc_5769_is_read_and_its_signature_checked() {
    let bytes = bytes(LONG_TERM);
    let scanned = Scanned::scan(&bytes).unwrap();
    let message = scanned.decode().unwrap();
    let (username, realm) = (message.username().unwrap(), message.realm().unwrap());
    assert_eq!((username, realm), ("マトリックス", "example.org"));
    assert_eq!(message.nonce(), Some("f//499k954d6OL34oL9FSTvy64sA"));
    // The password as it is after SASLprep.
    assert_eq!(scanned.check_integrity(&IntegrityKey::long_term(username, realm, "TheMatrIX")), Ok(()));
    assert_eq!(scanned.check_integrity(&IntegrityKey::long_term(username, realm, "x")), Err(StunError::WrongIntegrity));
}

#[test]
fn no_changed_bit_of_a_signed_message_is_believed() {
    for message in [bytes(REQUEST), bytes(RESPONSE_V6)] {
        let key = IntegrityKey::short_term(PASSWORD);
        for bit in 0..message.len() * 8 {
            let mut changed = message.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            // FINGERPRINT is not signed, so its type may be changed into that of something to ignore.
            let believed = Scanned::scan(&changed).ok().filter(|scanned| scanned.check_integrity(&key).is_ok());
            assert!(believed.is_none_or(|scanned| scanned.decode() == Ok(decode(&message))), "bit {bit}");
        }
    }
}

#[test]
fn attributes_after_the_signature_do_not_count() {
    let sealed = Request::binding().seal(ID, Some(&key())).unwrap();
    let mut message = sealed.bytes()[..sealed.bytes().len() - 8].to_vec();
    message.extend_from_slice(&raw(0x0001, &[(0x0006, b"mallory")])[HEADER_BYTES..]);
    let end = message.len();
    scan::set_length(&mut message, end);
    let scanned = Scanned::scan(&message).unwrap();
    assert_eq!(scanned.check_integrity(&key()), Ok(()));
    assert_eq!(scanned.decode().unwrap().username(), None);
}

#[test]
fn a_second_signature_and_a_misplaced_or_wrong_fingerprint_are_refused() {
    let scan = |attributes: &[(u16, &[u8])]| Scanned::scan(&raw(0x0001, attributes)).map(|_| ());
    let signature = (0x0008, &[0u8; 20][..]);
    assert_eq!(scan(&[signature]), Ok(()));
    assert_eq!(scan(&[signature, signature]), Err(StunError::Misplaced(0x0008)));
    assert_eq!(scan(&[(0x0008, &[0; 16])]), Err(StunError::Misplaced(0x0008)));
    assert_eq!(scan(&[(0x8028, &[0; 4]), (0x0006, b"anna")]), Err(StunError::Misplaced(0x8028)));
    assert_eq!(scan(&[(0x8028, &[0; 4])]), Err(StunError::WrongFingerprint));
}

#[test]
fn what_is_out_of_bounds_is_refused_before_it_is_decoded() {
    let scan = |bytes: &[u8]| Scanned::scan(bytes).map(|_| ());
    let many = vec![(0x8000u16, &[][..]); STUN_MAX_ATTRIBUTES + 1];
    assert_eq!(scan(&raw(0x0001, &many[1..])), Ok(()));
    assert_eq!(scan(&raw(0x0001, &many)), Err(StunError::TooManyAttributes));
    let large = |kind, bytes| raw(kind, &[(0x0013, &vec![0; bytes - HEADER_BYTES - 4])]);
    assert_eq!(scan(&large(0x0001, STUN_MESSAGE_MAX_BYTES)), Ok(()));
    let (actual, max) = (STUN_MESSAGE_MAX_BYTES + 4, STUN_MESSAGE_MAX_BYTES);
    assert_eq!(scan(&large(0x0001, actual)), Err(StunError::TooLarge { actual, max }));
    assert_eq!(scan(&large(0x0017, TURN_FRAME_MAX_BYTES)), Ok(()), "a Data indication carries a payload");
    assert_eq!(scan(&raw(0x0002, &[])), Err(StunError::UnknownMethod(2)));
    assert_eq!(scan(&raw(0x0001, &[])[..19]), Err(StunError::NotStun));
    let mut short = raw(0x0001, &[(0x0006, b"anna")]);
    short[HEADER_BYTES + 3] = 5;
    assert_eq!(scan(&short), Err(StunError::Truncated(0x0006)));
    assert_eq!(scan(&short[..24]), Err(StunError::Length { announced: 8, actual: 4 }));
}

#[test]
fn unknown_attributes_are_reported_when_they_must_be_understood() {
    let bytes = raw(0x0003, &[(0x0018, &[0x80]), (0x8001, b"x"), (0x7FFF, b"")]);
    let request = Scanned::scan(&bytes).unwrap();
    let unknown = request.decode().unwrap().unknown_attributes().to_vec();
    assert_eq!(unknown, [0x0018, 0x7FFF]);
    let response = decode(&Response::unknown_attributes(&request, &unknown).encode(None).unwrap());
    assert_eq!((response.class(), response.method(), response.transaction_id()), (Class::Error, Method::Allocate, ID));
    assert_eq!(response.error(), Some(ErrorCode::UnknownAttribute));
    assert!(response.attributes().contains(&Attribute::UnknownAttributes(unknown)));
}

#[test]
fn change_request_has_the_flags_of_rfc_5780() {
    for (ip, port, flags) in [(false, false, 0), (false, true, 2), (true, false, 4), (true, true, 6)] {
        let sealed = Request::binding().with(Attribute::ChangeRequest { ip, port }).seal(ID, None).unwrap();
        assert_eq!(sealed.bytes()[HEADER_BYTES..HEADER_BYTES + 8], [0, 3, 0, 4, 0, 0, 0, flags]);
        assert_eq!(decode(sealed.bytes()).change_request(), Some((ip, port)));
    }
}

#[test]
fn a_check_is_padded_to_the_size_that_was_asked_for() {
    let check = Request::binding().with(Attribute::Username("a:b".into()));
    for wanted in [200, 1200, 1201, STUN_MESSAGE_MAX_BYTES] {
        let sealed = check.clone().padded_to(wanted).seal(ID, Some(&key())).unwrap();
        assert_eq!(sealed.bytes().len(), wanted.next_multiple_of(4));
        let scanned = Scanned::scan(sealed.bytes()).unwrap();
        assert_eq!(scanned.check_integrity(&key()), Ok(()));
        let message = scanned.decode().unwrap();
        assert!(matches!(message.attributes(), [Attribute::Username(_), Attribute::Padding(_)]));
        assert!(message.unknown_attributes().is_empty());
    }
    assert!(check.padded_to(STUN_MESSAGE_MAX_BYTES + 1).seal(ID, None).is_err());
}

#[test]
fn what_is_too_long_is_not_encoded() {
    let long = Request::binding().with(Attribute::Username("x".repeat(STUN_TEXT_MAX_BYTES + 1)));
    assert_eq!(long.seal(ID, None).map(|_| ()), Err(StunError::Unencodable));
    let large = Request::binding().with(Attribute::Data(vec![0; STUN_MESSAGE_MAX_BYTES]));
    assert_eq!(large.seal(ID, None).map(|_| ()), Err(StunError::Unencodable));
}

#[test]
fn only_stun_is_taken_for_stun() {
    assert!(is_stun(&bytes(REQUEST)));
    let quic = [&[0x40u8, 1, 0, 0][..], &MAGIC_COOKIE, &[0; 12]].concat();
    assert!(!is_stun(&quic));
    assert!(!is_stun(&bytes(REQUEST)[..19]));
    assert!(!is_stun(&[0; 20]));
}

#[test]
fn nothing_of_a_key_is_printed() {
    assert_eq!(format!("{:?}", IntegrityKey::short_term(b"secret")), "IntegrityKey(..)");
}

fn address() -> impl Strategy<Value = SocketAddr> {
    any::<(std::net::IpAddr, u16)>().prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn attribute() -> impl Strategy<Value = Attribute> {
    let text = || "[ -~]{0,100}";
    prop_oneof![
        address().prop_map(Attribute::AlternateServer),
        (0x4000u16..0x5000).prop_map(|number| Attribute::Channel(ChannelNumber::new(number).unwrap())),
        prop::collection::vec(any::<u8>(), 0..50).prop_map(Attribute::Data),
        (300u16..600).prop_map(|number| Attribute::Error(ErrorCode::from_number(number))),
        any::<u32>().prop_map(|seconds| Attribute::Lifetime(Duration::from_secs(seconds.into()))),
        address().prop_map(Attribute::MappedAddress),
        text().prop_map(Attribute::Nonce),
        address().prop_map(Attribute::OtherAddress),
        any::<u32>().prop_map(Attribute::Priority),
        text().prop_map(Attribute::Realm),
        any::<bool>().prop_map(|six| {
            Attribute::RequestedAddressFamily(if six { AddressFamily::V6 } else { AddressFamily::V4 })
        }),
        any::<u8>().prop_map(Attribute::RequestedTransport),
        address().prop_map(Attribute::ResponseOrigin),
        prop::collection::vec(any::<u16>(), 0..10).prop_map(Attribute::UnknownAttributes),
        text().prop_map(Attribute::Username),
        address().prop_map(Attribute::XorMappedAddress),
        address().prop_map(Attribute::XorPeerAddress),
        address().prop_map(Attribute::XorRelayedAddress),
    ]
}

proptest! {
    #[test]
    fn what_is_sealed_is_what_arrives(
        attributes in prop::collection::vec(attribute(), 0..8),
        id in any::<[u8; 12]>(),
        signed in any::<bool>(),
    ) {
        let id = TransactionId::from_random(id);
        let key = signed.then(key);
        let request = attributes.iter().cloned().fold(Request::refresh(Duration::ZERO), Request::with);
        let sealed = request.seal(id, key.as_ref()).unwrap();
        let scanned = Scanned::scan(sealed.bytes()).unwrap();
        prop_assert_eq!((scanned.transaction_id(), scanned.is_signed()), (sealed.transaction_id(), signed));
        if let Some(key) = &key {
            prop_assert_eq!(scanned.check_integrity(key), Ok(()));
        }
        let request = scanned.decode().unwrap();
        prop_assert_eq!(&request.attributes()[1..], &attributes);
        let response = attributes.iter().cloned().fold(Response::success(&scanned), Response::with);
        let response = response.encode(key.as_ref()).unwrap();
        let response = decode(&response);
        prop_assert_eq!((response.class(), response.method(), response.transaction_id()), (Class::Success, Method::Refresh, id));
        prop_assert_eq!(response.attributes(), &attributes);
    }

    #[test]
    fn a_payload_is_found_where_it_lies_and_as_stun_codec_reads_it(
        peer in address(),
        payload in prop::collection::vec(any::<u8>(), 0..1500),
        id in any::<[u8; 12]>(),
        to_client in any::<bool>(),
    ) {
        let (id, mut out) = (TransactionId::from_random(id), vec![1, 2, 3]);
        let put = if to_client { relayed::put_data } else { relayed::put_send };
        prop_assert!(put(id, peer, &payload, &mut out));
        let scanned = Scanned::scan(&out).unwrap();
        let (found, range) = relayed::payload(&scanned).unwrap();
        prop_assert_eq!((found, &out[range]), (peer, &payload[..]));
        let message = scanned.decode().unwrap();
        prop_assert_eq!(message.attributes(), &[Attribute::XorPeerAddress(peer), Attribute::Data(payload)]);
    }
}
