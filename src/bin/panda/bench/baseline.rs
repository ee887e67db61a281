//! What the machine gives without us: a QUIC stream echo on loopback and an append with fsync.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use quinn::{ClientConfig, Endpoint, RecvStream, SendStream, ServerConfig};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::scenario::OPERATION_BYTES;
use crate::error::CliError;

/// Round trips of 200 bytes on one QUIC stream between two tasks, in µs.
///
/// # Errors
/// When loopback or TLS is not usable.
pub async fn quic_echo(count: u32) -> Result<Vec<u64>, CliError> {
    let failed = |error: Box<dyn std::error::Error>| CliError::Environment(format!("raw QUIC on loopback: {error}"));
    echo(count).await.map_err(failed)
}

async fn echo(count: u32) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let certificate = key.cert.der().clone();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Endpoint::server(ServerConfig::with_single_cert(vec![certificate.clone()], private)?, here)?;
    let address = server.local_addr()?;
    let serving = tokio::spawn(serve(server));
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let mut client = Endpoint::client(here)?;
    client.set_default_client_config(ClientConfig::with_root_certificates(Arc::new(roots))?);
    let connection = client.connect(address, "localhost")?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    let mut round_trips = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        round_trip(&mut send, &mut receive).await?;
        round_trips.push(u64::try_from(start.elapsed().as_micros())?);
    }
    connection.close(0u32.into(), b"done");
    serving.abort();
    Ok(round_trips)
}

async fn round_trip(send: &mut SendStream, receive: &mut RecvStream) -> Result<(), Box<dyn std::error::Error>> {
    let mut buffer = [0xA5; OPERATION_BYTES];
    send.write_all(&buffer).await?;
    receive.read_exact(&mut buffer).await?;
    Ok(())
}

/// Echoes one stream of one connection until the client is gone.
async fn serve(server: Endpoint) -> Option<()> {
    let connection = server.accept().await?.await.ok()?;
    let (mut send, mut receive) = connection.accept_bi().await.ok()?;
    let mut buffer = [0; OPERATION_BYTES];
    loop {
        receive.read_exact(&mut buffer).await.ok()?;
        send.write_all(&buffer).await.ok()?;
    }
}

/// Appends 200 bytes to a file and waits for the disk, over and over: how long each took, in µs. Blocks.
///
/// # Errors
/// When the temporary directory is not writable.
pub fn append_and_sync(count: u32) -> Result<Vec<u64>, CliError> {
    let temp = std::env::temp_dir();
    let mut file = tempfile::tempfile().map_err(CliError::io("make a file in", &temp))?;
    let mut durations = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        file.write_all(&[0xA5; OPERATION_BYTES]).map_err(CliError::io("write in", &temp))?;
        file.sync_all().map_err(CliError::io("sync in", &temp))?;
        durations.push(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok(durations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_baselines_give_figures() {
        assert_eq!(quic_echo(20).await.unwrap().len(), 20);
        assert_eq!(append_and_sync(3).unwrap().len(), 3);
    }
}
