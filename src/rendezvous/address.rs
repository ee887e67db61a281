//! How a server is written down: `host:port`, and a relay as `host:port#key`, which is what a cooperative gives to its users.
//!
//! Parsing is strict and bounded: names of letters, digits, hyphens and dots, addresses as the standard library reads them,
//! IPv6 in brackets, a port that is not 0. A relay's key is its peer id in base32; without it nodes take whoever answers.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

use crate::ids::PeerId;
use crate::limits::HOST_NAME_MAX_BYTES;

/// The port of a relay when none is written.
pub const DEFAULT_PORT: u16 = 443;
/// Longest label of a DNS name (RFC 1035, section 2.3.4).
const LABEL_MAX_BYTES: usize = 63;
/// Longest text worth reading: brackets or a name, a port, a key.
const TEXT_MAX_BYTES: usize = HOST_NAME_MAX_BYTES + 80;

/// A server's address is not one. Whoever wrote it erred.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RelayAddressError {
    /// Longer than any address can be.
    #[error("an address of {0} characters cannot be one")]
    TooLong(usize),
    /// Neither a name nor an address.
    #[error("{0:?} is no host: a name, an IPv4 address or an IPv6 address in brackets is")]
    Host(String),
    /// Not 1 to 65535.
    #[error("{0:?} is no port: 1 to 65535 is")]
    Port(String),
    /// Not a key.
    #[error("the key after `#` is damaged; copy the relay's address again, whole")]
    Key,
}

/// A name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// Checks a host (a name, or an address without brackets) and a port.
    ///
    /// # Errors
    /// [`RelayAddressError`].
    pub fn new(host: &str, port: u16) -> Result<Self, RelayAddressError> {
        let no_host = || RelayAddressError::Host(shown(host));
        let host = match host.parse::<IpAddr>() {
            Ok(ip) => ip.to_string(),
            Err(_) if is_name(host) => host.to_ascii_lowercase(),
            Err(_) => return Err(no_host()),
        };
        if port == 0 { Err(RelayAddressError::Port("0".into())) } else { Ok(Self { host, port }) }
    }

    /// The name or the address, an IPv6 address without brackets: as resolvers take it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, if it is no name.
    pub fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Reads `host:port`, or `host` with the given port.
    ///
    /// # Errors
    /// [`RelayAddressError`].
    pub fn parse(text: &str, default_port: u16) -> Result<Self, RelayAddressError> {
        if text.len() > TEXT_MAX_BYTES {
            return Err(RelayAddressError::TooLong(text.len()));
        }
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) if host.parse::<Ipv6Addr>().is_ok() => (host, rest),
            Some(_) => return Err(RelayAddressError::Host(shown(text))),
            None => text.split_at(text.find(':').unwrap_or(text.len())),
        };
        let port = match port.strip_prefix(':') {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse().map_err(|_| RelayAddressError::Port(shown(digits)))?
            }
            Some(digits) => return Err(RelayAddressError::Port(shown(digits))),
            None if port.is_empty() => default_port,
            None => return Err(RelayAddressError::Host(shown(text))),
        };
        Self::new(host, port)
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Where a relay is, and which key it must have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayAddress {
    /// Where it takes TLS connections.
    pub server: HostPort,
    /// Its key; without it, whoever answers there is taken for the relay.
    pub key: Option<PeerId>,
}

impl fmt::Display for RelayAddress {
    /// `host:port#key`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.server)?;
        self.key.iter().try_for_each(|key| {
            let key = data_encoding::BASE32_NOPAD.encode(key.as_bytes()).to_ascii_lowercase();
            write!(f, "#{key}")
        })
    }
}

impl FromStr for RelayAddress {
    type Err = RelayAddressError;

    /// Reads `host`, `host:port`, `host#key` or `host:port#key`.
    fn from_str(text: &str) -> Result<Self, RelayAddressError> {
        let text = text.trim();
        if text.len() > TEXT_MAX_BYTES {
            return Err(RelayAddressError::TooLong(text.len()));
        }
        let (server, key) = match text.split_once('#') {
            Some((server, key)) => (server, Some(parse_key(key).ok_or(RelayAddressError::Key)?)),
            None => (text, None),
        };
        Ok(Self { server: HostPort::parse(server, DEFAULT_PORT)?, key })
    }
}

fn parse_key(text: &str) -> Option<PeerId> {
    let bytes = data_encoding::BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok()?;
    PeerId::from_bytes(bytes.as_slice().try_into().ok()?).ok()
}

/// A DNS name (RFC 1123, section 2.1) that cannot be taken for an address: its last label is no number.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        let fits = (1..=LABEL_MAX_BYTES).contains(&label.len());
        let known = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        fits && known && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    host.len() <= HOST_NAME_MAX_BYTES && host.split('.').all(label) && !host.rsplit('.').next().is_some_and(is_number)
}

/// The part of a wrong text that fits an error message.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_relay_address_survives_its_text_form() {
        let key = Some(Identity::from_seed(&[1; 32]).peer_id());
        for host in ["relay.example.org", "192.0.2.1", "2001:db8::1", "localhost", "::"] {
            for key in [key, None] {
                let address = RelayAddress { server: HostPort::new(host, 3478).unwrap(), key };
                assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }

    #[test]
    fn a_port_may_be_left_out() {
        let port = |text: &str| text.parse::<RelayAddress>().map(|address| address.server.port());
        assert_eq!(port("relay.example.org"), Ok(DEFAULT_PORT));
        assert_eq!(port(" [2001:db8::1] "), Ok(DEFAULT_PORT));
        assert_eq!(port("Relay.Example.org:7000"), Ok(7000));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long = "a".repeat(64);
        let many = "a.".repeat(200);
        let hosts =
            ["", ":443", "a b", "a..b", "-a.example", "2001:db8::1", "[192.0.2.1]:1", "[::1", "1.2.3", "256.1.1.1"];
        for text in hosts.into_iter().chain([long.as_str(), many.as_str(), "[::1]x", "user@host", "a/b", "é.example"])
        {
            assert!(text.parse::<RelayAddress>().is_err(), "{text}");
        }
        for text in ["a:0", "a:65536", "a:", "a:+1", "a:1:2", "[::1]:x"] {
            assert!(matches!(text.parse::<RelayAddress>(), Err(RelayAddressError::Port(_))), "{text}");
        }
        for text in ["a#", "a#aaaa", "a#!"] {
            assert_eq!(text.parse::<RelayAddress>(), Err(RelayAddressError::Key), "{text}");
        }
    }
}
