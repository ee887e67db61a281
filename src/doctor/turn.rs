//! Asking TURN servers for a relayed address, by all they offer, and giving it back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::options::Step;
use super::relays::{Opened, in_order};
use super::report::{ProbeError, TurnFinding};
use super::tools::{Datagrams, Family, Tools, due, now};
use crate::ids::PeerId;
use crate::limits::TURN_FRAME_MAX_BYTES;
use crate::nat::RetransmitOptions;
use crate::nat::allocation::{self, Allocation, TurnEvent, TurnOptions};
use crate::nat::credentials::TurnCredentials;
use crate::nat::framing::TurnFramer;
use crate::rendezvous::wire::{TurnServer, TurnTransport};
use crate::transports::stream::TokioStream;
use crate::transports::turn_tls::{self, ServerKey};

/// How long connecting and asking may take: at least four round trips, since the first request is answered by a challenge.
const DEADLINE: Duration = Duration::from_secs(5);
/// How often a datagram is sent: given up after 3 s.
const TRIES: u32 = 4;

/// Asks all servers that the relays told us of; per relay.
pub(super) async fn examine(tools: &Arc<Tools>, relays: &[Opened]) -> Vec<Vec<TurnFinding>> {
    let mut of_relays = JoinSet::new();
    for (at, relay) in relays.iter().enumerate() {
        let mut tasks = JoinSet::new();
        let info = relay.info().cloned();
        for (at, server) in info.iter().flat_map(|info| &info.welcome.turn).cloned().enumerate() {
            let (tools, relay) = (tools.clone(), info.as_ref().map(|info| (info.address, info.key)));
            tasks.spawn(async move { (at, examine_one(&tools, server, relay).await) });
        }
        of_relays.spawn(async move { (at, in_order(tasks).await) });
    }
    in_order(of_relays).await
}

/// Where a relay's TLS port was reached, and the key that it showed there.
type Relay = Option<(SocketAddr, PeerId)>;

async fn examine_one(tools: &Tools, server: TurnServer, relay: Relay) -> TurnFinding {
    tools.tell(Step::Turn(server.server.clone()));
    let started = Instant::now();
    let asked = timeout(DEADLINE, ask(tools, &server, relay)).await;
    let asked = asked.unwrap_or(Err(ProbeError::Timeout(DEADLINE)));
    let took = started.elapsed();
    let relayed = asked.as_ref().map(Clone::clone).unwrap_or_default();
    TurnFinding { transport: server.transport, server: server.server, relayed, took: asked.map(|_| took) }
}

async fn ask(tools: &Tools, server: &TurnServer, relay: Relay) -> Result<Vec<SocketAddr>, ProbeError> {
    let credentials = TurnCredentials::new(server.username.clone(), server.password.clone());
    let credentials = credentials.map_err(|error| ProbeError::Protocol(error.to_string()))?;
    let mut error = ProbeError::NoAnswer;
    for address in addresses(tools, server, relay).await? {
        let asked = match connect(tools, server, address, relay).await {
            Ok(link) => allocate(tools, server.transport, link, credentials.clone()).await,
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
async fn addresses(tools: &Tools, server: &TurnServer, relay: Relay) -> Result<Vec<SocketAddr>, ProbeError> {
    match (server.server.ip(), relay) {
        (Some(ip), Some((reached, _))) if ip.is_unspecified() => Ok(vec![(reached.ip(), server.server.port()).into()]),
        _ => tools.resolve(&server.server).await,
    }
}

async fn connect(tools: &Tools, server: &TurnServer, address: SocketAddr, relay: Relay) -> Result<Link, ProbeError> {
    let stream: Box<dyn Stream> = match server.transport {
        TurnTransport::Udp => return Ok(Link::Udp(tools.bind(Family::of(&address))?, address)),
        TurnTransport::Tcp => Box::new(TokioStream(tools.network.connect_tcp(address).await?)),
        TurnTransport::Tls => {
            let key = match (relay, server.pin) {
                (Some((reached, key)), _) if reached == address => ServerKey::Relay(key),
                (_, Some(pin)) => ServerKey::Pinned(pin),
                (_, None) => ServerKey::Any,
            };
            let stream = TokioStream(tools.network.connect_tcp(address).await?);
            Box::new(turn_tls::connect(&tools.tls, &server.server, &key, stream).await?)
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

/// Gets relayed addresses and gives them back.
async fn allocate(
    tools: &Tools,
    transport: TurnTransport,
    mut link: Link,
    credentials: TurnCredentials,
) -> Result<Vec<SocketAddr>, ProbeError> {
    let transport = match transport {
        TurnTransport::Udp => allocation::TurnTransport::Udp,
        TurnTransport::Tcp => allocation::TurnTransport::Tcp,
        TurnTransport::Tls => allocation::TurnTransport::Tls,
    };
    let retransmit = RetransmitOptions::new().with_tries(TRIES);
    let options = TurnOptions::new(transport).with_both_families().with_retransmit(retransmit);
    let mut machine = Allocation::new(options, credentials, tools.random());
    machine.allocate(now());
    loop {
        while let Some(frame) = machine.poll_transmit() {
            link.send(&frame).await?;
        }
        match machine.poll_event() {
            Some(TurnEvent::Allocated { relayed, also_relayed, .. }) => {
                machine.release(now());
                while let Some(frame) = machine.poll_transmit() {
                    // Not told, the server finds out by itself within minutes.
                    let _ = link.send(&frame).await;
                }
                return Ok([Some(relayed), also_relayed].into_iter().flatten().collect());
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
