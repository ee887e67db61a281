//! Where a peer can be reached, said and signed by the peer itself, and the ticket that invites to a document.
//!
//! Cold records: CBOR by ciborium, bounded before and after decoding, no trailing bytes. Only signed records travel.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::identity::Identity;
use crate::ids::{DocumentId, DocumentKey, PeerId};
use crate::limits::{PEER_ADDRESS_MAX_ADDRESSES, TICKET_MAX_CHARS, TICKET_MAX_PEERS, TICKET_MAX_RELAYS};

/// Domain separation of the signature under a peer address.
const ADDRESS_CONTEXT: &[u8] = b"panda-network/1 peer address";
/// What a ticket's text starts with.
const TICKET_PREFIX: &str = "panda:";
/// Version of the ticket's encoding.
const TICKET_VERSION: u8 = 1;
/// Longest relay in a ticket or record, in bytes: the longest DNS name, a port and a key.
const RELAY_MAX_BYTES: usize = 320;
/// Bytes of the checksum at the end of a ticket.
const CHECKSUM_BYTES: usize = 4;

/// A ticket or an address record is damaged or not acceptable. Whoever gave it to us erred.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The text does not start like a ticket.
    #[error("not a ticket: it should start with `panda:`, this starts with {0:?}")]
    NotATicket(String),
    /// A ticket of this length cannot be one of ours.
    #[error("ticket of {actual} characters, at most {limit} are allowed")]
    TooLong {
        /// Its length.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// A character was lost or changed on the way.
    #[error("ticket is damaged ({0}); copy it again, whole")]
    Damaged(&'static str),
    /// Made by a newer version.
    #[error("ticket of version {0}, this node knows version {TICKET_VERSION}; update panda-network")]
    UnknownVersion(u8),
    /// More entries than allowed.
    #[error("{actual} {what}, at most {limit} are allowed")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        actual: usize,
        /// The limit.
        limit: usize,
    },
    /// The record was not signed by the peer it speaks of.
    #[error("address record of peer {0:?} is not signed by that peer")]
    WrongSignature(PeerId),
}

/// A transport that a peer listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TransportKind {
    /// QUIC on UDP.
    #[serde(rename = "q")]
    Quic,
}

/// What a peer can do, in its own words: a set of 64 flags. Flags that this version does not know are kept, since they are
/// under the signature, and mean nothing here.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Takes connections by QUIC, at its addresses and through its relays.
    pub const QUIC: Self = Self(1);
    /// Takes datagrams on a connection: presence.
    pub const DATAGRAMS: Self = Self(1 << 1);
    /// Answers who asks which documents they share (confidential discovery), and may be named to others for that.
    pub const DISCOVERY: Self = Self(1 << 2);
    /// What every node of this version can do.
    pub const NODE: Self = Self(Self::QUIC.0 | Self::DATAGRAMS.0);

    /// A set from its bits.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits, those that are not known here among them.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// This set and the flags of another.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all flags of the other set are in this one.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the sets have a flag in common.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl std::fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Capabilities({:#b})", self.0)
    }
}

/// Where a peer says it can be reached, with its signature. The newest timestamp wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    peer_id: PeerId,
    addresses: Vec<(TransportKind, SocketAddr)>,
    relays: Vec<String>,
    capabilities: Capabilities,
    timestamp_us: u64,
    signature: [u8; 64],
}

/// How a `PeerAddress` is encoded: a CBOR array.
#[derive(Serialize, Deserialize)]
struct AddressWire(
    serde_bytes::ByteArray<32>,
    Vec<(TransportKind, SocketAddr)>,
    Vec<String>,
    Capabilities,
    u64,
    serde_bytes::ByteArray<64>,
);

impl PeerAddress {
    /// Signs a record about this node itself: its addresses, and the relays where it can be found. It can do what every node
    /// can ([`Capabilities::NODE`]).
    ///
    /// # Errors
    /// [`AddressError`] with more than 20 addresses or 4 relays, or a relay of more than 320 bytes.
    pub fn sign(
        identity: &Identity,
        addresses: Vec<(TransportKind, SocketAddr)>,
        relays: Vec<String>,
        timestamp_us: u64,
    ) -> Result<Self, AddressError> {
        Self::sign_capable(identity, addresses, relays, Capabilities::NODE, timestamp_us)
    }

