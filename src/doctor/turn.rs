//! Asking TURN servers for a relayed address, by all they offer, and giving it back.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::options::Step;
use super::relays::{Opened, in_order};
use super::report::{ProbeError, TurnFinding};
use super::tools::{Datagrams, Family, Tools, due, now};
use crate::limits::TURN_FRAME_MAX_BYTES;
use crate::nat::RetransmitOptions;
use crate::nat::allocation::{self, Allocation, TurnEvent, TurnOptions};
use crate::nat::credentials::TurnCredentials;
use crate::nat::framing::TurnFramer;
use crate::nat::stun::AddressFamily;
use crate::rendezvous::wire::{TurnServer, TurnTransport};
use crate::transports::stream::TokioStream;

/// How long connecting and asking may take, twice over: the first request is answered by a challenge.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often a datagram is sent: given up after 3 s.
const TRIES: u32 = 4;
/// The ALPN of TURN over TLS (RFC 7443).
const ALPN: &[u8] = b"stun.turn";

/// Asks all servers that the relays told us of; per relay.
pub(super) async fn examine(tools: &Arc<Tools>, relays: &[Opened]) -> Vec<Vec<TurnFinding>> {
    let mut of_relays = JoinSet::new();
    for (at, relay) in relays.iter().enumerate() {
        let mut tasks = JoinSet::new();
        let info = relay.info().cloned();
        for (at, server) in info.iter().flat_map(|info| &info.welcome.turn).cloned().enumerate() {
            let (tools, dialled) = (tools.clone(), info.as_ref().map(|info| info.address.ip()));
            tasks.spawn(async move { (at, examine_one(&tools, server, dialled).await) });
        }
        of_relays.spawn(async move { (at, in_order(tasks).await) });
    }
    in_order(of_relays).await
}

async fn examine_one(tools: &Tools, server: TurnServer, dialled: Option<IpAddr>) -> TurnFinding {
    tools.tell(Step::Turn(server.server.clone()));
    let started = Instant::now();
    let asked = timeout(DEADLINE, ask(tools, &server, dialled)).await;
    let asked = asked.unwrap_or(Err(ProbeError::Timeout(DEADLINE)));
    let took = started.elapsed();
    let relayed = asked.as_ref().ok().copied();
    TurnFinding { transport: server.transport, server: server.server, relayed, took: asked.map(|_| took) }
}

async fn ask(tools: &Tools, server: &TurnServer, dialled: Option<IpAddr>) -> Result<SocketAddr, ProbeError> {
    let credentials = TurnCredentials::new(server.username.clone(), server.password.clone());
    let credentials = credentials.map_err(|error| ProbeError::Protocol(error.to_string()))?;
    let mut error = ProbeError::NoAnswer;
    for address in addresses(tools, server, dialled).await? {
        let asked = match connect(tools, server, address).await {
            Ok(link) => allocate(tools, server.transport, address, link, credentials.clone()).await,
            Err(failed) => Err(failed),
        };
        match asked {
            Ok(relayed) => return Ok(relayed),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

/// Where the server is. An unspecified address stands for the relay that told us of it.
async fn addresses(tools: &Tools, server: &TurnServer, dialled: Option<IpAddr>) -> Result<Vec<SocketAddr>, ProbeError> {
    match (server.server.ip(), dialled) {
        (Some(ip), Some(dialled)) if ip.is_unspecified() => Ok(vec![(dialled, server.server.port()).into()]),
        _ => tools.resolve(&server.server).await,
    }
}

async fn connect(tools: &Tools, server: &TurnServer, address: SocketAddr) -> Result<Link, ProbeError> {
    let stream = match server.transport {
        TurnTransport::Udp => return Ok(Link::Udp(tools.bind(Family::of(&address))?, address)),
        TurnTransport::Tcp | TurnTransport::Tls => TokioStream(tools.network.connect_tcp(address).await?),
    };
    let stream: Box<dyn Stream> = match server.transport {
        TurnTransport::Udp | TurnTransport::Tcp => Box::new(stream),
        TurnTransport::Tls => {
            let tls = |error: &dyn std::fmt::Display| ProbeError::Protocol(error.to_string());
            // The credentials are good for nothing else, and what is relayed is encrypted between the peers.
            let mut config = tools.tls.client_of_anyone().map_err(|error| tls(&error))?;
            config.alpn_protocols = vec![ALPN.to_vec()];
            let name = ServerName::try_from("relay.invalid").map_err(|error| tls(&error))?;
            Box::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
        }
    };
    Ok(Link::Stream { stream, framer: TurnFramer::new(), chunk: BytesMut::new() })
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// How frames reach the server and come back.
enum Link {
    Udp(Datagrams, SocketAddr),
    Stream { stream: Box<dyn Stream>, framer: TurnFramer, chunk: BytesMut },
}

impl Link {
    async fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Udp(socket, server) => socket.send(*server, frame),
            Self::Stream { stream, .. } => {
                stream.write_all(frame).await?;
                stream.flush().await?;
            }
        }
        Ok(())
    }

    /// The next frame. Cancel-safe.
    async fn receive(&mut self) -> Result<Bytes, ProbeError> {
        loop {
            match self {
                Self::Udp(socket, server) => {
                    let server = *server;
                    let (from, frame) = socket.receive().await;
                    if from == server {
                        return Ok(Bytes::copy_from_slice(frame));
                    }
                }
                Self::Stream { stream, framer, chunk } => {
                    let frame = framer.next_frame().map_err(|error| ProbeError::Protocol(error.to_string()))?;
                    if let Some(frame) = frame {
                        return Ok(frame);
                    }
                    chunk.reserve(TURN_FRAME_MAX_BYTES);
                    if stream.read_buf(chunk).await? == 0 {
                        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                    }
                    framer.push(&chunk.split());
                }
            }
        }
    }
}

/// Gets a relayed address and gives it back.
async fn allocate(
    tools: &Tools,
    transport: TurnTransport,
    server: SocketAddr,
    mut link: Link,
    credentials: TurnCredentials,
) -> Result<SocketAddr, ProbeError> {
    let transport = match transport {
        TurnTransport::Udp => allocation::TurnTransport::Udp,
        TurnTransport::Tcp => allocation::TurnTransport::Tcp,
        TurnTransport::Tls => allocation::TurnTransport::Tls,
    };
    let family = match Family::of(&server) {
        Family::V4 => AddressFamily::V4,
        Family::V6 => AddressFamily::V6,
    };
    let retransmit = RetransmitOptions::new().with_tries(TRIES);
    let options = TurnOptions::new(transport).with_address_family(family).with_retransmit(retransmit);
    let mut machine = Allocation::new(options, credentials, tools.random());
    machine.allocate(now());
    loop {
        while let Some(frame) = machine.poll_transmit() {
            link.send(&frame).await?;
        }
        match machine.poll_event() {
            Some(TurnEvent::Allocated { relayed, .. }) => {
                machine.release(now());
                while let Some(frame) = machine.poll_transmit() {
                    // Not told, the server finds out by itself within minutes.
                    let _ = link.send(&frame).await;
                }
                return Ok(relayed);
            }
            Some(TurnEvent::Failed { why, .. }) => return Err(why.into()),
            Some(TurnEvent::PeerReady { .. } | TurnEvent::PeerRefused { .. } | TurnEvent::Released) => {}
            None => tokio::select! {
                biased;
                frame = link.receive() => {
                    machine.handle_input(now(), &frame?);
                }
                () = due(machine.poll_timeout()) => machine.handle_timeout(now()),
            },
        }
    }
}
