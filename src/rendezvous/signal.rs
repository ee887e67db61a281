//! What two peers tell each other through a relay, inside the seal: who wants to connect, and where each can be tried.
//!
//! A peer uses candidates only after it opened the seal, so that they come from the peer whose key sealed them; the bound on
//! their number is what a member of a document could aim at a victim.

use std::fmt;
use std::net::SocketAddr;

use bytes::Bytes;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::cbor::{self, CborError, Encoded, Out, Reader};
use crate::limits::{SIGNAL_CANDIDATES, SIGNAL_PROOFS};
use crate::transport::NatMapping;

/// Bytes of one proof.
pub const PROOF_BYTES: usize = 16;

/// The secret that the checks of one session are authenticated with. Not in `Debug`; wiped from memory.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SessionSecret(pub [u8; 32]);

impl fmt::Debug for SessionSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionSecret")
    }
}

/// How a peer learnt of an address of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An address of one of its interfaces.
    Host,
    /// What a STUN server saw.
    ServerReflexive,
    /// What a peer saw.
    PeerReflexive,
    /// A port that its router opened on request.
    Mapped,
    /// A relayed address at a TURN server.
    Relayed,
}

/// Where a peer can be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    /// How it was learnt.
    pub kind: CandidateKind,
    /// Where.
    pub address: SocketAddr,
}

/// What the two ends of a relayed connection say about birthday punching, on the connection itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BirthdayWord {
    /// I opted in, and this is how my NAT maps.
    Willing(NatMapping),
    /// I would open my sockets now. Said by the end that opens many.
    Ask,
    /// I begin.
    Go,
}

/// A sealed message's content, or a message on the connection's own stream of candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// Let us connect.
    Offer {
        /// Drawn by whoever offers.
        session: u64,
        /// The session's secret: both ends authenticate their checks with it.
        secret: SessionSecret,
        /// Where to try it; at most `SIGNAL_CANDIDATES`.
        candidates: Vec<Candidate>,
        /// That it knows documents that the other end may know too; at most `SIGNAL_PROOFS`.
        proofs: Vec<[u8; PROOF_BYTES]>,
    },
    /// Gladly.
    Answer {
        /// That of the offer.
        session: u64,
        /// Where to try it.
        candidates: Vec<Candidate>,
    },
    /// More candidates, found since.
    Candidates {
        /// That of the offer.
        session: u64,
        /// Where to try it besides.
        candidates: Vec<Candidate>,
    },
    /// No.
    Refused {
        /// That of the offer.
        session: u64,
    },
    /// About birthday punching; only on a connection.
    Birthday {
        /// Of no meaning there.
        session: u64,
        /// What.
        word: BirthdayWord,
    },
}

impl Signal {
    /// The content of a sealed message. Candidates and proofs over the limit are left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Offer { session, secret, candidates, proofs } => {
                cbor::encode(&mut out, 5, 0, |e| {
                    e.u64(*session)?.bytes(&secret.0)?;
                    put_candidates(e, candidates)?;
                    cbor::put_list(e, up_to(proofs, SIGNAL_PROOFS), |e, proof| e.bytes(proof).map(|_| ()))
                });
            }
            Self::Answer { session, candidates } => cbor::encode(&mut out, 3, 1, |e| {
                e.u64(*session)?;
                put_candidates(e, candidates)
            }),
            Self::Candidates { session, candidates } => cbor::encode(&mut out, 3, 2, |e| {
                e.u64(*session)?;
                put_candidates(e, candidates)
            }),
            Self::Refused { session } => cbor::encode(&mut out, 2, 3, |e| e.u64(*session).map(|_| ())),
            Self::Birthday { session, word } => {
                cbor::encode(&mut out, 3, 4, |e| e.u64(*session)?.u8(word.to_byte()).map(|_| ()));
            }
        }
        out
    }

    /// Reads the content of a sealed message.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn decode(opened: &Bytes) -> Result<Self, CborError> {
        cbor::decode(opened, |reader, kind| {
            let session = reader.u64()?;
            match kind {
                0 => Ok(Self::Offer {
                    session,
                    secret: SessionSecret(reader.fixed()?),
                    candidates: read_candidates(reader)?,
                    proofs: reader.list("proofs", SIGNAL_PROOFS, Reader::fixed)?,
                }),
                1 => Ok(Self::Answer { session, candidates: read_candidates(reader)? }),
                2 => Ok(Self::Candidates { session, candidates: read_candidates(reader)? }),
                3 => Ok(Self::Refused { session }),
                4 => Ok(Self::Birthday { session, word: BirthdayWord::from_byte(reader.u8()?)? }),
                kind => Err(CborError::UnknownKind(kind)),
            }
        })
    }
}

