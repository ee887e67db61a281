//! Bytes that are no frames, frames that say nothing, and frames where they do not belong.

use panda_network::limits::{FRAME_MAX_BYTES, OPERATION_PAYLOAD_MAX_BYTES, PROTOCOL_ERRORS_PER_CONNECTION};
use panda_network::sync::wire::{ControlFrame, DocumentFrame, StreamOpen};
use panda_network::transport::CloseReason;

use crate::hostile::{Stage, framed, opened, scene};

/// Everything that can be wrong with a frame on any stream, as bytes.
fn nonsense() -> Vec<(&'static str, Vec<u8>)> {
    let one_over = u32::try_from(FRAME_MAX_BYTES + 1).unwrap();
    vec![
        ("a length of 4 GiB", vec![0xFF; 4]),
        ("a length of one byte too many", one_over.to_be_bytes().to_vec()),
        ("an empty frame", vec![0; 4]),
        ("an unknown kind", framed(&[0x81, 0x18, 99])),
        ("an array of indefinite length", framed(&[0x9F, 0x03, 0xFF])),
        ("no array", framed(b"GET / HTTP/1.1")),
        ("a list of 4 billion", framed(&[0x82, 0x00, 0x9A, 0xFF, 0xFF, 0xFF, 0xFF])),
        ("an empty array", framed(&[0x80])),
        ("bytes after the end", framed(&[0x81, 0x03, 0x00])),
    ]
}

#[test]
fn nonsense_on_a_document_stream_costs_the_session_and_nothing_else() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        for (what, bytes) in nonsense() {
            let mut stream = line.session().await;
            assert_eq!(stage.peers(), 2, "{what}: no session");
            stream.write(&bytes).await.unwrap();
            stream.is_closed(CloseReason::BadFrame).await;
            stream.is_stopped(CloseReason::BadFrame).await;
            stage.until(0, what, |status| status.peers == 1).await;
            line.is_alive().await;
        }
        stage
    });
}

#[test]
fn nonsense_on_a_catch_up_stream_costs_the_session_and_nothing_else() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        for (_, bytes) in nonsense() {
            let mut stream = line.session().await;
            let mut catch_up = line.catch_up().await;
            catch_up.write(&bytes).await.unwrap();
            catch_up.is_stopped(CloseReason::BadFrame).await;
            stream.is_closed(CloseReason::BadFrame).await;
            line.is_alive().await;
        }
        stage
    });
}

#[test]
fn a_catch_up_stream_carries_operations_and_nothing_else() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        for frame in [
            DocumentFrame::Heads { heads: Vec::new(), last: true },
            DocumentFrame::Acknowledge(Vec::new()),
            DocumentFrame::Peers(Vec::new()),
        ] {
            let mut stream = line.session().await;
            let mut catch_up = line.catch_up().await;
            catch_up.say(&frame).await;
            stream.is_closed(CloseReason::BadFrame).await;
        }
        line.is_alive().await;
        stage
    });
}

#[test]
fn nonsense_on_the_control_stream_costs_the_connection() {
    scene(|stage: Stage| async {
        for (_, bytes) in nonsense() {
            let mut line = stage.hostile.dial().await;
            line.control.write(&bytes).await.unwrap();
            line.is_closed(CloseReason::BadFrame).await;
        }
        stage
    });
}

#[test]
fn nonsense_instead_of_a_first_frame_is_refused_and_the_connection_stays() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        for (what, bytes) in nonsense().into_iter().filter(|(what, _)| *what != "bytes after the end") {
            let mut stream = line.stream(&bytes).await;
            stream.is_closed(CloseReason::BadFrame).await;
            assert_eq!(stage.peers(), 1, "{what}");
        }
        line.is_alive().await;
        stage
    });
}

#[test]
fn a_stream_that_ends_inside_a_frame_costs_the_session() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        for length in [1, 4, 6] {
            let mut stream = line.session().await;
            stream.write(&framed(&[0x82, 0x04, 0x80])[..length]).await.unwrap();
            stream.send.finish();
            stream.is_closed(CloseReason::BadFrame).await;
        }
        let mut stream = line.stream(&opened(StreamOpen::Document(line.ours))[..5]).await;
        stream.send.finish();
        stream.is_closed(CloseReason::BadFrame).await;
        line.is_alive().await;
        stage
    });
}

