//! Connections: too many in a row, of another version, and of those who say nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use panda_network::sim::LinkOptions;
use panda_network::sync::hello::Hello;
use panda_network::sync::wire::DocumentFrame;
use panda_network::transport::{CloseReason, Transport, TransportError, TransportKind};
use panda_network::transports::quic::{QuicTransport, QuicTransportOptions};
use panda_network::transports::tls::{TlsIdentity, server_name};
use quinn::crypto::rustls::QuicClientConfig;

use crate::hostile::{PATIENCE, Stage, scene};

#[test]
fn a_peer_that_dials_a_thousand_times_has_one_connection_in_the_end() {
    scene(|stage: Stage| async {
        // No loss, so that connections arrive in the order in which they were made.
        stage.cluster.network.set_default_link(LinkOptions::new().with_latency(Duration::from_millis(5)));
        let mut lines = std::collections::VecDeque::from([stage.hostile.dial().await]);
        let _first = lines[0].session().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        let before = tasks();
        for number in 0..1000 {
            lines.push_back(stage.hostile.dial().await);
            if number % 50 == 0 {
                let mut stream = lines.back().unwrap().document().await;
                stream.say(&DocumentFrame::Heads { heads: Vec::new(), last: true }).await;
            }
            if lines.len() > 3 {
                lines.pop_front().unwrap().is_closed(CloseReason::Superseded).await;
            }
        }
        let last = lines.pop_back().unwrap();
        drop(lines);
        let _stream = last.session().await;
        last.is_alive().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let node = &stage.running(0).network;
        // One to the honest peer, one to the hostile one; one session with each.
        assert_eq!((node.connections().len(), node.transport_stats().connections, stage.peers()), (2, 2, 2));
        // Streams that were just opened may still have a task or two.
        assert!(tasks() <= before + 5, "{} tasks before, {} afterwards", before, tasks());
        stage
    });
}

#[test]
fn a_peer_that_speaks_another_version_is_refused() {
    scene(|stage: Stage| async {
        let mut tls = TlsIdentity::new(&stage.hostile.identity).unwrap().client().unwrap();
        tls.alpn_protocols = vec![b"panda-network/2".to_vec()];
        let socket = stage.cluster.network.bind(SocketAddr::from(([10, 0, 9, 8], 4000))).unwrap();
        let runtime = quinn::default_runtime().unwrap();
        let endpoint = quinn::EndpointConfig::default();
        let endpoint = quinn::Endpoint::new_with_abstract_socket(endpoint, None, socket, runtime).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let address = stage.hostile.victim.addresses_for(TransportKind::Quic).next().unwrap();
        let name = server_name(&stage.hostile.victim.peer_id());
        let connecting = endpoint.connect_with(config, address, &name).unwrap();
        let refused = tokio::time::timeout(PATIENCE, connecting).await.unwrap().map(|_| ()).unwrap_err();
        let quinn::ConnectionError::ConnectionClosed(close) = refused else { panic!("{refused}") };
        assert_eq!(close.error_code, quinn::TransportErrorCode::crypto(120), "no_application_protocol");
        assert_eq!(stage.running(0).network.connections().len(), 1);
        stage
    });
}

#[test]
fn a_peer_whose_hello_names_no_version_of_ours_is_told_so() {
    scene(|stage: Stage| async {
        let of_the_future = Hello { newest: 9, oldest: 7 }.encode();
        let hellos = [(of_the_future, CloseReason::UnknownVersion), (Bytes::from_static(b"hi"), CloseReason::BadFrame)];
        for (port, (hello, reason)) in (4000..).zip(hellos) {
            let socket = stage.cluster.network.bind(SocketAddr::from(([10, 0, 9, 7], port))).unwrap();
            let options = QuicTransportOptions::new().with_socket(socket).with_rng_seed([7; 32]).with_hello(hello);
            let transport = QuicTransport::start(&stage.hostile.identity, options).unwrap();
            // The close may come before the connection counts as made.
            let closed = match transport.connect(&stage.hostile.victim, PATIENCE).await {
                Ok(connection) => tokio::time::timeout(PATIENCE, connection.closed()).await.unwrap(),
                Err(error) => error,
            };
            assert_eq!(closed, TransportError::ClosedByPeer { code: reason as u64 });
        }
        stage
    });
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    scene(|stage: Stage| async {
        let connection = stage.hostile.connect().await;
        let closed = tokio::time::timeout(PATIENCE, connection.closed()).await.unwrap();
        let code = CloseReason::BadFrame as u64;
        assert_eq!(closed, TransportError::ClosedByPeer { code });
        stage
    });
}
