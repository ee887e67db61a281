//! Connectivity checks between two peers: STUN Binding requests that only the two can make and answer.
//!
//! Both know a session and its key before, by sealed signalling or from their connection. The user name says which session,
//! and which end asks, so that an end never takes its own reflection for the peer (RFC 8445 section 7, much reduced).

use std::net::SocketAddr;

use super::stun::{Attribute, Class, IntegrityKey, Message, Method, Request, Response, Scanned, TransactionId};

/// Which end of a session sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The end that dialled, or offered.
    Dialler,
    /// The other one.
    Acceptor,
}

impl Side {
    /// The other end.
    pub fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Acceptor,
            Self::Acceptor => Self::Dialler,
        }
    }

    fn letter(self) -> char {
        match self {
            Self::Dialler => 'd',
            Self::Acceptor => 'a',
        }
    }
}

/// What a check is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session {
    /// Known to both ends and nobody else.
    pub number: u64,
    /// The end that asks.
    pub asker: Side,
}

/// The priority (RFC 8445 section 7.1.1) of a path that the asker uses, and of any other.
const PRIORITY_IN_USE: u32 = u32::MAX >> 1;
const PRIORITY_OTHER: u32 = 1;

/// A check of ours, at least `padded_to` bytes long. `None` only for a size that no check has.
pub fn request(
    session: Session,
    key: &IntegrityKey,
    id: TransactionId,
    in_use: bool,
    padded_to: u16,
) -> Option<Vec<u8>> {
    let priority = if in_use { PRIORITY_IN_USE } else { PRIORITY_OTHER };
    let request = Request::binding()
        .with(Attribute::Username(format!("{:016x}{}", session.number, session.asker.letter())))
        .with(Attribute::Priority(priority));
    let request = if padded_to > 0 { request.padded_to(padded_to.into()) } else { request };
    Some(request.seal(id, Some(key)).ok()?.bytes().to_vec())
}

/// Which session a request claims to belong to; `None` for anything that is not a check. Nothing is proved by it.
pub fn claimed_session(request: &Scanned<'_>) -> Option<Session> {
    if request.class() != Class::Request || request.method() != Method::Binding || !request.is_signed() {
        return None;
    }
    let message = request.decode().ok()?;
    let (number, letter) = message.username()?.split_at_checked(16)?;
    let asker = [Side::Dialler, Side::Acceptor].into_iter().find(|side| letter.chars().eq([side.letter()]))?;
    Some(Session { number: u64::from_str_radix(number, 16).ok()?, asker })
}

/// The peer's check, if it is one: whether it uses the path that it came by.
pub fn authenticate(request: &Scanned<'_>, key: &IntegrityKey) -> Option<bool> {
    request.check_integrity(key).ok()?;
    Some(request.decode().ok()?.priority() == Some(PRIORITY_IN_USE))
}

/// The answer to a check that came from `from`.
pub fn answer(request: &Scanned<'_>, key: &IntegrityKey, from: SocketAddr) -> Option<Vec<u8>> {
    Response::success(request).with(Attribute::XorMappedAddress(from)).encode(Some(key)).ok()
}

/// The answer to a check of ours, if it is one.
pub fn read_answer(response: &Scanned<'_>, key: &IntegrityKey) -> Option<Message> {
    let answered = response.class() == Class::Success && response.method() == Method::Binding;
    (answered && response.check_integrity(key).is_ok()).then(|| response.decode().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Session = Session { number: 0xfeed, asker: Side::Dialler };

    fn id(n: u8) -> TransactionId {
        TransactionId::from_random([n; 12])
    }

    #[test]
    fn a_check_is_answered_with_the_address_that_it_came_from() {
        let key = IntegrityKey::short_term(&[7; 32]);
        let from = "192.0.2.1:4000".parse().unwrap();
        for (in_use, padded_to) in [(true, 0), (false, 1400)] {
            let asked = request(SESSION, &key, id(1), in_use, padded_to).unwrap();
            assert!(asked.len() >= usize::from(padded_to) && asked.len() < usize::from(padded_to.max(120)) + 8);
            let scanned = Scanned::scan(&asked).unwrap();
            assert_eq!(claimed_session(&scanned), Some(SESSION));
            assert_eq!(authenticate(&scanned, &key), Some(in_use));
            let answered = answer(&scanned, &key, from).unwrap();
            let scanned = Scanned::scan(&answered).unwrap();
            assert_eq!(scanned.transaction_id(), id(1));
            assert_eq!(read_answer(&scanned, &key).unwrap().mapped_address(), Some(from));
        }
    }

    #[test]
    fn without_the_key_nothing_counts() {
        let (key, other) = (IntegrityKey::short_term(&[7; 32]), IntegrityKey::short_term(&[8; 32]));
        let asked = request(SESSION, &key, id(1), false, 0).unwrap();
        let scanned = Scanned::scan(&asked).unwrap();
        assert_eq!(authenticate(&scanned, &other), None);
        let answered = answer(&scanned, &other, "192.0.2.1:4000".parse().unwrap()).unwrap();
        assert!(read_answer(&Scanned::scan(&answered).unwrap(), &key).is_none());
        let plain = Request::binding().seal(id(2), None).unwrap();
        assert_eq!(claimed_session(&Scanned::scan(plain.bytes()).unwrap()), None);
    }
}
