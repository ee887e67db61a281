//! The house rules of `ARCHITECTURE.md`, checked on the text of every file.
//!
//! [`check`] is a function of a path and a text, so that each rule is shown here to fail when it is broken. It reads
//! Rust as words, not as syntax: comments and literals are blanked first (`blank`), test modules where a rule spares them.
//! A new slice fails until it has a floor in [`FLOORS`].

use std::fs;
use std::path::{Path, PathBuf};

/// Which slices live on which floor. A slice uses its own floor's ports and whatever is below.
const FLOORS: [&[&str]; 6] = [
    &[
        "address",
        "backoff",
        "cbor",
        "clock",
        "error",
        "extensions",
        "frame",
        "identity",
        "ids",
        "limits",
        "operation",
        "ticket",
    ],
    &["net", "network_interface", "nodes", "store", "transport"],
    &["encryption", "nat", "outbox", "rendezvous", "sync"],
    &["sim", "storage", "telemetry", "transports", "watch"],
    &["bridge", "connections", "discovery", "doctor", "documents", "mesh", "relay"],
    &["panda_network", "lib", "bin"],
];
/// Floors whose slices use each other: the vocabulary is one language, and ports speak of ports.
const SHARED_FLOORS: usize = 2;
/// The floor of pure protocol machines.
const PURE_FLOOR: usize = 2;
/// The floor of the composition root, which knows everything.
const ROOT_FLOOR: usize = 5;
/// The public test harness: tests of any floor may run on it.
const HARNESS: &str = "sim";
/// A tool of the runtime, no adapter: every slice that may wait may use it.
const TOOL: &str = "watch";

/// Crates that floors 0–2 do without.
const RUNTIMES: [&str; 3] = ["tokio", "quinn", "rusqlite"];
/// Words that a pure machine has no use for: its driver waits and draws random numbers.
const IMPURE: [&str; 5] = ["async", "await", "spawn", "rng", "thread_rng"];
/// How a clock is read. `now` alone is what a driver hands in.
const CLOCK: &str = "::now";
/// What ends a process instead of returning an error.
const ABORTS: [&str; 5] = [".unwrap()", ".expect(", "todo!", "unimplemented!", "dbg!"];

const MAX_LINES: usize = 500;
const TEST_MAX_LINES: usize = 800;
const EXAMPLE_MAX_LINES: usize = 120;

/// Everything that is wrong with one file. `path` is relative to the repository, with `/`.
fn check(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut tell = |problem: String| problems.push(format!("{path}: {problem}"));
    machine_paths(text).into_iter().for_each(&mut tell);
    if !path.ends_with(".rs") {
        return problems;
    }
    if !text.starts_with("//!") {
        tell("does not open with `//!`: say what the file is, how to drive it, what it is not".into());
    }
    let (lines, most) = (text.lines().count(), max_lines(path));
    if lines > most {
        tell(format!("{lines} lines, at most {most} are allowed: split it"));
    }
    let code = blank(text);
    let ours = if is_test(path) { String::new() } else { without_test_modules(&code) };
    if code.contains("#[ignore") {
        tell("an ignored test proves nothing: run it or delete it".into());
    }
    if path.starts_with("src/") {
        for word in ABORTS.iter().filter(|word| ours.contains(*word)) {
            tell(format!("`{word}` outside tests: return an error that says who erred"));
        }
        imports(path, &code, &ours).into_iter().for_each(&mut tell);
    }
    problems
}

fn max_lines(path: &str) -> usize {
    match path {
        _ if is_test(path) => TEST_MAX_LINES,
        _ if path.starts_with("examples/") => EXAMPLE_MAX_LINES,
        _ => MAX_LINES,
    }
}

/// Integration tests, and unit tests in files of their own.
fn is_test(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    path.starts_with("tests/") || path.contains("/tests/") || name == "tests.rs" || name.ends_with("_tests.rs")
}

/// Paths that only exist on somebody's machine: home directories (but for that of `me`, who is an example) and the place
/// of this checkout.
fn machine_paths(text: &str) -> Vec<String> {
    let text = text.replace("/home/me/", "");
    let homes = ["home", "Users", "root"].map(|home| format!("/{home}/"));
    let checkout = env!("CARGO_MANIFEST_DIR");
    let deep = checkout.matches('/').count() > 1;
    let named = homes.iter().map(String::as_str).chain(deep.then_some(checkout));
    named.filter(|path| text.contains(path)).map(|path| format!("names {path}, a path of one machine")).collect()
}

