//! Messages of the NAT Port Mapping Protocol (RFC 6886) that a node needs: the external address, and a UDP port.
//!
//! Only bytes in and out: when to send what is the machine's business.

use std::net::Ipv4Addr;

/// Section 3.2 and 3.3: opcodes; an answer's is 128 more.
const EXTERNAL_ADDRESS: u8 = 0;
const MAP_UDP: u8 = 1;
const ANSWER: u8 = 128;
/// Section 3.1: the version.
const VERSION: u8 = 0;

/// Asks for the router's external address (section 3.2).
pub(super) fn external_address() -> Vec<u8> {
    vec![VERSION, EXTERNAL_ADDRESS]
}

/// Asks for a UDP port, `lifetime` seconds long (section 3.3); 0 gives the mapping back.
pub(super) fn map(port: u16, wish: u16, lifetime: u32) -> Vec<u8> {
    let mut message = vec![VERSION, MAP_UDP, 0, 0];
    message.extend(port.to_be_bytes());
    message.extend(wish.to_be_bytes());
    message.extend(lifetime.to_be_bytes());
    message
}

/// What a router says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Its external address.
    Address(Ipv4Addr),
    /// Our port is mapped for so many seconds.
    Mapped { external_port: u16, lifetime: u32 },
    /// It speaks NAT-PMP and refuses, or this is not about our port.
    Other,
}

/// `None` for what is no answer of a NAT-PMP server.
pub(super) fn read(datagram: &[u8], port: u16) -> Option<Answer> {
    match *datagram {
        [VERSION, opcode, r0, r1, ..] if opcode >= ANSWER && (r0, r1) != (0, 0) => Some(Answer::Other),
        // Four bytes after the result are the epoch.
        [VERSION, opcode, _, _, _, _, _, _, a, b, c, d] if opcode == ANSWER | EXTERNAL_ADDRESS => {
            Some(Answer::Address(Ipv4Addr::new(a, b, c, d)))
        }
        [VERSION, opcode, _, _, _, _, _, _, i0, i1, e0, e1, l0, l1, l2, l3] if opcode == ANSWER | MAP_UDP => {
            let (external_port, lifetime) = (u16::from_be_bytes([e0, e1]), u32::from_be_bytes([l0, l1, l2, l3]));
            let ours = u16::from_be_bytes([i0, i1]) == port && external_port != 0 && lifetime != 0;
            Some(if ours { Answer::Mapped { external_port, lifetime } } else { Answer::Other })
        }
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What a router would say to one of the two requests.
    pub fn answered(request: &[u8], ip: Ipv4Addr, external_port: u16, lifetime: u32) -> Vec<u8> {
        let mut answer = vec![VERSION, request[1] | ANSWER, 0, 0, 0, 0, 0, 0];
        if request[1] == EXTERNAL_ADDRESS {
            answer.extend(ip.octets());
        } else {
            answer.extend(&request[4..6]);
            answer.extend(external_port.to_be_bytes());
            answer.extend(lifetime.to_be_bytes());
        }
        answer
    }

    #[test]
    fn requests_and_answers_are_laid_out_as_the_rfc_says() {
        assert_eq!(external_address(), [0, 0]);
        assert_eq!(map(0x1234, 0x5678, 3600), [0, 1, 0, 0, 0x12, 0x34, 0x56, 0x78, 0, 0, 0x0e, 0x10]);
        let address = [0, 128, 0, 0, 0, 0, 0, 1, 203, 0, 113, 9];
        assert_eq!(read(&address, 1), Some(Answer::Address([203, 0, 113, 9].into())));
        let mapped = [0, 129, 0, 0, 0, 0, 0, 1, 0x12, 0x34, 0x56, 0x78, 0, 0, 0x0e, 0x10];
        assert_eq!(read(&mapped, 0x1234), Some(Answer::Mapped { external_port: 0x5678, lifetime: 3600 }));
        assert_eq!(read(&mapped, 0x1235), Some(Answer::Other));
    }

    #[test]
    fn refusals_say_that_it_is_spoken_and_anything_else_says_nothing() {
        // A router of the past sees a PCP request (section 9), and one that does not want to.
        assert_eq!(read(&[0, 128, 0, 1, 0, 0, 0, 1], 1), Some(Answer::Other));
        assert_eq!(read(&[0, 129, 0, 2, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0], 1), Some(Answer::Other));
        for noise in [&[][..], &[0, 128], &[0, 0], &[2, 129, 0, 0, 0, 0, 0, 0], &[0, 129, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(read(noise, 1), None);
        }
    }
}
