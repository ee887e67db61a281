//! What a server refuses, forgets, or says without a signature, and how an allocation ends.

use super::*;

#[test]
fn a_stale_nonce_costs_a_round_trip_and_nothing_else() {
    let mut world = World::ready();
    for _ in 0..20 {
        world.server.nonce += 1;
        world.pass(100 * SECOND);
    }
    assert!(world.events.is_empty(), "{:?}", world.events);
    assert!(world.turn.is_ready(peer()));
}

#[test]
fn a_server_whose_nonce_is_always_stale_is_given_up() {
    let mut world = World::over_udp();
    let nonces = |turn: &mut Allocation, now| {
        let mut asked = 0;
        while let Some(frame) = turn.poll_transmit() {
            asked += 1;
            let request = Scanned::scan(&frame).unwrap();
            let code = if request.is_signed() { ErrorCode::StaleNonce } else { ErrorCode::Unauthorized };
            let response = Response::error(&request, code).with(Attribute::Realm(REALM.into()));
            let response = response.with(Attribute::Nonce(format!("{asked}"))).encode(None).unwrap();
            turn.handle_input(now, &response);
        }
        asked
    };
    assert_eq!(nonces(&mut world.turn, world.now), 4);
    world.lose = Box::new(|_| true);
    world.pass(16 * SECOND);
    assert!(matches!(world.failure().0, TurnFailure::NoAnswer { .. }));
}

#[test]
fn wrong_credentials_are_told_apart_from_silence() {
    let mut world = World::new(TurnOptions::new(TurnTransport::Udp), "wrong");
    world.settle();
    assert_eq!(world.failure(), (TurnFailure::CredentialsRefused, Some(60)));
    let mut world = World::over_udp();
    world.lose = Box::new(|_| true);
    world.pass(15800 * SECOND / 1000);
    assert_eq!(world.failure(), (TurnFailure::NoAnswer { unsigned: None }, Some(10)));
}

#[test]
fn every_refusal_of_an_allocation_has_its_outcome() {
    let outcomes = [
        (ErrorCode::Forbidden, TurnFailure::Forbidden, None),
        (ErrorCode::AddressFamilyNotSupported, TurnFailure::Unsupported(ErrorCode::AddressFamilyNotSupported), None),
        (ErrorCode::WrongCredentials, TurnFailure::CredentialsRefused, Some(60)),
        (ErrorCode::UnsupportedTransport, TurnFailure::Unsupported(ErrorCode::UnsupportedTransport), None),
        (ErrorCode::AllocationQuotaReached, TurnFailure::Busy(ErrorCode::AllocationQuotaReached), Some(60)),
        (ErrorCode::InsufficientCapacity, TurnFailure::Busy(ErrorCode::InsufficientCapacity), Some(60)),
        (ErrorCode::ServerError, TurnFailure::Refused(ErrorCode::ServerError), Some(60)),
    ];
    for (code, why, retry) in outcomes {
        let mut world = World::over_udp();
        world.server.refuse = vec![(Method::Allocate, code)];
        world.settle();
        assert_eq!(world.failure(), (why, retry));
        world.pass(61 * SECOND);
        assert_eq!(world.relayed_address().is_some(), retry.is_some());
        world.turn.allocate(world.now);
        world.settle();
        assert!(world.relayed_address().is_some(), "it was told to try again");
    }
}

#[test]
fn an_allocation_of_our_past_is_deleted_and_a_new_one_made() {
    let mut world = World::over_udp();
    world.server.allocation = Some(world.now + 600 * SECOND);
    world.settle();
    assert_eq!(world.failure(), (TurnFailure::AddressInUse, Some(1)));
    world.pass(SECOND);
    assert!(world.relayed_address().is_some());
}

#[test]
fn a_server_that_forgets_the_allocation_gives_a_new_one_with_all_peers() {
    let mut world = World::ready();
    (world.server.allocation, world.server.permissions, world.server.channels) = Default::default();
    world.pass(250 * SECOND);
    assert_eq!(world.failure().0, TurnFailure::Lost);
    assert!(world.turn.is_ready(peer()));
    let frame = world.turn.send(peer(), b"x").unwrap().to_vec();
    world.server.handle(world.now, &frame);
}

/// An hour with a peer, over this transport, at a server that no longer takes the name after so many seconds, and the
/// failure with its time. We believe that the name is good for 3,600 s.
fn expiring(transport: TurnTransport, refused_s: u32) -> (World, Option<(TurnFailure, Duration)>) {
    let start = Instant::now();
    let mut world = World::new(TurnOptions::new(transport).with_credentials_until(start + 3600 * SECOND), "secret");
    world.settle();
    world.turn.add_peer(world.now, peer());
    world.settle();
    world.events.clear();
    world.server.expires_names = Some(world.start + refused_s * SECOND);
    let mut failed = None;
    while failed.is_none() && world.now < world.start + 4800 * SECOND {
        world.pass(SECOND);
        failed = world.events.iter().find_map(|event| match event {
            TurnEvent::Failed { why, .. } => Some((*why, world.now - world.start)),
            _ => None,
        });
    }
    (world, failed)
}

