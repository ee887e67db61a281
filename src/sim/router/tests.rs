//! What the router promises for every kind of link and every order of events.

use proptest::prelude::*;

use super::*;
use crate::sim::packet::Content;

const ALICE: [u8; 4] = [10, 0, 0, 1];
const BOB: [u8; 4] = [10, 0, 0, 2];
const CAROL: [u8; 4] = [10, 0, 0, 3];

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn packet(from: [u8; 4], to: [u8; 4], size: usize) -> Packet {
    let content = Content::Datagram { ecn: None, payload: vec![0; size].into() };
    Packet { from: (from, 1).into(), to: (to, 1).into(), content }
}

/// The host with this address on the internet.
fn host(router: &mut Router, ip: impl Into<IpAddr>) -> HostId {
    let internet = Spot { realm: Realm::INTERNET, firewall: None };
    router.topology.host(internet, ip.into()).expect("no NAT is here")
}

fn send(router: &mut Router, now: Duration, packet: Packet) {
    let host = host(router, packet.from.ip());
    router.route(now, host, packet);
}

fn router(link: LinkOptions) -> Router {
    Router::new(&SimOptions::new(1).with_default_link(link).with_recorded_events(10_000))
}

/// Delivers everything that arrives by `now`.
fn deliver(router: &mut Router, now: Duration) {
    while let Some(arrival) = router.pop_due(now) {
        router.settle(&arrival, Fate::Delivered);
    }
}

#[test]
fn a_packet_arrives_after_the_latency_of_its_direction() {
    let mut router = router(LinkOptions::new());
    router.set_link(ALICE.into(), BOB.into(), LinkOptions::new().with_latency(millis(40)));
    send(&mut router, Duration::ZERO, packet(ALICE, BOB, 1));
    send(&mut router, Duration::ZERO, packet(BOB, ALICE, 1));
    assert_eq!(router.next_arrival(), Some(millis(1)));
    deliver(&mut router, millis(1));
    assert_eq!(router.next_arrival(), Some(millis(40)));
    assert!(router.pop_due(millis(39)).is_none());
}

#[test]
fn a_partition_also_cuts_what_is_on_its_way() {
    let mut router = router(LinkOptions::new().with_latency(millis(10)));
    send(&mut router, millis(0), packet(ALICE, BOB, 1));
    send(&mut router, millis(0), packet(ALICE, CAROL, 1));
    router.partition(&[ALICE.into()], &[BOB.into()]);
    deliver(&mut router, millis(10));
    router.heal();
    send(&mut router, millis(10), packet(BOB, ALICE, 1));
    deliver(&mut router, millis(20));
    let stats = router.stats();
    assert_eq!((stats.delivered, stats.partitioned), (2, 1));
}

#[test]
fn an_isolated_host_reaches_nobody_but_itself() {
    let mut router = router(LinkOptions::new());
    let alice = Node::Host(host(&mut router, ALICE));
    router.isolate(alice);
    for (from, to) in [(ALICE, BOB), (BOB, ALICE), (ALICE, ALICE), (BOB, CAROL)] {
        send(&mut router, millis(0), packet(from, to, 1));
    }
    deliver(&mut router, millis(10));
    assert_eq!((router.stats().delivered, router.stats().partitioned), (2, 2));
    router.reconnect(alice);
    send(&mut router, millis(10), packet(ALICE, BOB, 1));
    deliver(&mut router, millis(20));
    assert_eq!(router.stats().delivered, 3);
}

#[test]
fn the_network_never_holds_more_packets_than_its_bound() {
    let mut router = Router::new(&SimOptions::new(1).with_in_flight(3));
    (0..5).for_each(|_| send(&mut router, millis(0), packet(ALICE, BOB, 1)));
    assert_eq!((router.stats().in_flight, router.stats().network_full), (3, 2));
}

#[test]
fn links_that_fell_idle_are_forgotten() {
    let mut router = router(LinkOptions::new().with_bandwidth(8_000_000));
    for n in 0..3 * BUSY_LINKS_BEFORE_CLEANUP as u64 {
        let to = u32::try_from(n).expect("small").to_be_bytes();
        send(&mut router, millis(n), packet(ALICE, to, 1_000));
    }
    assert!(router.busy_until.len() <= BUSY_LINKS_BEFORE_CLEANUP);
}

