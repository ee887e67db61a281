//! A small internet of its own in network namespaces, for one scene.
//!
//! [`World::play`] makes it, plays a scene in it and takes it down; on failure the logs of all its processes are shown.
//! Inside, [`World::server`] gives machines with two public addresses and [`World::site`] a NAT with a network behind it.
//! Worlds do not see each other and may all use the same addresses. What a killed test process left behind is removed by
//! [`remove_leftovers`]: namespaces are named after process and start time.
//!
//! IPv4 only, but for the scenes of `ipv6`, which bring its addresses and routes along.

use std::collections::HashMap;
use std::fs;
use std::net::Ipv4Addr;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use libtest_mimic::Failed;
use tempfile::TempDir;

use crate::link::Link;
use crate::nat::Nat;
use crate::process::{self, Process};
use crate::segment::Segment;
use crate::shell;
use crate::site::{Host, Server, Site};

const PREFIX: &str = "panda-test";
/// Public as far as any address filter knows, and unused on the internet. All of it is one segment.
const INTERNET: (Ipv4Addr, u8) = (Ipv4Addr::new(11, 0, 0, 0), 16);
/// Addresses between a carrier and its customers (RFC 6598).
const CARRIER: [u8; 2] = [100, 64];
const HOME: [u8; 2] = [192, 168];

/// Worlds of this process, counted.
static WORLDS: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub struct World {
    inner: Arc<Inner>,
    internet: Segment,
}

/// What outlives every handle of a world.
#[derive(Debug)]
struct Inner {
    prefix: String,
    files: TempDir,
    count: AtomicU32,
    namespaces: Mutex<Vec<String>>,
    spawned: Mutex<Vec<(String, PathBuf)>>,
    /// What the world itself needs to run, by number.
    kept: Mutex<HashMap<u32, Process>>,
}

impl World {
    /// Plays a scene in a new world. The message of a failure has the ends of all logs.
    pub fn play(scene: impl FnOnce(&Self)) -> Result<(), Failed> {
        let result = panic::catch_unwind(Self::new).and_then(|world| {
            let result = panic::catch_unwind(AssertUnwindSafe(|| scene(&world)));
            result.map_err(|cause| Box::new(format!("{}\n{}", message(&*cause), world.logs())) as _)
        });
        result.map_err(|cause| Failed::from(message(&*cause)))
    }

    fn new() -> Self {
        let prefix = name_of(&own_tag(), WORLDS.fetch_add(1, Ordering::Relaxed));
        let files = tempfile::tempdir().expect("a directory for a world");
        let (count, namespaces, spawned, kept) = Default::default();
        let inner = Arc::new(Inner { prefix, files, count, namespaces, spawned, kept });
        let internet = Segment::new(Namespace::new(&inner, "internet"), "internet", INTERNET);
        Self { inner, internet }
    }

    /// A machine with two public addresses.
    pub fn server(&self, name: &str) -> Server {
        Server::new(self.namespace(name), &self.internet)
    }

    /// A NAT at the internet, with an empty network behind it. Sites have networks of their own, 192.168.1.0/24 and so on.
    pub fn site(&self, nat: Nat) -> Site {
        self.site_with(nat, &Link::new())
    }

    /// A site whose link to the internet is as told.
    pub fn site_with(&self, nat: Nat, link: &Link) -> Site {
        if nat == Nat::CarrierGrade {
            let carrier = self.carrier(Nat::PortRestricted, link);
            return self.site_behind(Nat::LinuxFirewall, &carrier);
        }
        self.router(nat, &self.internet, link, HOME)
    }

    /// A NAT whose customers are NATs themselves.
    pub fn carrier(&self, nat: Nat, link: &Link) -> Site {
        self.router(nat, &self.internet, link, CARRIER)
    }

    /// A site that has its way to the internet through a carrier.
    pub fn site_behind(&self, nat: Nat, carrier: &Site) -> Site {
        self.router(nat, carrier.segment(), &Link::new(), HOME)
    }

    /// A host at a site, reachable as that site's NAT allows.
    pub fn host(&self, nat: Nat) -> Host {
        self.site(nat).host()
    }

    fn router(&self, nat: Nat, upstream: &Segment, link: &Link, lan: [u8; 2]) -> Site {
        if nat == Nat::None {
            return Site::public(upstream.clone(), link.clone());
        }
        let number = u8::try_from(self.inner.number()).expect("at most 255 machines in a world");
        let lan = (Ipv4Addr::new(lan[0], lan[1], number, 0), 24);
        Site::new(nat, self.namespace(&format!("{nat}-{number}")), upstream, link, lan)
    }

    fn namespace(&self, label: &str) -> Namespace {
        Namespace::new(&self.inner, label)
    }

    /// The ends of the logs of everything that ran in this world.
    fn logs(&self) -> String {
        let spawned = self.inner.spawned.lock().unwrap_or_else(PoisonError::into_inner);
        let show = |(label, path): &(String, PathBuf)| {
            let log = fs::read(path).unwrap_or_default();
            format!("--- {label}\n{}\n", process::tail(&String::from_utf8_lossy(&log)))
        };
        spawned.iter().map(show).collect()
    }
}