    /// As [`sign`](Self::sign), for a node that can do more or less.
    ///
    /// # Errors
    /// As [`sign`](Self::sign).
    pub fn sign_capable(
        identity: &Identity,
        addresses: Vec<(TransportKind, SocketAddr)>,
        relays: Vec<String>,
        capabilities: Capabilities,
        timestamp_us: u64,
    ) -> Result<Self, AddressError> {
        check_count("addresses", addresses.len(), PEER_ADDRESS_MAX_ADDRESSES)?;
        check_relays(&relays)?;
        let peer_id = identity.peer_id();
        let mut record = Self { peer_id, addresses, relays, capabilities, timestamp_us, signature: [0; 64] };
        record.signature = identity.signing_key().sign(&record.signing_bytes()).to_bytes();
        Ok(record)
    }

    /// Whom it speaks of.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// All addresses, best first.
    pub fn addresses(&self) -> &[(TransportKind, SocketAddr)] {
        &self.addresses
    }

    /// The addresses for one transport, best first.
    pub fn addresses_for(&self, kind: TransportKind) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().filter(move |(of, _)| *of == kind).map(|(_, address)| *address)
    }

    /// The relays where the peer can be found, `host:port#key`, best first.
    pub fn relays(&self) -> &[String] {
        &self.relays
    }

    /// What the peer can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// When the peer signed it, in µs since the Unix epoch by its own clock.
    pub fn timestamp_us(&self) -> u64 {
        self.timestamp_us
    }

    /// Whether strangers may hear of it, and ask it what they share.
    pub fn is_findable(&self) -> bool {
        self.capabilities.contains(Capabilities::DISCOVERY)
    }

    /// The record as bytes, for the store and the wire.
    pub fn encode(&self) -> Vec<u8> {
        encode_cbor(&self.to_wire())
    }

    /// Reads a record and verifies its signature.
    ///
    /// # Errors
    /// [`AddressError`] when it is damaged, over a limit, or not signed by the peer it speaks of.
    pub fn decode(bytes: &[u8]) -> Result<Self, AddressError> {
        Self::from_wire(decode_cbor(bytes)?)
    }

    fn to_wire(&self) -> AddressWire {
        AddressWire(
            (*self.peer_id.as_bytes()).into(),
            self.addresses.clone(),
            self.relays.clone(),
            self.capabilities,
            self.timestamp_us,
            self.signature.into(),
        )
    }

    fn from_wire(wire: AddressWire) -> Result<Self, AddressError> {
        let AddressWire(peer_id, addresses, relays, capabilities, timestamp_us, signature) = wire;
        check_count("addresses", addresses.len(), PEER_ADDRESS_MAX_ADDRESSES)?;
        check_relays(&relays)?;
        let peer_id = PeerId::from_bytes(&peer_id).map_err(|_| AddressError::Damaged("not a peer id"))?;
        let record = Self { peer_id, addresses, relays, capabilities, timestamp_us, signature: *signature };
        match peer_id.verifies(&record.signing_bytes(), &signature) {
            true => Ok(record),
            false => Err(AddressError::WrongSignature(peer_id)),
        }
    }

    fn signing_bytes(&self) -> Vec<u8> {
        let Self { peer_id, addresses, relays, capabilities, timestamp_us, signature: _ } = self;
        let mut bytes = ADDRESS_CONTEXT.to_vec();
        let peer_id = serde_bytes::Bytes::new(peer_id.as_bytes());
        bytes.extend(encode_cbor(&(peer_id, addresses, relays, capabilities, timestamp_us)));
        bytes
    }
}

/// An invitation to a document: what to open, the secret to open it with, and where to find the others.
///
/// Its text, `panda:<base32>`, is the capability: who has it can read and write. The secret is not in `Debug`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentTicket {
    document: DocumentId,
    key: DocumentKey,
    peers: Vec<PeerAddress>,
    relays: Vec<String>,
}

