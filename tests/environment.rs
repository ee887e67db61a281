//! Whole nodes in a bad environment: a directory in use, a full disk, damaged files, taken ports, full queues. Every
//! failure is an error that names what is wrong, nothing acknowledged is lost, and the node works again afterwards.
//!
//! Real sockets, files and processes. Deadlines only end a test that hangs. The full disk is a small file system in memory,
//! which only root can mount; without root that test says that it was not run, and fails with `PANDA_NETNS=require`.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use panda_network::error::{IdentityError, OperationError};
use panda_network::limits::OPERATION_PAYLOAD_MAX_BYTES;
use panda_network::store::StoreError;
use panda_network::transport::TransportError;
use panda_network::{
    Document, DocumentEvent, Durability, PandaError, PandaNetwork, PandaNetworkOptions, PeerId, ReconnectionPolicy,
    StartFrom,
};

/// Variable with the directory that a second process is to use.
const SECOND_PROCESS: &str = "PANDA_SECOND_PROCESS";
/// A test that waits for longer hangs.
const HANGS_AFTER: Duration = Duration::from_secs(60);

fn options(directory: &Path) -> PandaNetworkOptions {
    PandaNetworkOptions::new(directory)
        .with_listen_address("127.0.0.1:0".parse().unwrap())
        .with_durability(Durability::Process)
        .with_reconnection(ReconnectionPolicy::new().with_max_delay(Duration::from_millis(500)))
}

async fn node(directory: &Path) -> PandaNetwork {
    PandaNetwork::start(options(directory)).await.unwrap()
}

async fn start_error(directory: &Path) -> PandaError {
    PandaNetwork::start(options(directory)).await.unwrap_err()
}

async fn shut_down(node: PandaNetwork) {
    node.shutdown(Duration::from_secs(5)).await.unwrap();
}

/// Waits until a document has these operations of one author, and asserts that they are all, in order, each once.
async fn assert_log(document: &Document, author: PeerId, payloads: &[Bytes]) {
    let mut events = document.subscribe(StartFrom::Start).await.unwrap();
    let mut found = 0;
    while found < payloads.len() {
        let event = tokio::time::timeout(HANGS_AFTER, events.next()).await;
        let event = event.unwrap_or_else(|_| panic!("{found} of {} operations are here", payloads.len()));
        let DocumentEvent::Operation(stored) = event.unwrap().unwrap() else { continue };
        let operation = stored.operation;
        if operation.author() == author {
            assert_eq!(operation.seq_num() as usize, found);
            assert!(operation.payload() == payloads[found], "operation {found} is another one");
            found += 1;
        }
    }
    let head = document.heads().into_iter().find(|(of, _)| *of == author);
    assert_eq!(head.map_or(0, |(_, seq_num)| seq_num as usize + 1), payloads.len());
}

async fn pending_is_over(document: &Document) {
    let mut status = document.status();
    let over = status.wait_for(|status| status.pending == 0);
    tokio::time::timeout(HANGS_AFTER, over).await.expect("the queue empties").unwrap();
}

/// Not a test by itself: the second process of the test below, which runs this binary again with a directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_process() {
    let Ok(directory) = std::env::var(SECOND_PROCESS) else { return };
    let network = PandaNetwork::start(options(Path::new(&directory))).await.unwrap();
    println!("\n@ running {}", network.node_id());
    std::io::stdout().flush().unwrap();
    // Until the first process closes its end.
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    shut_down(network).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_another_process_uses_is_named_in_the_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "second_process", "--nocapture", "--test-threads=1"])
        .env(SECOND_PROCESS, directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
    let running = lines.find_map(|line| Some(line.unwrap().strip_prefix("@ running ")?.to_owned()));
    let running: PeerId = running.expect("the other process starts").parse().unwrap();
    let error = start_error(directory.path()).await;
    assert!(matches!(&error, PandaError::Store(StoreError::InUse { path }) if path == directory.path()), "{error:?}");
    assert!(error.to_string().contains(directory.path().to_str().unwrap()), "{error}");
    drop(other.stdin.take());
    assert!(other.wait().unwrap().success(), "the first attempt did not disturb it");
    let network = node(directory.path()).await;
    assert_eq!(network.node_id(), running);
    shut_down(network).await;
}

/// Says past the capture of tests what was not run here; a failure where everything has to be (`PANDA_NETNS=require`, as in CI).
fn not_run(what: &str) {
    assert!(std::env::var_os("PANDA_NETNS").is_none_or(|value| value != "require"), "not run: {what}");
    let _ = writeln!(std::io::stderr(), "NOT RUN: {what}");
}

