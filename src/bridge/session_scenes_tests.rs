//! Single scenes, word by word.

use super::*;

#[test]
fn heads_are_compared_once_after_connecting_by_asking_for_them_again() {
    let mut ours = ours_with(3);
    let me = author(0).peer_id();
    assert_eq!(met(&mut ours, [(me, 2)].into()), [(me, 1)].into(), "the Node sends its head at height 2");
    ours.hear(Message::Done);
    assert_eq!(met(&mut ours, [(me, 2)].into()), [(me, 2)].into(), "in good order: no need");
    ours.session.on_lost();
    assert_eq!(met(&mut ours, [(me, 0)].into()), [(me, 1)].into());
    ours.session.on_lost();
    assert_eq!(met(&mut ours, [(me, 0)].into()), Heights::new(), "the Node is at height 0: it sends its first");
}

#[test]
fn nothing_is_wanted_of_an_author_whose_log_cannot_be_followed() {
    let mut ours = ours_with(1);
    ours.session.authors.leave_out(author(7).peer_id()).unwrap();
    let told = met(&mut ours, [(author(7).peer_id(), 5)].into());
    assert_eq!(told.get(&author(7).peer_id()), Some(&SeqNum::MAX));
}

/// What is sent until there is nothing more to say, the last message included.
fn said(ours: &mut Ours) -> Vec<Message> {
    std::iter::from_fn(|| ours.say(9)).collect()
}

fn operations(messages: &[Message]) -> usize {
    messages.iter().filter(|message| matches!(message, Message::Operation(_) | Message::Live(_))).count()
}

#[test]
fn a_node_that_stores_nothing_is_not_flooded() {
    let mut ours = ours_with(10 * LIMIT);
    let mut sent = 0;
    for round in 0..BRIDGE_STALLED_ROUNDS {
        met(&mut ours, Heights::new());
        ours.hear(Message::Done);
        sent += operations(&said(&mut ours));
        assert_eq!(ours.waits(), Some(Why::Waits(round)), "asked for its heights later and later");
        ours.session.end();
        assert_eq!(said(&mut ours), [Message::Close]);
    }
    assert_eq!(sent, LIMIT, "and what is in flight is not sent again, until it is taken for lost");
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    assert_eq!(operations(&said(&mut ours)), LIMIT / 2, "the others need room");
    assert!(ours.session.reasons().eq([Why::Stuck(0)]));
}

#[test]
fn nothing_follows_what_may_be_lost() {
    let mut ours = ours_with(2);
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    assert_eq!(operations(&said(&mut ours)), 2);
    ours.session.end();
    said(&mut ours);
    let another = ours.logs.sign(&author(1), b"another author's");
    let next = ours.logs.sign(&author(0), b"the next");
    [another, next].into_iter().for_each(|operation| ours.store(operation));
    // The Node has stored none of them: if it never will, a third one would be refused.
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    let later = ours.logs.sign(&author(0), b"live");
    ours.store(later);
    assert_eq!(operations(&said(&mut ours)), 1, "only the other author's");
    assert_eq!(ours.waits(), Some(Why::Waits(1)));
    ours.session.end();
    said(&mut ours);
    met(&mut ours, [(author(0).peer_id(), 1), (author(1).peer_id(), 0)].into());
    ours.hear(Message::Done);
    assert_eq!(operations(&said(&mut ours)), 2);
}

#[test]
fn a_node_that_passes_on_what_it_may_lack_the_beginning_of_is_asked_for_its_heights() {
    let mut ours = ours_with(0);
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    said(&mut ours);
    let mut bobs = Logs::default();
    for _ in 0..3 {
        let operation = bobs.sign(&author(1), b"x");
        bobs.add(operation);
    }
    let log = &bobs.0[&author(1).peer_id()];
    ours.hear(Message::Live((&log[0]).into()));
    assert_eq!(ours.waits(), None);
    // The second came here from a peer, and the Node passes on the third.
    ours.store(log[1].clone());
    ours.hear(Message::Live((&log[2]).into()));
    assert_eq!(ours.waits(), Some(Why::Gap(0)));
}

#[test]
fn a_session_is_not_ended_before_the_node_is_done() {
    let mut ours = ours_with(5 * LIMIT);
    met(&mut ours, Heights::new());
    assert_eq!(operations(&said(&mut ours)), LIMIT);
    assert_eq!(ours.session.reasons().next(), None, "although the Node lacks more");
    ours.session.end();
    ours.session.verify();
    assert_eq!(said(&mut ours), []);
    ours.hear(Message::Done);
    assert_eq!(ours.waits(), Some(Why::Waits(0)));
    ours.session.end();
    assert_eq!(said(&mut ours), [Message::Close]);
}

