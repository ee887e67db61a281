//! The machine against a network of two ends that loses, delays and cuts paths, on a clock of the test's.

use std::net::SocketAddr;

use super::*;
use crate::limits::CHECK_ROUNDS_MAX;
use crate::nat::path::Via;

const MILLISECOND: Duration = Duration::from_millis(1);

fn direct(host: u8) -> Path {
    Path::direct(SocketAddr::from(([192, 0, 2, host], 4000)))
}

fn forward() -> Path {
    Path { via: Via::Forward { flow: 7 }, remote: SocketAddr::from(([203, 0, 113, 1], 3478)) }
}

/// One end, and a world that answers its checks.
struct World {
    now: Instant,
    start: Instant,
    selection: PathSelection,
    /// What works: path, round trip, largest datagram.
    works: BTreeMap<Path, (Duration, u16)>,
    answers: Vec<(Instant, Path, u32)>,
    sent: BTreeMap<Path, usize>,
    events: Vec<(Duration, PathEvent)>,
    /// When the connection sends packets, one every this often, all acknowledged if the selected path works.
    traffic: Option<Duration>,
    last_sent: Option<Instant>,
    last_received: Option<Instant>,
}

impl World {
    fn new(selection: impl FnOnce(Instant) -> PathSelection) -> Self {
        let now = Instant::now();
        Self {
            now,
            start: now,
            selection: selection(now),
            works: BTreeMap::new(),
            answers: Vec::new(),
            sent: BTreeMap::new(),
            events: Vec::new(),
            traffic: None,
            last_sent: None,
            last_received: None,
        }
    }

    fn works(&mut self, path: Path, round_trip_ms: u64) {
        self.works.insert(path, (Duration::from_millis(round_trip_ms), 1452));
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
            self.now += MILLISECOND;
        }
    }

    fn step(&mut self) {
        let now = self.now;
        self.answers.sort_unstable();
        while let Some((_, path, number)) = self.answers.first().copied().filter(|(at, ..)| *at <= now) {
            self.answers.remove(0);
            self.selection.on_answer(now, path, number);
        }
        self.carry_traffic();
        if self.selection.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.selection.handle_timeout(now);
        }
        while let Some(check) = self.selection.poll_check(now) {
            *self.sent.entry(check.path).or_default() += 1;
            if let Some((round_trip, largest)) = self.works.get(&check.path)
                && check.padded_to <= *largest
            {
                self.answers.push((now + *round_trip, check.path, check.number));
            }
        }
        while let Some(event) = self.selection.poll_event() {
            self.events.push((now - self.start, event));
        }
    }

    fn carry_traffic(&mut self) {
        let Some(interval) = self.traffic else { return };
        let now = self.now;
        if self.last_sent.is_none_or(|sent| now - sent >= interval) && self.last_received >= self.last_sent {
            self.last_sent = Some(now);
        }
        let selected = self.selection.selected().map(|(path, _)| path);
        if let (Some(sent), Some(path)) = (self.last_sent, selected)
            && let Some((round_trip, _)) = self.works.get(&path)
            && now - sent >= *round_trip
        {
            self.last_received = Some(now);
        }
        self.selection.on_traffic(now, self.last_sent.filter(|sent| self.last_received < Some(*sent)));
    }

    fn selected(&self) -> Path {
        self.selection.selected().unwrap().0
    }
}

#[test]
fn of_many_candidates_the_one_that_answers_is_selected_within_its_round_trip() {
    let mut world = World::new(|_| PathSelection::new());
    for host in 1..=20 {
        world.selection.add(world.now, direct(host), PathKind::Punched);
    }
    world.works(direct(7), 100);
    world.run(Duration::from_secs(1));
    assert_eq!(world.events, [(Duration::from_millis(100), PathEvent::Selected(direct(7)))]);
}

#[test]
fn an_address_that_never_answers_gets_a_bounded_number_of_checks() {
    let mut world = World::new(|now| PathSelection::on(now, forward(), PathKind::Forwarded, 10 * MILLISECOND));
    world.works(forward(), 10);
    world.selection.add(world.now, direct(1), PathKind::Punched);
    world.run(Duration::from_secs(3600));
    assert_eq!(world.sent[&direct(1)], CHECKS_PER_ROUND * CHECK_ROUNDS_MAX as usize);
}

