//! The attributes that we use, as values that cannot be malformed, and their way to and from `stun_codec`.
//!
//! MESSAGE-INTEGRITY and FINGERPRINT are no attributes here: they are checked by [`Scanned`](super::Scanned) and made by
//! sealing. What `stun_codec` does not know is read and written here, and CHANGE-REQUEST, whose flags it reads one bit too low.

use std::net::SocketAddr;
use std::time::Duration;

use stun_codec::rfc5245::attributes::Priority;
use stun_codec::rfc5389::attributes::{
    AlternateServer, ErrorCode as WireErrorCode, MappedAddress, Nonce, Realm, UnknownAttributes, Username,
    XorMappedAddress,
};
use stun_codec::rfc5766::attributes::{
    ChannelNumber as WireChannelNumber, Data, Lifetime, RequestedTransport, XorPeerAddress, XorRelayAddress,
};
use stun_codec::rfc5780::attributes::{OtherAddress, ResponseOrigin};
use stun_codec::rfc8656::attributes::{AddressFamily as WireFamily, RequestedAddressFamily};
use stun_codec::{AttributeType, define_attribute_enums};

use super::StunError;
use crate::limits::{STUN_MAX_ATTRIBUTES, STUN_MESSAGE_MAX_BYTES, STUN_TEXT_MAX_BYTES};

/// RFC 5780 §7.2, and its flags.
const CHANGE_REQUEST: u16 = 0x0003;
const CHANGE_IP: u8 = 0x04;
const CHANGE_PORT: u8 = 0x02;
/// RFC 5780 §7.6.
pub(super) const PADDING: u16 = 0x0026;
/// RFC 8489 §14.5.
pub(super) const MESSAGE_INTEGRITY: u16 = 0x0008;
/// RFC 8489 §14.7.
pub(super) const FINGERPRINT: u16 = 0x8028;
/// RFC 8656 §18.3.
pub(super) const XOR_PEER_ADDRESS: u16 = 0x0012;
/// RFC 8656 §18.4.
pub(super) const DATA: u16 = 0x0013;
/// RFC 8656 §18.11.
const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
/// The number that it had in the draft (SSODA) and that coturn still gives it.
const DRAFT_ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8032;
/// RFC 8656 §18.12.
const ADDRESS_ERROR_CODE: u16 = 0x8001;
/// Types below must be understood by whoever gets them (RFC 8489 §14).
pub(super) const COMPREHENSION_OPTIONAL: u16 = 0x8000;

define_attribute_enums!(
    Wire,
    WireDecoder,
    WireEncoder,
    [
        AlternateServer,
        WireChannelNumber,
        Data,
        WireErrorCode,
        Lifetime,
        MappedAddress,
        Nonce,
        OtherAddress,
        Priority,
        Realm,
        RequestedAddressFamily,
        RequestedTransport,
        ResponseOrigin,
        UnknownAttributes,
        Username,
        XorMappedAddress,
        XorPeerAddress,
        XorRelayAddress
    ]
);

