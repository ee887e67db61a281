//! Panda Network: a network node that a collaborative editor embeds.
//!
//! The editor owns its CRDT (Automerge, Yjs, Loro, its own). To the node operations are opaque bytes: what one editor
//! publishes arrives at every other editor of that document, per author in order, exactly once after de-duplication by the
//! cursor, through offline days and crashes, without a server in the middle.
//!
//! ```no_run
//! use std::time::Duration;
//! use panda_network::{DocumentEvent, PandaNetwork, PandaNetworkOptions, StartFrom};
//!
//! # async fn edit() -> Result<(), Box<dyn std::error::Error>> {
//! let network = PandaNetwork::start(PandaNetworkOptions::new("node-data")).await?;
//! let document = network.create().await?;
//! println!("invite with {}", document.ticket().await?);
//!
//! document.publish("an update of the CRDT").await?; // durable from here on, online or not
//!
//! let mut events = document.subscribe(StartFrom::Cursor).await?;
//! while let Some(event) = events.next().await {
//!     if let DocumentEvent::Operation(stored) = event? {
//!         // apply stored.operation.payload() to the CRDT and save it, then:
//!         events.commit(&stored).await?;
//!     }
//! }
//! network.shutdown(Duration::from_secs(5)).await?;
//! # Ok(())
//! # }
//! ```
//!
//! Peers behind NATs and firewalls reach each other with a relay's help ([`PandaNetworkOptions::with_relays`]), by the best path
//! there is at any time; [`doctor`] says why a machine cannot. A relay reads nothing of what they say.
//!
//! [`PandaNetwork`] is the node, [`Document`] an open document, [`Subscription`] a reader of it. An editor that wants to
//! test without a network programs against [`NetworkInterface`] and uses [`InMemoryNetwork`]; the feature `sim` adds a
//! simulated network, with NATs and relays, for the real node.
//!
//! # The floor plan
//!
//! A module uses what is below it, never its neighbours; `tests/architecture.rs` checks that.
//!
//! | floor | | modules |
//! |---|---|---|
//! | 5 | what an editor sees | [`panda_network`](mod@panda_network), re-exported here |
//! | 4 | services | [`documents`], [`connections`], [`discovery`], [`doctor`], `bridge`, `relay` |
//! | 3 | adapters, and tools of the runtime | [`storage`], [`transports`], `sim`, [`watch`] |
//! | 2 | pure protocol machines | [`nat`], [`rendezvous`], [`sync`] |
//! | 1 | ports | [`net`], [`network_interface`], `nodes`, [`store`], [`transport`] |
//! | 0 | vocabulary | [`ids`], [`identity`], [`address`], [`operation`], [`frame`], [`limits`], [`backoff`], [`cbor`], [`clock`], [`ticket`], [`error`] |
//!
//! # Features
//!
//! - none: the node, with QUIC and SQLite.
//! - `bridge`: takes open documents to p2panda Nodes.
//! - `relay`: the server that a cooperative runs for its nodes. Nodes use relays without it.
//! - `sim`: the simulated network, a test harness.
//! - `cli`: what the binary `panda` needs, `relay` included.

#![forbid(unsafe_code)]
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod address;
pub mod backoff;
#[cfg(feature = "bridge")]
pub mod bridge;
pub mod cbor;
pub mod clock;
pub mod connections;
pub mod discovery;
pub mod doctor;
pub mod documents;
pub mod error;
mod extensions;
pub mod frame;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod nat;
pub mod net;
pub mod network_interface;
#[cfg(feature = "bridge")]
pub mod nodes;
pub mod operation;
pub mod panda_network;
#[cfg(feature = "relay")]
pub mod relay;
pub mod rendezvous;
#[cfg(feature = "sim")]
#[allow(clippy::panic, clippy::print_stderr, reason = "a test harness prints its seed and ends the test")]
pub mod sim;
pub mod storage;
pub mod store;
pub mod sync;
pub mod ticket;
pub mod transport;
pub mod transports;
pub mod watch;

pub use address::{Capabilities, PeerAddress, TransportKind};
pub use backoff::ReconnectionPolicy;
pub use discovery::policy::Refusal;
pub use discovery::{DiscoveryOptions, Source};
pub use documents::{DocumentEvent, DocumentStatus, PeerProgress, PresenceChange, Receipt, StartFrom, Subscription};
pub use ids::{DocumentId, DocumentKey, OperationId, PeerId};
pub use network_interface::{
    ConnectionState, ConnectionStateWatch, NetworkError, NetworkInterface, NetworkMessage, OperationStream,
};
#[cfg(feature = "bridge")]
pub use nodes::P2pandaNode;
pub use operation::Operation;
pub use panda_network::{
    Document, EventsMissed, InMemoryHub, InMemoryNetwork, NetworkEvent, NetworkEvents, PandaError, PandaNetwork,
    PandaNetworkOptions, Presence,
};
pub use store::{Durability, Position, StoreError, StoredOperation};
pub use ticket::DocumentTicket;
pub use transport::PathKind;

/// Compiles what the README shows.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
