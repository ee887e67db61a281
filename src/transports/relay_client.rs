//! A node's session with a relay: TLS over TCP, made again whenever it is lost.
//!
//! [`RelayClient::start`] keeps the session up until it is dropped. [`RelayClient::state`] says how it is,
//! [`RelayClient::say`] queues a frame, and what the relay says goes into the channel that was handed in. What the frames
//! mean is not known here.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::stream::{self, TokioStream};
use super::tls::{self, TlsIdentity};
use crate::backoff::ReconnectionPolicy;
use crate::cbor::CborError;
use crate::frame::{FrameDecoder, FrameError};
use crate::ids::PeerId;
use crate::limits::{FRAME_MAX_BYTES, RELAY_CLIENT_QUEUE, RELAY_CONNECT_DEADLINE};
use crate::net::{ByteStream, HostNetwork};
use crate::rendezvous::ALPN;
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::wire::{NodeFrame, RelayFrame, Welcome};
use crate::watch;

/// Time between two signs of life when the relay says nothing.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Silence after a ping that means that the session is gone.
const PING_WAIT: Duration = Duration::from_secs(5);
/// The same after the network changed: it probably is.
const CHANGED_WAIT: Duration = Duration::from_millis(1500);
/// A session that lasted this long was a good one.
const STABLE: Duration = Duration::from_secs(30);

/// A session could not be had, or ended.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The environment, or the relay is down.
    #[error("relay cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// Nobody answered in time.
    #[error("relay did not answer within {0:?}")]
    Timeout(Duration),
    /// Somebody else answers, or the relay has a new key.
    #[error("another key than the expected one answers at the relay's address")]
    WrongKey,
    /// The address is that of another server.
    #[error("what answers at the relay's address is no relay: check name and port")]
    NotARelay,
    /// The relay broke the protocol.
    #[error("relay broke the protocol: {0}")]
    Protocol(String),
    /// The environment: the network changed, and took away the address that the session hung on, or came before there was one.
    #[error("the network changed meanwhile")]
    Moved,
    /// The relay said that it goes away.
    #[error("relay is going away")]
    GoingAway,
}

