//! The machine against a scripted server on virtual time: everything it does, everything that may be lost, and forgeries.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::limits::TURN_MAX_TRANSACTIONS;
use crate::nat::stun::{AddressFamily, Attribute, ChannelNumber, IntegrityKey, Response, TransactionId};

mod refusals;

const REALM: &str = "example.org";
const SECOND: Duration = Duration::from_secs(1);

/// What the server lends of IPv6.
const SIX: &str = "[2001:db8::1]:50000";

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn relayed_address() -> SocketAddr {
    address("203.0.113.1:50000")
}

fn peer() -> SocketAddr {
    address("198.51.100.7:4000")
}

/// What a server does, without its sockets.
struct Server {
    key: IntegrityKey,
    nonce: u32,
    /// A request with the first of these methods is refused with the code.
    refuse: Vec<(Method, ErrorCode)>,
    /// From when on it answers 401 to everything but Allocate.
    expires_names: Option<Instant>,
    /// When it did.
    expired: Vec<Instant>,
    /// Why there is no IPv6 beside IPv4.
    refuses_six: Option<ErrorCode>,
    allocation: Option<Instant>,
    /// The answer to Allocate, repeated for a repeated request (RFC 8656 §7.2).
    allocated: Option<(TransactionId, Vec<u8>)>,
    permissions: BTreeMap<IpAddr, Instant>,
    channels: BTreeMap<ChannelNumber, (SocketAddr, Instant)>,
    /// Payloads that got through to peers.
    relayed: Vec<(SocketAddr, Vec<u8>)>,
    log: Vec<(Instant, Method)>,
    /// When packets came, of any kind.
    heard: Vec<Instant>,
}

impl Server {
    fn new() -> Self {
        Self {
            key: IntegrityKey::long_term("anna", REALM, "secret"),
            nonce: 1,
            refuse: Vec::new(),
            expires_names: None,
            expired: Vec::new(),
            refuses_six: None,
            allocation: None,
            allocated: None,
            permissions: BTreeMap::new(),
            channels: BTreeMap::new(),
            relayed: Vec::new(),
            log: Vec::new(),
            heard: Vec::new(),
        }
    }

    fn handle(&mut self, now: Instant, frame: &[u8]) -> Option<Vec<u8>> {
        if self.allocation.is_some_and(|expires_at| expires_at <= now) {
            self.allocation = None;
        }
        if let Some((number, range)) = parse_channel_data(frame) {
            let (peer, expires_at) = self.channels.get(&number).copied().expect("a bound channel");
            assert!(now < expires_at, "the channel has expired");
            self.relay(now, peer, &frame[range]);
            return None;
        }
        let scanned = Scanned::scan(frame).unwrap();
        if let Some((peer, range)) = relayed::payload(&scanned) {
            self.relay(now, peer, &frame[range]);
            return None;
        }
        self.heard.push(now);
        if scanned.class() == Class::Indication {
            return None;
        }
        let request = scanned.decode().unwrap();
        let challenge = |code| {
            let response = Response::error(&scanned, code).with(Attribute::Realm(REALM.into()));
            response.with(Attribute::Nonce(format!("nonce {}", self.nonce))).encode(None).unwrap()
        };
        if scanned.check_integrity(&self.key).is_err() {
            return Some(challenge(ErrorCode::Unauthorized));
        }
        if self.expires_names.is_some_and(|at| at <= now) && request.method() != Method::Allocate {
            self.expired.push(now);
            return Some(challenge(ErrorCode::Unauthorized));
        }
        if request.nonce() != Some(&format!("nonce {}", self.nonce)) {
            return Some(challenge(ErrorCode::StaleNonce));
        }
        if let Some((_, answer)) = self.allocated.as_ref().filter(|(id, _)| *id == scanned.transaction_id()) {
            return Some(answer.clone());
        }
        self.log.push((now, request.method()));
        let response = match self.act(now, &request) {
            Ok(attributes) => attributes.into_iter().fold(Response::success(&scanned), Response::with),
            Err(code) => Response::error(&scanned, code),
        };
        let response = response.encode(Some(&self.key)).unwrap();
        if request.method() == Method::Allocate {
            self.allocated = Some((scanned.transaction_id(), response.clone()));
        }
        Some(response)
    }

