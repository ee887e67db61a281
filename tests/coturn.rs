//! STUN and TURN against coturn, on real sockets over loopback: the machines of `nat` speak with a server that is not ours.
//!
//! Needs Debian's package `coturn` (`apt-get install coturn`): without `turnserver` these tests are reported as ignored. Each starts a server of
//! its own on free ports and ends it. The drivers here are the thinnest that there can be: one blocking socket per machine.

#[path = "support/trials.rs"]
mod trials;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use libtest_mimic::Arguments;
use panda_network::nat::allocation::{Allocation, TurnEvent, TurnFailure, TurnInput, TurnOptions, TurnTransport};
use panda_network::nat::binding::{BindingEvent, BindingMachine, BindingOptions};
use panda_network::nat::credentials::TurnCredentials;
use panda_network::nat::framing::TurnFramer;
use panda_network::nat::nat_type::{FilteringBehaviour, Mapping, NatTypeMachine, NatTypeOptions, Probe};
use panda_network::nat::stun::{Class, ErrorCode, Method, Scanned};
use trials::{run, trial};

/// The server's program.
const SERVER: Option<&str> = Some("turnserver");

fn main() {
    let trials = vec![
        trial("a_server_sees_the_address_of_our_socket", SERVER, a_server_sees_the_address_of_our_socket),
        trial(
            "two_clients_talk_over_their_relayed_addresses_by_udp_and_tcp",
            SERVER,
            two_clients_talk_over_their_relayed_addresses_by_udp_and_tcp,
        ),
        trial("one_allocation_has_addresses_of_both_families", SERVER, one_allocation_has_addresses_of_both_families),
        trial("a_nonce_that_went_stale_is_replaced", SERVER, a_nonce_that_went_stale_is_replaced),
        trial(
            "short_lived_credentials_are_taken_until_they_expire",
            SERVER,
            short_lived_credentials_are_taken_until_they_expire,
        ),
        trial(
            "an_allocation_outlives_its_credentials_but_no_new_one_is_made_with_them",
            SERVER,
            an_allocation_outlives_its_credentials_but_no_new_one_is_made_with_them,
        ),
        trial("wrong_credentials_and_a_reached_quota_are_told", SERVER, wrong_credentials_and_a_reached_quota_are_told),
        trial(
            "an_allocation_that_was_given_back_or_forgotten_makes_room_for_the_next",
            SERVER,
            an_allocation_that_was_given_back_or_forgotten_makes_room_for_the_next,
        ),
        trial("on_loopback_there_is_no_nat_and_no_filter", SERVER, on_loopback_there_is_no_nat_and_no_filter),
        trial("nodes_without_udp_talk_over_tcp", SERVER, || run(nodes::nodes_without_udp_talk_over_tcp())),
        trial("nodes_without_udp_talk_over_tls_to_a_server_with_any_certificate", SERVER, || {
            run(nodes::nodes_without_udp_talk_over_tls_to_a_server_with_any_certificate())
        }),
        trial("nodes_talk_to_a_server_with_the_pinned_key_and_the_doctor_says_when_it_is_another", SERVER, || {
            run(nodes::nodes_talk_to_a_server_with_the_pinned_key_and_the_doctor_says_when_it_is_another())
        }),
        trial("the_doctor_says_when_the_clocks_of_relay_and_server_are_a_year_apart", SERVER, || {
            run(nodes::the_doctor_says_when_the_clocks_of_relay_and_server_are_a_year_apart())
        }),
        trial("nodes_that_hide_their_addresses_talk_over_udp", SERVER, || {
            run(nodes::nodes_that_hide_their_addresses_talk_over_udp())
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// The other address of the server, for RFC 5780.
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// How long anything may take. Only a failure waits that long.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a blocking read sleeps when nothing else is due.
const NAP: Duration = Duration::from_millis(20);

/// A running turnserver, ended with the test.
struct Coturn {
    child: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Coturn {
    /// With a user `anna`, password `secret`.
    fn start() -> Self {
        Self::start_with(&["--user=anna:secret", "--stale-nonce=1"])
    }

    fn start_with(arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let file = |name: &str| directory.path().join(name).display().to_string();
        let mut command = Command::new("turnserver");
        command.args(["-n", "--no-cli", "--no-dtls", "--lt-cred-mech", "--realm=example.org"]);
        command.args(["--allow-loopback-peers", "--simple-log", "--log-file=stdout"]);
        command.args([format!("-L{LOOPBACK}"), format!("-L{OTHER}"), format!("--relay-ip={LOOPBACK}")]);
        command.args([format!("--listening-port={port}"), format!("--alt-listening-port={}", port + 1)]);
        command.args([format!("--pidfile={}", file("pid")), format!("--userdb={}", file("users"))]);
        if !arguments.iter().any(|argument| argument.starts_with("--tls-listening-port")) {
            command.arg("--no-tls");
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                panic!("turnserver is not installed: `apt-get install coturn`, these tests need it")
            }
            Err(error) => panic!("turnserver does not start: {error}"),
        };
        let mut coturn = Self { child, address: SocketAddr::from((LOOPBACK, port)), _directory: directory };
        coturn.wait_until_it_answers();
        coturn
    }

    fn wait_until_it_answers(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while mapped_address(self.address).is_none() {
            assert_eq!(self.child.try_wait().unwrap(), None, "turnserver ended");
            assert!(Instant::now() < deadline, "turnserver does not answer");
        }
    }
}

/// A port that is free for UDP and TCP on both addresses, and so is the next one. No two tests get the same.
fn free_port() -> u16 {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    let mut given = GIVEN.lock().unwrap();
    let is_free = |ip: Ipv4Addr, port| UdpSocket::bind((ip, port)).is_ok() && TcpListener::bind((ip, port)).is_ok();
    let fits = |port: u16| {
        let is_free = |port| [LOOPBACK, OTHER].iter().all(|ip| is_free(*ip, port));
        port < u16::MAX && given.iter().all(|other| port.abs_diff(*other) > 1) && is_free(port) && is_free(port + 1)
    };
    let mut candidates = (0..100).map(|_| UdpSocket::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap().port());
    let port = candidates.find(|port| fits(*port)).expect("two free ports");
    given.push(port);
    port
}

fn seed() -> [u8; 32] {
    std::array::from_fn(|_| rand::random())
}

fn socket() -> UdpSocket {
    UdpSocket::bind((LOOPBACK, 0)).unwrap()
}

/// One datagram, or nothing within a nap.
fn receive<'a>(socket: &UdpSocket, due: Option<Instant>, buffer: &'a mut [u8]) -> Option<(&'a [u8], SocketAddr)> {
    let wait = due.map_or(NAP, |due| due.saturating_duration_since(Instant::now()).min(NAP));
    socket.set_read_timeout(Some(wait.max(Duration::from_millis(1)))).unwrap();
    match socket.recv_from(buffer) {
        Ok((length, from)) => Some((&buffer[..length], from)),
        // Refused: an ICMP message about an earlier datagram.
        Err(error)
            if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused) =>
        {
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// What a server sees of a fresh socket; `None` when it is silent for a second. And the local address.
fn mapped_address(server: SocketAddr) -> Option<(SocketAddr, SocketAddr)> {
    let socket = socket();
    let mut machine = BindingMachine::new(BindingOptions::new(), seed());
    machine.add_server(Instant::now(), server);
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut buffer = [0; 2048];
    while Instant::now() < deadline {
        while let Some(packet) = machine.poll_transmit() {
            let _ = socket.send_to(&packet.bytes, packet.to);
        }
        if let Some((bytes, from)) = receive(&socket, machine.poll_timeout().map(|(at, _)| at), &mut buffer) {
            machine.handle_input(Instant::now(), from, &Scanned::scan(bytes).unwrap());
        }
        machine.handle_timeout(Instant::now());
        if let Some(BindingEvent::Mapped { address, .. }) = machine.poll_event() {
            return Some((address, socket.local_addr().unwrap()));
        }
    }
    None
}

/// The way to the server.
enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream, TurnFramer),
}

impl Link {
    fn send(&mut self, server: SocketAddr, frame: &[u8]) {
        match self {
            Self::Udp(socket) => _ = socket.send_to(frame, server),
            Self::Tcp(stream, _) => stream.write_all(frame).unwrap(),
        }
    }

    /// The frames that come within a nap.
    fn receive(&mut self, due: Option<Instant>) -> Vec<Vec<u8>> {
        let mut buffer = [0; 4096];
        match self {
            Self::Udp(socket) => {
                receive(socket, due, &mut buffer).into_iter().map(|(bytes, _)| bytes.to_vec()).collect()
            }
            Self::Tcp(stream, framer) => {
                stream.set_read_timeout(Some(NAP)).unwrap();
                match stream.read(&mut buffer) {
                    Ok(length) => framer.push(&buffer[..length]),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(error) => panic!("{error}"),
                }
                std::iter::from_fn(|| framer.next_frame().unwrap()).map(|frame| frame.to_vec()).collect()
            }
        }
    }
}

/// A TURN client: a machine and its link.
struct Client {
    server: SocketAddr,
    turn: Allocation,
    link: Link,
    events: Vec<TurnEvent>,
    received: Vec<(SocketAddr, Vec<u8>)>,
    /// How requests were answered.
    answers: Vec<(Method, Class)>,
    /// How far the machine's clock is ahead of ours.
    ahead: Duration,
}

impl Client {
    fn new(server: SocketAddr, transport: TurnTransport, credentials: TurnCredentials) -> Self {
        let link = match transport {
            TurnTransport::Udp => Link::Udp(socket()),
            TurnTransport::Tcp | TurnTransport::Tls => {
                Link::Tcp(TcpStream::connect(server).unwrap(), TurnFramer::new())
            }
        };
        let mut turn = Allocation::new(TurnOptions::new(transport), credentials, seed());
        turn.allocate(Instant::now());
        let (events, received, answers) = (Vec::new(), Vec::new(), Vec::new());
        Self { server, turn, link, events, received, answers, ahead: Duration::ZERO }
    }

    fn of_anna(server: &Coturn, transport: TurnTransport) -> Self {
        Self::new(server.address, transport, TurnCredentials::new("anna", "secret").unwrap())
    }

    fn step(&mut self) {
        while let Some(frame) = self.turn.poll_transmit() {
            self.link.send(self.server, &frame);
        }
        for frame in self.link.receive(self.turn.poll_timeout().map(|(at, _)| at)) {
            if let Ok(answer) = Scanned::scan(&frame) {
                self.answers.push((answer.method(), answer.class()));
            }
            if let TurnInput::Data { peer, payload } = self.turn.handle_input(Instant::now() + self.ahead, &frame) {
                self.received.push((peer, frame[payload].to_vec()));
            }
        }
        self.turn.handle_timeout(Instant::now() + self.ahead);
        self.events.extend(std::iter::from_fn(|| self.turn.poll_event()));
    }

    fn relayed(&mut self) -> SocketAddr {
        until(&mut [self], |clients| clients[0].turn.relayed_addresses().next().is_some());
        self.turn.relayed_addresses().next().unwrap()
    }

    fn failure(&mut self) -> TurnFailure {
        let failure = |client: &Client| {
            client.events.iter().find_map(|event| match event {
                TurnEvent::Failed { why, .. } => Some(*why),
                _ => None,
            })
        };
        until(&mut [self], |clients| failure(clients[0]).is_some());
        failure(self).unwrap()
    }

    fn send(&mut self, peer: SocketAddr, payload: &[u8]) -> usize {
        let frame = self.turn.send(peer, payload).expect("a peer that is ready").to_vec();
        self.link.send(self.server, &frame);
        frame.len()
    }
}

/// Drives clients until something is true.
fn until(clients: &mut [&mut Client], mut done: impl FnMut(&[&mut Client]) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done(clients) {
        assert!(Instant::now() < deadline, "{:?}", clients.iter().map(|client| &client.events).collect::<Vec<_>>());
        clients.iter_mut().for_each(|client| client.step());
    }
}

/// Sends one payload each way until it has arrived: UDP may lose it between relayed addresses.
fn exchange(one: &mut Client, two: &mut Client) {
    let (here, there) = (one.relayed(), two.relayed());
    exchange_at((one, here), (two, there));
}

/// The same between these of their relayed addresses.
fn exchange_at((one, here): (&mut Client, SocketAddr), (two, there): (&mut Client, SocketAddr)) {
    one.turn.add_peer(Instant::now(), there);
    two.turn.add_peer(Instant::now(), here);
    until(&mut [one, two], |both| both[0].turn.is_ready(there) && both[1].turn.is_ready(here));
    let deadline = Instant::now() + PATIENCE;
    while !one.received.contains(&(there, b"hello one".to_vec()))
        || !two.received.contains(&(here, b"hello two".to_vec()))
    {
        assert!(Instant::now() < deadline, "nothing arrives");
        one.send(there, b"hello two");
        two.send(here, b"hello one");
        one.step();
        two.step();
    }
}

fn a_server_sees_the_address_of_our_socket() {
    let coturn = Coturn::start();
    let (mapped, local) = mapped_address(coturn.address).unwrap();
    assert_eq!(mapped, local);
}

fn two_clients_talk_over_their_relayed_addresses_by_udp_and_tcp() {
    let coturn = Coturn::start();
    let mut one = Client::of_anna(&coturn, TurnTransport::Udp);
    let mut two = Client::of_anna(&coturn, TurnTransport::Tcp);
    exchange(&mut one, &mut two);
    let (here, there) = (one.relayed(), two.relayed());
    // Sooner or later both have a channel: 4 bytes, and padding in a stream.
    let deadline = Instant::now() + PATIENCE;
    while one.send(there, b"x") != 5 || two.send(here, b"x") != 8 {
        assert!(Instant::now() < deadline, "no channel");
        one.step();
        two.step();
    }
    two.received.clear();
    one.send(there, b"by channel");
    until(&mut [&mut one, &mut two], |both| both[1].received.contains(&(here, b"by channel".to_vec())));
}

fn one_allocation_has_addresses_of_both_families() {
    let coturn = Coturn::start_with(&["--user=anna:secret", "--relay-ip=::1"]);
    let mut clients = [TurnTransport::Udp, TurnTransport::Tcp].map(|transport| {
        let mut client = Client::of_anna(&coturn, transport);
        let options = TurnOptions::new(transport).with_both_families();
        client.turn = Allocation::new(options, TurnCredentials::new("anna", "secret").unwrap(), seed());
        client.turn.allocate(Instant::now());
        until(&mut [&mut client], |clients| clients[0].turn.relayed_addresses().count() == 2);
        client
    });
    for v4 in [true, false] {
        let relayed =
            |client: &Client| client.turn.relayed_addresses().find(|address| address.is_ipv4() == v4).unwrap();
        let at = clients.each_ref().map(relayed);
        let [one, two] = &mut clients;
        exchange_at((one, at[0]), (two, at[1]));
    }
}

fn a_nonce_that_went_stale_is_replaced() {
    let coturn = Coturn::start();
    let mut one = Client::of_anna(&coturn, TurnTransport::Udp);
    let mut two = Client::of_anna(&coturn, TurnTransport::Udp);
    let (start, _) = (Instant::now(), one.relayed());
    // Nonces live for one second, counted in whole ones.
    until(&mut [&mut one, &mut two], |_| start.elapsed() > Duration::from_secs(3));
    exchange(&mut one, &mut two);
    assert!(!one.events.iter().any(|event| matches!(event, TurnEvent::Failed { .. })), "{:?}", one.events);
}

fn short_lived_credentials_are_taken_until_they_expire() {
    let coturn = Coturn::start_with(&["--use-auth-secret", "--static-auth-secret=north"]);
    let credentials = |expiry| TurnCredentials::short_lived(b"north", "session", expiry).unwrap();
    Client::new(coturn.address, TurnTransport::Udp, credentials(unix_s() + 600)).relayed();
    let mut late = Client::new(coturn.address, TurnTransport::Udp, credentials(unix_s() - 600));
    assert_eq!(late.failure(), TurnFailure::CredentialsRefused);
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Takes 3 s and more: credentials expire by the server's clock, in whole seconds, and a nonce after one more.
fn an_allocation_outlives_its_credentials_but_no_new_one_is_made_with_them() {
    let coturn = Coturn::start_with(&["--use-auth-secret", "--static-auth-secret=north", "--stale-nonce=1"]);
    let expiry = unix_s() + 3;
    let credentials = || TurnCredentials::short_lived(b"north", "session", expiry).unwrap();
    let client = || Client::new(coturn.address, TurnTransport::Udp, credentials());
    let (mut one, mut two, mut peer) = (client(), client(), client());
    exchange(&mut one, &mut two);
    let later = peer.relayed();
    assert!(unix_s() < expiry, "all allocations were made in time");
    until(&mut [&mut one, &mut two, &mut peer], |_| unix_s() > expiry + 1);
    assert_eq!(client().failure(), TurnFailure::CredentialsRefused);

    // The machine takes it for nine minutes later, and refreshes all it has, with a nonce that went stale meanwhile.
    one.answers.clear();
    one.ahead = Duration::from_secs(545);
    let renewed = [Method::Refresh, Method::ChannelBind];
    until(&mut [&mut one, &mut two], |both| {
        renewed.iter().all(|method| both[0].answers.contains(&(*method, Class::Success)))
    });
    // And peers that are new.
    one.turn.add_peer(Instant::now() + one.ahead, later);
    until(&mut [&mut one], |one| one[0].turn.is_ready(later));
    assert!(one.answers.contains(&(Method::CreatePermission, Class::Success)), "{:?}", one.answers);
    assert!(one.answers.iter().any(|(_, class)| *class == Class::Error), "no nonce went stale: {:?}", one.answers);
    assert!(!one.events.iter().any(|event| matches!(event, TurnEvent::Failed { .. })), "{:?}", one.events);
    let there = two.relayed();
    one.send(there, b"still here");
    let here = one.relayed();
    until(&mut [&mut one, &mut two], |both| both[1].received.contains(&(here, b"still here".to_vec())));
}

fn wrong_credentials_and_a_reached_quota_are_told() {
    let coturn = Coturn::start_with(&["--user=anna:secret", "--user-quota=1"]);
    let wrong = TurnCredentials::new("anna", "wrong").unwrap();
    let mut wrong = Client::new(coturn.address, TurnTransport::Udp, wrong);
    assert_eq!(wrong.failure(), TurnFailure::CredentialsRefused);
    let mut first = Client::of_anna(&coturn, TurnTransport::Udp);
    first.relayed();
    let mut second = Client::of_anna(&coturn, TurnTransport::Udp);
    assert_eq!(second.failure(), TurnFailure::Busy(ErrorCode::AllocationQuotaReached));
}

fn an_allocation_that_was_given_back_or_forgotten_makes_room_for_the_next() {
    let coturn = Coturn::start();
    let mut client = Client::of_anna(&coturn, TurnTransport::Udp);
    client.relayed();
    client.turn.release(Instant::now());
    until(&mut [&mut client], |clients| clients[0].events.contains(&TurnEvent::Released));
    client.turn.allocate(Instant::now());
    client.relayed();
    // As after a crash: the server has an allocation for this socket that the new machine does not know.
    let credentials = TurnCredentials::new("anna", "secret").unwrap();
    client.turn = Allocation::new(TurnOptions::new(TurnTransport::Udp), credentials, seed());
    client.turn.allocate(Instant::now());
    assert_eq!(client.failure(), TurnFailure::AddressInUse);
    client.relayed();
}

fn on_loopback_there_is_no_nat_and_no_filter() {
    let coturn = Coturn::start();
    let (sockets, options) = ([socket(), socket()], NatTypeOptions::new(vec![LOOPBACK.into()]));
    let ports = [0, 1].map(|at: usize| sockets[at].local_addr().unwrap().port());
    let servers = [coturn.address];
    let mut machine = NatTypeMachine::start(Instant::now(), options, (ports[0], ports[1]), &servers, seed());
    let mut buffer = [0; 2048];
    let deadline = Instant::now() + PATIENCE;
    while machine.report().is_none() {
        assert!(Instant::now() < deadline);
        while let Some((probe, packet)) = machine.poll_transmit() {
            sockets[usize::from(probe == Probe::Filtering)].send_to(&packet.bytes, packet.to).unwrap();
        }
        for (socket, probe) in sockets.iter().zip([Probe::Mapping, Probe::Filtering]) {
            if let Some((bytes, from)) = receive(socket, machine.poll_timeout().map(|(at, _)| at), &mut buffer) {
                machine.handle_input(Instant::now(), probe, from, &Scanned::scan(bytes).unwrap());
            }
        }
        machine.handle_timeout(Instant::now());
    }
    let report = machine.report().unwrap();
    assert_eq!((report.mapping, report.filtering), (Mapping::NoNat, Some(FilteringBehaviour::EndpointIndependent)));
    assert_eq!((report.port_preserved, report.hairpin), (Some(true), Some(true)));
}

/// Whole nodes that use a coturn for which a relay makes the credentials.
#[cfg(feature = "relay")]
mod nodes {
    use std::io::{self, IoSliceMut};
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};
    use std::time::Duration;

    use panda_network::clock::Clock;
    use panda_network::doctor::{self, DoctorOptions, ProbeError};
    use panda_network::identity::Identity;
    use panda_network::relay::{ExternalServer, ExternalTurn, IpNetwork, PeerPolicy, Relay, RelayOptions, TurnMode};
    use panda_network::rendezvous::address::HostPort;
    use panda_network::rendezvous::pin::SpkiPin;
    use panda_network::rendezvous::wire::TurnTransport;
    use panda_network::transport::PathKind;
    use panda_network::transports::host::OsNetwork;
    use panda_network::transports::quic::QuicTransportOptions;
    use panda_network::transports::turn_tls::TurnTlsError;
    use panda_network::{
        Document, DocumentEvent, Durability, PandaNetwork, PandaNetworkOptions, StartFrom, Subscription,
    };

    use quinn::udp::{RecvMeta, Transmit};
    use quinn::{AsyncUdpSocket, UdpPoller};

    use super::{Coturn, LOOPBACK, OTHER, PATIENCE, free_port};

    const SECRET: [&str; 2] = ["--use-auth-secret", "--static-auth-secret=north"];

    fn options(server: ExternalServer) -> RelayOptions {
        let loopback: IpNetwork = "127.0.0.0/8".parse().unwrap();
        RelayOptions::new(Identity::from_seed(&[9; 32]))
            .with_turn(TurnMode::External(ExternalTurn { servers: vec![server], secret: "north".to_owned().into() }))
            .with_peer_policy(PeerPolicy::new().with_allowed([loopback]))
    }

    fn relay(server: ExternalServer) -> Relay {
        Relay::start(Arc::new(OsNetwork), options(server)).unwrap()
    }

    /// A socket through which nothing passes.
    #[derive(Debug)]
    struct Blocked;

    impl AsyncUdpSocket for Blocked {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            Box::pin(Blocked)
        }

        fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok((LOOPBACK, 4000).into())
        }
    }

    impl UdpPoller for Blocked {
        fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn without_udp() -> QuicTransportOptions {
        QuicTransportOptions::new().with_socket(Arc::new(Blocked)).with_network(Arc::new(OsNetwork))
    }

    fn relayed_only() -> QuicTransportOptions {
        QuicTransportOptions::new().with_listen_address((LOOPBACK, 0).into()).with_relay_only(true)
    }

    async fn node(relay: &Relay, directory: &tempfile::TempDir, quic: QuicTransportOptions) -> PandaNetwork {
        let options = PandaNetworkOptions::new(directory.path())
            .with_quic(quic)
            .with_relays([relay.address().to_string()])
            .with_durability(Durability::Process);
        PandaNetwork::start(options).await.unwrap()
    }

    /// Two nodes that use relayed paths only, with a document that both have open.
    struct Pair {
        nodes: [PandaNetwork; 2],
        here: Document,
        at_bob: Subscription,
        _directories: [tempfile::TempDir; 2],
    }

    impl Pair {
        async fn of(relay: &Relay, quic: fn() -> QuicTransportOptions) -> Self {
            let _directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let nodes = [node(relay, &_directories[0], quic()).await, node(relay, &_directories[1], quic()).await];
            let here = nodes[0].create().await.unwrap();
            let there = nodes[1].open(here.ticket().await.unwrap()).await.unwrap();
            let at_bob = there.subscribe(StartFrom::Start).await.unwrap();
            Self { nodes, here, at_bob, _directories }
        }

        /// Publishes at one and waits until it is at the other; returns the path there.
        async fn share(&mut self, payload: &str) -> PathKind {
            self.here.publish(payload.to_owned()).await.unwrap();
            let arrived = async {
                loop {
                    if let DocumentEvent::Operation(stored) = self.at_bob.next().await.unwrap().unwrap() {
                        return stored.operation.payload().to_vec();
                    }
                }
            };
            assert_eq!(tokio::time::timeout(PATIENCE, arrived).await.expect("it arrives"), payload.as_bytes());
            self.nodes[1].connections()[0].0.path
        }

        async fn shut_down(self) {
            for network in self.nodes {
                network.shutdown(Duration::from_secs(1)).await.unwrap();
            }
        }
    }

    fn pem(what: &str, der: &[u8]) -> String {
        format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", data_encoding::BASE64.encode(der))
    }

    pub async fn nodes_without_udp_talk_over_tcp() {
        let coturn = Coturn::start_with(&SECRET);
        let relay = relay(ExternalServer::new(TurnTransport::Tcp, coturn.address.into()));
        let mut pair = Pair::of(&relay, without_udp).await;
        assert_eq!(pair.share("hello").await, PathKind::TurnTcp);
        pair.shut_down().await;
    }

    /// coturn with TLS and a certificate of its own, where it listens, and the pin of its key.
    fn with_tls() -> (Coturn, HostPort, SpkiPin) {
        let directory = tempfile::tempdir().unwrap();
        let certified = rcgen::generate_simple_self_signed(["turn.example.org".to_owned()]).unwrap();
        let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
        std::fs::write(&cert, pem("CERTIFICATE", certified.cert.der())).unwrap();
        std::fs::write(&key, pem("PRIVATE KEY", &certified.signing_key.serialize_der())).unwrap();
        let port = free_port();
        let arguments = [
            format!("--cert={}", cert.display()),
            format!("--pkey={}", key.display()),
            format!("--tls-listening-port={port}"),
        ];
        let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        arguments.extend(SECRET);
        let coturn = Coturn::start_with(&arguments);
        let pin = SpkiPin::of(&rcgen::PublicKeyData::subject_public_key_info(&certified.signing_key));
        (coturn, SocketAddr::from((LOOPBACK, port)).into(), pin)
    }

    pub async fn nodes_without_udp_talk_over_tls_to_a_server_with_any_certificate() {
        let (_coturn, server, _) = with_tls();
        let relay = relay(ExternalServer::new(TurnTransport::Tls, server));
        let mut pair = Pair::of(&relay, without_udp).await;
        assert_eq!(pair.share("hello").await, PathKind::TurnTls);
        pair.shut_down().await;
    }

    pub async fn nodes_talk_to_a_server_with_the_pinned_key_and_the_doctor_says_when_it_is_another() {
        let (_coturn, server, pin) = with_tls();
        let pinned = |pin| ExternalServer::new(TurnTransport::Tls, server.clone()).with_pin(pin);
        let right = relay(pinned(pin));
        let mut pair = Pair::of(&right, without_udp).await;
        assert_eq!(pair.share("hello").await, PathKind::TurnTls);
        pair.shut_down().await;

        let other = SpkiPin::of(b"another key");
        let wrong = relay(pinned(other));
        let options = DoctorOptions::new().with_relays([wrong.address().clone()]);
        let report = doctor::examine(Arc::new(OsNetwork), options).await.unwrap();
        let [turn] = &report.relays[0].turn[..] else { panic!("{report:#?}") };
        let Err(ProbeError::TurnTls(TurnTlsError::WrongPin { expected, found })) = &turn.took else {
            panic!("{turn:#?}")
        };
        assert_eq!((*expected, *found), (other, pin));
        assert!(turn.relayed.is_empty());
    }

    pub async fn the_doctor_says_when_the_clocks_of_relay_and_server_are_a_year_apart() {
        const YEAR_US: u64 = 365 * 86_400 * 1_000_000;
        let coturn = Coturn::start_with(&SECRET);
        let server = ExternalServer::new(TurnTransport::Udp, coturn.address.into());
        let took = async |change: fn(u64) -> u64| {
            let system = Clock::system();
            let options = options(server.clone()).with_clock(Clock::new(move || change(system.now_us())));
            let relay = Relay::start(Arc::new(OsNetwork), options).unwrap();
            let asked = DoctorOptions::new().with_relays([relay.address().clone()]);
            let mut report = doctor::examine(Arc::new(OsNetwork), asked).await.unwrap();
            report.relays.remove(0).turn.remove(0).took
        };
        assert!(took(|now| now + YEAR_US).await.is_ok(), "credentials from the future are good for longer");
        let reason = took(|now| now - YEAR_US).await.unwrap_err().to_string();
        assert!(
            reason.contains("check that it has the server's secret and that the clocks of both are right"),
            "{reason}"
        );
    }

    pub async fn nodes_that_hide_their_addresses_talk_over_udp() {
        let coturn = Coturn::start_with(&SECRET);
        let server = ExternalServer::new(TurnTransport::Udp, coturn.address.into());
        // UDP works, as coturn's other address says; forwarding does not.
        let told = SocketAddr::from(([127, 0, 0, 3], coturn.address.port()));
        let options = options(server).with_datagrams(told).with_public_ips([OTHER.into()]);
        let relay = Relay::start(Arc::new(OsNetwork), options).unwrap();
        let mut pair = Pair::of(&relay, relayed_only).await;
        assert_eq!(pair.share("hello").await, PathKind::TurnUdp);
        pair.shut_down().await;
    }
}
