//! The rendezvous machine without a network: who is told what.

use rand::SeedableRng;

use super::*;
use crate::identity::Identity;

fn peer(n: u8) -> PeerId {
    Identity::from_seed(&[n; 32]).peer_id()
}

fn ip(n: u8) -> IpAddr {
    [203, 0, 113, n].into()
}

struct Pair {
    relay: Rendezvous,
    now: Instant,
    alice: SessionId,
    bob: SessionId,
}

fn pair(limits: RelayLimits) -> Pair {
    let now = Instant::now();
    let mut relay = Rendezvous::new(limits, PeerPolicy::new(), ChaCha20Rng::seed_from_u64(1), now);
    let alice = relay.on_connected(peer(1), ip(1), now).unwrap();
    let bob = relay.on_connected(peer(2), ip(2), now).unwrap();
    Pair { relay, now, alice, bob }
}

impl Pair {
    fn say(&mut self, from: SessionId, frame: NodeFrame) -> Vec<Output> {
        self.drain();
        self.relay.on_frame(from, frame, self.now);
        self.drain()
    }

    fn drain(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.relay.poll_output()).collect()
    }

    /// Lets a client answer its ping after a round trip.
    fn measure(&mut self, session: SessionId, rtt: Duration) {
        let of = |output: &Output| match output {
            Output::Frame(to, RelayFrame::Ping { nonce }) if *to == session => Some(*nonce),
            _ => None,
        };
        let nonce = self.relay.outputs.iter().find_map(of).unwrap();
        self.relay.on_frame(session, NodeFrame::Pong { nonce }, self.now + rtt);
    }
}

fn flow_of(outputs: &[Output], session: SessionId) -> u64 {
    let flow = outputs.iter().find_map(|output| match output {
        Output::Frame(to, RelayFrame::Flow { flow, .. }) if *to == session => Some(*flow),
        _ => None,
    });
    flow.unwrap()
}

#[test]
fn a_signal_reaches_the_peer_and_says_who_sent_it() {
    let mut pair = pair(RelayLimits::new());
    let sealed = Bytes::from_static(b"sealed");
    let (alice, bob) = (pair.alice, pair.bob);
    let got = pair.say(alice, NodeFrame::Signal { to: peer(2), sealed: sealed.clone() });
    assert_eq!(got, [Output::Frame(bob, RelayFrame::Signal { from: peer(1), sealed })]);
}

#[test]
fn who_is_not_here_is_said_not_to_be() {
    let mut pair = pair(RelayLimits::new());
    let alice = pair.alice;
    for to in [peer(3), peer(1)] {
        for frame in [NodeFrame::Forward { to }, NodeFrame::Punch { to, session: 1 }] {
            assert_eq!(pair.say(alice, frame), [Output::Frame(alice, RelayFrame::NotHere { to })]);
        }
    }
}

#[test]
fn the_newest_session_of_a_peer_is_spoken_to_and_the_one_before_when_it_is_gone() {
    let mut pair = pair(RelayLimits::new());
    let (alice, bob) = (pair.alice, pair.bob);
    let newer = pair.relay.on_connected(peer(2), ip(2), pair.now).unwrap();
    let signal = NodeFrame::Signal { to: peer(2), sealed: Bytes::from_static(b"x") };
    assert!(matches!(&pair.say(alice, signal.clone())[..], [Output::Frame(to, _)] if *to == newer));
    pair.relay.on_closed(newer);
    assert!(matches!(&pair.say(alice, signal)[..], [Output::Frame(to, _)] if *to == bob));
}

#[test]
fn a_peer_with_too_many_sessions_loses_its_oldest() {
    let mut pair = pair(RelayLimits::new().with_sessions_per_peer(2));
    let bob = pair.bob;
    pair.relay.on_connected(peer(2), ip(2), pair.now).unwrap();
    pair.relay.on_connected(peer(2), ip(2), pair.now).unwrap();
    assert!(pair.drain().iter().any(|output| matches!(output, Output::Close(closed, _) if *closed == bob)));
    assert_eq!(pair.relay.sessions(), 3);
}

