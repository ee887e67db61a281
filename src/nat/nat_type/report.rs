//! What the tests found, in the words of RFC 4787 and in plain ones.

use std::net::SocketAddr;

/// On what a socket's mapped address depends (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MappingBehaviour {
    /// On nothing: everybody sees the same.
    EndpointIndependent,
    /// On the address that it sends to.
    AddressDependent,
    /// On address and port that it sends to ("symmetric").
    AddressAndPortDependent,
}

/// Who may send to a mapped address (RFC 4787 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FilteringBehaviour {
    /// Everybody.
    EndpointIndependent,
    /// Hosts that the socket has sent to.
    AddressDependent,
    /// Addresses and ports that the socket has sent to.
    AddressAndPortDependent,
}

/// How a socket is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// Not at all: servers see our own address.
    NoNat,
    /// Like this.
    Behaviour(MappingBehaviour),
    /// Differently for different servers; whether their port matters was not found out.
    Dependent,
    /// No answer, or too few.
    Unknown,
}

impl Mapping {
    /// Whether peers can use the address that a server sees.
    pub fn is_predictable(self) -> bool {
        matches!(self, Self::NoNat | Self::Behaviour(MappingBehaviour::EndpointIndependent))
    }
}

impl std::fmt::Display for MappingBehaviour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address and port-dependent",
        })
    }
}

impl std::fmt::Display for FilteringBehaviour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::EndpointIndependent => "endpoint-independent",
            Self::AddressDependent => "address-dependent",
            Self::AddressAndPortDependent => "address and port-dependent",
        })
    }
}

impl std::fmt::Display for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoNat => f.write_str("none"),
            Self::Behaviour(behaviour) => behaviour.fmt(f),
            Self::Dependent => f.write_str("address-dependent, perhaps port-dependent"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// What is known about the way out of this network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatReport {
    /// Where a server sees us; `None`: UDP is blocked, or no server is there.
    pub mapped: Option<SocketAddr>,
    /// How addresses are mapped.
    pub mapping: Mapping,
    /// Who is let in; `None`: no server could test it. Without a NAT this is the firewall.
    pub filtering: Option<FilteringBehaviour>,
    /// Whether mapped ports are the local ones; `None` without an answer.
    pub port_preserved: Option<bool>,
    /// Whether our own mapped addresses lead back to us (RFC 4787 §6); `None` when not tested. Expected without a NAT.
    pub hairpin: Option<bool>,
}

impl NatReport {
    /// No server answered: UDP does not get through, or back.
    pub fn udp_blocked(&self) -> bool {
        self.mapped.is_none()
    }

    /// What it means for who reads it, in one or two sentences.
    pub fn plain_words(&self) -> &'static str {
        if self.udp_blocked() {
            return "UDP is blocked in this network, or no server was reachable. Connections need a relay over TCP or TLS.";
        }
        match (self.mapping, self.filtering) {
            (Mapping::NoNat, Some(FilteringBehaviour::EndpointIndependent)) => {
                "There is no NAT and no firewall: everybody can connect directly."
            }
            (Mapping::NoNat, _) => {
                "There is no NAT. A firewall may ask both sides to start at the same time, which they do."
            }
            (
                Mapping::Behaviour(MappingBehaviour::EndpointIndependent),
                Some(FilteringBehaviour::EndpointIndependent),
            ) => "A friendly NAT (\"full cone\"): everybody can connect directly.",
            (Mapping::Behaviour(MappingBehaviour::EndpointIndependent), _) => {
                "A common NAT: direct connections work with nearly everybody, after both sides start at the same time."
            }
            (
                Mapping::Dependent
                | Mapping::Behaviour(MappingBehaviour::AddressDependent | MappingBehaviour::AddressAndPortDependent),
                _,
            ) => {
                "A strict NAT (\"symmetric\"): direct connections work with peers behind no or friendly NATs; others need a relay."
            }
            (Mapping::Unknown, _) => {
                "UDP works. What kind of NAT there is could not be found out: that needs a second server."
            }
        }
    }
}
