//! The transport as its users see it, on loopback sockets and on a simulated one.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::crypto::rustls::QuicClientConfig;

use super::connection::QuicConnection;
use super::{QuicTransport, QuicTransportOptions, dial, hello};
use crate::address::PeerAddress;
use crate::identity::Identity;
use crate::transport::{Connection, RecvHalf, Transport, TransportError, TransportKind};
use crate::transports::tls::{TlsIdentity, server_name};

mod connecting;
mod early;
#[cfg(feature = "bridge")]
mod nodes;
mod simulated;
mod streams;

/// Long enough that only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

fn identity(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

fn loopback() -> QuicTransportOptions {
    QuicTransportOptions::new().with_listen_address((Ipv4Addr::LOCALHOST, 0).into())
}

fn start(seed: u8) -> QuicTransport {
    start_with(seed, loopback())
}

fn start_with(seed: u8, options: QuicTransportOptions) -> QuicTransport {
    QuicTransport::start(&identity(seed), options).unwrap()
}

/// What the peer with this seed signed about where it is.
fn record(seed: u8, addresses: &[SocketAddr]) -> PeerAddress {
    let addresses = addresses.iter().map(|address| (TransportKind::Quic, *address)).collect();
    PeerAddress::sign(&identity(seed), addresses, Vec::new(), 1).unwrap()
}

fn address_of(transport: &QuicTransport) -> SocketAddr {
    transport.local_addresses()[0]
}

async fn connect(
    from: &QuicTransport,
    to: &QuicTransport,
    seed: u8,
) -> Result<(Arc<dyn Connection>, Arc<dyn Connection>), TransportError> {
    let record = record(seed, &[address_of(to)]);
    let dialled = from.connect(&record, PATIENCE).await?;
    Ok((dialled, to.accept().await.unwrap()))
}

/// Two peers and the two ends of a connection between them. The transports must outlive the ends.
struct Pair {
    alice: QuicTransport,
    bob: QuicTransport,
    at_alice: Arc<dyn Connection>,
    at_bob: Arc<dyn Connection>,
}

async fn pair() -> Pair {
    let (alice, bob) = (start(1), start(2));
    let (at_alice, at_bob) = connect(&alice, &bob, 2).await.unwrap();
    Pair { alice, bob, at_alice, at_bob }
}

/// As [`pair`], with the dialler's end in the open, to break the protocol with.
async fn rogue_pair() -> (QuicTransport, QuicTransport, Arc<QuicConnection>, Arc<dyn Connection>) {
    let (rogue, bob) = (start(1), start(2));
    let at_rogue =
        dial::connect(rogue.inner(), &record(2, &[address_of(&bob)]), false, &Default::default()).await.unwrap();
    let at_bob = bob.accept().await.unwrap();
    (rogue, bob, at_rogue, at_bob)
}

/// A peer that is nothing but quinn and has said nothing yet.
async fn raw_dial(bob: &QuicTransport) -> (quinn::Endpoint, quinn::Connection) {
    let tls = TlsIdentity::new(&identity(1)).unwrap().client().unwrap();
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let name = server_name(&identity(2).peer_id());
    let connection = endpoint.connect_with(config, address_of(bob), &name).unwrap().await.unwrap();
    (endpoint, connection)
}

/// The same after the hello, to break the protocol on the answering side too.
async fn raw_rogue(bob: &QuicTransport) -> (quinn::Endpoint, quinn::Connection) {
    let (endpoint, connection) = raw_dial(bob).await;
    let _said = hello::say(&connection, b"", PATIENCE).await.unwrap();
    hello::hear(&connection, PATIENCE).await.unwrap();
    (endpoint, connection)
}

async fn read_all(recv: &mut Box<dyn RecvHalf>) -> Result<Bytes, TransportError> {
    let mut bytes = BytesMut::new();
    while let Some(chunk) = recv.read(64 * 1024).await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}
