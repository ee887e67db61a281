//! The baseline: quinn as it comes, with its own defaults, between two endpoints on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, ServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Most bytes that are taken from a stream at once, as much as our own services take.
const READ_BYTES: usize = 64 * 1024;

/// Both ends of one connection.
pub struct RawQuinn {
    here: Connection,
    there: Connection,
    _endpoints: [Endpoint; 2],
}

impl RawQuinn {
    pub async fn connect() -> Self {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let certificate = key.cert.der().clone();
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let config = ServerConfig::with_single_cert(vec![certificate.clone()], private).unwrap();
        let server = Endpoint::server(config, loopback).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let mut client = Endpoint::client(loopback).unwrap();
        client.set_default_client_config(ClientConfig::with_root_certificates(Arc::new(roots)).unwrap());
        let connecting = client.connect(server.local_addr().unwrap(), "localhost").unwrap();
        let accepting = async { server.accept().await.unwrap().await.unwrap() };
        let (here, there) = tokio::join!(async { connecting.await.unwrap() }, accepting);
        Self { here, there, _endpoints: [client, server] }
    }

    /// Sends `chunk` so many times on a stream of its own: how long until the other end has all of it.
    pub async fn bulk(&self, chunk: &Bytes, count: usize) -> Duration {
        let start = Instant::now();
        let (mut send, _receive) = self.here.open_bi().await.unwrap();
        let (there, expected) = (self.there.clone(), chunk.len() * count);
        let receiver = tokio::spawn(async move {
            let (_send, mut receive) = there.accept_bi().await.unwrap();
            let mut received = 0;
            while let Some(chunk) = receive.read_chunk(READ_BYTES, true).await.unwrap() {
                received += chunk.bytes.len();
            }
            assert_eq!(received, expected);
        });
        for _ in 0..count {
            send.write_chunk(chunk.clone()).await.unwrap();
        }
        send.finish().unwrap();
        receiver.await.unwrap();
        start.elapsed()
    }

    /// A stream whose other end sends back what it gets, `bytes` at a time.
    pub async fn echo(&self, bytes: usize) -> Echo {
        let (mut send, receive) = self.here.open_bi().await.unwrap();
        let there = self.there.clone();
        tokio::spawn(async move {
            let (mut send, mut receive) = there.accept_bi().await.unwrap();
            let mut buffer = vec![0; bytes];
            // Ends with the stream.
            while receive.read_exact(&mut buffer).await.is_ok() {
                send.write_all(&buffer).await.unwrap();
            }
        });
        let buffer = vec![0; bytes];
        send.write_all(&buffer).await.unwrap();
        let mut echo = Echo { send, receive, buffer };
        echo.receive.read_exact(&mut echo.buffer).await.unwrap();
        echo
    }
}

/// A stream for round trips.
pub struct Echo {
    send: SendStream,
    receive: RecvStream,
    buffer: Vec<u8>,
}

impl Echo {
    pub async fn round_trip(&mut self) {
        self.send.write_all(&self.buffer).await.unwrap();
        self.receive.read_exact(&mut self.buffer).await.unwrap();
    }
}
