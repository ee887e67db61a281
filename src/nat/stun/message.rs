//! A decoded message and what can be asked of it.
//!
//! Decoding proves nothing about the sender: check the integrity of the [`Scanned`](super::Scanned) that it came from.

use std::net::SocketAddr;
use std::time::Duration;

use super::{AddressFamily, Attribute, ChannelNumber, ErrorCode, TransactionId};

/// What kind of message (RFC 8489 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Wants a response.
    Request,
    /// Wants none.
    Indication,
    /// The request was done.
    Success,
    /// The request failed.
    Error,
}

/// What a message is about (RFC 8489 §18.2, RFC 8656 §17).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// 0x001: how do you see me; also connectivity checks.
    Binding,
    /// 0x003.
    Allocate,
    /// 0x004.
    Refresh,
    /// 0x006: an indication with a payload to a peer.
    Send,
    /// 0x007: an indication with a payload from a peer.
    Data,
    /// 0x008.
    CreatePermission,
    /// 0x009.
    ChannelBind,
}

impl Method {
    pub(super) fn from_number(number: u16) -> Option<Self> {
        let all = [
            Self::Binding,
            Self::Allocate,
            Self::Refresh,
            Self::Send,
            Self::Data,
            Self::CreatePermission,
            Self::ChannelBind,
        ];
        all.into_iter().find(|method| method.number() == number)
    }

    pub(super) fn number(self) -> u16 {
        match self {
            Self::Binding => 0x001,
            Self::Allocate => 0x003,
            Self::Refresh => 0x004,
            Self::Send => 0x006,
            Self::Data => 0x007,
            Self::CreatePermission => 0x008,
            Self::ChannelBind => 0x009,
        }
    }
}

/// Takes the two bits of the class out of the type, which lie between the bits of the method (RFC 8489 §5).
pub(super) fn split_type(kind: u16) -> (Class, u16) {
    let class = match (kind & 0x0100 != 0, kind & 0x0010 != 0) {
        (false, false) => Class::Request,
        (false, true) => Class::Indication,
        (true, false) => Class::Success,
        (true, true) => Class::Error,
    };
    (class, (kind & 0x3E00) >> 2 | (kind & 0x00E0) >> 1 | kind & 0x000F)
}

/// A decoded message. Of an attribute that is there several times, the first counts (RFC 8489 §14).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub(super) class: Class,
    pub(super) method: Method,
    pub(super) id: TransactionId,
    pub(super) attributes: Vec<Attribute>,
    pub(super) unknown: Vec<u16>,
}

/// The value of the first attribute of a variant with one field.
macro_rules! first {
    ($message:expr, $variant:ident) => {
        $message.attributes.iter().find_map(|attribute| match attribute {
            Attribute::$variant(value) => Some(value),
            _ => None,
        })
    };
}

impl Message {
    /// Request, indication or response.
    pub fn class(&self) -> Class {
        self.class
    }

    /// What it is about.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Its transaction.
    pub fn transaction_id(&self) -> TransactionId {
        self.id
    }

    /// All attributes that we know, in the order of the message, but CHANGE-REQUEST and PADDING last.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// Types that must be understood and are not. A server answers such a request with
    /// [`Response::unknown_attributes`](super::Response::unknown_attributes); a client gives such a response up (RFC 8489 §6.3).
    pub fn unknown_attributes(&self) -> &[u16] {
        &self.unknown
    }

    /// The address that the server sees us at: XOR-MAPPED-ADDRESS, MAPPED-ADDRESS of old servers.
    pub fn mapped_address(&self) -> Option<SocketAddr> {
        first!(self, XorMappedAddress).or_else(|| first!(self, MappedAddress)).copied()
    }

    /// XOR-RELAYED-ADDRESS, of which there may be one per family.
    pub fn relayed_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.attributes.iter().filter_map(|attribute| match attribute {
            Attribute::XorRelayedAddress(address) => Some(*address),
            _ => None,
        })
    }

    /// XOR-PEER-ADDRESS, which CreatePermission may have several of.
    pub fn peer_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.attributes.iter().filter_map(|attribute| match attribute {
            Attribute::XorPeerAddress(address) => Some(*address),
            _ => None,
        })
    }

    /// RESPONSE-ORIGIN.
    pub fn response_origin(&self) -> Option<SocketAddr> {
        first!(self, ResponseOrigin).copied()
    }

    /// OTHER-ADDRESS.
    pub fn other_address(&self) -> Option<SocketAddr> {
        first!(self, OtherAddress).copied()
    }

    /// ALTERNATE-SERVER.
    pub fn alternate_server(&self) -> Option<SocketAddr> {
        first!(self, AlternateServer).copied()
    }

    /// CHANGE-REQUEST, as (other address, other port).
    pub fn change_request(&self) -> Option<(bool, bool)> {
        self.attributes.iter().find_map(|attribute| match attribute {
            Attribute::ChangeRequest { ip, port } => Some((*ip, *port)),
            _ => None,
        })
    }

    /// LIFETIME.
    pub fn lifetime(&self) -> Option<Duration> {
        first!(self, Lifetime).copied()
    }

    /// ERROR-CODE.
    pub fn error(&self) -> Option<ErrorCode> {
        first!(self, Error).copied()
    }

    /// USERNAME.
    pub fn username(&self) -> Option<&str> {
        first!(self, Username).map(String::as_str)
    }

    /// REALM.
    pub fn realm(&self) -> Option<&str> {
        first!(self, Realm).map(String::as_str)
    }

    /// NONCE.
    pub fn nonce(&self) -> Option<&str> {
        first!(self, Nonce).map(String::as_str)
    }

    /// CHANNEL-NUMBER.
    pub fn channel(&self) -> Option<ChannelNumber> {
        first!(self, Channel).copied()
    }

    /// REQUESTED-TRANSPORT.
    pub fn requested_transport(&self) -> Option<u8> {
        first!(self, RequestedTransport).copied()
    }

    /// REQUESTED-ADDRESS-FAMILY.
    pub fn requested_address_family(&self) -> Option<AddressFamily> {
        first!(self, RequestedAddressFamily).copied()
    }

    /// ADDITIONAL-ADDRESS-FAMILY, by either number.
    pub fn additional_address_family(&self) -> Option<AddressFamily> {
        first!(self, AdditionalAddressFamily).or_else(|| first!(self, DraftAdditionalAddressFamily)).copied()
    }

    /// ADDRESS-ERROR-CODE.
    pub fn address_error(&self) -> Option<(AddressFamily, ErrorCode)> {
        self.attributes.iter().find_map(|attribute| match attribute {
            Attribute::AddressError(family, code) => Some((*family, *code)),
            _ => None,
        })
    }

    /// PRIORITY.
    pub fn priority(&self) -> Option<u32> {
        first!(self, Priority).copied()
    }
}
