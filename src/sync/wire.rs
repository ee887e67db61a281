//! The frames of our streams: definite-length CBOR arrays with a number first, decoded without copying payloads.
//!
//! Every application stream starts with one [`StreamOpen`] frame. After it a control stream carries [`ControlFrame`]s, and
//! document and catch-up streams carry [`DocumentFrame`]s. Numbers are never reused; an unknown number is an error, since
//! both ends agreed on the protocol version before. All lists are bounded before they are read.

use bytes::Bytes;

use super::tokens::{TOKEN_BYTES, Token};
use crate::cbor::{self, CborError, Encoded, Out, Reader};
use crate::frame::put_frame;
use crate::ids::{OperationId, PeerId};
use crate::limits::{
    FRAME_MAX_BYTES, HEADS_PER_FRAME, MAX_OPEN_DOCUMENTS, OPERATION_HEADER_MAX_BYTES, OPERATION_PAYLOAD_MAX_BYTES,
    PAGE_MAX_OPERATIONS, PEERS_PER_FRAME,
};
use crate::operation::{Head, SeqNum};

/// What a stream is for. The first frame on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamOpen {
    /// The one control stream of a connection, opened by the dialler.
    Control,
    /// Live operations and acknowledgements of one document, opened by the dialler.
    Document(Token),
    /// Operations that the other side missed, opened by whoever has them.
    CatchUp(Token),
    /// One run of confidential discovery, opened by whoever asks.
    Discovery,
}

/// What travels on the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlFrame {
    /// Documents the sender has open; also asks the dialler to open their streams again.
    Share(Vec<Token>),
    /// Documents the sender closed.
    Unshare(Vec<Token>),
    /// The sender's own signed address record.
    Address(Bytes),
    /// The sender is about to close on purpose; nothing is wrong.
    Goodbye,
}

/// Why a peer refused an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Operations before it are missing there: send from the expected one.
    Gap,
    /// It was damaged: send it again.
    Damaged,
    /// Its author's log is frozen there, or has no room: send nothing more of this author.
    Closed,
}

/// What travels on document and catch-up streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentFrame {
    /// The newest operation per author that is durable at the sender. First on a document stream, from both sides.
    Heads {
        /// Some of the authors.
        heads: Vec<(PeerId, Head)>,
        /// True in the last of several such frames.
        last: bool,
    },
    /// Operations, per author in order.
    Operations {
        /// Number of this message, for a refusal.
        message_id: u64,
        /// Header and body of each.
        operations: Vec<(Bytes, Bytes)>,
    },
    /// An operation too large for one frame starts; its body follows in chunks.
    Large {
        /// Number of this message, for a refusal.
        message_id: u64,
        /// Its header.
        header: Bytes,
        /// Bytes of its body.
        body_len: u32,
    },
    /// The next piece of a large operation's body.
    Chunk(Bytes),
    /// Per author, everything up to and including this sequence number is durable at the sender.
    Acknowledge(Vec<(PeerId, SeqNum)>),
    /// An operation was not stored.
    Refuse {
        /// The message it was in.
        message_id: u64,
        /// Its author.
        author: PeerId,
        /// What the sender of the refusal wants next of this author.
        expected: SeqNum,
        /// Why.
        refusal: Refusal,
    },
    /// Signed address records of other peers of this document.
    Peers(Vec<Bytes>),
}

/// Appends one frame: an array of `len` items that `fill` writes.
fn put(out: &mut Vec<u8>, len: u64, kind: u8, fill: impl FnOnce(&mut Out<'_>) -> Encoded) {
    put_frame(out, |out| cbor::encode(out, len, kind, fill));
}

fn put_tokens(e: &mut Out<'_>, tokens: &[Token]) -> Encoded {
    cbor::put_list(e, tokens, |e, token| e.bytes(&token.0).map(|_| ()))
}

impl StreamOpen {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Control => put(out, 1, 0, |_| Ok(())),
            Self::Document(token) => put(out, 2, 1, |e| e.bytes(&token.0).map(|_| ())),
            Self::CatchUp(token) => put(out, 2, 2, |e| e.bytes(&token.0).map(|_| ())),
            Self::Discovery => put(out, 1, 3, |_| Ok(())),
        }
    }

    /// Reads the content of a frame.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn decode(frame: &Bytes) -> Result<Self, CborError> {
        cbor::decode(frame, |reader, kind| match kind {
            0 => Ok(Self::Control),
            1 => Ok(Self::Document(token(reader)?)),
            2 => Ok(Self::CatchUp(token(reader)?)),
            3 => Ok(Self::Discovery),
            kind => Err(CborError::UnknownKind(kind)),
        })
    }
}

