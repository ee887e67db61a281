//! Real `panda` processes, one at each host of a pair.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;

use crate::matrix::{self, Pair, Way};
use crate::nat::Nat;
use crate::process::Process;
use crate::scene;
use crate::shell::{self, PATIENCE};
use crate::site::{Host, Server};
use crate::turn::{self, Turn};
use crate::world::World;

/// The binary, if it was built: that takes the feature `cli`.
pub const PANDA: Option<&str> = option_env!("CARGO_BIN_EXE_panda");

pub fn trials() -> Vec<Trial> {
    let needs = PANDA.map(|_| ()).ok_or("needs the feature `cli`");
    let with_relay = matrix::trials("nodes", needs, matrix::pairs(), two_nodes_with_our_relay);
    let by_turn = matrix::pairs().into_iter().filter(|pair| pair.way() != Way::Direct);
    let with_coturn = matrix::trials("coturn", needs, by_turn, two_nodes_with_coturn);
    let told = |nat: Nat| scene(format!("doctor::{nat}"), needs, move |world| a_doctor_names_it(world, nat));
    let doctors = Nat::ALL.into_iter().filter(|nat| *nat != Nat::UdpBlocked).map(told);
    with_relay.into_iter().chain(with_coturn).chain(doctors).collect()
}

/// What coturn's own client finds out, in `behaviour::`.
fn a_doctor_names_it(world: &World, nat: Nat) {
    let server = world.server("stun");
    let turn = Turn::start(&server);
    let host = world.host(nat);
    let mut doctor = Command::new(PANDA.expect("a scene that needs it"));
    doctor.args(["doctor", "--json", "--stun", &turn.address().to_string()]);
    let mut doctor = host.spawn("doctor", &doctor);
    let report = doctor.wait_for("a report", PATIENCE, |line| line.starts_with('{').then(|| line.to_owned()));
    let mapping = match (nat, nat.maps_independently()) {
        (Nat::None, _) => "none",
        (_, true) => "endpoint-independent",
        (_, false) => "address and port-dependent",
    };
    let filtering = match (nat.admits_strangers(), nat.admits_other_ports()) {
        (true, _) => "endpoint-independent",
        (false, true) => "address-dependent",
        (false, false) => "address and port-dependent",
    };
    assert!(report.contains(&format!("\"mapping\":\"{mapping}\"")), "expected {mapping}: {report}");
    assert!(report.contains(&format!("\"filtering\":\"{filtering}\"")), "expected {filtering}: {report}");
}

fn two_nodes_with_our_relay(world: &World, pair: Pair) {
    let server = world.server("relay");
    let relay = relay(&server, "");
    two_nodes_share_a_file(world, pair, &relay.1);
}

/// The relay introduces and forwards nothing; STUN is its own, TURN is coturn's.
fn two_nodes_with_coturn(world: &World, pair: Pair) {
    let (server, turn) = (world.server("relay"), world.server("coturn"));
    let coturn = Turn::start(&turn);
    let (ip, secret) = (turn.ip(), turn::SECRET);
    let servers = format!("\"turn:{ip}:3478?transport=udp\", \"turn:{ip}:443?transport=tcp\"");
    let relay = relay(
        &server,
        &format!("[turn]\nmode = \"external\"\nservers = [{servers}]\nsecret = \"{secret}\"\n[limits]\nflows = 0\n"),
    );
    two_nodes_share_a_file(world, pair, &relay.1);
    drop(coturn);
}

/// A relay, and the address that its users are given.
fn relay(server: &Server, more: &str) -> (Process, String) {
    let config = server.directory().join("relay.toml");
    let ip = server.ip();
    let text = format!(
        "public_address = \"{ip}:443\"\nlisten = \"{ip}:443\"\ndatagrams = \"{ip}:3478\"\nrelay_ips = [\"{ip}\"]\n{more}"
    );
    fs::write(&config, text).expect("relay.toml");
    let mut command = Command::new(PANDA.expect("a scene that needs it"));
    let mut process = server.spawn("relay", command.args(["relay", "--config"]).arg(config));
    let wanted = format!("{ip}:443#");
    let address = process.wait_for("the relay's address", PATIENCE, |line| {
        line.split_whitespace().find(|word| word.starts_with(&wanted)).map(str::to_owned)
    });
    (process, address)
}

/// What one writes into a file is in the other's, both ways, and in the end by the best path that the NATs allow.
fn two_nodes_share_a_file(world: &World, pair: Pair, relay: &str) {
    let (left, right) = pair.hosts(world);
    let (left_file, right_file) = (file(&left), file(&right));
    fs::write(&left_file, "from the left\n").expect("the left file");
    let mut sharing = panda(&left, &["share", "--relay", relay], &left_file);
    let ticket = sharing.wait_for("a ticket", PATIENCE, |line| line.starts_with("panda:").then(|| line.to_owned()));
    let mut joined = panda(&right, &["join", &ticket], &right_file);
    arrives(&right_file, "from the left\n");
    fs::write(&right_file, "from the left\nfrom the right\n").expect("the right file");
    arrives(&left_file, "from the left\nfrom the right\n");
    let paths = expected(pair);
    joined.wait_for(&format!("one of the paths {paths:?}"), PATIENCE, |line| {
        paths.iter().any(|path| line.contains(&format!("1 peer ({path})"))).then_some(())
    });
}

/// What the status line may say in the end.
fn expected(pair: Pair) -> &'static [&'static str] {
    match (pair, pair.way()) {
        (Pair::OneNetwork(_), _) => &["same network"],
        (_, Way::Direct) => &["direct", "punched"],
        (_, Way::Relayed) => &["relayed", "relayed (TURN)"],
        (_, Way::RelayedOverTcp) => &["relayed (TURN over TLS)", "relayed (TURN over TCP)", "relayed (TURN)"],
    }
}

/// Runs `panda` at a host; its data directory is the host's own.
pub fn panda(host: &Host, arguments: &[&str], file: &Path) -> Process {
    let mut command = Command::new(PANDA.expect("a scene that needs it"));
    command.arg("-v").args(arguments).arg(file).args(["--durability", "process", "--data-dir"]);
    host.spawn(arguments[0], command.arg(host.directory().join(host.name())))
}

pub fn file(host: &Host) -> PathBuf {
    host.directory().join(format!("{}.md", host.name()))
}

#[track_caller]
pub fn arrives(file: &Path, text: &str) {
    let what = format!("{text:?} in {}", file.display());
    shell::until(&what, PATIENCE, || (fs::read_to_string(file).ok()? == text).then_some(()));
}
