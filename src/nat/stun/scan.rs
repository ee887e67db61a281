//! The bounded first look at a message: where its attributes are, and that its lengths and its fingerprint are right.
//!
//! Allocates nothing and costs one pass, so it may be done for every datagram of a stranger. [`Scanned::check_integrity`]
//! costs one HMAC; [`Scanned::decode`] allocates at most what the message is long. Which comes first is the caller's
//! order: transaction id, integrity, attributes.

use std::ops::Range;

use bytecodec::DecodeExt;
use crc::{CRC_32_ISO_HDLC, Crc};
use stun_codec::MessageDecoder;

use super::attribute::{
    Attribute, COMPREHENSION_OPTIONAL, DATA, FINGERPRINT, MESSAGE_INTEGRITY, Wire, XOR_PEER_ADDRESS,
};
use super::key::HMAC_BYTES;
use super::message::{Class, Message, Method, split_type};
use super::{HEADER_BYTES, IntegrityKey, StunError, TransactionId, is_stun};
use crate::limits::{STUN_MAX_ATTRIBUTES, STUN_MESSAGE_MAX_BYTES, TURN_FRAME_MAX_BYTES};

/// Type and length of an attribute (RFC 8489 §14).
pub(super) const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// RFC 8489 §14.7: the checksum is of the message as it would be without it but for the length.
const FINGERPRINT_BYTES: usize = 4;
const FINGERPRINT_XOR: u32 = 0x5354_554E;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// The checksum of a message up to its FINGERPRINT, whose length already counts it.
pub(super) fn fingerprint(message: &[u8]) -> [u8; FINGERPRINT_BYTES] {
    (CRC.checksum(message) ^ FINGERPRINT_XOR).to_be_bytes()
}

/// A message whose bounds are checked and whose attributes are not looked at yet.
#[derive(Debug, Clone)]
pub struct Scanned<'a> {
    bytes: &'a [u8],
    class: Class,
    method: Method,
    id: TransactionId,
    /// End of the attributes that count: what follows MESSAGE-INTEGRITY is not protected by it (RFC 8489 §14.5).
    end: usize,
    integrity_at: Option<usize>,
    peer: Option<Range<usize>>,
    data: Option<Range<usize>>,
}

impl<'a> Scanned<'a> {
    /// Looks at one whole message: a datagram, or what the [framer](crate::nat::framing) cut out of a stream.
    ///
    /// # Errors
    /// The sender's [`StunError`]. Drop the message, silently.
    pub fn scan(bytes: &'a [u8]) -> Result<Self, StunError> {
        if !is_stun(bytes) {
            return Err(StunError::NotStun);
        }
        let (class, method) = split_type(number(bytes, 0));
        let method = Method::from_number(method).ok_or(StunError::UnknownMethod(method))?;
        let max = match method {
            Method::Send | Method::Data => TURN_FRAME_MAX_BYTES,
            Method::Binding | Method::Allocate | Method::Refresh | Method::CreatePermission | Method::ChannelBind => {
                STUN_MESSAGE_MAX_BYTES
            }
        };
        if bytes.len() > max {
            return Err(StunError::TooLarge { actual: bytes.len(), max });
        }
        let (announced, actual) = (usize::from(number(bytes, 2)), bytes.len() - HEADER_BYTES);
        if announced != actual || !announced.is_multiple_of(4) {
            return Err(StunError::Length { announced, actual });
        }
        let mut id = [0; 12];
        id.copy_from_slice(&bytes[8..HEADER_BYTES]);
        let id = TransactionId::from_random(id);
        let mut scanned =
            Self { bytes, class, method, id, end: bytes.len(), integrity_at: None, peer: None, data: None };
        scanned.walk()?;
        Ok(scanned)
    }