/// One attribute. Texts are at most `STUN_TEXT_MAX_BYTES` long: longer ones are not encoded, and not decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Attribute {
    /// Asks for a relayed address of this family besides that of IPv4 (RFC 8656 §18.11).
    AdditionalAddressFamily(AddressFamily),
    /// The same by the number that coturn knows.
    DraftAdditionalAddressFamily(AddressFamily),
    /// Why there is no relayed address of this family beside the one of the other (RFC 8656 §18.12).
    AddressError(AddressFamily, ErrorCode),
    /// Another server to ask (RFC 8489 §14.15).
    AlternateServer(SocketAddr),
    /// Asks for a response from elsewhere (RFC 5780 §7.2).
    ChangeRequest {
        /// From the server's other IP address.
        ip: bool,
        /// From its other port.
        port: bool,
    },
    /// RFC 8656 §18.1.
    Channel(ChannelNumber),
    /// A payload (RFC 8656 §18.4). The data path does without this copy: [`relayed`](super::relayed).
    Data(Vec<u8>),
    /// Why a request failed (RFC 8489 §14.8). The text beside the number is for people and is dropped.
    Error(ErrorCode),
    /// How long an allocation lives, in whole seconds (RFC 8656 §18.2).
    Lifetime(Duration),
    /// The sender as the server sees it, in plain (RFC 8489 §14.1): NATs may rewrite it.
    MappedAddress(SocketAddr),
    /// RFC 8489 §14.10.
    Nonce(String),
    /// The server's other address and port (RFC 5780 §7.4).
    OtherAddress(SocketAddr),
    /// Zeros that make a message larger: how many (RFC 5780 §7.6). See [`Request::padded_to`](super::Request::padded_to).
    Padding(u16),
    /// RFC 8445 §16.1.
    Priority(u32),
    /// RFC 8489 §14.9.
    Realm(String),
    /// RFC 8656 §18.6.
    RequestedAddressFamily(AddressFamily),
    /// A protocol number; 17 is UDP (RFC 8656 §18.7).
    RequestedTransport(u8),
    /// Where the response was sent from (RFC 5780 §7.3).
    ResponseOrigin(SocketAddr),
    /// Comprehension-required attributes that the server does not know (RFC 8489 §14.13).
    UnknownAttributes(Vec<u16>),
    /// RFC 8489 §14.3.
    Username(String),
    /// The sender as the server sees it (RFC 8489 §14.2).
    XorMappedAddress(SocketAddr),
    /// RFC 8656 §18.3.
    XorPeerAddress(SocketAddr),
    /// RFC 8656 §18.5.
    XorRelayedAddress(SocketAddr),
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl AddressFamily {
    /// RFC 8656 §18.6.
    fn number(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 2,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| family.number() == number)
    }

    /// The family of an address.
    pub fn of(address: &SocketAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The number of a channel, 0x4000 to 0x4FFF (RFC 8656 §12).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelNumber(u16);

impl ChannelNumber {
    /// The smallest.
    pub const MIN: Self = Self(0x4000);
    /// The largest.
    pub const MAX: Self = Self(0x4FFF);

    /// `None` outside of 0x4000 to 0x4FFF.
    pub const fn new(number: u16) -> Option<Self> {
        if number >= Self::MIN.0 && number <= Self::MAX.0 { Some(Self(number)) } else { None }
    }

    /// The number.
    pub const fn value(self) -> u16 {
        self.0
    }
}

/// Why a request failed (RFC 8489 §14.8, RFC 8656 §19).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// 300: ask the server of ALTERNATE-SERVER.
    TryAlternate,
    /// 400.
    BadRequest,
    /// 401: credentials are missing or wrong.
    Unauthorized,
    /// 403: the server's policy forbids it.
    Forbidden,
    /// 420: see UNKNOWN-ATTRIBUTES.
    UnknownAttribute,
    /// 437: there is no allocation, or there is one already.
    AllocationMismatch,
    /// 438: the nonce is too old; sign again with the one beside it.
    StaleNonce,
    /// 440.
    AddressFamilyNotSupported,
    /// 441: not the credentials of the allocation.
    WrongCredentials,
    /// 442.
    UnsupportedTransport,
    /// 443: the peer's address is of another family than the relayed one.
    PeerFamilyMismatch,
    /// 486.
    AllocationQuotaReached,
    /// 500.
    ServerError,
    /// 508.
    InsufficientCapacity,
    /// Another one, 300 to 599. (RFC 8489 goes to 699, `stun_codec` does not; nobody uses those.)
    Other(u16),
}

/// All codes that have a name, with the text that goes out beside them.
const ERROR_CODES: [(ErrorCode, u16, &str); 14] = [
    (ErrorCode::TryAlternate, 300, "Try Alternate"),
    (ErrorCode::BadRequest, 400, "Bad Request"),
    (ErrorCode::Unauthorized, 401, "Unauthenticated"),
    (ErrorCode::Forbidden, 403, "Forbidden"),
    (ErrorCode::UnknownAttribute, 420, "Unknown Attribute"),
    (ErrorCode::AllocationMismatch, 437, "Allocation Mismatch"),
    (ErrorCode::StaleNonce, 438, "Stale Nonce"),
    (ErrorCode::AddressFamilyNotSupported, 440, "Address Family not Supported"),
    (ErrorCode::WrongCredentials, 441, "Wrong Credentials"),
    (ErrorCode::UnsupportedTransport, 442, "Unsupported Transport Protocol"),
    (ErrorCode::PeerFamilyMismatch, 443, "Peer Address Family Mismatch"),
    (ErrorCode::AllocationQuotaReached, 486, "Allocation Quota Reached"),
    (ErrorCode::ServerError, 500, "Server Error"),
    (ErrorCode::InsufficientCapacity, 508, "Insufficient Capacity"),
];

