//! The table of routes: who may settle, move and take over what.

use super::*;

fn real(port: u16) -> Path {
    Path::direct(SocketAddr::from(([192, 0, 2, 1], port)))
}

fn table(limit: usize) -> RouteTable {
    RouteTable::new(limit, [7; 32])
}

fn long_header(destination: &[u8], source: &[u8]) -> Vec<u8> {
    let mut packet = vec![0xc0, 0, 0, 0, 1, destination.len() as u8];
    packet.extend_from_slice(destination);
    packet.push(source.len() as u8);
    packet.extend_from_slice(source);
    packet
}

#[test]
fn a_dial_settles_on_the_candidate_that_answers_our_packet() {
    let mut table = table(8);
    let dialled = table.dial(&[real(1), real(2)])[0];
    table.on_probe(&dialled, &long_header(b"theirs", b"ours"));
    assert_eq!(table.on_receive(real(2), &long_header(b"ours", b"new")), Some(dialled));
    assert_eq!(table.route(&dialled), Some(&Route::Settled(real(2))));
    assert_ne!(table.on_receive(real(1), b"late"), Some(dialled), "the loser is a stranger again");
}

#[test]
fn a_stray_datagram_from_a_candidate_does_not_settle_a_dial() {
    let mut table = table(8);
    let dialled = table.dial(&[real(1), real(2)])[0];
    table.on_probe(&dialled, &long_header(b"theirs", b"ours"));
    for stray in [&b""[..], b"\x00\x01STUN", &long_header(b"other", b"new"), &[0xff; 40]] {
        assert_eq!(table.on_receive(real(1), stray), Some(dialled));
    }
    assert!(matches!(table.route(&dialled), Some(Route::Probing { .. })));
}

#[test]
fn a_record_that_lists_a_connected_peers_address_cannot_move_that_peers_route() {
    let mut table = table(8);
    let connected = table.on_receive(real(1), b"hello").unwrap();
    assert!(table.pin(&connected));
    let dialled = table.dial(&[real(1), real(2)]);
    assert_eq!(dialled[0], connected);
    assert_eq!(table.route(&connected), Some(&Route::Settled(real(1))));
    assert!(matches!(table.route(&dialled[1]), Some(Route::Probing { candidates, .. }) if *candidates == [real(2)]));
}

#[test]
fn a_flood_of_new_addresses_neither_grows_the_table_nor_evicts_a_connection() {
    let mut table = table(16);
    let connected = table.on_receive(real(1), b"hello").unwrap();
    assert!(table.pin(&connected));
    for port in 2..5000 {
        assert!(table.on_receive(real(port), b"garbage").is_some());
    }
    assert_eq!(table.len(), 16);
    assert!(table.order.len() <= 2 * 16 + 1 && table.by_path.len() == 16);
    assert_eq!(table.on_receive(real(1), b"hello"), Some(connected));
}

#[test]
fn a_table_full_of_connections_takes_no_stranger() {
    let mut table = table(2);
    for port in 1..=2 {
        let connected = table.on_receive(real(port), b"hello").unwrap();
        assert!(table.pin(&connected));
    }
    assert_eq!(table.on_receive(real(3), b"hello"), None);
    assert!(table.dial(&[real(3)]).is_empty());
    let held = table.on_receive(real(1), b"hello").unwrap();
    table.unpin(&held);
    assert!(table.on_receive(real(3), b"hello").is_some());
}

#[test]
fn an_address_keeps_its_virtual_address_and_a_dead_dial_leaves_nothing() {
    let mut table = table(8);
    let first = table.on_receive(real(1), b"hello").unwrap();
    assert_eq!(table.on_receive(real(1), b"again"), Some(first));
    let dialled = table.dial(&[real(2), real(3)])[0];
    table.unpin(&dialled);
    assert_eq!((table.len(), table.by_path.len()), (1, 1));
}

#[test]
fn the_same_seed_gives_the_same_virtual_addresses() {
    assert_eq!(table(8).on_receive(real(1), b""), table(8).on_receive(real(1), b""));
}

#[test]
fn a_candidate_that_becomes_known_later_gets_what_was_sent_so_far_and_may_answer() {
    let mut table = table(8);
    let dialled = table.dial(&[])[0];
    table.on_probe(&dialled, &long_header(b"theirs", b"ours"));
    let start = Instant::now();
    table.on_send(&dialled, [&long_header(b"theirs", b"ours")[..]].into_iter(), || start);
    let flight = Added::Flight(vec![long_header(b"theirs", b"ours")]);
    assert_eq!(table.add_candidate(&dialled, real(1), start + HANDSHAKE_STALE / 2), flight);
    assert_eq!(table.add_candidate(&dialled, real(1), start), Added::Nothing);
    assert_eq!(table.on_receive(real(1), &long_header(b"ours", b"new")), Some(dialled));
    assert_eq!(table.route(&dialled), Some(&Route::Settled(real(1))));
    assert_eq!(table.add_candidate(&dialled, real(2), start), Added::Nothing, "answered already");
}

