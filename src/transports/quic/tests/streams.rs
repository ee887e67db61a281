//! Streams, requests and datagrams of one connection.

use super::*;
use crate::limits::{PROTOCOL_ERRORS_PER_CONNECTION, REQUEST_MAX_BYTES, REQUESTS_PER_CONNECTION};
use crate::transport::{CloseReason, Priority};

fn megabytes(count: usize, seed: u8) -> Bytes {
    (0..count * 1024 * 1024).map(|index| (index / 7) as u8 ^ seed).collect()
}

#[tokio::test]
async fn ten_megabytes_travel_both_ways_on_one_stream_of_each_priority() {
    let Pair { at_alice, at_bob, alice: _alice, bob: _bob } = pair().await;
    let echo = tokio::spawn(async move {
        let mut echoes = tokio::task::JoinSet::new();
        for _ in 0..3 {
            let (mut send, mut recv) = at_bob.accept_bi().await.unwrap();
            echoes.spawn(async move {
                while let Some(chunk) = recv.read(64 * 1024).await.unwrap() {
                    send.write(chunk).await.unwrap();
                }
                send.finish();
            });
        }
        echoes.join_all().await;
        at_bob
    });
    let mut transfers = tokio::task::JoinSet::new();
    for (seed, priority) in [(1, Priority::Low), (2, Priority::Medium), (3, Priority::High)] {
        let (mut send, mut recv) = at_alice.open_bi(priority).await.unwrap();
        transfers.spawn(async move {
            let sent = megabytes(10, seed);
            let (_, received) = tokio::join!(
                async {
                    send.write(sent.clone()).await.unwrap();
                    send.finish();
                },
                read_all(&mut recv)
            );
            assert!(received.unwrap() == sent);
        });
    }
    transfers.join_all().await;
    drop(echo.await.unwrap());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_up_no_other() {
    let Pair { at_alice, at_bob, alice: _alice, bob: _bob } = pair().await;
    let (mut stuck, _recv) = at_alice.open_bi(Priority::High).await.unwrap();
    let stuck = tokio::spawn(async move { stuck.write(megabytes(3, 0)).await });
    let _unread = at_bob.accept_bi().await.unwrap();
    let (mut send, _recv) = at_alice.open_bi(Priority::Low).await.unwrap();
    send.write(Bytes::from_static(b"passing")).await.unwrap();
    send.finish();
    let (_send, mut recv) = at_bob.accept_bi().await.unwrap();
    assert_eq!(read_all(&mut recv).await.unwrap(), "passing");
    assert!(!stuck.is_finished());
}

#[tokio::test]
async fn a_stream_dropped_unfinished_is_not_taken_for_finished() {
    let Pair { at_alice, at_bob, alice: _alice, bob: _bob } = pair().await;
    let (mut send, _recv) = at_alice.open_bi(Priority::Medium).await.unwrap();
    send.write(Bytes::from_static(b"half a sen")).await.unwrap();
    let (_send, mut recv) = at_bob.accept_bi().await.unwrap();
    assert_eq!(recv.read(100).await.unwrap().unwrap(), "half a sen");
    drop(send);
    assert_eq!(recv.read(100).await, Err(TransportError::ClosedByPeer { code: 0 }));
}

#[tokio::test]
async fn resets_and_stops_carry_their_reason() {
    let Pair { at_alice, at_bob, alice: _alice, bob: _bob } = pair().await;
    let (mut send, mut recv) = at_alice.open_bi(Priority::Medium).await.unwrap();
    let (mut bob_send, mut bob_recv) = at_bob.accept_bi().await.unwrap();
    bob_send.reset(CloseReason::UnknownDocument);
    assert_eq!(recv.read(1).await, Err(TransportError::ClosedByPeer { code: 8 }));
    bob_recv.stop(CloseReason::BadFrame);
    let stopped = loop {
        if let Err(error) = send.write(Bytes::from_static(b"more")).await {
            break error;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(stopped, TransportError::ClosedByPeer { code: 2 });
}

#[tokio::test]
async fn requests_are_answered_and_never_mixed_up_with_streams() {
    let Pair { at_alice, at_bob, alice: _alice, bob: _bob } = pair().await;
    let server = tokio::spawn(async move {
        for _ in 0..100 {
            let mut asked = at_bob.accept_request().await.unwrap();
            asked.answer.write(asked.request).await.unwrap();
            asked.answer.finish();
        }
        at_bob
    });
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..100u8 {
        let at_alice = at_alice.clone();
        asking.spawn(async move {
            let asked = Bytes::from(vec![number; 1 + usize::from(number) * 600]);
            assert_eq!(at_alice.request(asked.clone(), PATIENCE).await.unwrap(), asked);
        });
    }
    let (mut send, _recv) = at_alice.open_bi(Priority::Medium).await.unwrap();
    send.write(Bytes::from_static(b"a stream")).await.unwrap();
    send.finish();
    asking.join_all().await;
    let at_bob = server.await.unwrap();
    let (_send, mut recv) = at_bob.accept_bi().await.unwrap();
    assert_eq!(read_all(&mut recv).await.unwrap(), "a stream");
}

#[tokio::test]
async fn a_request_without_an_answer_ends_with_its_deadline_and_a_refused_one_at_once() {
    let Pair { at_alice, at_bob, alice: _alice, bob: _bob } = pair().await;
    let deadline = Duration::from_millis(50);
    assert_eq!(at_alice.request(Bytes::new(), deadline).await, Err(TransportError::Timeout(deadline)));
    drop(at_bob.accept_request().await.unwrap());
    let (refused, _) = tokio::join!(at_alice.request(Bytes::new(), PATIENCE), async {
        drop(at_bob.accept_request().await.unwrap());
    });
    assert_eq!(refused, Err(TransportError::ClosedByPeer { code: 0 }));
}

#[tokio::test]
async fn requests_and_responses_have_a_largest_size() {
    let Pair { at_alice, at_bob, alice: _alice, bob: _bob } = pair().await;
    let too_long = Bytes::from(vec![0; REQUEST_MAX_BYTES + 1]);
    let limit = REQUEST_MAX_BYTES;
    let refused = at_alice.request(too_long.clone(), PATIENCE).await;
    assert_eq!(refused, Err(TransportError::Limit { what: "request bytes", limit }));

    let largest = too_long.slice(1..);
    let (answered, _) = tokio::join!(at_alice.request(largest.clone(), PATIENCE), async {
        let mut asked = at_bob.accept_request().await.unwrap();
        assert_eq!(
            asked.answer.write(too_long.clone()).await,
            Err(TransportError::Limit { what: "response bytes", limit })
        );
        asked.answer.write(asked.request).await.unwrap();
        asked.answer.finish();
    });
    assert_eq!(answered.unwrap(), largest);
}

#[tokio::test]
async fn an_oversized_request_or_response_of_a_rogue_peer_is_refused() {
    let bob = start(2);
    let (_rogue, at_rogue) = raw_rogue(&bob).await;
    let at_bob = bob.accept().await.unwrap();
    let (mut send, mut recv) = at_rogue.open_bi().await.unwrap();
    // Stopped half way, or refused after the last byte: both are fine.
    let _ = send.write_all(&vec![1; REQUEST_MAX_BYTES + 2]).await;
    let refused = recv.read_to_end(100).await.unwrap_err();
    assert_eq!(refused, quinn::ReadToEndError::Read(quinn::ReadError::Reset(2u32.into())));
    assert_eq!(bob.quic_stats().protocol_errors, 1);

    let (answered, _) = tokio::join!(at_bob.request(Bytes::new(), PATIENCE), async {
        let (mut send, _recv) = at_rogue.accept_bi().await.unwrap();
        let _ = send.write_all(&vec![1; REQUEST_MAX_BYTES + 1]).await;
        let _ = send.finish();
    });
    assert!(matches!(answered, Err(TransportError::Protocol(_))), "{answered:?}");
}

#[tokio::test]
async fn an_unknown_stream_type_costs_just_that_stream() {
    let (_rogue, bob, at_rogue, at_bob) = rogue_pair().await;
    for byte in [0x0f, 0x7f, 0x02] {
        let (mut send, mut recv) = at_rogue.quinn().open_bi().await.unwrap();
        send.write_all(&[byte, 1, 2, 3]).await.unwrap();
        let refused = recv.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(refused, quinn::ReadError::Reset(2u32.into()));
    }
    assert_eq!(bob.quic_stats().protocol_errors, 3);
    let (mut send, _recv) = at_rogue.open_bi(Priority::Medium).await.unwrap();
    send.write(Bytes::from_static(b"no harm done")).await.unwrap();
    send.finish();
    let (_send, mut recv) = at_bob.accept_bi().await.unwrap();
    assert_eq!(read_all(&mut recv).await.unwrap(), "no harm done");
}

#[tokio::test]
async fn too_many_protocol_errors_cost_the_connection() {
    let (_rogue, _bob, at_rogue, _at_bob) = rogue_pair().await;
    for _ in 0..PROTOCOL_ERRORS_PER_CONNECTION {
        let Ok((mut send, _recv)) = at_rogue.quinn().open_bi().await else { break };
        let _ = send.write_all(&[0xff]).await;
    }
    assert_eq!(at_rogue.closed().await, TransportError::ClosedByPeer { code: CloseReason::BadFrame as u64 });
}

#[tokio::test]
async fn silent_streams_hold_up_neither_streams_nor_requests() {
    let (_rogue, _bob, at_rogue, at_bob) = rogue_pair().await;
    let mut silent = Vec::new();
    for _ in 0..500 {
        silent.push(at_rogue.quinn().open_bi().await.unwrap());
    }
    // Opening a later stream opens all earlier ones at the peer.
    let (answered, _) = tokio::join!(at_rogue.request(Bytes::from_static(b"?"), PATIENCE), async {
        let mut asked = at_bob.accept_request().await.unwrap();
        asked.answer.write(asked.request).await.unwrap();
        asked.answer.finish();
    });
    assert_eq!(answered.unwrap(), "?");
    let (mut send, _recv) = at_rogue.open_bi(Priority::Medium).await.unwrap();
    send.write(Bytes::from_static(b"!")).await.unwrap();
    let (_send, mut recv) = at_bob.accept_bi().await.unwrap();
    assert_eq!(recv.read(1).await.unwrap().unwrap(), "!");
}

#[tokio::test]
async fn requests_that_nobody_serves_are_refused_beyond_the_limit() {
    let (_rogue, _bob, at_rogue, at_bob) = rogue_pair().await;
    let mut waiting = Vec::new();
    for _ in 0..REQUESTS_PER_CONNECTION + 1 {
        let (mut send, recv) = at_rogue.quinn().open_bi().await.unwrap();
        send.write_all(&[1]).await.unwrap();
        send.finish().unwrap();
        waiting.push((send, recv));
    }
    let (mut refused, mut served) = (0, tokio::task::JoinSet::new());
    for (_send, mut recv) in waiting {
        served.spawn(async move { recv.read_to_end(10).await });
    }
    while let Some(ended) = served.join_next().await {
        assert_eq!(ended.unwrap(), Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(5u32.into()))));
        refused += 1;
        if refused == 1 {
            break;
        }
    }
    assert!(at_bob.accept_request().await.is_ok());
}

#[tokio::test]
async fn datagrams_arrive_and_have_a_largest_size() {
    let Pair { at_alice, at_bob, alice: _alice, bob: _bob } = pair().await;
    at_alice.send_datagram(Bytes::from(vec![7; 1024])).unwrap();
    assert_eq!(at_bob.read_datagram().await.unwrap(), vec![7; 1024]);
    let refused = at_bob.send_datagram(Bytes::from(vec![7; 2000]));
    assert!(matches!(refused, Err(TransportError::Limit { what: "datagram bytes", .. })), "{refused:?}");
}

#[tokio::test]
async fn the_peer_learns_why_a_connection_was_closed() {
    let Pair { at_alice, at_bob, alice, bob } = pair().await;
    at_alice.close(CloseReason::GoingOffline);
    let reason = TransportError::ClosedByPeer { code: CloseReason::GoingOffline as u64 };
    assert_eq!(at_bob.closed().await, reason);
    assert_eq!(at_bob.accept_bi().await.map(|_| ()), Err(reason.clone()));
    assert_eq!(at_bob.accept_request().await.map(|_| ()), Err(reason.clone()));
    assert_eq!(at_bob.read_datagram().await, Err(reason.clone()));
    assert_eq!(at_bob.request(Bytes::new(), PATIENCE).await, Err(reason));
    assert_eq!(at_alice.open_bi(Priority::Low).await.map(|_| ()), Err(TransportError::ClosedHere));
    let before = bob.stats();
    drop((at_alice, at_bob));
    while alice.stats().connections + bob.stats().connections > 0 {
        tokio::task::yield_now().await;
    }
    assert!(bob.stats().received_bytes >= before.received_bytes, "counters outlive connections");
}

#[tokio::test]
async fn a_connection_lives_as_long_as_its_last_stream() {
    let Pair { at_alice, at_bob, alice: _alice, bob: _bob } = pair().await;
    let (mut send, recv) = at_alice.open_bi(Priority::Medium).await.unwrap();
    drop(at_alice);
    send.write(Bytes::from_static(b"still")).await.unwrap();
    let (_send, mut bob_recv) = at_bob.accept_bi().await.unwrap();
    assert_eq!(bob_recv.read(10).await.unwrap().unwrap(), "still");
    drop((send, recv));
    assert_eq!(at_bob.closed().await, TransportError::ClosedByPeer { code: 0 });
}
