//! What a TURN server wants to know before it relays: a user name and a password.
//!
//! Either fixed ones, or short-lived ones in the way of the "REST API for access to TURN services" (a draft that every server
//! follows): the user is `<expiry>:<name>`, and the password is made of that and a secret that only the issuer and the server
//! share. A client gets them ready-made; [`TurnCredentials::short_lived`] is for the issuer, [`short_lived_password`] and
//! [`expiry`] for the server.

use std::fmt;

use data_encoding::BASE64;
use ring::hmac;
use thiserror::Error;
use zeroize::Zeroizing;

use super::stun::IntegrityKey;
use crate::limits::STUN_TEXT_MAX_BYTES;

/// The caller handed in credentials that no server can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// Without a name there is nobody to charge.
    #[error("the user name for a TURN server is empty")]
    NoUsername,
    /// Over the limit.
    #[error("a user name or password for a TURN server has {actual} bytes, at most {STUN_TEXT_MAX_BYTES} are allowed")]
    TooLong {
        /// Its length in bytes.
        actual: usize,
    },
}

/// Long-term credentials (RFC 8489 §9.2). The password is wiped from memory and never printed.
#[derive(Clone)]
pub struct TurnCredentials {
    username: String,
    password: Zeroizing<String>,
}

impl TurnCredentials {
    /// What the operator of the server gave us. ASCII is safe; other text is compared byte by byte.
    ///
    /// # Errors
    /// [`CredentialsError`].
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Result<Self, CredentialsError> {
        let (username, password) = (username.into(), Zeroizing::new(password.into()));
        if username.is_empty() {
            return Err(CredentialsError::NoUsername);
        }
        let actual = username.len().max(password.len());
        if actual > STUN_TEXT_MAX_BYTES {
            return Err(CredentialsError::TooLong { actual });
        }
        Ok(Self { username, password })
    }

    /// Credentials until a time in seconds since 1970, made with the secret that the server knows. A `name` that says nothing
    /// about the user is best: it travels in plain.
    ///
    /// # Errors
    /// [`CredentialsError::TooLong`].
    pub fn short_lived(secret: &[u8], name: &str, expires_at_unix_s: u64) -> Result<Self, CredentialsError> {
        let username = format!("{expires_at_unix_s}:{name}");
        let password = short_lived_password(secret, &username);
        Self::new(username, password.as_str())
    }

    /// The user's name.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The key that signs requests to a server of this realm.
    pub fn key(&self, realm: &str) -> IntegrityKey {
        IntegrityKey::long_term(&self.username, realm, &self.password)
    }
}

impl fmt::Debug for TurnCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Names are personal as well.
        f.write_str("TurnCredentials(..)")
    }
}

/// The password of a short-lived user: base64 of HMAC-SHA1 of `<expiry>:<name>`.
pub fn short_lived_password(secret: &[u8], username: &str) -> Zeroizing<String> {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret);
    Zeroizing::new(BASE64.encode(hmac::sign(&key, username.as_bytes()).as_ref()))
}

/// When a short-lived user expires, in seconds since 1970: the digits before the first colon, or the whole name.
pub fn expiry(username: &str) -> Option<u64> {
    let digits = username.split(':').next()?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_lived_credentials_are_what_other_implementations_make() {
        // echo -n 1433895918:anna | openssl dgst -sha1 -hmac north -binary | base64
        let credentials = TurnCredentials::short_lived(b"north", "anna", 1_433_895_918).unwrap();
        assert_eq!(credentials.username(), "1433895918:anna");
        assert_eq!(credentials.password.as_str(), "s4DzciylmrKf2GhMesJPonAUQ6w=");
        assert_eq!(short_lived_password(b"north", credentials.username()), credentials.password);
    }

    #[test]
    fn the_expiry_is_in_the_name() {
        assert_eq!(expiry("1433895918:anna"), Some(1_433_895_918));
        assert_eq!(expiry("1433895918"), Some(1_433_895_918));
        assert_eq!(["anna", "", "+5:anna", ":anna", "99999999999999999999:anna"].map(expiry), [None; 5]);
    }

    #[test]
    fn credentials_that_no_server_takes_are_refused_and_none_are_printed() {
        let refused = |name: &str| TurnCredentials::new(name, "password").map(|_| ());
        assert_eq!(refused(""), Err(CredentialsError::NoUsername));
        assert_eq!(refused(&"x".repeat(509)), Err(CredentialsError::TooLong { actual: 509 }));
        assert_eq!(format!("{:?}", TurnCredentials::new("anna", "secret").unwrap()), "TurnCredentials(..)");
    }
}
