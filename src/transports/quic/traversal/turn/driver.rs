//! Runs one allocation: finds its server, connects, and carries frames until it fails or is stopped.
//!
//! Over UDP it shares the node's socket, and what the server sends comes in through [`Paths`]. Over TCP and TLS it has a
//! stream of its own, with two bounded queues: one for requests, and one for payloads, which are dropped when the server
//! does not keep up. A stream on which nothing came for a while is asked for a sign of life.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::client::TlsStream;

use super::Turns;
use super::link::{Link, Way};
use crate::limits::{NAT_KEEP_ALIVE_MAX, RELAY_CONNECT_DEADLINE, TURN_MAX_TRANSACTIONS, TURN_SEND_QUEUE};
use crate::nat::allocation::{Allocation, TurnFailure, TurnOptions, TurnTransport};
use crate::nat::credentials::TurnCredentials;
use crate::nat::framing::{TurnFramer, TurnStreamError};
use crate::nat::path::{Path, Via};
use crate::nat::stun::{Request, TransactionId};
use crate::net::ByteStream;
use crate::rendezvous::address::HostPort;
use crate::transport::PathKind;
use crate::transports::quic::addresses::{canonical, has_family};
use crate::transports::quic::paths::{Received, TurnLink};
use crate::transports::quic::traversal::Traversal;
use crate::transports::stream::{self, TokioStream};
use crate::transports::turn_tls::{self, ServerKey, TurnTlsError};

/// Bytes read at once.
const READ_BYTES: usize = 16 * 1024;
/// Bytes written at once, but for the last frame.
const WRITE_BYTES: usize = 16 * 1024;
/// How long the answer to a request for a sign of life may take.
const LIFE_WAIT: Duration = Duration::from_secs(5);
/// When nothing is due.
const FAR: Duration = Duration::from_secs(3600);

/// Where to allocate, and with what.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) id: u8,
    pub(super) transport: TurnTransport,
    pub(super) server: HostPort,
    /// What an unspecified address stands for.
    pub(super) relay_ip: IpAddr,
    /// The server's key, if it is known.
    pub(super) key: ServerKey,
    pub(super) credentials: TurnCredentials,
}

