//! The server that a cooperative runs for its nodes: rendezvous, forwarding, STUN and TURN.
//!
//! [`Relay::start`] binds what [`RelayOptions`] say on a [`HostNetwork`] and serves until [`Relay::shutdown`] or until it is
//! dropped. Users are given [`Relay::address`]. What it decides it decides in pure machines (`sessions`, `flows`, `turn`,
//! `stun`), under quotas ([`RelayLimits`]) and a list of addresses that it sends nothing to ([`PeerPolicy`]); the rest of
//! this folder moves bytes.
//!
//! A relay learns who speaks to whom, when, and how much. It does not learn what: signalling is sealed
//! (`rendezvous/seal.rs`) and what it forwards is QUIC between the peers. It needs no disk.

mod admin;
mod counters;
mod flows;
mod limits;
mod options;
mod peers;
mod ports;
mod quota;
mod records;
mod sessions;
mod setup;
mod shared;
mod streams;
mod stun;
mod turn;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use self::shared::{Shared, lock};
use crate::limits::{RELAY_DATAGRAM_MAX_BYTES, SOCKET_RECEIVE_ERRORS};
use crate::net::HostNetwork;
use crate::rendezvous::address::RelayAddress;

pub use counters::RelaySnapshot;
pub use limits::RelayLimits;
pub use options::{Alternate, ExternalServer, ExternalTurn, RelayOptions, TurnMode};
pub use peers::{IpNetwork, NetworkError, PeerPolicy};
pub use quota::Rate;

/// A relay cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RelayError {
    /// An address cannot be bound. The environment or the configuration erred.
    #[error("cannot listen on {address} for {what}: {source}")]
    Bind {
        /// What for.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The options contradict each other. The caller erred.
    #[error("{0}")]
    Options(&'static str),
    /// The identity makes no certificate.
    #[error(transparent)]
    Tls(#[from] crate::transports::tls::TlsError),
}

/// A running relay. Dropping it stops it at once.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    address: RelayAddress,
    bound: Bound,
}

/// Where a relay listens, with the ports that were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bound {
    /// TLS: sessions, and TURN over TLS.
    pub tls: SocketAddr,
    /// Datagrams: STUN, TURN, forwarding.
    pub datagrams: SocketAddr,
    /// TURN over plain TCP.
    pub turn_tcp: Option<SocketAddr>,
    /// HTTP.
    pub admin: Option<SocketAddr>,
}

impl Relay {
    /// Starts a relay. Call it within a tokio runtime.
    ///
    /// # Errors
    /// [`RelayError`].
    pub fn start(network: Arc<dyn HostNetwork>, options: RelayOptions) -> Result<Self, RelayError> {
        let prepared = setup::prepare(network, options)?;
        let (shared, bound) = (prepared.shared, prepared.bound);
        let mut tasks = JoinSet::new();
        for at in 0..shared.sockets.len() {
            tasks.spawn(receive(shared.clone(), at));
        }
        tasks.spawn(keep_time(shared.clone()));
        tasks.spawn(streams::accept(shared.clone(), prepared.tls_listener, Some(prepared.tls)));
        if let Some(listener) = prepared.turn_listener {
            tasks.spawn(streams::accept(shared.clone(), listener, None));
        }
        if let Some(listener) = prepared.admin_listener {
            tasks.spawn(admin::serve(shared.clone(), listener));
        }
        Ok(Self { shared, tasks, address: prepared.address, bound })
    }

    /// What users are given: where it is, and its key.
    pub fn address(&self) -> &RelayAddress {
        &self.address
    }

    /// Where it listens.
    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// What it has done so far, and what it does now.
    pub fn snapshot(&self) -> RelaySnapshot {
        self.shared.snapshot()
    }

    /// Tells all nodes to go elsewhere, and stops when they have been told, at the latest after `deadline`.
    pub async fn shutdown(mut self, deadline: Duration) {
        self.shared.stopping.send_replace(true);
        {
            let mut sessions = lock(&self.shared.sessions);
            sessions.machine.on_shutdown();
            self.shared.deliver(&mut sessions);
            sessions.close_all();
        }
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        let _ = timeout(deadline, all_ended).await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // The tasks of relayed ports keep what they share with the relay alive; nothing else ends them.
        self.shared.stopping.send_replace(true);
        if let Some(turn) = &self.shared.turn {
            lock(turn).close_all();
        }
    }
}

/// Takes datagrams from one socket.
async fn receive(shared: Arc<Shared>, at: usize) {
    let Some(socket) = shared.sockets.get(at).cloned() else { return };
    let mut stopping = shared.stopping.subscribe();
    // One byte more than allowed, so that what was cut off is told from what fits.
    let mut buffer = vec![0; RELAY_DATAGRAM_MAX_BYTES + 1];
    let (mut out, mut errors) = (Vec::new(), 0);
    loop {
        let received = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return,
            received = poll_fn(|context| socket.poll_receive(context, &mut buffer)) => received,
        };
        match received {
            Ok((length, from)) if length <= RELAY_DATAGRAM_MAX_BYTES => {
                errors = 0;
                shared.on_datagram(at, from, &buffer[..length], &mut out);
            }
            Ok(_) => shared.counters.malformed.add(1),
            Err(_) if errors < SOCKET_RECEIVE_ERRORS => errors += 1,
            Err(error) => return tracing::error!(%error, "a socket is broken, datagrams are taken no more"),
        }
    }
}

/// Wakes the machines when they want it.
async fn keep_time(shared: Arc<Shared>) {
    let mut stopping = shared.stopping.subscribe();
    loop {
        let next = shared.poll_timeout();
        let wait = async {
            match next {
                Some((at, _reason)) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return,
            () = wait => shared.on_timeout(),
            () = shared.wake.notified() => {}
        }
    }
}
