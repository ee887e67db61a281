//! [`Place`]: what commonly is between a node and the internet, each with a name.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

use super::firewall::FirewallOptions;
use super::host::SimHost;
use super::nat::NatOptions;
use super::network::{SimError, SimNetwork};
use super::site::SimSite;

/// What is between a node and the internet.
///
/// ```
/// use panda_network::sim::{self, Place, SimNetwork};
///
/// sim::run(1, |sim| async move {
///     let network = SimNetwork::new(sim.options());
///     let laptop = Place::PortRestricted.host(&network, 1)?;
///     let phone = "carrier-grade".parse::<Place>().expect("a place").host(&network, 2)?;
/// #   assert_eq!((laptop.ip(), phone.ip()), ([192, 168, 1, 2].into(), [192, 168, 1, 2].into()));
/// #   Ok::<_, panda_network::sim::SimError>(())
/// # }).unwrap();
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Nothing.
    Public,
    /// A NAT that lets everybody in where it let one out.
    FullCone,
    /// A NAT that lets in whom was sent something, from any port.
    AddressRestricted,
    /// A NAT that lets in what answers; most homes have it.
    PortRestricted,
    /// A NAT with another port for everybody who is spoken to.
    Symmetric,
    /// The same, but it keeps ports where it can.
    SymmetricPreserving,
    /// A provider's NAT with a home's NAT behind it.
    CarrierGrade,
    /// A firewall that lets nothing but TCP to port 443 out, with a NAT behind it.
    UdpBlocked,
}

/// Whoever wrote the name erred.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no kind of NAT; there are {list}", list = Place::ALL.map(Place::name).join(", "))]
pub struct UnknownPlace(String);

impl Place {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::Public,
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::Symmetric,
        Self::SymmetricPreserving,
        Self::CarrierGrade,
        Self::UdpBlocked,
    ];

    /// Its name; parsing understands the same.
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::FullCone => "full-cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::Symmetric => "symmetric",
            Self::SymmetricPreserving => "symmetric-preserving",
            Self::CarrierGrade => "carrier-grade",
            Self::UdpBlocked => "udp-blocked",
        }
    }

    /// A host at a new place of this kind, see [`site`](Self::site).
    ///
    /// # Errors
    /// As [`site`](Self::site).
    ///
    /// # Panics
    /// As [`SimNetwork::host`]: for a host without a NAT where a NAT is.
    pub fn host(self, network: &SimNetwork, number: u8) -> Result<SimHost, SimError> {
        let (site, ip) = self.site(network, number)?;
        Ok(site.host(ip))
    }

    /// A new place of this kind, and the address of a host there, for a host that [moves](SimHost::move_to) to it. Its public
    /// address is 198.51.100.`number`; behind a NAT the host's own is 192.168.1.2.
    ///
    /// # Errors
    /// When there is a NAT of this number already.
    pub fn site(self, network: &SimNetwork, number: u8) -> Result<(SimSite, IpAddr), SimError> {
        let (public, home) = (IpAddr::from([198, 51, 100, number]), IpAddr::from([192, 168, 1, 2]));
        let nat = match self {
            Self::Public => return Ok((network.internet(), public)),
            Self::CarrierGrade => {
                let carrier = network.nat(public, NatOptions::carrier_grade())?;
                carrier.nat([100, 64, 0, number].into(), NatOptions::port_restricted())?
            }
            Self::UdpBlocked => {
                network.firewall(FirewallOptions::tcp_443_only()).nat(public, NatOptions::port_restricted())?
            }
            Self::FullCone => network.nat(public, NatOptions::full_cone())?,
            Self::AddressRestricted => network.nat(public, NatOptions::address_restricted())?,
            Self::PortRestricted => network.nat(public, NatOptions::port_restricted())?,
            Self::Symmetric => network.nat(public, NatOptions::symmetric())?,
            Self::SymmetricPreserving => network.nat(public, NatOptions::symmetric_preserving_ports())?,
        };
        Ok((nat.inside().clone(), home))
    }
}

impl FromStr for Place {
    type Err = UnknownPlace;

    fn from_str(text: &str) -> Result<Self, UnknownPlace> {
        let known = Self::ALL.into_iter().find(|place| place.name() == text);
        known.ok_or_else(|| UnknownPlace(text.chars().take(64).collect()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
