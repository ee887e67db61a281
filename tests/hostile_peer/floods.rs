//! Too much of what is allowed, claims that nobody can check, and silence.

use std::time::Duration;

use minicbor::Encoder;
use panda_network::PeerAddress;
use panda_network::identity::Identity;
use panda_network::limits::{
    DOCUMENT_MAX_AUTHORS, HEADS_PER_FRAME, MAX_OPEN_DOCUMENTS, NACKS_PER_SESSION, PRESENCE_MAX_BYTES,
};
use panda_network::operation::Head;
use panda_network::sync::tokens::{Role, Token};
use panda_network::sync::wire::{ControlFrame, DocumentFrame, Refusal};
use panda_network::transport::CloseReason;
use panda_network::{DocumentId, DocumentKey, PeerId};

use crate::hostile::{Line, Stage, numbered_key, operations_frame, scene};

fn strangers(count: usize) -> Vec<PeerId> {
    (0..count as u32).map(|number| numbered_key(number).verifying_key().into()).collect()
}

#[test]
fn heads_of_more_authors_than_a_document_may_have_cost_the_session() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let head = Head { seq_num: u32::MAX, id: [7; 32].into() };
        let heads: Vec<_> = strangers(5000).into_iter().map(|author| (author, head)).collect();
        let mut stream = line.session().await;
        for heads in heads.chunks(HEADS_PER_FRAME) {
            // The last ones find the stream closed.
            let _ = stream.try_say(&DocumentFrame::Heads { heads: heads.to_vec(), last: false }).await;
        }
        stream.is_closed(CloseReason::BadFrame).await;
        line.is_alive().await;
        stage
    });
}

#[test]
fn as_many_heads_as_allowed_are_believed_until_the_session_ends() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let head = Head { seq_num: u32::MAX, id: [7; 32].into() };
        let heads: Vec<_> = strangers(DOCUMENT_MAX_AUTHORS).into_iter().map(|author| (author, head)).collect();
        let mut stream = line.document().await;
        for (index, heads) in heads.chunks(HEADS_PER_FRAME).enumerate() {
            // Several that say they are the last are as good as one.
            stream.say(&DocumentFrame::Heads { heads: heads.to_vec(), last: index % 3 == 2 || index == 7 }).await;
        }
        let announced = DOCUMENT_MAX_AUTHORS << 32;
        stage.until(0, "what was announced", |status| status.missing == announced).await;
        stream.send.reset(CloseReason::Done);
        stage.until(0, "nothing announced any more", |status| status.missing == 0).await;
        stage
    });
}

#[test]
fn acknowledgements_of_operations_that_nobody_sent_change_nothing() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let mut stream = line.session().await;
        for authors in strangers(20 * DOCUMENT_MAX_AUTHORS / 8).chunks(HEADS_PER_FRAME) {
            let claims = authors.iter().map(|author| (*author, u32::MAX));
            stream.say(&DocumentFrame::Acknowledge(claims.collect())).await;
        }
        line.is_alive().await;
        assert_eq!(stage.status(0).missing, 0, "nobody believes that there are such operations");
        let node = stage.running(0).network.node_id();
        stream.say(&DocumentFrame::Acknowledge(vec![(node, u32::MAX), (node, 0), (node, u32::MAX)])).await;
        line.is_alive().await;
        assert_eq!((stage.peers(), stage.status(0).pending), (2, 0));
        stage
    });
}

#[test]
fn a_peer_that_refuses_everything_is_given_up_again_and_again() {
    scene(|mut stage: Stage| async {
        let line = stage.hostile.dial().await;
        let node = stage.running(0).network.node_id();
        for round in 0..3 {
            let mut stream = line.session().await;
            // Claiming it once is progress, so it takes one more.
            for _ in 0..=NACKS_PER_SESSION + 1 {
                // Claiming to have it after all is no progress the second time.
                let frame =
                    DocumentFrame::Refuse { message_id: 1, author: node, expected: 0, refusal: Refusal::Damaged };
                let _ = stream.try_say(&frame).await;
                let _ = stream.try_say(&DocumentFrame::Acknowledge(vec![(node, 0)])).await;
            }
            stream.is_stopped(CloseReason::BadOperation).await;
            stage.cluster.publish(0, format!("round {round}").into()).await;
        }
        line.is_alive().await;
        stage
    });
}

