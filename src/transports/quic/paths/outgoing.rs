//! What leaves by the paths: quinn's datagrams by the path of their route, and others beside them.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use quinn::AsyncUdpSocket;
use quinn::udp::Transmit;
use tokio::time::Instant;

use super::Paths;
use crate::nat::path::{Path, Via};
use crate::rendezvous::forward::{FORWARD_HEADER_BYTES, put_forward};
use crate::transports::quic::path_socket::send_to;
use crate::transports::quic::routes::Route;
use crate::transports::quic::unproven::Unproven;

impl Paths {
    /// Sends one datagram beside quinn's, now or not at all.
    pub(in crate::transports::quic) fn send(&self, path: Path, datagram: &[u8]) {
        let Some(socket) = self.socket.upgrade() else { return };
        let transmit =
            Transmit { destination: path.remote, ecn: None, contents: datagram, segment_size: None, src_ip: None };
        // Blocked is loss.
        let _ = self.send_by(&*socket, path, &transmit);
    }

    /// Sends a transmit of quinn's by the path of its route, or by all candidates of a dial. Nowhere: the farewell of a dial that
    /// was given up, or of a connection whose route was needed elsewhere.
    ///
    /// # Errors
    /// As [`send_by`](Self::send_by). Blocked for some candidates is loss for them; blocked for all is worth waiting for.
    pub(in crate::transports::quic) fn transmit(
        &self,
        socket: &dyn AsyncUdpSocket,
        transmit: &Transmit<'_>,
    ) -> std::io::Result<()> {
        let mut routes = self.routes();
        if routes.is_given_up(&transmit.destination, transmit.contents) {
            return Ok(());
        }
        routes.on_send(&transmit.destination, segments(transmit), || Instant::now().into_std());
        let candidates = match routes.route(&transmit.destination) {
            None => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            // What every datagram of a connection comes to: nothing is allocated.
            Some(Route::Settled(path)) => {
                let path = *path;
                drop(routes);
                return self.send_by(socket, path, transmit);
            }
            Some(Route::Probing { candidates, .. }) => candidates.clone(),
        };
        routes.on_probe(&transmit.destination, transmit.contents);
        drop(routes);
        let (mut any_sent, mut blocked) = (false, Ok(()));
        for path in candidates.into_iter().filter(|path| self.may_send(path)) {
            match self.send_by(socket, path, transmit) {
                Ok(()) => any_sent = true,
                error => blocked = error,
            }
        }
        if any_sent { Ok(()) } else { blocked }
    }

    /// Whether one more packet may go by a path that nobody answered on yet. TURN servers are asked by allocations that they
    /// made, and who came to an extra socket may always be.
    pub(in crate::transports::quic) fn may_send(&self, path: &Path) -> bool {
        match path.via {
            Via::Socket => self.take(&self.unproven, path.remote),
            Via::Forward { .. } => self.may_ask(path.remote),
            Via::Turn { .. } | Via::Extra { .. } => true,
        }
    }

    /// Whether one more packet may go to an address that a relay named as its own, or as that of another server.
    pub(in crate::transports::quic) fn may_ask(&self, server: SocketAddr) -> bool {
        let proven = self.relays.read().unwrap_or_else(PoisonError::into_inner).get(&server).copied();
        proven == Some(true) || self.take(&self.named, server)
    }

    /// Whether a stranger may be looked for at an address: strangers have a share of all that are counted.
    pub(in crate::transports::quic) fn may_visit(&self, remote: SocketAddr) -> bool {
        self.take(&self.visited, remote)
    }

    /// Whether one more packet of birthday punching may go there.
    pub(in crate::transports::quic) fn may_guess(&self, remote: SocketAddr) -> bool {
        self.take(&self.guesses, remote)
    }

    pub(super) fn take(&self, budget: &Mutex<Unproven>, remote: SocketAddr) -> bool {
        let may = budget.lock().unwrap_or_else(PoisonError::into_inner).take(remote.ip(), Instant::now().into_std());
        if !may {
            self.withheld.fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    /// The peer proved that it is there.
    pub(in crate::transports::quic) fn prove(&self, path: &Path) {
        match path.via {
            Via::Socket => {
                let ip = path.remote.ip();
                self.unproven.lock().unwrap_or_else(PoisonError::into_inner).prove(ip);
                self.visited.lock().unwrap_or_else(PoisonError::into_inner).prove(ip);
            }
            Via::Forward { .. } => self.on_server_answer(path.remote),
            Via::Turn { .. } | Via::Extra { .. } => {}
        }
    }

    /// Sends a transmit by one path, framed as the path wants it.
    ///
    /// # Errors
    /// `WouldBlock`, and nothing else: an error is about one datagram or one moment, and for quinn it would be the end.
    pub(in crate::transports::quic) fn send_by(
        &self,
        socket: &dyn AsyncUdpSocket,
        path: Path,
        transmit: &Transmit<'_>,
    ) -> std::io::Result<()> {
        let framed = match path.via {
            Via::Socket => return self.note(path, send_to(socket, self.local, path.remote, transmit)),
            Via::Forward { flow } => {
                let mut framed = Vec::new();
                for segment in segments(transmit) {
                    put_forward(&mut framed, flow, segment);
                }
                let segment_size = transmit.segment_size.map(|size| size + FORWARD_HEADER_BYTES);
                let transmit = Transmit { contents: &framed, segment_size, src_ip: None, ..*transmit };
                return self.note(path, send_to(socket, self.local, path.remote, &transmit));
            }
            Via::Extra { socket } => return self.note(path, self.extra.send(socket, path.remote, segments(transmit))),
            Via::Turn { allocation } => self.turn().get(&allocation).cloned(),
        };
        let Some(link) = framed else { return Ok(()) };
        for segment in segments(transmit) {
            let mut framed = Vec::new();
            if let Some(server) = link.frame(path.remote, segment, &mut framed) {
                let transmit =
                    Transmit { destination: server, ecn: None, contents: &framed, segment_size: None, src_ip: None };
                // Blocked is loss for what is left of the batch: what was sent must not be sent again.
                let _ = self.note(path, send_to(socket, self.local, server, &transmit));
            }
        }
        Ok(())
    }

    pub(super) fn note(&self, path: Path, sent: std::io::Result<()>) -> std::io::Result<()> {
        match sent {
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => {
                self.send_errors.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, "a datagram could not be sent");
                if is_network_gone(&error) {
                    self.routes().on_send_error(&path);
                }
                Ok(())
            }
            sent => sent,
        }
    }
}

/// The datagrams of a transmit: an empty one is one as well, as which a relay is shown where we are.
fn segments<'a>(transmit: &Transmit<'a>) -> impl DoubleEndedIterator<Item = &'a [u8]> {
    let contents = transmit.contents;
    let empty = contents.is_empty().then_some(contents);
    contents.chunks(transmit.segment_size.unwrap_or(contents.len()).max(1)).chain(empty)
}

/// The network says that there is no way: worth a fail-over. Others are about one datagram, like one that is too large.
fn is_network_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkDown, NetworkUnreachable, PermissionDenied};
    matches!(error.kind(), AddrNotAvailable | HostUnreachable | NetworkDown | NetworkUnreachable | PermissionDenied)
}
