//! `panda relay`, `panda share`, `panda join` and `panda doctor` as processes on loopback: what a person types, and what programs read.

#![cfg(feature = "cli")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use panda_network::DocumentTicket;
use panda_network::nat::stun::{Attribute, Response, Scanned};
use serde_json::Value;

/// A process that runs until it is told to stop, and the first line that it printed.
struct Running {
    child: Child,
    line: String,
}

impl Running {
    /// One that prints nothing to its standard output.
    fn silent(command: &mut Command) -> Self {
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, line: String::new() }
    }

    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, line: line.trim().to_owned() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn panda(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_panda"));
    command.args(arguments).env_remove("PANDA_RELAY");
    command
}

/// A relay on loopback and its address.
fn relay(directory: &Path) -> (Running, String) {
    relay_with(directory, "")
}

/// The same, with these lines in its configuration.
fn relay_with(directory: &Path, lines: &str) -> (Running, String) {
    let config = directory.join("relay.toml");
    let text =
        "listen = '127.0.0.1:0'\ndatagrams = '127.0.0.1:0'\nturn.tcp = '127.0.0.1:0'\npeers.allow = ['127.0.0.0/8']\n";
    std::fs::write(&config, format!("{text}{lines}")).unwrap();
    let relay = Running::start(panda(&["relay", "--json", "--config"]).arg(config));
    let started: Value = serde_json::from_str(&relay.line).unwrap();
    let address = started["address"].as_str().unwrap().to_owned();
    (relay, address)
}

