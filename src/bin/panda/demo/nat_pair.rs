//! `--nat A,B`: what is between each of two nodes and the internet, by name.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

/// What is between a node and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
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
    /// A firewall that lets nothing but TCP to port 443 out.
    UdpBlocked,
}

impl NatKind {
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

    /// As it is written on the command line.
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
}

impl FromStr for NatKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == text.trim());
        known.ok_or_else(|| format!("{text:?} is no kind of NAT; there are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Where Alice is, and where Bob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatPair(pub NatKind, pub NatKind);

impl FromStr for NatPair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (alice, bob) = text.split_once(',').ok_or_else(|| {
            format!(
                "two kinds of NAT with a comma in between are needed, of {}",
                NatKind::ALL.map(NatKind::name).join(", ")
            )
        })?;
        Ok(Self(alice.parse()?, bob.parse()?))
    }
}

impl Display for NatPair {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.0.name(), self.1.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_read_as_it_is_written() {
        for (alice, bob) in NatKind::ALL.into_iter().flat_map(|alice| NatKind::ALL.map(|bob| (alice, bob))) {
            let pair = NatPair(alice, bob);
            assert_eq!(pair.to_string().parse(), Ok(pair));
        }
        assert_eq!("public, symmetric".parse(), Ok(NatPair(NatKind::Public, NatKind::Symmetric)));
    }

    #[test]
    fn what_is_not_understood_is_answered_with_everything_that_is() {
        for wrong in ["", "symmetric", "symmetric,cone", "conical,public", "public,public,public", "Public,public"] {
            let error = wrong.parse::<NatPair>().unwrap_err();
            assert!(NatKind::ALL.iter().all(|kind| error.contains(kind.name())), "{wrong:?}: {error}");
        }
    }
}
