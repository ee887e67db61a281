//! What this machine must have for a world: root, tools, a kernel that does it.

use std::fs;
use std::process::Command;
use std::sync::LazyLock;

use crate::shell;
use crate::world;

/// Programs, all installed by `.ci/install-netns.sh`.
const TOOLS: [&str; 10] = [
    "ip",
    "tc",
    "nft",
    "ping",
    "python3",
    "turnserver",
    "turnutils_natdiscovery",
    "turnutils_uclient",
    "miniupnpd",
    "conntrack",
];

static MET: LazyLock<Result<(), String>> = LazyLock::new(look);

/// Whether scenes can be played here; if not, why. Looked up once; removes what killed runs left, on the way.
pub fn met() -> Result<(), String> {
    MET.clone()
}

fn look() -> Result<(), String> {
    let found = |tool: &&str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|directory| directory.join(tool).is_file())
    };
    let missing: Vec<_> = TOOLS.iter().filter(|tool| !found(tool)).copied().collect();
    if !missing.is_empty() {
        return Err(format!("not installed: {}", missing.join(", ")));
    }
    // The second is the effective user.
    let is_root = fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
    });
    if !is_root {
        return Err("needs root".into());
    }
    try_it().map_err(|problem| format!("no network namespaces here: {}", problem.trim().replace('\n', "; ")))
}

/// Makes a namespace with a router in it: a container's root may lack the right, a kernel the modules.
fn try_it() -> Result<(), String> {
    world::remove_leftovers()?;
    let name = world::name_of(&world::own_tag(), u32::MAX);
    let ip = |words: &[&str]| shell::try_run(Command::new("ip").args(words), "").map(drop);
    let inside = |words: &[&str], input| {
        shell::try_run(Command::new("ip").args(["netns", "exec", &name]).args(words), input).map(drop)
    };
    let rules =
        "table ip t { chain c { type nat hook postrouting priority srcnat; masquerade random,fully-random; }; }";
    ip(&["netns", "add", &name])?;
    let result = inside(&["nft", "-f", "-"], rules)
        .and_then(|()| inside(&["ip", "link", "add", "name", "lan", "type", "bridge"], ""))
        .and_then(|()| inside(&["sh", "-e"], "echo 1 > /proc/sys/net/ipv4/ip_forward\n"));
    ip(&["netns", "delete", &name])?;
    result
}