#[test]
fn an_address_with_too_many_sessions_gets_no_more_until_one_ends() {
    let mut pair = pair(RelayLimits::new().with_sessions_per_address(1));
    let (now, alice) = (pair.now, pair.alice);
    assert_eq!(pair.relay.on_connected(peer(3), ip(1), now), Err(NoRoom::Address));
    assert!(pair.relay.on_connected(peer(3), ip(3), now).is_ok());
    pair.relay.on_closed(alice);
    assert!(pair.relay.on_connected(peer(4), ip(1), now).is_ok());
}

#[test]
fn a_full_relay_takes_nobody() {
    let mut pair = pair(RelayLimits::new().with_sessions(2));
    assert_eq!(pair.relay.on_connected(peer(3), ip(3), pair.now), Err(NoRoom::Relay));
}

#[test]
fn both_ends_start_a_punch_at_the_same_moment() {
    let mut pair = pair(RelayLimits::new());
    let (alice, bob) = (pair.alice, pair.bob);
    pair.measure(alice, Duration::from_millis(20));
    pair.measure(bob, Duration::from_millis(120));
    let got = pair.say(alice, NodeFrame::Punch { to: peer(2), session: 7 });
    let to_alice = RelayFrame::Punch { peer: peer(2), session: 7, after_ms: 50 };
    let to_bob = RelayFrame::Punch { peer: peer(1), session: 7, after_ms: 0 };
    assert_eq!(got, [Output::Frame(alice, to_alice), Output::Frame(bob, to_bob)]);
}

#[test]
fn a_late_answer_does_not_make_a_client_seem_far_away() {
    let mut pair = pair(RelayLimits::new());
    let (alice, bob) = (pair.alice, pair.bob);
    pair.measure(alice, Duration::from_millis(1800));
    pair.measure(bob, Duration::from_millis(120));
    pair.drain();
    pair.now += FIRST_PINGS_INTERVAL;
    pair.relay.on_timeout(pair.now);
    pair.measure(alice, Duration::from_millis(20));
    let got = pair.say(alice, NodeFrame::Punch { to: peer(2), session: 7 });
    assert!(matches!(got[0], Output::Frame(to, RelayFrame::Punch { after_ms: 50, .. }) if to == alice));
}

#[test]
fn a_client_that_pretends_to_be_far_away_delays_a_punch_only_so_much() {
    let mut pair = pair(RelayLimits::new());
    let (alice, bob) = (pair.alice, pair.bob);
    pair.measure(alice, Duration::from_millis(20));
    pair.measure(bob, Duration::from_secs(14));
    let got = pair.say(alice, NodeFrame::Punch { to: peer(2), session: 7 });
    let most = u128::from(u32::MAX).min(PUNCH_DELAY_MAX.as_millis());
    assert!(matches!(got[0], Output::Frame(_, RelayFrame::Punch { after_ms, .. }) if u128::from(after_ms) <= most));
}

#[test]
fn a_flow_is_told_to_both_ends_and_asked_for_again_is_the_same() {
    let mut pair = pair(RelayLimits::new());
    let (alice, bob) = (pair.alice, pair.bob);
    let first = pair.say(alice, NodeFrame::Forward { to: peer(2) });
    assert_eq!(first.len(), 2);
    assert_ne!(flow_of(&first, alice), flow_of(&first, bob));
    let again = pair.say(bob, NodeFrame::Forward { to: peer(1) });
    assert_eq!((flow_of(&again, alice), flow_of(&again, bob)), (flow_of(&first, alice), flow_of(&first, bob)));
    assert_eq!(pair.relay.flows(), 1);
    pair.relay.on_closed(alice);
    let flow = flow_of(&first, bob);
    assert_eq!(pair.drain(), [Output::Frame(bob, RelayFrame::FlowClosed { flow })]);
}

