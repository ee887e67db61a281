//! Who gets connected to whom, and who does not.

use quinn::TransportErrorCode;
use tokio::net::UdpSocket;

use super::*;
use crate::limits::SOCKET_ROUTES;
use crate::transport::CloseReason;

#[tokio::test]
async fn two_transports_connect_and_know_each_other() {
    let Pair { alice, bob, at_alice, at_bob } = pair().await;
    assert_eq!(at_alice.info().peer_id, identity(2).peer_id());
    assert_eq!(at_bob.info().peer_id, identity(1).peer_id());
    assert!(at_alice.info().dialled && !at_bob.info().dialled);
    assert_eq!(at_alice.info().remote_address, Some(address_of(&bob)));
    assert_eq!(at_bob.info().remote_address, Some(address_of(&alice)));
    assert_eq!((alice.stats().dialled, alice.stats().connections), (1, 1));
    assert_eq!((bob.stats().accepted, bob.stats().connections), (1, 1));
    assert_eq!(bob.peer_stats(&identity(1).peer_id()).unwrap().connections, 1);
    assert!(bob.stats().received_bytes > 1200);
}

#[tokio::test]
async fn a_socket_for_both_families_is_reached_over_ipv4() {
    let (alice, bob) = (start_with(1, QuicTransportOptions::new()), start_with(2, QuicTransportOptions::new()));
    let port = address_of(&bob).port();
    let record = record(2, &[(Ipv4Addr::LOCALHOST, port).into()]);
    let at_alice = alice.connect(&record, PATIENCE).await.unwrap();
    assert_eq!(at_alice.info().remote_address, Some((Ipv4Addr::LOCALHOST, port).into()));
}

#[tokio::test]
async fn another_key_than_the_expected_one_is_the_wrong_peer() {
    let (alice, bob) = (start(1), start(2));
    let refused = connect(&alice, &bob, 3).await.map(|_| ());
    assert_eq!(refused, Err(TransportError::WrongPeer));
    assert_eq!((alice.stats().failed, alice.stats().connections), (1, 0));
}

#[tokio::test]
async fn a_peer_without_a_usable_address_is_not_dialled() {
    let alice = start(1);
    for useless in
        [&[][..], &["0.0.0.0:1".parse().unwrap(), "224.0.0.1:9".parse().unwrap(), "[::1]:9".parse().unwrap()]]
    {
        let refused = alice.connect(&record(2, useless), PATIENCE).await.map(|_| ());
        assert_eq!(refused, Err(TransportError::NoAddress(TransportKind::Quic)));
    }
}

#[tokio::test]
async fn silence_ends_with_the_deadline() {
    let (alice, silent) = (start(1), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let deadline = Duration::from_millis(100);
    let refused = alice.connect(&record(2, &[silent.local_addr().unwrap()]), deadline).await.map(|_| ());
    assert_eq!(refused, Err(TransportError::Timeout(deadline)));
}

#[tokio::test]
async fn of_two_candidates_the_live_one_is_found() {
    let (alice, bob) = (start(1), start(2));
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let record = record(2, &[silent.local_addr().unwrap(), address_of(&bob)]);
    let at_alice = alice.connect(&record, PATIENCE).await.unwrap();
    assert_eq!(at_alice.info().remote_address, Some(address_of(&bob)));
    let mut first_flight = [0; 2048];
    assert!(silent.recv(&mut first_flight).await.unwrap() >= 1200, "the dead candidate was tried too");
}

#[tokio::test]
async fn a_stranger_at_one_candidate_does_not_keep_the_peer_away() {
    let (alice, bob, stranger) = (start(1), start(2), start(3));
    for candidates in [[&stranger, &bob], [&bob, &stranger]] {
        let record = record(2, &candidates.map(address_of));
        let at_alice = alice.connect(&record, PATIENCE).await.unwrap();
        assert_eq!(at_alice.info().peer_id, identity(2).peer_id());
    }
}

#[tokio::test]
async fn a_record_that_lists_another_peers_address_does_not_disturb_that_peer() {
    let Pair { alice, bob, at_alice, at_bob } = pair().await;
    let mallory = start(3);
    let record = record(3, &[address_of(&bob), address_of(&mallory)]);
    let at_mallory = alice.connect(&record, PATIENCE).await.unwrap();
    assert_eq!(at_mallory.info().remote_address, Some(address_of(&mallory)));
    at_alice.send_datagram(Bytes::from_static(b"still there")).unwrap();
    assert_eq!(at_bob.read_datagram().await.unwrap(), "still there");
    assert_eq!(at_alice.info().remote_address, Some(address_of(&bob)));
}

#[tokio::test]
async fn both_may_dial_at_once() {
    let (alice, bob) = (start(1), start(2));
    let (to_alice, to_bob) = (record(1, &[address_of(&alice)]), record(2, &[address_of(&bob)]));
    let (at_alice, at_bob) = tokio::join!(alice.connect(&to_bob, PATIENCE), bob.connect(&to_alice, PATIENCE));
    assert_eq!(at_alice.unwrap().info().peer_id, identity(2).peer_id());
    assert_eq!(at_bob.unwrap().info().peer_id, identity(1).peer_id());
    assert!(alice.accept().await.is_some() && bob.accept().await.is_some());
}

#[tokio::test]
async fn over_the_limit_peers_are_refused_and_own_dials_fail() {
    let bob = start_with(2, loopback().with_max_connections(1));
    let (alice, carol) = (start(1), start(3));
    let (_at_alice, _at_bob) = connect(&alice, &bob, 2).await.unwrap();
    let refused = carol.connect(&record(2, &[address_of(&bob)]), PATIENCE).await.map(|_| ());
    assert_eq!(refused, Err(TransportError::ClosedByPeer { code: CloseReason::TooBusy as u64 }));
    assert_eq!(bob.stats().refused, 1);
    let refused = bob.connect(&record(3, &[address_of(&carol)]), PATIENCE).await.map(|_| ());
    assert_eq!(refused, Err(TransportError::Limit { what: "connections", limit: 1 }));
}

#[tokio::test]
async fn a_burst_of_diallers_does_not_slip_past_the_limit() {
    let bob = start_with(2, loopback().with_max_connections(3));
    let mut dialling = tokio::task::JoinSet::new();
    for seed in 10..40 {
        let record = record(2, &[address_of(&bob)]);
        dialling.spawn(async move {
            let dialler = start(seed);
            let dialled = dialler.connect(&record, PATIENCE).await;
            (dialler, dialled)
        });
    }
    let dialled = dialling.join_all().await;
    assert_eq!(dialled.iter().filter(|(_, dialled)| dialled.is_ok()).count(), 3);
    assert_eq!((bob.stats().connections, bob.stats().refused), (3, 27));
}

#[tokio::test]
async fn a_crowded_peer_asks_for_proof_of_the_address_and_then_connects() {
    let (alice, bob) = (start(1), start_with(2, loopback().with_handshakes_before_retry(0)));
    connect(&alice, &bob, 2).await.unwrap();
    assert_eq!((bob.quic_stats().retried, bob.stats().accepted), (1, 1));
}

#[tokio::test]
async fn another_application_protocol_is_refused() {
    let bob = start(2);
    let mut tls = TlsIdentity::new(&identity(1)).unwrap().client().unwrap();
    tls.alpn_protocols = vec![b"panda-network/2".to_vec()];
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(quic));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let name = server_name(&identity(2).peer_id());
    let refused = endpoint.connect_with(config, address_of(&bob), &name).unwrap().await.map(|_| ()).unwrap_err();
    let quinn::ConnectionError::ConnectionClosed(close) = refused else { panic!("{refused}") };
    assert_eq!(close.error_code, TransportErrorCode::crypto(120), "no_application_protocol");
}

