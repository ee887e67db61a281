//! The pin of a server's key: which key a TURN server must have, whatever its certificate says.
//!
//! It is the SHA-256 of the certificate's SubjectPublicKeyInfo, in base64, as in RFC 7469 and RFC 7858. A renewed certificate
//! with the same key keeps it.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64;
use ring::digest::{SHA256, digest};
use thiserror::Error;

/// How some tools begin it.
const PREFIX: &str = "sha256/";

/// Not the base64 of 32 bytes. Whoever wrote it erred.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no pin: the SHA-256 of a SubjectPublicKeyInfo in base64 is, 44 characters that end with =")]
pub struct SpkiPinError(String);

/// The pin of one key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpkiPin([u8; Self::BYTES]);

impl SpkiPin {
    /// Its length.
    pub const BYTES: usize = 32;

    /// The pin of a key, given as the DER of its SubjectPublicKeyInfo.
    pub fn of(subject_public_key_info: &[u8]) -> Self {
        let mut pin = [0; Self::BYTES];
        pin.copy_from_slice(digest(&SHA256, subject_public_key_info).as_ref());
        Self(pin)
    }

    /// From its bytes; `None` when they are not 32.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl FromStr for SpkiPin {
    type Err = SpkiPinError;

    /// Reads base64, with or without `sha256/` before it.
    fn from_str(text: &str) -> Result<Self, SpkiPinError> {
        let wrong = || SpkiPinError(text.chars().take(64).collect());
        let decoded = BASE64.decode(text.strip_prefix(PREFIX).unwrap_or(text).as_bytes());
        Self::from_bytes(&decoded.map_err(|_| wrong())?).ok_or_else(wrong)
    }
}

impl fmt::Display for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

impl fmt::Debug for SpkiPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpkiPin({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_survives_its_text_form_and_nothing_else_is_one() {
        let pin = SpkiPin::of(b"a key");
        assert_eq!(pin.to_string().parse(), Ok(pin));
        assert_eq!(format!("sha256/{pin}").parse(), Ok(pin));
        let text = pin.to_string();
        for wrong in ["", "sha256/", &text[1..], &text[..43], &format!("{text}="), &format!("sha1/{text}"), "AAAA"] {
            assert!(wrong.parse::<SpkiPin>().is_err(), "{wrong}");
        }
    }
}
