//! What becomes of received operations: in their place, known already, too early, or in contradiction.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::limits::DOCUMENT_MAX_AUTHORS;
use crate::store::{ForkProof, Ingested, Refused, RefusedReason};

fn refused(operation: &Operation, reason: RefusedReason, expected: u32) -> Refused {
    Refused { author: operation.author(), seq_num: operation.seq_num(), reason, expected }
}

fn operations(ingested: &Ingested) -> Vec<Operation> {
    ingested.stored.iter().map(|stored| stored.operation.clone()).collect()
}

#[tokio::test]
async fn operations_that_are_here_already_are_counted_and_not_stored_again() {
    let (_directory, store, log) = on_disk().await;
    let chain = chain(&bob(), log, 6, "");
    assert_eq!(operations(&store.ingest(log, chain[..4].to_vec()).await.unwrap()), chain[..4]);
    let ingested = store.ingest(log, chain.clone()).await.unwrap();
    assert_eq!((ingested.duplicates, operations(&ingested)), (4, chain[4..].to_vec()));
    assert_eq!(assert_gapless(&store, log, bob().peer_id()).await, 6);
}

#[tokio::test]
async fn an_operation_after_a_gap_is_refused_and_the_store_says_what_it_wants() {
    let (store, log) = in_memory().await;
    let chain = chain(&bob(), log, 5, "");
    let ingested = store.ingest(log, vec![chain[1].clone(), chain[0].clone(), chain[4].clone()]).await.unwrap();
    assert_eq!(operations(&ingested), chain[..1]);
    assert_eq!(
        ingested.refused,
        [refused(&chain[1], RefusedReason::Gap, 0), refused(&chain[4], RefusedReason::Gap, 1)]
    );
}

#[tokio::test]
async fn a_fork_leaves_a_proof_and_freezes_its_author_and_nobody_else() {
    let (_directory, store, log) = on_disk().await;
    let (one, other) = (chain(&bob(), log, 3, "one "), chain(&bob(), log, 3, "other "));
    store.ingest(log, one[..2].to_vec()).await.unwrap();
    let ingested = store.ingest(log, vec![other[0].clone(), one[0].clone(), one[2].clone()]).await.unwrap();
    assert_eq!(ingested.duplicates, 1, "what is stored stays a duplicate");
    assert_eq!(
        ingested.refused,
        [refused(&other[0], RefusedReason::Fork, 2), refused(&one[2], RefusedReason::Frozen, 2)]
    );
    let again = store.ingest(log, vec![other[1].clone()]).await.unwrap();
    assert_eq!(again.refused, [refused(&other[1], RefusedReason::Frozen, 2)]);
    let proof = ForkProof { kept: one[0].clone(), other: other[0].clone() };
    assert_eq!(store.fork_proofs(log).await.unwrap(), [proof], "the first proof is kept");
    assert_eq!(state(&store, 1).await.frozen, [bob().peer_id()]);
    publish(&store, log, "goes on").await.unwrap();
}

#[tokio::test]
async fn a_successor_of_another_operation_is_a_fork_as_well() {
    let (store, log) = in_memory().await;
    let (one, other) = (chain(&bob(), log, 1, "one "), chain(&bob(), log, 2, "other "));
    store.ingest(log, one.clone()).await.unwrap();
    let ingested = store.ingest(log, vec![other[1].clone()]).await.unwrap();
    assert_eq!(ingested.refused, [refused(&other[1], RefusedReason::Fork, 1)]);
    let proof = ForkProof { kept: one[0].clone(), other: other[1].clone() };
    assert_eq!(store.fork_proofs(log).await.unwrap(), [proof]);
}

#[tokio::test]
async fn a_frozen_author_stays_frozen_after_a_restart() {
    let (directory, store, log) = on_disk().await;
    let (one, other) = (chain(&bob(), log, 2, "one "), chain(&bob(), log, 1, "other "));
    store.ingest(log, vec![one[0].clone(), other[0].clone()]).await.unwrap();
    drop(store);
    let store = open(directory.path());
    let ingested = store.ingest(log, vec![one[1].clone()]).await.unwrap();
    assert_eq!(ingested.refused, [refused(&one[1], RefusedReason::Frozen, 1)]);
    assert_eq!(state(&store, 1).await.frozen, [bob().peer_id()]);
}

#[tokio::test]
async fn own_operations_come_back_from_peers_and_the_next_publish_follows_them() {
    let (store, log) = in_memory().await;
    let before = chain(&alice(), log, 3, "before the backup ");
    store.ingest(log, before.clone()).await.unwrap();
    let next = publish(&store, log, "next").await.unwrap();
    assert_eq!((next.operation.seq_num(), next.operation.backlink()), (3, Some(before[2].id())));
    assert_eq!(state(&store, 1).await.outbox_operations, 4);
}

#[tokio::test]
async fn a_node_whose_own_log_is_frozen_does_not_publish_what_nobody_would_take() {
    let (store, log) = in_memory().await;
    publish(&store, log, "here").await.unwrap();
    store.ingest(log, chain(&alice(), log, 1, "on the clone ")).await.unwrap();
    assert!(matches!(publish(&store, log, "next").await, Err(StoreError::OwnLogFrozen(of)) if of == log));
    assert_eq!(everything(&store, log).await.len(), 1);
}

