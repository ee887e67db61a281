//! IPv6 in the kernel: global addresses, no NAT, and at each site a stateful firewall that lets nothing in unasked. Real
//! `panda` processes and our relay, which listens on both families.
//!
//! The internet is 2001:db8::/64; router `n` is 2001:db8::n there, and its network is 2001:db8:0:n::/64.

use std::fs;
use std::process::Command;

use libtest_mimic::Trial;

use crate::nat::Nat;
use crate::nodes::{PANDA, arrives, file, panda};
use crate::process::Process;
use crate::scene;
use crate::shell::PATIENCE;
use crate::site::{Host, Server, Site};
use crate::world::{Namespace, World};

/// What the relay is at the internet, as routers have their number.
const RELAY: u16 = 0x99;

/// What home routers do for IPv6 (RFC 6092), and a count of the datagrams that it let pass.
const FIREWALL: &str = r#"table ip6 panda {
    chain forward {
        type filter hook forward priority filter; policy drop;
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, packet-too-big } accept
        meta l4proto udp ct state established,related counter accept
        ct state established,related accept
        iifname "lan" accept
    }
}
"#;

pub fn trials() -> Vec<Trial> {
    let needs = PANDA.map(|_| ()).ok_or("needs the feature `cli`");
    vec![
        scene("ipv6::two_symmetric_nats_meet_through_both_firewalls".into(), needs, beside_symmetric_nats),
        scene("ipv6::a_host_without_ipv4_meets_one_with_both".into(), needs, without_ipv4),
        scene("ipv6::a_host_without_ipv4_and_one_without_ipv6_meet_at_the_relay".into(), needs, nothing_in_common),
    ]
}

/// The matrix has the same pair without IPv6: there it stays at the relay.
fn beside_symmetric_nats(world: &World) {
    let (relay, sites) = internet(world);
    let addresses = start_relay(&relay);
    let (left, right) = (host(&sites[0], 1), host(&sites[1], 2));
    share_a_file([&left, &right], [&addresses.four, &addresses.four], "1 peer (direct)");
    for site in &sites {
        let rules = site.namespace().run(Command::new("nft").args(["list", "chain", "ip6", "panda", "forward"]), "");
        let counted = rules.lines().find_map(|line| line.split("packets ").nth(1)?.split(' ').next()?.parse().ok());
        assert!(counted.is_some_and(|packets: u64| packets > 10), "{rules}");
    }
}

fn without_ipv4(world: &World) {
    let (relay, sites) = internet(world);
    let addresses = start_relay(&relay);
    let (left, right) = (host(&sites[0], 1), host(&sites[1], 2));
    Namespace::ip(&left, &format!("addr del {}/24 dev eth0", Host::ip(&left)));
    share_a_file([&left, &right], [&addresses.six, &addresses.four], "1 peer (direct)");
}

fn nothing_in_common(world: &World) {
    let (relay, sites) = internet(world);
    let addresses = start_relay(&relay);
    let (left, right) = (host(&sites[0], 1), sites[1].host());
    Namespace::ip(&left, &format!("addr del {}/24 dev eth0", Host::ip(&left)));
    share_a_file([&left, &right], [&addresses.six, &addresses.four], "1 peer (relayed)");
}

/// A machine for the relay, and two sites behind NATs that cannot be punched, all with IPv6.
fn internet(world: &World) -> (Server, [Site; 2]) {
    let (relay, sites) = (world.server("relay"), [(); 2].map(|()| world.site(Nat::Symmetric)));
    relay.pass_multicast();
    on_the_internet(&relay, "eth0", RELAY);
    for (site, number) in sites.iter().zip(1..) {
        site.pass_multicast();
        let router = site.namespace();
        router.nft(FIREWALL);
        on_the_internet(router, "wan", number);
        router.ip(&format!("addr add 2001:db8:0:{number:x}::1/64 dev lan nodad"));
        router.set(&[("net/ipv6/conf/all/forwarding", 1)]);
    }
    (relay, sites)
}

/// Gives a machine its address at the internet, and the routes to the others' networks.
fn on_the_internet(machine: &Namespace, interface: &str, own: u16) {
    enable(machine);
    machine.ip(&format!("addr add 2001:db8::{own:x}/64 dev {interface} nodad"));
    for other in (1..=2).filter(|other| *other != own) {
        machine.ip(&format!("route add 2001:db8:0:{other:x}::/64 via 2001:db8::{other:x}"));
    }
}

/// A host in the network of router `number`.
fn host(site: &Site, number: u16) -> Host {
    let host = site.host();
    enable(&host);
    Namespace::ip(
        &host,
        &format!(
            "addr add 2001:db8:0:{number:x}::2/64 dev eth0 nodad
         route add ::/0 via 2001:db8:0:{number:x}::1"
        ),
    );
    host
}

/// Worlds are quiet about IPv6 unless they are told otherwise.
fn enable(machine: &Namespace) {
    machine.set(&[("net/ipv6/conf/all/disable_ipv6", 0), ("net/ipv6/conf/default/disable_ipv6", 0)]);
}

/// A relay's addresses, one per family, as its users are given them.
struct Addresses {
    _relay: Process,
    four: String,
    six: String,
}

fn start_relay(server: &Server) -> Addresses {
    let config = server.directory().join("relay.toml");
    let ip = server.ip();
    let text = format!(
        "public_address = \"{ip}:443\"\nlisten = \"[::]:443\"\ndatagrams = \"[::]:3478\"\nidentity = \"key\"\n"
    );
    fs::write(&config, text).expect("relay.toml");
    let mut command = Command::new(PANDA.expect("a scene that needs it"));
    command.current_dir(server.directory());
    let mut relay = server.spawn("relay", command.args(["relay", "--config"]).arg(config));
    let wanted = format!("{ip}:443#");
    let four = relay.wait_for("the relay's address", PATIENCE, |line| {
        line.split_whitespace().find(|word| word.starts_with(&wanted)).map(str::to_owned)
    });
    let six = four.replace(&format!("{ip}:"), &format!("[2001:db8::{RELAY:x}]:"));
    Addresses { _relay: relay, four, six }
}

/// What one writes is in the other's file, both ways, and in the end by the expected path.
fn share_a_file([left, right]: [&Host; 2], relays: [&str; 2], status: &str) {
    let (left_file, right_file) = (file(left), file(right));
    fs::write(&left_file, "from the left\n").expect("the left file");
    let mut sharing = panda(left, &["share", "--relay", relays[0]], &left_file);
    let ticket = sharing.wait_for("a ticket", PATIENCE, |line| line.starts_with("panda:").then(|| line.to_owned()));
    let mut joined = panda(right, &["join", "--relay", relays[1], &ticket], &right_file);
    arrives(&right_file, "from the left\n");
    fs::write(&right_file, "from the left\nfrom the right\n").expect("the right file");
    arrives(&left_file, "from the left\nfrom the right\n");
    joined.wait_for(status, PATIENCE, |line| line.contains(status).then_some(()));
}
