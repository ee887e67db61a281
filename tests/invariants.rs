//! What the node promises about operations (D1–D4), under loss, partitions, crashes and restarts, on many seeds.
//!
//! Whole nodes run on virtual time in a simulated network. A failure prints its seed; `PANDA_SEED=<seed>` runs only that one,
//! `PANDA_SEEDS=<count>` as many as wanted instead of 200.
#![cfg(feature = "sim")]

mod support;

use std::time::Duration;

use panda_network::sim::{self, LinkOptions, Sim};
use panda_network::store::StoreError;
use panda_network::{ConnectionState, PandaError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::Cluster;

/// Seeds that CI runs.
const SEEDS: u64 = 200;

fn seeds(count: u64) -> Vec<u64> {
    let from_environment = |name| std::env::var(name).ok().and_then(|value| value.parse().ok());
    match (from_environment("PANDA_SEED"), from_environment("PANDA_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, Some(count)) => (0..count).collect(),
        (None, None) => (0..count).collect(),
    }
}

fn bad_link(random: &mut ChaCha8Rng) -> LinkOptions {
    LinkOptions::new()
        .with_latency(Duration::from_millis(random.random_range(1..80)))
        .with_jitter(Duration::from_millis(random.random_range(0..30)))
        .with_loss(random.random_range(0.0..0.2))
        .with_reordering(random.random_range(0.0..0.1), Duration::from_millis(20))
        .with_duplication(random.random_range(0.0..0.05))
}

/// A random life of 3 to 5 nodes; returns the digest of its packets.
async fn life(sim: Sim) -> u64 {
    let mut random = ChaCha8Rng::seed_from_u64(sim.seed());
    let count = random.random_range(3..=5u8);
    let link = bad_link(&mut random);
    let mut cluster = Cluster::start(&sim, count, link).await;
    for step in 0..40 {
        let index = random.random_range(0..usize::from(count));
        match random.random_range(0..20) {
            0 => cluster.crash(index).await,
            1 => cluster.shut_down(index).await,
            2 => cluster.network.isolate(cluster.ip(index)),
            3 => cluster.network.reconnect(cluster.ip(index)),
            4 => {
                let (left, right): (Vec<_>, Vec<_>) =
                    (0..usize::from(count)).map(|index| cluster.ip(index)).partition(|_| random.random());
                cluster.network.partition(&left, &right);
            }
            5 => cluster.network.heal(),
            6 if cluster.nodes[index].running.is_some() => {
                cluster.running(index).network.set_connected(random.random()).await;
            }
            7..=9 if cluster.nodes[index].running.is_none() => cluster.start_node(index).await,
            10 => tokio::time::sleep(Duration::from_millis(random.random_range(0..20_000))).await,
            _ => {
                for number in 0..random.random_range(1..30) {
                    let mut payload = format!("{index} {step} {number} ").into_bytes();
                    payload.resize(payload.len() + random.random_range(0..300), b'.');
                    cluster.publish(index, payload).await;
                }
                tokio::time::sleep(Duration::from_millis(random.random_range(0..500))).await;
            }
        }
    }
    cluster.network.heal();
    for index in 0..usize::from(count) {
        cluster.network.reconnect(cluster.ip(index));
        match &cluster.nodes[index].running {
            Some(running) => running.network.set_connected(true).await,
            None => cluster.start_node(index).await,
        }
    }
    cluster.converge(Duration::from_secs(300)).await;
    cluster.assert_everything_arrived_once_in_order();
    cluster.network.trace_digest()
}

#[test]
fn after_faults_stop_every_node_has_every_acknowledged_operation_once_and_in_order() {
    for seed in seeds(SEEDS) {
        sim::run(seed, life);
    }
}

#[test]
fn the_same_seed_gives_the_same_packets() {
    let digests: Vec<_> = seeds(8).into_iter().map(|seed| (sim::run(seed, life), sim::run(seed, life))).collect();
    assert!(digests.iter().all(|(first, second)| first == second), "{digests:x?}");
    assert!(digests.len() == 1 || digests[0] != digests[1], "another seed, another trace");
}

#[test]
fn an_operation_travels_down_a_line_of_nodes_that_do_not_see_each_other() {
    sim::run(1, |sim| async move {
        let link = LinkOptions::new().with_latency(Duration::from_millis(20));
        let mut cluster = Cluster::start(&sim, 3, link).await;
        // Time to hear of each other: the last node has the address of the first only.
        tokio::time::sleep(Duration::from_secs(5)).await;
        cluster.network.partition(&[cluster.ip(0)], &[cluster.ip(2)]);
        for number in 0..100 {
            cluster.publish(0, format!("first {number}").into()).await;
            cluster.publish(2, format!("last {number}").into()).await;
        }
        cluster.converge(Duration::from_secs(20)).await;
        cluster.assert_everything_arrived_once_in_order();
    });
}

#[test]
fn a_node_restored_from_a_backup_uses_no_sequence_number_again() {
    sim::run(4, |sim| async move {
        let link = LinkOptions::new().with_latency(Duration::from_millis(20));
        let mut cluster = Cluster::start(&sim, 2, link).await;
        cluster.publish(0, b"in the backup".into()).await;
        cluster.converge(Duration::from_secs(5)).await;
        cluster.shut_down(0).await;
        let backup = cluster.back_up(0);
        cluster.start_node(0).await;
        for number in 0..300 {
            cluster.publish(0, format!("after the backup {number}").into()).await;
        }
        cluster.converge(Duration::from_secs(20)).await;
        cluster.crash(0).await;
        cluster.restore(0, backup);
        cluster.network.isolate(cluster.ip(1));
        cluster.start_node(0).await;
        let refused = cluster.running(0).document.publish("too early").await;
        assert!(matches!(refused, Err(PandaError::Store(StoreError::Restored(_)))), "{refused:?}");
        cluster.network.reconnect(cluster.ip(1));
        let mut status = cluster.running(0).document.status();
        status.wait_for(|status| !status.unconfirmed).await.unwrap();
        cluster.publish(0, b"after what came back".into()).await;
        cluster.converge(Duration::from_secs(60)).await;
        cluster.assert_everything_arrived_once_in_order();
        assert!(cluster.running(1).document.status().borrow().frozen.is_empty());
    });
}

#[test]
fn a_stream_that_was_closed_for_idleness_opens_again_whoever_has_something_to_say() {
    sim::run(2, |sim| async move {
        let link = LinkOptions::new().with_latency(Duration::from_millis(20));
        let mut cluster = Cluster::start(&sim, 2, link).await;
        for (hour, index) in [0, 1, 0, 1, 1].into_iter().enumerate() {
            cluster.publish(index, format!("hour {hour}").into()).await;
            cluster.converge(Duration::from_secs(5)).await;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            for index in 0..2 {
                assert_eq!(cluster.running(index).network.connections().len(), 1, "the connection stays");
                assert_eq!(cluster.running(index).document.status().borrow().peers, 0, "the stream does not");
            }
        }
        cluster.assert_everything_arrived_once_in_order();
    });
}

#[test]
fn presence_reaches_a_peer_behind_a_peer_and_stays_while_it_is_set() {
    sim::run(3, |sim| async move {
        let link = LinkOptions::new().with_latency(Duration::from_millis(20)).with_loss(0.1);
        let cluster = Cluster::start(&sim, 3, link).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        cluster.network.partition(&[cluster.ip(0)], &[cluster.ip(2)]);
        let first = cluster.running(0).network.node_id();
        cluster.running(0).document.presence().set("cursor").unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let shown = cluster.running(2).document.presence().peers();
        assert_eq!(shown, [(first, "cursor".into())]);
        cluster.running(0).document.presence().clear();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(cluster.running(2).document.presence().peers().is_empty());
    });
}

#[test]
fn a_document_closed_while_its_peer_is_away_leaves_an_idle_node() {
    sim::run(5, |sim| async move {
        let mut cluster = Cluster::start(&sim, 2, LinkOptions::new()).await;
        cluster.publish(0, b"one".into()).await;
        cluster.converge(Duration::from_secs(5)).await;
        cluster.crash(0).await;
        let bob = cluster.running(1);
        let mut state = bob.network.connection_state();
        state.wait_for(|state| *state == ConnectionState::Connecting).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        bob.network.close(bob.document.id()).await.unwrap();
        assert_eq!(*bob.network.connection_state().borrow(), ConnectionState::Idle);
        let sent = cluster.network.stats().sent;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(cluster.network.stats().sent, sent, "nobody is dialled any more");
    });
}

/// The document is closed at a random moment of the connection: while it is made, while catch-up runs, when all is quiet.
async fn close_at_a_random_moment(sim: Sim) {
    let mut random = ChaCha8Rng::from_seed(sim.derive_seed("close"));
    let link = bad_link(&mut random);
    let mut cluster = Cluster::start(&sim, 2, link).await;
    for number in 0..random.random_range(0..50) {
        cluster.publish(0, format!("{number}").into()).await;
    }
    tokio::time::sleep(Duration::from_millis(random.random_range(0..3000))).await;
    let bob = cluster.nodes[1].running.as_mut().unwrap();
    bob.network.close(bob.document.id()).await.unwrap();
    while let Some(event) = bob.next_event().await {
        event.unwrap();
    }
    let alice = cluster.running(0);
    let limit = Duration::from_secs(120);
    let mut status = alice.document.status();
    tokio::time::timeout(limit, status.wait_for(|status| status.peers == 0)).await.expect("alice hears of it").unwrap();
    cluster.shut_down(0).await;
    let mut state = cluster.running(1).network.connection_state();
    let idle = state.wait_for(|state| *state == ConnectionState::Idle);
    tokio::time::timeout(limit, idle).await.expect("bob is idle").unwrap();
}

#[test]
fn a_closed_document_ends_its_subscriptions_and_its_peers_are_not_dialled_any_more() {
    for seed in seeds(SEEDS) {
        sim::run(seed, close_at_a_random_moment);
    }
}
