//! Operations as p2panda knows them: a signed header in a hash chain per author, and a body beside it.
//!
//! The header's extensions are the basic ones of a p2panda Node, `(1, 0, log id, timestamp in µs, prune)`, so that a Node
//! can hold our documents. The body is our envelope, the CBOR array `[1, payload]`.
//! An [`Operation`] cannot hold a wrong signature, a wrong payload hash or a foreign log: there are two ways to get
//! one, signing it or decoding it. Whether its backlink fits is for the store to say, which knows the log.

use bytes::Bytes;
use p2panda_core::{Hash, Header, validate_header};

use crate::error::OperationError;
use crate::extensions::NodeExtensions;
use crate::identity::Identity;
use crate::ids::{LogId, OperationId, PeerId};
use crate::limits::{ENVELOPE_OVERHEAD_MAX_BYTES, OPERATION_HEADER_MAX_BYTES, OPERATION_PAYLOAD_MAX_BYTES};

/// Position of an operation in its author's log, from 0, without gaps.
pub type SeqNum = u32;

/// Version of the body envelope.
const ENVELOPE_VERSION: u64 = 1;

/// The newest operation of one author: its sequence number and its id. Two forks of equal length differ in the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Sequence number of the newest operation.
    pub seq_num: SeqNum,
    /// Its id.
    pub id: OperationId,
}

/// A signed operation of one author in one document, verified. Clones are cheap: they share their bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Operation {
    id: OperationId,
    author: PeerId,
    seq_num: SeqNum,
    backlink: Option<OperationId>,
    timestamp_us: u64,
    header: Bytes,
    body: Bytes,
    payload_offset: usize,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Operation({} #{}, {} bytes)", self.author.short(), self.seq_num, self.body.len())
    }
}

impl Operation {
    /// Signs `payload` as the operation that follows `head` in the author's log.
    ///
    /// Hidden, and public for the benchmarks alone: whoever signs past the store's writer, which knows the head, forks its log.
    ///
    /// # Errors
    /// [`OperationError::PayloadTooLarge`] over the limit; [`OperationError::Invalid`] when the log is full (2³² operations).
    #[doc(hidden)]
    pub fn sign(
        identity: &Identity,
        log: LogId,
        head: Option<Head>,
        timestamp_us: u64,
        payload: &[u8],
    ) -> Result<Self, OperationError> {
        check_payload(payload.len())?;
        let seq_num = match head {
            None => 0,
            Some(head) => head
                .seq_num
                .checked_add(1)
                .ok_or_else(|| OperationError::Invalid("this author's log is full".into()))?,
        };
        let backlink = head.map(|head| head.id);
        let body = seal_envelope(payload);
        let extensions = NodeExtensions::Basic { log_id: log.hash(), timestamp_us, prune: false };
        let header = Header::builder()
            .seq_num(seq_num)
            .backlink(backlink.map(|id| id.hash()))
            .body(&body)
            .build(identity.signing_key(), extensions);
        Ok(Self {
            id: header.hash().into(),
            author: identity.peer_id(),
            seq_num,
            backlink,
            timestamp_us,
            payload_offset: body.len() - payload.len(),
            header: header.encode().into(),
            body,
        })
    }

    /// Decodes and verifies an operation of the log `log`: sizes first, then the signature, then what it says.
    ///
    /// # Errors
    /// [`OperationError`], one variant per way in which the sender erred.
    pub fn decode(log: LogId, header: Bytes, body: Bytes) -> Result<Self, OperationError> {
        let decoded = decode_header(&header, body.len())?;
        validate_header(&decoded).map_err(|error| OperationError::Invalid(error.to_string()))?;
        if decoded.payload_size as usize != body.len() || decoded.payload_hash != Some(Hash::digest(&body)) {
            return Err(OperationError::Invalid("payload hash and size do not match the body".into()));
        }
        Self::assemble(log, decoded, header, body)
    }

    /// Reads back an operation that was verified before it was stored. The signature is not checked again; the hashes are,
    /// since a disk may change what was written.
    pub(crate) fn from_store(id: OperationId, author: PeerId, row: StoredParts) -> Result<Self, OperationError> {
        let payload_offset = open_envelope(&row.body)?;
        let intact =
            Hash::digest(&row.header) == id.hash() && payload_hash(&row.header) == Some(Hash::digest(&row.body));
        if !intact {
            return Err(OperationError::Invalid("it is not what was written any more".into()));
        }
        Ok(Self {
            id,
            author,
            seq_num: row.seq_num,
            backlink: row.backlink,
            timestamp_us: row.timestamp_us,
            header: row.header,
            body: row.body,
            payload_offset,
        })
    }