#[test]
fn a_direct_path_takes_over_from_a_faster_relay_once_it_carries_full_datagrams() {
    let mut world = World::new(|now| PathSelection::on(now, forward(), PathKind::Forwarded, 10 * MILLISECOND));
    world.selection.set_datagram_bytes(1400);
    world.works(forward(), 10);
    world.works(direct(1), 80);
    world.selection.add(world.now, direct(1), PathKind::Punched);
    world.run(Duration::from_secs(1));
    assert_eq!(world.events, [(Duration::from_millis(160), PathEvent::Selected(direct(1)))]);
}

#[test]
fn a_path_that_swallows_full_datagrams_is_only_used_for_its_tier() {
    let mut world = World::new(|now| PathSelection::on(now, direct(1), PathKind::Punched, 50 * MILLISECOND));
    world.selection.set_datagram_bytes(1400);
    world.works(direct(1), 50);
    world.works.insert(direct(2), (10 * MILLISECOND, 1300));
    world.selection.add(world.now, direct(2), PathKind::Punched);
    world.run(Duration::from_secs(30));
    assert!(world.events.is_empty(), "{:?}", world.events);
    world.works.remove(&direct(1));
    world.run(Duration::from_secs(30));
    assert_eq!(world.selected(), direct(2), "narrow is better than nothing");
}

#[test]
fn paths_of_one_tier_are_not_changed_for_a_few_milliseconds() {
    let mut world = World::new(|now| PathSelection::on(now, direct(1), PathKind::Punched, 50 * MILLISECOND));
    world.works(direct(1), 50);
    world.works(direct(2), 46);
    world.works(direct(3), 20);
    world.selection.add(world.now, direct(2), PathKind::Punched);
    world.run(Duration::from_secs(60));
    assert!(world.events.is_empty(), "{:?}", world.events);
    world.selection.add(world.now, direct(3), PathKind::Punched);
    world.run(Duration::from_secs(60));
    assert_eq!(world.selected(), direct(3));
}

#[test]
fn when_the_path_in_use_dies_under_traffic_the_standby_takes_over_within_a_second_and_a_half() {
    let mut world = World::new(|now| PathSelection::on(now, direct(1), PathKind::Punched, 100 * MILLISECOND));
    world.traffic = Some(20 * MILLISECOND);
    world.works(direct(1), 100);
    world.works(forward(), 110);
    world.selection.add(world.now, forward(), PathKind::Forwarded);
    world.run(Duration::from_secs(60));
    assert!(world.events.is_empty(), "{:?}", world.events);
    world.works.remove(&direct(1));
    let died = world.now - world.start;
    world.run(Duration::from_secs(10));
    let (at, event) = world.events[0];
    assert_eq!(event, PathEvent::Selected(forward()));
    assert!(at - died < Duration::from_millis(1500), "{:?}", at - died);
    world.works(direct(1), 100);
    world.run(Duration::from_secs(60));
    assert_eq!(world.selected(), direct(1), "and back once it works again");
    assert_eq!(world.events.len(), 2, "{:?}", world.events);
}

#[test]
fn a_standby_that_died_with_the_network_keeps_nobody_from_the_third_path_although_its_size_is_to_be_proven() {
    let mut world = World::new(|now| PathSelection::on(now, direct(1), PathKind::Punched, 50 * MILLISECOND));
    let turn = Path { via: Via::Turn { allocation: 1 }, ..direct(1) };
    world.selection.add(world.start, forward(), PathKind::Forwarded);
    world.works(direct(1), 50);
    world.works(forward(), 50);
    world.traffic = Some(20 * MILLISECOND);
    world.run(Duration::from_secs(5));
    // Larger datagrams than before: the standby would have to prove that it carries them.
    world.selection.set_datagram_bytes(1400);
    world.works.clear();
    world.selection.on_network_change(world.now);
    world.run(700 * MILLISECOND);
    world.works(turn, 100);
    let moved = world.now;
    world.selection.add(moved, turn, PathKind::TurnTls);
    world.run(Duration::from_secs(2));
    let (at, event) = *world.events.last().unwrap();
    assert_eq!(event, PathEvent::Selected(turn));
    assert!(
        world.start + at < moved + 500 * MILLISECOND,
        "{:?} after the third path was there",
        world.start + at - moved
    );
}