#[test]
fn a_stream_whose_credentials_have_expired_is_given_up_with_the_first_refusal() {
    // The server's clock is right, or ten minutes ahead: nobody is believed before the time.
    for refused_s in [3600, 3400] {
        let (world, failed) = expiring(TurnTransport::Tls, refused_s);
        let (why, at) = failed.expect("it is given up");
        let after = world.server.expired.iter().map(|at| *at - world.start).find(|at| *at >= 3600 * SECOND);
        println!("refused from {refused_s} s on: given up after {at:?}");
        assert_eq!(why, TurnFailure::CredentialsRefused);
        assert!(after.is_some_and(|first| (first..=first + SECOND).contains(&at)), "{at:?}, refused at {after:?}");
    }
}

#[test]
fn over_udp_expired_credentials_end_nothing_before_the_allocation_does() {
    let (_, failed) = expiring(TurnTransport::Udp, 3600);
    assert!(matches!(failed, Some((TurnFailure::Lost, _))), "{failed:?}");
}

#[test]
fn wrong_credentials_for_a_refresh_end_a_stream_once_they_have_expired() {
    for (asked_s, given_up) in [(3000, false), (3700, true)] {
        let start = Instant::now();
        let options = TurnOptions::new(TurnTransport::Tcp).with_credentials_until(start + 3600 * SECOND);
        let mut world = World::new(options, "secret");
        world.pass(asked_s * SECOND);
        world.events.clear();
        world.server.refuse = vec![(Method::Refresh, ErrorCode::WrongCredentials)];
        world.pass(550 * SECOND);
        let failed =
            |event: &TurnEvent| matches!(event, TurnEvent::Failed { why: TurnFailure::CredentialsRefused, .. });
        assert_eq!(world.events.iter().any(failed), given_up, "{:?}", world.events);
    }
}

#[test]
fn a_refused_refresh_costs_a_peer_nothing_while_its_permission_lives() {
    let codes = [ErrorCode::WrongCredentials, ErrorCode::AllocationQuotaReached, ErrorCode::InsufficientCapacity];
    for code in codes.into_iter().chain([ErrorCode::ServerError]) {
        let mut world = World::ready();
        // Until the refresh of the permission has been refused.
        world.server.refuse = vec![(Method::CreatePermission, code)];
        for _ in 0..260 {
            world.pass(SECOND);
            let frame = world.turn.send(peer(), b"x").expect("the server still lets it through").to_vec();
            world.server.handle(world.now, &frame);
        }
        assert!(world.server.refuse.is_empty(), "it was refused");
        assert_eq!(world.seconds(Method::CreatePermission)[1..], [240, 250]);
    }
}

#[test]
fn an_allocation_that_cannot_be_refreshed_expires() {
    let mut world = World::ready();
    world.lose = Box::new(|_| true);
    world.pass(599 * SECOND);
    assert!(world.relayed_address().is_some());
    world.pass(2 * SECOND);
    assert_eq!(world.failure().0, TurnFailure::Lost);
    assert_eq!((world.relayed_address(), world.turn.send(peer(), b"x")), (None, None));
}

#[test]
fn a_refused_peer_is_told_and_the_others_go_on() {
    let mut world = World::ready();
    let other = address("10.0.0.1:1");
    let code = ErrorCode::Forbidden;
    world.server.refuse = vec![(Method::CreatePermission, code), (Method::ChannelBind, code)];
    world.turn.add_peer(world.now, other);
    world.settle();
    assert_eq!(world.events, [TurnEvent::PeerRefused { peer: other, code }]);
    assert_eq!(world.turn.send(other, b"x"), None);
    assert!(world.turn.send(peer(), b"x").is_some());
    let requests = world.server.log.len();
    world.pass(200 * SECOND);
    assert_eq!(world.server.log.len(), requests, "it is not asked for again");
}

#[test]
fn releasing_deletes_the_allocation_at_the_server() {
    let mut world = World::ready();
    world.turn.release(world.now);
    world.settle();
    assert_eq!(world.events, [TurnEvent::Released]);
    assert_eq!((world.server.allocation, world.relayed_address()), (None, None));
    assert_eq!(world.turn.poll_timeout(), None);
}

#[test]
fn when_the_stream_ends_the_allocation_is_gone_until_asked_for_again() {
    let mut world = World::ready();
    world.turn.on_transport_lost();
    world.settle();
    assert_eq!(world.failure(), (TurnFailure::TransportLost, None));
    world.server.allocation = None;
    world.server.channels.clear();
    world.turn.allocate(world.now);
    world.settle();
    assert!(world.turn.is_ready(peer()));
}

