//! Kinds of NAT, and the nftables rules that make the kernel behave like each.
//!
//! Interfaces are `wan` and `lan`. A packet that comes too early is dropped before a connection is remembered for it: else it
//! would occupy the tuple that the punch from inside needs, and the kernel would give that another port.

use std::fmt::{self, Display};
use std::net::Ipv4Addr;

/// What stands between a host and the internet. Mapping and filtering behaviour by RFC 4787.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nat {
    /// Nothing: the host has a public address and no firewall.
    None,
    /// Endpoint-independent mapping and filtering.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering.
    AddressRestricted,
    /// Endpoint-independent mapping, address- and port-dependent filtering.
    PortRestricted,
    /// What a Linux router with a firewall does by itself; behaves as port-restricted.
    LinuxFirewall,
    /// Address- and port-dependent mapping (a random port for each peer) and filtering.
    Symmetric,
    /// Lets TCP to port 443 out, and nothing else.
    UdpBlocked,
    /// Port-restricted, and leads packets for its own public address back inside.
    Hairpin,
    /// A Linux firewall at home, behind a port-restricted carrier.
    CarrierGrade,
}

impl Nat {
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::LinuxFirewall,
        Self::Symmetric,
        Self::UdpBlocked,
        Self::Hairpin,
        Self::CarrierGrade,
    ];

    /// Whether every peer sees the same mapped port.
    pub fn maps_independently(self) -> bool {
        self != Self::Symmetric
    }

    /// Whether a packet from an address that was contacted passes from a port that was not.
    pub fn admits_other_ports(self) -> bool {
        matches!(self, Self::None | Self::FullCone | Self::AddressRestricted)
    }

    /// Whether a packet from an address that was never contacted passes.
    pub fn admits_strangers(self) -> bool {
        matches!(self, Self::None | Self::FullCone)
    }

    /// Rules of one router, for `nft -f`. `wan` is its outer address. None for kinds that are not one router.
    pub fn rules(self, wan: Ipv4Addr) -> Option<String> {
        let rules = match self {
            Self::None | Self::CarrierGrade => return None,
            Self::FullCone => cone(wan, FROM_OUTSIDE, ""),
            Self::AddressRestricted => cone(wan, FROM_OUTSIDE, ADDRESS_FILTER),
            Self::PortRestricted => cone(wan, FROM_OUTSIDE, PORT_FILTER),
            Self::Hairpin => cone(wan, "", &(turn_around(wan) + PORT_FILTER)),
            Self::LinuxFirewall => masquerade("masquerade", PORT_FILTER),
            Self::Symmetric => masquerade("masquerade random,fully-random", PORT_FILTER),
            Self::UdpBlocked => masquerade("masquerade", HTTPS_ONLY),
        };
        Some(format!("table ip panda {{\n{rules}{INPUT}}}\n"))
    }
}

impl Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "public",
            Self::FullCone => "full-cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::LinuxFirewall => "linux-firewall",
            Self::Symmetric => "symmetric",
            Self::UdpBlocked => "udp-blocked",
            Self::Hairpin => "hairpin",
            Self::CarrierGrade => "carrier-grade",
        })
    }
}

/// The router itself answers nobody outside.
const INPUT: &str = r#"
    chain input {
        type filter hook input priority filter
        ct state established,related accept
        iifname "wan" drop
    }
"#;

const PORT_FILTER: &str = r#"
    chain forward {
        type filter hook forward priority filter
        ct state established,related accept
        iifname "wan" drop
    }
"#;

const ADDRESS_FILTER: &str = r#"
    set contacted { type ipv4_addr . ipv4_addr . inet_service; flags dynamic; size 65535; }
    chain forward {
        type filter hook forward priority filter
        iifname "lan" meta l4proto udp update @contacted { ip daddr . ip saddr . udp sport }
        ct state established,related accept
        iifname "wan" meta l4proto udp ip saddr . ip daddr . udp dport @contacted accept
        iifname "wan" drop
    }
"#;

const HTTPS_ONLY: &str = r#"
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        iifname "lan" tcp dport 443 accept
    }
"#;

fn masquerade(how: &str, filter: &str) -> String {
    format!(
        r#"
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname "wan" {how}
    }}
{filter}"#
    )
}

const FROM_OUTSIDE: &str = r#"iifname "wan""#;

/// Endpoint-independent mapping: the mapped port is remembered, whoever sends to it. Ports are kept, so two hosts behind
/// one such router must not use the same port. `from`: which packets for the public address are led inside.
fn cone(wan: Ipv4Addr, from: &str, filter: &str) -> String {
    format!(
        r#"
    map mapped {{ type inet_service : ipv4_addr . inet_service; flags dynamic; size 65535; }}
    chain prerouting {{
        type nat hook prerouting priority dstnat
        {from} ip daddr {wan} meta l4proto udp dnat ip to udp dport map @mapped
    }}
    chain remember {{
        type filter hook postrouting priority srcnat - 1
        oifname "wan" meta l4proto udp update @mapped {{ udp sport : ip saddr . udp sport }}
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname "wan" snat to {wan}
    }}
{filter}"#
    )
}

/// Who comes back in shows its public address, as to anybody else.
fn turn_around(wan: Ipv4Addr) -> String {
    format!(
        r#"
    chain turn_around {{
        type nat hook postrouting priority srcnat
        iifname "lan" oifname "lan" ct status dnat snat to {wan}
    }}
"#
    )
}