#[test]
fn after_an_outage_of_everything_a_path_is_noticed_within_half_a_second() {
    let mut world = World::new(|now| PathSelection::on(now, direct(1), PathKind::Direct, 30 * MILLISECOND));
    world.traffic = Some(20 * MILLISECOND);
    world.works(direct(1), 30);
    world.run(Duration::from_secs(10));
    world.works.remove(&direct(1));
    world.run(Duration::from_secs(5));
    assert_eq!(world.events.iter().filter(|(_, event)| *event == PathEvent::Lost).count(), 1);
    world.works(direct(1), 30);
    world.run(Duration::from_millis(500));
    assert!(world.selection.paths().any(|(path, _, round_trip)| path == direct(1) && round_trip.is_some()));
    assert_eq!(world.selected(), direct(1));
}

#[test]
fn a_path_that_loses_much_is_left_for_a_relay_and_taken_again_later() {
    let mut world = World::new(|now| PathSelection::on(now, direct(1), PathKind::Direct, 30 * MILLISECOND));
    world.works(direct(1), 30);
    world.works(forward(), 60);
    world.selection.add(world.now, forward(), PathKind::Forwarded);
    world.run(Duration::from_secs(10));
    world.selection.on_quality(world.now, 300, 30 * MILLISECOND);
    world.run(Duration::from_secs(1));
    assert_eq!(world.selected(), forward());
    world.run(Duration::from_secs(30));
    assert_eq!(world.selected(), direct(1));
    for _ in 0..10 {
        world.selection.on_quality(world.now, 300, 30 * MILLISECOND);
        world.run(Duration::from_secs(60));
    }
    let changes = world.events.len();
    assert!(changes <= 14, "{changes} changes in ten minutes: each time it is avoided for longer");
}

#[test]
fn the_end_that_follows_goes_along_with_its_peer_and_the_other_only_doubts() {
    let mut follower =
        World::new(|now| PathSelection::on(now, direct(1), PathKind::Direct, 30 * MILLISECOND).following());
    follower.works(direct(1), 30);
    follower.works(forward(), 60);
    follower.selection.on_check(follower.now, forward(), PathKind::Forwarded, true);
    follower.run(Duration::from_millis(100));
    assert_eq!(follower.selected(), forward());

    let mut leader = World::new(|now| PathSelection::on(now, direct(1), PathKind::Direct, 30 * MILLISECOND));
    leader.works(direct(1), 30);
    leader.works(forward(), 60);
    leader.selection.on_check(leader.now, forward(), PathKind::Forwarded, true);
    leader.run(Duration::from_secs(5));
    assert_eq!(leader.selected(), direct(1), "its own checks say that it works");
}

#[test]
fn a_path_that_is_gone_is_replaced_at_once_and_a_full_list_makes_room_for_relays() {
    let mut world = World::new(|now| PathSelection::on(now, forward(), PathKind::Forwarded, 10 * MILLISECOND));
    world.works(direct(1), 10);
    for host in 1..=100 {
        world.selection.add(world.now, direct(host), PathKind::Punched);
    }
    assert_eq!(world.selection.paths().count(), PATHS_PER_PEER);
    let turn = Path { via: Via::Turn { allocation: 0 }, remote: direct(1).remote };
    assert!(world.selection.add(world.now, turn, PathKind::TurnTls));
    assert_eq!(world.selection.paths().count(), PATHS_PER_PEER);
    world.run(5 * MILLISECOND);
    world.works(turn, 20);
    world.run(Duration::from_secs(5));
    let selected = world.selected();
    world.selection.remove(world.now, &selected);
    assert_ne!(world.selection.selected().map(|(path, _)| path), Some(selected));
}

