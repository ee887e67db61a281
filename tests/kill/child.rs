//! The child's side of `tests/kill.rs`: a node that publishes as fast as it can and says what happens, until it is killed.
//!
//! The parent runs its own test binary again with [`Orders`] in the environment. The child tells on stdout, one line each:
//! that it starts, has started and has opened the document (with its heads); every receipt; every operation in the order of
//! its subscription. It ends in good order when its stdin ends, so it never outlives the parent.

use std::io::{Read, Write};
use std::time::Duration;

use panda_network::{Document, DocumentEvent, Durability, PandaNetwork, PandaNetworkOptions, PeerId, StartFrom};

use super::ledger::{Digest, Heads, Seen};

/// Variable that holds the orders.
const ORDERS: &str = "PANDA_KILL_CHILD";

/// What one life of the child is to do.
#[derive(Debug, Clone)]
pub struct Orders {
    pub directory: String,
    /// Number of this life, part of every payload.
    pub life: u32,
    /// How many operations are under way at once.
    pub window: u32,
    /// How many each of these publishes.
    pub each: u32,
    /// How many operations the parent has heard of before; only their digest is told again.
    pub known: usize,
    /// The document's ticket, or nothing to open what was opened before.
    pub ticket: String,
}

/// A line of the child.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Starting,
    Started(PeerId),
    Opened(Heads),
    /// The digest of the operations that are known already.
    Known(String),
    Operation(Seen),
    Receipt(Seen),
    /// Everything that was ordered is published.
    Published,
    Fork(PeerId),
    Failed(String),
    /// It shut down in good order, with these heads.
    Ended(Heads),
}

impl Orders {
    pub fn to_variable(&self) -> (&'static str, String) {
        let Self { directory, life, window, each, known, ticket } = self;
        (ORDERS, format!("{life} {window} {each} {known} {ticket} {directory}"))
    }

    /// The orders of this process, if it is a child.
    pub fn of_this_process() -> Option<Self> {
        let text = std::env::var(ORDERS).ok()?;
        let mut words = text.splitn(6, ' ');
        let mut word = || words.next().unwrap();
        Some(Self {
            life: word().parse().unwrap(),
            window: word().parse().unwrap(),
            each: word().parse().unwrap(),
            known: word().parse().unwrap(),
            ticket: word().into(),
            directory: word().into(),
        })
    }
}

impl Line {
    /// Reads a line; `None` for what the test harness says.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("@ ")?;
        let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
        Some(match word {
            "starting" => Self::Starting,
            "started" => Self::Started(rest.parse().unwrap()),
            "opened" => Self::Opened(Heads::parse(rest)),
            "known" => Self::Known(rest.into()),
            "operation" => Self::Operation(Seen::parse(rest)),
            "receipt" => Self::Receipt(Seen::parse(rest)),
            "published" => Self::Published,
            "fork" => Self::Fork(rest.parse().unwrap()),
            "ended" => Self::Ended(Heads::parse(rest)),
            _ => Self::Failed(text.into()),
        })
    }
}

/// Whole lines, and at once: what was said before a kill was said.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    // The parent may be gone; then so are we, soon.
    let _ = stdout.write_all(format!("@ {line}\n").as_bytes()).and_then(|()| stdout.flush());
}

pub fn options(directory: &str) -> PandaNetworkOptions {
    PandaNetworkOptions::new(directory)
        .with_listen_address("127.0.0.1:0".parse().unwrap())
        .with_durability(Durability::Process)
}

/// Runs a life until stdin ends or the parent kills it.
pub async fn live(orders: Orders) {
    // The harness has begun a line.
    println!();
    say("starting");
    if let Err(error) = try_live(&orders).await {
        say(&format!("failed {error}"));
    }
}

async fn try_live(orders: &Orders) -> Result<(), panda_network::PandaError> {
    let network = PandaNetwork::start(options(&orders.directory)).await?;
    say(&format!("started {}", network.node_id()));
    if orders.ticket == "-" && network.documents().await?.is_empty() {
        say("failed: a document that was opened is gone");
    }
    let document = match orders.ticket.as_str() {
        "none" => return std::future::pending().await,
        "-" => network.reopen(network.documents().await?[0]).await?,
        ticket => network.open(ticket.parse()?).await?,
    };
    say(&format!("opened {}", Heads::of(&document)));
    tokio::spawn(tell_operations(document.clone(), orders.known));
    let publishers: Vec<_> = (0..orders.window).map(|lane| publish(document.clone(), orders.clone(), lane)).collect();
    tokio::spawn(async move {
        let publishers: Vec<_> = publishers.into_iter().map(tokio::spawn).collect();
        for publisher in publishers {
            publisher.await.unwrap();
        }
        say("published");
    });
    let stdin = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    stdin.await.unwrap().unwrap();
    let heads = Heads::of(&document);
    network.shutdown(Duration::from_secs(5)).await?;
    say(&format!("ended {heads}"));
    Ok(())
}

async fn publish(document: Document, orders: Orders, lane: u32) {
    for number in 0..orders.each {
        let payload = format!("child-{}-{lane}-{number}", orders.life);
        match document.publish(payload).await {
            Ok(receipt) => say(&format!("receipt {}", Seen::of(receipt.operation()))),
            Err(error) => return say(&format!("failed {error}")),
        }
    }
}

async fn tell_operations(document: Document, known: usize) {
    let mut events = document.subscribe(StartFrom::Start).await.unwrap();
    let mut digest = Digest::default();
    if known == 0 {
        say(&format!("known {digest}"));
    }
    while let Some(event) = events.next().await {
        match event {
            Ok(DocumentEvent::Operation(stored)) => {
                let seen = Seen::of(&stored);
                let count = digest.add(&seen);
                match count.cmp(&known) {
                    std::cmp::Ordering::Less => {}
                    std::cmp::Ordering::Equal => say(&format!("known {digest}")),
                    std::cmp::Ordering::Greater => say(&format!("operation {seen}")),
                }
            }
            Ok(DocumentEvent::Fork(author)) => say(&format!("fork {author}")),
            Ok(_) => {}
            Err(error) => return say(&format!("failed {error}")),
        }
    }
}
