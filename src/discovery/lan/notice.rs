//! What a node tells its local network: a notice that means something to those who hold a document's key, and is noise to
//! everybody else.
//!
//! ```text
//! version (1) ‖ nonce (16) ‖ 8 slots ‖ sealed record
//! slot:          tag (8) ‖ seed (16), sealed with a key of the document and the nonce
//! sealed record: the node's signed PeerAddress, padded, sealed with a key of the seed
//! ```
//!
//! Who holds a document's key derives its tag for this nonce, recognises the slot, opens it, and with the seed the record.
//! The signature in there says who it is. Unused slots are random, slots are in random order, and the record is padded to
//! a multiple of 512 bytes: strangers do not see from notices how many documents are open, or whether two notices are of one
//! node. They do see when notices change: with more than 8 documents every minute, else every quarter of an hour, and soon
//! after one is opened or closed.
//!
//! All sealing is ChaCha20-Poly1305 with a key that is used once, so the nonce of the cipher is zero. It is no proof of
//! freshness: anybody can repeat a notice, which leads to the addresses that its peer signed, and to nobody else.

use rand::RngCore;
use rand::seq::SliceRandom;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::address::PeerAddress;
use crate::ids::DocumentId;
use crate::limits::{LAN_NOTICE_MAX_BYTES, LAN_SLOTS};
use crate::store::DocumentRecord;

/// Domain separation of tags and of the keys that seal slots.
const SLOT_CONTEXT: &str = "panda-network 2026 LAN slot";
/// Domain separation of the key that seals the record.
const RECORD_CONTEXT: &str = "panda-network 2026 LAN record";
/// The first byte of a notice.
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 16;
const TAG_BYTES: usize = 8;
const SEED_BYTES: usize = 16;
/// What sealing adds.
const SEAL_BYTES: usize = 16;
const SLOT_BYTES: usize = TAG_BYTES + SEED_BYTES + SEAL_BYTES;
const SLOTS_AT: usize = 1 + NONCE_BYTES;
const RECORD_AT: usize = SLOTS_AT + LAN_SLOTS * SLOT_BYTES;
/// Records are padded to multiples of this, with their length in front.
const PADDING_BYTES: usize = 512;
const LENGTH_BYTES: usize = 2;

/// What is in a notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Who announced itself; the signature is verified.
    pub peer: PeerAddress,
    /// The documents, open here, that it announced.
    pub documents: Vec<DocumentId>,
}

/// A notice that says nothing to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// Not a notice of this version.
    Malformed,
    /// For documents that are not open here.
    NotForUs,
    /// Made by somebody who holds a document's key, or changed on the way, and does not hold what it should.
    Forged,
}

/// Seals a record for those who hold the key of one of these documents; of more than 8 the rest is left out. `None` when the
/// record is too large.
pub fn seal(record: &PeerAddress, documents: &[DocumentRecord], random: &mut impl RngCore) -> Option<Vec<u8>> {
    let record = record.encode();
    let length = u16::try_from(record.len()).ok()?;
    let mut out = vec![0; RECORD_AT];
    random.fill_bytes(&mut out);
    out[0] = VERSION;
    let nonce = nonce_of(&out)?;
    let mut seed = Zeroizing::new([0; SEED_BYTES]);
    random.fill_bytes(seed.as_mut());
    let mut order: Vec<usize> = (0..LAN_SLOTS).collect();
    order.shuffle(random);
    for (document, slot) in documents.iter().zip(order) {
        let (tag, key) = slot_key(document, &nonce)?;
        let mut sealed = seed.to_vec();
        seal_in_place(&key, &nonce, &mut sealed)?;
        let at = SLOTS_AT + slot * SLOT_BYTES;
        out[at..at + SLOT_BYTES].copy_from_slice(&[&tag[..], &sealed].concat());
    }
    let mut sealed = [&length.to_be_bytes()[..], &record].concat();
    sealed.resize(sealed.len().next_multiple_of(PADDING_BYTES), 0);
    seal_in_place(&record_key(&*seed, &nonce)?, &nonce, &mut sealed)?;
    out.extend(sealed);
    (out.len() <= LAN_NOTICE_MAX_BYTES).then_some(out)
}

