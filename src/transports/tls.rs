//! Who is at the other end: TLS 1.3 with both sides authenticated by self-signed Ed25519 certificates.
//!
//! [`TlsIdentity::new`] makes the certificate of this node; [`TlsIdentity::client`] and [`TlsIdentity::server`] make the
//! two rustls configurations that any transport puts below itself. No certificate authority is asked and no name is sent:
//! - a client accepts exactly the key it dialled. It hands rustls [`server_name`] of that key, and the verifier reads the
//!   key back from it, so that one configuration (and one cache of session tickets) serves all peers;
//! - a server accepts any well-formed Ed25519 certificate and learns the peer from it with [`peer_id`].
//!
//! The secret key stays in [`Identity`]: rustls and rcgen sign through it and get no copy. Nothing here reads the system's
//! clock, since certificates do not expire; tickets age on tokio's clock.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ServerSessionMemoryCache;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureAlgorithm,
    SignatureScheme,
};
use thiserror::Error as ThisError;
use tokio::time::Instant;

use crate::identity::Identity;
use crate::ids::PeerId;
use crate::limits::{CERTIFICATE_MAX_BYTES, SESSION_TICKETS};

/// What every verifier has in common, on either side: Ed25519 and TLS 1.3 alone. The verifier has a field `provider`; whether
/// it is shown certificates or raw keys, the function of rustls that it names reads.
macro_rules! ed25519_by_tls13 {
    ($verify:expr) => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _shown: &CertificateDer<'_>,
            _signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::PeerIncompatible(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            shown: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            $verify(message, shown, signature, &self.provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    };
}

#[cfg(feature = "bridge")]
pub(crate) mod raw_key;

/// The application protocol (RFC 7301) and its version.
pub const ALPN: &[u8] = b"panda-network/1";
/// SubjectPublicKeyInfo of an Ed25519 key up to the key itself (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Where the clock of tickets starts: any date after 1970 does, it never leaves this process.
const CLOCK_EPOCH: Duration = Duration::from_secs(1_000_000_000);

/// The certificate or the configuration could not be made from the identity. The environment erred.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
#[error("no TLS identity: {0}")]
pub struct TlsError(String);

/// The certificate of this node and the key behind it. Clones are handles.
#[derive(Debug, Clone)]
pub struct TlsIdentity {
    certified: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    clock: Arc<TokioClock>,
}

impl TlsIdentity {
    /// Makes the self-signed certificate of an identity; the same identity gives the same bytes.
    ///
    /// # Errors
    /// [`TlsError`] when the certificate cannot be encoded.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        let key = NodeKey { identity: identity.clone(), public: identity.peer_id() };
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        let certificate = parameters.self_signed(&key).map_err(|error| TlsError(error.to_string()))?;
        Ok(Self {
            certified: Arc::new(CertifiedKey::new(vec![certificate.der().clone()], Arc::new(key))),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            clock: Arc::new(TokioClock(Instant::now())),
        })
    }

    /// The configuration to dial with, for [`ALPN`]; other protocols put theirs into it. Dial with [`server_name`] of the peer, or the handshake fails.
    ///
    /// # Errors
    /// [`TlsError`] when the crypto provider lacks TLS 1.3.
    pub fn client(&self) -> Result<ClientConfig, TlsError> {
        self.client_with(true)
    }

    /// The configuration to dial a peer whose key is not known: whoever answers is taken. [`peer_id`] of its certificate
    /// says who that is. Only for servers that need not be trusted.
    ///
    /// # Errors
    /// [`TlsError`] when the crypto provider lacks TLS 1.3.
    pub fn client_of_anyone(&self) -> Result<ClientConfig, TlsError> {
        self.client_with(false)
    }

    /// The configuration to accept with.
    ///
    /// # Errors
    /// [`TlsError`] when the crypto provider lacks TLS 1.3.
    pub fn server(&self) -> Result<ServerConfig, TlsError> {
        self.server_with(true)
    }

    /// The configuration to accept also those who show no certificate: then nobody is known to be at the other end.
    ///
    /// # Errors
    /// [`TlsError`] when the crypto provider lacks TLS 1.3.
    pub fn server_for_anyone(&self) -> Result<ServerConfig, TlsError> {
        self.server_with(false)
    }

    fn client_with(&self, pinned: bool) -> Result<ClientConfig, TlsError> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(DialledPeer { provider: self.provider.clone(), pinned }))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::in_memory_sessions(SESSION_TICKETS);
        config.time_provider = self.clock.clone();
        Ok(config)
    }

    fn server_with(&self, mandatory: bool) -> Result<ServerConfig, TlsError> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| TlsError(error.to_string()))?
            .with_client_cert_verifier(Arc::new(AnyPeer { provider: self.provider.clone(), mandatory }))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.certified.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = ServerSessionMemoryCache::new(SESSION_TICKETS);
        config.time_provider = self.clock.clone();
        Ok(config)
    }
}

