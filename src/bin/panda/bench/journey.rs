//! `--nat A,B,C`: where Alice is, where Bob is, and where he goes from there.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;

use panda_network::sim::Place;

/// Places that a journey may have: more would take minutes and say nothing new.
const MAX_PLACES: usize = 16;

/// Alice stays where she is; Bob goes from place to place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Journey {
    /// What Alice is behind.
    pub alice: Place,
    /// What Bob is behind, one after the other; at least one.
    pub bob: Vec<Place>,
}

impl FromStr for Journey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let places = text.split(',').map(|place| place.trim().parse::<Place>()).collect::<Result<Vec<_>, _>>();
        let places = places.map_err(|unknown| unknown.to_string())?;
        match places.split_first() {
            Some((alice, bob)) if !bob.is_empty() && places.len() <= MAX_PLACES => {
                Ok(Self { alice: *alice, bob: bob.to_vec() })
            }
            _ => {
                Err(format!("2 to {MAX_PLACES} kinds of NAT are needed: Alice's, Bob's, and where Bob goes from there"))
            }
        }
    }
}

impl Display for Journey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.alice.name())?;
        self.bob.iter().try_for_each(|place| write!(f, ",{}", place.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journey_is_read_as_it_is_written() {
        for text in ["public,public", "port-restricted,symmetric,udp-blocked,port-restricted"] {
            assert_eq!(text.parse::<Journey>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_journey_needs_both_and_known_places_and_an_end() {
        for wrong in ["", "public", "public,conical", &vec!["public"; MAX_PLACES + 1].join(",")] {
            assert!(wrong.parse::<Journey>().is_err(), "{wrong:?}");
        }
    }
}
