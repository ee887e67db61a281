//! The relays whose sessions are up, and what they are used for. A plain value.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::relays::Relays;
use crate::rendezvous::address::RelayAddress;
use crate::transports::quic::addresses::canonical;
use crate::transports::relay_client::{RelayClient, RelayInfo};

/// What can be done with relays. Borrowed ones introduce and forward; for all else ours are used while one of them is up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// Where STUN is asked, as far as there are slots.
    pub(super) servers: Vec<SocketAddr>,
    /// Where forwarded datagrams come from.
    pub(super) forwarding: BTreeSet<SocketAddr>,
    /// Whose TURN servers are used: also those of ours that are down, while their credentials are good.
    pub(super) turn: BTreeSet<RelayAddress>,
}

impl Reached {
    /// `can_send_to`: whether this machine can send to an address at all.
    pub(super) fn of(relays: &Relays<RelayClient>, can_send_to: impl Fn(&SocketAddr) -> bool) -> Self {
        let (mut ours, mut others, mut turn) = (Vec::new(), Vec::new(), BTreeSet::new());
        for known in relays.all() {
            if known.is_kept() {
                turn.insert(known.address.clone());
            }
            if let Some(info) = known.session.info() {
                let infos = if known.is_kept() { &mut ours } else { &mut others };
                infos.push((known.address.clone(), addresses(&info, &can_send_to)));
            }
        }
        let forwarding = ours.iter().chain(&others).flat_map(|(_, addresses)| addresses.iter().copied()).collect();
        let used = if ours.is_empty() { others } else { ours };
        turn.extend(used.iter().map(|(relay, _)| relay.clone()));
        let used: Vec<_> = used.into_iter().map(|(_, addresses)| addresses).collect();
        Self { servers: in_turn(&used), forwarding, turn }
    }

    /// Those of a time before are reached as well, as far as that is known.
    pub(super) fn add(&mut self, before: &Self) {
        let new: Vec<_> = before.servers.iter().filter(|server| !self.servers.contains(server)).copied().collect();
        self.servers.extend(new);
        self.forwarding.extend(&before.forwarding);
    }
}

fn addresses(info: &RelayInfo, can_send_to: impl Fn(&SocketAddr) -> bool) -> Vec<SocketAddr> {
    info.datagrams().filter(can_send_to).map(canonical).collect()
}

/// Each once, the first of every relay before the second of any: one that names many keeps no other from being asked.
fn in_turn(of_relays: &[Vec<SocketAddr>]) -> Vec<SocketAddr> {
    let mut ranked: Vec<_> = of_relays.iter().flat_map(|addresses| addresses.iter().copied().enumerate()).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut servers = Vec::new();
    for (_, server) in ranked {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_relay_has_its_turn_before_any_has_a_second_one() {
        let at = |number: u8| SocketAddr::from(([192, 0, 2, number], 3478));
        let of_relays = [vec![at(1), at(2), at(3)], vec![at(9)], vec![at(1), at(4)]];
        assert_eq!(in_turn(&of_relays), [1, 9, 2, 4, 3].map(at));
    }
}
