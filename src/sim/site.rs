//! [`SimSite`] and [`SimNat`]: where hosts and NATs stand, on the internet, behind a NAT, behind a firewall.

use std::net::IpAddr;

use super::firewall::{Firewall, FirewallOptions};
use super::host::SimHost;
use super::nat::NatOptions;
use super::network::{SimError, SimNetwork};
use super::topology::{NatId, Node, Realm, Spot};

/// A place for hosts and NATs: the internet, the network inside a NAT, or a part of either behind a firewall.
///
/// Each NAT's inside has addresses of its own: two homes may use the same ones. What a host sends to an address that its
/// network does not have goes out through the NAT; private addresses that no network on the way out has are not
/// passed on.
#[derive(Debug, Clone)]
pub struct SimSite {
    network: SimNetwork,
    spot: Spot,
}

impl SimSite {
    pub(super) fn new(network: SimNetwork, spot: Spot) -> Self {
        Self { network, spot }
    }

    /// The host that has this address here now, or a new one.
    ///
    /// # Panics
    /// When a NAT has the address, or it is not that of one host.
    pub fn host(&self, ip: IpAddr) -> SimHost {
        match self.find_host(ip) {
            Ok(host) => host,
            Err(error) => panic!("no host can be here: {error}"),
        }
    }

    /// A new NAT with this address on its outer side. Behind another NAT, it makes that one carrier-grade.
    ///
    /// # Errors
    /// When the address is taken, or is not that of one node.
    pub fn nat(&self, ip: IpAddr, options: NatOptions) -> Result<SimNat, SimError> {
        let id = self.network.hub.with(|state| state.router.add_nat(self.spot, ip, options))?;
        let inside = Self::new(self.network.clone(), Spot { realm: Realm::inside(id), firewall: None });
        Ok(SimNat { inside, id })
    }

    /// A part of this site behind a new firewall, which checks what goes between this part and everything else. Hosts and
    /// NATs made in it have addresses of this site. Firewalls do not nest: what is made in the part of a part has only the
    /// innermost before it.
    pub fn firewall(&self, options: FirewallOptions) -> SimSite {
        let firewall = self.network.hub.with(|state| state.router.topology.add_firewall(Firewall::new(options)));
        Self::new(self.network.clone(), Spot { firewall: Some(firewall), ..self.spot })
    }

    pub(super) fn spot(&self) -> Spot {
        self.spot
    }

    pub(super) fn find_host(&self, ip: IpAddr) -> Result<SimHost, SimError> {
        let id = self.network.hub.with(|state| state.router.topology.host(self.spot, ip))?;
        Ok(SimHost::new(self.network.clone(), id))
    }
}

/// A NAT box.
#[derive(Debug, Clone)]
pub struct SimNat {
    inside: SimSite,
    id: NatId,
}

impl SimNat {
    /// Its network inside. [`host`](Self::host) and [`nat`](Self::nat) are that site's.
    pub fn inside(&self) -> &SimSite {
        &self.inside
    }

    /// The host that has this address inside now, or a new one, see [`SimSite::host`].
    ///
    /// # Panics
    /// As [`SimSite::host`].
    pub fn host(&self, ip: IpAddr) -> SimHost {
        self.inside.host(ip)
    }

    /// A new NAT inside, see [`SimSite::nat`].
    ///
    /// # Errors
    /// As [`SimSite::nat`].
    pub fn nat(&self, ip: IpAddr, options: NatOptions) -> Result<SimNat, SimError> {
        self.inside.nat(ip, options)
    }

    /// Its address on the outer side.
    pub fn public_ip(&self) -> Option<IpAddr> {
        self.inside.network.hub.with(|state| state.router.topology.nat(self.id).map(|nat| nat.ip))
    }

    /// Mappings that live, of UDP and TCP.
    pub fn mappings(&self) -> usize {
        let network = &self.inside.network;
        network.hub.with(|state| state.router.topology.nat(self.id).map_or(0, |nat| nat.mappings(state.now)))
    }

    /// Forgets all mappings, as after a power cut. Packets from inside make new ones.
    pub fn reboot(&self) {
        self.inside.network.hub.with(|state| {
            if let Some(nat) = state.router.topology.nat_mut(self.id) {
                nat.reboot();
            }
        });
    }

    /// Reboots with another public address, as many providers give one every day.
    ///
    /// # Errors
    /// When the address is taken, or is not that of one node; nothing has changed then.
    pub fn reboot_with_address(&self, ip: IpAddr) -> Result<(), SimError> {
        self.inside.network.hub.with(|state| state.router.topology.change_nat_address(self.id, ip))?;
        self.reboot();
        Ok(())
    }

    /// Cuts it, and everything behind it, from the outside until [`reconnect`](Self::reconnect). Inside all goes on.
    pub fn isolate(&self) {
        self.inside.network.hub.with(|state| state.router.isolate(Node::Nat(self.id)));
    }

    /// Ends the isolation.
    pub fn reconnect(&self) {
        self.inside.network.hub.with(|state| state.router.reconnect(Node::Nat(self.id)));
    }
}
