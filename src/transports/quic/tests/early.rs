//! The hello, in 0-RTT and without.

use super::*;

fn says(hello: &'static str) -> QuicTransportOptions {
    loopback().with_hello(Bytes::from_static(hello.as_bytes()))
}

/// Waits until everything that the peer sent before is here, tickets included.
async fn settle(at_alice: &Arc<dyn Connection>, at_bob: &Arc<dyn Connection>) {
    let asked = at_alice.request(Bytes::new(), PATIENCE);
    let answered = async {
        let mut incoming = at_bob.accept_request().await.unwrap();
        incoming.answer.finish();
    };
    tokio::join!(asked, answered).0.unwrap();
}

#[tokio::test]
async fn both_have_the_others_hello_once_connected() {
    let (alice, bob) = (start_with(1, says("I am alice")), start_with(2, says("I am bob")));
    let (at_alice, at_bob) = connect(&alice, &bob, 2).await.unwrap();
    assert_eq!((at_alice.peer_hello(), at_bob.peer_hello()), ("I am bob".into(), "I am alice".into()));
    assert_eq!(alice.quic_stats().early_hellos, 0);
}

#[tokio::test]
async fn the_second_time_the_hello_rides_in_the_first_flight() {
    let (alice, bob) = (start_with(1, says("I am alice")), start_with(2, says("I am bob")));
    let (at_alice, at_bob) = connect(&alice, &bob, 2).await.unwrap();
    settle(&at_alice, &at_bob).await;
    let (at_alice, at_bob) = connect(&alice, &bob, 2).await.unwrap();
    assert_eq!((at_alice.peer_hello(), at_bob.peer_hello()), ("I am bob".into(), "I am alice".into()));
    assert_eq!(at_bob.info().peer_id, identity(1).peer_id(), "a resumed session remembers the peer");
    assert_eq!((alice.quic_stats().early_hellos, alice.quic_stats().early_rejected), (1, 0));
    settle(&at_alice, &at_bob).await;
}

#[tokio::test]
async fn a_rejected_early_hello_is_sent_again() {
    let (alice, bob) = (start_with(1, says("I am alice")), start_with(2, says("I am bob")));
    let (at_alice, at_bob) = connect(&alice, &bob, 2).await.unwrap();
    settle(&at_alice, &at_bob).await;
    // The same peer after a restart: it has forgotten all tickets.
    let restarted = start_with(2, says("I am bob again"));
    let (at_alice, at_bob) = connect(&alice, &restarted, 2).await.unwrap();
    assert_eq!((at_alice.peer_hello(), at_bob.peer_hello()), ("I am bob again".into(), "I am alice".into()));
    assert_eq!((alice.quic_stats().early_hellos, alice.quic_stats().early_rejected), (0, 1));
    settle(&at_alice, &at_bob).await;
}

#[tokio::test]
async fn secrets_of_a_resumed_connection_are_new() {
    let (alice, bob) = (start(1), start(2));
    let (at_alice, at_bob) = connect(&alice, &bob, 2).await.unwrap();
    settle(&at_alice, &at_bob).await;
    let (again_at_alice, again_at_bob) = connect(&alice, &bob, 2).await.unwrap();
    let first = at_alice.export_secret(b"test").unwrap();
    let second = again_at_alice.export_secret(b"test").unwrap();
    assert_eq!(first, at_bob.export_secret(b"test").unwrap());
    assert_eq!(second, again_at_bob.export_secret(b"test").unwrap());
    assert_ne!(first, second);
    assert_ne!(first, at_alice.export_secret(b"other").unwrap());
}

#[tokio::test]
async fn a_dialler_that_never_says_hello_is_never_handed_out() {
    let bob = start_with(2, loopback().with_accept_deadline(Duration::from_millis(100)));
    let (_rogue, silent) = raw_dial(&bob).await;
    let quinn::ConnectionError::ApplicationClosed(close) = silent.closed().await else { panic!("not closed by bob") };
    assert_eq!(close.error_code, 0u32.into());
    assert_eq!((bob.stats().accepted, bob.stats().connections), (0, 0));
}

#[tokio::test]
async fn a_dialler_that_begins_with_something_else_is_closed() {
    let bob = start(2);
    for first in [&b"\x00application data"[..], b"\x01request", b"", &[2; 2000]] {
        let (_rogue, rude) = raw_dial(&bob).await;
        let (mut send, _recv) = rude.open_bi().await.unwrap();
        // May be stopped before all is written.
        let _ = send.write_all(first).await;
        let _ = send.finish();
        let quinn::ConnectionError::ApplicationClosed(close) = rude.closed().await else { panic!("not closed by bob") };
        assert_eq!(close.error_code, 2u32.into());
    }
    assert_eq!((bob.stats().accepted, bob.stats().connections), (0, 0));
}
