//! A relay on real sockets, as a process of its own and beside hostile clients: nodes find and reach each other, strangers'
//! TURN clients are served by the book, and who asks for too much gets no more than that.
//!
//! Deadlines only end a test that hangs. `turnutils_uclient` is coturn's client (Debian package `coturn`); where it is not
//! installed the tests with it are reported as ignored.

#![cfg(feature = "cli")]

#[path = "relay/node.rs"]
mod node;
#[path = "support/trials.rs"]
mod trials;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use libtest_mimic::Arguments;
use node::{FlowEnd, Node, soon};
use panda_network::identity::Identity;
use panda_network::net::HostNetwork;
use panda_network::relay::{Rate, Relay, RelayError, RelayLimits, RelayOptions, TurnMode};
use panda_network::rendezvous::address::RelayAddress;
use panda_network::rendezvous::seal;
use panda_network::rendezvous::signal::Signal;
use panda_network::rendezvous::wire::{NodeFrame, RelayFrame, TurnTransport};
use panda_network::transports::host::OsNetwork;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use trials::{run, trial};

fn main() {
    let trials = vec![
        trial("two_nodes_meet_through_a_relay_process_which_says_when_it_goes", None, || {
            run(two_nodes_meet_through_a_relay_process_which_says_when_it_goes())
        }),
        trial("turn_by_udp_works_with_coturns_client", Some("turnutils_uclient"), || {
            run(turn_by_udp_works_with_coturns_client())
        }),
        trial("turn_lends_the_ports_that_it_is_told", Some("turnutils_uclient"), || {
            run(turn_lends_the_ports_that_it_is_told())
        }),
        trial("turn_by_tcp_works_with_coturns_client", Some("turnutils_uclient"), || {
            run(turn_by_tcp_works_with_coturns_client())
        }),
        trial("turn_by_tls_works_with_coturns_client", Some("turnutils_uclient"), || {
            run(turn_by_tls_works_with_coturns_client())
        }),
        trial("turn_lends_coturns_client_ipv6_addresses", Some("turnutils_uclient"), || {
            run(turn_lends_coturns_client_ipv6_addresses())
        }),
        trial("credentials_of_the_relay_are_taken_by_a_coturn_with_the_same_secret", Some("turnserver"), || {
            run(credentials_of_the_relay_are_taken_by_a_coturn_with_the_same_secret())
        }),
        trial("coturns_client_learns_from_the_relay_that_there_is_no_nat", Some("turnutils_natdiscovery"), || {
            run(coturns_client_learns_from_the_relay_that_there_is_no_nat())
        }),
        trial("a_wrong_configuration_is_told_in_one_line", None, a_wrong_configuration_is_told_in_one_line),
        trial("another_relay_than_the_dialled_one_is_refused", None, || {
            run(another_relay_than_the_dialled_one_is_refused())
        }),
        trial("an_oversized_frame_ends_its_session_and_no_other", None, || {
            run(an_oversized_frame_ends_its_session_and_no_other())
        }),
        trial("a_flood_of_signals_is_refused_beyond_its_quota", None, || {
            run(a_flood_of_signals_is_refused_beyond_its_quota())
        }),
        trial("a_node_that_does_not_read_loses_its_session_and_holds_nobody_up", None, || {
            run(a_node_that_does_not_read_loses_its_session_and_holds_nobody_up())
        }),
        trial("a_node_that_asks_much_at_once_is_answered_as_often", None, || {
            run(a_node_that_asks_much_at_once_is_answered_as_often())
        }),
        trial("options_for_a_turn_server_that_is_not_there_are_refused", None, || {
            run(options_for_a_turn_server_that_is_not_there_are_refused())
        }),
        trial("a_turn_stream_of_rubbish_is_closed", None, || run(a_turn_stream_of_rubbish_is_closed())),
        trial("more_sessions_of_one_address_than_allowed_are_turned_away", None, || {
            run(more_sessions_of_one_address_than_allowed_are_turned_away())
        }),
        trial("more_streams_of_one_address_than_allowed_are_closed_at_once", None, || {
            run(more_streams_of_one_address_than_allowed_are_closed_at_once())
        }),
        trial("rubbish_on_the_datagram_port_is_counted_and_answered_by_nothing", None, || {
            run(rubbish_on_the_datagram_port_is_counted_and_answered_by_nothing())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// `panda relay` on free ports of loopback.
struct RelayProcess {
    child: Child,
    address: RelayAddress,
    admin: SocketAddr,
}

impl RelayProcess {
    fn start() -> Self {
        Self::start_with("datagrams = '127.0.0.1:0'\nturn.tcp = '127.0.0.1:0'\npeers.allow = ['127.0.0.0/8']\n")
    }

    fn start_with(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("relay.toml");
        std::fs::write(&config, format!("listen = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{text}")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_panda"));
        command.args(["relay", "--json", "--config"]).arg(config).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let started: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = |key: &str| started[key].as_str().unwrap().to_owned();
        Self { child, address: text("address").parse().unwrap(), admin: text("admin").parse().unwrap() }
    }

    fn interrupt(mut self) -> ExitStatus {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap()
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn relay(limits: RelayLimits) -> Relay {
    let options = RelayOptions::new(Identity::from_seed(&[9; 32])).with_limits(limits);
    Relay::start(Arc::new(OsNetwork), options).unwrap()
}

async fn get(admin: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(admin).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    answer
}

async fn two_nodes_meet_through_a_relay_process_which_says_when_it_goes() {
    let relay = RelayProcess::start();
    let mut alice = Node::connect(&relay.address, 1).await.unwrap();
    let mut bob = Node::connect(&relay.address, 2).await.unwrap();
    assert!(alice.welcome.observed.ip().is_loopback());

    let offer = Signal::Refused { session: 7 };
    let sealed = seal::seal(&alice.identity, &bob.peer_id(), &offer.encode(), [3; 32]).unwrap();
    alice.say(NodeFrame::Signal { to: bob.peer_id(), sealed: sealed.into() }).await;
    let RelayFrame::Signal { from, sealed } = bob.hear().await.unwrap() else { panic!("no signal") };
    let opened = seal::open(&bob.identity, &from, &sealed).unwrap();
    assert_eq!((from, Signal::decode(&opened.into())), (alice.peer_id(), Ok(offer)));

    alice.say(NodeFrame::Punch { to: bob.peer_id(), session: 7 }).await;
    assert!(matches!(bob.hear().await.unwrap(), RelayFrame::Punch { peer, session: 7, .. } if peer == alice.peer_id()));
    assert!(matches!(alice.hear().await.unwrap(), RelayFrame::Punch { session: 7, .. }));

    alice.say(NodeFrame::Forward { to: bob.peer_id() }).await;
    let at_alice = FlowEnd::of(&mut alice, bob.peer_id()).await;
    let at_bob = FlowEnd::of(&mut bob, alice.peer_id()).await;
    at_alice.send(b"before bob was there");
    at_bob.send(b"");
    assert_eq!(at_bob.receive().await, b"before bob was there");
    at_bob.send(&[7; 1200]);
    assert_eq!(at_alice.receive().await, [7; 1200]);

    assert!(get(relay.admin, "/healthz").await.ends_with("ok\n"));
    let metrics = get(relay.admin, "/metrics").await;
    for line in ["panda_relay_sessions 2", "panda_relay_flows 1", "panda_relay_forwarded_total 2"] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }

    alice.say(NodeFrame::Signal { to: Identity::from_seed(&[3; 32]).peer_id(), sealed: Bytes::new() }).await;
    assert!(matches!(alice.hear().await.unwrap(), RelayFrame::NotHere { .. }));
    drop(bob);
    assert!(matches!(alice.hear().await.unwrap(), RelayFrame::FlowClosed { flow } if flow == at_alice.flow));

    let ended = tokio::task::spawn_blocking(|| relay.interrupt());
    assert_eq!(alice.hear().await.unwrap(), RelayFrame::GoingAway);
    assert!(alice.hear().await.is_err(), "the stream ends");
    assert!(soon("the process", ended).await.unwrap().success());
}

/// Runs a command; what it printed.
async fn printed(mut command: Command) -> String {
    let name = command.get_program().to_owned();
    let output = tokio::task::spawn_blocking(move || command.output());
    match soon("a command", output).await.unwrap() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => panic!("{}: {error}", name.display()),
    }
}

/// A port that is free for UDP and TCP, as far as anybody can know.
fn free_port() -> u16 {
    loop {
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = udp.local_addr().unwrap();
        if std::net::TcpListener::bind(address).is_ok() {
            return address.port();
        }
    }
}

/// Runs coturn's client from one relayed address to another; what it printed. It sends indications (`-s`): the
/// channels that it would take are those of RFC 5766, most of which RFC 8656 forbids.
async fn uclient(transport: TurnTransport, arguments: &'static [&'static str]) -> String {
    uclient_with(&RelayProcess::start(), transport, arguments).await
}

async fn uclient_with(relay: &RelayProcess, transport: TurnTransport, arguments: &[&str]) -> String {
    let node = Node::connect(&relay.address, 1).await.unwrap();
    let server = node.welcome.turn.iter().find(|server| server.transport == transport).unwrap().clone();
    let mut command = Command::new("turnutils_uclient");
    command.args(["-u", &server.username, "-w", &server.password, "-p", &server.server.port().to_string()]);
    command.args(["-n", "20", "-m", "2", "-l", "500", "-c"]).args(arguments).arg(server.server.host());
    printed(command).await
}

/// Whether nothing was lost of what it sent: its messages go out and come back.
fn assert_all_came_back(printed: &str) {
    let total = printed.lines().filter(|line| line.contains("Total lost packets 0 (0.000000%)")).count();
    assert!(total > 0, "{printed}");
}

async fn turn_by_udp_works_with_coturns_client() {
    assert_all_came_back(&uclient(TurnTransport::Udp, &["-y", "-s"]).await);
}

async fn turn_lends_the_ports_that_it_is_told() {
    let relay = RelayProcess::start_with(
        "datagrams = '127.0.0.1:0'\nturn.ports = [20100, 20139]\npeers.allow = ['127.0.0.0/8']\n",
    );
    let printed = uclient_with(&relay, TurnTransport::Udp, &["-y", "-s", "-v"]).await;
    assert_all_came_back(&printed);
    let relayed = printed.lines().filter_map(|line| line.split_once("Received relay addr: 127.0.0.1:"));
    let ports: Vec<u16> = relayed.map(|(_, port)| port.trim().parse().unwrap()).collect();
    assert!(!ports.is_empty() && ports.iter().all(|port| (20100..=20139).contains(port)), "{ports:?}");
}

async fn turn_by_tcp_works_with_coturns_client() {
    assert_all_came_back(&uclient(TurnTransport::Tcp, &["-y", "-s", "-t"]).await);
}

async fn turn_by_tls_works_with_coturns_client() {
    assert_all_came_back(&uclient(TurnTransport::Tls, &["-y", "-s", "-t", "-S"]).await);
}

async fn turn_lends_coturns_client_ipv6_addresses() {
    let relay = RelayProcess::start_with(
        "datagrams = '127.0.0.1:0'\nrelay_ips = ['127.0.0.1', '::1']\npeers.allow = ['127.0.0.0/8', '::1/128']\n",
    );
    let printed = uclient_with(&relay, TurnTransport::Udp, &["-y", "-s", "-v", "-x"]).await;
    assert_all_came_back(&printed);
    assert!(printed.contains("Received relay addr: ::1:"), "no relayed IPv6 address: {printed}");
}

/// coturn itself; killed when the test ends.
struct Coturn(Child);

impl Coturn {
    fn start(port: u16, secret: &str) -> Self {
        let arguments = "-n --no-cli --listening-ip=127.0.0.1 --relay-ip=127.0.0.1 --use-auth-secret --realm=test.local \
                         --allow-loopback-peers --no-tls --no-dtls --log-file=stdout --simple-log --pidfile=";
        let mut command = Command::new("turnserver");
        command.args(arguments.split_whitespace()).arg(format!("--listening-port={port}"));
        command.arg(format!("--static-auth-secret={secret}")).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("turnserver starts");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!({ lines }.any(|line| line.contains("Total General servers")), "coturn does not start");
        Self(child)
    }
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn credentials_of_the_relay_are_taken_by_a_coturn_with_the_same_secret() {
    let port = free_port();
    let _coturn = Coturn::start(port, "north");
    let relay = RelayProcess::start_with(&format!(
        "datagrams = '127.0.0.1:0'\nturn.mode = 'external'\nturn.secret = 'north'\n\
         turn.servers = ['turn:127.0.0.1:{port}?transport=udp']\n"
    ));
    assert_all_came_back(&uclient_with(&relay, TurnTransport::Udp, &["-y"]).await);
}

/// Linux takes all of 127.0.0.0/8 for itself without being told.
#[cfg(target_os = "linux")]
async fn coturns_client_learns_from_the_relay_that_there_is_no_nat() {
    let (first, second) = (free_port(), free_port());
    let _relay = RelayProcess::start_with(&format!(
        "datagrams = '127.0.0.1:{first}'\nalternate = {{ ip = '127.0.0.2', port = {second} }}\n"
    ));
    let mut command = Command::new("turnutils_natdiscovery");
    command.args(["-m", "-f", "-L", "127.0.0.1", "-p", &first.to_string(), "127.0.0.1"]);
    let printed = printed(command).await;
    for found in ["Endpoint Independent Mapping", "Endpoint Independent Filtering"] {
        assert!(printed.contains(found), "{found} is not in {printed}");
    }
    assert!(!printed.contains("Not received"), "{printed}");
}

fn a_wrong_configuration_is_told_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("relay.toml");
    std::fs::write(&config, "lisen = '127.0.0.1:0'\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_panda")).args(["relay", "--config"]).arg(&config).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.lines().count() == 1, "{told}");
    assert!(told.contains("relay.toml") && told.contains("lisen"), "{told}");
}

async fn another_relay_than_the_dialled_one_is_refused() {
    let relay = relay(RelayLimits::new());
    let mut address = relay.address().clone();
    assert!(Node::connect(&address, 1).await.is_ok());
    address.key = Some(Identity::from_seed(&[8; 32]).peer_id());
    assert!(Node::connect(&address, 1).await.is_err());
}

async fn an_oversized_frame_ends_its_session_and_no_other() {
    let relay = relay(RelayLimits::new());
    let mut alice = Node::connect(relay.address(), 1).await.unwrap();
    for (seed, hostile) in [(2, vec![0xFF; 4]), (3, vec![0, 0, 0, 1, 0xFF]), (4, b"GET / HTTP/1.1\r\n\r\n".to_vec())] {
        let mut mallory = Node::connect(relay.address(), seed).await.unwrap();
        mallory.say_bytes(&hostile).await.unwrap();
        assert!(mallory.hear().await.is_err(), "{hostile:?}");
    }
    alice.say(NodeFrame::Ping { nonce: 5 }).await;
    assert_eq!(alice.hear().await.unwrap(), RelayFrame::Pong { nonce: 5 });
    assert_eq!((relay.snapshot().misbehaved, relay.snapshot().sessions), (3, 1));
}

async fn a_flood_of_signals_is_refused_beyond_its_quota() {
    let rate = Rate { per_second: 1, burst: 10 };
    let relay = relay(RelayLimits::new().with_requests_per_client(rate));
    let mut mallory = Node::connect(relay.address(), 1).await.unwrap();
    let mut bob = Node::connect(relay.address(), 2).await.unwrap();
    let to = bob.peer_id();
    for _ in 0..50 {
        mallory.say(NodeFrame::Signal { to, sealed: Bytes::from_static(b"x") }).await;
    }
    while mallory.hear().await.unwrap() != (RelayFrame::Busy { to }) {}
    assert!(relay.snapshot().refused > 0);
    // Whoever did not flood is served.
    bob.say(NodeFrame::Ping { nonce: 1 }).await;
    while bob.hear().await.unwrap() != (RelayFrame::Pong { nonce: 1 }) {}
}

async fn a_node_that_does_not_read_loses_its_session_and_holds_nobody_up() {
    let all = Rate { per_second: 1_000_000, burst: 1_000_000 };
    let relay = relay(RelayLimits::new().with_requests_per_client(all));
    let mut alice = Node::connect(relay.address(), 1).await.unwrap();
    let deaf = Node::connect(relay.address(), 2).await.unwrap();
    let signal = || NodeFrame::Signal { to: deaf.peer_id(), sealed: Bytes::from(vec![7; 4096]) };
    soon("the queue is full", async {
        while relay.snapshot().slow == 0 {
            alice.say(signal()).await;
        }
    })
    .await;
    alice.say(NodeFrame::Forward { to: deaf.peer_id() }).await;
    assert_eq!(alice.hear().await.unwrap(), RelayFrame::NotHere { to: deaf.peer_id() });
    assert_eq!(relay.snapshot().sessions, 1);
}

async fn a_node_that_asks_much_at_once_is_answered_as_often() {
    let relay = relay(RelayLimits::new());
    let mut alice = Node::connect(relay.address(), 1).await.unwrap();
    let to = Identity::from_seed(&[3; 32]).peer_id();
    let mut all = Vec::new();
    (0..500).for_each(|_| NodeFrame::Forward { to }.encode(&mut all));
    alice.say_bytes(&all).await.unwrap();
    for _ in 0..500 {
        let answer = alice.hear().await.unwrap();
        assert!([RelayFrame::NotHere { to }, RelayFrame::Busy { to }].contains(&answer), "{answer:?}");
    }
    assert_eq!(relay.snapshot().sessions, 1);
}

/// What would be without effect is an error.
async fn options_for_a_turn_server_that_is_not_there_are_refused() {
    let options = || RelayOptions::new(Identity::from_seed(&[9; 32]));
    let tcp = "127.0.0.1:0".parse().unwrap();
    for options in [
        options().with_turn(TurnMode::Off).with_turn_tcp(tcp),
        options().with_turn(TurnMode::Off).with_turn_ports(1000..=2000),
        options().with_turn_ports(0..=2000),
        options().with_turn_ports(RangeInclusive::new(2000, 1000)),
    ] {
        let error = Relay::start(Arc::new(OsNetwork), options).unwrap_err();
        assert!(matches!(error, RelayError::Options(_)), "{error}");
    }
}

async fn a_turn_stream_of_rubbish_is_closed() {
    let options = RelayOptions::new(Identity::from_seed(&[9; 32])).with_turn_tcp("127.0.0.1:0".parse().unwrap());
    let relay = Relay::start(Arc::new(OsNetwork), options).unwrap();
    let mut stream = tokio::net::TcpStream::connect(relay.bound().turn_tcp.unwrap()).await.unwrap();
    stream.write_all(b"\x80GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // An end or a reset, but no answer.
    let answer = soon("the end", stream.read(&mut [0; 10])).await;
    assert!(matches!(answer, Ok(0) | Err(_)), "{answer:?}");
    assert_eq!(relay.snapshot().misbehaved, 1);
}

async fn more_sessions_of_one_address_than_allowed_are_turned_away() {
    let relay = relay(RelayLimits::new().with_sessions_per_address(2));
    let (_one, two) = (Node::connect(relay.address(), 1).await.unwrap(), Node::connect(relay.address(), 2).await);
    assert!(Node::connect(relay.address(), 3).await.is_err());
    drop(two);
    soon("room again", async { while Node::connect(relay.address(), 3).await.is_err() {} }).await;
    assert!(relay.snapshot().turned_away > 0);
}

async fn more_streams_of_one_address_than_allowed_are_closed_at_once() {
    let relay = relay(RelayLimits::new().with_streams_per_address(3));
    let mut idle = Vec::new();
    for _ in 0..3 {
        idle.push(OsNetwork.connect_tcp(relay.bound().tls).await.unwrap());
    }
    let refused = async { while Node::connect(relay.address(), 1).await.is_ok() {} };
    soon("the fourth is refused", refused).await;
    drop(idle);
    soon("room again", async { while Node::connect(relay.address(), 1).await.is_err() {} }).await;
}

async fn rubbish_on_the_datagram_port_is_counted_and_answered_by_nothing() {
    let relay = relay(RelayLimits::new());
    let mut alice = Node::connect(relay.address(), 1).await.unwrap();
    let socket = OsNetwork.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
    let to = relay.bound().datagrams;
    let mut spoofed = vec![0x20];
    spoofed.extend_from_slice(&[7; 40]);
    let rubbish = [&[0xFF; 100][..], &[0x40, 0, 0, 200], &[0; 20], &[0x20, 1], &spoofed, &[0x16; 2040], &[]];
    for _ in 0..20 {
        rubbish.iter().for_each(|datagram| socket.try_send(to, datagram).unwrap());
    }
    soon("all were looked at", async {
        while relay.snapshot().forward_dropped < 20 || relay.snapshot().malformed < 20 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut buffer = [0; 100];
    let answer = std::future::poll_fn(|context| {
        // Ready at once or not at all: the relay has looked at everything.
        std::task::Poll::Ready(socket.poll_receive(context, &mut buffer).is_ready())
    });
    assert!(!answer.await, "nothing was answered");
    alice.say(NodeFrame::Ping { nonce: 5 }).await;
    assert_eq!(alice.hear().await.unwrap(), RelayFrame::Pong { nonce: 5 });
}
