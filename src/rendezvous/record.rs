//! Where a peer can be met: what it says and signs for whoever knows its key and asks a relay.
//!
//! It names relays and no addresses, so that a stranger learns no more than where to knock. It is no
//! [`PeerAddress`](crate::address::PeerAddress), and its signature is good for nothing else: passed on as one it would
//! take the place of the peer's own addresses.

use bytes::Bytes;

use crate::cbor::{self, CborError};
use crate::identity::Identity;
use crate::ids::PeerId;
use crate::limits::TICKET_MAX_RELAYS;
use crate::rendezvous::address::RelayAddress;

/// Domain separation of the signature.
const CONTEXT: &[u8] = b"panda-network/1 rendezvous record";
/// Longest relay in a record, in bytes: the longest DNS name, a port and a key.
const RELAY_MAX_BYTES: usize = 320;
/// The one kind of record there is.
const KIND: u8 = 0;

/// A signed record. The newest one wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RendezvousRecord {
    peer: PeerId,
    relays: Vec<RelayAddress>,
    timestamp_us: u64,
    signature: [u8; 64],
}

impl RendezvousRecord {
    /// Signs a record about this node itself: the relays that it uses, at most 4, best first. More are left out.
    pub fn sign(identity: &Identity, mut relays: Vec<RelayAddress>, timestamp_us: u64) -> Self {
        relays.truncate(TICKET_MAX_RELAYS);
        let mut record = Self { peer: identity.peer_id(), relays, timestamp_us, signature: [0; 64] };
        record.signature = identity.signing_key().sign(&record.signing_bytes()).to_bytes();
        record
    }

    /// Whom it speaks of.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Where the peer can be met.
    pub fn relays(&self) -> &[RelayAddress] {
        &self.relays
    }

    /// When the peer signed it, in µs since the Unix epoch by its own clock.
    pub fn timestamp_us(&self) -> u64 {
        self.timestamp_us
    }

    /// The record as bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        let relays: Vec<_> = self.relays.iter().map(RelayAddress::to_string).collect();
        cbor::encode(&mut out, 5, KIND, |e| {
            e.bytes(self.peer.as_bytes())?;
            cbor::put_list(e, &relays, |e, relay| e.str(relay).map(|_| ()))?;
            e.u64(self.timestamp_us)?.bytes(&self.signature).map(|_| ())
        });
        out.into()
    }

    /// Reads a record and verifies its signature.
    ///
    /// # Errors
    /// [`CborError`] when it is damaged, over a limit, or not signed by the peer it speaks of.
    pub fn decode(bytes: &Bytes) -> Result<Self, CborError> {
        let record = cbor::decode(bytes, |reader, kind| match kind {
            KIND => Ok(Self {
                peer: reader.peer()?,
                relays: reader.list("relays", TICKET_MAX_RELAYS, |reader| {
                    let relay = reader.text("characters of a relay", RELAY_MAX_BYTES)?;
                    relay.parse::<RelayAddress>().map_err(|error| CborError::Damaged(error.to_string()))
                })?,
                timestamp_us: reader.u64()?,
                signature: reader.fixed()?,
            }),
            kind => Err(CborError::UnknownKind(kind)),
        })?;
        match record.peer.verifies(&record.signing_bytes(), &record.signature) {
            true => Ok(record),
            false => Err(CborError::Damaged("a record that its peer did not sign".into())),
        }
    }

    fn signing_bytes(&self) -> Vec<u8> {
        let mut bytes = CONTEXT.to_vec();
        bytes.extend_from_slice(self.peer.as_bytes());
        bytes.extend_from_slice(&self.timestamp_us.to_be_bytes());
        for relay in &self.relays {
            let relay = relay.to_string();
            bytes.extend_from_slice(&(relay.len() as u64).to_be_bytes());
            bytes.extend_from_slice(relay.as_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> RendezvousRecord {
        let relays = ["relay.example.org", "192.0.2.1:8443"].map(|relay| relay.parse().unwrap()).to_vec();
        RendezvousRecord::sign(&Identity::from_seed(&[1; 32]), relays, 7)
    }

    #[test]
    fn a_record_comes_back_as_it_was_and_no_damaged_byte_is_accepted() {
        let encoded = record().encode();
        assert_eq!(RendezvousRecord::decode(&encoded), Ok(record()));
        for index in 0..encoded.len() {
            let mut damaged = encoded.to_vec();
            damaged[index] ^= 1;
            // A host name in capitals is the same name, and is signed as it is read.
            if let Ok(read) = RendezvousRecord::decode(&damaged.into()) {
                assert_eq!(read, record(), "byte {index}");
            }
            assert!(RendezvousRecord::decode(&encoded.slice(..index)).is_err(), "cut at {index}");
        }
    }

    #[test]
    fn a_record_of_somebody_else_is_not_accepted_and_is_no_address() {
        let mut record = record();
        record.peer = Identity::from_seed(&[2; 32]).peer_id();
        assert!(RendezvousRecord::decode(&record.encode()).is_err());
        assert!(crate::address::PeerAddress::decode(&record.encode()).is_err());
    }
}