    fn assemble(
        log: LogId,
        decoded: Header<NodeExtensions>,
        header: Bytes,
        body: Bytes,
    ) -> Result<Self, OperationError> {
        let (log_id, timestamp_us) = match decoded.extensions {
            NodeExtensions::Basic { log_id, timestamp_us, .. } => (log_id, timestamp_us),
            NodeExtensions::Unknown { version, variant } => {
                return Err(OperationError::UnknownExtensions { version, variant });
            }
        };
        if log_id != log.hash() {
            return Err(OperationError::WrongLog);
        }
        Ok(Self {
            id: decoded.hash().into(),
            author: decoded.verifying_key.into(),
            seq_num: decoded.seq_num,
            backlink: decoded.backlink.map(Into::into),
            timestamp_us,
            payload_offset: open_envelope(&body)?,
            header,
            body,
        })
    }

    /// BLAKE3 of the header.
    pub fn id(&self) -> OperationId {
        self.id
    }

    /// Who signed it.
    pub fn author(&self) -> PeerId {
        self.author
    }

    /// Its place in the author's log, from 0.
    pub fn seq_num(&self) -> SeqNum {
        self.seq_num
    }

    /// Id of the author's operation before it, `None` for the first.
    pub fn backlink(&self) -> Option<OperationId> {
        self.backlink
    }

    /// When the author says it was made, in µs since the Unix epoch. Not trustworthy: the author's clock.
    pub fn timestamp_us(&self) -> u64 {
        self.timestamp_us
    }

    /// What the editor published, without our envelope.
    pub fn payload(&self) -> &[u8] {
        &self.body[self.payload_offset..]
    }

    /// The payload as shared bytes, without copying.
    pub fn payload_bytes(&self) -> Bytes {
        self.body.slice(self.payload_offset..)
    }

    /// The encoded header, as signed.
    pub fn header(&self) -> &Bytes {
        &self.header
    }

    /// The body: the envelope around the payload.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Bytes of header and body together.
    pub fn size(&self) -> usize {
        self.header.len() + self.body.len()
    }

    /// Sequence number and id, as the newest of its log.
    pub fn head(&self) -> Head {
        Head { seq_num: self.seq_num, id: self.id }
    }
}

/// What the store keeps of an operation beside its id and author.
#[derive(Debug)]
pub(crate) struct StoredParts {
    pub seq_num: SeqNum,
    pub backlink: Option<OperationId>,
    pub timestamp_us: u64,
    pub header: Bytes,
    pub body: Bytes,
}

/// Checks the size of a payload before anything is computed with it.
pub(crate) fn check_payload(actual: usize) -> Result<(), OperationError> {
    match actual {
        0..=OPERATION_PAYLOAD_MAX_BYTES => Ok(()),
        _ => Err(OperationError::PayloadTooLarge { actual, limit: OPERATION_PAYLOAD_MAX_BYTES }),
    }
}

fn decode_header(header: &[u8], body_len: usize) -> Result<Header<NodeExtensions>, OperationError> {
    if header.len() > OPERATION_HEADER_MAX_BYTES {
        return Err(OperationError::HeaderTooLarge { actual: header.len(), limit: OPERATION_HEADER_MAX_BYTES });
    }
    check_payload(body_len.saturating_sub(ENVELOPE_OVERHEAD_MAX_BYTES))?;
    Header::decode(header).map_err(|error| OperationError::Header(error.to_string()))
}

/// The hash of the body as the header has it: after version, key, signature and size.
fn payload_hash(header: &[u8]) -> Option<Hash> {
    let mut decoder = minicbor::Decoder::new(header);
    decoder.array().ok()?;
    for _ in 0..4 {
        decoder.skip().ok()?;
    }
    Hash::try_from(decoder.bytes().ok()?).ok()
}

/// `[1, payload]` in canonical CBOR. Hidden, and public for the benchmarks alone.
#[doc(hidden)]
pub fn seal_envelope(payload: &[u8]) -> Bytes {
    let mut encoder = minicbor::Encoder::new(Vec::with_capacity(payload.len() + ENVELOPE_OVERHEAD_MAX_BYTES));
    // Writing to a Vec cannot fail.
    let _ = encoder.array(2).and_then(|e| e.u64(ENVELOPE_VERSION)).and_then(|e| e.bytes(payload));
    encoder.into_writer().into()
}