impl ErrorCode {
    /// The code with this number.
    pub fn from_number(number: u16) -> Self {
        ERROR_CODES.iter().find(|(_, known, _)| *known == number).map_or(Self::Other(number), |(code, ..)| *code)
    }

    /// Its number.
    pub fn number(self) -> u16 {
        match self {
            Self::Other(number) => number,
            named => ERROR_CODES.iter().find(|(code, ..)| *code == named).map_or(500, |(_, number, _)| *number),
        }
    }

    fn text(self) -> &'static str {
        ERROR_CODES.iter().find(|(code, ..)| *code == self).map_or("", |(.., text)| text)
    }
}

impl Attribute {
    /// Type and value of those that `stun_codec` does not write.
    pub(super) fn to_raw(&self) -> Option<(u16, Vec<u8>)> {
        match self {
            Self::ChangeRequest { ip, port } => {
                let flags = (u8::from(*ip) * CHANGE_IP) | (u8::from(*port) * CHANGE_PORT);
                Some((CHANGE_REQUEST, vec![0, 0, 0, flags]))
            }
            Self::AdditionalAddressFamily(family) => Some((ADDITIONAL_ADDRESS_FAMILY, vec![family.number(), 0, 0, 0])),
            Self::DraftAdditionalAddressFamily(family) => {
                Some((DRAFT_ADDITIONAL_ADDRESS_FAMILY, vec![family.number(), 0, 0, 0]))
            }
            Self::AddressError(family, code) => {
                let (class, number) = ((code.number() / 100) as u8, (code.number() % 100) as u8);
                Some((ADDRESS_ERROR_CODE, [&[family.number(), 0, class, number], code.text().as_bytes()].concat()))
            }
            // More than the message may have is noticed later.
            Self::Padding(length) => Some((PADDING, vec![0; usize::from(*length).min(STUN_MESSAGE_MAX_BYTES)])),
            _ => None,
        }
    }

    /// The counterpart; `None` when we do not know it either.
    pub(super) fn from_raw(kind: u16, value: &[u8]) -> Option<Result<Self, StunError>> {
        match (kind, value) {
            (CHANGE_REQUEST, [_, _, _, flags]) => {
                Some(Ok(Self::ChangeRequest { ip: flags & CHANGE_IP != 0, port: flags & CHANGE_PORT != 0 }))
            }
            (CHANGE_REQUEST, _) => Some(Err(StunError::InvalidValue)),
            // All three are optional: one that makes no sense is as good as none.
            (ADDITIONAL_ADDRESS_FAMILY, [family, _, _, _]) => {
                Some(Ok(Self::AdditionalAddressFamily(AddressFamily::from_number(*family)?)))
            }
            (DRAFT_ADDITIONAL_ADDRESS_FAMILY, [family, _, _, _]) => {
                Some(Ok(Self::DraftAdditionalAddressFamily(AddressFamily::from_number(*family)?)))
            }
            (ADDRESS_ERROR_CODE, [family, _, class, number @ 0..100, ..]) => {
                let code = ErrorCode::from_number(u16::from(class & 7) * 100 + u16::from(*number));
                Some(Ok(Self::AddressError(AddressFamily::from_number(*family)?, code)))
            }
            (PADDING, value) => {
                Some(u16::try_from(value.len()).map(Self::Padding).map_err(|_| StunError::InvalidValue))
            }
            _ => None,
        }
    }