/// Rules on what a library file may name: `code` is all of it, `ours` without its tests.
fn imports(path: &str, code: &str, ours: &str) -> Vec<String> {
    let slice = slice_of(path);
    let Some(floor) = floor_of(slice) else {
        return vec![format!("slice `{slice}` has no floor: add it to FLOORS in tests/architecture.rs")];
    };
    let mut problems = Vec::new();
    if floor < ROOT_FLOOR {
        let in_ours = crate_paths(ours).into_iter().chain(root_by_super(path, ours));
        problems.extend(in_ours.filter_map(|used| forbidden(slice, floor, &used)));
        let in_all = crate_paths(code).into_iter().filter(|used| used != HARNESS);
        problems.extend(in_all.filter_map(|used| forbidden(slice, floor, &used)));
        problems.sort();
        problems.dedup();
    }
    if floor <= PURE_FLOOR {
        let used = RUNTIMES.iter().filter(|runtime| has_word(code, runtime));
        problems
            .extend(used.map(|runtime| format!("floor {floor} does without {runtime}: it belongs into an adapter")));
    }
    if floor == PURE_FLOOR {
        let used = IMPURE.iter().filter(|word| has_word(ours, word));
        let clock = ours.contains(CLOCK).then_some(&"now");
        problems
            .extend(used.chain(clock).map(|word| format!("`{word}` in a pure machine: hand it in from the driver")));
    }
    problems
}

/// Why a slice may not use what `crate::<used>` names, if it may not.
fn forbidden(slice: &str, floor: usize, used: &str) -> Option<String> {
    if used.starts_with(|first: char| !first.is_lowercase()) {
        return Some(format!("uses `crate::{used}`: name the slice that it comes from"));
    }
    match floor_of(used) {
        None => Some(format!("uses `crate::{used}`, which has no floor: add it to FLOORS in tests/architecture.rs")),
        Some(other) if other > floor => Some(format!("floor {floor} uses `crate::{used}` of floor {other}")),
        Some(other) if other == floor && used != slice && used != TOOL && floor >= SHARED_FLOORS => {
            Some(format!("uses its neighbour `crate::{used}` on floor {floor}: go through a port"))
        }
        Some(_) => None,
    }
}

fn floor_of(slice: &str) -> Option<usize> {
    FLOORS.iter().position(|slices| slices.contains(&slice))
}

/// `documents` of `src/documents/link.rs`, `ids` of `src/ids.rs`.
fn slice_of(path: &str) -> &str {
    let inside = path.trim_start_matches("src/");
    inside.split(['/', '.']).next().unwrap_or(inside)
}

/// The first names after every `crate::`, those in braces each.
fn crate_paths(code: &str) -> Vec<String> {
    let starts = code.match_indices("crate").filter(|(at, _)| !code[..*at].ends_with(is_word));
    let rests = starts.filter_map(|(at, found)| code[at + found.len()..].trim_start().strip_prefix("::"));
    rests.flat_map(first_names).collect()
}

/// Slices that are reached through `super::`, by as many as lead to the root of the crate.
fn root_by_super(path: &str, ours: &str) -> Vec<String> {
    let depth = path.trim_end_matches("/mod.rs").matches('/').count();
    let chain = "super::".repeat(depth);
    let found = ours.match_indices(&chain).filter(|(at, _)| !ours[..*at].ends_with(|c| is_word(c) || c == ':'));
    found.flat_map(|(at, _)| first_names(&ours[at + chain.len()..])).collect()
}

fn first_names(rest: &str) -> Vec<String> {
    let rest = rest.trim_start();
    let Some(group) = rest.strip_prefix('{') else { return vec![name(rest)] };
    let mut depth = 0;
    let mut names = vec![name(group)];
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(name(&group[at + 1..])),
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn name(rest: &str) -> String {
    let rest = rest.trim_start();
    if rest.starts_with('*') { "*".into() } else { rest.chars().take_while(|c| is_word(*c)).collect() }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c| !is_word(c)).any(|found| found == word)
}

/// The code with comments, strings and characters replaced by blanks; lines stay where they are.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if out.ends_with(is_word) { quoted(rest, c) } else { literal(rest).or_else(|| quoted(rest, c)) };
        let length = skipped.unwrap_or(c.len_utf8());
        let (taken, after) = rest.split_at(length);
        match skipped {
            Some(_) => out.extend(taken.chars().map(|c| if c == '\n' { '\n' } else { ' ' })),
            None => out.push_str(taken),
        }
        rest = after;
    }
    out
}

