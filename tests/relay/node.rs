//! The node's side of a session with a relay, as small as it can be: what tests say and hear.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use panda_network::PeerId;
use panda_network::frame::FrameDecoder;
use panda_network::identity::Identity;
use panda_network::net::{DatagramSocket, HostNetwork};
use panda_network::rendezvous::ALPN;
use panda_network::rendezvous::address::RelayAddress;
use panda_network::rendezvous::forward::{parse_forward, put_forward};
use panda_network::rendezvous::wire::{NodeFrame, RelayFrame, Welcome};
use panda_network::transports::host::OsNetwork;
use panda_network::transports::stream::TokioStream;
use panda_network::transports::tls::{TlsIdentity, server_name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A test that waits for longer hangs.
pub const HANGS_AFTER: Duration = Duration::from_secs(30);

/// Ends a test that hangs.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS_AFTER, future).await.unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// A node with one session.
pub struct Node {
    pub identity: Identity,
    pub welcome: Welcome,
    network: Arc<dyn HostNetwork>,
    stream: TlsStream<TokioStream>,
    decoder: FrameDecoder,
    frames: VecDeque<RelayFrame>,
}

impl Node {
    /// Dials a relay, insists on its key, and is welcomed.
    pub async fn connect(relay: &RelayAddress, seed: u8) -> std::io::Result<Self> {
        Self::connect_from(Arc::new(OsNetwork), relay, seed).await
    }

    /// The same from any machine.
    pub async fn connect_from(network: Arc<dyn HostNetwork>, relay: &RelayAddress, seed: u8) -> std::io::Result<Self> {
        let identity = Identity::from_seed(&[seed; 32]);
        let mut tls = TlsIdentity::new(&identity).unwrap().client().unwrap();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let address = network.resolve(relay.server.host(), relay.server.port()).await?[0];
        let stream = TokioStream(network.connect_tcp(address).await?);
        let name = server_name(&relay.key.unwrap()).try_into().unwrap();
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        let (decoder, frames) = (FrameDecoder::new(), VecDeque::new());
        let nothing = Welcome { observed: address, datagrams: vec![], turn: vec![], stun: vec![] };
        let mut node = Self { identity, welcome: nothing, network, stream, decoder, frames };
        match node.next_frame().await? {
            RelayFrame::Welcome(welcome) => node.welcome = *welcome,
            other => panic!("{other:?} instead of a welcome"),
        }
        Ok(node)
    }

    pub fn peer_id(&self) -> PeerId {
        self.identity.peer_id()
    }

    pub async fn say(&mut self, frame: NodeFrame) {
        let mut out = Vec::new();
        frame.encode(&mut out);
        self.say_bytes(&out).await.unwrap();
    }

    pub async fn say_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The next frame but pings, which it answers.
    pub async fn hear(&mut self) -> std::io::Result<RelayFrame> {
        loop {
            match soon("a frame", self.next_frame()).await? {
                RelayFrame::Ping { nonce } => self.say(NodeFrame::Pong { nonce }).await,
                frame => return Ok(frame),
            }
        }
    }

    async fn next_frame(&mut self) -> std::io::Result<RelayFrame> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(frame);
            }
            let mut chunk = vec![0; 4096];
            let length = self.stream.read(&mut chunk).await?;
            if length == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.decoder.push(Bytes::copy_from_slice(&chunk[..length]));
            while let Some(frame) = self.decoder.next_frame().unwrap() {
                self.frames.push_back(RelayFrame::decode(&frame).unwrap());
            }
        }
    }
}

/// One end of a flow.
pub struct FlowEnd {
    pub socket: Arc<dyn DatagramSocket>,
    pub relay: SocketAddr,
    pub flow: u64,
}

impl FlowEnd {
    /// The end that a node is told of next.
    pub async fn of(node: &mut Node, peer: PeerId) -> Self {
        let frame = node.hear().await.unwrap();
        let RelayFrame::Flow { peer: told, flow } = frame else { panic!("{frame:?} instead of a flow") };
        assert_eq!(told, peer);
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let socket = node.network.bind_udp(any).unwrap();
        Self { socket, relay: node.welcome.datagrams[0], flow }
    }

    pub fn send(&self, payload: &[u8]) {
        let mut out = Vec::new();
        put_forward(&mut out, self.flow, payload);
        self.socket.try_send(self.relay, &out).unwrap();
    }

    pub async fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let received = poll_fn(|context| self.socket.poll_receive(context, &mut buffer));
        let (length, from) = soon("a forwarded datagram", received).await.unwrap();
        assert_eq!(from, self.relay);
        let (flow, payload) = parse_forward(&buffer[..length]).unwrap();
        assert_eq!(flow, self.flow);
        payload.to_vec()
    }
}