    /// For the encoder. Asked only for what [`to_raw`](Self::to_raw) does not write.
    pub(super) fn to_wire(&self) -> Result<Wire, StunError> {
        Ok(match self {
            Self::AlternateServer(address) => AlternateServer::new(*address).into(),
            Self::Channel(number) => WireChannelNumber::new(number.0).map_err(unencodable)?.into(),
            Self::Data(data) => Data::new(data.clone()).map_err(unencodable)?.into(),
            Self::Error(code) => WireErrorCode::new(code.number(), code.text().into()).map_err(unencodable)?.into(),
            Self::Lifetime(lifetime) => Lifetime::new(*lifetime).map_err(unencodable)?.into(),
            Self::MappedAddress(address) => MappedAddress::new(*address).into(),
            Self::Nonce(text) => Nonce::new(bounded(text)?).map_err(unencodable)?.into(),
            Self::OtherAddress(address) => OtherAddress::new(*address).into(),
            Self::AdditionalAddressFamily(_)
            | Self::DraftAdditionalAddressFamily(_)
            | Self::AddressError(..)
            | Self::ChangeRequest { .. }
            | Self::Padding(_) => return Err(StunError::Unencodable),
            Self::Priority(priority) => Priority::new(*priority).into(),
            Self::Realm(text) => Realm::new(bounded(text)?).map_err(unencodable)?.into(),
            Self::RequestedAddressFamily(AddressFamily::V4) => RequestedAddressFamily::new(WireFamily::V4).into(),
            Self::RequestedAddressFamily(AddressFamily::V6) => RequestedAddressFamily::new(WireFamily::V6).into(),
            Self::RequestedTransport(protocol) => RequestedTransport::new(*protocol).into(),
            Self::ResponseOrigin(address) => ResponseOrigin::new(*address).into(),
            Self::UnknownAttributes(types) if types.len() > STUN_MAX_ATTRIBUTES => return Err(StunError::Unencodable),
            Self::UnknownAttributes(types) => {
                UnknownAttributes::new(types.iter().copied().map(AttributeType::new).collect()).into()
            }
            Self::Username(text) => Username::new(bounded(text)?).map_err(unencodable)?.into(),
            Self::XorMappedAddress(address) => XorMappedAddress::new(*address).into(),
            Self::XorPeerAddress(address) => XorPeerAddress::new(*address).into(),
            Self::XorRelayedAddress(address) => XorRelayAddress::new(*address).into(),
        })
    }

    pub(super) fn from_wire(wire: &Wire) -> Result<Self, StunError> {
        Ok(match wire {
            Wire::AlternateServer(value) => Self::AlternateServer(value.address()),
            Wire::WireChannelNumber(value) => Self::Channel(ChannelNumber(value.value())),
            Wire::Data(value) => Self::Data(value.data().to_vec()),
            Wire::WireErrorCode(value) => Self::Error(ErrorCode::from_number(value.code())),
            Wire::Lifetime(value) => Self::Lifetime(value.lifetime()),
            Wire::MappedAddress(value) => Self::MappedAddress(value.address()),
            Wire::Nonce(value) => Self::Nonce(readable(value.value())?),
            Wire::OtherAddress(value) => Self::OtherAddress(value.address()),
            Wire::Priority(value) => Self::Priority(value.prio()),
            Wire::Realm(value) => Self::Realm(readable(value.text())?),
            Wire::RequestedAddressFamily(value) => Self::RequestedAddressFamily(match value.address_family() {
                WireFamily::V4 => AddressFamily::V4,
                WireFamily::V6 => AddressFamily::V6,
            }),
            Wire::RequestedTransport(value) => Self::RequestedTransport(value.protocol()),
            Wire::ResponseOrigin(value) => Self::ResponseOrigin(value.address()),
            Wire::UnknownAttributes(value) => {
                let types = value.unknowns().iter().map(|kind| kind.as_u16());
                Self::UnknownAttributes(types.take(STUN_MAX_ATTRIBUTES).collect())
            }
            Wire::Username(value) => Self::Username(readable(value.name())?),
            Wire::XorMappedAddress(value) => Self::XorMappedAddress(value.address()),
            Wire::XorPeerAddress(value) => Self::XorPeerAddress(value.address()),
            Wire::XorRelayAddress(value) => Self::XorRelayedAddress(value.address()),
        })
    }
}

fn unencodable(_: bytecodec::Error) -> StunError {
    StunError::Unencodable
}

fn bounded(text: &str) -> Result<String, StunError> {
    if text.len() <= STUN_TEXT_MAX_BYTES { Ok(text.into()) } else { Err(StunError::Unencodable) }
}

fn readable(text: &str) -> Result<String, StunError> {
    if text.len() <= STUN_TEXT_MAX_BYTES { Ok(text.into()) } else { Err(StunError::InvalidValue) }
}