impl ControlFrame {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Share(tokens) => put(out, 2, 0, |e| put_tokens(e, tokens)),
            Self::Unshare(tokens) => put(out, 2, 1, |e| put_tokens(e, tokens)),
            Self::Address(record) => put(out, 2, 2, |e| e.bytes(record).map(|_| ())),
            Self::Goodbye => put(out, 1, 3, |_| Ok(())),
        }
    }

    /// Reads the content of a frame.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn decode(frame: &Bytes) -> Result<Self, CborError> {
        cbor::decode(frame, |reader, kind| match kind {
            0 => Ok(Self::Share(reader.list("tokens", MAX_OPEN_DOCUMENTS, token)?)),
            1 => Ok(Self::Unshare(reader.list("tokens", MAX_OPEN_DOCUMENTS, token)?)),
            2 => Ok(Self::Address(bytes(reader)?)),
            3 => Ok(Self::Goodbye),
            kind => Err(CborError::UnknownKind(kind)),
        })
    }
}

impl DocumentFrame {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Heads { heads, last } => put(out, 3, 0, |e| {
                e.bool(*last)?.array(heads.len() as u64)?;
                heads.iter().try_for_each(|(author, head)| {
                    e.array(3)?.bytes(author.as_bytes())?.u32(head.seq_num)?.bytes(head.id.as_bytes()).map(|_| ())
                })
            }),
            Self::Operations { message_id, operations } => put(out, 3, 1, |e| {
                e.u64(*message_id)?.array(operations.len() as u64)?;
                operations.iter().try_for_each(|(header, body)| e.array(2)?.bytes(header)?.bytes(body).map(|_| ()))
            }),
            Self::Large { message_id, header, body_len } => {
                put(out, 4, 2, |e| e.u64(*message_id)?.bytes(header)?.u32(*body_len).map(|_| ()));
            }
            Self::Chunk(bytes) => put(out, 2, 3, |e| e.bytes(bytes).map(|_| ())),
            Self::Acknowledge(authors) => put(out, 2, 4, |e| {
                e.array(authors.len() as u64)?;
                authors
                    .iter()
                    .try_for_each(|(author, seq_num)| e.array(2)?.bytes(author.as_bytes())?.u32(*seq_num).map(|_| ()))
            }),
            Self::Refuse { message_id, author, expected, refusal } => put(out, 5, 5, |e| {
                let refusal = match refusal {
                    Refusal::Gap => 0,
                    Refusal::Damaged => 1,
                    Refusal::Closed => 2,
                };
                e.u64(*message_id)?.bytes(author.as_bytes())?.u32(*expected)?.u8(refusal).map(|_| ())
            }),
            Self::Peers(records) => put(out, 2, 6, |e| {
                e.array(records.len() as u64)?;
                records.iter().try_for_each(|record| e.bytes(record).map(|_| ()))
            }),
        }
    }

    /// Reads the content of a frame; headers and bodies are slices of it.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn decode(frame: &Bytes) -> Result<Self, CborError> {
        cbor::decode(frame, |reader, kind| match kind {
            0 => {
                let last = reader.bool()?;
                let heads = reader.list("heads", HEADS_PER_FRAME, |reader| {
                    reader.array(3)?;
                    let (author, seq_num) = (reader.peer()?, reader.u32()?);
                    Ok((author, Head { seq_num, id: OperationId::from(reader.fixed()?) }))
                })?;
                Ok(Self::Heads { heads, last })
            }
            1 => {
                let message_id = reader.u64()?;
                let operations = reader.list("operations", PAGE_MAX_OPERATIONS, |reader| {
                    reader.array(2)?;
                    Ok((bytes(reader)?, bytes(reader)?))
                })?;
                Ok(Self::Operations { message_id, operations })
            }
            2 => Ok(Self::Large {
                message_id: reader.u64()?,
                header: reader.bytes("header bytes", OPERATION_HEADER_MAX_BYTES)?,
                body_len: reader.u32_up_to("body bytes", OPERATION_PAYLOAD_MAX_BYTES + 16)?,
            }),
            3 => Ok(Self::Chunk(bytes(reader)?)),
            4 => Ok(Self::Acknowledge(reader.list("acknowledgements", HEADS_PER_FRAME, |reader| {
                reader.array(2)?;
                Ok((reader.peer()?, reader.u32()?))
            })?)),
            5 => Ok(Self::Refuse {
                message_id: reader.u64()?,
                author: reader.peer()?,
                expected: reader.u32()?,
                refusal: match reader.u8()? {
                    0 => Refusal::Gap,
                    1 => Refusal::Damaged,
                    2 => Refusal::Closed,
                    other => return Err(CborError::Damaged(format!("unknown refusal {other}"))),
                },
            }),
            6 => Ok(Self::Peers(reader.list("peers", PEERS_PER_FRAME, bytes)?)),
            kind => Err(CborError::UnknownKind(kind)),
        })
    }
}