/// A file system of 2 MiB in memory.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(path).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Self(path.into()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_nothing_acknowledged_is_lost_and_all_goes_on_when_there_is_space() {
    let mount = tempfile::tempdir().unwrap();
    let Some(_disk) = SmallDisk::mount(mount.path()) else {
        not_run("a full disk, which takes a small file system, which only root can mount");
        return;
    };
    let ballast = mount.path().join("ballast");
    std::fs::write(&ballast, vec![0; 1024 * 1024]).unwrap();
    let at_bob = tempfile::tempdir().unwrap();
    let (alice, bob) = (node(&mount.path().join("data")).await, node(at_bob.path()).await);
    let here = alice.create().await.unwrap();
    let there = bob.open(here.ticket().await.unwrap()).await.unwrap();
    let mut acknowledged = vec![Bytes::from_static(b"before")];
    here.publish("before").await.unwrap().delivered_to(1).await;
    let error = loop {
        let payload = Bytes::from(format!("{:2000}", acknowledged.len()));
        match here.publish(payload.clone()).await {
            Ok(_) => acknowledged.push(payload),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PandaError::Store(StoreError::DiskFull(_))), "{error:?}");
    assert_log(&here, alice.node_id(), &acknowledged).await;
    // What a peer publishes now does not fit either; it must come later.
    let mut of_bob = Vec::new();
    for number in 0..30 {
        let payload = Bytes::from(format!("bob {number:2000}"));
        there.publish(payload.clone()).await.unwrap();
        of_bob.push(payload);
    }
    assert_log(&there, alice.node_id(), &acknowledged).await;
    std::fs::remove_file(ballast).unwrap();
    let receipt = here.publish("there is space again").await.unwrap();
    acknowledged.push(Bytes::from_static(b"there is space again"));
    assert_eq!(receipt.seq_num() as usize, acknowledged.len() - 1);
    pending_is_over(&here).await;
    pending_is_over(&there).await;
    for document in [&here, &there] {
        assert_log(document, alice.node_id(), &acknowledged).await;
        assert_log(document, bob.node_id(), &of_bob).await;
    }
    let document = here.id();
    drop(here);
    shut_down(alice).await;
    let alice = node(&mount.path().join("data")).await;
    let here = alice.reopen(document).await.unwrap();
    assert_log(&here, alice.node_id(), &acknowledged).await;
    shut_down(alice).await;
    shut_down(bob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_database_is_an_error_and_a_new_one_fills_from_the_peers_under_the_old_identity() {
    let (at_alice, at_bob) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = (node(at_alice.path()).await, node(at_bob.path()).await);
    let here = alice.create().await.unwrap();
    let there = bob.open(here.ticket().await.unwrap()).await.unwrap();
    let payloads: Vec<_> = (0..50).map(|number| Bytes::from(format!("edit {number}"))).collect();
    for payload in &payloads {
        here.publish(payload.clone()).await.unwrap();
    }
    pending_is_over(&here).await;
    let id = alice.node_id();
    drop(here);
    shut_down(alice).await;
    let (identity, database) = (at_alice.path().join("identity"), at_alice.path().join("panda.sqlite"));
    let key = std::fs::read(&identity).unwrap();
    let whole = std::fs::metadata(&database).unwrap().len() as usize;
    let noise: Vec<u8> = (0..whole as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for length in [whole, whole / 2, 0] {
        std::fs::write(&database, &noise[..length]).unwrap();
        let error = start_error(at_alice.path()).await;
        assert!(
            matches!(&error, PandaError::Store(StoreError::Damaged { path, .. }) if *path == database),
            "{length} bytes of noise: {error:?}"
        );
        assert_eq!(std::fs::read(&identity).unwrap(), key, "the identity is not touched");
    }
    std::fs::remove_file(&database).unwrap();
    let alice = node(at_alice.path()).await;
    assert_eq!(alice.node_id(), id);
    let here = alice.open(there.ticket().await.unwrap()).await.unwrap();
    assert_log(&here, id, &payloads).await;
    assert_eq!(here.publish("goes on").await.unwrap().seq_num() as usize, payloads.len());
    pending_is_over(&here).await;
    assert!(there.status().borrow().frozen.is_empty(), "no fork");
    shut_down(alice).await;
    shut_down(bob).await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_others_can_read_or_that_is_cut_off_is_an_error_and_not_a_new_identity() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let network = node(directory.path()).await;
    let id = network.node_id();
    shut_down(network).await;
    let identity = directory.path().join("identity");
    let set_mode = |mode| std::fs::set_permissions(&identity, std::fs::Permissions::from_mode(mode)).unwrap();
    let key = std::fs::read(&identity).unwrap();
    set_mode(0o640);
    let error = start_error(directory.path()).await;
    let PandaError::Identity(of) = &error else { panic!("{error:?}") };
    assert!(matches!(&**of, IdentityError::Exposed { path, mode: 0o640 } if *path == identity), "{error:?}");
    set_mode(0o600);
    for size in [0, 31, 33] {
        std::fs::write(&identity, &[key.as_slice(), b"x"].concat()[..size]).unwrap();
        let error = start_error(directory.path()).await;
        let PandaError::Identity(of) = &error else { panic!("{error:?}") };
        let size = size as u64;
        assert!(matches!(&**of, IdentityError::Damaged { path, actual } if *path == identity && *actual == size));
        assert!(error.to_string().contains(identity.to_str().unwrap()), "{error}");
    }
    std::fs::write(&identity, key).unwrap();
    let network = node(directory.path()).await;
    assert_eq!(network.node_id(), id);
    shut_down(network).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operation_over_the_limit_is_refused_and_uses_no_number() {
    let directory = tempfile::tempdir().unwrap();
    let network = node(directory.path()).await;
    let document = network.create().await.unwrap();
    let actual = OPERATION_PAYLOAD_MAX_BYTES + 1;
    let error = document.publish(vec![0; actual]).await.unwrap_err();
    let PandaError::Store(StoreError::Operation(error)) = error else { panic!("{error:?}") };
    assert_eq!(error, OperationError::PayloadTooLarge { actual, limit: OPERATION_PAYLOAD_MAX_BYTES });
    assert_eq!(document.publish(vec![0; actual - 1]).await.unwrap().seq_num(), 0);
    shut_down(network).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_outbox_refuses_the_next_operation_loses_none_and_takes_more_once_a_peer_has_them() {
    let (at_alice, at_bob) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let limited = options(at_alice.path()).with_outbox_limits(10, 1024 * 1024);
    let alice = PandaNetwork::start(limited.clone()).await.unwrap();
    let here = alice.create().await.unwrap();
    let id = here.id();
    let mut payloads: Vec<_> = (0..10).map(|number| Bytes::from(format!("offline {number}"))).collect();
    for payload in &payloads {
        here.publish(payload.clone()).await.unwrap();
    }
    let is_full = |error| matches!(error, PandaError::Store(StoreError::QueueFull { operations: 10, .. }));
    assert!(is_full(here.publish("the eleventh").await.unwrap_err()));
    drop(here);
    shut_down(alice).await;
    let alice = PandaNetwork::start(limited).await.unwrap();
    let here = alice.reopen(id).await.unwrap();
    assert!(is_full(here.publish("the eleventh").await.unwrap_err()), "after a restart as before");
    assert_log(&here, alice.node_id(), &payloads).await;
    let bob = node(at_bob.path()).await;
    let there = bob.open(here.ticket().await.unwrap()).await.unwrap();
    pending_is_over(&here).await;
    let receipt = here.publish("the eleventh").await.unwrap();
    assert_eq!(receipt.seq_num(), 10);
    payloads.push("the eleventh".into());
    receipt.delivered_to(1).await;
    // Whoever sees the queue empty finds room in it, every time.
    for round in 0..30 {
        pending_is_over(&here).await;
        for number in 0..10 {
            let payload = Bytes::from(format!("online {round} {number}"));
            here.publish(payload.clone()).await.unwrap();
            payloads.push(payload);
        }
    }
    assert_log(&there, alice.node_id(), &payloads).await;
    shut_down(alice).await;
    shut_down(bob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_is_named_in_the_error_and_the_directory_stays_free() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let on_taken = options(directory.path()).with_listen_address(listen);
    let error = PandaNetwork::start(on_taken.clone()).await.unwrap_err();
    let PandaError::Transport(TransportError::Bind { address, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(*address, listen);
    assert!(error.to_string().contains(&listen.to_string()), "{error}");
    drop(taken);
    let network = PandaNetwork::start(on_taken).await.unwrap();
    assert_eq!(network.local_addresses(), [listen]);
    shut_down(network).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_dropped_without_a_shutdown_starts_again_in_the_same_process() {
    let (at_alice, at_bob) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bob = node(at_bob.path()).await;
    let there = bob.create().await.unwrap();
    let ticket = there.ticket().await.unwrap();
    let mut payloads = Vec::new();
    for life in 0..20 {
        let alice = node(at_alice.path()).await;
        let here = alice.open(ticket.clone()).await.unwrap();
        for number in 0..20 {
            let payload = Bytes::from(format!("{life} {number}"));
            here.publish(payload.clone()).await.unwrap();
            payloads.push(payload);
            there.publish("meanwhile").await.unwrap();
        }
        if life % 2 == 0 {
            pending_is_over(&here).await;
        }
    }
    let alice = node(at_alice.path()).await;
    let here = alice.reopen(there.id()).await.unwrap();
    pending_is_over(&here).await;
    assert_log(&here, alice.node_id(), &payloads).await;
    assert_log(&there, alice.node_id(), &payloads).await;
    shut_down(alice).await;
    shut_down(bob).await;
}
