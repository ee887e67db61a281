//! p2panda's traits see our documents, and cannot put anything into them that a peer could not.

use std::collections::BTreeMap;

use p2panda_core::{Hash, Header, SigningKey, Topic, VerifyingKey};
use p2panda_store::logs::LogStore;
use p2panda_store::operations::OperationStore;
use p2panda_store::topics::TopicStore;

use super::*;
use crate::storage::P2pandaStoreError;
use crate::store::RefusedReason;

/// What a Node's extensions look like from outside: version, flags, log id, timestamp, prune flag.
type NodeExtensions = (u16, u16, Hash, u64, bool);
type NodeOperation = p2panda_core::Operation<NodeExtensions>;

fn topic() -> Topic {
    document(1).key.topic(&document(1).document)
}

/// The name that a Node gives to the log of a topic.
fn log_id() -> Hash {
    Hash::digest(topic().as_bytes())
}

fn author() -> VerifyingKey {
    alice().peer_id().verifying_key().unwrap()
}

fn node_operation(seed: u8, before: Option<&NodeOperation>, log: Hash, body: &[u8]) -> NodeOperation {
    let header = Header::builder()
        .seq_num(before.map_or(0, |before| before.header.seq_num + 1))
        .backlink(before.map(|before| before.hash))
        .body(body)
        .build(&SigningKey::from_bytes(&[seed; 32]), (1, 0, log, 5, false));
    NodeOperation { hash: header.hash(), header, body: Some(body.to_vec().into()) }
}

/// `[1, h'78']` in CBOR: our envelope around an `x`.
const BODY: &[u8] = &[0x82, 0x01, 0x41, b'x'];

#[tokio::test]
async fn p2panda_reads_what_was_published() {
    let (_directory, store, log) = on_disk().await;
    let mut published = Vec::new();
    for _ in 0..300 {
        published.push(publish(&store, log, "edit").await.unwrap().operation);
    }
    let entries: Vec<(NodeOperation, Vec<u8>)> =
        store.get_log_entries(&author(), &log_id(), None, None).await.unwrap().unwrap();
    assert_eq!(entries.len(), 300);
    for ((entry, header), operation) in entries.iter().zip(&published) {
        assert_eq!(entry.header.hash().as_bytes(), operation.id().as_bytes());
        assert_eq!(entry.hash, entry.header.hash());
        assert_eq!((header, entry.header.encode()), (&operation.header().to_vec(), operation.header().to_vec()));
        assert_eq!(entry.body.as_ref().unwrap().as_bytes(), &operation.body()[..]);
        p2panda_core::validate_operation(entry).unwrap();
    }
    let last = &published[299];
    let latest: NodeOperation = store.get_latest_entry(&author(), &log_id()).await.unwrap().unwrap();
    assert_eq!(latest.hash.as_bytes(), last.id().as_bytes());
    let by_id: NodeOperation = store.get_operation(&latest.hash).await.unwrap().unwrap();
    assert_eq!(by_id, latest);
    assert!(OperationStore::<NodeOperation, _>::has_operation(&store, &latest.hash).await.unwrap());
    assert!(!OperationStore::<NodeOperation, _>::has_operation(&store, &log_id()).await.unwrap());
}

/// The trait, with its parameters named once.
async fn size(store: &SqliteStore, after: Option<u32>, until: Option<u32>) -> Option<(u32, u32)> {
    LogStore::<NodeOperation, _, _, _, Hash>::get_log_size(store, &author(), &log_id(), after, until).await.unwrap()
}

