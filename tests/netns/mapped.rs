//! Nodes that ask their router for a port: miniupnpd is the router's, the nodes are the library in processes of their own.

use std::io::BufRead;
use std::process::Command;
use std::time::Duration;

use libtest_mimic::Trial;
use panda_network::transports::host::OsNetwork;
use panda_network::transports::port_mapping::probe;
use panda_network::{Durability, PandaNetwork, PandaNetworkOptions};

use crate::helper::helper;
use crate::nat::Nat;
use crate::port_mapping::{self, Speaks};
use crate::process::Process;
use crate::scene;
use crate::shell::{self, PATIENCE};
use crate::site::{Host, Server, Site};
use crate::world::World;

/// The relay's binary, if it was built: that takes the feature `cli`.
const PANDA: Option<&str> = option_env!("CARGO_BIN_EXE_panda");
/// How often a node's connections are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

pub fn trials() -> Vec<Trial> {
    let relay = PANDA.map(|_| ()).ok_or("needs the feature `cli`");
    let meet = |name: &str, speaks: Speaks| {
        scene(format!("mapped::{name}"), relay, move |world| two_symmetric_nats_meet_at_a_mapped_port(world, speaks))
    };
    vec![
        meet("two_symmetric_nats_meet_at_a_port_mapped_by_pcp", Speaks::Everything),
        meet("two_symmetric_nats_meet_at_a_port_mapped_by_upnp", Speaks::Upnp),
        scene("mapped::without_port_mapping_they_stay_at_the_relay".into(), relay, without_it_they_stay_at_the_relay),
        scene("mapped::a_router_says_what_it_speaks".into(), Ok(()), a_router_says_what_it_speaks),
    ]
}

fn two_symmetric_nats_meet_at_a_mapped_port(world: &World, speaks: Speaks) {
    let (server, left, right) = (world.server("relay"), world.site(Nat::Symmetric), world.site(Nat::Symmetric));
    let _miniupnpd = port_mapping::start_that(&left, speaks);
    let (_relay, relay) = start_relay(&server);
    let mut alice = node(&left.host(), &["share", &relay, "map"]);
    let ticket = alice.wait_for_prefix("ticket ");
    let mut bob = node(&right.host(), &["join", &relay, "map", &ticket]);
    bob.wait_for("the mapped path", PATIENCE, |line| (line == "path mapped port").then_some(()));
    assert!(mappings(&left).contains("dnat"), "{}", mappings(&left));
    alice.send_line("end");
    assert!(alice.wait(PATIENCE).success());
    shell::until("the port is given back", PATIENCE, || (!mappings(&left).contains("dnat")).then_some(()));
}

/// The same pair: it is the mapping that let them meet.
fn without_it_they_stay_at_the_relay(world: &World) {
    let (server, left, right) = (world.server("relay"), world.site(Nat::Symmetric), world.site(Nat::Symmetric));
    let _miniupnpd = port_mapping::start(&left);
    let (_relay, relay) = start_relay(&server);
    let mut alice = node(&left.host(), &["share", &relay, "no"]);
    let ticket = alice.wait_for_prefix("ticket ");
    let mut bob = node(&right.host(), &["join", &relay, "no", &ticket]);
    bob.wait_for("a path", PATIENCE, |line| line.starts_with("path ").then_some(()));
    assert!(!bob.log().contains("path mapped port"), "{}", bob.log());
    assert!(!mappings(&left).contains("dnat"), "{}", mappings(&left));
}

fn a_router_says_what_it_speaks(world: &World) {
    for (speaks, expected) in [
        (Some(Speaks::Everything), "upnp true pcp true nat_pmp true external Some"),
        (Some(Speaks::Upnp), "upnp true pcp false nat_pmp false external Some"),
        (None, "upnp false pcp false nat_pmp false external None"),
    ] {
        let site = world.site(Nat::Symmetric);
        let _miniupnpd = speaks.map(|speaks| port_mapping::start_that(&site, speaks));
        let told = site.host().run(&helper(&["probe"]), "");
        assert!(told.starts_with(expected), "{told}");
        let ip = site.public_ip().map(|ip| ip.to_string()).unwrap_or_default();
        assert!(speaks.is_none() || told.contains(&ip), "{told} instead of {ip}");
    }
}

/// The rules that miniupnpd made.
fn mappings(site: &Site) -> String {
    site.namespace().run(Command::new("nft").args(["list", "chain", "inet", "miniupnpd", "prerouting_miniupnpd"]), "")
}

fn start_relay(server: &Server) -> (Process, String) {
    let (ip, panda) = (server.ip(), PANDA.expect("a scene that needs it"));
    let listen = [format!("{ip}:443"), format!("{ip}:3478")];
    let mut command = Command::new(panda);
    command.args(["relay", "--listen", &listen[0], "--datagrams", &listen[1], "--public-address", &listen[0]]);
    let mut relay = server.spawn("relay", &command);
    let address = relay.wait_for("the relay's address", PATIENCE, |line| line.contains('#').then(|| line.to_owned()));
    (relay, address)
}

fn node(host: &Host, arguments: &[&str]) -> Process {
    let directory = host.directory().join(host.name());
    let directory = directory.to_str().expect("a path of letters");
    host.spawn(arguments[0], &helper(&[&["node", directory], arguments].concat()))
}

/// The helper's part: a node that tells `ticket <ticket>` and every `path <kind>`, until it reads a line.
pub fn run_node(directory: &str, relay: &str, port_mapping: bool, ticket: Option<&str>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let options = PandaNetworkOptions::new(directory)
            .with_durability(Durability::Process)
            .with_relays([relay])
            .with_port_mapping(port_mapping);
        let network = PandaNetwork::start(options).await.map_err(std::io::Error::other)?;
        let document = match ticket {
            Some(ticket) => network.open(ticket.parse().map_err(std::io::Error::other)?).await,
            None => network.create().await,
        };
        let document = document.map_err(std::io::Error::other)?;
        println!("ticket {}", document.ticket().await.map_err(std::io::Error::other)?);
        let (end, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || end.send(std::io::stdin().lock().lines().next()));
        let mut told = String::new();
        while ended.try_recv().is_err() {
            let path = network.connections().first().map(|(info, _)| format!("path {}", info.path));
            if let Some(path) = path.filter(|path| *path != told) {
                println!("{path}");
                told = path;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        network.shutdown(Duration::from_secs(5)).await.map_err(std::io::Error::other)
    })
}

/// The helper's part: what the router of this host speaks.
pub fn run_probe() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(probe(&OsNetwork));
    let (upnp, pcp, nat_pmp, external) = (report.upnp, report.pcp, report.nat_pmp, report.external);
    println!("upnp {upnp} pcp {pcp} nat_pmp {nat_pmp} external {external:?}");
    Ok(())
}
