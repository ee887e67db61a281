//! The adapters of the ports [`crate::transport`] and [`crate::net`]: one folder per transport, the TLS identity that they
//! share, the operating system's network, and ports at routers.

pub mod host;
pub mod mdns;
pub mod port_mapping;
pub mod quic;
pub mod relay_client;
pub mod stream;
pub mod tls;
pub(crate) mod turn_tls;
