//! Where this node can be reached, and noticing when that changes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Weak;
use std::time::Duration;

use super::Node;
use crate::limits::PEER_ADDRESS_MAX_ADDRESSES;

/// How often the interfaces are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A pause in our own running that is longer than this means that the machine slept.
const SLEPT: Duration = Duration::from_secs(15);

/// Addresses to dial, for the addresses a socket is bound to: a wildcard stands for every interface's.
///
/// Loopback comes last: it helps two nodes on one machine, and elsewhere the key tells that it is somebody else.
pub(super) fn reachable(bound: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for bound in bound {
        if !bound.ip().is_unspecified() {
            addresses.push(*bound);
            continue;
        }
        // Without a list of interfaces there is still loopback.
        let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
        let ips = interfaces.into_iter().map(|interface| interface.ip());
        let fits = |ip: &IpAddr| bound.is_ipv6() || ip.is_ipv4();
        addresses.extend(ips.filter(fits).filter(is_dialable).map(|ip| SocketAddr::new(ip, bound.port())));
        addresses.push(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), bound.port()));
    }
    let mut seen = BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses.sort_by_key(|address| address.ip().is_loopback());
    addresses.truncate(PEER_ADDRESS_MAX_ADDRESSES);
    addresses
}

/// Link-local IPv6 addresses mean nothing without the interface they belong to.
fn is_dialable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_unicast_link_local() && !ip.is_loopback(),
    }
}

/// Looks at the interfaces from time to time: when they changed or the machine slept, peers hear of the new addresses and
/// everybody who is not connected is dialled at once.
pub(super) async fn follow(node: Weak<Node>) {
    let mut last: Option<(Vec<SocketAddr>, u64)> = None;
    while let Some(node) = node.upgrade() {
        let now = (reachable(&node.transport.local_addresses()), node.clock.now_us());
        if let Some((addresses, at_us)) = &last {
            let slept = Duration::from_micros(now.1.saturating_sub(*at_us)) > SLEPT;
            if *addresses != now.0 || slept {
                tracing::info!(slept, "the network changed");
                if let Ok(address) = node.address() {
                    node.documents.set_address(address);
                }
                node.connections.retry_now();
            }
        }
        last = Some(now);
        drop(node);
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_address_is_itself_and_a_wildcard_ends_with_loopback() {
        let bound: SocketAddr = "192.0.2.7:4000".parse().unwrap();
        assert_eq!(reachable(&[bound]), [bound]);
        let wildcard = reachable(&["[::]:4000".parse().unwrap()]);
        assert_eq!(wildcard.last(), Some(&"127.0.0.1:4000".parse().unwrap()));
        assert!(wildcard.iter().all(|address| address.port() == 4000 && !address.ip().is_unspecified()));
    }
}