#[test]
fn a_candidate_that_becomes_known_late_is_dialled_afresh_and_the_next_one_with_it() {
    let mut table = table(8);
    let dialled = table.dial(&[real(1)])[0];
    let (start, again) = (Instant::now(), Instant::now() + HANDSHAKE_STALE);
    table.on_send(&dialled, [&b"first"[..]].into_iter(), || start);
    table.on_probe(&dialled, &long_header(b"theirs", b"old"));
    assert_eq!(table.add_candidate(&dialled, real(2), again), Added::Afresh);
    assert!(table.is_given_up(&dialled, &long_header(b"theirs", b"old")), "its farewell is not sent");
    assert!(!table.is_given_up(&dialled, &long_header(b"theirs", b"new")));
    table.on_send(&dialled, [&b"second"[..]].into_iter(), || again);
    assert_eq!(table.add_candidate(&dialled, real(3), again), Added::Flight(vec![b"second".to_vec()]));
    let all = [real(1), real(2), real(3)];
    assert!(matches!(table.route(&dialled), Some(Route::Probing { candidates, .. }) if *candidates == all));
}

#[test]
fn what_a_dialler_says_after_the_answer_is_kept_until_the_handshake_is_finished() {
    let mut table = table(8);
    let dialled = table.dial(&[real(1)])[0];
    table.on_probe(&dialled, &long_header(b"theirs", b"ours"));
    table.on_send(&dialled, [&b"greeting"[..]].into_iter(), Instant::now);
    table.on_receive(real(1), &long_header(b"ours", b"new"));
    assert!(table.unheard(&dialled).is_empty());
    let said: Vec<_> = (0..10).map(|number| vec![number]).collect();
    table.on_send(&dialled, said.iter().map(|datagram| &datagram[..]), Instant::now);
    table.on_answer(&dialled);
    assert_eq!(
        table.unheard(&dialled),
        said[10 - FINISH_DATAGRAMS..],
        "an answer to a check is no end of the handshake"
    );
    table.set_finishing(&dialled, false);
    table.on_send(&dialled, [&b"more"[..]].into_iter(), Instant::now);
    assert!(table.unheard(&dialled).is_empty());
}

#[test]
fn an_acceptor_repeats_itself_only_where_the_one_who_asked_is_known() {
    let mut table = table(8);
    for (path, kept) in [(real(1), 0), (Path { via: Via::Forward { flow: 1 }, ..real(2) }, 1)] {
        let asked = table.on_receive(path, &long_header(b"ours", b"theirs")).unwrap();
        table.set_finishing(&asked, true);
        table.on_send(&asked, [&b"answer"[..]].into_iter(), Instant::now);
        assert_eq!(table.unheard(&asked).len(), kept);
        table.set_finishing(&asked, false);
        assert!(table.unheard(&asked).is_empty());
    }
}

#[test]
fn a_route_moves_between_its_paths_and_leaves_none_behind() {
    let mut table = table(8);
    let connected = table.on_receive(real(1), b"hello").unwrap();
    assert!(table.pin(&connected));
    assert!(table.attach(&connected, real(2)));
    assert_eq!(table.on_receive(real(2), b"data"), Some(connected));
    table.select(&connected, real(2));
    assert_eq!(table.route(&connected), Some(&Route::Settled(real(2))));
    assert_eq!(table.on_receive(real(1), b"late"), Some(connected), "what is on its way still arrives");
    table.unpin(&connected);
    table.forget(&connected);
    assert!(table.by_path.is_empty());
}

#[test]
fn a_path_that_another_connection_holds_is_not_taken_over() {
    let mut table = table(8);
    let (one, other) = (table.on_receive(real(1), b"").unwrap(), table.on_receive(real(2), b"").unwrap());
    assert!(table.pin(&one) && table.pin(&other));
    assert!(!table.attach(&other, real(1)));
    table.select(&other, real(1));
    assert_eq!(table.route(&other), Some(&Route::Settled(real(2))));
    assert_eq!(table.add_candidate(&other, real(1), Instant::now()), Added::Nothing);
    for port in 3..3 + 2 * PATHS_PER_PEER as u16 {
        assert!(table.attach(&one, real(port)));
    }
    assert!(table.by_path.len() <= PATHS_PER_PEER + 2, "bounded, whatever a peer proves");
}

#[test]
fn a_datagram_without_an_answer_is_noticed_and_its_watcher_told_once() {
    let mut table = table(8);
    let connected = table.on_receive(real(1), b"").unwrap();
    let (notify, now) = (Arc::new(Notify::new()), Instant::now());
    table.watch(&connected, Some(notify.clone()));
    table.on_send(&connected, [&b""[..]].into_iter(), || now);
    table.on_send(&connected, [&b""[..]].into_iter(), || unreachable!("the first one counts"));
    assert_eq!(table.watch(&connected, None).unwrap().unanswered_since, Some(now));
    table.on_receive(real(1), b"");
    assert_eq!(table.watch(&connected, None).unwrap().unanswered_since, None);
    table.on_send_error(&real(1));
    assert!(table.watch(&connected, None).unwrap().send_failed);
    assert!(!table.watch(&connected, None).unwrap().send_failed);
}

#[test]
fn what_went_out_last_while_a_path_was_in_doubt_is_kept_until_something_comes() {
    let mut table = table(8);
    let connected = table.on_receive(real(1), b"").unwrap();
    table.on_send(&connected, [&b"before"[..]].into_iter(), Instant::now);
    table.set_in_doubt(&connected, true);
    for number in 0..20_u8 {
        table.on_send(&connected, [&[number][..]].into_iter(), Instant::now);
    }
    table.set_in_doubt(&connected, false);
    assert_eq!(table.unheard(&connected), (4..20).map(|number| vec![number]).collect::<Vec<_>>());
    table.on_receive(real(1), b"");
    assert_eq!(table.unheard(&connected).len(), DOUBT_DATAGRAMS, "what comes does not say that ours was heard");
    table.on_answer(&connected);
    assert!(table.unheard(&connected).is_empty());
}