#[test]
fn flows_over_the_quota_are_refused() {
    let mut pair = pair(RelayLimits::new().with_flows_per_client(1));
    let (now, alice) = (pair.now, pair.alice);
    pair.relay.on_connected(peer(3), ip(3), now).unwrap();
    pair.say(alice, NodeFrame::Forward { to: peer(2) });
    let refused = pair.say(alice, NodeFrame::Forward { to: peer(3) });
    assert_eq!(refused, [Output::Frame(alice, RelayFrame::Busy { to: peer(3) })]);
    assert!(!pair.relay.on_frame(alice, NodeFrame::Forward { to: peer(3) }, now), "and counted");
}

#[test]
fn flows_that_strangers_ask_for_leave_room_for_those_of_others() {
    let limits = RelayLimits::new().with_flows_per_client(3).with_flows_per_address(5);
    let mut pair = pair(limits);
    let (now, bob) = (pair.now, pair.bob);
    let asked = |pair: &mut Pair, from, to| flow_asked(&pair.say(from, NodeFrame::Forward { to: peer(to) }));
    let strangers: Vec<_> = (10..20).map(|n| pair.relay.on_connected(peer(n), ip(9), now).unwrap()).collect();
    let got = strangers.iter().filter(|stranger| asked(&mut pair, **stranger, 2)).count();
    assert_eq!((got, pair.relay.flows()), (5, 5), "no more from one address, however many come");
    assert!(asked(&mut pair, bob, 1), "whom they ask for asks as before");
    assert_eq!([3, 4, 5].map(|n| pair.relay.on_connected(peer(n), ip(n), now).is_ok()), [true; 3]);
    assert_eq!([3, 4, 5].map(|n| asked(&mut pair, bob, n)), [true, true, false]);
    pair.relay.on_closed(strangers[0]);
    assert!(asked(&mut pair, strangers[9], 2), "one that ended makes room");
}

fn flow_asked(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Frame(_, RelayFrame::Flow { .. })))
}

#[test]
fn sessions_of_one_peer_that_come_and_go_leave_no_flow_behind() {
    let mut pair = pair(RelayLimits::new().with_flows_per_address(2));
    let now = pair.now;
    for _ in 0..10 {
        let sessions = [0; 2].map(|_| pair.relay.on_connected(peer(3), ip(3), now).unwrap());
        for session in sessions {
            let got = pair.say(session, NodeFrame::Forward { to: peer(2) });
            assert!(flow_asked(&got));
        }
        pair.relay.on_connected(peer(3), ip(3), now).unwrap();
        assert_eq!(pair.relay.flows(), 1);
    }
    pair.drain();
    pair.relay.on_closed(pair.bob);
    assert!(pair.drain().iter().all(|o| matches!(o, Output::Frame(_, RelayFrame::FlowClosed { .. }))));
    assert_eq!(pair.relay.flows(), 0);
}

#[test]
fn a_flood_is_refused_and_then_ends_the_session() {
    let mut pair = pair(RelayLimits::new());
    let (alice, to) = (pair.alice, peer(2));
    let mut passed = 0;
    let mut closed = false;
    for _ in 0..10_000 {
        let got = pair.say(alice, NodeFrame::Signal { to, sealed: Bytes::from_static(b"x") });
        passed += got.iter().filter(|o| matches!(o, Output::Frame(_, RelayFrame::Signal { .. }))).count();
        closed |= got.iter().any(|o| matches!(o, Output::Close(..)));
    }
    assert_eq!(passed as u64, RelayLimits::new().requests_per_client.burst);
    assert!(closed && pair.relay.sessions() == 1);
}

