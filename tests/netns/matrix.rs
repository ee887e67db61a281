//! Every pair of NATs that two peers may sit behind, and whether they can reach each other without a relay.
//!
//! [`trials`] plays one scene for each pair, like those in `nodes`: a function of a `&World` and a `Pair`, which gives the two
//! hosts ([`Pair::hosts`]) and says what they have to find ([`Pair::way`]).

use std::fmt::{self, Display};

use libtest_mimic::Trial;

use crate::link::Link;
use crate::nat::Nat;
use crate::scene;
use crate::site::Host;
use crate::world::World;

/// The kinds of which every pair is in the table.
const COMMON: [Nat; 5] =
    [Nat::FullCone, Nat::AddressRestricted, Nat::PortRestricted, Nat::LinuxFirewall, Nat::Symmetric];

/// Where two peers sit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// At a site each.
    Sites(Nat, Nat),
    /// In one network, behind one NAT; what [`Pair::way`] says is about their public addresses.
    OneNetwork(Nat),
    /// At homes with a Linux firewall, behind one carrier's NAT.
    OneCarrier(Nat),
}

/// How packets get from one peer to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Hole punching works.
    Direct,
    /// Only over a relay: neither knows a port of the other that would let its packets in.
    Relayed,
    /// Only over a relay, and one of the peers reaches that over TCP port 443 alone.
    RelayedOverTcp,
}

impl Pair {
    pub fn way(self) -> Way {
        let (left, right) = match self {
            Self::Sites(left, right) => (left, right),
            // They know each other's public addresses, which are the same.
            Self::OneNetwork(nat) | Self::OneCarrier(nat) => {
                return if nat == Nat::Hairpin { Way::Direct } else { Way::Relayed };
            }
        };
        if left == Nat::UdpBlocked || right == Nat::UdpBlocked {
            return Way::RelayedOverTcp;
        }
        // A port that is another one for every peer is only met by who lets in from any port.
        let meets = |mover: Nat, other: Nat| mover.maps_independently() || other.admits_other_ports();
        if meets(left, right) && meets(right, left) { Way::Direct } else { Way::Relayed }
    }

    /// The two hosts, in a world of theirs.
    pub fn hosts(self, world: &World) -> (Host, Host) {
        match self {
            Self::Sites(left, right) => (world.host(left), world.host(right)),
            Self::OneNetwork(nat) => {
                let site = world.site(nat);
                (site.host(), site.host())
            }
            Self::OneCarrier(nat) => {
                let carrier = world.carrier(nat, &Link::new());
                let home = || world.site_behind(Nat::LinuxFirewall, &carrier).host();
                (home(), home())
            }
        }
    }
}

impl Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sites(left, right) => write!(f, "{left}_and_{right}"),
            Self::OneNetwork(nat) => write!(f, "one_network_behind_{nat}"),
            Self::OneCarrier(nat) => write!(f, "two_homes_behind_one_{nat}_carrier"),
        }
    }
}

/// The whole table.
pub fn pairs() -> Vec<Pair> {
    let all_common = COMMON.into_iter().flat_map(|left| COMMON.map(|right| Pair::Sites(left, right)));
    let public = COMMON.into_iter().chain([Nat::None]).map(|nat| Pair::Sites(Nat::None, nat));
    let others = COMMON.into_iter().chain([Nat::None, Nat::UdpBlocked, Nat::CarrierGrade]);
    let blocked = others.map(|nat| Pair::Sites(Nat::UdpBlocked, nat));
    let carriers = [Nat::CarrierGrade, Nat::Symmetric].map(|nat| Pair::Sites(Nat::CarrierGrade, nat));
    let together =
        [Pair::OneNetwork(Nat::Hairpin), Pair::OneCarrier(Nat::Hairpin), Pair::OneCarrier(Nat::PortRestricted)];
    all_common.chain(public).chain(blocked).chain(carriers).chain(together).collect()
}

/// One test for each of these pairs. `what` begins its name: `punch::symmetric_and_full-cone`. With an error in `needs` they
/// are ignored for that reason.
pub fn trials(
    what: &str,
    needs: Result<(), &'static str>,
    pairs: impl IntoIterator<Item = Pair>,
    play: impl Fn(&World, Pair) + Copy + Send + 'static,
) -> Vec<Trial> {
    let trial = |pair: Pair| scene(format!("{what}::{pair}"), needs, move |world| play(world, pair));
    pairs.into_iter().map(trial).collect()
}