#[test]
fn the_own_head_is_compared_whenever_some_of_the_own_log_was_in_flight() {
    let mut ours = ours_with(3);
    let me = author(0).peer_id();
    for (theirs, told) in [(0, 1), (2, 1), (2, 2)] {
        assert_eq!(met(&mut ours, [(me, theirs)].into()), [(me, told)].into());
        ours.hear(Message::Done);
        said(&mut ours);
        ours.session.verify();
        said(&mut ours);
    }
}

#[test]
fn no_more_is_in_flight_than_may_be_and_what_is_stuck_leaves_room_for_the_others() {
    let mut ours = ours_with(10 * LIMIT);
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    said(&mut ours);
    ours.session.verify();
    said(&mut ours);
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    assert_eq!(operations(&said(&mut ours)), LIMIT / 2, "offered again");
    for number in 0..2 {
        for _ in 0..3 * LIMIT {
            let operation = ours.logs.sign(&author(number), b"live");
            ours.store(operation);
        }
    }
    let live = said(&mut ours);
    assert_eq!(operations(&live), LIMIT - LIMIT / 2);
    for message in live {
        let Message::Live(raw) = message else { panic!("{message:?}") };
        assert_eq!(decoded(raw).author(), author(1).peer_id(), "nothing more of who is stuck");
    }
    assert_eq!(ours.waits(), Some(Why::Waits(0)));
}

#[test]
fn the_more_often_all_has_arrived_the_later_it_is_asked_for_until_something_is_lost() {
    let mut ours = ours_with(0);
    let me = author(0).peer_id();
    let mut theirs = Heights::new();
    for round in 0..5 {
        met(&mut ours, theirs.clone());
        ours.hear(Message::Done);
        let operation = ours.logs.sign(&author(0), b"x");
        ours.store(operation);
        said(&mut ours);
        let mut reasons: Vec<_> = ours.session.reasons().collect();
        assert_eq!(reasons.pop(), Some(Why::Verify(round)));
        ours.session.verify();
        said(&mut ours);
        theirs = [(me, round)].into();
    }
    ours.session.on_lost();
    met(&mut ours, [(me, 3)].into());
    ours.hear(Message::Done);
    said(&mut ours);
    assert!(ours.session.reasons().eq([Why::Verify(0)]));
}

#[test]
fn what_heights_promise_and_never_comes_is_left_out() {
    let mut ours = ours_with(0);
    let bob = author(1).peer_id();
    for _ in 0..BRIDGE_SAME_GAP {
        assert_eq!(met(&mut ours, [(bob, 5)].into()), Heights::new());
        ours.session.on_all_here(|_| None);
        ours.hear(Message::Done);
        said(&mut ours);
        ours.session.end();
        said(&mut ours);
    }
    assert_eq!(met(&mut ours, [(bob, 5)].into()), [(bob, SeqNum::MAX)].into());
}

#[test]
fn a_log_that_is_not_wanted_is_offered_and_a_forked_one_is_not() {
    for (forked, sent) in [(false, 3), (true, 0)] {
        let mut ours = ours_with(3);
        let me = author(0).peer_id();
        match forked {
            true => ours.session.authors.on_fork(me).unwrap(),
            false => _ = ours.session.authors.leave_out(me).unwrap(),
        }
        assert_eq!(met(&mut ours, Heights::new()), [(me, SeqNum::MAX)].into());
        assert_eq!(operations(&said(&mut ours)), sent);
    }
}

#[test]
fn authors_that_a_node_makes_up_take_no_memory_without_end() {
    let mut ours = ours_with(0);
    met(&mut ours, Heights::new());
    ours.hear(Message::Done);
    for number in 0..10_000_u32 {
        let mut seed = [3; 32];
        seed[..4].copy_from_slice(&number.to_be_bytes());
        ours.session.on_theirs(Identity::from_seed(&seed).peer_id(), 9);
    }
    assert_eq!(ours.session.counts.len(), SESSION_MAX_AUTHORS);
}

#[test]
fn a_node_that_speaks_out_of_turn_is_told_apart() {
    let operation = || RawOperation::from(&Logs::default().sign(&author(0), b"x"));
    let out_of_turn: [(&[Message], Message); 8] = [
        (&[], Message::Done),
        (&[], Message::Live(operation())),
        (&[], Message::Close),
        (&[Message::Have(Heights::new())], Message::Have(Heights::new())),
        (&[Message::Have(Heights::new())], Message::Operation(operation())),
        (&[Message::Have(Heights::new())], Message::Live(operation())),
        (&[Message::Have(Heights::new()), Message::Done], Message::Operation(operation())),
        (&[Message::Have(Heights::new()), Message::Done], Message::PreSync { operations: 1, bytes: 1 }),
    ];
    for (before, message) in out_of_turn {
        let mut session = Session::new(author(0).peer_id(), LIMIT);
        session.begin(Heads::new(), 0);
        before.iter().for_each(|message| _ = session.hear(message.clone()).unwrap());
        assert!(session.hear(message.clone()).is_err(), "{message:?} after {before:?}");
    }
}
