//! Operations that are damaged, foreign, out of place, or contradict each other.

use panda_network::ids::LogId;
use panda_network::limits::NACKS_PER_SESSION;
use panda_network::sync::wire::{DocumentFrame, Refusal};
use panda_network::transport::CloseReason;

use crate::hostile::{Author, Signed, Stage, numbered_key, scene};

/// Sends something that is refused as often as is forgiven, and once more.
async fn is_refused_until_the_session_ends(stage: &Stage, operation: &Signed) {
    let line = stage.hostile.dial().await;
    let mut stream = line.session().await;
    for attempt in 1..=NACKS_PER_SESSION {
        stream.send(attempt.into(), &[operation]).await;
        assert_eq!(stream.refusal(operation.author).await, (0, Refusal::Damaged));
    }
    stream.send(9, &[operation]).await;
    stream.is_closed(CloseReason::BadOperation).await;
    stream.is_stopped(CloseReason::BadOperation).await;
    // The next session starts with a clean slate.
    let mut stream = line.session().await;
    stream.send(1, &[operation]).await;
    assert_eq!(stream.refusal(operation.author).await, (0, Refusal::Damaged));
    line.is_alive().await;
}

#[test]
fn operations_with_a_damaged_signature_are_refused_and_then_end_the_session() {
    scene(|stage: Stage| async {
        let operation = stage.hostile.author(1).sign(b"changed on the way").damaged();
        is_refused_until_the_session_ends(&stage, &operation).await;
        stage
    });
}

#[test]
fn an_operation_of_another_document_is_refused() {
    scene(|stage: Stage| async {
        let foreign = Author::new(numbered_key(1), LogId::from([9; 32])).sign(b"of another document");
        is_refused_until_the_session_ends(&stage, &foreign).await;
        stage
    });
}

#[test]
fn a_body_that_is_not_the_signed_one_is_refused() {
    scene(|stage: Stage| async {
        let operation = stage.hostile.author(1).sign(b"signed");
        let swapped = Signed { body: stage.hostile.author(2).sign(b"swapped").body, ..operation };
        is_refused_until_the_session_ends(&stage, &swapped).await;
        stage
    });
}

#[test]
fn a_header_without_an_author_costs_the_session() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let operation = stage.hostile.author(1).sign(b"signed");
        for header in [&b""[..], b"\x80", b"\x82\x01\x41\x07", &[0x9F; 1000]] {
            let mut stream = line.session().await;
            stream.send(1, &[&Signed { header: header.to_vec().into(), ..operation.clone() }]).await;
            stream.is_closed(CloseReason::BadFrame).await;
        }
        line.is_alive().await;
        stage
    });
}

#[test]
fn an_operation_in_the_name_of_somebody_honest_is_not_believed() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let honest = stage.running(1).network.node_id();
        let mut operation = stage.hostile.author(1).sign(b"honestly");
        let key = *operation.author.as_bytes();
        let mut header = operation.header.to_vec();
        let at = header.windows(32).position(|window| window == key).unwrap();
        header[at..at + 32].copy_from_slice(honest.as_bytes());
        operation = Signed { author: honest, header: header.into(), ..operation };
        let mut stream = line.session().await;
        stream.send(1, &[&operation]).await;
        assert_eq!(stream.refusal(honest).await, (1, Refusal::Damaged));
        stage
    });
}

#[test]
fn a_gap_is_refused_until_the_missing_operations_come() {
    scene(|mut stage: Stage| async {
        let line = stage.hostile.dial().await;
        let mut author = stage.hostile.author(1);
        let log: Vec<_> = (0..6).map(|number| author.sign(format!("number {number}").as_bytes())).collect();
        let mut stream = line.session().await;
        stream.send(1, &[&log[0], &log[3], &log[4]]).await;
        assert_eq!(stream.refusal(author.id).await, (1, Refusal::Gap));
        // What was under way before the refusal arrived is not held against anybody.
        for message_id in 2..20 {
            stream.send(message_id, &[&log[5]]).await;
        }
        stream.send(20, &[&log[1], &log[2], &log[3], &log[4], &log[5]]).await;
        stream.acknowledged(author.id, 5).await;
        log.iter().for_each(|operation| stage.expect(operation));
        stage
    });
}

