//! TLS to a TURN server: pinned where the key is known, which is when it is the relay itself, and otherwise to anybody.
//!
//! Whoever answers in the place of an unknown server learns what it would: credentials that are worth one relayed address
//! for an hour, between which addresses packets go, and sealed QUIC. It cannot read, forge or join anything. So there is no
//! list of certificate authorities here.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::tls::{self, TlsIdentity};
use crate::ids::PeerId;
use crate::rendezvous::address::HostPort;

/// The ALPN of TURN over TLS (RFC 7443).
const ALPN: &[u8] = b"stun.turn";

/// How to dial a server, and under which name. Only a relay, which knows us anyway, is shown our certificate.
pub(crate) fn client(
    identity: &TlsIdentity,
    server: &HostPort,
    pin: Option<&PeerId>,
) -> Result<(ClientConfig, ServerName<'static>), String> {
    let (mut config, name) = match pin {
        Some(key) => (identity.client().map_err(|error| error.to_string())?, tls::server_name(key)),
        None => (anybody().map_err(|error| error.to_string())?, server.host().to_owned()),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    Ok((config, ServerName::try_from(name).map_err(|error| error.to_string())?))
}

fn anybody() -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(config)
}

/// Takes every certificate whose key the server proves to have.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
