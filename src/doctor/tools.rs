//! What all examinations use: the network, a key for this one time, random numbers, and receiving from a socket.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::options::{DoctorOptions, Step};
use super::report::ProbeError;
use crate::identity::Identity;
use crate::limits::{SOCKET_RECEIVE_ERRORS, TURN_FRAME_MAX_BYTES};
use crate::net::{DatagramSocket, HostNetwork};
use crate::rendezvous::address::HostPort;
use crate::transports::tls::{TlsError, TlsIdentity};

/// How long a name may take.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(3);

/// Shared by everything that runs.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) network: Arc<dyn HostNetwork>,
    pub(super) identity: Identity,
    pub(super) tls: Arc<TlsIdentity>,
    random: Mutex<ChaCha20Rng>,
    steps: Option<mpsc::Sender<Step>>,
}

impl Tools {
    pub(super) fn new(network: Arc<dyn HostNetwork>, options: DoctorOptions) -> Result<Self, TlsError> {
        let (identity, random) = match options.seed {
            Some(seed) => (Identity::from_seed(&seed), ChaCha20Rng::from_seed(seed)),
            None => (Identity::generate(), ChaCha20Rng::from_os_rng()),
        };
        let tls = Arc::new(TlsIdentity::new(&identity)?);
        Ok(Self { network, identity, tls, random: Mutex::new(random), steps: options.steps })
    }

    pub(super) fn random(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.random.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(&mut bytes);
        bytes
    }

    pub(super) fn tell(&self, step: Step) {
        if let Some(steps) = &self.steps {
            let _ = steps.try_send(step);
        }
    }

    /// The addresses of a server.
    pub(super) async fn resolve(&self, server: &HostPort) -> Result<Vec<SocketAddr>, ProbeError> {
        let resolving = self.network.resolve(server.host(), server.port());
        let resolved = timeout(RESOLVE_DEADLINE, resolving).await.map_err(|_| ProbeError::Timeout(RESOLVE_DEADLINE))?;
        resolved.map_err(ProbeError::Resolve)
    }

    /// A fresh socket that reaches addresses of this family.
    pub(super) fn bind(&self, family: Family) -> std::io::Result<Datagrams> {
        let ip = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = self.network.bind_udp((ip, 0).into())?;
        Ok(Datagrams { socket, buffer: vec![0; TURN_FRAME_MAX_BYTES], errors: 0 })
    }
}

/// IPv4 and IPv6 have routers, and NATs, of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(address: &SocketAddr) -> Self {
        if address.ip().to_canonical().is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A socket and a buffer.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: Arc<dyn DatagramSocket>,
    buffer: Vec<u8>,
    errors: u32,
}

impl Datagrams {
    pub(super) fn port(&self) -> u16 {
        self.socket.local_address().port()
    }

    /// Sends now or not at all: lost packets are sent again by whoever asks.
    pub(super) fn send(&self, to: SocketAddr, datagram: &[u8]) {
        let _ = self.socket.try_send(to, datagram);
    }

    /// The next datagram. Waits for ever on a broken socket.
    pub(super) async fn receive(&mut self) -> (SocketAddr, &[u8]) {
        loop {
            match poll_fn(|context| self.socket.poll_receive(context, &mut self.buffer)).await {
                Ok((length, from)) => return (from, &self.buffer[..length]),
                Err(_) if self.errors < SOCKET_RECEIVE_ERRORS => self.errors += 1,
                Err(_) => std::future::pending().await,
            }
        }
    }
}

/// Waits until a machine wants to be woken; for ever when it does not.
pub(super) async fn due(timeout: Option<(std::time::Instant, &'static str)>) {
    match timeout {
        Some((at, _)) => sleep_until(Instant::from_std(at)).await,
        None => std::future::pending().await,
    }
}

/// The time as machines want it.
pub(super) fn now() -> std::time::Instant {
    Instant::now().into_std()
}
