//! Scenes between real hosts and NATs: the kernel's, in network namespaces.
//!
//! They need root and the tools that `.ci/install-netns.sh` installs. Where those are missing every scene is reported as
//! ignored, with the reason; `PANDA_NETNS=require` makes that a failure. Usual arguments of tests work: a part of a name,
//! `--list`, `--test-threads`. This program is also its own helper inside of the namespaces (`netns/helper.rs`).
//!
//! How to write a scene: a function of a `&World` (`netns/world.rs`), added to a list of trials; one for every pair of NATs is
//! a function of a `&World` and a `Pair` (`netns/matrix.rs`). Scenes panic to fail, wait for conditions with deadlines, and
//! clean up by dropping.

#[path = "netns/helper.rs"]
mod helper;
#[path = "netns/lan.rs"]
mod lan;
#[path = "netns/link.rs"]
mod link;
#[path = "netns/mapped.rs"]
mod mapped;
#[path = "netns/matrix.rs"]
mod matrix;
#[path = "netns/nat.rs"]
mod nat;
#[path = "netns/nodes.rs"]
mod nodes;
#[path = "netns/port_mapping.rs"]
mod port_mapping;
#[path = "netns/process.rs"]
mod process;
#[path = "netns/requirements.rs"]
mod requirements;
#[path = "netns/scenes.rs"]
mod scenes;
#[path = "netns/segment.rs"]
mod segment;
#[path = "netns/shell.rs"]
mod shell;
#[path = "netns/site.rs"]
mod site;
#[path = "netns/turn.rs"]
mod turn;
#[path = "netns/world.rs"]
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use world::World;

/// Scenes mostly wait, so more of them run at once than there are cores.
const SCENES_AT_ONCE: usize = 6;
/// How many of the slowest scenes are named at the end.
const NAMED: usize = 5;

static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args().skip(1).collect();
    if let Some(("helper", arguments)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return helper::main(arguments);
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(SCENES_AT_ONCE);
    let trials = [scenes::trials(), nodes::trials(), lan::trials(), mapped::trials()].into_iter().flatten().collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    name_the_slowest();
    conclusion.exit_code()
}

/// A test that plays in a world of its own, if that can be made here and there is nothing else that it needs.
pub fn scene(name: String, needs: Result<(), &'static str>, play: impl FnOnce(&World) + Send + 'static) -> Trial {
    let named = name.clone();
    Trial::ignorable_test(name, move || {
        if let Err(reason) = needs.map_err(String::from).and_then(|()| requirements::met()) {
            let required = std::env::var("PANDA_NETNS").is_ok_and(|value| value == "require");
            return if required { Err(Failed::from(reason)) } else { Ok(Completion::ignored_with(reason)) };
        }
        let start = Instant::now();
        World::play(play)?;
        TIMES.lock().map_err(|_| "a scene's time")?.push((start.elapsed(), named));
        Ok(Completion::Completed)
    })
}

fn name_the_slowest() {
    let Ok(mut times) = TIMES.lock() else { return };
    times.sort_by(|a, b| b.cmp(a));
    for (time, name) in times.iter().take(NAMED) {
        eprintln!("{:5.1} s  {name}", time.as_secs_f64());
    }
}