/// Where the payload starts in an envelope; it always ends with the envelope. Hidden, and public for the benchmarks alone.
///
/// # Errors
/// [`OperationError::Envelope`] when it is not one.
#[doc(hidden)]
pub fn open_envelope(body: &[u8]) -> Result<usize, OperationError> {
    let mut decoder = minicbor::Decoder::new(body);
    if !matches!(decoder.array(), Ok(Some(2))) {
        return Err(OperationError::Envelope("expected an array of two"));
    }
    match decoder.u64() {
        Ok(ENVELOPE_VERSION) => {}
        Ok(_) => return Err(OperationError::Envelope("unknown version; update panda-network")),
        Err(_) => return Err(OperationError::Envelope("expected a version number")),
    }
    let payload = decoder.bytes().map_err(|_| OperationError::Envelope("expected a byte string"))?;
    if decoder.position() != body.len() {
        return Err(OperationError::Envelope("bytes after the payload"));
    }
    Ok(body.len() - payload.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> Identity {
        Identity::from_seed(&[1; 32])
    }

    fn log() -> LogId {
        LogId::from([9; 32])
    }

    #[test]
    fn a_signed_operation_decodes_to_itself() {
        let first = Operation::sign(&alice(), log(), None, 5, b"hello").unwrap();
        let second = Operation::sign(&alice(), log(), Some(first.head()), 6, b"").unwrap();
        for operation in [&first, &second] {
            let decoded = Operation::decode(log(), operation.header.clone(), operation.body.clone()).unwrap();
            assert_eq!(&decoded, operation);
        }
        assert_eq!(first.payload(), b"hello");
        assert_eq!(second.backlink(), Some(first.id()));
        assert_eq!((first.seq_num(), second.seq_num()), (0, 1));
    }

    #[test]
    fn no_single_damaged_byte_is_accepted() {
        let operation = Operation::sign(&alice(), log(), None, 5, b"hello").unwrap();
        let (header, body) = (operation.header.to_vec(), operation.body.to_vec());
        for index in 0..header.len() + body.len() {
            let (mut header, mut body) = (header.clone(), body.clone());
            match index.checked_sub(header.len()) {
                None => header[index] ^= 1,
                Some(index) => body[index] ^= 1,
            }
            assert!(Operation::decode(log(), header.into(), body.into()).is_err(), "byte {index}");
        }
    }

    #[test]
    fn no_single_byte_that_the_disk_changed_is_read_back() {
        let operation = Operation::sign(&alice(), log(), None, 5, b"hello").unwrap();
        let parts = |header: &[u8], body: &[u8]| StoredParts {
            seq_num: 0,
            backlink: None,
            timestamp_us: 5,
            header: Bytes::copy_from_slice(header),
            body: Bytes::copy_from_slice(body),
        };
        let read = |parts| Operation::from_store(operation.id(), operation.author(), parts);
        assert_eq!(read(parts(&operation.header, &operation.body)).as_ref(), Ok(&operation));
        for index in 0..operation.size() {
            let (mut header, mut body) = (operation.header.to_vec(), operation.body.to_vec());
            match index.checked_sub(header.len()) {
                None => header[index] ^= 1,
                Some(index) => body[index] ^= 1,
            }
            assert!(read(parts(&header, &body)).is_err(), "byte {index}");
        }
    }

    #[test]
    fn an_operation_of_another_document_is_refused() {
        let operation = Operation::sign(&alice(), log(), None, 5, b"hello").unwrap();
        let other = LogId::from([8; 32]);
        assert_eq!(
            Operation::decode(other, operation.header.clone(), operation.body.clone()),
            Err(OperationError::WrongLog)
        );
    }

    #[test]
    fn sizes_are_checked_before_anything_is_computed() {
        let huge = Bytes::from(vec![0; OPERATION_PAYLOAD_MAX_BYTES + ENVELOPE_OVERHEAD_MAX_BYTES + 1]);
        assert!(matches!(
            Operation::decode(log(), Bytes::new(), huge.clone()),
            Err(OperationError::PayloadTooLarge { .. })
        ));
        assert!(matches!(
            Operation::decode(log(), Bytes::from(vec![0; 2000]), Bytes::new()),
            Err(OperationError::HeaderTooLarge { actual: 2000, .. })
        ));
        assert!(matches!(
            Operation::sign(&alice(), log(), None, 0, &huge),
            Err(OperationError::PayloadTooLarge { .. })
        ));
    }
}
