//! Sockets beside the one that QUIC has: the many of birthday punching, of which one may stay as a path.
//!
//! Each listens to the one peer that it was opened for, and hands on what comes as if it had come by the path of that socket. It
//! is closed when its [`ExtraSocket`] is dropped. Sending is datagram by datagram, now or not at all.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::task::AbortHandle;

use super::demux::{Protocol, protocol};
use super::paths::Paths;
use crate::limits::{SOCKET_RECEIVE_ERRORS, STUN_MESSAGE_MAX_BYTES};
use crate::nat::path::{Path, Via};
use crate::net::{DatagramSocket, HostNetwork};

/// Room for one datagram: none of ours is larger, and what is cut off fails its integrity check.
const BUFFER_BYTES: usize = 2048;
const _: () = assert!(BUFFER_BYTES >= STUN_MESSAGE_MAX_BYTES);

/// The extra sockets that are open, by their numbers.
#[derive(Debug, Default)]
pub(super) struct ExtraSockets {
    open: RwLock<BTreeMap<u32, Arc<dyn DatagramSocket>>>,
    next: AtomicU32,
}

impl ExtraSockets {
    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.open.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Sends datagrams from one of them. What does not fit into its queue is lost: quinn waits for the main socket only.
    ///
    /// # Errors
    /// `AddrNotAvailable` when it is closed; otherwise what the system says about the last datagram.
    pub(super) fn send<'a>(
        &self,
        number: u32,
        to: SocketAddr,
        datagrams: impl Iterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let socket = self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned();
        let Some(socket) = socket else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
        let mut sent = Ok(());
        for datagram in datagrams {
            match socket.try_send(to, datagram) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => sent = result,
            }
        }
        sent
    }

    fn add(&self, socket: Arc<dyn DatagramSocket>) -> u32 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, socket);
        number
    }

    fn remove(&self, number: u32) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }
}

/// One extra socket, open until this is dropped.
#[derive(Debug)]
pub(super) struct ExtraSocket {
    paths: Arc<Paths>,
    path: Path,
    number: u32,
    /// Whether the peer proved that it is there: before, checks pass and nothing else.
    proven: Arc<AtomicBool>,
    receiving: AbortHandle,
}

impl ExtraSocket {
    /// Opens one for a peer at `remote`, on a port of the system's choice.
    ///
    /// # Errors
    /// The environment's: too many files are open, or there is no IPv4.
    pub(super) fn open(paths: &Arc<Paths>, network: &dyn HostNetwork, remote: SocketAddr) -> io::Result<Self> {
        // A node that listens on one address leaves by that one.
        let ip = match paths.local_address().ip().to_canonical() {
            IpAddr::V4(ip) => ip,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let socket = network.bind_udp((ip, 0).into())?;
        let number = paths.extra.add(socket.clone());
        let path = Path { via: Via::Extra { socket: number }, remote };
        let proven = Arc::new(AtomicBool::new(false));
        let receiving = tokio::spawn(receive(paths.clone(), socket, path, proven.clone())).abort_handle();
        Ok(Self { paths: paths.clone(), path, number, proven, receiving })
    }

    /// The path that it is.
    pub(super) fn path(&self) -> Path {
        self.path
    }

    /// The peer answered: everything of it passes from now on.
    pub(super) fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }
}

impl Drop for ExtraSocket {
    fn drop(&mut self) {
        self.paths.extra.remove(self.number);
        self.receiving.abort();
    }
}

async fn receive(paths: Arc<Paths>, socket: Arc<dyn DatagramSocket>, path: Path, proven: Arc<AtomicBool>) {
    let mut buffer = [0; BUFFER_BYTES];
    let mut errors = 0;
    while errors < SOCKET_RECEIVE_ERRORS {
        match poll_fn(|context| socket.poll_receive(context, &mut buffer)).await {
            Ok((length, from)) => {
                errors = 0;
                let datagram = &buffer[..length];
                let passes = proven.load(Ordering::Relaxed) || protocol(datagram) == Protocol::Stun;
                if from == path.remote && passes {
                    paths.inject(path, datagram);
                }
            }
            Err(_) => {
                errors += 1;
                tokio::task::yield_now().await;
            }
        }
    }
}

#[cfg(test)]
#[cfg(feature = "sim")]
mod tests {
    use super::*;
    use crate::sim::{self, SimNetwork};
    use crate::transports::quic::path_socket::PathSocket;

    #[test]
    fn an_extra_socket_hears_its_peer_only_and_is_gone_when_dropped() {
        sim::run(1, |sim| async move {
            let network = SimNetwork::new(sim.options());
            let host = network.host([192, 0, 2, 1].into());
            let (peer, other) = (network.host([192, 0, 2, 2].into()), network.host([192, 0, 2, 3].into()));
            let (peer, other) = (peer.bind(5000).unwrap(), other.bind(5000).unwrap());
            let (_socket, paths) = PathSocket::open(host.bind(4000).unwrap(), &[1; 32]).unwrap();
            let mut stun = paths.take_stun().unwrap();
            let extra = ExtraSocket::open(&paths, &host, peer.address()).unwrap();
            assert_eq!(paths.stats().extra, 1);
            paths.send(extra.path(), b"hello");
            let (heard, at) = peer.recv_from().await;
            assert_eq!(&heard[..], b"hello");
            assert_ne!(at.port(), 4000);
            let check = crate::nat::stun::Request::binding();
            let check = check.seal(crate::nat::stun::TransactionId::from_random([1; 12]), None).unwrap();
            other.send_to(check.bytes().to_vec(), at);
            peer.send_to(check.bytes().to_vec(), at);
            assert_eq!(stun.recv().await.unwrap().0, extra.path());
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            assert!(stun.try_recv().is_err(), "only the peer is heard");
            let path = extra.path();
            drop(extra);
            assert_eq!(paths.stats().extra, 0);
            assert!(paths.extra.send(0, path.remote, [&b"late"[..]].into_iter()).is_err());
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            assert!(host.bind(at.port()).is_ok(), "the port is free again");
        });
    }
}