#[test]
fn refusals_of_what_was_never_sent_change_nothing() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let mut stream = line.session().await;
        for author in strangers(5000) {
            let refusal = Refusal::Closed;
            stream.say(&DocumentFrame::Refuse { message_id: u64::MAX, author, expected: u32::MAX, refusal }).await;
        }
        line.is_alive().await;
        assert_eq!(stage.peers(), 2);
        stage
    });
}

#[test]
fn more_documents_than_a_node_may_have_cost_the_connection() {
    scene(|stage: Stage| async {
        let stranger = |number: u128| {
            let document = DocumentId::from_uuid(uuid::Uuid::from_u128(number));
            Token::new(&DocumentKey::from_bytes([7; 32]), &document, &[7; 32], Role::Dialler)
        };
        let tokens: Vec<_> = (0..2 * MAX_OPEN_DOCUMENTS as u128).map(stranger).collect();
        let mut line = stage.hostile.dial().await;
        line.tell(&ControlFrame::Share(tokens[..MAX_OPEN_DOCUMENTS + 1].to_vec())).await;
        line.is_closed(CloseReason::BadFrame).await;
        let mut line = stage.hostile.dial().await;
        for _ in 0..100 {
            // As many as allowed, over and over, are no more than that.
            line.tell(&ControlFrame::Share(tokens[1..MAX_OPEN_DOCUMENTS].to_vec())).await;
        }
        line.is_alive().await;
        line.tell(&ControlFrame::Share(tokens[MAX_OPEN_DOCUMENTS..MAX_OPEN_DOCUMENTS + 1].to_vec())).await;
        line.is_closed(CloseReason::BadFrame).await;
        stage
    });
}

/// A presence datagram as it travels, signed or not.
fn presence(token: &Token, peer: PeerId, counter: u64, state: &[u8], signature: &[u8; 64]) -> Vec<u8> {
    // The token's bytes are not public: they are at the end of a frame that has them.
    let mut open = Vec::new();
    panda_network::sync::wire::StreamOpen::Document(*token).encode(&mut open);
    let mut encoder = Encoder::new(Vec::new());
    encoder.array(5).unwrap().bytes(&open[open.len() - 16..]).unwrap().bytes(peer.as_bytes()).unwrap();
    encoder.u64(counter).unwrap().bytes(state).unwrap().bytes(signature).unwrap();
    encoder.into_writer()
}

/// One that this stranger really signed.
fn genuine_presence(stage: &Stage, line: &Line, number: u32, counter: u64) -> Vec<u8> {
    let key = numbered_key(number);
    let signed = [b"panda-network/1 presence", &stage.hostile.log.as_bytes()[..], &counter.to_be_bytes(), b"me"];
    presence(&line.ours, key.verifying_key().into(), counter, b"me", &key.sign(&signed.concat()).to_bytes())
}

#[test]
fn forged_presence_is_not_shown_and_does_not_crowd_out_the_genuine() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let _stream = line.session().await;
        let honest = stage.running(1).network.node_id();
        for (counter, peer) in strangers(1000).into_iter().chain(std::iter::repeat_n(honest, 1000)).enumerate() {
            let datagram = presence(&line.ours, peer, counter as u64 + 1, b"i am somebody else", &[7; 64]);
            // Datagrams may be dropped.
            let _ = line.connection.send_datagram(datagram.into());
        }
        for size in [PRESENCE_MAX_BYTES + 1, PRESENCE_MAX_BYTES + 100] {
            let datagram = presence(&line.ours, honest, u64::MAX, &vec![7; size], &[7; 64]);
            let _ = line.connection.send_datagram(datagram.into());
        }
        let _ = line.connection.send_datagram(b"nonsense".as_slice().into());
        line.is_alive().await;
        stage.running(1).document.presence().set("cursor at 7").unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(stage.running(0).document.presence().peers(), [(honest, "cursor at 7".into())]);
        stage
    });
}

