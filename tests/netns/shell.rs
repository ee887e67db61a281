//! Running the system's tools: what they say when they fail ends up in the panic, and waiting is for a condition, with a
//! deadline. Not for processes that a scene talks to: those are `process`.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything that should happen at once may take on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Runs a command with `input` to its end. What it printed, or a message with everything that is known about its failure.
pub fn try_run(command: &mut Command, input: &str) -> Result<String, String> {
    let line = line(command);
    let told = |problem: &str| format!("{line}: {problem}");
    let spawned = command_with_pipes(command).spawn();
    let mut child = spawned.map_err(|error| told(&error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that fails early does not read on; its exit status tells why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| told(&error.to_string()))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(out.into_owned());
    }
    Err(told(&format!("{}\n{}{}{}", output.status, input, out, err)))
}

/// Runs a command that has to succeed; what it printed.
#[track_caller]
pub fn run(command: &mut Command, input: &str) -> String {
    try_run(command, input).unwrap_or_else(|problem| panic!("{problem}"))
}

/// Sends a signal. The shell does it: not every system has `kill` as a program.
pub fn signal(signal: &str, pid: &str) -> Result<(), String> {
    try_run(Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]), "").map(drop)
}

/// Asks again until there is an answer.
#[track_caller]
pub fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {patience:?}");
        thread::sleep(LOOK_EVERY);
    }
}

fn command_with_pipes(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
