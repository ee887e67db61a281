//! A document that is edited here and in an application built on `p2panda::Node` 0.7.1 at once.
//!
//! `cargo run --ignore-rust-version --example p2panda_bridge --features bridge -- <data dir> <network id> <Node's key> <address>`
//!
//! Network id and key are 64 hexadecimal digits each, as `Node::network_id()` and `Node::id()` say; the address is `ip:port`.
//! It prints the topic that the Node has to open, with messages that encode as the CBOR array `[1, bytes]`. Every line that
//! is typed goes to the Node, and what the Node publishes is printed. Ends with the input.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use panda_network::nodes::{P2pandaNetworkId, P2pandaNode};
use panda_network::{Document, DocumentEvent, PandaNetwork, PandaNetworkOptions, PeerId, StartFrom};
use tokio::io::{AsyncBufReadExt, BufReader};

const USAGE: &str = "usage: p2panda_bridge <data dir> <network id> <Node's key> <address>";

/// What the command line says.
fn options() -> Result<PandaNetworkOptions, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or(USAGE);
    let (data_dir, network, key, address) = (next()?, next()?, next()?, next()?);
    let network: [u8; 32] = data_encoding::HEXLOWER_PERMISSIVE
        .decode(network.as_bytes())?
        .try_into()
        .map_err(|_| "a network id is 64 hexadecimal digits")?;
    let node = P2pandaNode::new(key.parse::<PeerId>()?, [address.parse::<SocketAddr>()?]);
    Ok(PandaNetworkOptions::new(data_dir).with_p2panda_bridge(P2pandaNetworkId::from(network), node))
}

/// The document of the last run, or a new one.
async fn document(network: &PandaNetwork) -> Result<Document, Box<dyn Error>> {
    match network.documents().await?.first() {
        Some(known) => Ok(network.reopen(*known).await?),
        None => Ok(network.create().await?),
    }
}

/// Prints what others published, from the beginning.
async fn print(document: Document, own: PeerId) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut events = document.subscribe(StartFrom::Start).await?;
    while let Some(event) = events.next().await {
        if let DocumentEvent::Operation(stored) = event?
            && stored.operation.author() != own
        {
            // Not as it came: a terminal obeys what it is shown.
            let text = String::from_utf8_lossy(stored.operation.payload());
            println!("{}: {}", stored.operation.author().short(), text.escape_debug());
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let network = PandaNetwork::start(options()?).await?;
    let document = document(&network).await?;
    let ticket = document.ticket().await?;
    println!("topic: {}", ticket.key().topic(&ticket.document()));
    println!("peers join with {ticket}");
    let printing = tokio::spawn(print(document.clone(), network.node_id()));

    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut every = tokio::time::interval(Duration::from_secs(5));
    let mut shown = String::new();
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => _ = document.publish(line).await?,
                None => break,
            },
            _ = every.tick() => {
                for status in network.bridge_status() {
                    let problem = status.problem.map(|problem| format!(": {problem}")).unwrap_or_default();
                    let (sent, received) = (status.sent, status.received);
                    let now = format!("the Node is {}connected, {sent} sent, {received} received{problem}",
                        if status.connected > 0 { "" } else { "not " });
                    if now != shown {
                        println!("{now}");
                        shown = now;
                    }
                }
            }
        }
    }
    printing.abort();
    network.shutdown(Duration::from_secs(5)).await?;
    Ok(())
}
