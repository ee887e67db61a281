//! Dialling p2panda Nodes: raw keys, on the socket that peers use.

use quinn::crypto::rustls::QuicServerConfig;

use super::*;
use crate::nodes::{NodeDialler, P2pandaNode};
use crate::transports::tls::raw_key::tests::node_server;

const PROTOCOL: &[u8] = b"a protocol";

/// Something that accepts with a raw key as a Node does, and sends back what comes on a stream.
fn node(seed: u8) -> quinn::Endpoint {
    let tls = QuicServerConfig::try_from(node_server(&identity(seed), PROTOCOL)).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    let endpoint = quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let listening = endpoint.clone();
    tokio::spawn(async move {
        while let Some(incoming) = listening.accept().await {
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                let shown = connection.peer_identity().unwrap();
                let shown = shown.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().unwrap();
                while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                    let said = recv.read_to_end(1024).await.unwrap();
                    send.write_all(&[&shown[0], &said[..]].concat()).await.unwrap();
                    send.finish().unwrap();
                }
            });
        }
    });
    endpoint
}

fn at(seed: u8, endpoints: &[&quinn::Endpoint]) -> P2pandaNode {
    P2pandaNode::new(identity(seed).peer_id(), endpoints.iter().map(|endpoint| endpoint.local_addr().unwrap()))
}

#[tokio::test]
async fn a_node_is_dialled_with_raw_keys_beside_peers() {
    let (Pair { alice, bob: _bob, at_alice, at_bob: _at_bob }, node) = (pair().await, node(3));
    // Two at once: a Node has one connection per document.
    for _ in 0..2 {
        let connection = alice.dial_node(&at(3, &[&node]), PROTOCOL, PATIENCE).await.unwrap();
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write(Bytes::from_static(b"hello")).await.unwrap();
        send.finish();
        let said = read_all(&mut recv).await.unwrap();
        assert!(said.ends_with(b"hello"));
        assert_eq!(said[12..44], *identity(1).peer_id().as_bytes(), "a Node knows this node by its one key");
        connection.close(crate::transport::CloseReason::Done);
        assert_eq!(connection.open_bi().await.map(|_| ()), Err(TransportError::ClosedHere));
    }
    assert_eq!(alice.stats().connections, 1, "a Node is no peer");
    at_alice.open_bi(crate::transport::Priority::High).await.unwrap();
}

#[tokio::test]
async fn another_key_than_the_nodes_is_refused_and_the_node_is_found_behind_a_stranger() {
    let (alice, stranger, node) = (start(1), node(4), node(3));
    let refused = alice.dial_node(&at(3, &[&stranger]), PROTOCOL, PATIENCE).await.map(|_| ());
    assert_eq!(refused, Err(TransportError::WrongPeer));
    for endpoints in [[&stranger, &node], [&node, &stranger]] {
        alice.dial_node(&at(3, &endpoints), PROTOCOL, PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn a_node_of_another_network_and_a_peer_of_ours_do_not_answer() {
    let (alice, bob, node) = (start(1), start(2), node(3));
    let refused = alice.dial_node(&at(3, &[&node]), b"another network", PATIENCE).await.map(|_| ());
    assert!(matches!(refused, Err(TransportError::Protocol(_))), "{refused:?}");
    let peer = P2pandaNode::new(identity(2).peer_id(), [address_of(&bob)]);
    let refused = alice.dial_node(&peer, PROTOCOL, PATIENCE).await.map(|_| ());
    assert!(matches!(refused, Err(TransportError::Protocol(_))), "{refused:?}");
}

#[tokio::test]
async fn who_hides_its_address_dials_no_node() {
    let (alice, node) = (start_with(1, loopback().with_relay_only(true)), node(3));
    let refused = alice.dial_node(&at(3, &[&node]), PROTOCOL, PATIENCE).await.map(|_| ());
    assert_eq!(refused, Err(TransportError::NoAddress(TransportKind::Quic)));
}