/// How a ticket is encoded: a CBOR array.
#[derive(Serialize, Deserialize)]
struct TicketWire(serde_bytes::ByteArray<16>, serde_bytes::ByteArray<32>, Vec<AddressWire>, Vec<String>);

impl DocumentTicket {
    /// A ticket for a document, without peers.
    pub fn new(document: DocumentId, key: DocumentKey) -> Self {
        Self { document, key, peers: Vec::new(), relays: Vec::new() }
    }

    /// Adds peers to dial, at most 8; the rest is left out.
    pub fn with_peers(mut self, peers: impl IntoIterator<Item = PeerAddress>) -> Self {
        self.peers.extend(peers);
        self.peers.truncate(TICKET_MAX_PEERS);
        self
    }

    /// Adds relays where the peers can be found, and where who opens it will be: `host`, `host:port`, or best `host:port#key`, which
    /// nobody else can answer as. At most 4 of at most 320 bytes; the rest is left out.
    pub fn with_relays(mut self, relays: impl IntoIterator<Item = String>) -> Self {
        self.relays.extend(relays.into_iter().filter(|relay| relay.len() <= RELAY_MAX_BYTES));
        self.relays.truncate(TICKET_MAX_RELAYS);
        self
    }

    /// The document.
    pub fn document(&self) -> DocumentId {
        self.document
    }

    /// Its secret.
    pub fn key(&self) -> &DocumentKey {
        &self.key
    }

    /// Peers to dial.
    pub fn peers(&self) -> &[PeerAddress] {
        &self.peers
    }

    /// Relays where the peers can be found.
    pub fn relays(&self) -> &[String] {
        &self.relays
    }
}

impl std::fmt::Display for DocumentTicket {
    /// `panda:` and lower-case base32 of version, CBOR and checksum.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let wire = TicketWire(
            (*self.document.as_uuid().as_bytes()).into(),
            (*self.key.as_bytes()).into(),
            self.peers.iter().map(PeerAddress::to_wire).collect(),
            self.relays.clone(),
        );
        let mut bytes = vec![TICKET_VERSION];
        bytes.extend(encode_cbor(&wire));
        bytes.extend_from_slice(&checksum(&bytes));
        let text = data_encoding::BASE32_NOPAD.encode(&bytes).to_ascii_lowercase();
        write!(f, "{TICKET_PREFIX}{text}")
    }
}

impl std::str::FromStr for DocumentTicket {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.len() > TICKET_MAX_CHARS {
            return Err(AddressError::TooLong { actual: text.len(), limit: TICKET_MAX_CHARS });
        }
        let encoded = text
            .strip_prefix(TICKET_PREFIX)
            .ok_or_else(|| AddressError::NotATicket(text.chars().take(12).collect()))?;
        let bytes = data_encoding::BASE32_NOPAD
            .decode(encoded.to_ascii_uppercase().as_bytes())
            .map_err(|_| AddressError::Damaged("not base32"))?;
        let (bytes, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or(AddressError::Damaged("too short"))?;
        if checksum(bytes) != *sum {
            return Err(AddressError::Damaged("the checksum does not match"));
        }
        match bytes.split_first() {
            Some((&TICKET_VERSION, cbor)) => decode_ticket(decode_cbor(cbor)?),
            Some((&version, _)) => Err(AddressError::UnknownVersion(version)),
            None => Err(AddressError::Damaged("too short")),
        }
    }
}

fn decode_ticket(wire: TicketWire) -> Result<DocumentTicket, AddressError> {
    let TicketWire(document, key, peers, relays) = wire;
    check_count("peers", peers.len(), TICKET_MAX_PEERS)?;
    check_relays(&relays)?;
    Ok(DocumentTicket {
        document: DocumentId::from_uuid(uuid::Uuid::from_bytes(*document)),
        key: DocumentKey::from_bytes(*key),
        peers: peers.into_iter().map(PeerAddress::from_wire).collect::<Result<_, _>>()?,
        relays,
    })
}

fn check_relays(relays: &[String]) -> Result<(), AddressError> {
    check_count("relays", relays.len(), TICKET_MAX_RELAYS)?;
    match relays.iter().any(|relay| relay.len() > RELAY_MAX_BYTES) {
        true => Err(AddressError::Damaged("a relay name is too long")),
        false => Ok(()),
    }
}