#[tokio::test]
async fn one_author_too_many_is_refused_and_the_known_ones_go_on() {
    let (store, log) = in_memory().await;
    let mut authors = Vec::new();
    for number in 0..=DOCUMENT_MAX_AUTHORS {
        let mut seed = [9; 32];
        seed[..8].copy_from_slice(&number.to_le_bytes());
        authors.push(Identity::from_seed(&seed));
    }
    let first: Vec<_> = authors.iter().flat_map(|author| chain(author, log, 1, "")).collect();
    let ingested = store.ingest(log, first.clone()).await.unwrap();
    assert_eq!(ingested.stored.len(), DOCUMENT_MAX_AUTHORS);
    assert_eq!(ingested.refused, [refused(&first[DOCUMENT_MAX_AUTHORS], RefusedReason::TooManyAuthors, 0)]);
    let next = continue_chain(&authors[0], log, Some(first[0].head()), 1, "");
    assert_eq!(operations(&store.ingest(log, next.clone()).await.unwrap()), next);
}

#[tokio::test]
async fn the_same_author_has_a_log_in_each_document() {
    let (store, log) = in_memory().await;
    state(&store, 2).await;
    let other = document(2).log();
    store.ingest(log, chain(&bob(), log, 2, "")).await.unwrap();
    store.ingest(other, chain(&bob(), other, 3, "")).await.unwrap();
    assert_eq!(state(&store, 1).await.heads[&bob().peer_id()].seq_num, 1);
    assert_eq!(state(&store, 2).await.heads[&bob().peer_id()].seq_num, 2);
}

/// The obvious store: every log as a list.
#[derive(Default)]
struct Model {
    logs: BTreeMap<PeerId, (Vec<Operation>, bool)>,
    order: Vec<Operation>,
    proofs: usize,
}

impl Model {
    fn ingest(&mut self, operation: &Operation) -> Result<bool, RefusedReason> {
        let (log, frozen) = self.logs.entry(operation.author()).or_default();
        let seq_num = operation.seq_num() as usize;
        if log.get(seq_num) == Some(operation) {
            return Ok(false);
        }
        if *frozen {
            return Err(RefusedReason::Frozen);
        }
        if seq_num > log.len() {
            return Err(RefusedReason::Gap);
        }
        if seq_num < log.len() || operation.backlink() != log.last().map(Operation::id) {
            (*frozen, self.proofs) = (true, self.proofs + 1);
            return Err(RefusedReason::Fork);
        }
        log.push(operation.clone());
        self.order.push(operation.clone());
        Ok(true)
    }
}

/// Two authors with two branches each: branch 1 leaves branch 0 after two operations.
fn branches(log: LogId) -> Vec<Vec<Operation>> {
    [alice(), bob()]
        .iter()
        .flat_map(|author| {
            let trunk = chain(author, log, 6, "trunk ");
            let mut branch = trunk[..2].to_vec();
            branch.extend(continue_chain(author, log, Some(trunk[1].head()), 4, "branch "));
            [trunk, branch]
        })
        .collect()
}

#[derive(Debug, Clone)]
enum Step {
    /// Branch and the range of its operations that arrives.
    Ingest(usize, usize, usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        9 => (0..4_usize, 0..6_usize, 1..4_usize).prop_map(|(branch, first, count)| Step::Ingest(branch, first, count)),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_arrives_the_store_holds_what_an_obvious_one_would(steps in prop::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let inline = || SqliteStore::open(options(directory.path()).with_inline(true), alice()).unwrap();
            let log = document(1).log();
            let branches = branches(log);
            let mut model = Model::default();
            let mut store = inline();
            state(&store, 1).await;
            for step in steps {
                let Step::Ingest(branch, first, count) = step else {
                    drop(store);
                    store = inline();
                    continue;
                };
                let batch: Vec<_> = branches[branch].iter().skip(first).take(count).cloned().collect();
                let expected: Vec<_> = batch.iter().map(|operation| model.ingest(operation)).collect();
                let ingested = store.ingest(log, batch).await.unwrap();
                assert_eq!(ingested.stored.len(), expected.iter().filter(|outcome| **outcome == Ok(true)).count());
                assert_eq!(ingested.duplicates, expected.iter().filter(|outcome| **outcome == Ok(false)).count());
                let reasons: Vec<_> = ingested.refused.iter().map(|refused| refused.reason).collect();
                assert_eq!(reasons, expected.iter().filter_map(|outcome| outcome.err()).collect::<Vec<_>>());
            }
            let stored: Vec<_> = everything(&store, log).await.into_iter().map(|stored| stored.operation).collect();
            assert_eq!(stored, model.order);
            assert_eq!(store.fork_proofs(log).await.unwrap().len(), model.proofs);
            let state = state(&store, 1).await;
            let heads = model.logs.iter().filter_map(|(author, (log, _))| Some((*author, log.last()?.head())));
            assert_eq!(state.heads, heads.collect());
            let own = model.logs.get(&alice().peer_id()).map(|(log, _)| log.as_slice()).unwrap_or_default();
            assert_eq!(state.outbox_operations, own.len());
            assert_eq!(state.outbox_bytes, own.iter().map(|operation| operation.size() as u64).sum::<u64>());
        });
    }
}