/// Whether these bytes could be a notice: looked at before anything is computed.
pub fn is_well_formed(notice: &[u8]) -> bool {
    let sizes = RECORD_AT + SEAL_BYTES + PADDING_BYTES..=LAN_NOTICE_MAX_BYTES;
    let padded = notice.len().wrapping_sub(RECORD_AT + SEAL_BYTES).is_multiple_of(PADDING_BYTES);
    sizes.contains(&notice.len()) && padded && notice[0] == VERSION
}

/// Opens a notice with the keys of documents that are open here. Costs two hashes per document, and verifies a signature
/// only when one of the keys fits.
///
/// # Errors
/// [`Unread`].
pub fn open(notice: &[u8], documents: &[DocumentRecord]) -> Result<Opened, Unread> {
    if !is_well_formed(notice) {
        return Err(Unread::Malformed);
    }
    let nonce = nonce_of(notice).ok_or(Unread::Malformed)?;
    let (slots, sealed) = (&notice[SLOTS_AT..RECORD_AT], &notice[RECORD_AT..]);
    let mut fitting = documents.iter().filter_map(|document| {
        let (tag, key) = slot_key(document, &nonce)?;
        let slot = slots.chunks_exact(SLOT_BYTES).find(|slot| slot[..TAG_BYTES] == tag)?;
        Some((document.document, open_sealed(&key, &nonce, &slot[TAG_BYTES..])))
    });
    let (first, seed) = fitting.next().ok_or(Unread::NotForUs)?;
    let seed = seed.ok_or(Unread::Forged)?;
    let key = record_key(&seed, &nonce).ok_or(Unread::Forged)?;
    let content = open_sealed(&key, &nonce, sealed).ok_or(Unread::Forged)?;
    let (length, content) = content.split_first_chunk::<LENGTH_BYTES>().ok_or(Unread::Forged)?;
    let record = content.get(..usize::from(u16::from_be_bytes(*length))).ok_or(Unread::Forged)?;
    let peer = PeerAddress::decode(record).map_err(|_| Unread::Forged)?;
    let others = fitting.filter(|(_, other)| other.as_ref() == Some(&seed)).map(|(document, _)| document);
    Ok(Opened { peer, documents: std::iter::once(first).chain(others).collect() })
}

fn nonce_of(notice: &[u8]) -> Option<[u8; NONCE_BYTES]> {
    notice.get(1..SLOTS_AT)?.try_into().ok()
}

fn slot_key(document: &DocumentRecord, nonce: &[u8; NONCE_BYTES]) -> Option<([u8; TAG_BYTES], LessSafeKey)> {
    let mut hasher = blake3::Hasher::new_derive_key(SLOT_CONTEXT);
    hasher.update(document.key.as_bytes()).update(document.document.as_uuid().as_bytes()).update(nonce);
    let mut material = Zeroizing::new([0; TAG_BYTES + 32]);
    hasher.finalize_xof().fill(material.as_mut());
    let (tag, key) = material.split_first_chunk::<TAG_BYTES>()?;
    Some((*tag, cipher(key)?))
}

fn record_key(seed: &[u8], nonce: &[u8; NONCE_BYTES]) -> Option<LessSafeKey> {
    let mut hasher = blake3::Hasher::new_derive_key(RECORD_CONTEXT);
    cipher(hasher.update(seed).update(nonce).finalize().as_bytes())
}

fn cipher(key: &[u8]) -> Option<LessSafeKey> {
    Some(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).ok()?))
}

/// Every key seals one thing, so that one nonce is enough.
fn only_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

