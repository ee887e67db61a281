//! Whole nodes behind every kind of NAT, with nothing but a ticket that names a relay: they connect, and by the best path
//! that the two NATs allow. On virtual time, with our own relay; `PANDA_SEED=<seed>` changes the seed.
#![cfg(all(feature = "sim", feature = "relay"))]

#[path = "support/places.rs"]
#[allow(dead_code, reason = "every test file takes what it needs of it")]
mod places;

use std::time::Duration;

use panda_network::sim::{self, Sim};
use panda_network::transport::PathKind;
use places::{Place, World};

fn seed() -> u64 {
    std::env::var("PANDA_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// Connects two nodes and returns by which path they speak once they had time to look for the best.
async fn settled_path(sim: Sim, left: Place, right: Place) -> PathKind {
    let world = World::new(&sim, Duration::from_millis(50)).await;
    let alice = world.node(left, "alice").await;
    let bob = world.node(right, "bob").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let document = alice.network.create().await.unwrap();
    let receipt = document.publish("hello").await.unwrap();
    let started = tokio::time::Instant::now();
    let there = bob.network.open(document.ticket().await.unwrap()).await.unwrap();
    let arrived = tokio::time::timeout(Duration::from_secs(20), places::payloads(&there, 1)).await;
    let first = started.elapsed();
    assert_eq!(arrived.expect("the operation arrives"), ["hello"]);
    receipt.delivered_to(1).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (info, stats) = bob.network.connections().remove(0);
    println!(
        "{left:?} x {right:?}: first operation after {first:?}, settled on {} ({:?})",
        info.path, stats.round_trip
    );
    if left == Place::UdpBlocked {
        assert_eq!(alice.network.connections()[0].0.path, PathKind::TurnTls);
    }
    info.path
}

/// What the two NATs allow.
fn expected(left: Place, right: Place) -> fn(PathKind) -> bool {
    use Place::{AddressRestricted, FullCone, Public, Symmetric, SymmetricPreserving, UdpBlocked};
    let symmetric = |place| matches!(place, Symmetric | SymmetricPreserving);
    let opens_to_anybody_it_knows = |place| matches!(place, Public | FullCone | AddressRestricted);
    match (left, right) {
        (_, UdpBlocked) => |path| path == PathKind::TurnTls,
        // Seen from the other end: plain datagrams to a relayed address.
        (UdpBlocked, _) => |path| path == PathKind::TurnUdp,
        (Public, _) | (_, Public) => |path| path == PathKind::Direct,
        _ if !symmetric(left) && !symmetric(right) => |path| path == PathKind::Punched,
        _ if symmetric(left) && opens_to_anybody_it_knows(right) => |path| path == PathKind::Punched,
        _ if symmetric(right) && opens_to_anybody_it_knows(left) => |path| path == PathKind::Punched,
        _ => |path| path == PathKind::Forwarded,
    }
}

#[test]
fn every_pair_of_nats_connects_by_the_best_path_there_is() {
    let mut wrong = Vec::new();
    let only: Vec<usize> = std::env::var("PANDA_PAIR")
        .ok()
        .map(|pair| pair.split(',').map(|n| n.parse().unwrap()).collect())
        .unwrap_or_default();
    for left in Place::ALL {
        for right in Place::ALL {
            if !only.is_empty() && (left != Place::ALL[only[0]] || right != Place::ALL[only[1]]) {
                continue;
            }
            let path = sim::run(seed(), |sim| settled_path(sim, left, right));
            if !expected(left, right)(path) {
                wrong.push(format!("{left:?} x {right:?}: {path}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
