//! TLS 1.3 with raw public keys (RFC 7250), as p2panda Nodes have it: no certificate on either side, the key itself.
//!
//! Made from the same identity as the certificate: a Node knows this node under its one key. Dial with [`server_name`]
//! (super::server_name) of the Node's key; no name is sent.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use super::{SPKI_PREFIX, TlsError, TlsIdentity, named_peer};

impl TlsIdentity {
    /// The configuration to dial a Node with, for one protocol. The handshake fails unless the Node proves the key whose
    /// [`server_name`](super::server_name) is dialled. No tickets are kept: every session has a handshake of its own.
    ///
    /// # Errors
    /// [`TlsError`] when the crypto provider lacks TLS 1.3.
    pub fn raw_key_client(&self, protocol: &[u8]) -> Result<ClientConfig, TlsError> {
        let key = Arc::clone(&self.certified.key);
        let public = key.public_key().ok_or_else(|| TlsError("the key has no public half".into()))?;
        let shown = CertificateDer::from(public.as_ref().to_vec());
        let resolver = AlwaysResolvesClientRawPublicKeys::new(Arc::new(CertifiedKey::new(vec![shown], key)));
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(DialledNode { provider: self.provider.clone() }))
            .with_client_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![protocol.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        config.time_provider = self.clock.clone();
        Ok(config)
    }
}

/// Exactly the key that was dialled, as a raw key.
#[derive(Debug)]
struct DialledNode {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for DialledNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let dialled = named_peer(server_name).map(|peer| [&SPKI_PREFIX[..], peer.as_bytes()].concat());
        if intermediates.is_empty() && dialled.as_deref() == Some(end_entity.as_ref()) {
            Ok(ServerCertVerified::assertion())
        } else {
            // As in the verifier of certificates: this alert tells the transport that another one answered.
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    ed25519_by_tls13!(verify_raw_key);

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn verify_raw_key(
    message: &[u8],
    key: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let key = SubjectPublicKeyInfoDer::from(key.as_ref());
    verify_tls13_signature_with_raw_key(message, &key, signature, algorithms)
}

#[cfg(test)]
pub(crate) mod tests {
    //! A server with raw keys, as a Node is one, to dial.

    use rustls::ServerConfig;
    use rustls::server::AlwaysResolvesServerRawPublicKeys;
    use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};

    use super::*;
    use crate::identity::Identity;

    /// What a Node accepts with: any raw key.
    pub(crate) fn node_server(identity: &Identity, protocol: &[u8]) -> ServerConfig {
        let tls = TlsIdentity::new(identity).unwrap();
        let key = Arc::clone(&tls.certified.key);
        let shown = CertificateDer::from(key.public_key().unwrap().as_ref().to_vec());
        let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::new(CertifiedKey::new(vec![shown], key)));
        let mut config = ServerConfig::builder_with_provider(tls.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(Arc::new(AnyKey { provider: tls.provider.clone() }))
            .with_cert_resolver(Arc::new(resolver));
        config.alpn_protocols = vec![protocol.to_vec()];
        config
    }

    #[derive(Debug)]
    struct AnyKey {
        provider: Arc<CryptoProvider>,
    }

    impl ClientCertVerifier for AnyKey {
        fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
            &[]
        }

        fn verify_client_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<ClientCertVerified, Error> {
            Ok(ClientCertVerified::assertion())
        }

        ed25519_by_tls13!(verify_raw_key);

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    }
}