    fn walk(&mut self) -> Result<(), StunError> {
        let (mut at, mut count) = (HEADER_BYTES, 0);
        while at < self.bytes.len() {
            count += 1;
            if count > STUN_MAX_ATTRIBUTES {
                return Err(StunError::TooManyAttributes);
            }
            // All lengths are multiples of four, so the header of an attribute is always there.
            let (kind, length) = (number(self.bytes, at), usize::from(number(self.bytes, at + 2)));
            let value = at + ATTRIBUTE_HEADER_BYTES..at + ATTRIBUTE_HEADER_BYTES + length;
            let next = value.start + length.next_multiple_of(4);
            if next > self.bytes.len() {
                return Err(StunError::Truncated(kind));
            }
            match kind {
                MESSAGE_INTEGRITY if self.integrity_at.is_some() || length != HMAC_BYTES => {
                    return Err(StunError::Misplaced(kind));
                }
                MESSAGE_INTEGRITY => (self.integrity_at, self.end) = (Some(at), at),
                FINGERPRINT if next != self.bytes.len() || length != FINGERPRINT_BYTES => {
                    return Err(StunError::Misplaced(kind));
                }
                FINGERPRINT if self.bytes[value.clone()] != fingerprint(&self.bytes[..at]) => {
                    return Err(StunError::WrongFingerprint);
                }
                FINGERPRINT => self.end = self.end.min(at),
                XOR_PEER_ADDRESS if self.integrity_at.is_none() => _ = self.peer.get_or_insert(value),
                DATA if self.integrity_at.is_none() => _ = self.data.get_or_insert(value),
                _ => {}
            }
            at = next;
        }
        Ok(())
    }

    /// Request, indication or response.
    pub fn class(&self) -> Class {
        self.class
    }

    /// What it is about.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Compare this before anything else.
    pub fn transaction_id(&self) -> TransactionId {
        self.id
    }

    /// Whether there is a MESSAGE-INTEGRITY, right or wrong.
    pub fn is_signed(&self) -> bool {
        self.integrity_at.is_some()
    }

    /// Checks MESSAGE-INTEGRITY, in constant time.
    ///
    /// # Errors
    /// [`StunError::Unsigned`], [`StunError::WrongIntegrity`].
    pub fn check_integrity(&self, key: &IntegrityKey) -> Result<(), StunError> {
        let at = self.integrity_at.ok_or(StunError::Unsigned)?;
        let value = at + ATTRIBUTE_HEADER_BYTES;
        // RFC 8489 §14.5: the header's length counts up to the end of MESSAGE-INTEGRITY.
        let signed = self.cut(at, value + HMAC_BYTES);
        if key.verify(&signed, &self.bytes[value..value + HMAC_BYTES]) {
            Ok(())
        } else {
            Err(StunError::WrongIntegrity)
        }
    }

    /// Decodes the attributes before MESSAGE-INTEGRITY or FINGERPRINT. Says nothing about who sent them.
    ///
    /// # Errors
    /// [`StunError::InvalidValue`]: one of ours has a value that it cannot have.
    pub fn decode(&self) -> Result<Message, StunError> {
        let bytes = self.cut(self.end, self.end);
        let decoded = MessageDecoder::<Wire>::new().decode_from_bytes(&bytes);
        let Ok(Ok(wire)) = decoded else { return Err(StunError::InvalidValue) };
        let mut attributes = wire.attributes().map(Attribute::from_wire).collect::<Result<Vec<_>, _>>()?;
        let mut unknown = Vec::new();
        for raw in wire.unknown_attributes() {
            let kind = stun_codec::Attribute::get_type(raw).as_u16();
            match Attribute::from_raw(kind, raw.value()) {
                Some(attribute) => attributes.push(attribute?),
                None if kind < COMPREHENSION_OPTIONAL => unknown.push(kind),
                None => {}
            }
        }
        Ok(Message { class: self.class, method: self.method, id: self.id, attributes, unknown })
    }

    /// The first `end` bytes, with a header that announces attributes up to `announced_end`.
    fn cut(&self, end: usize, announced_end: usize) -> Vec<u8> {
        let mut bytes = self.bytes[..end].to_vec();
        set_length(&mut bytes, announced_end);
        bytes
    }

    pub(super) fn peer_value(&self) -> Option<&'a [u8]> {
        self.peer.clone().map(|range| &self.bytes[range])
    }

    pub(super) fn data_range(&self) -> Option<Range<usize>> {
        self.data.clone()
    }
}

/// Writes the length of a message that ends at `end` into its header. `end` is at most `TURN_FRAME_MAX_BYTES`.
pub(super) fn set_length(message: &mut [u8], end: usize) {
    let length = u16::try_from(end - HEADER_BYTES).unwrap_or(u16::MAX);
    message[2..4].copy_from_slice(&length.to_be_bytes());
}

fn number(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
