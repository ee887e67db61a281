//! The walk of discovery, by itself: whom it visits when, and whom it gives up.

use super::*;
use crate::identity::Identity;
use rand::SeedableRng;

fn peer(number: u16) -> PeerId {
    let mut seed = [3; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    Identity::from_seed(&seed).peer_id()
}

fn walk(seed: u64, peers: u16) -> (Walk, Instant) {
    let now = Instant::now();
    let mut walk = Walk::new(ChaCha8Rng::seed_from_u64(seed), now);
    (0..peers).for_each(|number| {
        assert!(walk.add(peer(number), if number == 0 { Origin::User } else { Origin::Itself }, now))
    });
    (walk, now)
}

/// Visits that are made until `end`, each answered at once.
fn visits(walk: &mut Walk, mut now: Instant, end: Instant) -> Vec<(Instant, PeerId)> {
    let mut visits = Vec::new();
    loop {
        while let Some(peer) = walk.next(now) {
            walk.on_visited(&peer, now);
            visits.push((now, peer));
        }
        match walk.poll_timeout() {
            Some((at, _)) if at < end => now = at.max(now + Duration::from_micros(1)),
            _ => return visits,
        }
    }
}

#[test]
fn everybody_is_visited_once_within_seconds_and_then_less_and_less() {
    let (mut walk, start) = walk(1, 50);
    let hour = Duration::from_secs(3600);
    let visits = visits(&mut walk, start, start + 8 * hour);
    let within = |from: Duration, until: Duration| {
        let visits = visits.iter().filter(|(at, _)| *at >= start + from && *at < start + until);
        visits.map(|(_, peer)| *peer).collect::<Vec<_>>()
    };
    let soon: std::collections::BTreeSet<_> = within(Duration::ZERO, 50 * QUICK).into_iter().collect();
    assert_eq!(soon.len(), 50);
    let last_hour = within(7 * hour, 8 * hour).len();
    assert!((4..=9).contains(&last_hour), "{last_hour} visits in the last hour");
}

#[test]
fn news_and_new_documents_make_it_quick_again() {
    let (mut walk, start) = walk(2, 20);
    let later = start + Duration::from_secs(7200);
    visits(&mut walk, start, later);
    walk.ask_all_again(later);
    let again: std::collections::BTreeSet<_> = visits(&mut walk, later, later + DISCOVERY_RUN_INTERVAL + 20 * QUICK)
        .into_iter()
        .map(|(_, peer)| peer)
        .collect();
    assert_eq!(again.len(), 20, "everybody is asked about a new document");
    let latest = later + Duration::from_secs(7200);
    visits(&mut walk, later, latest);
    assert!(walk.add(peer(99), Origin::Peer(peer(3)), latest));
    let met = visits(&mut walk, latest, latest + Duration::from_secs(1));
    assert!(met.iter().any(|(_, met)| *met == peer(99)), "who is new is visited at once");
    assert!(walk.poll_timeout().unwrap().0 <= latest + Duration::from_secs(1) + DISCOVERY_RUN_INTERVAL);
}

#[test]
fn no_more_visits_at_once_than_allowed_and_no_peer_twice_at_once() {
    let (mut walk, start) = walk(3, 20);
    let mut running = Vec::new();
    let mut now = start;
    (0..10).for_each(|number| walk.on_met(&peer(number), now));
    now += DISCOVERY_RUN_INTERVAL;
    for _ in 0..100 {
        running.extend(walk.next(now));
        now += QUICK;
    }
    assert_eq!(running.len(), DISCOVERY_VISITS);
    assert_eq!(walk.poll_timeout(), None);
    running.sort_unstable();
    running.dedup();
    assert_eq!(running.len(), DISCOVERY_VISITS);
    walk.on_failed(&running[0], Failure::Unreached, now);
    assert!(walk.next(now + AGAIN.1).is_some());
}

#[test]
fn who_does_not_answer_is_tried_less_and_less_and_then_given_up_unless_the_user_named_it() {
    let (mut walk, start) = walk(4, 3);
    let ids = [0, 1, 2].map(peer);
    let (mut now, mut tries) = (start, BTreeMap::<PeerId, Vec<Instant>>::new());
    while let Some((at, _)) = walk.poll_timeout().filter(|(at, _)| *at < start + Duration::from_secs(100_000)) {
        now = now.max(at);
        while let Some(peer) = walk.next(now) {
            tries.entry(peer).or_default().push(now);
            match peer == ids[2] {
                true => walk.on_visited(&peer, now),
                false => _ = walk.on_failed(&peer, Failure::Unreached, now),
            }
        }
    }
    let (named, other) = (&tries[&peer(0)], &tries[&peer(1)]);
    assert_eq!(other.len(), BOOK_STALE_FAILURES as usize);
    let last = named[named.len() - 1] - named[named.len() - 2];
    assert!(last >= Duration::from_secs(2800) && named.len() > 20, "{last:?}, {}", named.len());
    walk.retry_all(now);
    let next = [walk.next(now + AGAIN.1), walk.next(now + AGAIN.1)];
    assert!(next.contains(&Some(peer(0))), "after a change of the network at once");
}

#[test]
fn ten_thousand_identities_are_not_more_than_the_walk_holds() {
    let (mut walk, now) = walk(5, 1);
    let added = (1..=10_000).filter(|number| walk.add(peer(*number), Origin::Peer(peer(number % 100)), now)).count();
    assert_eq!((added, walk.len()), (WALK_PEERS - 1, WALK_PEERS));
    assert!(walk.add(peer(20_000), Origin::User, now), "who is named by the user is known all the same");
}

#[test]
fn the_walk_takes_the_same_way_with_the_same_seed_and_another_with_another() {
    let way = |seed| {
        let (mut walk, start) = walk(seed, 30);
        visits(&mut walk, start, start + Duration::from_secs(60)).into_iter().map(|(_, peer)| peer).collect::<Vec<_>>()
    };
    assert_eq!(way(6), way(6));
    assert_ne!(way(6), way(7));
}

#[test]
fn only_who_answered_or_was_named_by_the_user_is_named_to_others() {
    let (mut walk, now) = walk(8, 10);
    assert_eq!(walk.sample(64, &peer(9)), [peer(0)]);
    (1..4).for_each(|number| walk.on_met(&peer(number), now));
    walk.on_met(&peer(9), now);
    let mut sample = walk.sample(64, &peer(9));
    sample.sort_unstable();
    let mut expected: Vec<_> = (0..4).map(peer).collect();
    expected.sort_unstable();
    assert_eq!(sample, expected);
    assert_eq!(walk.sample(2, &peer(9)).len(), 2);
}

/// Visits until `end`; these peers answer at once, the others after ten seconds in vain.
fn visits_to(
    walk: &mut Walk,
    mut now: Instant,
    end: Instant,
    answers: &dyn Fn(&PeerId) -> bool,
) -> Vec<(Instant, PeerId)> {
    let (mut visits, mut running) = (Vec::new(), std::collections::VecDeque::<(Instant, PeerId)>::new());
    while now < end {
        while running.front().is_some_and(|(until, _)| *until <= now) {
            let (_, peer) = running.pop_front().unwrap();
            walk.on_failed(&peer, Failure::Unreached, now);
        }
        while let Some(peer) = walk.next(now) {
            visits.push((now, peer));
            match answers(&peer) {
                true => walk.on_visited(&peer, now),
                false => running.push_back((now + Duration::from_secs(10), peer)),
            }
        }
        let next = walk.poll_timeout().map(|(at, _)| at).into_iter().chain(running.front().map(|(until, _)| *until));
        now = next.min().unwrap_or(end).max(now + Duration::from_micros(1));
    }
    running.iter().for_each(|(_, peer)| _ = walk.on_failed(peer, Failure::Unreached, end));
    visits
}

#[test]
fn made_up_peers_take_half_of_the_visits_and_the_others_are_met_as_before() {
    let (mut walk, start) = walk(9, 5);
    (0..5).for_each(|number| walk.on_met(&peer(number), start));
    let real: BTreeSet<_> = (0..5).chain([60_000]).map(peer).collect();
    let made_up: Vec<_> = (100..1_300).map(peer).collect();
    let (mut now, mut all) = (start, Vec::new());
    // One of the peers names new ones whenever it is asked, for an hour.
    while now < start + Duration::from_secs(3600) {
        made_up.iter().for_each(|named| _ = walk.add(*named, Origin::Peer(peer(4)), now));
        assert!(walk.len() <= 6 + WALK_NAMED);
        let end = now + Duration::from_secs(60);
        all.extend(visits_to(&mut walk, now, end, &|peer| real.contains(peer)));
        now = end;
    }
    let fruitless = all.iter().filter(|(_, peer)| !real.contains(peer)).count();
    assert!(fruitless <= 2 * 360 + 120, "{fruitless} of {} visits", all.len());
    let known = all.iter().filter(|(_, peer)| real.contains(peer)).count();
    assert!(
        (8..100).contains(&known),
        "what is not there makes nobody ask those that are there faster: {known} visits"
    );
    // Somebody real is visited soon, also when the walk is full.
    for namer in 10..100 {
        made_up.iter().for_each(|named| _ = walk.add(*named, Origin::Peer(peer(namer)), now));
    }
    assert_eq!(walk.len(), WALK_PEERS);
    visits_to(&mut walk, now, now + Duration::from_secs(60), &|peer| real.contains(peer));
    now += Duration::from_secs(60);
    assert!(walk.add(peer(60_000), Origin::Peer(peer(3)), now), "one that did not answer makes room");
    let soon = visits_to(&mut walk, now, now + Duration::from_secs(3 * 3600), &|peer| real.contains(peer));
    assert!(soon.iter().any(|(_, met)| *met == peer(60_000)));
    assert!(walk.add(peer(60_001), Origin::Itself, now));
}

#[test]
fn a_node_that_was_cut_off_for_hours_gives_up_nobody_that_it_met_and_tries_all_when_it_is_back() {
    let (mut walk, start) = walk(10, 20);
    let hour = Duration::from_secs(3600);
    visits_to(&mut walk, start, start + hour, &|_| true);
    let back = start + 6 * hour;
    let meanwhile = visits_to(&mut walk, start + hour, back, &|_| false);
    assert!((100..600).contains(&meanwhile.len()), "{} visits in vain", meanwhile.len());
    assert_eq!(walk.len(), 20);
    let soon = visits_to(&mut walk, back, back + Duration::from_secs(200), &|_| true);
    let (first, _) = soon[0];
    assert!(first <= back + 2 * CUT_OFF_RETRY, "noticed after {:?}", first - back);
    // One that is really gone is given up.
    visits_to(&mut walk, back + hour, back + 100 * hour, &|id| *id != peer(7));
    assert_eq!((walk.len(), walk.knows(&peer(7))), (19, false));
}

#[test]
fn a_network_that_comes_and_goes_makes_nobody_that_was_met_be_given_up() {
    let (mut walk, start) = walk(11, 20);
    visits(&mut walk, start, start + Duration::from_secs(60));
    let mut now = start + Duration::from_secs(60);
    for _ in 0..20 {
        walk.retry_all(now);
        visits_to(&mut walk, now, now + Duration::from_secs(60), &|_| false);
        now += Duration::from_secs(60);
        walk.retry_all(now);
        visits_to(&mut walk, now, now + Duration::from_secs(60), &|_| true);
        now += Duration::from_secs(60);
    }
    assert_eq!(walk.len(), 20);
}
