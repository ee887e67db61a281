//! The data path of TURN without copies: Send and Data indications (RFC 8656 §11).
//!
//! They carry what has no channel yet. A peer's payload is found where it lies; ours is written into a buffer that the
//! caller keeps. Neither is signed: TURN's indications never are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use super::attribute::{DATA, XOR_PEER_ADDRESS};
use super::message::{Class, Method};
use super::scan::{Scanned, set_length};
use super::{MAGIC_COOKIE, TransactionId};
use crate::limits::TURN_FRAME_MAX_BYTES;

/// RFC 8489 §14.1.
const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;
/// The class bits of an indication (RFC 8489 §5).
const INDICATION: u16 = 0x0010;

/// The peer and the place of its payload in a Send or Data indication; `None` when it is none or lacks either.
pub fn payload(message: &Scanned<'_>) -> Option<(SocketAddr, Range<usize>)> {
    let carries = matches!(message.method(), Method::Send | Method::Data) && message.class() == Class::Indication;
    let peer = message.peer_value().filter(|_| carries)?;
    Some((decode_xor(peer, message.transaction_id())?, message.data_range()?))
}

/// Replaces the buffer's content by a Send indication, from a client to its server. False when it would be too large.
pub fn put_send(id: TransactionId, peer: SocketAddr, payload: &[u8], out: &mut Vec<u8>) -> bool {
    put(Method::Send, id, peer, payload, out)
}

/// Replaces the buffer's content by a Data indication, from a server to its client. False when it would be too large.
pub fn put_data(id: TransactionId, peer: SocketAddr, payload: &[u8], out: &mut Vec<u8>) -> bool {
    put(Method::Data, id, peer, payload, out)
}

fn put(method: Method, id: TransactionId, peer: SocketAddr, payload: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    if payload.len() > TURN_FRAME_MAX_BYTES {
        return false;
    }
    // The bits of these methods do not reach those of the class.
    out.extend_from_slice(&(method.number() | INDICATION).to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    out.extend_from_slice(&MAGIC_COOKIE);
    out.extend_from_slice(id.as_bytes());
    put_xor(peer, id, out);
    out.extend_from_slice(&DATA.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(4), 0);
    let end = out.len();
    set_length(out, end);
    end <= TURN_FRAME_MAX_BYTES
}

/// What an address is xored with: the cookie and the transaction id (RFC 8489 §14.2).
fn mask(id: TransactionId) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&MAGIC_COOKIE);
    mask[4..].copy_from_slice(id.as_bytes());
    mask
}

fn decode_xor(value: &[u8], id: TransactionId) -> Option<SocketAddr> {
    let (head, address) = value.split_first_chunk::<4>()?;
    let port = u16::from_be_bytes([head[2] ^ MAGIC_COOKIE[0], head[3] ^ MAGIC_COOKIE[1]]);
    let mut octets = [0; 16];
    octets.get_mut(..address.len())?.copy_from_slice(address);
    octets.iter_mut().zip(mask(id)).for_each(|(octet, mask)| *octet ^= mask);
    let ip = match (head[1], address.len()) {
        (FAMILY_IPV4, 4) => IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
        (FAMILY_IPV6, 16) => IpAddr::V6(Ipv6Addr::from(octets)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn put_xor(address: SocketAddr, id: TransactionId, out: &mut Vec<u8>) {
    let (family, length) = if address.is_ipv4() { (FAMILY_IPV4, 8u16) } else { (FAMILY_IPV6, 20) };
    out.extend_from_slice(&XOR_PEER_ADDRESS.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
    let port = address.port().to_be_bytes();
    out.extend_from_slice(&[0, family, port[0] ^ MAGIC_COOKIE[0], port[1] ^ MAGIC_COOKIE[1]]);
    let masked = |octets: &[u8]| -> [u8; 16] {
        let mut masked = mask(id);
        masked.iter_mut().zip(octets).for_each(|(mask, octet)| *mask ^= octet);
        masked
    };
    match address.ip() {
        IpAddr::V4(ip) => out.extend_from_slice(&masked(&ip.octets())[..4]),
        IpAddr::V6(ip) => out.extend_from_slice(&masked(&ip.octets())),
    }
}
