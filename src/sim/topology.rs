//! Who is where: realms, the hosts and NATs in them, and the firewalls before these. Pure bookkeeping; the router asks it.
//!
//! A realm is a network with addresses of its own. Realm 0 is the internet; each NAT has one inside. An address means
//! something in its realm only, so two homes may use the same ones.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::firewall::Firewall;
use super::nat::NatBox;
use super::network::SimError;
use super::options::LinkOptions;

/// A network with addresses of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Realm(usize);

impl Realm {
    pub(super) const INTERNET: Self = Self(0);

    /// The realm inside a NAT.
    pub(super) fn inside(nat: NatId) -> Self {
        Self(nat.0 + 1)
    }

    /// The NAT that leads out of a realm; the internet has none.
    pub(super) fn nat(self) -> Option<NatId> {
        self.0.checked_sub(1).map(NatId)
    }
}

/// A host, wherever it moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostId(usize);

/// A NAT, whatever its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NatId(usize);

/// A firewall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FirewallId(usize);

/// What has addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Node {
    Host(HostId),
    Nat(NatId),
}

/// A spot where hosts and NATs can be put: a realm, perhaps behind a firewall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) realm: Realm,
    pub(super) firewall: Option<FirewallId>,
}

/// What is at an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) node: Node,
    pub(super) firewall: Option<FirewallId>,
}

#[derive(Debug)]
struct Host {
    /// Its addresses; the first of a family is the one it sends from.
    interfaces: Vec<(Realm, IpAddr)>,
    access_link: Option<LinkOptions>,
    /// False from a crash until something is bound again.
    up: bool,
}

#[derive(Debug)]
struct PlacedNat {
    outer: Realm,
    nat: NatBox,
}

/// Everything that has an address.
#[derive(Debug, Default)]
pub(super) struct Topology {
    hosts: Vec<Host>,
    nats: Vec<PlacedNat>,
    firewalls: Vec<Firewall>,
    places: BTreeMap<(Realm, IpAddr), Place>,
}

impl Topology {
    /// The host at an address, which is made if nobody is there.
    pub(super) fn host(&mut self, spot: Spot, ip: IpAddr) -> Result<HostId, SimError> {
        if let Some(place) = self.places.get_mut(&(spot.realm, ip)) {
            let Node::Host(host) = place.node else { return Err(SimError::AddressTaken(ip)) };
            place.firewall = spot.firewall.or(place.firewall);
            return Ok(host);
        }
        let host = HostId(self.hosts.len());
        self.claim(spot, ip, Node::Host(host))?;
        self.hosts.push(Host { interfaces: vec![(spot.realm, ip)], access_link: None, up: true });
        Ok(host)
    }

    /// Gives a host one more address.
    pub(super) fn add_address(&mut self, host: HostId, spot: Spot, ip: IpAddr) -> Result<(), SimError> {
        self.claim(spot, ip, Node::Host(host))?;
        if let Some(host) = self.hosts.get_mut(host.0) {
            host.interfaces.push((spot.realm, ip));
        }
        Ok(())
    }

    /// Takes a host's addresses and gives it another. It keeps them when that one is not to be had.
    pub(super) fn move_host(&mut self, host: HostId, spot: Spot, ip: IpAddr) -> Result<(), SimError> {
        if !self.owns(host, spot.realm, ip) {
            self.claim(spot, ip, Node::Host(host))?;
        }
        let Some(moved) = self.hosts.get_mut(host.0) else { return Ok(()) };
        for interface in std::mem::replace(&mut moved.interfaces, vec![(spot.realm, ip)]) {
            if interface != (spot.realm, ip) {
                self.places.remove(&interface);
            }
        }
        Ok(())
    }

    /// Puts a NAT at an address; `make` builds it from its number.
    pub(super) fn add_nat(
        &mut self,
        spot: Spot,
        ip: IpAddr,
        make: impl FnOnce(u64) -> NatBox,
    ) -> Result<NatId, SimError> {
        let id = NatId(self.nats.len());
        self.claim(spot, ip, Node::Nat(id))?;
        self.nats.push(PlacedNat { outer: spot.realm, nat: make(id.0 as u64) });
        Ok(id)
    }

    /// Gives a NAT another public address in the same realm, behind the same firewall.
    pub(super) fn change_nat_address(&mut self, id: NatId, ip: IpAddr) -> Result<(), SimError> {
        let Some(old) = self.nats.get(id.0).map(|placed| (placed.outer, placed.nat.ip)) else { return Ok(()) };
        if old.1 == ip {
            return Ok(());
        }
        let spot = Spot { realm: old.0, firewall: self.places.get(&old).and_then(|place| place.firewall) };
        self.claim(spot, ip, Node::Nat(id))?;
        self.places.remove(&old);
        if let Some(nat) = self.nat_mut(id) {
            nat.ip = ip;
        }
        Ok(())
    }

    pub(super) fn add_firewall(&mut self, firewall: Firewall) -> FirewallId {
        self.firewalls.push(firewall);
        FirewallId(self.firewalls.len() - 1)
    }

