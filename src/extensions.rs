//! The extensions of an operation's header, as p2panda Nodes 0.7 write them ("Node Extensions Format", version 1).
//!
//! A CBOR array that starts with a version and a variant. We write the basic variant: log id, timestamp, prune flag. As the
//! format asks for, fields that a later version appended are ignored, and an unknown variant is no decoding error.

use std::fmt;

use p2panda_core::Hash;
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const VERSION: u16 = 1;
const BASIC: u16 = 0;

/// Header extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeExtensions {
    /// Version 1, variant 0.
    Basic {
        /// The log that the operation belongs to.
        log_id: Hash,
        /// When its author says it was made, in µs since the Unix epoch.
        timestamp_us: u64,
        /// Whether everything before it may be deleted. We do not write it, and take no notice of it.
        prune: bool,
    },
    /// Something that this version does not understand.
    Unknown {
        /// Its version.
        version: u16,
        /// Its variant.
        variant: u16,
    },
}

impl Serialize for NodeExtensions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Basic { log_id, timestamp_us, prune } => {
                (VERSION, BASIC, log_id, timestamp_us, prune).serialize(serializer)
            }
            Self::Unknown { version, variant } => (version, variant).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for NodeExtensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Fields)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = NodeExtensions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array that starts with a version and a variant")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<NodeExtensions, A::Error> {
        let (version, variant) = (next(&mut fields, "version")?, next(&mut fields, "variant")?);
        let extensions = match (version, variant) {
            (VERSION, BASIC) => NodeExtensions::Basic {
                log_id: next(&mut fields, "log id")?,
                timestamp_us: next(&mut fields, "timestamp")?,
                prune: next(&mut fields, "prune flag")?,
            },
            (version, variant) => NodeExtensions::Unknown { version, variant },
        };
        // The header is bounded, and so is what follows here.
        while fields.next_element::<IgnoredAny>()?.is_some() {}
        Ok(extensions)
    }
}

fn next<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(fields: &mut A, name: &'static str) -> Result<T, A::Error> {
    fields.next_element()?.ok_or_else(|| A::Error::missing_field(name))
}

#[cfg(test)]
mod tests {
    use p2panda_core::cbor::{decode_cbor, encode_cbor};

    use super::*;

    #[test]
    fn the_basic_extensions_are_an_array_of_five() {
        let extensions = NodeExtensions::Basic { log_id: Hash::digest(b"log"), timestamp_us: 1 << 50, prune: false };
        let bytes = encode_cbor(&extensions).unwrap();
        assert_eq!(bytes, encode_cbor(&(1u16, 0u16, Hash::digest(b"log"), 1u64 << 50, false)).unwrap());
        assert_eq!(decode_cbor::<NodeExtensions, _>(&bytes[..]).unwrap(), extensions);
    }

    #[test]
    fn appended_fields_are_ignored_and_unknown_variants_are_named() {
        let log_id = Hash::digest(b"log");
        let longer = encode_cbor(&(1u16, 0u16, log_id, 7u64, true, "more", [1, 2])).unwrap();
        let basic = NodeExtensions::Basic { log_id, timestamp_us: 7, prune: true };
        assert_eq!(decode_cbor::<NodeExtensions, _>(&longer[..]).unwrap(), basic);
        let other = encode_cbor(&(1u16, 3u16, "anything")).unwrap();
        assert_eq!(
            decode_cbor::<NodeExtensions, _>(&other[..]).unwrap(),
            NodeExtensions::Unknown { version: 1, variant: 3 }
        );
        assert!(decode_cbor::<NodeExtensions, _>(&encode_cbor(&(1u16, 0u16, log_id)).unwrap()[..]).is_err());
    }
}