    fn act(&mut self, now: Instant, request: &Message) -> Result<Vec<Attribute>, ErrorCode> {
        if let Some(at) = self.refuse.iter().position(|(method, _)| *method == request.method()) {
            return Err(self.refuse.remove(at).1);
        }
        let lifetime = request.lifetime().unwrap_or_default();
        match request.method() {
            Method::Allocate if self.allocation.is_some() => return Err(ErrorCode::AllocationMismatch),
            Method::Allocate => {
                assert_eq!(request.requested_transport(), Some(17));
                self.allocation = Some(now + lifetime);
                let six = request.requested_address_family() == Some(AddressFamily::V6);
                let relayed = if six { address(SIX) } else { relayed_address() };
                let mapped = Attribute::XorMappedAddress(address("192.0.2.9:1234"));
                let also = request.additional_address_family().map(|family| match self.refuses_six {
                    Some(code) => Attribute::AddressError(family, code),
                    None => Attribute::XorRelayedAddress(address(SIX)),
                });
                let granted = [Attribute::XorRelayedAddress(relayed), mapped, Attribute::Lifetime(lifetime)];
                return Ok(granted.into_iter().chain(also).collect());
            }
            _ if self.allocation.is_none() => return Err(ErrorCode::AllocationMismatch),
            Method::Refresh if lifetime.is_zero() => {
                self.allocation = None;
                self.permissions.clear();
                self.channels.clear();
            }
            Method::Refresh => {
                self.allocation = Some(now + lifetime);
                return Ok(vec![Attribute::Lifetime(lifetime)]);
            }
            Method::CreatePermission => {
                for peer in request.peer_addresses() {
                    self.permissions.insert(peer.ip(), now + 300 * SECOND);
                }
            }
            Method::ChannelBind => {
                let (number, peer) = (request.channel().unwrap(), request.peer_addresses().next().unwrap());
                let taken =
                    |(other, (known, _)): (&ChannelNumber, &(SocketAddr, _))| (*other == number) != (*known == peer);
                if self.channels.iter().any(taken) {
                    return Err(ErrorCode::BadRequest);
                }
                self.channels.insert(number, (peer, now + 600 * SECOND));
                self.permissions.insert(peer.ip(), now + 300 * SECOND);
            }
            Method::Binding | Method::Send | Method::Data => panic!("{request:?}"),
        }
        Ok(Vec::new())
    }

    fn relay(&mut self, now: Instant, peer: SocketAddr, payload: &[u8]) {
        assert!(self.allocation.is_some(), "no allocation");
        assert!(self.permissions.get(&peer.ip()).is_some_and(|expires_at| now < *expires_at), "no permission");
        self.relayed.push((peer, payload.to_vec()));
    }
}

/// Machine and server, packets between them without delay, and a clock.
struct World {
    start: Instant,
    now: Instant,
    turn: Allocation,
    server: Server,
    packets: usize,
    lose: Box<dyn FnMut(usize) -> bool>,
    events: Vec<TurnEvent>,
}

impl World {
    fn new(options: TurnOptions, password: &str) -> Self {
        let start = Instant::now();
        let credentials = TurnCredentials::new("anna", password).unwrap();
        let mut turn = Allocation::new(options, credentials, [7; 32]);
        turn.allocate(start);
        let lose = Box::new(|_| false);
        Self { start, now: start, turn, server: Server::new(), packets: 0, lose, events: Vec::new() }
    }

    fn over_udp() -> Self {
        Self::new(TurnOptions::new(TurnTransport::Udp), "secret")
    }

    /// Allocated, and the peer has its channel.
    fn ready() -> Self {
        let mut world = Self::over_udp();
        world.settle();
        world.turn.add_peer(world.now, peer());
        world.settle();
        assert!(world.turn.is_ready(peer()));
        world.events.clear();
        world
    }

    fn relayed_address(&self) -> Option<SocketAddr> {
        self.turn.relayed_addresses().next()
    }

    fn is_lost(&mut self) -> bool {
        self.packets += 1;
        (self.lose)(self.packets - 1)
    }