    pub(super) fn place(&self, realm: Realm, ip: IpAddr) -> Option<Place> {
        self.places.get(&(realm, ip)).copied()
    }

    pub(super) fn nat(&self, id: NatId) -> Option<&NatBox> {
        self.nats.get(id.0).map(|placed| &placed.nat)
    }

    pub(super) fn nat_mut(&mut self, id: NatId) -> Option<&mut NatBox> {
        self.nats.get_mut(id.0).map(|placed| &mut placed.nat)
    }

    /// The realm of a NAT's public address.
    pub(super) fn outer(&self, id: NatId) -> Option<Realm> {
        self.nats.get(id.0).map(|placed| placed.outer)
    }

    pub(super) fn firewall_mut(&mut self, id: FirewallId) -> Option<&mut Firewall> {
        self.firewalls.get_mut(id.0)
    }

    /// All addresses of a host, the first one first.
    pub(super) fn addresses(&self, host: HostId) -> Vec<IpAddr> {
        let interfaces = self.hosts.get(host.0).map(|host| host.interfaces.as_slice()).unwrap_or_default();
        interfaces.iter().map(|(_, ip)| *ip).collect()
    }

    /// The first address of a host.
    pub(super) fn first_address(&self, host: HostId) -> IpAddr {
        let first = self.hosts.get(host.0).and_then(|host| host.interfaces.first());
        first.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |(_, ip)| *ip)
    }

    /// The address a host sends from when it sends to `to`; `None` when it has none of that family.
    pub(super) fn source(&self, host: HostId, to: SocketAddr) -> Option<IpAddr> {
        if to.ip().is_loopback() {
            return Some(to.ip());
        }
        let interfaces = &self.hosts.get(host.0)?.interfaces;
        interfaces.iter().map(|(_, ip)| *ip).find(|ip| ip.is_ipv4() == to.is_ipv4())
    }

    /// Where a host has this address.
    pub(super) fn interface(&self, host: HostId, ip: IpAddr) -> Option<Realm> {
        let interfaces = &self.hosts.get(host.0)?.interfaces;
        interfaces.iter().find(|(_, own)| *own == ip).map(|(realm, _)| *realm)
    }

    /// The networks that a host is in.
    pub(super) fn realms(&self, host: HostId) -> impl Iterator<Item = Realm> {
        self.hosts.get(host.0).into_iter().flat_map(|host| host.interfaces.iter().map(|(realm, _)| *realm))
    }

    pub(super) fn set_access_link(&mut self, host: HostId, link: LinkOptions) {
        if let Some(host) = self.hosts.get_mut(host.0) {
            host.access_link = Some(link);
        }
    }

    /// The line that everything to and from a node crosses.
    pub(super) fn access_link(&self, node: Node) -> Option<&LinkOptions> {
        match node {
            Node::Host(id) => self.hosts.get(id.0)?.access_link.as_ref(),
            Node::Nat(id) => self.nats.get(id.0)?.nat.options.access_link.as_ref(),
        }
    }

    /// Conditions inside a NAT; `None` for the internet.
    pub(super) fn inside_link(&self, realm: Realm) -> Option<&LinkOptions> {
        realm.nat().and_then(|nat| self.nat(nat)).map(|nat| &nat.options.inside_link)
    }

    pub(super) fn set_up(&mut self, host: HostId, up: bool) {
        if let Some(host) = self.hosts.get_mut(host.0) {
            host.up = up;
        }
    }

    pub(super) fn is_up(&self, host: HostId) -> bool {
        self.hosts.get(host.0).is_some_and(|host| host.up)
    }

    /// False for a private address that is in no realm from this one outwards: routers do not pass such packets on.
    pub(super) fn has_route(&self, from: Realm, to: IpAddr) -> bool {
        let mut realm = from;
        loop {
            if self.places.contains_key(&(realm, to)) {
                return true;
            }
            match realm.nat().and_then(|nat| self.outer(nat)) {
                Some(outer) => realm = outer,
                None => return from == Realm::INTERNET || !is_private(to),
            }
        }
    }

    fn owns(&self, host: HostId, realm: Realm, ip: IpAddr) -> bool {
        self.hosts.get(host.0).is_some_and(|host| host.interfaces.contains(&(realm, ip)))
    }

    fn claim(&mut self, spot: Spot, ip: IpAddr, node: Node) -> Result<(), SimError> {
        check_unicast(ip)?;
        if self.places.contains_key(&(spot.realm, ip)) {
            return Err(SimError::AddressTaken(ip));
        }
        self.places.insert((spot.realm, ip), Place { node, firewall: spot.firewall });
        Ok(())
    }
}

/// Refuses what cannot be the address of one host.
fn check_unicast(ip: IpAddr) -> Result<(), SimError> {
    if ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() { Err(SimError::NotAHost(ip)) } else { Ok(()) }
}

/// RFC 1918, RFC 6598 (carriers), link-local; RFC 4193 and RFC 4291 for IPv6.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            ip.is_private() || ip.is_link_local() || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(ip) => is_private_v6(ip),
    }
}

fn is_private_v6(ip: Ipv6Addr) -> bool {
    ip.is_unique_local() || ip.is_unicast_link_local()
}
