//! Addresses of sockets: one spelling for each, and which ones reach this machine.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use crate::limits::PEER_ADDRESS_MAX_ADDRESSES;

/// Addresses of this machine at which a socket bound to `bound` is reached: a wildcard stands for every interface's.
///
/// Loopback comes last: it helps two nodes on one machine, and elsewhere the key tells that it is somebody else.
pub(super) fn host_addresses(bound: SocketAddr, interfaces: &[IpAddr]) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![canonical(bound)];
    }
    let fits = |ip: &IpAddr| bound.is_ipv6() || ip.is_ipv4();
    let loopback = IpAddr::from([127, 0, 0, 1]);
    let ips = interfaces.iter().map(IpAddr::to_canonical).filter(fits).filter(is_dialable).chain([loopback]);
    let mut seen = BTreeSet::new();
    let mut addresses: Vec<_> = ips.filter(|ip| seen.insert(*ip)).map(|ip| SocketAddr::new(ip, bound.port())).collect();
    addresses.sort_by_key(|address| address.ip().is_loopback());
    shorten(&mut addresses, PEER_ADDRESS_MAX_ADDRESSES);
    addresses
}

/// Leaves so many addresses of this machine in their order. Those that help least go: loopback, and the last private ones,
/// which may be those of networks of containers.
pub(super) fn shorten(addresses: &mut Vec<SocketAddr>, most: usize) {
    let mut ranked = addresses.clone();
    ranked.sort_by_key(|address| (address.ip().is_loopback(), is_private(address.ip())));
    let gone: BTreeSet<_> = ranked.into_iter().skip(most).collect();
    addresses.retain(|address| !gone.contains(address));
}

/// Link-local IPv6 addresses mean nothing without the interface they belong to.
fn is_dialable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_unicast_link_local() && !ip.is_loopback(),
    }
}

/// The addresses that a network gives this machine: what changes when it comes into another one. Not those of a single
/// interface, and in no order, since containers and virtual machines come and go with some of their own.
pub(super) fn outside(interfaces: &[IpAddr]) -> BTreeSet<IpAddr> {
    interfaces.iter().map(IpAddr::to_canonical).filter(|ip| is_dialable(ip) && !ip.is_loopback()).collect()
}

/// Whether a machine with these interfaces has an address of the family of `to`: without one nothing can be sent there.
pub(super) fn has_family(interfaces: &[IpAddr], to: IpAddr) -> bool {
    let to = to.to_canonical();
    let outside = outside(interfaces);
    // Interfaces that cannot be listed forbid nothing.
    to.is_loopback() || outside.is_empty() || outside.iter().any(|ip| ip.is_ipv4() == to.is_ipv4())
}

/// Addresses that mean something in one network only.
pub(super) fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// Whether anybody can be at this address.
pub(super) fn is_destination(address: &SocketAddr) -> bool {
    let ip = address.ip().to_canonical();
    address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast()
}

/// One spelling per address: IPv4 as IPv4, no flow label.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match (address, address.ip().to_canonical()) {
        (SocketAddr::V6(v6), IpAddr::V6(ip)) => SocketAddr::V6(SocketAddrV6::new(ip, v6.port(), 0, v6.scope_id())),
        (address, ip) => SocketAddr::new(ip, address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_address_is_itself_and_a_wildcard_ends_with_loopback() {
        let bound: SocketAddr = "192.0.2.7:4000".parse().unwrap();
        assert_eq!(host_addresses(bound, &[]), [bound]);
        let interfaces = ["127.0.0.1", "192.0.2.7", "fe80::1", "2001:db8::7", "::1"].map(|ip| ip.parse().unwrap());
        let wildcard = host_addresses("[::]:4000".parse().unwrap(), &interfaces);
        let expected = ["192.0.2.7:4000", "[2001:db8::7]:4000", "127.0.0.1:4000"];
        assert_eq!(wildcard, expected.map(|address| address.parse::<SocketAddr>().unwrap()));
        let only_v4 = host_addresses("0.0.0.0:4000".parse().unwrap(), &interfaces);
        assert!(only_v4.iter().all(SocketAddr::is_ipv4));
    }

    #[test]
    fn networks_of_containers_displace_neither_the_first_private_address_nor_the_public_one() {
        let containers = (0..30).map(|number| format!("172.17.{number}.1"));
        let interfaces = ["127.0.0.1".to_owned(), "192.168.1.2".to_owned()].into_iter().chain(containers);
        let interfaces = interfaces.chain(["2001:db8::7".to_owned()]).map(|ip| ip.parse().unwrap());
        let interfaces: Vec<IpAddr> = interfaces.collect();
        let mut addresses = host_addresses("[::]:4000".parse().unwrap(), &interfaces);
        assert_eq!(addresses.len(), PEER_ADDRESS_MAX_ADDRESSES);
        shorten(&mut addresses, 3);
        let expected = ["192.168.1.2:4000", "172.17.0.1:4000", "[2001:db8::7]:4000"];
        assert_eq!(addresses, expected.map(|address| address.parse::<SocketAddr>().unwrap()));
    }

    #[test]
    fn link_local_addresses_and_another_order_are_no_other_network() {
        let network = |interfaces: &[&str]| {
            let interfaces: Vec<_> = interfaces.iter().map(|ip| ip.parse().unwrap()).collect();
            outside(&interfaces)
        };
        let home = network(&["127.0.0.1", "192.168.1.2", "2001:db8::7", "fe80::1"]);
        assert_eq!(home, network(&["2001:db8::7", "fe80::1", "fe80::2", "::1", "192.168.1.2"]));
        assert_ne!(home, network(&["127.0.0.1", "192.168.1.3", "2001:db8::7"]));
        assert_ne!(home, network(&["127.0.0.1", "192.168.1.2"]));
    }

    #[test]
    fn what_has_no_address_of_a_family_cannot_send_to_it() {
        let has = |interfaces: &[&str], to: &str| {
            let interfaces: Vec<_> = interfaces.iter().map(|ip| ip.parse().unwrap()).collect();
            has_family(&interfaces, to.parse().unwrap())
        };
        let (four, six) = ("203.0.113.1", "2001:db8::1");
        let only_four = ["127.0.0.1", "192.0.2.7", "::1", "fe80::1"];
        assert!(has(&only_four, four) && has(&only_four, "::ffff:203.0.113.1") && !has(&only_four, six));
        let only_six = ["127.0.0.1", "2001:db8::7"];
        assert!(has(&only_six, six) && !has(&only_six, four) && has(&only_six, "127.0.0.2"));
        assert!(has(&[], four) && has(&["127.0.0.1"], six), "what is not known forbids nothing");
    }
}
