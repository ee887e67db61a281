//! The TURN machine without a network: what clients get, and what they do not.

use std::time::Duration;

use rand::SeedableRng;

use super::auth::REALM;
use super::*;
use crate::limits::{
    RELAY_DATAGRAM_COST_BYTES, RELAY_SITE_NETWORKS, TURN_CHANNELS, TURN_LIFETIME, TURN_LIFETIME_MAX,
    TURN_NONCE_LIFETIME, TURN_PERMISSIONS,
};
use crate::nat::credentials::short_lived_password;
use crate::nat::stun::relayed::put_send;
use crate::nat::stun::{AddressFamily, Attribute, ChannelNumber, ErrorCode, IntegrityKey, Message, Request};
use crate::relay::quota::Rate;

mod quotas;

const SECRET: &[u8] = b"secret";
const WALL_US: u64 = 1_700_000_000_000_000;
const SERVER: [u8; 4] = [198, 51, 100, 1];
/// The port of the first allocation.
const FIRST: PortId = (AllocationId(0), AddressFamily::V4);
const PEER: &str = "203.0.113.7:9000";

const SIX_PEER: &str = "[2001:db8:7::7]:9000";

/// Ports without sockets.
#[derive(Debug, Default)]
struct Numbers {
    next: u16,
    full: bool,
}

impl Ports for Numbers {
    fn bind(&mut self, _: AllocationId, ip: IpAddr, even: bool) -> Option<SocketAddr> {
        self.next += if even { 2 } else { 1 };
        (!self.full).then(|| (ip, 50_000 + self.next).into())
    }
}

/// A server, and the clients' side of its requests.
struct Bench {
    server: TurnServer,
    ports: Numbers,
    times: Times,
    transactions: u64,
    out: Vec<u8>,
}

/// What a client does next.
struct User {
    client: Client,
    username: String,
    nonce: String,
    password: String,
}

impl Bench {
    fn new(limits: RelayLimits) -> Self {
        Self::at(&[SERVER.into(), "2001:db8::1".parse().unwrap()], limits)
    }

    /// A server with these addresses.
    fn at(relay_ips: &[IpAddr], limits: RelayLimits) -> Self {
        let (now, relay_ips) = (Instant::now(), relay_ips.to_vec());
        let config = TurnConfig { limits, policy: PeerPolicy::new(), relay_ips, public_ips: Vec::new() };
        let server = TurnServer::new(config, SECRET, ChaCha20Rng::seed_from_u64(1), now);
        let times = Times { now, wall_us: WALL_US };
        Self { server, ports: Numbers::default(), times, transactions: 0, out: Vec::new() }
    }

    fn pass(&mut self, time: Duration) {
        self.times.now += time;
        self.times.wall_us += u64::try_from(time.as_micros()).unwrap();
    }

    /// A client with credentials and a nonce.
    fn user(&mut self, n: u8, name: &str) -> User {
        self.user_at(([192, 0, 2, n], 4000).into(), name)
    }

    fn user_at(&mut self, address: SocketAddr, name: &str) -> User {
        let client = Client { via: Via::Datagrams(0), address };
        let username = format!("{}:{name}", self.times.wall_us / 1_000_000 + 3600);
        let password = short_lived_password(SECRET, &username).to_string();
        let mut user = User { client, username, nonce: String::new(), password };
        let request = Request::allocate(AddressFamily::V4, TURN_LIFETIME);
        let id = self.next_id();
        let challenge = self.feed(client, request.seal(id, None).unwrap().bytes()).unwrap();
        assert_eq!((challenge.error(), challenge.realm()), (Some(ErrorCode::Unauthorized), Some(REALM)));
        user.nonce = challenge.nonce().unwrap().to_owned();
        user
    }

