//! Two editors of one text, each with its own node: what an embedder writes.
//!
//! `cargo run --example two_editors`

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use panda_network::{Document, DocumentEvent, PandaNetwork, PandaNetworkOptions, StartFrom, Subscription};
use yrs::updates::decoder::Decode;
use yrs::{Doc, GetString, Text, Transact, Update};

/// An editor: a CRDT that it owns, and a document of the network that carries its updates.
struct Editor {
    crdt: Doc,
    document: Document,
    events: Subscription,
}

impl Editor {
    async fn open(document: Document) -> Result<Self, Box<dyn Error>> {
        // From the start, because this editor keeps its text nowhere else: the log is the truth.
        let events = document.subscribe(StartFrom::Start).await?;
        Ok(Self { crdt: Doc::new(), document, events })
    }

    /// Inserts text and publishes what changed. When it returns the edit is durable, online or not.
    async fn insert(&self, at: u32, words: &str) -> Result<(), Box<dyn Error>> {
        let text = self.crdt.get_or_insert_text("text");
        let update = {
            let mut transaction = self.crdt.transact_mut();
            text.insert(&mut transaction, at, words);
            transaction.encode_update_v1()
        };
        self.document.publish(update).await?;
        Ok(())
    }

    /// Applies operations as they come, until the text is as long as expected.
    async fn receive_until(&mut self, length: usize) -> Result<String, Box<dyn Error>> {
        while self.text().len() < length {
            let event = self.events.next().await.ok_or("the node was shut down")??;
            if let DocumentEvent::Operation(stored) = event {
                let update = Update::decode_v1(stored.operation.payload())?;
                self.crdt.transact_mut().apply_update(update)?;
            }
        }
        Ok(self.text())
    }

    fn text(&self) -> String {
        let text = self.crdt.get_or_insert_text("text");
        text.get_string(&self.crdt.transact())
    }
}

/// A node that listens on this machine only.
async fn start(data_dir: &Path) -> Result<PandaNetwork, Box<dyn Error>> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Ok(PandaNetwork::start(PandaNetworkOptions::new(data_dir).with_listen_address(loopback)).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (alice_dir, bob_dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (alice_node, bob_node) = (start(alice_dir.path()).await?, start(bob_dir.path()).await?);

    // Alice makes a document; its ticket is all that Bob needs.
    let mut alice = Editor::open(alice_node.create().await?).await?;
    let ticket = alice.document.ticket().await?;
    let mut bob = Editor::open(bob_node.open(ticket).await?).await?;

    // Both write at the same time, in the same place.
    tokio::try_join!(alice.insert(0, "pandas eat bamboo. "), bob.insert(0, "pandas sleep. "))?;

    let length = "pandas eat bamboo. pandas sleep. ".len();
    let patience = Duration::from_secs(20);
    let (at_alice, at_bob) = tokio::time::timeout(patience, async {
        tokio::try_join!(alice.receive_until(length), bob.receive_until(length))
    })
    .await??;

    println!("Alice sees: {at_alice}\nBob sees:   {at_bob}");
    assert_eq!(at_alice, at_bob, "both editors see the same text");

    alice_node.shutdown(Duration::from_secs(5)).await?;
    bob_node.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}
