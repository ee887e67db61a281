//! The machines of a world: sites with a NAT, hosts behind it, servers with two public addresses.

use std::net::Ipv4Addr;
use std::ops::Deref;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::link::Link;
use crate::nat::Nat;
use crate::segment::{Segment, Uplink};
use crate::world::Namespace;

/// A network behind a NAT; for [`Nat::None`] a place at the internet. Handles are cheap.
#[derive(Clone, Debug)]
pub struct Site {
    /// Where its hosts are attached.
    segment: Segment,
    /// How its hosts are attached.
    link: Link,
    router: Option<Arc<Router>>,
}

#[derive(Debug)]
struct Router {
    namespace: Namespace,
    uplink: Uplink,
    nat: Nat,
}

impl Site {
    /// A place on a segment itself: its hosts have the link.
    pub fn public(segment: Segment, link: Link) -> Self {
        Self { segment, link, router: None }
    }

    /// A router with a network behind it: the router has the link.
    pub fn new(nat: Nat, namespace: Namespace, upstream: &Segment, link: &Link, lan: (Ipv4Addr, u8)) -> Self {
        let segment = Segment::new(namespace.clone(), "lan", lan);
        let uplink = upstream.attach(&namespace, "wan", link);
        if let Some(rules) = nat.rules(uplink.address()) {
            namespace.nft(&rules);
        }
        // Last, so that nothing passes without the NAT.
        namespace.set(&[("net/ipv4/ip_forward", 1)]);
        Self { segment, link: Link::new(), router: Some(Arc::new(Router { namespace, uplink, nat })) }
    }

    /// A new host in here.
    pub fn host(&self) -> Host {
        let namespace = self.segment.sibling("host");
        let uplink = self.segment.attach(&namespace, "eth0", &self.link);
        Host { namespace, uplink: Mutex::new(Some(uplink)) }
    }

    /// The address that the router shows to the outside. None for a site without a router.
    pub fn public_ip(&self) -> Option<Ipv4Addr> {
        self.router.as_ref().map(|router| router.uplink.address())
    }

    /// Cuts the link between router and internet: to the hosts, packets vanish.
    #[track_caller]
    pub fn cut(&self) {
        self.router().uplink.cut();
    }

    #[track_caller]
    pub fn restore(&self) {
        self.router().uplink.restore();
    }

    /// The router forgets every mapping and whom its hosts have contacted, as after a restart.
    #[track_caller]
    pub fn forget_mappings(&self) {
        let Router { namespace, uplink, nat } = self.router();
        // The sets of the rules remember too; a table that is made again has empty ones.
        if let Some(rules) = nat.rules(uplink.address()) {
            namespace.nft(&format!("delete table ip panda\n{rules}"));
        }
        namespace.run(Command::new("conntrack").arg("-F"), "");
    }

    /// See [`Uplink::pass_multicast`].
    #[track_caller]
    pub fn pass_multicast(&self) {
        self.router().uplink.pass_multicast();
    }

    /// The router, to run things like a port mapping daemon on it.
    #[track_caller]
    pub fn namespace(&self) -> &Namespace {
        &self.router().namespace
    }

    /// The router's address for its hosts.
    pub fn gateway(&self) -> Ipv4Addr {
        self.segment.gateway()
    }

    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    #[track_caller]
    fn router(&self) -> &Router {
        self.router.as_ref().expect("this site has no router: unplug its host instead")
    }
}

/// A machine with one interface. Runs commands as the namespace that it is.
#[derive(Debug)]
pub struct Host {
    namespace: Namespace,
    /// Always there, but for the moment of a move.
    uplink: Mutex<Option<Uplink>>,
}

impl Host {
    /// Its present address, as itself sees it.
    pub fn ip(&self) -> Ipv4Addr {
        self.with_uplink(Uplink::address)
    }

    /// Pulls the cable: the interface loses its carrier and keeps its address.
    pub fn unplug(&self) {
        self.with_uplink(Uplink::cut);
    }

    pub fn plug(&self) {
        self.with_uplink(Uplink::restore);
    }

    /// Leaves its network and joins another: the interface goes with address and routes, a new one comes. Processes stay.
    pub fn move_to(&self, site: &Site) {
        let mut uplink = self.uplink();
        if let Some(old) = uplink.take() {
            old.remove();
        }
        *uplink = Some(site.segment.attach(&self.namespace, "eth0", &site.link));
    }

    fn with_uplink<T>(&self, look: impl FnOnce(&Uplink) -> T) -> T {
        look(self.uplink().as_ref().expect("a host is attached to a site"))
    }

    fn uplink(&self) -> MutexGuard<'_, Option<Uplink>> {
        self.uplink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}

/// A machine at the internet with two addresses, as RFC 5780 wants a STUN server to have.
#[derive(Debug)]
pub struct Server {
    namespace: Namespace,
    uplink: Uplink,
    second: Ipv4Addr,
}

impl Server {
    pub fn new(namespace: Namespace, internet: &Segment) -> Self {
        let uplink = internet.attach(&namespace, "eth0", &Link::new());
        let second = internet.next_address();
        namespace.ip(&format!("addr add {second}/{} dev eth0", internet.prefix()));
        Self { namespace, uplink, second }
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.uplink.address()
    }

    /// See [`Uplink::pass_multicast`].
    pub fn pass_multicast(&self) {
        self.uplink.pass_multicast();
    }

    pub fn second_ip(&self) -> Ipv4Addr {
        self.second
    }

    /// Nobody reaches it any more.
    pub fn cut(&self) {
        self.uplink.cut();
    }

    pub fn restore(&self) {
        self.uplink.restore();
    }
}

impl Deref for Server {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.namespace
    }
}
