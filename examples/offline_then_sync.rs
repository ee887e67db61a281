//! Edits made offline are durable at once, wait in the queue, and arrive after the node is back.
//!
//! `cargo run --example offline_then_sync`

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use panda_network::{Document, DocumentEvent, PandaNetwork, PandaNetworkOptions, StartFrom};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node that listens on this machine only.
async fn start(data_dir: &Path) -> Result<PandaNetwork, Box<dyn Error>> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(PandaNetwork::start(PandaNetworkOptions::new(data_dir).with_listen_address(loopback)).await?)
}

/// Reads so many operations from the beginning of the document, in the order of this node.
async fn read(document: &Document, count: usize) -> Result<Vec<String>, Box<dyn Error>> {
    let mut events = document.subscribe(StartFrom::Start).await?;
    let mut operations = Vec::new();
    while operations.len() < count {
        let event = tokio::time::timeout(PATIENCE, events.next()).await?.ok_or("the node was shut down")??;
        if let DocumentEvent::Operation(stored) = event {
            operations.push(String::from_utf8(stored.operation.payload().to_vec())?);
        }
    }
    Ok(operations)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (home_dir, train_dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (home, train) = (start(home_dir.path()).await?, start(train_dir.path()).await?);
    let at_home = home.create().await?;
    let on_train = train.open(at_home.ticket().await?).await?;
    let mut status = on_train.status();
    tokio::time::timeout(PATIENCE, status.wait_for(|status| status.peers == 1)).await??;

    // Into the tunnel. Both sides keep working; to the node an operation is any bytes.
    train.set_connected(false).await;
    at_home.publish("milk").await?;
    on_train.publish("bread").await?;
    let receipt = on_train.publish("bamboo").await?;
    println!("offline: {} operations wait for the other side", on_train.status().borrow().pending);
    println!("the last one is on {} other devices", receipt.delivered());

    // Out of the tunnel.
    train.set_connected(true).await;
    tokio::time::timeout(PATIENCE, receipt.delivered_to(1)).await?;
    println!("online:  the last one is on {} other device", receipt.delivered());

    let (mut here, mut there) = (read(&on_train, 3).await?, read(&at_home, 3).await?);
    println!("on the train: {here:?}\nat home:      {there:?}");
    // Every node has its own order; operations of one author keep theirs. A CRDT does not mind.
    here.sort();
    there.sort();
    assert_eq!(here, there, "both have the same operations");

    train.shutdown(Duration::from_secs(5)).await?;
    home.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}