fn seal_in_place(key: &LessSafeKey, nonce: &[u8; NONCE_BYTES], content: &mut Vec<u8>) -> Option<()> {
    key.seal_in_place_append_tag(only_nonce(), Aad::from(associated(nonce)), content).ok()
}

fn open_sealed(key: &LessSafeKey, nonce: &[u8; NONCE_BYTES], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut content = Zeroizing::new(sealed.to_vec());
    let length = key.open_in_place(only_nonce(), Aad::from(associated(nonce)), &mut content).ok()?.len();
    content.truncate(length);
    Some(content)
}

fn associated(nonce: &[u8; NONCE_BYTES]) -> [u8; SLOTS_AT] {
    let mut associated = [VERSION; SLOTS_AT];
    associated[1..].copy_from_slice(nonce);
    associated
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::address::TransportKind;
    use crate::identity::Identity;
    use crate::ids::DocumentKey;
    use crate::limits::{PEER_ADDRESS_MAX_ADDRESSES, TICKET_MAX_RELAYS};

    fn record(addresses: usize) -> PeerAddress {
        let address =
            |n: usize| (TransportKind::Quic, SocketAddr::from(([0xFD00, 0, 0, 0, 0, 0, 0xFFFF, n as u16], 7000)));
        PeerAddress::sign(&Identity::from_seed(&[1; 32]), (0..addresses).map(address).collect(), Vec::new(), 5).unwrap()
    }

    fn documents(numbers: std::ops::Range<u8>) -> Vec<DocumentRecord> {
        let document = |n| DocumentRecord {
            document: DocumentId::from_uuid(uuid::Uuid::from_u128(u128::from(n))),
            key: DocumentKey::from_bytes([n; 32]),
        };
        numbers.map(document).collect()
    }

    fn ids(numbers: std::ops::Range<u8>) -> Vec<DocumentId> {
        documents(numbers).into_iter().map(|record| record.document).collect()
    }

    fn random(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    #[test]
    fn who_holds_the_key_of_a_document_learns_the_record_and_the_common_documents() {
        for common in 1..=LAN_SLOTS as u8 {
            let notice = seal(&record(4), &documents(0..LAN_SLOTS as u8), &mut random(1)).unwrap();
            let from = LAN_SLOTS as u8 - common;
            let opened = open(&notice, &documents(from..200)).unwrap();
            assert_eq!(opened, Opened { peer: record(4), documents: ids(from..LAN_SLOTS as u8) });
        }
    }

    #[test]
    fn the_key_of_another_document_and_another_key_of_this_document_open_nothing() {
        let notice = seal(&record(4), &documents(0..3), &mut random(1)).unwrap();
        assert_eq!(open(&notice, &documents(3..200)), Err(Unread::NotForUs));
        assert_eq!(open(&notice, &[]), Err(Unread::NotForUs));
        let mut guessed = documents(0..1);
        guessed[0].key = DocumentKey::from_bytes([9; 32]);
        assert_eq!(open(&notice, &guessed), Err(Unread::NotForUs));
    }

    #[test]
    fn the_size_tells_neither_how_many_documents_are_open_nor_the_number_of_addresses() {
        let size = |addresses, documents: Vec<_>| seal(&record(addresses), &documents, &mut random(1)).unwrap().len();
        assert_eq!(size(1, documents(0..1)), size(1, documents(0..8)));
        assert_eq!(size(1, documents(0..1)), size(1, documents(0..100)));
        assert_eq!(size(1, documents(0..1)), size(2, documents(0..1)));
    }

    #[test]
    fn two_notices_of_one_node_have_nothing_in_common_but_the_version() {
        let [one, two] = [1, 2].map(|seed| seal(&record(4), &documents(0..3), &mut random(seed)).unwrap());
        let windows: std::collections::BTreeSet<_> = one[1..].windows(4).collect();
        assert!(!two[1..].windows(4).any(|window| windows.contains(window)));
        for secret in [record(4).peer_id().as_bytes().as_slice(), &[0; 8], &[1; 8], &[2; 8]] {
            assert!(!one.windows(secret.len()).any(|window| window == secret), "{secret:?}");
        }
    }

    #[test]
    fn no_changed_bit_and_no_truncation_is_accepted() {
        let notice = seal(&record(1), &documents(0..LAN_SLOTS as u8), &mut random(1)).unwrap();
        let keys = documents(0..LAN_SLOTS as u8);
        for length in 0..notice.len() {
            assert!(open(&notice[..length], &keys).is_err(), "cut at {length}");
        }
        for bit in 0..notice.len() * 8 {
            let mut damaged = notice.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A damaged slot hides its own document; nothing else may be read out of a changed notice.
            match open(&damaged, &keys) {
                Ok(opened) => {
                    assert!((SLOTS_AT..RECORD_AT).contains(&(bit / 8)) && opened.documents.len() < keys.len())
                }
                Err(Unread::Malformed | Unread::NotForUs | Unread::Forged) => {}
            }
        }
    }

    #[test]
    fn a_member_that_lies_in_its_notice_is_not_believed() {
        let keys = documents(0..1);
        let lie = |content: Vec<u8>| {
            let mut notice = seal(&record(1), &keys, &mut random(1)).unwrap();
            let nonce = nonce_of(&notice).unwrap();
            let (tag, key) = slot_key(&keys[0], &nonce).unwrap();
            let slot = notice[SLOTS_AT..RECORD_AT].chunks(SLOT_BYTES).find(|slot| slot[..TAG_BYTES] == tag).unwrap();
            let seed = open_sealed(&key, &nonce, &slot[TAG_BYTES..]).unwrap();
            let mut sealed = content;
            seal_in_place(&record_key(&seed, &nonce).unwrap(), &nonce, &mut sealed).unwrap();
            notice.truncate(RECORD_AT);
            notice.extend(sealed);
            open(&notice, &keys)
        };
        let mut genuine = [&(record(1).encode().len() as u16).to_be_bytes()[..], &record(1).encode()].concat();
        genuine.resize(genuine.len().next_multiple_of(PADDING_BYTES), 0);
        assert!(lie(genuine.clone()).is_ok());
        let mut foreign = genuine;
        foreign[40] ^= 1;
        assert_eq!(lie(foreign), Err(Unread::Forged));
        assert_eq!(lie(vec![0xFF; PADDING_BYTES]), Err(Unread::Forged));
        assert_eq!(lie(vec![0; PADDING_BYTES]), Err(Unread::Forged));
    }

    #[test]
    fn a_record_that_does_not_fit_makes_no_notice_and_the_most_addresses_do() {
        let largest = record(PEER_ADDRESS_MAX_ADDRESSES);
        assert!(seal(&largest, &documents(0..1), &mut random(1)).is_some());
        let (identity, relays) = (Identity::from_seed(&[1; 32]), vec!["r".repeat(320); TICKET_MAX_RELAYS]);
        let long = PeerAddress::sign(&identity, [largest.addresses(), &[]].concat(), relays, 5).unwrap();
        let fits = RECORD_AT + LENGTH_BYTES + long.encode().len() + SEAL_BYTES <= LAN_NOTICE_MAX_BYTES - PADDING_BYTES;
        assert!(fits || seal(&long, &documents(0..1), &mut random(1)).is_none(), "{}", long.encode().len());
        assert!(seal(&long, &documents(0..1), &mut random(1)).is_none_or(|notice| is_well_formed(&notice)));
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_refused_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(open(&bytes, &documents(0..3)).is_err());
            // Now of a size and version that there are.
            bytes.resize(RECORD_AT + SEAL_BYTES + PADDING_BYTES, 7);
            bytes[0] = VERSION;
            prop_assert_eq!(open(&bytes, &documents(0..3)), Err(Unread::NotForUs));
        }
    }
}
