//! However a session ended, the next one starts: at once when there is no reason to wait, with growing pauses when there is.

use std::time::Duration;

use panda_network::sync::wire::{ControlFrame, DocumentFrame, StreamOpen};
use panda_network::transport::CloseReason;
use tokio::time::timeout;

use crate::hostile::{Line, Stage, Stream, framed, scene};

/// How many document streams the node opens within a time, each treated in the same way.
async fn sessions_within(line: &Line, time: Duration, treat: impl AsyncFn(Stream)) -> usize {
    let mut count = 0;
    let counting = async {
        loop {
            if let (StreamOpen::Document(token), stream) = line.accept().await {
                assert_eq!(token, line.theirs);
                count += 1;
                treat(stream).await;
            }
        }
    };
    let _ = timeout(time, counting).await;
    count
}

/// What it is called, and how to do it.
type Way = (&'static str, fn(&mut Stream));

#[test]
fn a_node_whose_streams_are_refused_or_broken_tries_again_with_growing_pauses() {
    let ways: [Way; 4] = [
        ("reset", |stream| stream.send.reset(CloseReason::UnknownDocument)),
        ("stopped", |stream| stream.receive.stop(CloseReason::TooBusy)),
        ("finished", |stream| stream.send.finish()),
        ("both", |stream| {
            stream.send.finish();
            stream.receive.stop(CloseReason::Done);
        }),
    ];
    for (way, end) in ways {
        scene(|stage: Stage| async {
            let line = stage.be_dialled().await;
            let count = sessions_within(&line, Duration::from_secs(100), async |mut stream| end(&mut stream)).await;
            assert!((5..=12).contains(&count), "{way}: {count} sessions in 100 s");
            // An honest session is possible afterwards.
            let (_, mut stream) = line.accept().await;
            stream.say(&DocumentFrame::Heads { heads: Vec::new(), last: true }).await;
            stream.until(|frame| matches!(frame, DocumentFrame::Heads { last: true, .. }).then_some(())).await;
            stage
        });
    }
}

#[test]
fn a_node_that_is_told_to_open_streams_over_and_over_does_not_do_so_faster_than_it_is_told() {
    scene(|stage: Stage| async {
        let mut line = stage.be_dialled().await;
        for _ in 0..200 {
            line.tell(&ControlFrame::Unshare(vec![line.ours])).await;
            line.tell(&ControlFrame::Share(vec![line.ours])).await;
        }
        let count = sessions_within(&line, Duration::from_secs(60), async |_stream| {}).await;
        assert!(count <= 201, "{count} sessions");
        line.is_alive().await;
        stage
    });
}

#[test]
fn more_streams_than_wait_for_a_session_are_refused_and_the_others_get_their_turn() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let mut streams = vec![line.session().await];
        for _ in 0..6 {
            streams.push(line.document().await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // One is served, four wait, the rest is refused.
        streams.pop().unwrap().is_closed(CloseReason::TooBusy).await;
        streams.pop().unwrap().is_closed(CloseReason::TooBusy).await;
        for mut stream in streams {
            stream.say(&DocumentFrame::Heads { heads: Vec::new(), last: true }).await;
            stream.send.finish();
            stream.is_closed(CloseReason::Done).await;
        }
        drop(line.session().await);
        stage
    });
}

#[test]
fn catch_up_streams_of_a_session_that_is_over_do_not_end_the_next_one() {
    scene(|mut stage: Stage| async {
        let line = stage.hostile.dial().await;
        let mut stream = line.session().await;
        // Nobody reads these: they wait behind one that stays silent, and are given up together with their session.
        let mut waiting = Vec::new();
        for _ in 0..4 {
            waiting.push(line.catch_up().await);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stream.send.reset(CloseReason::Done);
        stage.until(0, "the end of the session", |status| status.peers == 1).await;
        waiting.iter_mut().for_each(|stream| stream.send.reset(CloseReason::Done));
        drop(waiting);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let operation = stage.hostile.author(1).sign(b"in the next session");
        let mut stream = line.session().await;
        let mut catch_up = line.catch_up().await;
        catch_up.send(1, &[&operation]).await;
        stream.acknowledged(operation.author, 0).await;
        stage.expect(&operation);
        stage
    });
}

#[test]
fn an_acceptor_that_is_left_with_something_unsent_asks_for_the_next_stream() {
    scene(|mut stage: Stage| async {
        let mut line = stage.hostile.dial().await;
        let mut stream = line.session().await;
        stage.cluster.publish(0, b"unsettled".to_vec()).await;
        stream.send.finish();
        stream.is_closed(CloseReason::Done).await;
        let shares = line.shares_within(Duration::from_secs(30)).await;
        assert_eq!(shares, 1, "the question for another stream");
        stage
    });
}

#[test]
fn a_dialler_that_is_asked_before_the_old_stream_has_ended_opens_the_next_one() {
    for asked in [true, false] {
        scene(|stage: Stage| async {
            let mut line = stage.be_dialled().await;
            let (_, mut stream) = line.accept().await;
            let theirs = stream.until(|frame| match frame {
                DocumentFrame::Heads { heads, .. } => Some(heads.clone()),
                _ => None,
            });
            let heads = theirs.await;
            stream.say(&DocumentFrame::Heads { heads, last: true }).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if asked {
                line.tell(&ControlFrame::Share(vec![line.ours])).await;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            stream.send.finish();
            stream.is_closed(CloseReason::Done).await;
            let next = timeout(Duration::from_secs(30), line.accept()).await.map(|(open, _)| open).ok();
            assert_eq!(next, asked.then_some(StreamOpen::Document(line.theirs)));
            stage
        });
    }
}

#[test]
fn a_session_that_ended_with_an_error_is_followed_by_another_from_either_side() {
    scene(|stage: Stage| async {
        // The hostile peer opens, the node opens: each breaks its session in the worst way, and gets another one.
        let line = stage.hostile.dial().await;
        for _ in 0..5 {
            let mut stream = line.session().await;
            stream.write(&framed(&[0x80])).await.unwrap();
            stream.is_closed(CloseReason::BadFrame).await;
        }
        drop(line);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let line = stage.be_dialled().await;
        let count = sessions_within(&line, Duration::from_secs(30), async |mut stream| {
            stream.write(&framed(&[0x80])).await.unwrap();
            stream.is_closed(CloseReason::BadFrame).await;
        });
        let count = count.await;
        assert!((4..=8).contains(&count), "{count} sessions in 30 s");
        stage
    });
}