#[test]
fn too_many_broken_sessions_cost_the_connection() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        for _ in 0..PROTOCOL_ERRORS_PER_CONNECTION {
            let mut stream = line.stream(&framed(&[0x80])).await;
            stream.is_closed(CloseReason::BadFrame).await;
        }
        line.is_alive().await;
        let _stream = line.stream(&framed(&[0x80])).await;
        line.is_closed(CloseReason::BadFrame).await;
        stage
    });
}

#[test]
fn a_connection_that_does_not_start_with_the_control_stream_is_closed() {
    scene(|stage: Stage| async {
        let token = stage.hostile.dial().await.ours;
        let firsts = [opened(StreamOpen::Document(token)), opened(StreamOpen::CatchUp(token)), framed(&[0x80])];
        for first in firsts {
            let line = stage.hostile.dial_with(&first).await;
            line.is_closed(CloseReason::BadFrame).await;
        }
        let line = stage.hostile.dial_with(&[]).await;
        line.is_closed(CloseReason::BadFrame).await;
        stage
    });
}

#[test]
fn a_second_control_stream_is_refused() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let mut second = line.stream(&opened(StreamOpen::Control)).await;
        second.is_closed(CloseReason::BadFrame).await;
        line.is_alive().await;
        stage
    });
}

#[test]
fn a_document_that_is_not_open_here_is_unknown() {
    scene(|stage: Stage| async {
        // A token of another connection means nothing on this one.
        let stale = stage.hostile.dial().await.ours;
        let line = stage.hostile.dial().await;
        for open in [StreamOpen::Document(stale), StreamOpen::CatchUp(stale), StreamOpen::Document(line.theirs)] {
            let mut stream = line.stream(&opened(open)).await;
            stream.is_closed(CloseReason::UnknownDocument).await;
        }
        line.is_alive().await;
        stage
    });
}

#[test]
fn echoing_the_nodes_own_tokens_is_not_sharing() {
    scene(|stage: Stage| async {
        let mut line = stage.hostile.dial_with(&opened(StreamOpen::Control)).await;
        let theirs = line.theirs;
        line.tell(&ControlFrame::Share(vec![theirs])).await;
        // Nobody needs a connection without a shared document.
        line.is_closed(CloseReason::Done).await;
        assert_eq!(stage.peers(), 1);
        stage
    });
}

#[test]
fn an_operation_over_the_limit_is_refused_when_it_is_announced() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let operation = stage.hostile.author(1).sign(b"small");
        let large = |header, body_len| DocumentFrame::Large { message_id: 1, header, body_len };
        let over = u32::try_from(OPERATION_PAYLOAD_MAX_BYTES + 17).unwrap();
        for frame in [large(operation.header.clone(), over), large(vec![7; 1025].into(), 100)] {
            let mut stream = line.session().await;
            stream.say(&frame).await;
            stream.is_closed(CloseReason::BadFrame).await;
        }
        line.is_alive().await;
        stage
    });
}

#[test]
fn chunks_that_belong_to_nothing_cost_the_session() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let operation = stage.hostile.author(1).sign(b"small");
        let large = |body_len| DocumentFrame::Large { message_id: 1, header: operation.header.clone(), body_len };
        let chunk = |length: usize| DocumentFrame::Chunk(vec![7; length].into());
        let acknowledge = DocumentFrame::Acknowledge(Vec::new());
        for frames in [
            vec![chunk(10)],
            vec![large(100), chunk(60), chunk(60)],
            vec![large(100), chunk(60), acknowledge],
            vec![large(100), large(100)],
        ] {
            let mut stream = line.session().await;
            for frame in &frames {
                stream.say(frame).await;
            }
            stream.is_closed(CloseReason::BadFrame).await;
        }
        line.is_alive().await;
        stage
    });
}