/// The name under which rustls verifies and remembers a peer: its key in base32, one DNS label. It is never sent.
pub fn server_name(peer: &PeerId) -> String {
    data_encoding::BASE32_NOPAD.encode(peer.as_bytes()).to_ascii_lowercase()
}

/// The peer that a certificate names.
///
/// # Errors
/// [`Error::InvalidCertificate`] when it is too large, damaged, or has a key other than Ed25519.
pub fn peer_id(certificate: &CertificateDer<'_>) -> Result<PeerId, Error> {
    let damaged = || Error::InvalidCertificate(CertificateError::BadEncoding);
    if certificate.len() > CERTIFICATE_MAX_BYTES {
        return Err(damaged());
    }
    let certificate = webpki::EndEntityCert::try_from(certificate).map_err(|_| damaged())?;
    let key_info = certificate.subject_public_key_info();
    let key = key_info.strip_prefix(&SPKI_PREFIX[..]).and_then(|key| key.try_into().ok()).ok_or_else(damaged)?;
    PeerId::from_bytes(key).map_err(|_| damaged())
}

/// The peer behind a name made by [`server_name`].
fn named_peer(name: &ServerName<'_>) -> Option<PeerId> {
    let ServerName::DnsName(name) = name else { return None };
    let key = data_encoding::BASE32_NOPAD.decode(name.as_ref().to_ascii_uppercase().as_bytes()).ok()?;
    PeerId::from_bytes(key.as_slice().try_into().ok()?).ok()
}

/// The one peer of a chain: nobody vouches for anybody, so that there is nothing but an end-entity certificate.
fn only_peer(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<PeerId, Error> {
    if intermediates.is_empty() {
        peer_id(end_entity)
    } else {
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }
}

/// The client's verifier: exactly the key that was dialled, or, not pinned, whoever has a key and proves it.
#[derive(Debug)]
struct DialledPeer {
    provider: Arc<CryptoProvider>,
    pinned: bool,
}

impl ServerCertVerifier for DialledPeer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let peer = only_peer(end_entity, intermediates)?;
        if !self.pinned || named_peer(server_name) == Some(peer) {
            Ok(ServerCertVerified::assertion())
        } else {
            // The alert of this error, access_denied, is how a transport tells that another peer answered.
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    ed25519_by_tls13!(verify_tls13_signature);
}

/// The server's verifier: any peer, but it must have a key and prove it; or, not mandatory, show none at all.
#[derive(Debug)]
struct AnyPeer {
    provider: Arc<CryptoProvider>,
    mandatory: bool,
}

impl ClientCertVerifier for AnyPeer {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        only_peer(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    ed25519_by_tls13!(verify_tls13_signature);
}

/// The identity as a key that rustls and rcgen sign with, without ever seeing the secret.
#[derive(Debug, Clone)]
struct NodeKey {
    identity: Identity,
    public: PeerId,
}

impl SigningKey for NodeKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some([&SPKI_PREFIX[..], self.public.as_bytes()].concat().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for NodeKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.identity.signing_key().sign(message).to_bytes().to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

impl rcgen::PublicKeyData for NodeKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for NodeKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.identity.signing_key().sign(message).to_bytes().to_vec())
    }
}

/// tokio's clock for rustls, so that tickets age as fast as everything else in a simulation.
#[derive(Debug)]
struct TokioClock(Instant);

impl TimeProvider for TokioClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(CLOCK_EPOCH + self.0.elapsed()))
    }
}

#[cfg(test)]
mod tests;