impl Inner {
    fn number(&self) -> u32 {
        self.count.fetch_add(1, Ordering::Relaxed) + 1
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let namespaces = self.namespaces.get_mut().unwrap_or_else(PoisonError::into_inner);
        for name in namespaces.drain(..).rev() {
            if let Err(problem) = remove(&name) {
                // A drop must not panic; the next run tries again.
                eprintln!("not removed: {problem}");
            }
        }
    }
}

/// A network namespace of a world. Handles are cheap; it is gone when the world and all handles are.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    label: String,
    world: Arc<Inner>,
}

impl Namespace {
    #[track_caller]
    fn new(world: &Arc<Inner>, label: &str) -> Self {
        let name = format!("{}-{}-{label}", world.prefix, world.number());
        world.namespaces.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
        shell::run(Command::new("ip").args(["netns", "add", &name]), "");
        let namespace = Self { name, label: label.into(), world: world.clone() };
        namespace.ip("link set dev lo up");
        namespace
    }

    /// A namespace more, in the same world.
    #[track_caller]
    pub fn sibling(&self, label: &str) -> Self {
        Self::new(&self.world, label)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// For files of the world's processes; it goes with the world.
    pub fn directory(&self) -> &Path {
        self.world.files.path()
    }

    /// A number that nothing else in this world has.
    pub fn number(&self) -> u32 {
        self.world.number()
    }

    /// Commands of `ip`, one a line, without the word `ip`.
    #[track_caller]
    pub fn ip(&self, commands: &str) {
        shell::run(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), commands);
    }

    /// One command of `tc`, without the word `tc`.
    #[track_caller]
    pub fn tc(&self, command: &str) {
        shell::run(Command::new("tc").args(["-n", &self.name, "-batch", "-"]), command);
    }

    #[track_caller]
    pub fn nft(&self, rules: &str) {
        self.run(Command::new("nft").args(["-f", "-"]), rules);
    }

    /// Kernel settings of this namespace, as paths below `/proc/sys` with their values. One that the kernel does not have (its
    /// module is not loaded) has no effect either.
    #[track_caller]
    pub fn set(&self, settings: &[(&str, u32)]) {
        let line =
            |(path, value): &(&str, u32)| format!("[ ! -e /proc/sys/{path} ] || echo {value} > /proc/sys/{path}\n");
        self.run(Command::new("sh").arg("-e"), &settings.iter().map(line).collect::<String>());
    }

    /// Runs a command in here to its end; what it printed.
    #[track_caller]
    pub fn run(&self, command: &Command, input: &str) -> String {
        shell::run(&mut process::enter(&self.name, command), input)
    }

    /// Like [`Self::run`], for commands that may fail.
    pub fn try_run(&self, command: &Command) -> Result<String, String> {
        shell::try_run(&mut process::enter(&self.name, command), "")
    }

    /// Starts a process in here. `label` names it in messages.
    #[track_caller]
    pub fn spawn(&self, label: &str, command: &Command) -> Process {
        let label = format!("{label} at {}", self.label);
        let log = self.directory().join(format!("{}.log", self.number()));
        let process = Process::spawn(&self.name, &label, command, log.clone());
        self.world.spawned.lock().unwrap_or_else(PoisonError::into_inner).push((label, log));
        process
    }

    /// Leaves a process to the world, under a number: it runs until it is released, also when no handle is left.
    pub fn keep(&self, number: u32, process: Process) {
        self.world.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(number, process);
    }

    pub fn release(&self, number: u32) -> Option<Process> {
        self.world.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&number)
    }
}

/// A name for a namespace outside of all worlds, of the process that the tag tells.
pub fn name_of(tag: &str, number: u32) -> String {
    format!("{PREFIX}-{tag}-{number}")
}

/// Removes namespaces of test processes that are gone, with everything that still runs in them.
pub fn remove_leftovers() -> Result<(), String> {
    let names = shell::try_run(Command::new("ip").args(["netns", "list"]), "")?;
    let names = names.lines().filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| owner_is_gone(name)) {
        remove(name)?;
    }
    Ok(())
}

fn owner_is_gone(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')) else { return false };
    let mut words = rest.split('-');
    let (Some(pid), Some(started)) = (words.next(), words.next()) else { return false };
    start_time(pid).is_none_or(|time| time != started)
}

/// Of this process.
pub fn own_tag() -> String {
    let pid = std::process::id().to_string();
    format!("{pid}-{}", start_time(&pid).expect("/proc knows this process"))
}

/// When a process was started, in the kernel's ticks: process numbers are used again.
fn start_time(pid: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name, in parentheses, may hold anything; the start time is field 22, the 20th after it.
    stat.rsplit(')').next()?.split_whitespace().nth(19).map(str::to_owned)
}

fn remove(name: &str) -> Result<(), String> {
    let result = shell::try_run(Command::new("ip").args(["netns", "pids", name]), "").and_then(|inside| {
        for pid in inside.split_whitespace() {
            // It may end by itself meanwhile.
            let _ = shell::signal("KILL", pid);
        }
        shell::try_run(Command::new("ip").args(["netns", "delete", name]), "")
    });
    match result {
        // Somebody else, who looked for leftovers too, was faster.
        Err(_) if !Path::new("/run/netns").join(name).exists() => Ok(()),
        other => other.map(drop),
    }
}

fn message(cause: &(dyn std::any::Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_owned()
}