impl BirthdayWord {
    fn to_byte(self) -> u8 {
        match self {
            Self::Willing(NatMapping::Independent) => 0,
            Self::Willing(NatMapping::Dependent) => 1,
            Self::Willing(NatMapping::Unknown) => 2,
            Self::Ask => 3,
            Self::Go => 4,
        }
    }

    fn from_byte(byte: u8) -> Result<Self, CborError> {
        match byte {
            0 => Ok(Self::Willing(NatMapping::Independent)),
            1 => Ok(Self::Willing(NatMapping::Dependent)),
            2 => Ok(Self::Willing(NatMapping::Unknown)),
            3 => Ok(Self::Ask),
            4 => Ok(Self::Go),
            other => Err(CborError::Damaged(format!("unknown word {other}"))),
        }
    }
}

fn up_to<T>(items: &[T], limit: usize) -> &[T] {
    &items[..items.len().min(limit)]
}

fn put_candidates(e: &mut Out<'_>, candidates: &[Candidate]) -> Encoded {
    cbor::put_list(e, up_to(candidates, SIGNAL_CANDIDATES), |e, candidate| {
        let kind = match candidate.kind {
            CandidateKind::Host => 0,
            CandidateKind::ServerReflexive => 1,
            CandidateKind::PeerReflexive => 2,
            CandidateKind::Mapped => 3,
            CandidateKind::Relayed => 4,
        };
        e.array(2)?.u8(kind)?;
        cbor::put_address(e, candidate.address)
    })
}

fn read_candidates(reader: &mut Reader<'_>) -> Result<Vec<Candidate>, CborError> {
    reader.list("candidates", SIGNAL_CANDIDATES, |reader| {
        reader.array(2)?;
        let kind = match reader.u8()? {
            0 => CandidateKind::Host,
            1 => CandidateKind::ServerReflexive,
            2 => CandidateKind::PeerReflexive,
            3 => CandidateKind::Mapped,
            4 => CandidateKind::Relayed,
            other => return Err(CborError::Damaged(format!("unknown candidate {other}"))),
        };
        Ok(Candidate { kind, address: reader.address()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SIGNAL_SEALED_MAX_BYTES;
    use crate::rendezvous::seal::SEAL_BYTES;

    fn candidates(count: usize) -> Vec<Candidate> {
        let address = "[2001:db8::ffff]:65535".parse().unwrap();
        vec![Candidate { kind: CandidateKind::Relayed, address }; count]
    }

    fn largest_offer() -> Signal {
        Signal::Offer {
            session: u64::MAX,
            secret: SessionSecret([0x5A; 32]),
            candidates: candidates(SIGNAL_CANDIDATES),
            proofs: vec![[9; PROOF_BYTES]; SIGNAL_PROOFS],
        }
    }

    #[test]
    fn every_signal_comes_back_as_it_was() {
        let host = Candidate { kind: CandidateKind::Host, address: "192.0.2.1:7000".parse().unwrap() };
        let signals = [
            largest_offer(),
            Signal::Answer { session: 1, candidates: vec![host] },
            Signal::Candidates { session: 1, candidates: Vec::new() },
            Signal::Refused { session: 1 },
        ];
        let mappings = [NatMapping::Independent, NatMapping::Dependent, NatMapping::Unknown];
        let words = mappings.into_iter().map(BirthdayWord::Willing).chain([BirthdayWord::Ask, BirthdayWord::Go]);
        let words = words.map(|word| Signal::Birthday { session: 0, word });
        for signal in signals.into_iter().chain(words) {
            assert_eq!(Signal::decode(&signal.encode().into()), Ok(signal));
        }
    }

    #[test]
    fn the_largest_offer_fits_one_sealed_signal() {
        assert!(largest_offer().encode().len() + SEAL_BYTES <= SIGNAL_SEALED_MAX_BYTES);
    }

    #[test]
    fn more_candidates_than_allowed_are_not_sent_and_not_taken() {
        let many = Signal::Candidates { session: 1, candidates: candidates(SIGNAL_CANDIDATES + 1) };
        let few = Signal::Candidates { session: 1, candidates: candidates(SIGNAL_CANDIDATES) };
        let encoded = many.encode();
        assert_eq!(Signal::decode(&encoded.into()), Ok(few));
        // A list of 21 in its head: 0x95 after kind and session.
        let mut forged = Signal::Candidates { session: 1, candidates: Vec::new() }.encode();
        assert_eq!(forged.pop(), Some(0x80));
        forged.push(0x95);
        assert!(matches!(Signal::decode(&forged.into()), Err(CborError::TooMany { what: "candidates", .. })));
    }

    #[test]
    fn the_secret_is_not_in_the_debug_output() {
        assert!(!format!("{:?}", largest_offer()).contains("90, 90"));
    }
}