#[test]
fn presence_of_many_that_left_makes_room_for_who_is_there() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let _stream = line.session().await;
        for number in 0..600 {
            line.connection.send_datagram(genuine_presence(&stage, &line, number, 5).into()).unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(stage.running(0).document.presence().peers().len() > 200);
        // They are not renewed, so they are gone after half a minute.
        tokio::time::sleep(Duration::from_secs(35)).await;
        let honest = stage.running(1).network.node_id();
        stage.running(1).document.presence().set("here").unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(stage.running(0).document.presence().peers(), [(honest, "here".into())]);
        stage
    });
}

#[test]
fn a_peer_that_never_reads_holds_up_nobody_else() {
    scene(|mut stage: Stage| async {
        let line = stage.hostile.dial().await;
        let mut stream = line.document().await;
        stream.say(&DocumentFrame::Heads { heads: Vec::new(), last: true }).await;
        stage.until(0, "the session", |status| status.peers == 2).await;
        for number in 0..400u32 {
            let mut payload = number.to_be_bytes().to_vec();
            payload.resize(20_000, b'.');
            stage.cluster.publish(0, payload).await;
        }
        stage.the_honest_go_on().await;
        line.is_alive().await;
        // What it would have to be told is bounded as well.
        for number in 0..2 * DOCUMENT_MAX_AUTHORS as u32 {
            let operation = stage.hostile.author(number).sign(b"x").damaged();
            if stream.try_say(&operations_frame(number.into(), &[&operation])).await.is_err() {
                break;
            }
        }
        line.is_alive().await;
        stage
    });
}

#[test]
fn streams_that_stay_silent_cost_the_connection_in_the_end() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(line.stream(&[]).await);
        }
        line.is_alive().await;
        line.is_closed(CloseReason::BadFrame).await;
        stage
    });
}

#[test]
fn an_address_record_that_its_peer_did_not_sign_costs_the_connection() {
    scene(|stage: Stage| async {
        let own = stage.hostile.record().encode();
        let another = PeerAddress::sign(&Identity::from_seed(&[7; 32]), Vec::new(), Vec::new(), 1).unwrap().encode();
        let mut forged = own.clone();
        *forged.last_mut().unwrap() ^= 1;
        let longer = [&own[..], &[0]].concat();
        for record in [forged, longer, another, Vec::new(), vec![0x84; 20_000]] {
            let mut line = stage.hostile.dial().await;
            line.tell(&ControlFrame::Address(record.into())).await;
            line.is_closed(CloseReason::BadFrame).await;
        }
        stage
    });
}

#[test]
fn address_records_of_others_that_they_did_not_sign_cost_the_session() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        let genuine = PeerAddress::sign(&Identity::from_seed(&[7; 32]), Vec::new(), Vec::new(), 1).unwrap().encode();
        let mut forged = genuine.clone();
        *forged.last_mut().unwrap() ^= 1;
        let mut stream = line.session().await;
        stream.say(&DocumentFrame::Peers(vec![genuine.into(), forged.into()])).await;
        stream.is_closed(CloseReason::BadFrame).await;
        line.is_alive().await;
        stage
    });
}

#[test]
fn a_peer_that_answers_no_heartbeat_is_given_up() {
    scene(|stage: Stage| async {
        let line = stage.hostile.dial().await;
        line.play_dead();
        let _stream = line.session().await;
        line.is_closed(CloseReason::Unresponsive).await;
        stage.until(0, "the end of the session", |status| status.peers == 1).await;
        stage
    });
}