#[test]
fn peers_and_requests_are_bounded_and_all_peers_are_served() {
    let mut world = World::over_udp();
    world.settle();
    let peer = |number: usize| SocketAddr::from(([198, 51, 100, number as u8], 4000));
    assert!((0..TURN_MAX_PEERS).all(|number| world.turn.add_peer(world.now, peer(number))));
    assert!(!world.turn.add_peer(world.now, peer(200)));
    assert_eq!(world.turn.under_way_mut().len(), TURN_MAX_TRANSACTIONS);
    world.lose = Box::new(|packet| packet % 3 == 0);
    world.pass(60 * SECOND);
    assert!(
        (0..TURN_MAX_PEERS).all(|number| world.turn.send(peer(number), b"x").is_some_and(|frame| frame.len() == 5))
    );
}

#[test]
fn an_error_without_a_signature_is_a_hint_at_most() {
    let mut world = World::over_udp();
    world.settle();
    let mut world = World { turn: world.turn, ..World::ready() };
    world.turn.on_transport_lost();
    world.turn.allocate(world.now);
    world.events.clear();
    let frame = world.turn.poll_transmit().unwrap();
    let request = Scanned::scan(&frame).unwrap();
    assert!(request.is_signed());
    let forged = Response::error(&request, ErrorCode::Forbidden);
    for key in [None, Some(IntegrityKey::short_term(b"wrong"))] {
        let forged = forged.encode(key.as_ref()).unwrap();
        assert_eq!(world.turn.handle_input(world.now, &forged), TurnInput::Ignored);
    }
    world.lose = Box::new(|_| true);
    while world.turn.poll_event().is_some() {}
    world.pass(16 * SECOND);
    assert_eq!(world.failure().0, TurnFailure::NoAnswer { unsigned: Some(ErrorCode::Forbidden) });
}

proptest! {
    #[test]
    fn a_response_with_any_change_does_nothing(at in 0usize..2000, change in 1u8..) {
        let mut world = World::over_udp();
        // The challenge, then the response to the signed request.
        let first = world.turn.poll_transmit().unwrap();
        let challenge = world.server.handle(world.now, &first).unwrap();
        world.turn.handle_input(world.now, &challenge);
        let second = world.turn.poll_transmit().unwrap();
        let mut response = world.server.handle(world.now, &second).unwrap();
        // All but FINGERPRINT is signed.
        let at = at % (response.len() - 8);
        response[at] ^= change;
        prop_assert_eq!(world.turn.handle_input(world.now, &response), TurnInput::Ignored);
        prop_assert_eq!((world.relayed_address(), world.turn.poll_event()), (None, None));
        response[at] ^= change;
        prop_assert_eq!(world.turn.handle_input(world.now, &response), TurnInput::Handled);
        prop_assert!(world.relayed_address().is_some());
    }

    #[test]
    fn whatever_is_lost_payloads_go_when_the_machine_says_so_and_in_the_end_they_do(
        lost in prop::collection::vec(prop::bool::weighted(0.4), 400),
        steps in prop::collection::vec((0u8..6, 1u32..200), 1..40),
    ) {
        let mut world = World::over_udp();
        let other = address("198.51.100.7:5000");
        world.lose = Box::new(move |packet| lost.get(packet).copied().unwrap_or(false));
        for (step, seconds) in steps {
            match step {
                0 => _ = world.turn.add_peer(world.now, peer()),
                1 => _ = world.turn.add_peer(world.now, other),
                2 => world.turn.remove_peer(other),
                3 => world.server.nonce += 1,
                4 => (world.server.allocation, world.server.permissions, world.server.channels) = Default::default(),
                _ => {}
            }
            world.pass(SECOND * seconds);
            // The server's assertions hold whenever it has what the machine believes it has.
            let intact = world.server.allocation.is_some() && !world.server.channels.is_empty();
            for peer in [peer(), other] {
                if let Some(frame) = world.turn.send(peer, b"x").map(<[u8]>::to_vec).filter(|_| intact) {
                    let bound = parse_channel_data(&frame).is_none_or(|(number, _)| world.server.channels.contains_key(&number));
                    if bound && world.server.permissions.contains_key(&peer.ip()) {
                        world.server.handle(world.now, &frame);
                    }
                }
            }
        }
        world.lose = Box::new(|_| false);
        world.turn.add_peer(world.now, peer());
        world.pass(700 * SECOND);
        let frame = world.turn.send(peer(), b"the end").map(<[u8]>::to_vec);
        prop_assert!(frame.is_some());
        world.server.handle(world.now, &frame.unwrap());
        prop_assert_eq!(world.server.relayed.last(), Some(&(peer(), b"the end".to_vec())));
    }
}