#[test]
fn an_author_that_forks_is_frozen_everywhere_and_the_rest_goes_on() {
    scene(|mut stage: Stage| async {
        let line = stage.hostile.dial().await;
        let (mut author, mut other) = (stage.hostile.author(1), stage.hostile.author(2));
        let first = author.sign(b"first");
        let mut twin = author.clone();
        let (second, contradiction) = (author.sign(b"second"), twin.sign(b"another second"));
        let mut stream = line.session().await;
        stream.send(1, &[&first, &second]).await;
        stream.acknowledged(author.id, 1).await;
        stream.send(2, &[&contradiction]).await;
        assert_eq!(stream.refusal(author.id).await, (2, Refusal::Closed));
        for index in 0..2 {
            stage.until(index, "the frozen log", |status| status.frozen == [author.id]).await;
        }
        stream.send(3, &[&author.sign(b"third"), &twin.sign(b"another third")]).await;
        assert_eq!(stream.refusal(author.id).await, (2, Refusal::Closed));
        let innocent = other.sign(b"somebody else's");
        stream.send(4, &[&innocent]).await;
        stream.acknowledged(other.id, 0).await;
        [first, second, innocent].iter().for_each(|operation| stage.expect(operation));
        stage
    });
}

#[test]
fn a_wrong_backlink_is_a_fork() {
    scene(|mut stage: Stage| async {
        let line = stage.hostile.dial().await;
        let mut author = stage.hostile.author(1);
        let first = author.sign(b"first");
        author.backlink = Some([7; 32].into());
        let second = author.sign(b"follows something else");
        let mut stream = line.session().await;
        stream.send(1, &[&first, &second]).await;
        assert_eq!(stream.refusal(author.id).await, (1, Refusal::Closed));
        stage.until(1, "the frozen log", |status| status.frozen == [author.id]).await;
        stage.expect(&first);
        stage
    });
}

#[test]
fn heads_that_contradict_ours_are_answered_with_the_operation_in_question() {
    scene(|mut stage: Stage| async {
        let line = stage.hostile.dial().await;
        let mut author = stage.hostile.author(1);
        let mut twin = author.clone();
        let (ours, theirs) = (author.sign(b"one"), twin.sign(b"other"));
        let mut stream = line.session().await;
        stream.send(1, &[&ours]).await;
        stream.acknowledged(author.id, 0).await;
        stream.say(&DocumentFrame::Heads { heads: vec![theirs.head()], last: true }).await;
        let proof = stream.until(|frame| match frame {
            DocumentFrame::Operations { operations, .. } => {
                operations.iter().find(|(header, _)| *header == ours.header).cloned()
            }
            _ => None,
        });
        assert_eq!(proof.await.1, ours.body);
        // Heads are a claim: without the operation nothing is frozen.
        assert_eq!(stage.status(0).frozen, []);
        stage.expect(&ours);
        stage
    });
}

#[test]
fn an_operation_that_never_ends_is_never_stored_and_holds_nobody_up() {
    scene(|mut stage: Stage| async {
        let line = stage.hostile.dial().await;
        let operation = stage.hostile.author(1).sign(&vec![7; 200 * 1024]);
        let large = |body_len| DocumentFrame::Large { message_id: 1, header: operation.header.clone(), body_len };
        let mut stream = line.session().await;
        stream.say(&large(operation.body.len() as u32)).await;
        stream.say(&DocumentFrame::Chunk(operation.body.slice(..1000))).await;
        for _ in 0..1000 {
            stream.say(&DocumentFrame::Chunk(Vec::new().into())).await;
        }
        stage.the_honest_go_on().await;
        // It may take its time.
        for start in (1000..operation.body.len()).step_by(40_000) {
            let end = operation.body.len().min(start + 40_000);
            stream.say(&DocumentFrame::Chunk(operation.body.slice(start..end))).await;
        }
        stream.acknowledged(operation.author, 0).await;
        stage.expect(&operation);
        stage
    });
}
