//! The ticket that invites to a document, and its text.
//!
//! A cold record like the addresses in it: bounded before and after decoding, no trailing bytes, a checksum against
//! typing errors.

use serde::{Deserialize, Serialize};

use crate::address::{
    AddressError, AddressWire, PeerAddress, RELAY_MAX_BYTES, check_count, check_relays, decode_cbor, encode_cbor,
};
use crate::ids::{DocumentId, DocumentKey};
use crate::limits::{TICKET_MAX_CHARS, TICKET_MAX_PEERS, TICKET_MAX_RELAYS};

/// What a ticket's text starts with.
const TICKET_PREFIX: &str = "panda:";
/// Version of the ticket's encoding.
pub(crate) const TICKET_VERSION: u8 = 1;
/// Bytes of the checksum at the end of a ticket.
const CHECKSUM_BYTES: usize = 4;

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

    /// Adds peers to dial, best first: at most 8, and as many as fit into a text of 8,192 characters, which is at least one.
    /// The rest is left out.
    pub fn with_peers(mut self, peers: impl IntoIterator<Item = PeerAddress>) -> Self {
        self.peers.extend(peers);
        self.peers.truncate(TICKET_MAX_PEERS);
        self.fit()
    }

    /// Adds relays where the peers can be found, and where who opens it will be: `host`, `host:port`, or best
    /// `host:port#key`, which nobody else can answer as. At most 4 of at most 320 bytes; the rest is left out. Peers that
    /// have no place beside them are left out as well.
    pub fn with_relays(mut self, relays: impl IntoIterator<Item = String>) -> Self {
        self.relays.extend(relays.into_iter().filter(|relay| relay.len() <= RELAY_MAX_BYTES));
        self.relays.truncate(TICKET_MAX_RELAYS);
        self.fit()
    }

    /// Leaves out peers from the end until the text is one that is read again.
    fn fit(mut self) -> Self {
        while self.to_string().len() > TICKET_MAX_CHARS && self.peers.pop().is_some() {}
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

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECKSUM_BYTES]);
    sum
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::address::TransportKind;
    use crate::identity::Identity;
    use crate::limits::PEER_ADDRESS_MAX_ADDRESSES;

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
    fn a_ticket_of_the_largest_records_is_read_again_with_those_that_fit() {
        let address = |n: u16| (TransportKind::Quic, SocketAddr::from(([0xffff; 8], 60_000 + n)));
        let relay = |n: usize| format!("{n}{}", "r".repeat(RELAY_MAX_BYTES - 1));
        let record = |seed: u8, relays: usize| {
            let addresses = (0..PEER_ADDRESS_MAX_ADDRESSES as u16).map(address).collect();
            let relays = (0..relays).map(relay).collect();
            PeerAddress::sign(&Identity::from_seed(&[seed; 32]), addresses, relays, u64::MAX).unwrap()
        };
        for (relays, at_least) in [(0, 4), (TICKET_MAX_RELAYS, 1)] {
            let peers: Vec<_> = (0..TICKET_MAX_PEERS as u8).map(|seed| record(seed, relays)).collect();
            let empty = || DocumentTicket::new(ticket().document, ticket().key);
            let ticket = empty().with_peers(peers.clone()).with_relays((0..relays).map(relay));
            assert_eq!(ticket.to_string().parse().as_ref(), Ok(&ticket));
            assert_eq!(ticket, empty().with_relays((0..relays).map(relay)).with_peers(peers.clone()));
            assert_eq!(ticket.relays().len(), relays);
            assert!(ticket.peers().len() >= at_least && ticket.peers().len() < peers.len());
            assert_eq!(ticket.peers(), &peers[..ticket.peers().len()], "the best ones stay");
        }
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
    fn a_ticket_of_a_later_version_says_so() {
        let mut bytes = vec![9, 1, 2];
        bytes.extend(checksum(&bytes));
        let text = format!("panda:{}", data_encoding::BASE32_NOPAD.encode(&bytes));
        assert_eq!(text.parse::<DocumentTicket>(), Err(AddressError::UnknownVersion(9)));
    }
}
