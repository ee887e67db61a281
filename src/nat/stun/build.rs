//! Messages on their way out. None gets its bytes without what makes it acceptable to the other side.
//!
//! A [`Request`] is encoded by sealing it with a fresh transaction id. A [`Response`] takes id and method from the request
//! that it answers. Both end with a FINGERPRINT, so that the other side can tell them from its other traffic.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytecodec::EncodeExt;
use stun_codec::{MessageClass, MessageEncoder, Method as WireMethod, TransactionId as WireId};

use super::attribute::{FINGERPRINT, MESSAGE_INTEGRITY, PADDING, Wire};
use super::key::HMAC_BYTES;
use super::message::Class;
use super::scan::{ATTRIBUTE_HEADER_BYTES, Scanned, fingerprint, set_length};
use super::{AddressFamily, Attribute, ChannelNumber, ErrorCode, IntegrityKey, Method, StunError, TransactionId};
use crate::limits::{STUN_MAX_ATTRIBUTES, STUN_MESSAGE_MAX_BYTES};

/// RFC 8656 §18.7: relayed traffic is UDP.
const UDP: u8 = 17;
/// What the end of a message takes: FINGERPRINT, and MESSAGE-INTEGRITY when it is signed.
const FINGERPRINT_TOTAL: usize = ATTRIBUTE_HEADER_BYTES + 4;
const INTEGRITY_TOTAL: usize = ATTRIBUTE_HEADER_BYTES + HMAC_BYTES;

/// A request that nobody has been asked yet. It may be sealed again and again, each time as a new transaction.
#[derive(Debug, Clone)]
pub struct Request {
    method: Method,
    attributes: Vec<Attribute>,
    total_bytes: usize,
}

/// A request as it goes out, again and again until it is answered or given up.
#[derive(Debug, Clone)]
pub struct Sealed {
    id: TransactionId,
    bytes: Vec<u8>,
}

impl Sealed {
    /// What the response will repeat.
    pub fn transaction_id(&self) -> TransactionId {
        self.id
    }

    /// What to send.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Request {
    /// How do you see me; with credentials a connectivity check (RFC 8489 §3).
    pub fn binding() -> Self {
        Self::new(Method::Binding)
    }

    /// A relayed UDP address of this family, for about that long (RFC 8656 §7.1).
    pub fn allocate(family: AddressFamily, lifetime: Duration) -> Self {
        let request = Self::new(Method::Allocate).with(Attribute::RequestedTransport(UDP));
        let request = request.with(Attribute::Lifetime(lifetime));
        match family {
            // IPv4 is what servers give without being asked, also those that do not know the attribute.
            AddressFamily::V4 => request,
            AddressFamily::V6 => request.with(Attribute::RequestedAddressFamily(family)),
        }
    }

    /// Relayed UDP addresses of both families, or of the one that the server has (RFC 8656 §7.1). A server that does not know
    /// of this gives IPv4 alone.
    pub fn allocate_both(lifetime: Duration) -> Self {
        let request = Self::allocate(AddressFamily::V4, lifetime);
        let request = request.with(Attribute::AdditionalAddressFamily(AddressFamily::V6));
        request.with(Attribute::DraftAdditionalAddressFamily(AddressFamily::V6))
    }

    /// Keeps an allocation for about that long; zero deletes it (RFC 8656 §8.1).
    pub fn refresh(lifetime: Duration) -> Self {
        Self::new(Method::Refresh).with(Attribute::Lifetime(lifetime))
    }

    /// Lets a host send to us (RFC 8656 §10.1).
    pub fn create_permission(peer: IpAddr) -> Self {
        // The port has no meaning here.
        Self::new(Method::CreatePermission).with(Attribute::XorPeerAddress(SocketAddr::new(peer, 0)))
    }

    /// Gives a peer a channel (RFC 8656 §12.1).
    pub fn channel_bind(channel: ChannelNumber, peer: SocketAddr) -> Self {
        Self::new(Method::ChannelBind).with(Attribute::Channel(channel)).with(Attribute::XorPeerAddress(peer))
    }

    fn new(method: Method) -> Self {
        Self { method, attributes: Vec::new(), total_bytes: 0 }
    }

    /// Adds an attribute.
    pub fn with(mut self, attribute: Attribute) -> Self {
        self.attributes.push(attribute);
        self
    }

    /// Fills up with PADDING to this size in bytes, rounded up to four, to try what fits the path (RFC 5780 §7.6). A
    /// message that is larger already, or by less than the four bytes of an attribute, may come out larger. Over
    /// `STUN_MESSAGE_MAX_BYTES` it cannot be sealed.
    pub fn padded_to(mut self, total_bytes: usize) -> Self {
        self.total_bytes = total_bytes;
        self
    }