fn check_count(what: &'static str, actual: usize, limit: usize) -> Result<(), AddressError> {
    if actual > limit { Err(AddressError::TooMany { what, actual, limit }) } else { Ok(()) }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM_BYTES]);
    sum
}

fn encode_cbor(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing our own records to a Vec cannot fail.
    let _ = ciborium::into_writer(value, &mut bytes);
    bytes
}

/// Decodes one record and nothing after it. The caller bounded the length of `bytes`.
fn decode_cbor<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, AddressError> {
    if bytes.len() > TICKET_MAX_CHARS {
        return Err(AddressError::TooLong { actual: bytes.len(), limit: TICKET_MAX_CHARS });
    }
    let mut rest = bytes;
    let value = ciborium::from_reader_with_buffer(&mut rest, &mut [0; 512])
        .map_err(|_| AddressError::Damaged("not the expected CBOR"))?;
    if rest.is_empty() { Ok(value) } else { Err(AddressError::Damaged("bytes after the record")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> DocumentTicket {
        let alice = Identity::from_seed(&[1; 32]);
        let address =
            PeerAddress::sign(&alice, vec![(TransportKind::Quic, "192.0.2.1:7000".parse().unwrap())], Vec::new(), 5)
                .unwrap();
        DocumentTicket::new(DocumentId::from_uuid(uuid::Uuid::from_u128(7)), DocumentKey::from_bytes([3; 32]))
            .with_peers([address])
            .with_relays(["relay.example.org".into()])
    }

    #[test]
    fn a_ticket_survives_its_text_form() {
        let text = ticket().to_string();
        assert_eq!(text.parse::<DocumentTicket>().unwrap(), ticket());
        assert_eq!(format!("  {text}\n").parse::<DocumentTicket>().unwrap(), ticket());
        assert!(text.len() < 500, "a ticket fits a QR code: {} characters", text.len());
    }

    #[test]
    fn no_single_changed_character_and_no_truncation_is_accepted() {
        let text = ticket().to_string();
        for index in 0..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[index] = if damaged[index] == b'a' { b'b' } else { b'a' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert!(damaged.parse::<DocumentTicket>().is_err(), "character {index}");
            assert!(text[..index].parse::<DocumentTicket>().is_err(), "cut at {index}");
        }
    }

    #[test]
    fn an_address_signed_by_another_peer_is_refused() {
        let mallory = Identity::from_seed(&[2; 32]);
        let mut address = PeerAddress::sign(&mallory, Vec::new(), Vec::new(), 5).unwrap();
        address.peer_id = Identity::from_seed(&[1; 32]).peer_id();
        assert!(matches!(PeerAddress::decode(&address.encode()), Err(AddressError::WrongSignature(_))));
    }

    #[test]
    fn capabilities_are_signed_and_those_of_later_versions_are_kept() {
        let alice = Identity::from_seed(&[1; 32]);
        let later = Capabilities::NODE.with(Capabilities::from_bits(1 << 63));
        let address = PeerAddress::sign_capable(&alice, Vec::new(), Vec::new(), later, 5).unwrap();
        let read = PeerAddress::decode(&address.encode()).unwrap();
        assert_eq!(read.capabilities(), later);
        assert!(read.capabilities().contains(Capabilities::QUIC));
        assert!(!read.capabilities().contains(Capabilities::QUIC.with(Capabilities::DISCOVERY)));
        assert!(read.capabilities().intersects(Capabilities::QUIC.with(Capabilities::DISCOVERY)));
        let mut more = address;
        more.capabilities = later.with(Capabilities::DISCOVERY);
        assert!(matches!(PeerAddress::decode(&more.encode()), Err(AddressError::WrongSignature(_))));
    }

    #[test]
    fn a_ticket_of_a_later_version_says_so() {
        let mut bytes = vec![9, 1, 2];
        bytes.extend(checksum(&bytes));
        let text = format!("panda:{}", data_encoding::BASE32_NOPAD.encode(&bytes));
        assert_eq!(text.parse::<DocumentTicket>(), Err(AddressError::UnknownVersion(9)));
    }
}
