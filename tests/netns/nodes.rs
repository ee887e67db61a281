//! Real `panda` processes, one at each host of a pair.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::Trial;

use crate::matrix::{self, Pair};
use crate::nat::Nat;
use crate::process::Process;
use crate::shell::{self, PATIENCE};
use crate::site::Host;
use crate::world::World;

/// The binary, if it was built: that takes the feature `cli`.
const PANDA: Option<&str> = option_env!("CARGO_BIN_EXE_panda");

/// Pairs of which the left one can be reached without help.
pub fn trials() -> Vec<Trial> {
    let reachable = |pair: &Pair| match pair {
        Pair::Sites(left, right) => *left == Nat::None && *right != Nat::UdpBlocked,
        Pair::OneNetwork(_) => true,
        Pair::OneCarrier(_) => false,
    };
    let needs = PANDA.map(|_| ()).ok_or("needs the feature `cli`");
    matrix::trials("nodes", needs, matrix::pairs().into_iter().filter(reachable), two_nodes_share_a_file)
}

/// What one writes into a file is in the other's, both ways.
fn two_nodes_share_a_file(world: &World, pair: Pair) {
    let (left, right) = pair.hosts(world);
    let (left_file, right_file) = (file(&left), file(&right));
    fs::write(&left_file, "from the left\n").expect("the left file");
    let mut sharing = panda(&left, &["share"], &left_file);
    let ticket = sharing.wait_for("a ticket", PATIENCE, |line| line.starts_with("panda:").then(|| line.to_owned()));
    let _joined = panda(&right, &["join", &ticket], &right_file);
    arrives(&right_file, "from the left\n");
    fs::write(&right_file, "from the left\nfrom the right\n").expect("the right file");
    arrives(&left_file, "from the left\nfrom the right\n");
}

/// Runs `panda` at a host; its data directory is the host's own.
fn panda(host: &Host, arguments: &[&str], file: &Path) -> Process {
    let mut command = Command::new(PANDA.expect("a scene that needs it"));
    command.arg("-v").args(arguments).arg(file).args(["--durability", "process", "--data-dir"]);
    host.spawn(arguments[0], command.arg(host.directory().join(host.name())))
}

fn file(host: &Host) -> PathBuf {
    host.directory().join(format!("{}.md", host.name()))
}

#[track_caller]
fn arrives(file: &Path, text: &str) {
    let what = format!("{text:?} in {}", file.display());
    shell::until(&what, PATIENCE, || (fs::read_to_string(file).ok()? == text).then_some(()));
}