/// One step of a random history: wait, then send, or cut or mend the connection.
#[derive(Debug, Clone)]
enum Step {
    Send { wait_micros: u64, size: usize, towards_bob: bool },
    Partition,
    Heal,
}

fn any_step() -> impl Strategy<Value = Step> {
    let send = (0..5_000_u64, 0..2_000_usize, any::<bool>()).prop_map(|(wait_micros, size, towards_bob)| Step::Send {
        wait_micros,
        size,
        towards_bob,
    });
    prop_oneof![12 => send, 1 => Just(Step::Partition), 1 => Just(Step::Heal)]
}

fn any_link() -> impl Strategy<Value = LinkOptions> {
    let bandwidth = proptest::option::of(10_000..100_000_000_u64);
    (0..100_u64, 0..50_u64, 0.0..0.5, (0.0..0.5, 0..50_u64), 0.0..0.5, bandwidth).prop_map(
        |(latency, jitter, loss, (reordering, extra), duplication, bandwidth)| {
            let link = LinkOptions::new()
                .with_latency(millis(latency))
                .with_jitter(millis(jitter))
                .with_loss(loss)
                .with_reordering(reordering, millis(extra))
                .with_duplication(duplication);
            bandwidth.map_or(link.clone(), |bandwidth| link.with_bandwidth(bandwidth))
        },
    )
}

/// Plays the history, checks that nothing crosses while it is cut, and returns the router after the last arrival.
/// Each packet carries the number of its step as source port.
fn play(link: LinkOptions, steps: &[Step]) -> Router {
    let (mut router, mut now, mut cut) = (router(link), Duration::ZERO, false);
    for (number, step) in (1..).zip(steps) {
        match step {
            Step::Send { wait_micros, size, towards_bob } => {
                now += Duration::from_micros(*wait_micros);
                let before = router.stats().delivered;
                deliver(&mut router, now);
                assert!(!cut || router.stats().delivered == before, "delivered through a partition");
                let (from, to) = if *towards_bob { (ALICE, BOB) } else { (BOB, ALICE) };
                let mut packet = packet(from, to, *size);
                packet.from.set_port(number);
                send(&mut router, now, packet);
            }
            Step::Partition => {
                router.partition(&[BOB.into()], &[ALICE.into()]);
                cut = true;
            }
            Step::Heal => {
                router.heal();
                cut = false;
            }
        }
    }
    router.heal();
    deliver(&mut router, Duration::MAX);
    router
}

fn delivered(router: &Router) -> Vec<TraceEvent> {
    router.events().into_iter().filter(|event| event.fate == Fate::Delivered).collect()
}

proptest! {
    #[test]
    fn nothing_arrives_before_its_latency_and_every_packet_has_one_fate(
        link in any_link(), steps in prop::collection::vec(any_step(), 1..200),
    ) {
        let router = play(link.clone(), &steps);
        for event in delivered(&router) {
            prop_assert!(event.at >= event.sent + link.latency, "{event}");
            prop_assert!(event.size <= link.mtu, "{event}");
        }
        let stats = router.stats();
        prop_assert_eq!(stats.in_flight, 0);
        prop_assert_eq!(stats.sent + stats.duplicated, router.events().len() as u64);
    }

    #[test]
    fn without_jitter_and_reordering_each_direction_is_first_in_first_out(
        link in any_link(), steps in prop::collection::vec(any_step(), 1..200),
    ) {
        let link = link.with_jitter(Duration::ZERO).with_reordering(0.0, Duration::ZERO);
        let delivered = delivered(&play(link, &steps));
        for from in [ALICE, BOB] {
            let sent: Vec<_> = delivered.iter().filter(|event| event.from.ip() == IpAddr::from(from)).collect();
            prop_assert!(sent.is_sorted_by_key(|event| event.from.port()));
        }
    }

    #[test]
    fn the_same_history_has_the_same_trace(link in any_link(), steps in prop::collection::vec(any_step(), 1..100)) {
        let (first, second) = (play(link.clone(), &steps), play(link, &steps));
        prop_assert_eq!(first.digest(), second.digest());
    }
}
