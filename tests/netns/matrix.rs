//! Every pair of NATs that two peers may sit behind, and whether they can reach each other without a relay.
//!
//! [`trials`] plays one scene for each pair:
//!
//! ```ignore
//! fn two_nodes_share_a_document(world: &World, pair: &Pair) {
//!     let relay = world.server("relay");
//!     let (left, right) = pair.hosts(world);
//!     let mut left = left.spawn("left", Command::new(PANDA).args(["share", ..]));
//!     // ... and pair.way() is what the two have to find
//! }
//! ```

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
    /// In one network, behind one NAT.
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
        let is = |wanted: fn(Nat) -> bool| match self {
            Self::Sites(left, right) => (wanted(left), wanted(right)),
            Self::OneNetwork(nat) | Self::OneCarrier(nat) => (wanted(nat), wanted(nat)),
        };
        if let (true, _) | (_, true) = is(|nat| nat == Nat::UdpBlocked) {
            return Way::RelayedOverTcp;
        }
        if let Self::OneNetwork(nat) | Self::OneCarrier(nat) = self {
            return if nat == Nat::Hairpin { Way::Direct } else { Way::Relayed };
        }
        // A port of a symmetric NAT is only known to who is let in from any port.
        let (left_moves, right_moves) = is(|nat| !nat.maps_independently());
        let (left_admits, right_admits) = is(Nat::admits_other_ports);
        let works = (!left_moves || right_admits) && (!right_moves || left_admits);
        if works { Way::Direct } else { Way::Relayed }
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

/// One test for each pair. `what` begins its name: `punch::symmetric_and_full-cone`.
pub fn trials(what: &str, play: fn(&World, Pair)) -> Vec<Trial> {
    let trial = |pair: Pair| scene(format!("{what}::{pair}"), move |world| play(world, pair));
    pairs().into_iter().map(trial).collect()
}
