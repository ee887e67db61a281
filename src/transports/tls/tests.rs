//! Two rustls sides in memory: who gets through the handshake and who does not.

use std::io::Cursor;

use rustls::{ClientConnection, ServerConnection};

use super::*;

fn identity(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

fn tls(seed: u8) -> TlsIdentity {
    TlsIdentity::new(&identity(seed)).unwrap()
}

/// Runs a handshake until both are done or one refuses.
fn shake(client: ClientConfig, server: ServerConfig, dialled: &PeerId) -> Result<PeerId, Error> {
    let name = ServerName::try_from(server_name(dialled)).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut flight = Vec::new();
        client.write_tls(&mut flight).unwrap();
        server.read_tls(&mut Cursor::new(flight)).unwrap();
        server.process_new_packets()?;
        let mut flight = Vec::new();
        server.write_tls(&mut flight).unwrap();
        client.read_tls(&mut Cursor::new(flight)).unwrap();
        client.process_new_packets()?;
    }
    peer_id(&server.peer_certificates().unwrap()[0])
}

/// A client or server certificate with a key that is not Ed25519.
fn ecdsa() -> (Vec<CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
    (vec![certificate.der().clone()], rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

fn builder_client(tls: &TlsIdentity) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(tls.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(DialledPeer { provider: tls.provider.clone(), pinned: true }))
}

#[test]
fn both_sides_learn_and_prove_their_keys() {
    let seen = shake(tls(1).client().unwrap(), tls(2).server().unwrap(), &identity(2).peer_id());
    assert_eq!(seen, Ok(identity(1).peer_id()));
}

#[test]
fn another_key_than_the_dialled_one_is_refused() {
    let seen = shake(tls(1).client().unwrap(), tls(2).server().unwrap(), &identity(3).peer_id());
    assert_eq!(seen, Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)));
}

#[test]
fn the_certificate_is_small_and_always_the_same() {
    let first = tls(1).certified.cert[0].clone();
    assert_eq!(first, tls(1).certified.cert[0]);
    assert_ne!(first, tls(2).certified.cert[0]);
    assert!(first.len() < 300, "{} bytes", first.len());
}

#[test]
fn somebody_elses_certificate_without_its_key_is_refused() {
    let mut thief = tls(1);
    let stolen = tls(2).certified.cert.clone();
    thief.certified = Arc::new(CertifiedKey::new(stolen, thief.certified.key.clone()));
    let seen = shake(thief.client().unwrap(), tls(3).server().unwrap(), &identity(3).peer_id());
    assert_eq!(seen, Err(Error::InvalidCertificate(CertificateError::BadSignature)));
}

#[test]
fn a_client_or_server_with_an_ecdsa_certificate_is_refused() {
    let (chain, key) = ecdsa();
    let mut client = builder_client(&tls(1)).with_client_auth_cert(chain.clone(), key.clone_key()).unwrap();
    client.alpn_protocols = vec![ALPN.to_vec()];
    assert!(shake(client, tls(2).server().unwrap(), &identity(2).peer_id()).is_err());

    let mut server = ServerConfig::builder_with_provider(tls(2).provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.clone(), key)
        .unwrap();
    server.alpn_protocols = vec![ALPN.to_vec()];
    assert!(shake(tls(1).client().unwrap(), server, &identity(2).peer_id()).is_err());
    assert_eq!(peer_id(&chain[0]), Err(Error::InvalidCertificate(CertificateError::BadEncoding)));
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let mut client = builder_client(&tls(1)).with_no_client_auth();
    client.alpn_protocols = vec![ALPN.to_vec()];
    assert_eq!(shake(client, tls(2).server().unwrap(), &identity(2).peer_id()), Err(Error::NoCertificatesPresented));
}

#[test]
fn another_application_protocol_is_refused() {
    let mut client = tls(1).client().unwrap();
    client.alpn_protocols = vec![b"panda-network/2".to_vec()];
    let seen = shake(client, tls(2).server().unwrap(), &identity(2).peer_id());
    assert_eq!(seen, Err(Error::NoApplicationProtocol));
}

#[test]
fn tls_1_2_is_refused_in_both_directions() {
    let mut old = ClientConfig::builder_with_provider(tls(1).provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(DialledPeer { provider: tls(1).provider, pinned: true }))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(tls(1).certified)));
    old.alpn_protocols = vec![ALPN.to_vec()];
    let seen = shake(old, tls(2).server().unwrap(), &identity(2).peer_id());
    assert!(matches!(seen, Err(Error::PeerIncompatible(_))), "{seen:?}");

    let mut old = ServerConfig::builder_with_provider(tls(2).provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyPeer { provider: tls(2).provider, mandatory: true }))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(tls(2).certified)));
    old.alpn_protocols = vec![ALPN.to_vec()];
    let seen = shake(tls(1).client().unwrap(), old, &identity(2).peer_id());
    assert!(matches!(seen, Err(Error::PeerIncompatible(_))), "{seen:?}");
}

#[test]
fn an_oversized_certificate_is_refused_before_it_is_parsed() {
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "x".repeat(CERTIFICATE_MAX_BYTES));
    let key = NodeKey { identity: identity(1), public: identity(1).peer_id() };
    let certificate = parameters.self_signed(&key).unwrap();
    assert!(peer_id(certificate.der()).is_err());
}

#[test]
fn a_name_gives_back_the_peer_it_was_made_from() {
    let peer = identity(1).peer_id();
    let name = ServerName::try_from(server_name(&peer)).unwrap();
    assert_eq!(named_peer(&name), Some(peer));
    assert_eq!(named_peer(&ServerName::try_from("example.org").unwrap()), None);
}

#[test]
fn a_client_that_pins_nobody_learns_who_answered() {
    let seen = shake(tls(1).client_of_anyone().unwrap(), tls(2).server().unwrap(), &identity(3).peer_id());
    assert_eq!(seen, Ok(identity(1).peer_id()));
}

#[test]
fn a_server_for_anyone_takes_clients_with_and_without_a_certificate_but_no_false_one() {
    let with = shake(tls(1).client().unwrap(), tls(2).server_for_anyone().unwrap(), &identity(2).peer_id());
    assert_eq!(with, Ok(identity(1).peer_id()));
    let mut thief = tls(1);
    thief.certified = Arc::new(CertifiedKey::new(tls(2).certified.cert.clone(), thief.certified.key.clone()));
    assert!(shake(thief.client().unwrap(), tls(3).server_for_anyone().unwrap(), &identity(3).peer_id()).is_err());
    let mut nobody = builder_client(&tls(1)).with_no_client_auth();
    nobody.alpn_protocols = vec![ALPN.to_vec()];
    let name = ServerName::try_from(server_name(&identity(2).peer_id())).unwrap();
    let mut client = ClientConnection::new(Arc::new(nobody), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(tls(2).server_for_anyone().unwrap())).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut flight = Vec::new();
        client.write_tls(&mut flight).unwrap();
        server.read_tls(&mut Cursor::new(flight)).unwrap();
        server.process_new_packets().unwrap();
        let mut flight = Vec::new();
        server.write_tls(&mut flight).unwrap();
        client.read_tls(&mut Cursor::new(flight)).unwrap();
        client.process_new_packets().unwrap();
    }
    assert!(server.peer_certificates().is_none());
}