/// Why an allocation ended.
#[derive(Debug, Error)]
pub(super) enum TurnError {
    /// The environment, or the server is down.
    #[error("TURN server cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// Nobody answered.
    #[error("TURN server did not answer within {0:?}")]
    Timeout(Duration),
    /// What the server said, or did not.
    #[error(transparent)]
    Failed(#[from] TurnFailure),
    /// The server broke the protocol.
    #[error(transparent)]
    Stream(#[from] TurnStreamError),
    /// Somebody else, or no TLS.
    #[error(transparent)]
    Tls(#[from] TurnTlsError),
}

/// Runs until the allocation fails, or `stopped` is sent or dropped.
pub(super) async fn run(traversal: Arc<Traversal>, plan: Plan, stopped: oneshot::Receiver<()>) {
    let id = plan.id;
    let why = tokio::select! {
        biased;
        _ = stopped => None,
        why = Box::pin(serve(&traversal, plan)) => Some(why),
    };
    if let Some(why) = &why {
        tracing::debug!(%why, "an allocation ended");
    }
    traversal.turns.end(&traversal.paths, id, why);
}

async fn serve(traversal: &Traversal, plan: Plan) -> TurnError {
    let ended = match plan.transport {
        TurnTransport::Udp => over_datagrams(traversal, plan).await,
        TurnTransport::Tcp => match connect(traversal, &plan).await {
            Ok(stream) => over_stream(traversal, plan, stream).await,
            Err(error) => Err(error),
        },
        TurnTransport::Tls => match timeout(RELAY_CONNECT_DEADLINE, connect_tls(traversal, &plan)).await {
            Ok(Ok(stream)) => over_stream(traversal, plan, stream).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(TurnError::Timeout(RELAY_CONNECT_DEADLINE)),
        },
    };
    match ended {
        Err(error) => error,
        // Only a stream that the server closed ends without an error.
        Ok(()) => TurnFailure::TransportLost.into(),
    }
}

async fn over_datagrams(traversal: &Traversal, plan: Plan) -> Result<(), TurnError> {
    let addresses = resolve(traversal, &plan).await?;
    let interfaces = traversal.options.network.interface_addresses();
    let reaches = |to: &SocketAddr| traversal.paths.reaches(to) && has_family(&interfaces, to.ip());
    let reached = addresses.into_iter().find(reaches);
    let server = canonical(reached.ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?);
    let link = start(traversal, plan, Way::Datagrams(server));
    tend(&traversal.turns, &link, |frame| {
        // A relay may have named somebody else's address.
        if traversal.paths.may_ask(server) {
            traversal.paths.send(Path::direct(server), &frame);
        }
    })
    .await
}

async fn over_stream<S: AsyncRead + AsyncWrite + Send>(
    traversal: &Traversal,
    plan: Plan,
    stream: S,
) -> Result<(), TurnError> {
    let (payloads, to_send) = mpsc::channel(TURN_SEND_QUEUE);
    // As many as can be under way, and signs of life.
    let (requests, to_ask) = mpsc::channel(2 * TURN_MAX_TRANSACTIONS);
    let link = start(traversal, plan, Way::Stream(payloads));
    let (read, write) = tokio::io::split(stream);
    tokio::select! {
        biased;
        ended = read_frames(traversal, &link, read, &requests) => ended,
        ended = write_frames(write, to_ask, to_send) => ended,
        // Full: as if it were lost; the machine asks again.
        ended = tend(&traversal.turns, &link, |frame| _ = requests.try_send(frame.into())) => ended,
    }
}

fn start(traversal: &Traversal, plan: Plan, way: Way) -> Arc<Link> {
    let kind = match plan.transport {
        TurnTransport::Udp => PathKind::TurnUdp,
        TurnTransport::Tcp => PathKind::TurnTcp,
        TurnTransport::Tls => PathKind::TurnTls,
    };
    // Which family a peer has is not known before it is met.
    let options = TurnOptions::new(plan.transport).with_both_families();
    let allocation = Allocation::new(options, plan.credentials, traversal.random());
    let link = Arc::new(Link::new(Instant::now().into_std(), plan.id, kind, way, allocation));
    traversal.turns.add(&traversal.paths, &link);
    link
}

/// Gives the machine its time, and the server what the machine says.
async fn tend(turns: &Turns, link: &Link, mut send: impl FnMut(Vec<u8>)) -> Result<(), TurnError> {
    loop {
        let step = link.step(Instant::now().into_std());
        step.frames.into_iter().for_each(&mut send);
        if step.news {
            turns.tell();
        }
        if let Some(why) = step.failed {
            return Err(why.into());
        }
        tokio::select! {
            biased;
            () = link.wake.notified() => {}
            () = sleep_until(step.due.map_or_else(|| Instant::now() + FAR, Into::into)) => {}
        }
    }
}

async fn read_frames<S: AsyncRead>(
    traversal: &Traversal,
    link: &Link,
    mut read: ReadHalf<S>,
    requests: &mpsc::Sender<Bytes>,
) -> Result<(), TurnError> {
    let (mut framer, mut chunk) = (TurnFramer::new(), BytesMut::with_capacity(READ_BYTES));
    let mut asked = false;
    loop {
        chunk.clear();
        chunk.reserve(READ_BYTES);
        match timeout(if asked { LIFE_WAIT } else { NAT_KEEP_ALIVE_MAX }, read.read_buf(&mut chunk)).await {
            Ok(Ok(0)) => return Ok(()),
            Ok(Ok(_)) => asked = false,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) if asked => return Err(TurnError::Timeout(LIFE_WAIT)),
            Err(_) => {
                asked = true;
                let id = TransactionId::from_random(traversal.random());
                if let Ok(request) = Request::binding().seal(id, None) {
                    let _ = requests.try_send(Bytes::copy_from_slice(request.bytes()));
                }
            }
        }
        framer.push(&chunk);
        while let Some(frame) = framer.next_frame()? {
            if let Received::Payload { peer, payload } = link.receive(&frame) {
                let path = Path { via: Via::Turn { allocation: link.id }, remote: canonical(peer) };
                traversal.paths.inject(path, payload);
            }
        }
    }
}

async fn write_frames<S: AsyncWrite>(
    mut write: WriteHalf<S>,
    mut requests: mpsc::Receiver<Bytes>,
    mut payloads: mpsc::Receiver<Bytes>,
) -> Result<(), TurnError> {
    let mut out = Vec::new();
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = requests.recv() => frame,
            Some(frame) = payloads.recv() => frame,
            else => return Ok(()),
        };
        out.clear();
        out.extend_from_slice(&frame);
        while out.len() < WRITE_BYTES {
            let Ok(frame) = requests.try_recv().or_else(|_| payloads.try_recv()) else { break };
            out.extend_from_slice(&frame);
        }
        let written = async {
            write.write_all(&out).await?;
            write.flush().await
        };
        timeout(RELAY_CONNECT_DEADLINE, written).await.map_err(|_| TurnError::Timeout(RELAY_CONNECT_DEADLINE))??;
    }
}

async fn resolve(traversal: &Traversal, plan: &Plan) -> io::Result<Vec<SocketAddr>> {
    match plan.server.ip() {
        Some(ip) if ip.is_unspecified() => Ok(vec![SocketAddr::new(plan.relay_ip, plan.server.port())]),
        Some(ip) => Ok(vec![SocketAddr::new(ip, plan.server.port())]),
        None => traversal.options.network.resolve(plan.server.host(), plan.server.port()).await,
    }
}

async fn connect(traversal: &Traversal, plan: &Plan) -> Result<TokioStream, TurnError> {
    let connected = async {
        let mut error = io::Error::from(io::ErrorKind::NotFound);
        let addresses = resolve(traversal, plan).await?;
        let share = RELAY_CONNECT_DEADLINE / u32::try_from(addresses.len().max(1)).unwrap_or(1);
        for address in addresses {
            match timeout(share, stream::connect(&*traversal.options.network, address)).await {
                Ok(Ok(stream)) => return Ok::<Box<dyn ByteStream>, io::Error>(stream),
                Ok(Err(failed)) => error = failed,
                Err(_) => error = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(error)
    };
    match timeout(RELAY_CONNECT_DEADLINE, connected).await {
        Ok(stream) => Ok(TokioStream(stream?)),
        Err(_) => Err(TurnError::Timeout(RELAY_CONNECT_DEADLINE)),
    }
}

async fn connect_tls(traversal: &Traversal, plan: &Plan) -> Result<TlsStream<TokioStream>, TurnError> {
    let stream = connect(traversal, plan).await?;
    Ok(turn_tls::connect(&traversal.tls, &plan.server, &plan.key, stream).await?)
}