/// Length of a raw or byte string that starts here.
fn literal(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r"].into_iter().find(|prefix| {
        rest.strip_prefix(*prefix).is_some_and(|after| after.trim_start_matches('#').starts_with('"'))
    })?;
    let after = &rest[prefix.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    let end = format!("\"{}", "#".repeat(hashes));
    let start = prefix.len() + hashes + 1;
    Some(rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len()))
}

/// Length of a comment, a string or a character that starts here.
fn quoted(rest: &str, c: char) -> Option<usize> {
    match c {
        '/' if rest.starts_with("//") => Some(rest.find('\n').unwrap_or(rest.len())),
        '/' if rest.starts_with("/*") => Some(block_comment(rest)),
        '"' => Some(until_quote(rest, '"')),
        // A lifetime has no quote after its first letter.
        '\'' if rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'') => Some(until_quote(rest, '\'')),
        _ => None,
    }
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let step = match &rest[at..] {
            open if open.starts_with("/*") => (1, 2),
            close if close.starts_with("*/") => (-1, 2),
            other => (0, other.chars().next().map_or(1, char::len_utf8)),
        };
        depth += step.0;
        at += step.1;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn until_quote(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

/// Blanked code without its `#[cfg(test)]` items.
fn without_test_modules(code: &str) -> String {
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find(['{', ';']).unwrap_or(rest.len());
        let length = if rest[end..].starts_with('{') { end + braces(&rest[end..]) } else { (end + 1).min(rest.len()) };
        rest = &rest[length..];
    }
    out + rest
}

fn braces(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// Files of the repository that the rules are about, with what is in them.
fn files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for top in ["src", "tests", "examples", "benches", "migrations", ".ci", ".cargo"] {
        walk(&root.join(top), &mut found);
    }
    let documents = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    found.extend(documents.filter(|path| path.extension().is_some_and(|ending| ending == "md" || ending == "toml")));
    found.sort();
    let relative = |path: &Path| path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
    found.into_iter().map(|path| (relative(&path), fs::read_to_string(&path).unwrap())).collect()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, found) } else { found.push(path) }
    }
}