    fn next_id(&mut self) -> TransactionId {
        self.transactions += 1;
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.transactions.to_be_bytes());
        TransactionId::from_random(id)
    }

    fn feed(&mut self, client: Client, frame: &[u8]) -> Option<Message> {
        match self.server.on_frame(client, frame, self.times, &mut self.ports, &mut self.out) {
            Action::Answer { error } => {
                let message = Scanned::scan(&self.out).unwrap().decode().unwrap();
                assert_eq!(error, message.error().is_some());
                Some(message)
            }
            _ => None,
        }
    }

    fn sign(&mut self, user: &User, request: Request) -> Vec<u8> {
        let key = IntegrityKey::long_term(&user.username, REALM, &user.password);
        let request = request
            .with(Attribute::Username(user.username.clone()))
            .with(Attribute::Realm(REALM.into()))
            .with(Attribute::Nonce(user.nonce.clone()));
        let id = self.next_id();
        request.seal(id, Some(&key)).unwrap().bytes().to_vec()
    }

    fn ask(&mut self, user: &User, request: Request) -> Message {
        let frame = self.sign(user, request);
        self.feed(user.client, &frame).unwrap()
    }

    fn allocate(&mut self, user: &User) -> SocketAddr {
        let answer = self.ask(user, Request::allocate(AddressFamily::V4, TURN_LIFETIME));
        assert_eq!(answer.mapped_address(), Some(user.client.address));
        answer.relayed_addresses().next().unwrap()
    }

    /// A payload by a Send indication.
    fn send(&mut self, user: &User, peer: SocketAddr, payload: &[u8]) -> Sent {
        let mut frame = Vec::new();
        assert!(put_send(self.next_id(), peer, payload, &mut frame));
        self.relay(user, &frame)
    }

    fn relay(&mut self, user: &User, frame: &[u8]) -> Sent {
        match self.server.on_frame(user.client, frame, self.times, &mut self.ports, &mut self.out) {
            Action::ToPeer { from, peer, payload } if from.1 != AddressFamily::of(&peer) => {
                panic!("{} bytes to {peer} from a port of the other family", payload.len())
            }
            Action::ToPeer { peer, payload, .. } => Sent::ToPeer(peer, payload.to_vec()),
            Action::ToClient { client, .. } => Sent::ToClient(client),
            Action::Drop(why) => Sent::Dropped(why),
            Action::Answer { .. } => panic!("indications are not answered"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Sent {
    ToPeer(SocketAddr, Vec<u8>),
    ToClient(Client),
    Dropped(&'static str),
}

fn peer() -> SocketAddr {
    PEER.parse().unwrap()
}

fn channel(number: u16) -> ChannelNumber {
    ChannelNumber::new(number).unwrap()
}

#[test]
fn a_client_relays_to_a_peer_that_it_permits_and_hears_it() {
    let mut bench = Bench::new(RelayLimits::new());
    let user = bench.user(1, "a");
    let relayed = bench.allocate(&user);
    assert_eq!(relayed.ip(), IpAddr::from(SERVER));
    assert_eq!(bench.send(&user, peer(), b"x"), Sent::Dropped("no permission"));
    assert_eq!(bench.ask(&user, Request::create_permission(peer().ip())).error(), None);
    assert_eq!(bench.send(&user, peer(), b"x"), Sent::ToPeer(peer(), b"x".to_vec()));

    let id = AllocationId(0);
    let (times, mut out) = (bench.times, Vec::new());
    let other = "203.0.113.8:9000".parse().unwrap();
    assert_eq!(bench.server.on_peer_datagram(id, other, b"y", times.now, &mut out), None);
    assert_eq!(bench.server.on_peer_datagram(id, peer(), b"y", times.now, &mut out), Some(user.client));
    let (from, range) = payload(&Scanned::scan(&out).unwrap()).unwrap();
    assert_eq!((from, &out[range]), (peer(), &b"y"[..]));

    bench.pass(Duration::from_secs(300));
    assert_eq!(bench.send(&user, peer(), b"x"), Sent::Dropped("no permission"), "permissions end");
}

#[test]
fn a_channel_carries_payloads_both_ways_and_belongs_to_one_peer() {
    let mut bench = Bench::new(RelayLimits::new());
    let user = bench.user(1, "a");
    bench.allocate(&user);
    assert_eq!(bench.ask(&user, Request::channel_bind(channel(0x4001), peer())).error(), None);
    let mut frame = Vec::new();
    assert!(put_channel_data(channel(0x4001), b"x", false, &mut frame));
    assert_eq!(bench.relay(&user, &frame), Sent::ToPeer(peer(), b"x".to_vec()));
    let (times, mut out) = (bench.times, Vec::new());
    bench.server.on_peer_datagram(AllocationId(0), peer(), b"y", times.now, &mut out).unwrap();
    assert_eq!(parse_channel_data(&out), Some((channel(0x4001), 4..5)));

    let second = "203.0.113.8:9000".parse().unwrap();
    for (number, peer) in [(0x4001, second), (0x4002, peer())] {
        let answer = bench.ask(&user, Request::channel_bind(channel(number), peer));
        assert_eq!(answer.error(), Some(ErrorCode::BadRequest));
    }
    bench.pass(Duration::from_secs(599));
    assert_eq!(bench.ask(&user, Request::refresh(TURN_LIFETIME)).error(), None);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.relay(&user, &frame), Sent::Dropped("no channel"), "channels end");
    assert_eq!(bench.ask(&user, Request::channel_bind(channel(0x4001), second)).error(), Some(ErrorCode::StaleNonce));
}

#[test]
fn a_victim_that_is_not_public_is_out_of_reach_however_it_is_spelled() {
    let mut bench = Bench::new(RelayLimits::new());
    let user = bench.user(1, "a");
    bench.allocate(&user);
    for victim in ["127.0.0.1:53", "10.0.0.1:53", "169.254.169.254:80", "100.64.0.1:53", "224.0.0.1:53", "0.0.0.0:53"] {
        let victim: SocketAddr = victim.parse().unwrap();
        assert_eq!(bench.ask(&user, Request::create_permission(victim.ip())).error(), Some(ErrorCode::Forbidden));
        let bound = bench.ask(&user, Request::channel_bind(channel(0x4000), victim));
        assert_eq!(bound.error(), Some(ErrorCode::Forbidden), "{victim}");
        assert_eq!(bench.send(&user, victim, b"x"), Sent::Dropped("no permission"));
    }
    let six = bench.user(2, "a");
    let answer = bench.ask(&six, Request::allocate(AddressFamily::V6, TURN_LIFETIME));
    assert!(answer.relayed_addresses().next().unwrap().is_ipv6());
    for victim in ["::1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::", "fd00::1", "fe80::1", "ff02::1", "::"]
    {
        let permission = Request::create_permission(victim.parse().unwrap());
        assert_eq!(bench.ask(&six, permission).error(), Some(ErrorCode::Forbidden), "{victim}");
    }
    let four = Request::create_permission(peer().ip());
    assert_eq!(bench.ask(&six, four).error(), Some(ErrorCode::PeerFamilyMismatch));
}

#[test]
fn an_allocation_of_both_families_relays_to_peers_of_either() {
    let mut bench = Bench::new(RelayLimits::new());
    let user = bench.user(1, "a");
    let frame = bench.sign(&user, Request::allocate_both(TURN_LIFETIME));
    let answer = bench.feed(user.client, &frame).unwrap();
    let relayed: Vec<_> = answer.relayed_addresses().collect();
    assert_eq!(relayed.iter().map(SocketAddr::is_ipv4).collect::<Vec<_>>(), [true, false]);
    assert_eq!((answer.address_error(), bench.server.allocations()), (None, 1));
    assert_eq!(bench.feed(user.client, &frame).unwrap(), answer, "a repeated request gets the same answer");
    let six: SocketAddr = SIX_PEER.parse().unwrap();
    for peer in [peer(), six] {
        assert_eq!(bench.ask(&user, Request::create_permission(peer.ip())).error(), None);
        assert_eq!(bench.send(&user, peer, b"x"), Sent::ToPeer(peer, b"x".to_vec()));
    }
    let victim = Request::channel_bind(channel(0x4000), "[fd00::1]:53".parse().unwrap());
    assert_eq!(bench.ask(&user, victim).error(), Some(ErrorCode::Forbidden));

    let end_six = Request::refresh(Duration::ZERO).with(Attribute::RequestedAddressFamily(AddressFamily::V6));
    assert_eq!(bench.ask(&user, end_six.clone()).lifetime(), Some(Duration::ZERO));
    assert_eq!(bench.server.take_freed(), [(AllocationId(0), AddressFamily::V6)]);
    assert_eq!(bench.send(&user, six, b"x"), Sent::Dropped("no address of that family"));
    assert_eq!(bench.ask(&user, end_six).error(), Some(ErrorCode::PeerFamilyMismatch));
    assert_eq!(bench.ask(&user, Request::create_permission(six.ip())).error(), Some(ErrorCode::PeerFamilyMismatch));
    assert_eq!(bench.send(&user, peer(), b"x"), Sent::ToPeer(peer(), b"x".to_vec()), "the other one lives on");
    assert_eq!(bench.ask(&user, Request::refresh(Duration::ZERO)).error(), None);
    assert_eq!(bench.server.take_freed(), [FIRST]);
}

#[test]
fn a_server_of_one_family_says_which_one_it_lacks() {
    let (four, six) = (AddressFamily::V4, AddressFamily::V6);
    for (own, other, ip) in [(four, six, SERVER.into()), (six, four, "2001:db8::1".parse().unwrap())] {
        let mut bench = Bench::at(&[ip], RelayLimits::new());
        let user = bench.user(1, "a");
        let lacks = bench.ask(&user, Request::allocate(other, TURN_LIFETIME));
        assert_eq!(lacks.error(), Some(ErrorCode::AddressFamilyNotSupported), "{other:?}");
        let answer = bench.ask(&user, Request::allocate_both(TURN_LIFETIME));
        assert_eq!(answer.relayed_addresses().map(|relayed| relayed.ip()).collect::<Vec<_>>(), [ip]);
        assert_eq!(answer.address_error(), Some((other, ErrorCode::AddressFamilyNotSupported)));
        let foreign = if own == four { SIX_PEER } else { PEER };
        let foreign: SocketAddr = foreign.parse().unwrap();
        for request in [Request::create_permission(foreign.ip()), Request::channel_bind(channel(0x4000), foreign)] {
            assert_eq!(bench.ask(&user, request).error(), Some(ErrorCode::PeerFamilyMismatch), "{foreign}");
        }
    }
}

#[test]
fn families_that_contradict_each_other_are_a_bad_request() {
    let mut bench = Bench::new(RelayLimits::new());
    let user = bench.user(1, "a");
    let both = || Request::allocate_both(TURN_LIFETIME);
    let four = Attribute::AdditionalAddressFamily(AddressFamily::V4);
    let requests = [
        both().with(Attribute::RequestedAddressFamily(AddressFamily::V6)),
        Request::allocate(AddressFamily::V4, TURN_LIFETIME).with(four),
    ];
    for request in requests {
        assert_eq!(bench.ask(&user, request).error(), Some(ErrorCode::BadRequest));
    }
}

#[test]
fn one_denied_peer_among_several_permits_none() {
    let mut bench = Bench::new(RelayLimits::new());
    let user = bench.user(1, "a");
    bench.allocate(&user);
    let both = Request::create_permission(peer().ip()).with(Attribute::XorPeerAddress("10.0.0.1:0".parse().unwrap()));
    assert_eq!(bench.ask(&user, both).error(), Some(ErrorCode::Forbidden));
    assert_eq!(bench.send(&user, peer(), b"x"), Sent::Dropped("no permission"));
}

#[test]
fn two_relayed_addresses_of_the_server_reach_each_other_but_not_the_server() {
    let mut bench = Bench::new(RelayLimits::new());
    bench.server.config.policy =
        PeerPolicy::new().with_denied([format!("{}/32", IpAddr::from(SERVER)).parse().unwrap()]);
    let (alice, bob) = (bench.user(1, "a"), bench.user(2, "b"));
    let (at_alice, at_bob) = (bench.allocate(&alice), bench.allocate(&bob));
    assert_eq!(bench.ask(&alice, Request::create_permission(at_bob.ip())).error(), None);
    assert_eq!(bench.send(&alice, at_bob, b"x"), Sent::Dropped("no permission"), "bob did not permit it");
    assert_eq!(bench.ask(&bob, Request::channel_bind(channel(0x4000), at_alice)).error(), None);
    assert_eq!(bench.send(&alice, at_bob, b"x"), Sent::ToClient(bob.client));
    assert_eq!(parse_channel_data(&bench.out), Some((channel(0x4000), 4..5)));
    for port in [22, 443, 3478, 50_003] {
        let denied = bench.send(&alice, (SERVER, port).into(), b"x");
        assert_eq!(denied, Sent::Dropped("denied address"), "port {port}");
    }
}

#[test]
fn false_credentials_are_refused() {
    let mut bench = Bench::new(RelayLimits::new());
    let good = bench.user(1, "a");
    let allocate = || Request::allocate(AddressFamily::V4, TURN_LIFETIME);
    let expired = format!("{}:a", WALL_US / 1_000_000);
    let password = short_lived_password(SECRET, &expired).to_string();
    let users = [
        User { password: "guess".into(), ..bench.user(1, "a") },
        User { username: expired, password, ..bench.user(1, "a") },
        User { username: "a".into(), ..bench.user(1, "a") },
        User { username: "99999999999999999999:a".into(), ..bench.user(1, "a") },
    ];
    for user in users {
        assert_eq!(bench.ask(&user, allocate()).error(), Some(ErrorCode::Unauthorized), "{}", user.username);
    }
    let stolen = User { nonce: bench.user(2, "b").nonce, ..bench.user(1, "a") };
    assert_eq!(bench.ask(&stolen, allocate()).error(), Some(ErrorCode::StaleNonce), "a nonce is for one address");
    let frame = bench.sign(&good, allocate());
    // What follows the signature, the checksum, is not protected by it.
    for at in 20..frame.len() - 8 {
        let mut changed = frame.clone();
        changed[at] ^= 1;
        let taken = bench.feed(good.client, &changed).is_some_and(|answer| answer.error().is_none());
        assert!(!taken, "byte {at}");
    }
    assert_eq!(bench.server.allocations(), 0);
    bench.allocate(&good);
}

#[test]
fn an_old_nonce_is_replaced() {
    let mut bench = Bench::new(RelayLimits::new());
    let mut user = bench.user(1, "a");
    bench.pass(TURN_NONCE_LIFETIME);
    let answer = bench.ask(&user, Request::allocate(AddressFamily::V4, TURN_LIFETIME));
    assert_eq!(answer.error(), Some(ErrorCode::StaleNonce));
    user.nonce = answer.nonce().unwrap().to_owned();
    bench.allocate(&user);
}

#[test]
fn an_allocation_lives_as_long_as_it_is_refreshed_also_with_credentials_that_expired() {
    let mut bench = Bench::new(RelayLimits::new());
    let mut user = bench.user(1, "a");
    bench.allocate(&user);
    for _ in 0..8 {
        bench.pass(TURN_LIFETIME - Duration::from_secs(1));
        user.nonce = bench.user(1, "other").nonce;
        let answer = bench.ask(&user, Request::refresh(TURN_LIFETIME));
        assert_eq!((answer.error(), answer.lifetime()), (None, Some(TURN_LIFETIME)));
        bench.server.on_timeout(bench.times.now);
        assert_eq!(bench.server.take_freed(), []);
    }
    assert!(bench.times.wall_us > WALL_US + 3_600_000_000);
    bench.pass(TURN_LIFETIME);
    bench.server.on_timeout(bench.times.now);
    assert_eq!((bench.server.take_freed(), bench.server.poll_timeout()), (vec![FIRST], None));
}

#[test]
fn lifetimes_are_bounded_and_zero_ends_an_allocation() {
    let mut bench = Bench::new(RelayLimits::new());
    let user = bench.user(1, "a");
    let year = Request::allocate(AddressFamily::V4, Duration::from_secs(365 * 86_400));
    assert_eq!(bench.ask(&user, year).lifetime(), Some(TURN_LIFETIME_MAX));
    assert_eq!(bench.ask(&user, Request::refresh(Duration::ZERO)).lifetime(), Some(Duration::ZERO));
    assert_eq!(bench.server.take_freed(), [FIRST]);
    let gone = bench.ask(&user, Request::refresh(TURN_LIFETIME));
    assert_eq!(gone.error(), Some(ErrorCode::AllocationMismatch));
}

#[test]
fn a_repeated_request_gets_the_same_answer_and_a_second_allocation_none() {
    let mut bench = Bench::new(RelayLimits::new());
    let user = bench.user(1, "a");
    let frame = bench.sign(&user, Request::allocate(AddressFamily::V4, TURN_LIFETIME));
    let first = bench.feed(user.client, &frame).unwrap();
    assert_eq!(bench.feed(user.client, &frame).unwrap(), first);
    let second = bench.ask(&user, Request::allocate(AddressFamily::V4, TURN_LIFETIME));
    assert_eq!(second.error(), Some(ErrorCode::AllocationMismatch));
    let other =
        User { username: bench.user(3, "b").username, password: bench.user(3, "b").password, ..bench.user(1, "x") };
    assert_eq!(bench.ask(&other, Request::refresh(TURN_LIFETIME)).error(), Some(ErrorCode::WrongCredentials));
}

#[test]
fn what_is_not_offered_is_refused_by_name() {
    let mut bench = Bench::new(RelayLimits::new());
    let user = bench.user(1, "a");
    let tcp = Request::refresh(TURN_LIFETIME);
    assert_eq!(bench.ask(&user, tcp).error(), Some(ErrorCode::AllocationMismatch));
    bench.ports.full = true;
    let full = bench.ask(&user, Request::allocate(AddressFamily::V4, TURN_LIFETIME));
    assert_eq!(full.error(), Some(ErrorCode::InsufficientCapacity));
}

#[test]
fn the_allocation_of_a_stream_ends_with_it() {
    let mut bench = Bench::new(RelayLimits::new());
    let mut user = bench.user(1, "a");
    user.client.via = Via::Stream(5);
    bench.allocate(&user);
    bench.server.on_stream_closed(Client { via: Via::Stream(4), ..user.client });
    assert_eq!(bench.server.allocations(), 1);
    bench.server.on_stream_closed(user.client);
    assert_eq!((bench.server.allocations(), bench.server.take_freed()), (0, vec![FIRST]));
}
