//! Who is here and where their cursors are: shared while it is true, gone by itself, never stored.
//!
//! `cargo run --example presence`

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use panda_network::{DocumentEvent, PandaNetwork, PandaNetworkOptions, PresenceChange, StartFrom, Subscription};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node that listens on this machine only.
async fn start(data_dir: &Path) -> Result<PandaNetwork, Box<dyn Error>> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(PandaNetwork::start(PandaNetworkOptions::new(data_dir).with_listen_address(loopback)).await?)
}

/// The next change of somebody's presence; an editor would move a cursor here.
async fn next_change(events: &mut Subscription) -> Result<PresenceChange, Box<dyn Error>> {
    loop {
        let event = tokio::time::timeout(PATIENCE, events.next()).await?.ok_or("the node was shut down")??;
        if let DocumentEvent::Presence(change) = event {
            return Ok(change);
        }
    }
}

fn show(change: &PresenceChange) {
    match change {
        PresenceChange::Updated { peer, state } => {
            // Not as it came: a terminal obeys what it is shown.
            println!("{} is at {}", peer.short(), String::from_utf8_lossy(state).escape_debug());
        }
        PresenceChange::Gone { peer } => println!("{} is gone", peer.short()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (alice_dir, bob_dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (alice, bob) = (start(alice_dir.path()).await?, start(bob_dir.path()).await?);
    let at_alice = alice.create().await?;
    let mut events = at_alice.subscribe(StartFrom::Now).await?;
    let at_bob = bob.open(at_alice.ticket().await?).await?;
    let mut status = at_bob.status();
    tokio::time::timeout(PATIENCE, status.wait_for(|status| status.peers == 1)).await??;

    // Bob moves his cursor: only the newest state counts.
    at_bob.presence().set("line 3, column 14")?;
    let change = next_change(&mut events).await?;
    show(&change);
    assert!(matches!(change, PresenceChange::Updated { peer, .. } if peer == bob.node_id()));
    println!("Alice sees {} cursor", at_alice.presence().peers().len());

    // Bob leaves: his cursor does not stay behind.
    bob.shutdown(Duration::from_secs(5)).await?;
    let change = next_change(&mut events).await?;
    show(&change);
    assert_eq!(change, PresenceChange::Gone { peer: bob.node_id() });

    alice.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}