#[tokio::test]
async fn a_range_is_after_one_number_and_up_to_another() {
    let (store, log) = in_memory().await;
    let mut sizes = Vec::new();
    for _ in 0..5 {
        sizes.push(publish(&store, log, "edit").await.unwrap().operation.size() as u32);
    }
    assert_eq!(size(&store, Some(1), Some(3)).await, Some((2, sizes[2] + sizes[3])));
    assert_eq!(size(&store, None, None).await, Some((5, sizes.iter().sum())));
    assert_eq!(size(&store, Some(4), None).await, None);
    assert_eq!(size(&store, Some(u32::MAX), None).await, None);
    let entries: Option<Vec<(NodeOperation, _)>> =
        store.get_log_entries(&author(), &log_id(), Some(1), Some(3)).await.unwrap();
    assert_eq!(entries.unwrap().iter().map(|(entry, _)| entry.header.seq_num).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test]
async fn heights_and_topics_follow_from_the_logs() {
    let (store, log) = in_memory().await;
    assert_eq!(TopicStore::<_, VerifyingKey, Hash>::resolve(&store, &topic()).await.unwrap(), BTreeMap::new());
    publish(&store, log, "edit").await.unwrap();
    store.ingest(log, chain(&bob(), log, 3, "")).await.unwrap();
    let bob = bob().peer_id().verifying_key().unwrap();
    assert_eq!(
        store.resolve(&topic()).await.unwrap(),
        BTreeMap::from([(author(), vec![log_id()]), (bob, vec![log_id()])])
    );
    let logs = [log_id(), Hash::digest(b"another")];
    let heights = LogStore::<NodeOperation, _, _, u32, Hash>::get_log_heights(&store, &bob, &logs).await.unwrap();
    assert_eq!(heights, Some(BTreeMap::from([(log_id(), 2)])));
    let none = LogStore::<NodeOperation, _, _, u32, Hash>::get_log_heights(&store, &bob, &logs[1..]).await.unwrap();
    assert_eq!(none, None);
    assert!(!store.associate(&topic(), &bob, &log_id()).await.unwrap(), "there is nothing to add");
    assert!(matches!(store.associate(&topic(), &bob, &logs[1]).await, Err(P2pandaStoreError::Mismatch(_))));
}

#[tokio::test]
async fn what_p2panda_inserts_is_checked_like_what_a_peer_sends() {
    let (_directory, store, log) = on_disk().await;
    let first = node_operation(2, None, log_id(), BODY);
    let second = node_operation(2, Some(&first), log_id(), BODY);
    let third = node_operation(2, Some(&second), log_id(), BODY);
    let insert = async |operation: &NodeOperation| store.insert_operation(&operation.hash, operation, &log_id()).await;
    assert!(insert(&first).await.unwrap());
    assert!(!insert(&first).await.unwrap());
    assert!(matches!(insert(&third).await, Err(P2pandaStoreError::Refused(RefusedReason::Gap))));
    let forged = { NodeOperation { body: Some(vec![0x82, 0x01, 0x41, b'y'].into()), ..second.clone() } };
    assert!(matches!(insert(&forged).await, Err(P2pandaStoreError::Operation(_))));
    let elsewhere = node_operation(2, Some(&first), Hash::digest(b"another"), BODY);
    assert!(matches!(insert(&elsewhere).await, Err(P2pandaStoreError::Operation(_))));
    let misnamed = store.insert_operation(&first.hash, &second, &log_id()).await;
    assert!(matches!(misnamed, Err(P2pandaStoreError::Mismatch(_))));
    let unnamed = store.insert_operation(&second.hash, &second, &7_u32).await;
    assert!(matches!(unnamed, Err(P2pandaStoreError::NotALog)));
    assert!(insert(&second).await.unwrap());
    assert_eq!(assert_gapless(&store, log, bob().peer_id()).await, 2);
    let read: NodeOperation = store.get_operation(&second.hash).await.unwrap().unwrap();
    assert_eq!((&read.header, read.body), (&second.header, second.body));
}

#[tokio::test]
async fn what_was_acknowledged_is_not_deleted_for_p2panda_either() {
    let (store, log) = in_memory().await;
    let id = publish(&store, log, "edit").await.unwrap().operation.id().hash();
    let unsupported = |error| assert!(matches!(error, P2pandaStoreError::Unsupported(_)), "{error}");
    unsupported(OperationStore::<NodeOperation, _>::delete_operation(&store, &id).await.unwrap_err());
    unsupported(OperationStore::<NodeOperation, _>::delete_operation_payload(&store, &id).await.unwrap_err());
    let prune = LogStore::<NodeOperation, _, _, u32, Hash>::prune_entries(&store, &author(), &log_id(), &1).await;
    unsupported(prune.unwrap_err());
    unsupported(store.remove(&topic(), &author(), &log_id()).await.unwrap_err());
    assert_eq!(assert_gapless(&store, log, alice().peer_id()).await, 1);
}