#[tokio::test]
async fn a_flood_of_garbage_from_many_addresses_changes_nothing() {
    let Pair { alice, bob, at_alice, at_bob } = pair().await;
    let garbage: Vec<u8> = (0..1200u32).map(|index| (index * 7 + 0xc3) as u8).collect();
    let mut sent = 0;
    while sent < 2 * SOCKET_ROUTES {
        let source = SocketAddr::from(([127, 1, (sent >> 8) as u8, sent as u8], 0));
        let socket = std::net::UdpSocket::bind(source).unwrap();
        socket.send_to(&garbage[..1 + sent % 1200], address_of(&bob)).unwrap();
        sent += 1;
        if sent % 32 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let answer = tokio::spawn(async move {
        let mut asked = at_bob.accept_request().await.unwrap();
        asked.answer.write(asked.request).await.unwrap();
        asked.answer.finish();
        at_bob
    });
    assert_eq!(at_alice.request(Bytes::from_static(b"well?"), PATIENCE).await.unwrap(), "well?");
    assert_eq!(bob.quic_stats().socket.routes, SOCKET_ROUTES, "the flood arrived, and filled the table but no more");
    let carol = start(3);
    connect(&carol, &bob, 2).await.unwrap();
    answer.await.unwrap();
    drop(alice);
}

#[tokio::test]
async fn a_dropped_dial_leaves_nothing_behind() {
    let (alice, silent) = (start(1), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let record = record(2, &[silent.local_addr().unwrap()]);
    let mut dial = alice.connect(&record, PATIENCE);
    tokio::select! {
        biased;
        _ = &mut dial => panic!("nobody is there"),
        _ = silent.readable() => {}
    }
    drop(dial);
    alice.shutdown(PATIENCE).await;
    assert_eq!((alice.stats().connections, alice.quic_stats().socket.routes), (0, 0));
}

#[tokio::test]
async fn a_shutdown_flushes_and_tells_the_peer() {
    let Pair { alice, bob, at_alice, at_bob } = pair().await;
    let (mut send, _recv) = at_alice.open_bi(crate::transport::Priority::High).await.unwrap();
    send.write(Bytes::from_static(b"last words")).await.unwrap();
    send.finish();
    let reader = tokio::spawn(async move {
        let (_send, mut recv) = at_bob.accept_bi().await.unwrap();
        (read_all(&mut recv).await, at_bob.closed().await)
    });
    alice.shutdown(PATIENCE).await;
    assert_eq!(reader.await.unwrap(), (Ok("last words".into()), TransportError::ClosedByPeer { code: 0 }));
    assert_eq!(at_alice.closed().await, TransportError::ClosedHere);
    assert!(alice.accept().await.is_none());
    let refused = alice.connect(&record(2, &[address_of(&bob)]), PATIENCE).await.map(|_| ());
    assert_eq!(refused, Err(TransportError::ClosedHere));
    let freed = address_of(&alice);
    drop((at_alice, send, _recv));
    tokio::time::timeout(PATIENCE, async {
        while UdpSocket::bind(freed).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the port is free again");
}
