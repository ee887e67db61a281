//! Runs one allocation: finds its server, connects, and carries frames until it fails or is stopped.
//!
//! Over UDP it shares the node's socket, and what the server sends comes in through [`Paths`]. Over TCP and TLS it has a
//! stream of its own, with two bounded queues: one for requests, and one for payloads, which are dropped when the server
//! does not keep up. A stream on which nothing came for a while is asked for a sign of life.

use std::future::ready;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

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
/// The same after the network changed, as for a session with a relay.
const CHANGED_WAIT: Duration = Duration::from_millis(1500);
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
    pub(super) credentials_until: Instant,
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
        TurnTransport::Tcp => match connect(traversal, &plan, |stream| ready(Ok(stream))).await {
            Ok(connected) => over_stream(traversal, plan, connected).await,
            Err(error) => Err(error),
        },
        TurnTransport::Tls => {
            let Plan { server, key, .. } = &plan;
            let shake_hands = |stream| async move { Ok(turn_tls::connect(&traversal.tls, server, key, stream).await?) };
            match connect(traversal, &plan, shake_hands).await {
                Ok(connected) => over_stream(traversal, plan, connected).await,
                Err(error) => Err(error),
            }
        }
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
    (stream, local): (S, Option<IpAddr>),
) -> Result<(), TurnError> {
    let (payloads, to_send) = mpsc::channel(TURN_SEND_QUEUE);
    // As many as can be under way, and signs of life.
    let (requests, to_ask) = mpsc::channel(2 * TURN_MAX_TRANSACTIONS);
    let link = start(traversal, plan, Way::Stream { frames: payloads, local });
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
    let options = options.with_credentials_until(plan.credentials_until.into_std());
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
    let mut deadline = Instant::now() + NAT_KEEP_ALIVE_MAX;
    // How long the answer is waited for, once it was asked for.
    let mut asked = None;
    loop {
        chunk.clear();
        chunk.reserve(READ_BYTES);
        let wait = tokio::select! {
            biased;
            read = read.read_buf(&mut chunk) => match read? {
                0 => return Ok(()),
                _ => None,
            },
            () = link.doubted.notified() => Some(CHANGED_WAIT),
            () = sleep_until(deadline) => match asked {
                Some(waited) => return Err(TurnError::Timeout(waited)),
                None => Some(LIFE_WAIT),
            },
        };
        deadline = Instant::now() + wait.unwrap_or(NAT_KEEP_ALIVE_MAX);
        asked = wait;
        if wait.is_some() {
            let id = TransactionId::from_random(traversal.random());
            if let Ok(request) = Request::binding().seal(id, None) {
                let _ = requests.try_send(Bytes::copy_from_slice(request.bytes()));
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

/// A stream to the server, and the address of ours that it hangs on.
async fn connect<S, Shaken: Future<Output = Result<S, TurnError>>>(
    traversal: &Traversal,
    plan: &Plan,
    shake_hands: impl Fn(TokioStream) -> Shaken,
) -> Result<(S, Option<IpAddr>), TurnError> {
    let connected = async {
        let addresses = resolve(traversal, plan).await?;
        let shake_hands = |stream: Box<dyn ByteStream>, share| {
            let (local, shaken) = (stream.local_ip(), shake_hands(TokioStream(stream)));
            async move { Ok((timeout(share, shaken).await.map_err(|_| TurnError::Timeout(share))??, local)) }
        };
        stream::connect_with(&*traversal.options.network, addresses, RELAY_CONNECT_DEADLINE, shake_hands).await
    };
    let connected = timeout(RELAY_CONNECT_DEADLINE, connected).await;
    connected.map_err(|_| TurnError::Timeout(RELAY_CONNECT_DEADLINE))?.map(|(stream, _)| stream)
}
