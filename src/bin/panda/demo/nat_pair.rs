//! `--nat A,B`: what is between each of two nodes and the internet, by name.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use panda_network::sim::{Place, UnknownPlace};

/// Where Alice is, and where Bob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NatPair(pub Place, pub Place);

impl FromStr for NatPair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (alice, bob) = text.split_once(',').ok_or_else(|| {
            format!(
                "two kinds of NAT with a comma in between are needed, of {}",
                Place::ALL.map(Place::name).join(", ")
            )
        })?;
        let place = |text: &str| text.trim().parse().map_err(|unknown: UnknownPlace| unknown.to_string());
        Ok(Self(place(alice)?, place(bob)?))
    }
}

impl Display for NatPair {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_read_as_it_is_written() {
        for (alice, bob) in Place::ALL.into_iter().flat_map(|alice| Place::ALL.map(|bob| (alice, bob))) {
            let pair = NatPair(alice, bob);
            assert_eq!(pair.to_string().parse(), Ok(pair));
        }
        assert_eq!("public, symmetric".parse(), Ok(NatPair(Place::Public, Place::Symmetric)));
    }

    #[test]
    fn what_is_not_understood_is_answered_with_everything_that_is() {
        for wrong in ["", "symmetric", "symmetric,cone", "conical,public", "public,public,public", "Public,public"] {
            let error = wrong.parse::<NatPair>().unwrap_err();
            assert!(Place::ALL.iter().all(|kind| error.contains(kind.name())), "{wrong:?}: {error}");
        }
    }
}
