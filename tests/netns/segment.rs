//! A layer-2 network: a bridge in a namespace, addresses in one prefix, and links to whoever is attached.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::link::Link;
use crate::world::Namespace;

/// Interfaces of a segment's namespace would otherwise speak up by themselves, and the host's firewall settings for bridges
/// would send bridged packets through the NAT's rules.
const QUIET: [(&str, u32); 3] = [
    ("net/ipv6/conf/all/disable_ipv6", 1),
    ("net/ipv6/conf/default/disable_ipv6", 1),
    ("net/bridge/bridge-nf-call-iptables", 0),
];

/// Handles are cheap.
#[derive(Clone, Debug)]
pub struct Segment {
    namespace: Namespace,
    bridge: &'static str,
    /// Of the bridge itself: the default route of all who are attached.
    gateway: Ipv4Addr,
    prefix: u8,
    last_address: Arc<AtomicU32>,
    /// Whether multicast goes from one member to the others.
    multicast: bool,
}

impl Segment {
    /// The bridge is made in `namespace` and has the first address of the network. On the internet multicast goes nowhere, and
    /// what has no address there vanishes at the gateway, which does not forward.
    pub fn new(namespace: Namespace, bridge: &'static str, (network, prefix): (Ipv4Addr, u8)) -> Self {
        namespace.set(&QUIET);
        let gateway = Ipv4Addr::from_bits(network.to_bits() + 1);
        namespace.ip(&format!(
            "link add name {bridge} type bridge mcast_snooping 0
             link set dev {bridge} up
             addr add {gateway}/{prefix} dev {bridge}"
        ));
        let last_address = Arc::new(AtomicU32::new(gateway.to_bits()));
        Self { namespace, bridge, gateway, prefix, last_address, multicast: bridge != "internet" }
    }

    /// Attaches a machine, by an interface of that name, as its way to everywhere.
    pub fn attach(&self, inside: &Namespace, interface: &'static str, link: &Link) -> Uplink {
        let number = inside.number();
        let (port, near, far) = (format!("port{number}"), format!("near{number}"), format!("far{number}"));
        let arguments = link.forwarder(&near, &far);
        let (options, bridge, inside_name) = (link.interface(), self.bridge, inside.name());
        let multicast = if self.multicast { "on" } else { "off" };
        let pairs = match &arguments {
            None => format!("link add name {port} type veth peer name {interface} netns {inside_name}"),
            Some(_) => format!(
                "link add name {near} type veth peer name {interface} netns {inside_name}
                 link add name {far} type veth peer name {port}
                 link set dev {near} up {options}
                 link set dev {far} up {options}"
            ),
        };
        self.namespace.ip(&format!(
            "{pairs}
             link set dev {port} master {bridge}
             link set dev {port} type bridge_slave mcast_flood {multicast}
             link set dev {port} up {options}"
        ));
        let address = self.next_address();
        let (prefix, gateway) = (self.prefix, self.gateway);
        inside.ip(&format!(
            "link set dev {interface} up {options}
             addr add {address}/{prefix} dev {interface}
             route add default via {gateway}"
        ));
        if let Some(shaper) = link.shaper() {
            inside.tc(&format!("qdisc replace dev {interface} {shaper}"));
            self.namespace.tc(&format!("qdisc replace dev {port} {shaper}"));
        }
        if let Some(arguments) = arguments {
            let mut process = self.namespace.spawn("link", Command::new("python3").arg("-I").args(arguments));
            process.wait_for_prefix("ready");
            self.namespace.keep(number, process);
        }
        Uplink { segment: self.clone(), inside: inside.clone(), interface, address, number }
    }

    /// A new machine, not attached yet.
    pub fn sibling(&self, label: &str) -> Namespace {
        self.namespace.sibling(label)
    }

    /// One more address of this network, of which nobody else knows.
    pub fn next_address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.last_address.fetch_add(1, Ordering::Relaxed) + 1)
    }

    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

/// The link between a machine and a segment.
#[derive(Debug)]
pub struct Uplink {
    segment: Segment,
    inside: Namespace,
    interface: &'static str,
    address: Ipv4Addr,
    /// In the names of the interfaces at the segment's side, and the forwarder's.
    number: u32,
}

impl Uplink {
    /// The machine's address on this link.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Lets multicast through to the machine, also on the internet: IPv6 finds its neighbours by it.
    pub fn pass_multicast(&self) {
        self.segment.namespace.ip(&format!("link set dev port{} type bridge_slave mcast_flood on", self.number));
    }

    /// Nothing passes any more. The machine keeps its address and routes; without a forwarder it sees that the carrier is lost.
    pub fn cut(&self) {
        self.segment.namespace.ip(&format!("link set dev port{} down", self.number));
    }

    pub fn restore(&self) {
        self.segment.namespace.ip(&format!("link set dev port{} up", self.number));
    }

    /// Takes the interface away from the machine, with address and routes.
    pub fn remove(self) {
        self.inside.ip(&format!("link delete dev {}", self.interface));
        // One of a pair takes the other with it; a forwarder has a second pair.
        if self.segment.namespace.release(self.number).is_some() {
            self.segment.namespace.ip(&format!("link delete dev port{}", self.number));
        }
    }
}