    /// Everything that happens without time passing.
    fn settle(&mut self) {
        while let Some(frame) = self.turn.poll_transmit() {
            if self.is_lost() {
                continue;
            }
            if let Some(response) = self.server.handle(self.now, &frame)
                && !self.is_lost()
            {
                self.turn.handle_input(self.now, &response);
            }
        }
        self.events.extend(std::iter::from_fn(|| self.turn.poll_event()));
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        let mut wakes = 0;
        while let Some((at, _)) = self.turn.poll_timeout().filter(|(at, _)| *at <= end) {
            wakes += 1;
            assert!(wakes < 100_000, "it wakes without getting anywhere");
            self.now = self.now.max(at);
            self.turn.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }

    fn failure(&mut self) -> (TurnFailure, Option<u64>) {
        let (now, mut events) = (self.now, std::mem::take(&mut self.events).into_iter());
        let failure = events.find_map(|event| match event {
            TurnEvent::Failed { why, retry_at } => Some((why, retry_at.map(|at| (at - now).as_secs()))),
            _ => None,
        });
        failure.expect("a failure")
    }

    /// When the server got requests of this method, in seconds after the start.
    fn seconds(&self, method: Method) -> Vec<u64> {
        self.server.log.iter().filter(|(_, of)| *of == method).map(|(at, _)| (*at - self.start).as_secs()).collect()
    }
}

#[test]
fn a_challenge_is_answered_and_a_peer_gets_its_permission_and_its_channel() {
    let mut world = World::over_udp();
    world.settle();
    let (relayed, mapped, lifetime) = (relayed_address(), address("192.0.2.9:1234"), 600 * SECOND);
    assert_eq!(world.events, [TurnEvent::Allocated { relayed, also_relayed: None, mapped, lifetime }]);
    assert_eq!((world.relayed_address(), world.turn.mapped_address()), (Some(relayed), Some(mapped)));
    assert_eq!(world.turn.send(peer(), b"x"), None, "not a peer yet");
    world.events.clear();
    assert!(world.turn.add_peer(world.now, peer()));
    world.settle();
    assert_eq!(world.events, [TurnEvent::PeerReady { peer: peer() }]);
    let frame = world.turn.send(peer(), b"hello").unwrap().to_vec();
    assert_eq!(frame, b"\x40\x00\x00\x05hello");
    world.server.handle(world.now, &frame);
    assert_eq!(world.server.relayed, [(peer(), b"hello".to_vec())]);
    assert_eq!(world.turn.handle_input(world.now, &frame), TurnInput::Data { peer: peer(), payload: 4..9 });
}

#[test]
fn a_peer_that_comes_back_to_its_channel_waits_for_its_permission() {
    let mut world = World::ready();
    world.turn.remove_peer(peer());
    world.pass(400 * SECOND);
    world.turn.add_peer(world.now, peer());
    assert!(!world.turn.is_ready(peer()) && world.turn.send(peer(), b"hello").is_none(), "the permission has expired");
    world.settle();
    let frame = world.turn.send(peer(), b"hello").unwrap().to_vec();
    world.server.handle(world.now, &frame);
    assert_eq!(world.server.relayed, [(peer(), b"hello".to_vec())]);
}

#[test]
fn until_the_channel_is_bound_indications_carry_the_payloads() {
    let mut world = World::over_udp();
    world.settle();
    world.server.refuse = vec![(Method::ChannelBind, ErrorCode::InsufficientCapacity)];
    world.turn.add_peer(world.now, peer());
    world.settle();
    let frame = world.turn.send(peer(), b"hello").unwrap().to_vec();
    assert_eq!(frame.len(), 20 + 12 + 12);
    world.server.handle(world.now, &frame);
    assert_eq!(world.server.relayed, [(peer(), b"hello".to_vec())]);
    world.pass(11 * SECOND);
    assert_eq!(world.turn.send(peer(), b"hello").unwrap().len(), 9, "the channel is asked for again");
}

#[test]
fn data_comes_from_permitted_hosts_only_and_from_any_port_of_theirs() {
    let mut world = World::ready();
    let mut frame = Vec::new();
    let mut data = |from: &str| {
        relayed::put_data(TransactionId::from_random([1; 12]), address(from), b"hello", &mut frame);
        world.turn.handle_input(world.now, &frame)
    };
    let other_port = address("198.51.100.7:9");
    assert_eq!(data("198.51.100.7:9"), TurnInput::Data { peer: other_port, payload: 36..41 });
    assert_eq!(data("198.51.100.8:4000"), TurnInput::Ignored);
    put_channel_data(ChannelNumber::new(0x4001).unwrap(), b"hello", false, &mut frame);
    assert_eq!(world.turn.handle_input(world.now, &frame), TurnInput::Ignored, "nobody's channel");
    world.turn.remove_peer(peer());
    put_channel_data(ChannelNumber::MIN, b"hello", false, &mut frame);
    assert_eq!(world.turn.handle_input(world.now, &frame), TurnInput::Ignored, "no longer a peer");
}

#[test]
fn over_a_stream_requests_are_sent_once_and_channel_data_is_padded() {
    let mut world = World::new(TurnOptions::new(TurnTransport::Tls), "secret");
    world.lose = Box::new(|packet| packet == 0);
    world.pass(15 * SECOND);
    assert_eq!(world.packets, 1);
    world.pass(11 * SECOND);
    assert_eq!(world.failure(), (TurnFailure::NoAnswer { unsigned: None }, Some(0)));
    world.turn.add_peer(world.now, peer());
    world.settle();
    assert_eq!(world.turn.send(peer(), b"hello").unwrap().len(), 12);
}

#[test]
fn everything_is_refreshed_in_time_for_an_hour_and_nothing_more_often() {
    let mut world = World::ready();
    world.pass(3600 * SECOND);
    assert!(world.events.is_empty(), "{:?}", world.events);
    assert_eq!(world.seconds(Method::Allocate), [0]);
    assert_eq!(world.seconds(Method::Refresh), [540, 1080, 1620, 2160, 2700, 3240]);
    assert_eq!(world.seconds(Method::ChannelBind), [0, 540, 1080, 1620, 2160, 2700, 3240]);
    let permissions = world.seconds(Method::CreatePermission);
    let gaps = permissions.windows(2).map(|pair| pair[1] - pair[0]);
    assert!(gaps.clone().all(|gap| (240..300).contains(&gap) || gap == 300), "{permissions:?}");
    let frame = world.turn.send(peer(), b"x").unwrap().to_vec();
    world.server.handle(world.now, &frame);
}

#[test]
fn the_nat_on_the_way_to_the_server_never_sees_thirty_silent_seconds() {
    let mut world = World::ready();
    world.pass(1200 * SECOND);
    assert!(world.server.heard.windows(2).all(|pair| pair[1] - pair[0] <= 25 * SECOND));
    let mut world = World::new(TurnOptions::new(TurnTransport::Tcp), "secret");
    world.pass(500 * SECOND);
    assert_eq!(world.server.heard.len(), 2, "a stream needs none");
}

#[test]
fn a_relayed_ipv6_address_is_asked_for() {
    let options = TurnOptions::new(TurnTransport::Udp).with_address_family(AddressFamily::V6);
    let mut world = World::new(options, "secret");
    let family = |frame: &[u8]| Scanned::scan(frame).unwrap().decode().unwrap().requested_address_family();
    assert_eq!(family(&world.turn.poll_transmit().unwrap()), Some(AddressFamily::V6));
    assert_eq!(
        family(&World::over_udp().turn.poll_transmit().unwrap()),
        None,
        "IPv4 is what servers give by themselves"
    );
}

fn of_both_families() -> World {
    World::new(TurnOptions::new(TurnTransport::Udp).with_both_families(), "secret")
}

#[test]
fn with_addresses_of_both_families_peers_of_either_are_reached() {
    let mut world = of_both_families();
    world.settle();
    assert_eq!(world.turn.relayed_addresses().collect::<Vec<_>>(), [relayed_address(), address(SIX)]);
    let told = |event: &TurnEvent| matches!(event, TurnEvent::Allocated { also_relayed: Some(also), .. } if *also == address(SIX));
    assert!(world.events.iter().any(told), "{:?}", world.events);
    let six = address("[2001:db8:7::7]:4000");
    for peer in [peer(), six] {
        world.turn.add_peer(world.now, peer);
        world.settle();
        let frame = world.turn.send(peer, b"hello").unwrap().to_vec();
        world.server.handle(world.now, &frame);
    }
    assert_eq!(world.server.relayed, [(peer(), b"hello".to_vec()), (six, b"hello".to_vec())]);
}

#[test]
fn a_server_that_lacks_a_family_lends_the_other() {
    let mut world = of_both_families();
    world.server.refuses_six = Some(ErrorCode::AddressFamilyNotSupported);
    world.settle();
    assert_eq!(world.turn.relayed_addresses().collect::<Vec<_>>(), [relayed_address()]);

    // It has IPv6 only, and does not know how both are asked for.
    let mut world = of_both_families();
    world.server.refuse = vec![(Method::Allocate, ErrorCode::AddressFamilyNotSupported)];
    world.settle();
    assert_eq!(world.turn.relayed_addresses().collect::<Vec<_>>(), [address(SIX)]);

    let mut world = of_both_families();
    world.server.refuse = vec![(Method::Allocate, ErrorCode::AddressFamilyNotSupported); 2];
    world.settle();
    let why = TurnFailure::Unsupported(ErrorCode::AddressFamilyNotSupported);
    assert_eq!(world.events, [TurnEvent::Failed { why, retry_at: None }]);
}

#[test]
fn the_loss_of_any_one_packet_is_made_good() {
    let scenario = |lost: Option<usize>| {
        let mut world = World::over_udp();
        world.lose = Box::new(move |packet| Some(packet) == lost);
        for _ in 0..30 {
            world.turn.add_peer(world.now, peer());
            world.pass(40 * SECOND);
            let frame = world.turn.send(peer(), b"x").expect("ready after 40 s at most").to_vec();
            world.server.handle(world.now, &frame);
        }
        assert!(!world.events.iter().any(|event| matches!(event, TurnEvent::Failed { .. })), "{:?}", world.events);
        assert_eq!(world.server.relayed.len(), 30);
        world.packets
    };
    let packets = scenario(None);
    assert!(packets > 20);
    (0..packets).for_each(|lost| _ = scenario(Some(lost)));
}