    /// Encodes it under a fresh transaction id, signed if there is a key.
    ///
    /// # Errors
    /// [`StunError::Unencodable`]: a text or the whole is over its limit.
    pub fn seal(&self, id: TransactionId, key: Option<&IntegrityKey>) -> Result<Sealed, StunError> {
        let bytes = encode(Class::Request, self.method, id, &self.attributes, self.total_bytes, key)?;
        Ok(Sealed { id, bytes })
    }
}

/// A Binding indication: a packet that keeps a NAT's mapping and asks for nothing (RFC 8489 §6.1).
///
/// # Errors
/// None in practice: [`StunError::Unencodable`].
pub fn keep_alive(id: TransactionId) -> Result<Vec<u8>, StunError> {
    encode(Class::Indication, Method::Binding, id, &[], 0, None)
}

/// The answer to one request.
#[derive(Debug, Clone)]
pub struct Response {
    class: Class,
    method: Method,
    id: TransactionId,
    attributes: Vec<Attribute>,
}

impl Response {
    /// It was done.
    pub fn success(request: &Scanned<'_>) -> Self {
        Self::new(Class::Success, request)
    }

    /// It was not.
    pub fn error(request: &Scanned<'_>, code: ErrorCode) -> Self {
        Self::new(Class::Error, request).with(Attribute::Error(code))
    }

    /// It was not understood: 420 with the types (RFC 8489 §6.3.1).
    pub fn unknown_attributes(request: &Scanned<'_>, types: &[u16]) -> Self {
        Self::error(request, ErrorCode::UnknownAttribute).with(Attribute::UnknownAttributes(types.to_vec()))
    }

    fn new(class: Class, request: &Scanned<'_>) -> Self {
        Self { class, method: request.method(), id: request.transaction_id(), attributes: Vec::new() }
    }

    /// Adds an attribute.
    pub fn with(mut self, attribute: Attribute) -> Self {
        self.attributes.push(attribute);
        self
    }

    /// Encodes it, signed if there is a key.
    ///
    /// # Errors
    /// [`StunError::Unencodable`]: a text or the whole is over its limit.
    pub fn encode(&self, key: Option<&IntegrityKey>) -> Result<Vec<u8>, StunError> {
        encode(self.class, self.method, self.id, &self.attributes, 0, key)
    }
}

fn encode(
    class: Class,
    method: Method,
    id: TransactionId,
    attributes: &[Attribute],
    total_bytes: usize,
    key: Option<&IntegrityKey>,
) -> Result<Vec<u8>, StunError> {
    // Padding, integrity and fingerprint are attributes as well.
    if attributes.len() + 3 > STUN_MAX_ATTRIBUTES || total_bytes > STUN_MESSAGE_MAX_BYTES {
        return Err(StunError::Unencodable);
    }
    let class = match class {
        Class::Request => MessageClass::Request,
        Class::Indication => MessageClass::Indication,
        Class::Success => MessageClass::SuccessResponse,
        Class::Error => MessageClass::ErrorResponse,
    };
    let method = WireMethod::new(method.number()).map_err(|_| StunError::Unencodable)?;
    let mut message = stun_codec::Message::<Wire>::new(class, method, WireId::new(*id.as_bytes()));
    for attribute in attributes.iter().filter(|attribute| attribute.to_raw().is_none()) {
        message.add_attribute(attribute.to_wire()?);
    }
    let mut bytes = MessageEncoder::new().encode_into_bytes(message).map_err(|_| StunError::Unencodable)?;
    for (kind, value) in attributes.iter().filter_map(Attribute::to_raw) {
        append(&mut bytes, kind, &value);
    }
    let ends = FINGERPRINT_TOTAL + key.map_or(0, |_| INTEGRITY_TOTAL);
    if bytes.len() + ends < total_bytes {
        let length = total_bytes.saturating_sub(bytes.len() + ends + ATTRIBUTE_HEADER_BYTES);
        append(&mut bytes, PADDING, &vec![0; length.next_multiple_of(4)]);
    }
    if bytes.len() + ends > STUN_MESSAGE_MAX_BYTES {
        return Err(StunError::Unencodable);
    }
    if let Some(key) = key {
        let end = bytes.len() + INTEGRITY_TOTAL;
        set_length(&mut bytes, end);
        let code = key.sign(&bytes);
        append(&mut bytes, MESSAGE_INTEGRITY, &code);
    }
    let end = bytes.len() + FINGERPRINT_TOTAL;
    set_length(&mut bytes, end);
    let checksum = fingerprint(&bytes);
    append(&mut bytes, FINGERPRINT, &checksum);
    Ok(bytes)
}

/// Appends an attribute whose value is at most `STUN_MESSAGE_MAX_BYTES` long.
fn append(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&(value.len() as u16).to_be_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