fn token(reader: &mut Reader<'_>) -> Result<Token, CborError> {
    reader.fixed::<TOKEN_BYTES>().map(Token)
}

/// Bytes that only the frame bounds.
fn bytes(reader: &mut Reader<'_>) -> Result<Bytes, CborError> {
    reader.bytes("bytes", FRAME_MAX_BYTES)
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
        let frame = decoder.next_frame().unwrap().unwrap();
        assert_eq!(decoder.finish(), Ok(()));
        frame
    }

    fn peer(n: u8) -> PeerId {
        Identity::from_seed(&[n; 32]).peer_id()
    }

    fn document_frames() -> Vec<DocumentFrame> {
        let bytes = |n: usize| Bytes::from(vec![7; n]);
        vec![
            DocumentFrame::Heads {
                heads: vec![(peer(1), Head { seq_num: u32::MAX, id: OperationId::from([3; 32]) })],
                last: true,
            },
            DocumentFrame::Operations {
                message_id: 9,
                operations: vec![(bytes(221), bytes(40)), (bytes(1), bytes(0))],
            },
            DocumentFrame::Large { message_id: 10, header: bytes(221), body_len: 16 << 20 },
            DocumentFrame::Chunk(bytes(48 * 1024)),
            DocumentFrame::Acknowledge(vec![(peer(1), 0), (peer(2), 70_000)]),
            DocumentFrame::Refuse { message_id: 9, author: peer(1), expected: 3, refusal: Refusal::Gap },
            DocumentFrame::Peers(vec![bytes(100)]),
        ]
    }

    #[test]
    fn every_frame_decodes_to_itself() {
        for frame in document_frames() {
            let mut out = Vec::new();
            frame.encode(&mut out);
            assert_eq!(DocumentFrame::decode(&cut(out)), Ok(frame));
        }
        let token = Token([5; TOKEN_BYTES]);
        for frame in [
            ControlFrame::Share(vec![token; MAX_OPEN_DOCUMENTS]),
            ControlFrame::Unshare(Vec::new()),
            ControlFrame::Address(Bytes::from_static(b"record")),
            ControlFrame::Goodbye,
        ] {
            let mut out = Vec::new();
            frame.encode(&mut out);
            assert_eq!(ControlFrame::decode(&cut(out)), Ok(frame));
        }
        for frame in
            [StreamOpen::Control, StreamOpen::Document(token), StreamOpen::CatchUp(token), StreamOpen::Discovery]
        {
            let mut out = Vec::new();
            frame.encode(&mut out);
            assert_eq!(StreamOpen::decode(&cut(out)), Ok(frame));
        }
    }

    #[test]
    fn a_list_over_its_limit_is_refused_before_it_is_read() {
        let huge = Bytes::from_static(&[0x82, 0x00, 0x9A, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert_eq!(
            ControlFrame::decode(&huge),
            Err(CborError::TooMany { what: "tokens", actual: u64::from(u32::MAX), limit: MAX_OPEN_DOCUMENTS as u64 })
        );
    }

    #[test]
    fn bytes_after_the_end_are_refused() {
        let mut out = Vec::new();
        ControlFrame::Goodbye.encode(&mut out);
        let mut frame = cut(out).to_vec();
        frame.push(0);
        assert_eq!(ControlFrame::decode(&frame.into()), Err(CborError::Trailing));
    }

    proptest! {
        #[test]
        fn arbitrary_and_damaged_bytes_never_panic(
            noise in prop::collection::vec(any::<u8>(), 0..300),
            which in 0usize..7,
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let noise = Bytes::from(noise);
            let _ = (StreamOpen::decode(&noise), ControlFrame::decode(&noise), DocumentFrame::decode(&noise));
            let mut out = Vec::new();
            document_frames()[which].encode(&mut out);
            let mut frame = cut(out).to_vec();
            for (index, value) in flips {
                let index = index.index(frame.len());
                frame[index] = value;
            }
            let _ = DocumentFrame::decode(&frame.into());
        }
    }
}
