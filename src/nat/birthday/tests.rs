//! What one end of birthday punching does, and when; and how often two of them meet.

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

use super::*;
use NatMapping::{Dependent, Independent, Unknown};

fn target() -> SocketAddr {
    "198.51.100.7:4000".parse().unwrap()
}

/// Of a connection that has just become relayed.
fn machine(seed: u8, now: Instant, own: NatMapping, peer: NatMapping) -> BirthdayMachine {
    let mut machine = BirthdayMachine::new([seed; 32]);
    machine.on_own(own);
    machine.on_peer(peer);
    machine.on_target(Some(target()));
    machine.on_path(now, true);
    machine
}

/// One that is at it, with the actions that began it taken.
fn begun(seed: u8, now: Instant, role: Role) -> BirthdayMachine {
    let (own, peer) = if role == Role::Many { (Dependent, Independent) } else { (Independent, Dependent) };
    let relayed = now.checked_sub(RELAYED_FOR).unwrap();
    let mut machine = machine(seed, relayed, own, peer);
    match role {
        Role::Many => {
            machine.ask(now);
            assert_eq!(machine.poll_action(now), Some(Action::Ask));
            assert!(machine.on_go(now));
        }
        Role::One => {
            machine.go(now);
            assert_eq!(machine.poll_action(now), Some(Action::Go));
        }
    }
    machine
}

/// Everything that it does from now on, and when.
fn run(machine: &mut BirthdayMachine, start: Instant) -> Vec<(Duration, Action)> {
    let (mut now, mut done) = (start, Vec::new());
    loop {
        while let Some(action) = machine.poll_action(now) {
            done.push((now - start, action));
            if action == Action::End {
                return done;
            }
        }
        now = machine.poll_timeout().expect("an attempt ends").0.max(now);
    }
}

#[test]
fn roles_fit_together_and_the_hopeless_is_not_tried() {
    for own in [Independent, Dependent, Unknown] {
        for peer in [Independent, Dependent, Unknown] {
            let other = |role| if role == Role::Many { Role::One } else { Role::Many };
            assert_eq!(Role::of(own, peer), Role::of(peer, own).map(other), "{own:?} x {peer:?}");
        }
        assert_eq!(Role::of(own, own), None);
    }
    assert_eq!(Role::of(Dependent, Independent), Some(Role::Many));
    assert_eq!(Role::of(Unknown, Dependent), Some(Role::One));
}

#[test]
fn a_mapping_is_known_when_two_machines_were_asked() {
    let seen = |seen: &[(&str, &str)]| {
        mapping_behaviour(seen.iter().map(|(by, at)| (by.parse().unwrap(), at.parse().unwrap())))
    };
    let (one, other_port, two) = ("192.0.2.1:3478", "192.0.2.1:3479", "192.0.2.2:3478");
    assert_eq!(seen(&[]), Unknown);
    assert_eq!(seen(&[(one, "198.51.100.7:1")]), Unknown);
    assert_eq!(seen(&[(one, "198.51.100.7:1"), (other_port, "198.51.100.7:1")]), Unknown);
    assert_eq!(seen(&[(one, "198.51.100.7:1"), (other_port, "198.51.100.7:2")]), Dependent);
    assert_eq!(seen(&[(one, "198.51.100.7:1"), (two, "198.51.100.7:1")]), Independent);
    assert_eq!(seen(&[(one, "198.51.100.7:1"), (two, "198.51.100.7:2")]), Dependent);
    assert_eq!(seen(&[(one, "[2001:db8::1]:1"), ("[2001:db8::2]:1", "[2001:db8::1]:2")]), Unknown);
}

#[test]
fn it_is_ready_only_after_a_while_on_a_relay_and_with_a_willing_peer() {
    let start = Instant::now();
    let ready = machine(1, start, Dependent, Independent);
    assert_eq!(ready.poll_timeout(), Some((start + RELAYED_FOR, "time to ask")));
    assert!(!ready.is_ready(start) && ready.is_ready(start + RELAYED_FOR));
    assert_eq!(machine(1, start, Independent, Dependent).poll_timeout(), None, "the other end asks");
    assert_eq!(machine(1, start, Dependent, Dependent).poll_timeout(), None);
    let mut unwilling = BirthdayMachine::new([1; 32]);
    unwilling.on_own(Dependent);
    unwilling.on_target(Some(target()));
    unwilling.on_path(start, true);
    assert_eq!(unwilling.poll_timeout(), None);
    let mut direct = machine(1, start, Dependent, Independent);
    direct.on_path(start, false);
    assert_eq!(direct.poll_timeout(), None);
    let mut resting = machine(1, start, Dependent, Independent);
    resting.rest(start + Duration::from_secs(900));
    assert!(!resting.is_ready(start + Duration::from_secs(899)));
    resting.on_network_change(start + Duration::from_secs(20));
    assert!(resting.is_ready(start + Duration::from_secs(30)));
}

#[test]
fn a_peer_that_does_not_agree_is_asked_again_a_minute_later() {
    let now = Instant::now();
    let mut machine = machine(1, now.checked_sub(RELAYED_FOR).unwrap(), Dependent, Independent);
    machine.ask(now);
    assert_eq!(run(&mut machine, now), [(Duration::ZERO, Action::Ask), (ASKED, Action::End)]);
    assert!(!machine.on_go(now + ASKED), "too late");
    assert_eq!(machine.poll_timeout(), Some((now + ASKED + ASK_AGAIN, "time to ask")));
}

