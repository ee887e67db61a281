//! Connections by TCP: TLS for nodes' sessions and for TURN on one port, and TURN on plain TCP on another.
//!
//! The ALPN of the handshake says which of both a TLS connection is. A session needs the client's certificate, TURN does
//! not: it has credentials of its own.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::sessions::SessionId;
use super::shared::{Shared, lock};
use super::turn::{Client, Via};
use crate::frame::FrameDecoder;
use crate::ids::PeerId;
use crate::limits::{FRAME_MAX_BYTES, RELAY_SESSION_QUEUE, RELAY_STREAM_DEADLINE, TURN_LIFETIME, TURN_STREAM_QUEUE};
use crate::nat::framing::TurnFramer;
use crate::net::{ByteStream, StreamListener};
use crate::rendezvous::ALPN;
use crate::rendezvous::wire::{NodeFrame, RelayFrame};
use crate::transports::stream::TokioStream;
use crate::transports::tls;

/// The ALPN of TURN over TLS (RFC 7443). Clients that name none mean the same.
pub(super) const TURN_ALPN: &[u8] = b"stun.turn";
/// How long accepting pauses when the system has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Room that there must be in a node's queue before it is listened to.
const ROOM_FOR_ANSWERS: usize = RELAY_SESSION_QUEUE / 2;
/// Bytes read at once from a TURN client.
const READ_BYTES: usize = 16 * 1024;

/// Accepts connections until the relay stops, then waits for those there are; dropping it ends them.
pub(super) async fn accept(shared: Arc<Shared>, mut listener: Box<dyn StreamListener>, tls: Option<Arc<ServerConfig>>) {
    let mut stopping = shared.stopping.subscribe();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => break,
            Some(_) = connections.join_next() => continue,
            accepted = poll_fn(|context| listener.poll_accept(context)) => accepted,
        };
        match accepted {
            Ok((stream, from)) => match shared.open_stream(from) {
                Some(id) => _ = connections.spawn(serve(shared.clone(), id, stream, from, tls.clone())),
                None => shared.counters.turned_away.add(1),
            },
            // One connection was gone already, or there are too many files: both pass.
            Err(error) => {
                tracing::debug!(%error, "no connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(
    shared: Arc<Shared>,
    id: u64,
    stream: Box<dyn ByteStream>,
    from: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
) {
    match tls {
        None => serve_turn(&shared, id, TokioStream(stream), from).await,
        Some(config) => {
            let handshake = TlsAcceptor::from(config).accept(TokioStream(stream));
            match timeout(RELAY_STREAM_DEADLINE, handshake).await {
                Ok(Ok(stream)) => {
                    let (_, session) = stream.get_ref();
                    let peer = session.peer_certificates().and_then(|chain| chain.first());
                    let peer = peer.and_then(|certificate| tls::peer_id(certificate).ok());
                    match (session.alpn_protocol() == Some(ALPN), peer) {
                        (true, Some(peer)) => serve_session(&shared, stream, from, peer).await,
                        (true, None) => shared.counters.failed_handshakes.add(1),
                        (false, _) => serve_turn(&shared, id, stream, from).await,
                    }
                }
                Ok(Err(_)) | Err(_) => shared.counters.failed_handshakes.add(1),
            }
        }
    }
    shared.close_stream(from);
}

/// A node's session, until either side ends it.
async fn serve_session<S>(shared: &Shared, stream: S, from: SocketAddr, peer: PeerId)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (queue, frames) = mpsc::channel(RELAY_SESSION_QUEUE);
    let own_queue = queue.downgrade();
    let Ok(id) = shared.on_connected(peer, from, queue) else {
        return shared.counters.turned_away.add(1);
    };
    tracing::debug!(session = id.0, peer = %peer.short(), "session started");
    let (read, write) = tokio::io::split(stream);
    let misbehaved = tokio::select! {
        biased;
        misbehaved = read_frames(shared, id, read, own_queue) => misbehaved,
        () = write_frames(write, frames) => false,
    };
    if misbehaved {
        shared.counters.misbehaved.add(1);
    }
    shared.on_session_closed(id);
}

/// Reads until the stream ends; true when the node sent what it must not. What it asks is answered through its own queue:
/// while half of that waits to be read, nothing more is heard of it.
async fn read_frames<S: AsyncRead>(
    shared: &Shared,
    id: SessionId,
    mut read: ReadHalf<S>,
    queue: mpsc::WeakSender<RelayFrame>,
) -> bool {
    let mut decoder = FrameDecoder::new();
    let mut chunk = vec![0; FRAME_MAX_BYTES / 4];
    loop {
        let Ok(length @ 1..) = read.read(&mut chunk).await else { return false };
        decoder.push(Bytes::copy_from_slice(&chunk[..length]));
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => match NodeFrame::decode(&frame) {
                    Ok(frame) => {
                        shared.on_node_frame(id, frame);
                        if let Some(queue) = queue.upgrade().filter(|queue| queue.capacity() < ROOM_FOR_ANSWERS) {
                            let _room = queue.reserve_many(ROOM_FOR_ANSWERS).await;
                        }
                    }
                    Err(error) => {
                        tracing::debug!(session = id.0, %error, "session ends");
                        return true;
                    }
                },
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(session = id.0, %error, "session ends");
                    return true;
                }
            }
        }
    }
}