#[test]
fn every_file_keeps_the_rules_of_the_house() {
    let files = files();
    assert!(files.iter().any(|(path, _)| path == "src/lib.rs"), "no files were found: this checks nothing");
    let problems: Vec<String> = files.iter().flat_map(|(path, text)| check(path, text)).collect();
    assert!(problems.is_empty(), "{} rules broken:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn every_slice_stands_on_one_floor_only() {
    let mut all: Vec<_> = FLOORS.concat();
    all.sort_unstable();
    let count = all.len();
    all.dedup();
    assert_eq!(all.len(), count);
}

/// Asserts that a file breaks exactly the rule whose message contains `problem`; empty for none.
fn assert_broken(path: &str, text: &str, problem: &str) {
    let problems = check(path, &format!("//! What it is.\n{text}\n"));
    match problem {
        "" => assert!(problems.is_empty(), "{problems:?}"),
        _ => assert!(problems.len() == 1 && problems[0].contains(problem), "{problem:?} expected, {problems:?} found"),
    }
}

#[test]
fn a_file_that_uses_a_higher_floor_is_named() {
    assert_broken("src/sync/wire.rs", "use crate::documents::Receipt;", "floor 2 uses `crate::documents` of floor 4");
    assert_broken("src/ids.rs", "fn f() { crate::store::open() }", "floor 0 uses `crate::store` of floor 1");
    assert_broken("src/documents/link.rs", "use crate::{limits::{A, B}, panda_network::C};", "`crate::panda_network`");
    assert_broken("src/documents/link.rs", "use super::super::panda_network::Node;", "`crate::panda_network`");
    assert_broken("src/documents/mod.rs", "use super::storage::SqliteStore;", "");
    assert_broken("src/documents/mod.rs", "use super::panda_network::Node;", "`crate::panda_network`");
    assert_broken("src/ids.rs", "use super::store::Store;", "`crate::store`");
    assert_broken("src/documents/link.rs", "use crate::PandaNetwork;", "name the slice");
    assert_broken("src/documents/link.rs", "use crate::*;", "name the slice");
    assert_broken("src/documents/link.rs", "use crate::{limits::A, store::{B, C}, sync::D};", "");
    assert_broken("src/panda_network/mod.rs", "use crate::storage::A; use crate::documents::B;", "");
    assert_broken("src/documents/link.rs", "// like crate::panda_network\n/// [`crate::panda_network`]", "");
    assert_broken("src/documents/link.rs", "pub(crate) fn f(text: &'static str) { g(\"crate::bin\", 'c') }", "");
}

#[test]
fn a_slice_that_uses_its_neighbour_is_named() {
    assert_broken("src/documents/link.rs", "use crate::connections::Connections;", "neighbour `crate::connections`");
    assert_broken("src/storage/mod.rs", "use crate::sim::SimNetwork;", "neighbour `crate::sim`");
    assert_broken("src/storage/mod.rs", "use crate::watch::Sender;", "");
    assert_broken("src/storage/tests/mod.rs", "use crate::sim::SimNetwork;", "");
    assert_broken("src/storage/read.rs", "#[cfg(test)]\nmod tests { use crate::sim::run; }", "");
    assert_broken("src/storage/read.rs", "#[cfg(test)]\nmod tests { use crate::transports::tls; }", "neighbour");
    assert_broken("src/network_interface.rs", "use crate::transport::BoxFuture;", "");
    assert_broken("src/storage/read.rs", "use crate::storage::columns;", "");
}

#[test]
fn a_slice_without_a_floor_is_named() {
    assert_broken("src/gossip/mod.rs", "", "slice `gossip` has no floor");
    assert_broken("src/documents/link.rs", "use crate::gossip::Rumour;", "`crate::gossip`, which has no floor");
}

#[test]
fn runtimes_below_the_adapters_are_named() {
    assert_broken("src/store.rs", "use tokio::sync::watch;", "without tokio");
    assert_broken("src/sync/wire.rs", "fn f(_: quinn::Connection) {}", "without quinn");
    assert_broken("src/store.rs", "// unlike tokio\nconst A: &str = r#\"rusqlite\"#;", "");
    assert_broken("src/connections/peer_machine.rs", "use tokio::time::Instant;", "");
    assert_broken("src/sync/wire.rs", "fn f() -> Instant { Instant::now() }", "`now` in a pure machine");
    assert_broken("src/sync/wire.rs", "fn f(now: Instant) -> Instant { now }", "");
    assert_broken("src/sync/wire.rs", "#[cfg(test)]\nmod tests { fn f() -> Instant { Instant::now() } }", "");
}

#[test]
fn a_library_that_may_abort_is_named() {
    assert_broken("src/store.rs", "fn f() { g().unwrap() }", "`.unwrap()` outside tests");
    assert_broken("src/store.rs", "fn f() { g().expect(\"\") }", "`.expect(` outside tests");
    assert_broken("src/bin/panda/main.rs", "fn f() { todo!() }", "`todo!` outside tests");
    assert_broken("src/store.rs", "#[cfg(test)]\nmod tests { fn f() { g().unwrap() } }\nfn h() { dbg!(1) }", "`dbg!`");
    assert_broken("src/store.rs", "#[cfg(test)]\nmod tests;\nfn h() { g().unwrap() }", "`.unwrap()`");
    assert_broken("src/store.rs", "/// g().unwrap()\nfn f() { g().unwrap_or_default(\"}.unwrap()\") }", "");
    assert_broken("tests/delivery.rs", "fn f() { g().unwrap() }", "");
    assert_broken("tests/delivery.rs", "#[test]\n#[ignore]\nfn f() {}", "ignored test");
}

#[test]
fn files_that_are_too_long_or_do_not_introduce_themselves_are_named() {
    assert_eq!(check("src/ids.rs", "use a::b;\n").len(), 1);
    assert_eq!(check("examples/presence.rs", "fn main() {}\n").len(), 1);
    assert_broken("src/ids.rs", &"\n".repeat(MAX_LINES), "at most 500");
    assert_broken("tests/delivery.rs", &"\n".repeat(MAX_LINES), "");
    assert_broken("tests/delivery.rs", &"\n".repeat(TEST_MAX_LINES), "at most 800");
    assert_broken("examples/presence.rs", &"\n".repeat(EXAMPLE_MAX_LINES), "at most 120");
}

#[test]
fn a_path_of_one_machine_is_named() {
    let home = format!("// see /{}/anna/notes", "home");
    assert_broken("src/ids.rs", &home, "a path of one machine");
    assert_eq!(check("README.md", &home).len(), 1);
    for fine in ["See `/etc/hosts`.", "panda share /home/me/notes.md"] {
        assert_eq!(check("README.md", fine), Vec::<String>::new());
    }
}
