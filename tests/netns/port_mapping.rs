//! miniupnpd on a site's router: hosts ask it for ports that are let in, by UPnP, NAT-PMP or PCP.

use std::fs;
use std::process::Command;

use crate::helper::helper;
use crate::process::Process;
use crate::shell::{self, PATIENCE};
use crate::site::Site;

/// Where it keeps its mappings. Its rules come before the NAT's own, so that a mapped port is also what a host shows outside.
const CHAINS: &str = r#"
table inet miniupnpd {
    chain forward { type filter hook forward priority filter; jump miniupnpd; }
    chain prerouting { type nat hook prerouting priority dstnat - 1; jump prerouting_miniupnpd; }
    chain postrouting { type nat hook postrouting priority srcnat - 1; jump postrouting_miniupnpd; }
    chain miniupnpd {}
    chain prerouting_miniupnpd {}
    chain postrouting_miniupnpd {}
}
"#;

/// What was asked for passes the firewall. (Rules of a cone NAT lead packets inside that the firewall has to refuse, so these
/// cannot be told apart there.)
const LET_IN: &str = "insert rule ip panda forward ct status dnat accept\n";

const CONFIGURATION: &str = "
ext_ifname=wan
listening_ip=lan
enable_upnp=yes
secure_mode=yes
uuid=6d1b1c1e-6a39-4c0b-9f0e-2d3c4b5a6978
upnp_table_name=miniupnpd
upnp_nat_table_name=miniupnpd
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
allow 1024-65535 192.168.0.0/16 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
";

/// By which protocols hosts can ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// UPnP, NAT-PMP and PCP.
    Everything,
    /// As most routers.
    Upnp,
}

/// Starts it on the router of a site whose NAT masquerades ([`crate::nat::Nat::LinuxFirewall`], `Symmetric`). It answers when
/// this returns, and runs until the result is dropped.
#[track_caller]
pub fn start(site: &Site) -> Process {
    start_that(site, Speaks::Everything)
}

/// The same, speaking less.
#[track_caller]
pub fn start_that(site: &Site, speaks: Speaks) -> Process {
    let router = site.namespace();
    router.nft(CHAINS);
    router.nft(LET_IN);
    let file = |name: &str| router.directory().join(format!("{}.{name}", router.name()));
    let (configuration, pid) = (file("conf"), file("pid"));
    let nat_pmp = if speaks == Speaks::Everything { "yes" } else { "no" };
    fs::write(&configuration, format!("{CONFIGURATION}enable_natpmp={nat_pmp}\n")).expect("the configuration's file");
    let mut command = Command::new("miniupnpd");
    let process = router.spawn("miniupnpd", command.arg("-d").arg("-f").arg(configuration).arg("-P").arg(pid));
    if speaks == Speaks::Upnp {
        // A node searches several times, so nothing is lost when it is not there yet.
        return process;
    }
    // A mapping of a port that nobody uses, taken back at once, from a host that is gone then.
    let host = site.host();
    let probe = helper(&["map", &site.gateway().to_string(), "9999", "0"]);
    shell::until("miniupnpd answers", PATIENCE, || host.try_run(&probe).ok());
    process
}
