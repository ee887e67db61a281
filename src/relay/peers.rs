//! To which addresses the relay sends what clients tell it to send: never into its own network, unless it was told so.
//!
//! Pure. Addresses that are IPv4 in disguise (mapped, 64:ff9b::/96, 6to4, Teredo) are refused as such: what they lead to
//! is somebody else's business, and a list for IPv4 must not be passed by spelling an address another way.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

/// Not `address/prefix`. Whoever wrote the configuration erred.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no network: an address, a slash and the length of a prefix are, as in 10.0.0.0/8")]
pub struct NetworkError(String);

/// All addresses with a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpNetwork {
    bits: u128,
    prefix: u32,
    v4: bool,
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u32) -> IpNetwork {
    IpNetwork { bits: Ipv4Addr::new(a, b, c, d).to_bits() as u128, prefix, v4: true }
}

const fn v6(bits: u128, prefix: u32) -> IpNetwork {
    IpNetwork { bits, prefix, v4: false }
}

/// What no client has a business to reach through a relay (RFC 6890 and its registries). Networks for documentation are
/// not among them: nothing is there.
const DENIED: [IpNetwork; 24] = [
    v4(0, 0, 0, 0, 8),                       // this host on this network, unspecified
    v4(10, 0, 0, 0, 8),                      // private
    v4(100, 64, 0, 0, 10),                   // carrier-grade NAT
    v4(127, 0, 0, 0, 8),                     // loopback
    v4(169, 254, 0, 0, 16),                  // link-local, metadata services of clouds
    v4(172, 16, 0, 0, 12),                   // private
    v4(192, 0, 0, 0, 24),                    // protocol assignments
    v4(192, 88, 99, 0, 24),                  // 6to4 anycast
    v4(192, 168, 0, 0, 16),                  // private
    v4(198, 18, 0, 0, 15),                   // benchmarks
    v4(224, 0, 0, 0, 4),                     // multicast
    v4(240, 0, 0, 0, 4),                     // reserved, broadcast
    v6(0, 96),                               // unspecified, loopback, IPv4-compatible
    v6(0xffff << 32, 96),                    // IPv4-mapped
    v6(0xffff << 48, 96),                    // IPv4-translated
    v6(0x0064_ff9b << 96, 96),               // NAT64
    v6((0x0064_ff9b << 96) | (1 << 80), 48), // NAT64 of a local network
    v6(0x0100 << 112, 64),                   // discard
    v6(0x2001 << 112, 32),                   // Teredo
    v6(0x2002 << 112, 16),                   // 6to4
    v6(0xfc00 << 112, 7),                    // unique local
    v6(0xfe80 << 112, 10),                   // link-local
    v6(0xfec0 << 112, 10),                   // site-local
    v6(0xff00 << 112, 8),                    // multicast
];

impl IpNetwork {
    /// Whether an address, as it is spelled, is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (bits, width, v4) = match ip {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32, true),
            IpAddr::V6(ip) => (ip.to_bits(), 128, false),
        };
        let rest = width - self.prefix.min(width);
        // A shift by all 128 bits is none: then every address is in it.
        v4 == self.v4 && bits.checked_shr(rest) == self.bits.checked_shr(rest)
    }
}

impl FromStr for IpNetwork {
    type Err = NetworkError;

    /// Reads `address/prefix`, or an address alone.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let wrong = || NetworkError(text.chars().take(64).collect());
        let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
        let (bits, width, v4) = match ip.parse().map_err(|_| wrong())? {
            IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32, true),
            IpAddr::V6(ip) => (ip.to_bits(), 128, false),
        };
        let prefix = prefix.map_or(Ok(width), str::parse).map_err(|_| wrong())?;
        if prefix > width { Err(wrong()) } else { Ok(Self { bits, prefix, v4 }) }
    }
}

impl fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip: IpAddr = match self.v4 {
            true => Ipv4Addr::from_bits(u32::try_from(self.bits).unwrap_or_default()).into(),
            false => Ipv6Addr::from_bits(self.bits).into(),
        };
        write!(f, "{ip}/{}", self.prefix)
    }
}

/// Which addresses clients may have the relay send to.
#[derive(Debug, Clone, Default)]
pub struct PeerPolicy {
    allowed: Vec<IpNetwork>,
    denied: Vec<IpNetwork>,
    own: Vec<IpAddr>,
}

impl PeerPolicy {
    /// Public addresses only.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also these networks, although they are not public. For relays of a private network, and for tests.
    pub fn with_allowed(mut self, networks: impl IntoIterator<Item = IpNetwork>) -> Self {
        self.allowed.extend(networks);
        self
    }

    /// Never these networks, whatever is allowed.
    pub fn with_denied(mut self, networks: impl IntoIterator<Item = IpNetwork>) -> Self {
        self.denied.extend(networks);
        self
    }

    /// Nor the relay's own addresses, unless they are allowed: what else runs there is not for clients.
    pub(super) fn with_own(mut self, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        self.own.extend(ips);
        self
    }

    /// Whether the relay may send to an address.
    pub fn allows(&self, ip: IpAddr) -> bool {
        let within = |networks: &[IpNetwork]| networks.iter().any(|network| network.contains(ip));
        let public = !within(&DENIED) && !self.own.contains(&ip);
        !within(&self.denied) && (within(&self.allowed) || public)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(policy: &PeerPolicy, ip: &str) -> bool {
        policy.allows(ip.parse().unwrap())
    }

    #[test]
    fn addresses_that_are_not_public_are_denied_however_they_are_spelled() {
        let denied = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:0:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2002:7f00:1::",
            "2002:a00:1::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
        ];
        for ip in denied {
            assert!(!allows(&PeerPolicy::new(), ip), "{ip}");
        }
        for ip in [
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.0",
            "172.32.0.1",
            "192.0.1.1",
            "203.0.113.1",
            "2001:db8::1",
            "2606:4700::1111",
            "2a00::1",
            "64:ff9c::1",
        ] {
            assert!(allows(&PeerPolicy::new(), ip), "{ip}");
        }
    }

    #[test]
    fn what_is_allowed_is_allowed_in_one_spelling_only() {
        let policy = PeerPolicy::new().with_allowed(["127.0.0.0/8".parse().unwrap()]);
        assert!(allows(&policy, "127.0.0.1"));
        assert!(!allows(&policy, "::ffff:127.0.0.1") && !allows(&policy, "::1") && !allows(&policy, "10.0.0.1"));
    }

    #[test]
    fn the_relays_own_address_is_denied_unless_it_is_allowed() {
        let own = PeerPolicy::new().with_own(["203.0.113.1".parse().unwrap()]);
        assert!(!allows(&own, "203.0.113.1") && allows(&own, "203.0.113.2"));
        assert!(allows(&own.with_allowed(["203.0.113.0/24".parse().unwrap()]), "203.0.113.1"));
    }

    #[test]
    fn what_is_denied_stays_denied() {
        let all = ["0.0.0.0/0", "::/0"].map(|text| text.parse().unwrap());
        let policy = PeerPolicy::new().with_allowed(all).with_denied(["203.0.113.7".parse().unwrap()]);
        assert!(allows(&policy, "10.0.0.1") && allows(&policy, "::1") && !allows(&policy, "203.0.113.7"));
    }

    #[test]
    fn a_network_survives_its_text_form() {
        for text in ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1/32", "::/0"] {
            assert_eq!(text.parse::<IpNetwork>().unwrap().to_string(), text);
        }
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/-1", "host/8"] {
            assert!(text.parse::<IpNetwork>().is_err(), "{text}");
        }
    }
}
