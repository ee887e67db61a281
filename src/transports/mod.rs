//! The adapters of the port in [`crate::transport`]: one folder per transport, and the TLS identity that they share.

pub mod quic;
pub mod tls;
