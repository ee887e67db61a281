//! Who may allocate: short-lived credentials that the relay makes for its sessions, and nonces. Pure.
//!
//! User names are `<expiry>:<name>` and passwords `base64(HMAC-SHA1(secret, user name))`, the scheme that coturn calls
//! `use-auth-secret`: nothing is stored, and another TURN server with the same secret takes them too.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use super::Client;
use crate::limits::{TURN_CREDENTIAL_LIFETIME, TURN_CREDENTIAL_MAX_BYTES, TURN_NONCE_LIFETIME};
use crate::nat::credentials::{expiry, short_lived_password};
use crate::nat::stun::IntegrityKey;

/// The realm of all relays; it has no meaning but must be there (RFC 8489, section 9.2).
pub(in crate::relay) const REALM: &str = "panda-relay";
/// Domain separation of nonces.
const NONCE_CONTEXT: &str = "panda-network 2026 turn nonce";
/// Bytes of a nonce that prove that it is ours.
const PROOF_BYTES: usize = 12;

/// Makes and checks credentials.
pub(in crate::relay) struct Credentials {
    secret: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    pub(in crate::relay) fn new(secret: &[u8]) -> Self {
        Self { secret: Zeroizing::new(secret.to_vec()) }
    }

    /// User name and password for somebody who is called `name`, good for `TURN_CREDENTIAL_LIFETIME`.
    pub(in crate::relay) fn issue(&self, name: &str, wall_us: u64) -> (String, Zeroizing<String>) {
        let username = format!("{}:{name}", wall_us / 1_000_000 + TURN_CREDENTIAL_LIFETIME.as_secs());
        let password = short_lived_password(&self.secret, &username);
        (username, password)
    }

    /// The key of a user whose time is not over, and its name without the time.
    pub(super) fn key_of<'a>(&self, username: &'a str, wall_us: u64) -> Option<(IntegrityKey, &'a str)> {
        let (_, name) = username.split_once(':')?;
        let lasts = expiry(username)? > wall_us / 1_000_000 && username.len() <= TURN_CREDENTIAL_MAX_BYTES;
        let password = short_lived_password(&self.secret, username);
        lasts.then(|| (IntegrityKey::long_term(username, REALM, &password), name))
    }
}

/// Makes and checks nonces: a time and a proof that we made it for this client. Nothing is stored.
pub(super) struct Nonces {
    key: [u8; 32],
    start: Instant,
}

impl std::fmt::Debug for Nonces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonces")
    }
}

impl Nonces {
    pub(super) fn new(secret: &[u8], start: Instant) -> Self {
        Self { key: blake3::derive_key(NONCE_CONTEXT, secret), start }
    }

    pub(super) fn issue(&self, client: Client, now: Instant) -> String {
        self.nonce(client, (now.saturating_duration_since(self.start) + TURN_NONCE_LIFETIME).as_secs())
    }

    /// Whether it is ours, for this client, and not too old.
    pub(super) fn check(&self, client: Client, nonce: &str, now: Instant) -> bool {
        let expiry_s = nonce.get(..16).and_then(|hex| u64::from_str_radix(hex, 16).ok());
        expiry_s.is_some_and(|expiry_s| {
            let fresh = now.saturating_duration_since(self.start) < Duration::from_secs(expiry_s);
            fresh && self.nonce(client, expiry_s) == nonce
        })
    }

    fn nonce(&self, client: Client, expiry_s: u64) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&expiry_s.to_be_bytes());
        match client.address {
            SocketAddr::V4(v4) => hasher.update(&v4.ip().octets()),
            SocketAddr::V6(v6) => hasher.update(&v6.ip().octets()),
        };
        hasher.update(&client.address.port().to_be_bytes());
        format!("{expiry_s:016x}{}", HEXLOWER.encode(&hasher.finalize().as_bytes()[..PROOF_BYTES]))
    }
}