#[test]
fn the_end_of_the_only_path_is_told_and_the_next_one_that_answers_is_used() {
    let mut world = World::new(|now| PathSelection::on(now, forward(), PathKind::Forwarded, 10 * MILLISECOND));
    world.works(forward(), 10);
    world.run(Duration::from_secs(1));
    world.selection.remove(world.now, &forward());
    assert!(world.selection.is_in_doubt() && world.selection.selected().is_none());
    world.run(Duration::from_secs(60));
    assert_eq!(world.events, [(Duration::from_secs(1), PathEvent::Lost)], "once, and at once");
    world.works(direct(1), 50);
    world.selection.add(world.now, direct(1), PathKind::Punched);
    world.run(51 * MILLISECOND);
    assert_eq!(world.selected(), direct(1));
    assert!(!world.selection.is_in_doubt());
    world.selection.remove(world.now, &direct(1));
    world.run(MILLISECOND);
    assert_eq!(
        world.events.iter().filter(|(_, event)| *event == PathEvent::Lost).count(),
        2,
        "and the next time again"
    );
}

#[test]
fn paths_that_are_asked_no_more_make_room_for_new_ones_but_not_the_one_in_use() {
    let mut world = World::new(|now| PathSelection::on(now, forward(), PathKind::Forwarded, 10 * MILLISECOND));
    for host in 1..=100 {
        world.selection.add(world.now, direct(host), PathKind::Punched);
    }
    assert!(!world.selection.add(world.now, direct(101), PathKind::Punched));
    world.run(Duration::from_secs(1200));
    assert_eq!(world.selection.poll_timeout(), None, "nobody is asked any more");
    world.works(direct(101), 10);
    let added = (101..=200).filter(|host| world.selection.add(world.now, direct(*host), PathKind::Punched)).count();
    assert_eq!(added, PATHS_PER_PEER - 1);
    assert_eq!(world.selected(), forward());
    assert_eq!(world.selection.paths().count(), PATHS_PER_PEER);
    world.run(Duration::from_secs(5));
    assert_eq!(world.selected(), direct(101));
}

#[test]
fn a_timed_punch_asks_what_never_answered_at_its_moment_and_leaves_the_rest_alone() {
    let mut world = World::new(|now| PathSelection::on(now, forward(), PathKind::Forwarded, 10 * MILLISECOND));
    world.works(forward(), 10);
    world.selection.add(world.now, direct(1), PathKind::Punched);
    // The round is over: the next one would be half a minute later.
    world.run(Duration::from_secs(10));
    let before = world.sent[&direct(1)];
    world.selection.punch(world.now + 100 * MILLISECOND);
    world.works(direct(1), 20);
    world.run(99 * MILLISECOND);
    assert_eq!(world.sent[&direct(1)], before);
    world.run(50 * MILLISECOND);
    assert_eq!(world.selected(), direct(1));
}

#[test]
fn the_peer_hears_which_path_is_in_use_although_another_check_was_under_way_when_it_was_chosen() {
    let start = Instant::now();
    let mut selection = PathSelection::on(start, direct(1), PathKind::Direct, 20 * MILLISECOND);
    selection.set_datagram_bytes(1200);
    selection.add(start, forward(), PathKind::Forwarded);
    let small = std::iter::from_fn(|| selection.poll_check(start)).find(|check| check.path == forward()).unwrap();
    selection.on_answer(start + 20 * MILLISECOND, forward(), small.number);
    let now = start + 20 * MILLISECOND;
    let padded = std::iter::from_fn(|| selection.poll_check(now)).find(|check| check.path == forward()).unwrap();
    assert!(padded.padded_to > 0 && !padded.selected);
    selection.remove(now, &direct(1));
    assert_eq!(selection.selected().unwrap().0, forward());
    assert!(selection.poll_check(now).is_none(), "one at a time");
    selection.on_answer(now + 20 * MILLISECOND, forward(), padded.number);
    assert!(selection.poll_check(now + 20 * MILLISECOND).is_some_and(|check| check.selected));
}
