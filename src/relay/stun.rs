//! A STUN server (RFC 8489), with a second address and port if there are any (RFC 5780). Pure.

use std::net::SocketAddr;

use crate::nat::stun::{Attribute, ErrorCode, Response, Scanned};

/// Bit of a socket's number: it is on the other port.
const OTHER_PORT: usize = 1;
/// Bit of a socket's number: it is on the other address.
const OTHER_IP: usize = 2;

/// Where our sockets are, as clients see them. One, or four: the number's bits say which is on the other port and address.
#[derive(Debug, Clone)]
pub(super) struct Origins(Vec<SocketAddr>);

impl Origins {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self(addresses)
    }

    /// Answers a Binding request that arrived at socket `at`: from which socket, and what.
    pub(super) fn answer(&self, at: usize, from: SocketAddr, request: &Scanned<'_>) -> Option<(usize, Vec<u8>)> {
        let message = request.decode().ok()?;
        let change = message.change_request();
        let whole = self.0.len() > OTHER_IP;
        let unknown = message.unknown_attributes();
        let (socket, response) = match change {
            _ if !unknown.is_empty() => (at, Response::unknown_attributes(request, unknown)),
            // RFC 5780, section 6.1: 420 where nothing can be changed.
            Some((true, _) | (_, true)) if !whole => (at, Response::error(request, ErrorCode::UnknownAttribute)),
            _ => {
                let (ip, port) = change.unwrap_or_default();
                let socket = at ^ (if port { OTHER_PORT } else { 0 }) ^ (if ip { OTHER_IP } else { 0 });
                (socket, self.success(at, socket, from, request)?)
            }
        };
        Some((socket, response.encode(None).ok()?))
    }

    fn success(&self, at: usize, socket: usize, from: SocketAddr, request: &Scanned<'_>) -> Option<Response> {
        let response = Response::success(request).with(Attribute::XorMappedAddress(from));
        let Some(other) = self.0.get(at ^ (OTHER_PORT | OTHER_IP)) else { return Some(response) };
        let origin = *self.0.get(socket)?;
        // The plain address as well: clients that ask for behaviour may be older than the other (RFC 3489).
        let response = response.with(Attribute::MappedAddress(from));
        Some(response.with(Attribute::ResponseOrigin(origin)).with(Attribute::OtherAddress(*other)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::stun::{Class, Request, TransactionId};

    const FROM: &str = "203.0.113.9:5000";

    fn ask(origins: &Origins, at: usize, request: Request) -> (usize, crate::nat::stun::Message) {
        let sealed = request.seal(TransactionId::from_random([7; 12]), None).unwrap();
        let request = Scanned::scan(sealed.bytes()).unwrap();
        let (socket, bytes) = origins.answer(at, FROM.parse().unwrap(), &request).unwrap();
        (socket, Scanned::scan(&bytes).unwrap().decode().unwrap())
    }

    fn four() -> Origins {
        let texts = ["192.0.2.1:3478", "192.0.2.1:3479", "192.0.2.2:3478", "192.0.2.2:3479"];
        Origins::new(texts.map(|text| text.parse().unwrap()).to_vec())
    }

    #[test]
    fn a_client_learns_how_it_is_seen() {
        let (socket, answer) = ask(&Origins::new(vec!["0.0.0.0:3478".parse().unwrap()]), 0, Request::binding());
        assert_eq!((socket, answer.mapped_address()), (0, Some(FROM.parse().unwrap())));
        assert_eq!((answer.other_address(), answer.response_origin()), (None, None), "nobody is told 0.0.0.0");
    }

    #[test]
    fn answers_come_from_where_they_are_asked_to_come_from() {
        for at in 0..4 {
            for (ip, port) in [(false, false), (false, true), (true, false), (true, true)] {
                let request = Request::binding().with(Attribute::ChangeRequest { ip, port });
                let (socket, answer) = ask(&four(), at, request);
                let (from, at) = (four().0[socket], four().0[at]);
                assert_eq!((from.ip() != at.ip(), from.port() != at.port()), (ip, port));
                assert_eq!(answer.response_origin(), Some(from));
                let other = answer.other_address().unwrap();
                assert!(other.ip() != at.ip() && other.port() != at.port());
            }
        }
    }

    #[test]
    fn a_server_with_one_address_says_that_it_cannot_change() {
        let request = Request::binding().with(Attribute::ChangeRequest { ip: true, port: true });
        let (_, answer) = ask(&Origins::new(vec!["192.0.2.1:3478".parse().unwrap()]), 0, request);
        assert_eq!((answer.class(), answer.error()), (Class::Error, Some(ErrorCode::UnknownAttribute)));
    }
}