#[test]
fn every_socket_sends_twice_to_one_address_and_then_it_is_over() {
    let now = Instant::now();
    let mut machine = begun(1, now, Role::Many);
    let done = run(&mut machine, now);
    let sent = done.iter().filter_map(|(at, action)| match action {
        Action::Send { socket, to } => Some((*at, *socket, *to)),
        _ => None,
    });
    let sent: Vec<_> = sent.collect();
    assert_eq!(sent.len(), 2 * BIRTHDAY_SOCKETS);
    assert!(sent.iter().all(|(_, _, to)| *to == target()));
    let numbers: Vec<_> = sent.iter().map(|(_, socket, _)| *socket).collect();
    assert_eq!(numbers, (0..BIRTHDAY_SOCKETS).chain(0..BIRTHDAY_SOCKETS).collect::<Vec<_>>());
    assert_eq!(sent[BIRTHDAY_SOCKETS].0, SEND_AGAIN);
    assert_eq!(done.last(), Some(&(SOCKETS_OPEN, Action::End)));
}

#[test]
fn without_enough_sockets_it_does_with_those_there_are() {
    let now = Instant::now();
    let mut machine = begun(1, now, Role::Many);
    let mut at = now;
    let (mut sent, mut highest) = (0, 0);
    while let Some((next, _)) = machine.poll_timeout().filter(|_| machine.is_busy()) {
        at = at.max(next);
        match machine.poll_action(at) {
            Some(Action::Send { socket: 10, .. }) => machine.on_no_socket(10),
            Some(Action::Send { socket, .. }) => (sent, highest) = (sent + 1, highest.max(socket)),
            _ => {}
        }
    }
    assert_eq!((sent, highest), (20, 9));
    let mut none = begun(1, now, Role::Many);
    assert!(matches!(none.poll_action(now), Some(Action::Send { socket: 0, .. })));
    none.on_no_socket(0);
    assert_eq!(none.poll_action(now), Some(Action::End));
}

#[test]
fn it_stops_when_the_two_have_met_and_not_when_somebody_else_asks() {
    let now = Instant::now();
    let mut one = begun(1, now, Role::One);
    let Some(Action::Probe { to }) = one.poll_action(now) else { panic!("no probe") };
    one.on_check(SocketAddr::from(([203, 0, 113, 9], to.port())));
    assert!(one.is_busy());
    one.on_check(to);
    assert_eq!(one.poll_action(now), Some(Action::End));
    let mut many = begun(1, now, Role::Many);
    assert!(matches!(many.poll_action(now), Some(Action::Send { .. })));
    many.on_check(target());
    assert_eq!((many.poll_action(now), many.poll_action(now)), (Some(Action::End), None));
    let mut other_way = begun(1, now, Role::One);
    other_way.on_path(now, false);
    assert_eq!(other_way.poll_action(now), Some(Action::End));
}

/// Both machines against a table of ports: how many packets until one meets an open port.
fn probes_until_they_meet(seed: u8) -> Option<usize> {
    let now = Instant::now();
    let mut random = ChaCha20Rng::from_seed([seed ^ 0xa5; 32]);
    let mut open = BTreeSet::new();
    while open.len() < BIRTHDAY_SOCKETS {
        open.insert(random.random_range(PORTS));
    }
    let mut one = begun(seed, now, Role::One);
    let probed = run(&mut one, now).into_iter().filter_map(|(_, action)| match action {
        Action::Probe { to } => Some(to.port()),
        _ => None,
    });
    probed.into_iter().position(|port| open.contains(&port)).map(|at| at + 1)
}

#[test]
fn nearly_all_meet_within_the_packets_of_one_attempt() {
    let mut met: Vec<_> = (0..200).filter_map(probes_until_they_meet).collect();
    met.sort_unstable();
    println!("{} of 200 met, half of them within {} packets", met.len(), met[met.len() / 2]);
    // 196.6 are expected; 190 is four standard deviations below.
    assert!(met.len() >= 190, "{} of 200 met", met.len());
    assert!((120..=240).contains(&met[met.len() / 2]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn no_port_is_tried_twice_and_there_are_never_more_than_allowed_nor_faster(seed in any::<u8>(), late_ms in 0u64..50) {
        let start = Instant::now();
        let mut machine = begun(seed, start, Role::One);
        let (mut now, mut ports, mut last) = (start, BTreeSet::new(), None);
        while let Some((at, _)) = machine.poll_timeout().filter(|_| machine.is_busy()) {
            now = at.max(now) + Duration::from_millis(late_ms);
            while let Some(action) = machine.poll_action(now) {
                let Action::Probe { to } = action else { continue };
                prop_assert_eq!(to.ip(), target().ip());
                prop_assert!(PORTS.contains(&to.port()) && ports.insert(to.port()));
                prop_assert!(last.is_none_or(|last| now >= last + PROBE_PACE));
                last = Some(now);
            }
        }
        prop_assert_eq!(ports.len(), BIRTHDAY_PROBES);
    }
}
