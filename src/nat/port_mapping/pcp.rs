//! Messages of the Port Control Protocol (RFC 6887) that a node needs: MAP for a UDP port, and ANNOUNCE to see who speaks it.
//!
//! Only bytes in and out: when to send what is the machine's business.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

/// Section 7: the version.
const VERSION: u8 = 2;
/// Section 7.1 and 19.2: opcodes, and the bit of an answer.
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;
const ANSWER: u8 = 0x80;
/// IANA's number of UDP.
const UDP: u8 = 17;
/// Section 7.1: the header. Section 11.1: what MAP adds.
const HEADER_BYTES: usize = 24;
const MAP_BYTES: usize = 36;

/// What ties answers, renewals and the release to one mapping (section 11.1): whoever does not know it cannot change it.
pub(super) type Nonce = [u8; 12];

/// A MAP request for our UDP port, `lifetime` seconds long; 0 gives the mapping back.
pub(super) fn map(interface: Ipv4Addr, nonce: &Nonce, port: u16, wish: Option<SocketAddrV4>, lifetime: u32) -> Vec<u8> {
    let wish = wish.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    let mut message = header(MAP, interface, lifetime);
    message.extend(nonce);
    message.extend([UDP, 0, 0, 0]);
    message.extend(port.to_be_bytes());
    message.extend(wish.port().to_be_bytes());
    message.extend(wish.ip().to_ipv6_mapped().octets());
    message
}

/// Asks who is there (section 14.1); nothing changes by it.
pub(super) fn announce(interface: Ipv4Addr) -> Vec<u8> {
    header(ANNOUNCE, interface, 0)
}

fn header(opcode: u8, interface: Ipv4Addr, lifetime: u32) -> Vec<u8> {
    let mut message = vec![VERSION, opcode, 0, 0];
    message.extend(lifetime.to_be_bytes());
    message.extend(interface.to_ipv6_mapped().octets());
    message
}

/// What a router says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The port is mapped for so many seconds.
    Mapped { external: SocketAddrV4, lifetime: u32 },
    /// It speaks PCP, and this is not about a mapping of ours, or a refusal.
    Other { result: u8 },
}

/// `None` for what is no answer of a PCP server.
pub(super) fn read(datagram: &[u8], nonce: &Nonce, port: u16) -> Option<Answer> {
    let (header, rest) = datagram.split_at_checked(HEADER_BYTES)?;
    let [version, opcode, _, result, l0, l1, l2, l3, ..] = *header else { return None };
    if version != VERSION || opcode & ANSWER == 0 {
        return None;
    }
    let other = Some(Answer::Other { result });
    if result != 0 || opcode != MAP | ANSWER {
        return other;
    }
    let (body, _) = rest.split_at_checked(MAP_BYTES)?;
    let (theirs, body) = body.split_first_chunk::<12>()?;
    let [protocol, _, _, _, i0, i1, e0, e1, address @ ..] = body else { return None };
    let ours = theirs == nonce && *protocol == UDP && u16::from_be_bytes([*i0, *i1]) == port;
    let external = Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?).to_ipv4_mapped();
    let (external_port, lifetime) = (u16::from_be_bytes([*e0, *e1]), u32::from_be_bytes([l0, l1, l2, l3]));
    match external {
        Some(ip) if ours && external_port != 0 && lifetime != 0 => {
            Some(Answer::Mapped { external: SocketAddrV4::new(ip, external_port), lifetime })
        }
        _ => other,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a router would say to a MAP request.
    pub fn mapped(request: &[u8], external: SocketAddrV4, lifetime: u32) -> Vec<u8> {
        let mut answer = vec![VERSION, request[1] | ANSWER, 0, 0];
        answer.extend(lifetime.to_be_bytes());
        // The epoch, and what is reserved.
        answer.extend([0; 16]);
        answer.extend(&request[24..42]);
        answer.extend(external.port().to_be_bytes());
        answer.extend(external.ip().to_ipv6_mapped().octets());
        answer
    }

    /// What a router would say that refuses.
    pub fn refused(request: &[u8], result: u8) -> Vec<u8> {
        let mut answer = request.to_vec();
        (answer[1], answer[3]) = (answer[1] | ANSWER, result);
        answer
    }

    #[test]
    fn a_request_is_laid_out_as_the_rfc_says() {
        let wish = "203.0.113.9:7000".parse().ok();
        let message = map([192, 168, 1, 2].into(), &[7; 12], 0x1234, wish, 3600);
        assert_eq!(message.len(), HEADER_BYTES + MAP_BYTES);
        assert_eq!(message[..8], [2, 1, 0, 0, 0, 0, 0x0e, 0x10]);
        assert_eq!(message[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 168, 1, 2]);
        assert_eq!(message[24..36], [7; 12]);
        assert_eq!(message[36..44], [17, 0, 0, 0, 0x12, 0x34, 0x1b, 0x58]);
        assert_eq!(message[44..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 9]);
        assert_eq!(announce([192, 168, 1, 2].into()).len(), HEADER_BYTES);
    }

    #[test]
    fn only_the_answer_to_our_own_request_is_a_mapping() {
        let (nonce, external) = ([7; 12], "203.0.113.9:7000".parse().unwrap());
        let request = map([192, 168, 1, 2].into(), &nonce, 4000, None, 3600);
        let answer = mapped(&request, external, 1800);
        assert_eq!(read(&answer, &nonce, 4000), Some(Answer::Mapped { external, lifetime: 1800 }));
        for (nonce, port) in [([8; 12], 4000), (nonce, 4001)] {
            assert_eq!(read(&answer, &nonce, port), Some(Answer::Other { result: 0 }));
        }
        assert_eq!(read(&refused(&request, 2), &nonce, 4000), Some(Answer::Other { result: 2 }));
        assert_eq!(read(&request, &nonce, 4000), None);
        for end in 0..answer.len() {
            assert_eq!(read(&answer[..end], &nonce, 4000), None, "{end} bytes");
        }
    }
}
