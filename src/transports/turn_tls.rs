//! TLS to a TURN server: pinned where the key is known, which is when it is the relay itself or the relay names the key, and
//! otherwise to anybody.
//!
//! Whoever answers in the place of a server without a pin learns what it would: credentials that are worth one relayed address
//! for an hour, between which addresses packets go, and sealed QUIC. It cannot read, forge or join anything. So there is no
//! list of certificate authorities here.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as RustlsError, OtherError, SignatureScheme,
};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls::{self, TlsIdentity};
use crate::ids::PeerId;
use crate::rendezvous::address::HostPort;
use crate::rendezvous::pin::SpkiPin;

/// The ALPN of TURN over TLS (RFC 7443).
const ALPN: &[u8] = b"stun.turn";

/// Which key a server must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerKey {
    /// It is the relay itself, which knows us anyway: only a relay is shown our certificate.
    Relay(PeerId),
    /// Somebody's, of whom the relay that named it knows the key.
    Pinned(SpkiPin),
    /// Not known.
    Any,
}

/// No TLS with a TURN server.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TurnTlsError {
    /// Somebody in between, or the server has a new key and its operator told the relay's not yet.
    #[error(
        "another key than the pinned one answers at the TURN server's address: expected {expected}, found {found}; \
         either somebody is in between, or the relay's configuration names an old key"
    )]
    WrongPin {
        /// That of the relay's configuration.
        expected: SpkiPin,
        /// That of the key that answered.
        found: SpkiPin,
    },
    /// The environment, or the server broke the protocol. For a relay's own server: it has another key than the relay.
    #[error("no TLS with the TURN server: {0}")]
    Handshake(String),
}

/// What a verifier says to us through rustls.
#[derive(Debug, Clone, Copy, Error)]
#[error("expected the key {expected}, found {found}")]
struct WrongPin {
    expected: SpkiPin,
    found: SpkiPin,
}

/// Speaks TLS on a stream to a server. Nothing of ours is sent before the key is known to be right.
pub(crate) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    identity: &TlsIdentity,
    server: &HostPort,
    key: &ServerKey,
    stream: S,
) -> Result<TlsStream<S>, TurnTlsError> {
    let handshake = |error: &dyn std::fmt::Display| TurnTlsError::Handshake(error.to_string());
    let (config, name) = match key {
        ServerKey::Relay(key) => (identity.client().map_err(|error| handshake(&error))?, tls::server_name(key)),
        ServerKey::Pinned(pin) => (stranger(Some(*pin)).map_err(|error| handshake(&error))?, server.host().to_owned()),
        ServerKey::Any => (stranger(None).map_err(|error| handshake(&error))?, server.host().to_owned()),
    };
    let mut config = config;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    let name = ServerName::try_from(name).map_err(|error| handshake(&error))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| match wrong_pin(&error) {
        Some(WrongPin { expected, found }) => TurnTlsError::WrongPin { expected, found },
        None => handshake(&error),
    })
}

fn wrong_pin(error: &std::io::Error) -> Option<WrongPin> {
    match error.get_ref()?.downcast_ref()? {
        RustlsError::InvalidCertificate(CertificateError::Other(OtherError(why))) => why.downcast_ref().copied(),
        _ => None,
    }
}

fn stranger(pin: Option<SpkiPin>) -> Result<ClientConfig, RustlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { pin, provider }))
        .with_no_client_auth();
    Ok(config)
}

/// Takes every certificate whose key the server proves to have; with a pin, only of that key.
#[derive(Debug)]
struct Verifier {
    pin: Option<SpkiPin>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, RustlsError> {
        let Some(expected) = self.pin else { return Ok(ServerCertVerified::assertion()) };
        let certificate = webpki::EndEntityCert::try_from(end_entity);
        let certificate = certificate.map_err(|_| RustlsError::InvalidCertificate(CertificateError::BadEncoding))?;
        let found = SpkiPin::of(&certificate.subject_public_key_info());
        if found == expected {
            return Ok(ServerCertVerified::assertion());
        }
        let why = OtherError(Arc::new(WrongPin { expected, found }));
        Err(RustlsError::InvalidCertificate(CertificateError::Other(why)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, RustlsError> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::identity::Identity;

    /// What came of connecting to a server with a certificate of its own, at both ends, and the pin of the server's key.
    async fn connected(key: impl FnOnce(SpkiPin) -> ServerKey) -> (Result<(), TurnTlsError>, bool, SpkiPin) {
        let certified = rcgen::generate_simple_self_signed(["turn.example.org".to_owned()]).unwrap();
        let pin = SpkiPin::of(&rcgen::PublicKeyData::subject_public_key_info(&certified.signing_key));
        let secret = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let chain = vec![certified.cert.der().clone()];
        let mut config = config.with_no_client_auth().with_single_cert(chain, secret).unwrap();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let (ours, theirs) = duplex(16 * 1024);
        let server = tokio::spawn(async move {
            let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(theirs).await else { return false };
            stream.read_u8().await.is_ok_and(|byte| byte == 7)
        });
        let identity = TlsIdentity::new(&Identity::from_seed(&[1; 32])).unwrap();
        let at = HostPort::new("turn.example.org", 443).unwrap();
        let mut connected = connect(&identity, &at, &key(pin), ours).await;
        if let Ok(stream) = &mut connected {
            stream.write_u8(7).await.unwrap();
            stream.flush().await.unwrap();
        }
        // The stream stays open until the server has read.
        let heard = server.await.unwrap();
        (connected.map(drop), heard, pin)
    }

    #[tokio::test]
    async fn a_server_with_the_pinned_key_is_spoken_to() {
        let (connected, heard, _) = connected(ServerKey::Pinned).await;
        assert!(connected.is_ok() && heard, "{connected:?}");
    }

    #[tokio::test]
    async fn another_key_than_the_pinned_one_hears_nothing_and_is_told() {
        let expected = SpkiPin::of(b"another key");
        let (connected, heard, pin) = connected(|_| ServerKey::Pinned(expected)).await;
        assert!(!heard);
        let Err(error @ TurnTlsError::WrongPin { .. }) = connected else { panic!("{connected:?}") };
        let said = error.to_string();
        assert!(said.contains(&expected.to_string()) && said.contains(&pin.to_string()), "{said}");
    }

    #[tokio::test]
    async fn without_a_pin_any_key_will_do_but_a_relay_must_have_its_own() {
        let (any, heard, _) = connected(|_| ServerKey::Any).await;
        assert!(any.is_ok() && heard, "{any:?}");
        let relay = Identity::from_seed(&[2; 32]).peer_id();
        let (other, heard, _) = connected(|_| ServerKey::Relay(relay)).await;
        assert!(matches!(other, Err(TurnTlsError::Handshake(_))) && !heard, "{other:?}");
    }
}