#[test]
fn bytes_over_the_quota_of_a_client_or_of_the_relay_are_dropped() {
    let slow = Rate { per_second: 1000, burst: 1000 };
    for limits in [RelayLimits::new().with_bytes_per_client(slow), RelayLimits::new().with_bytes(slow)] {
        let mut pair = pair(limits);
        let (alice, bob) = (pair.alice, pair.bob);
        let opened = pair.say(alice, NodeFrame::Forward { to: peer(2) });
        let path = |n| FlowPath { socket: 0, address: (ip(n), 9).into() };
        let mut released = Vec::new();
        let mut send = |at, n, flow, payload| pair.relay.on_datagram(path(n), flow, payload, at, &mut released);
        assert_eq!(send(pair.now, 2, flow_of(&opened, bob), b""), Forwarded::Kept);
        let payload = [7; 600];
        assert!(matches!(send(pair.now, 1, flow_of(&opened, alice), &payload), Forwarded::Onward(_)));
        assert_eq!(send(pair.now, 1, flow_of(&opened, alice), &payload), Forwarded::Dropped("over quota"));
        let later = pair.now + Duration::from_secs(1);
        assert!(matches!(send(later, 1, flow_of(&opened, alice), &payload), Forwarded::Onward(_)));
        let empty = (0..100).filter(|_| send(later, 2, flow_of(&opened, bob), b"") == Forwarded::Kept);
        assert!(empty.count() <= 16, "empty ones cost their headers");
    }
}

#[test]
fn a_client_that_no_longer_answers_is_forgotten_and_one_that_does_stays() {
    let mut pair = pair(RelayLimits::new());
    let (alice, bob) = (pair.alice, pair.bob);
    for _ in 0..10 {
        let (at, _) = pair.relay.poll_timeout().unwrap();
        pair.now = at;
        if pair.relay.outputs.iter().any(|o| matches!(o, Output::Frame(to, RelayFrame::Ping { .. }) if *to == alice)) {
            pair.measure(alice, Duration::from_millis(5));
        }
        pair.drain();
        pair.relay.on_timeout(at);
    }
    assert_eq!(pair.relay.sessions.keys().collect::<Vec<_>>(), [&alice], "{bob:?} is gone");
}

#[test]
fn a_record_is_found_after_its_peer_is_gone_and_only_its_own_peer_publishes_it() {
    let mut pair = pair(RelayLimits::new());
    let (alice, bob) = (pair.alice, pair.bob);
    let record = |seed: u8, timestamp_us| {
        let relay = "relay.example.org".parse().unwrap();
        RendezvousRecord::sign(&Identity::from_seed(&[seed; 32]), vec![relay], timestamp_us)
    };
    let (now, day_us) = (pair.now, 24 * 3600 * 1_000_000);
    let publish = |pair: &mut Pair, from, record: RendezvousRecord| pair.relay.on_record(from, &record, now, 5);
    let lookup = |pair: &mut Pair| pair.say(alice, NodeFrame::Lookup { peer: peer(2) });
    let answer = |record| vec![Output::Frame(alice, RelayFrame::Record { peer: peer(2), record })];
    assert_eq!(lookup(&mut pair), answer(None));
    assert!(!publish(&mut pair, alice, record(2, 9)), "of somebody else");
    assert!(!publish(&mut pair, bob, record(2, 6 + day_us)), "from the future, where nothing later would ever come");
    assert!(publish(&mut pair, bob, record(2, 5)));
    assert!(!publish(&mut pair, bob, record(2, 4)), "an older one");
    assert!(publish(&mut pair, bob, record(2, 5 + day_us)), "clocks may be wrong by a day");
    pair.relay.on_closed(bob);
    assert_eq!(lookup(&mut pair), answer(Some(record(2, 5 + day_us).encode())));
}

#[test]
fn records_of_one_session_are_verified_ten_at_once_and_then_one_in_ten_seconds() {
    let mut pair = pair(RelayLimits::new());
    let record =
        |timestamp_us| RendezvousRecord::sign(&Identity::from_seed(&[1; 32]), Vec::new(), timestamp_us).encode();
    let alice = pair.alice;
    let start = pair.now;
    let mut taken = |from: u64, at| {
        let publish = |n| NodeFrame::Publish { record: record(from + n) };
        (0..30).filter(|n| pair.relay.on_frame(alice, publish(*n), at)).count()
    };
    assert_eq!(taken(0, start), 10);
    assert_eq!(taken(100, start + Duration::from_secs(20)), 2);
}