fn object(output: &Output) -> Value {
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

#[test]
fn the_doctor_finds_a_relay_with_all_it_offers() {
    let directory = tempfile::tempdir().unwrap();
    let (_relay, address) = relay(directory.path());
    let output = panda(&["doctor", "--json", "--relay", &address]).output().unwrap();
    let report = object(&output);
    assert!(output.status.success(), "{report:#}");
    assert_eq!((&report["works"], &report["reason"]), (&Value::Bool(true), &Value::Null));
    let relay = &report["relays"][0];
    assert_eq!((&relay["pinned"], &relay["up"]), (&Value::Bool(true), &Value::Bool(true)));
    assert!(relay["session_ms"].is_number() && relay["stun"][0]["round_trip_ms"].is_number(), "{relay:#}");
    let turn = relay["turn"].as_array().unwrap();
    assert_eq!(turn.iter().map(|turn| turn["transport"].as_str().unwrap()).collect::<Vec<_>>(), ["UDP", "TCP", "TLS"]);
    assert!(turn.iter().all(|turn| turn["relayed"][0].is_string()), "{relay:#}");
    assert_eq!(report["nat"][0]["mapping"], "none");
    assert_eq!(report["peers"], Value::Null);

    let output = panda(&["doctor", "--relay", address.split('#').next().unwrap()]).output().unwrap();
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(page.contains("not pinned") && page.contains(&address), "the key to pin is told: {page}");
}

#[test]
fn without_a_relay_the_doctor_says_so_and_fails() {
    let output = panda(&["doctor", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(object(&output)["reason"].as_str().unwrap().starts_with("no relay is known"));
    let last = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(last.starts_with("panda: no relay is known"), "{last}");
}

#[test]
fn a_server_that_is_no_relay_and_one_that_is_silent_are_told_apart_and_ctrl_c_ends_the_waiting() {
    let (wrong, silent) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let address = |listener: &TcpListener| listener.local_addr().unwrap().to_string();
    let (wrong_address, silent_address) = (address(&wrong), address(&silent));
    let answering = std::thread::spawn(move || {
        let mut stream = wrong.accept().unwrap().0;
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        // All that is asked is read, or the end of the stream would overtake the answer.
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let output = panda(&["doctor", "--json", "--relay", &wrong_address]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(object(&output)["reason"].as_str().unwrap().contains("is no relay"), "{}", object(&output));
    answering.join().unwrap();

    let mut command = panda(&["doctor", "--relay", &silent_address]);
    let waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Once it is connected, the process listens to signals.
    let _connection = silent.accept().unwrap();
    assert!(Command::new("kill").args(["-INT", &waiting.id().to_string()]).status().unwrap().success());
    let output = waiting.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("interrupted"));
}

#[test]
fn a_shared_file_remembers_its_relay_and_the_doctor_reaches_it_by_its_ticket() {
    let directory = tempfile::tempdir().unwrap();
    let (_relay, address) = relay(directory.path());
    let (file, data) = (directory.path().join("notes.md"), directory.path().join("data"));
    std::fs::write(&file, "hello").unwrap();
    let share = |relay: &[&str]| {
        let running = Running::start(panda(&["share"]).args(relay).arg("--data-dir").arg(&data).arg(&file));
        let ticket: DocumentTicket = running.line.parse().unwrap();
        (running, ticket)
    };
    let (first, _) = share(&["--relay", &address]);
    wait_until(|| std::fs::read_to_string(data.join("panda-file.json")).is_ok_and(|state| state.contains(&address)));
    drop(first);

    let (running, ticket) = share(&[]);
    let relays = |ticket: &DocumentTicket| ticket.peers()[0].relays().to_vec();
    assert_eq!(relays(&ticket), [address]);
    let output = panda(&["doctor", "--json", &running.line]).output().unwrap();
    let report = object(&output);
    assert!(output.status.success(), "{report:#}");
    let paths = report["peers"][0]["paths"].as_array().unwrap();
    assert!(paths.iter().any(|path| path["in_use"] == true && path["round_trip_ms"].is_number()), "{report:#}");
}

#[test]
fn a_joined_file_is_followed_again_without_its_ticket() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let here = ["--no-lan", "--listen", "127.0.0.1:0", "--data-dir"];
    let join = |ticket: &[&str], file: &str| {
        let mut command = panda(&["join"]);
        command.args(here).arg(path("joined")).args(ticket).arg(path(file));
        command
    };
    let holds = |text: &str| wait_until(|| std::fs::read_to_string(path("bob.md")).is_ok_and(|found| found == text));
    std::fs::write(path("alice.md"), "hello").unwrap();
    let share = Running::start(panda(&["share"]).args(here).arg(path("shared")).arg(path("alice.md")));
    let joined = Running::silent(&mut join(&[&share.line], "bob.md"));
    holds("hello");
    drop(joined);
    std::fs::write(path("alice.md"), "hello again").unwrap();
    let _joined = Running::silent(&mut join(&[], "bob.md"));
    holds("hello again");
    let never = panda(&["join", "--data-dir"]).arg(path("never")).arg(path("carol.md")).output().unwrap();
    let said = String::from_utf8_lossy(&never.stderr).into_owned();
    assert!(!never.status.success() && said.contains("follows no document yet"), "{said}");
    assert!(!path("never").exists() && !path("carol.md").exists(), "nothing is made");
}

#[test]
fn where_the_peer_of_a_ticket_is_gone_the_doctor_shows_what_was_tried() {
    let directory = tempfile::tempdir().unwrap();
    let (_relay, address) = relay(directory.path());
    let (file, data) = (directory.path().join("notes.md"), directory.path().join("data"));
    std::fs::write(&file, "hello").unwrap();
    let share = Running::start(panda(&["share", "--relay", &address]).arg("--data-dir").arg(&data).arg(&file));
    let ticket = share.line.clone();
    wait_until(|| std::fs::read_to_string(data.join("panda-file.json")).is_ok_and(|state| state.contains(&address)));
    drop(share);

    let json = panda(&["doctor", "--json", &ticket]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let text = panda(&["doctor", &ticket]).output().unwrap();
    let json = json.wait_with_output().unwrap();
    assert_eq!((json.status.code(), text.status.code()), (Some(1), Some(1)));
    let report = object(&json);
    let peer = &report["peers"][0];
    assert_eq!(peer["introductions"][0]["outcome"], "the peer is not there", "{peer:#}");
    let paths = peer["paths"].as_array().unwrap();
    assert!(!paths.is_empty() && paths.iter().all(|path| path["outcome"] == "no answer"), "{peer:#}");
    assert!(paths.iter().all(|path| path["in_use"] == false && path["round_trip_ms"].is_null()), "{peer:#}");
    let page = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(page.contains("the peer is not there") && page.contains(": no answer"), "{page}");
}

#[test]
fn what_servers_do_wrong_is_a_sentence_for_persons_and_for_programs() {
    let directory = tempfile::tempdir().unwrap();
    let (_relay, address) = relay_with(directory.path(), "limits.allocations_per_user = 0\n");
    // A STUN server that tells everybody an address that nobody can have. Ends with the process.
    let liar = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = liar.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = liar.recv_from(&mut buffer) {
            let Ok(request) = Scanned::scan(&buffer[..length]) else { continue };
            let lie = Attribute::XorMappedAddress(([224, 0, 0, 1], 4000).into());
            let answer = Response::success(&request).with(lie).encode(None).unwrap();
            let _ = liar.send_to(&answer, from);
        }
    });
    let arguments = ["doctor", "--relay", &address, "--stun", &server];
    let report = object(&panda(&arguments).arg("--json").output().unwrap());
    let page = String::from_utf8_lossy(&panda(&arguments).output().unwrap().stdout).into_owned();
    let doubt = format!("the STUN server {server} says that it sees us at 224.0.0.1:4000, where nobody can be");
    assert!(report["doubts"][0].as_str().unwrap().starts_with(&doubt), "{report:#}");
    assert!(page.contains(&doubt), "{page}");
    let quota = "our quota or that of our network is used up (error 486)";
    let turn = report["relays"][0]["turn"].as_array().unwrap();
    assert!(!turn.is_empty() && turn.iter().all(|turn| turn["error"].as_str().unwrap().contains(quota)), "{report:#}");
    assert!(page.contains(quota), "{page}");
}

/// Ends a test that hangs after half a minute.
fn wait_until(mut done: impl FnMut() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("did not happen");
}