/// Writes what is queued, until the queue is closed or the node takes nothing.
async fn write_frames<S: AsyncWrite>(mut write: WriteHalf<S>, mut frames: mpsc::Receiver<RelayFrame>) {
    let mut out = Vec::new();
    while let Some(frame) = frames.recv().await {
        out.clear();
        frame.encode(&mut out);
        while let Ok(frame) = frames.try_recv() {
            frame.encode(&mut out);
        }
        if !write_all(&mut write, &out).await {
            return;
        }
    }
    let _ = timeout(RELAY_STREAM_DEADLINE, write.shutdown()).await;
}

async fn write_all<S: AsyncWrite>(write: &mut WriteHalf<S>, bytes: &[u8]) -> bool {
    let written = async {
        write.write_all(bytes).await?;
        write.flush().await
    };
    matches!(timeout(RELAY_STREAM_DEADLINE, written).await, Ok(Ok(())))
}

/// A TURN client's stream, until either side ends it.
async fn serve_turn<S>(shared: &Arc<Shared>, id: u64, stream: S, from: SocketAddr)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let Some(turn) = &shared.turn else { return shared.counters.turned_away.add(1) };
    let (queue, frames) = mpsc::channel(TURN_STREAM_QUEUE);
    lock(turn).streams.insert(id, queue);
    let (read, write) = tokio::io::split(stream);
    let client = Client { via: Via::Stream(id), address: from };
    let mut stopping = shared.stopping.subscribe();
    tokio::select! {
        biased;
        _ = stopping.wait_for(|stopping| *stopping) => {}
        () = read_turn(shared, client, read) => {}
        () = write_turn(write, frames) => {}
    }
    let mut turn = lock(turn);
    turn.streams.remove(&id);
    turn.machine.on_stream_closed(client);
    turn.free();
}

async fn read_turn<S: AsyncRead>(shared: &Arc<Shared>, client: Client, mut read: ReadHalf<S>) {
    let (mut framer, mut chunk, mut out) = (TurnFramer::new(), vec![0; READ_BYTES], Vec::new());
    loop {
        // Whoever is alive refreshes its allocation within that time.
        let Ok(Ok(length @ 1..)) = timeout(TURN_LIFETIME, read.read(&mut chunk)).await else { return };
        framer.push(&chunk[..length]);
        loop {
            match framer.next_frame() {
                Ok(Some(frame)) => shared.on_stun_or_turn(client, &frame, &mut out),
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "TURN stream ends");
                    return shared.counters.misbehaved.add(1);
                }
            }
        }
    }
}

/// Each frame goes out in a TLS record of its own: coturn's client takes the first frame of a record for all of it.
async fn write_turn<S: AsyncWrite>(mut write: WriteHalf<S>, mut frames: mpsc::Receiver<Bytes>) {
    while let Some(frame) = frames.recv().await {
        if !write_all(&mut write, &frame).await {
            return;
        }
    }
}