impl From<FrameError> for RelayError {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<CborError> for RelayError {
    fn from(error: CborError) -> Self {
        Self::Protocol(error.to_string())
    }
}

/// What is known of a relay while its session is up.
#[derive(Debug, Clone)]
pub struct RelayInfo {
    /// Its key.
    pub key: PeerId,
    /// Where it was reached.
    pub address: SocketAddr,
    /// What it said first.
    pub welcome: Arc<Welcome>,
}

impl RelayInfo {
    /// Its UDP addresses, each once: an unspecified address means the one where it was reached.
    pub fn datagrams(&self) -> impl Iterator<Item = SocketAddr> {
        let reached = |address: &SocketAddr| match address.ip().is_unspecified() {
            true => SocketAddr::new(self.address.ip().to_canonical(), address.port()),
            false => *address,
        };
        let addresses: Vec<_> = self.welcome.datagrams.iter().map(reached).collect();
        let first = |(at, address): (usize, SocketAddr)| (!addresses[..at].contains(&address)).then_some(address);
        let unique: Vec<_> = addresses.iter().copied().enumerate().filter_map(first).collect();
        unique.into_iter()
    }
}

/// How a session is.
#[derive(Debug, Clone)]
pub enum RelayState {
    /// It is being made for the first time, or again.
    Connecting,
    /// It is up.
    Up(RelayInfo),
    /// The last attempt failed; the next one follows.
    Down(Arc<RelayError>),
}

/// A session that is kept up until this is dropped.
#[derive(Debug)]
pub struct RelayClient {
    frames: mpsc::Sender<NodeFrame>,
    state: watch::Receiver<RelayState>,
    kick: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for RelayClient {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the tasks of one relay share.
struct Session {
    network: Arc<dyn HostNetwork>,
    tls: Arc<TlsIdentity>,
    address: RelayAddress,
    heard: mpsc::Sender<(RelayAddress, RelayFrame)>,
    state: watch::Sender<RelayState>,
    kick: Arc<Notify>,
}

impl RelayClient {
    /// Starts to keep a session. `random` gives the jitter between attempts, uniform in 0.0–1.0.
    pub fn start(
        network: Arc<dyn HostNetwork>,
        tls: Arc<TlsIdentity>,
        address: RelayAddress,
        heard: mpsc::Sender<(RelayAddress, RelayFrame)>,
        random: impl FnMut() -> f64 + Send + 'static,
    ) -> Self {
        let (frames, to_send) = mpsc::channel(RELAY_CLIENT_QUEUE);
        let sender = watch::Sender::new(RelayState::Connecting);
        let (state, kick) = (sender.subscribe(), Arc::new(Notify::new()));
        let session = Session { network, tls, address, heard, state: sender, kick: kick.clone() };
        let task = tokio::spawn(session.keep_up(to_send, random));
        Self { frames, state, kick, task }
    }

    /// How it is, now and later.
    pub fn state(&self) -> watch::Receiver<RelayState> {
        self.state.clone()
    }

    /// What is known of the relay while the session is up.
    pub fn info(&self) -> Option<RelayInfo> {
        match &*self.state.borrow() {
            RelayState::Up(info) => Some(info.clone()),
            RelayState::Connecting | RelayState::Down(_) => None,
        }
    }

    /// Says something to the relay if the session is up and takes it; false otherwise.
    pub fn say(&self, frame: NodeFrame) -> bool {
        self.info().is_some() && self.frames.try_send(frame).is_ok()
    }

    /// The network changed: a session that is not up is begun anew at once, as is one whose address of ours is gone; another that
    /// is up has to prove it.
    pub fn on_network_change(&self) {
        self.kick.notify_one();
    }
}

impl Session {
    async fn keep_up(self, mut to_send: mpsc::Receiver<NodeFrame>, mut random: impl FnMut() -> f64) {
        let policy = ReconnectionPolicy::new();
        let mut attempt = 0;
        loop {
            let started = Instant::now();
            let Err(error) = self.run(&mut to_send).await else { return };
            tracing::debug!(%error, "no session with a relay");
            let moved = matches!(error, RelayError::Moved);
            self.state.send_replace(RelayState::Down(Arc::new(error)));
            // What was meant for the session that ended must not surprise the next one.
            while to_send.try_recv().is_ok() {}
            if started.elapsed() >= STABLE {
                attempt = 0;
            }
            if moved {
                attempt = 0;
            } else {
                attempt += 1;
                let wait = policy.delay_after(attempt, random()).unwrap_or_default();
                tokio::select! {
                    biased;
                    () = self.kick.notified() => attempt = 0,
                    () = sleep(wait) => {}
                }
            }
            self.state.send_replace(RelayState::Connecting);
        }
    }

    /// One session, until it fails; `Ok` when nobody wants it any more.
    async fn run(&self, to_send: &mut mpsc::Receiver<NodeFrame>) -> Result<(), RelayError> {
        let mut deadline = Instant::now() + RELAY_CONNECT_DEADLINE;
        let (mut stream, key, address) = self.connect(deadline).await?;
        let (mut decoder, mut chunk) = (FrameDecoder::new(), BytesMut::new());
        let (mut out, mut nonce) = (Vec::new(), 0);
        // How long the relay may be silent, when it owes us something.
        let mut owed = Some(RELAY_CONNECT_DEADLINE);
        loop {
            chunk.reserve(FRAME_MAX_BYTES);
            tokio::select! {
                biased;
                read = stream.read_buf(&mut chunk) => {
                    if read? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    decoder.push(chunk.split().freeze());
                    while let Some(frame) = decoder.next_frame()? {
                        match RelayFrame::decode(&frame)? {
                            RelayFrame::Ping { nonce } => NodeFrame::Pong { nonce }.encode(&mut out),
                            RelayFrame::Pong { .. } => {}
                            RelayFrame::GoingAway => return Err(RelayError::GoingAway),
                            frame => {
                                if let RelayFrame::Welcome(welcome) = &frame {
                                    let welcome = Arc::new((**welcome).clone());
                                    self.state.send_replace(RelayState::Up(RelayInfo { key, address, welcome }));
                                }
                                if self.heard.send((self.address.clone(), frame)).await.is_err() {
                                    return Ok(());
                                }
                            }
                        }
                    }
                    (deadline, owed) = (Instant::now() + PING_INTERVAL, None);
                }
                frame = to_send.recv() => match frame {
                    Some(frame) => frame.encode(&mut out),
                    None => return Ok(()),
                },
                () = self.kick.notified() => {
                    if self.has_moved(stream.get_ref().0.0.local_ip()) {
                        return Err(RelayError::Moved);
                    }
                    nonce += 1;
                    NodeFrame::Ping { nonce }.encode(&mut out);
                    (deadline, owed) = (Instant::now() + CHANGED_WAIT, Some(CHANGED_WAIT));
                }
                () = tokio::time::sleep_until(deadline) => {
                    if let Some(waited) = owed {
                        return Err(RelayError::Timeout(waited));
                    }
                    nonce += 1;
                    NodeFrame::Ping { nonce }.encode(&mut out);
                    (deadline, owed) = (Instant::now() + PING_WAIT, Some(PING_WAIT));
                }
            }
            if !out.is_empty() {
                let written = async {
                    stream.write_all(&out).await?;
                    stream.flush().await
                };
                timeout(RELAY_CONNECT_DEADLINE, written)
                    .await
                    .map_err(|_| RelayError::Timeout(RELAY_CONNECT_DEADLINE))??;
                out.clear();
            }
        }
    }

    /// Whether the address is gone that a session was made from: nothing comes to it any more.
    fn has_moved(&self, local: Option<IpAddr>) -> bool {
        let gone = |ip: &IpAddr| !ip.is_loopback() && !self.network.interface_addresses().contains(ip);
        local.as_ref().is_some_and(gone)
    }

    async fn connect(&self, deadline: Instant) -> Result<(TlsStream<TokioStream>, PeerId, SocketAddr), RelayError> {
        tokio::select! {
            biased;
            connected = timeout_at(deadline, self.connect_anywhere()) => {
                connected.map_err(|_| RelayError::Timeout(RELAY_CONNECT_DEADLINE))?
            }
            // What is under way leaves from where this machine was.
            () = self.kick.notified() => Err(RelayError::Moved),
        }
    }

    async fn connect_anywhere(&self) -> Result<(TlsStream<TokioStream>, PeerId, SocketAddr), RelayError> {
        let server = &self.address.server;
        let addresses = self.network.resolve(server.host(), server.port()).await?;
        let shake_hands = |stream, share| async move {
            timeout(share, self.shake_hands(stream)).await.map_err(|_| RelayError::Timeout(share))?
        };
        let connected = stream::connect_with(&*self.network, addresses, RELAY_CONNECT_DEADLINE, shake_hands);
        connected.await.map(|((stream, key), address)| (stream, key, address))
    }

    async fn shake_hands(&self, stream: Box<dyn ByteStream>) -> Result<(TlsStream<TokioStream>, PeerId), RelayError> {
        let protocol = |error: &dyn std::fmt::Display| RelayError::Protocol(error.to_string());
        let config = match self.address.key {
            Some(_) => self.tls.client(),
            None => self.tls.client_of_anyone(),
        };
        let mut config = config.map_err(|error| protocol(&error))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_early_data = false;
        let name = match &self.address.key {
            Some(key) => tls::server_name(key),
            None => "relay.invalid".to_owned(),
        };
        let name = ServerName::try_from(name).map_err(|error| protocol(&error))?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, TokioStream(stream)).await.map_err(handshake_error)?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let key = chain.first().and_then(|certificate| tls::peer_id(certificate).ok()).ok_or(RelayError::WrongKey)?;
        Ok((stream, key))
    }
}

/// Who erred when there was no handshake.
fn handshake_error(error: io::Error) -> RelayError {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::InvalidCertificate(_)) => RelayError::WrongKey,
        // A web server, or something that does not speak TLS at all.
        Some(
            rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)
            | rustls::Error::InvalidMessage(_),
        ) => RelayError::NotARelay,
        _ => RelayError::Io(error),
    }
}
