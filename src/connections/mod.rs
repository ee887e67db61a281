//! Connections to peers: who is dialled when, what becomes of those who dial us, and which of two connections stays.
//!
//! [`Connections`] owns a transport. It keeps every peer it was told of connected ([`Connections::add_peer`]), accepts the
//! others, and hands each connection that stays to a [`ConnectionHandler`]. Per peer, [`peer_machine`] decides; `keeper` is
//! its driver. Nothing here knows what travels on a connection.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;
use tokio::time::Instant;

mod keeper;
pub mod peer_machine;

use crate::address::PeerAddress;
use crate::backoff::ReconnectionPolicy;
use crate::ids::PeerId;
use crate::limits::{CONNECT_DEADLINE, MAX_KNOWN_PEERS, RECORD_CLOCK_SKEW};
use crate::network_interface::ConnectionState;
use crate::transport::{
    BoxFuture, CloseReason, Connection, ConnectionInfo, ConnectionStats, Transport, TransportError,
};
use crate::watch;
use peer_machine::new_connection_wins;

/// What is done with a connection for as long as it lives, and who is let in.
pub trait ConnectionHandler: Send + Sync {
    /// Whether a peer that dialled us is welcome. Others are told and closed.
    fn admits(&self, _peer: &PeerId) -> bool {
        true
    }

    /// A peer is connected that was not, or the other way round; for each peer in the order in which it happens. Must return at
    /// once, and not ask [`Connections`] anything.
    fn on_change(&self, _change: PeerChange) {}

    /// Serves a connection; it counts as the peer's connection until this resolves, and is closed by then.
    fn serve(&self, connection: Arc<dyn Connection>) -> BoxFuture<'static, ()>;
}

/// What happened to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerChange {
    /// It is connected now. A newer connection that takes over is no change.
    Connected(ConnectionInfo),
    /// It is not connected any more.
    Disconnected(PeerId),
}

/// Keeps peers connected. Clones are handles.
#[derive(Clone)]
pub struct Connections {
    inner: Arc<Inner>,
}

struct Inner {
    node: PeerId,
    transport: Arc<dyn Transport>,
    policy: ReconnectionPolicy,
    handler: Arc<dyn ConnectionHandler>,
    peers: Mutex<BTreeMap<PeerId, Peer>>,
    online: watch::Sender<bool>,
    /// Counts the reasons to dial everybody at once.
    retries: watch::Sender<u64>,
    state: watch::Sender<ConnectionState>,
    /// Connections there are.
    connected: watch::Sender<usize>,
    random: Mutex<ChaCha8Rng>,
    tasks: Mutex<JoinSet<()>>,
}

struct Peer {
    /// Where to dial; `None` for a peer that dialled us and is not to be dialled.
    address: Option<watch::Sender<PeerAddress>>,
    current: Option<Current>,
    /// Number of the current connection, `None` while there is none.
    connected: watch::Sender<Option<u64>>,
    connections: u64,
}

struct Current {
    number: u64,
    connection: Arc<dyn Connection>,
    dialled: bool,
    since: Instant,
}

impl Connections {
    /// Starts to accept peers. `seed` drives the jitter of retries.
    pub fn start(
        node: PeerId,
        transport: Arc<dyn Transport>,
        policy: ReconnectionPolicy,
        handler: Arc<dyn ConnectionHandler>,
        seed: u64,
    ) -> Self {
        let inner = Arc::new(Inner {
            node,
            transport,
            policy,
            handler,
            peers: Mutex::default(),
            online: watch::Sender::new(true),
            retries: watch::Sender::new(0),
            state: watch::Sender::new(ConnectionState::Idle),
            connected: watch::Sender::new(0),
            random: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
            tasks: Mutex::new(JoinSet::new()),
        });
        inner.spawn(keeper::accept(Arc::clone(&inner)));
        Self { inner }
    }

    /// Keeps this peer connected from now on, at the newest address it signed by the wall clock, `now_us`; one from the future
    /// gives way to any other. False when too many are known already.
    pub fn add_peer(&self, address: PeerAddress, now_us: u64) -> bool {
        let inner = &self.inner;
        let peer_id = address.peer_id();
        if peer_id == inner.node {
            return true;
        }
        let mut peers = inner.peers();
        if peers.len() >= MAX_KNOWN_PEERS && !peers.contains_key(&peer_id) {
            return false;
        }
        let peer = peers.entry(peer_id).or_insert_with(Peer::new);
        match &peer.address {
            Some(known) => {
                known.send_if_modified(|known| {
                    let newer = rank(known, now_us) < rank(&address, now_us);
                    if newer {
                        *known = address;
                    }
                    newer
                });
            }
            None => {
                let sender = watch::Sender::new(address);
                let (receiver, connected) = (sender.subscribe(), peer.connected.subscribe());
                peer.address = Some(sender);
                drop(peers);
                inner.spawn(keeper::keep_connected(Arc::clone(inner), peer_id, receiver, connected));
                inner.refresh_state();
            }
        }
        true
    }

    /// The connection to this peer: the one there is, or a new one, which is kept no longer than its handler does. For asking a
    /// peer something once. A `stranger` is dialled by [`Transport::visit`].
    ///
    /// # Errors
    /// [`TransportError`]: it cannot be reached, or this node is offline.
    pub async fn visit(&self, address: &PeerAddress, stranger: bool) -> Result<Arc<dyn Connection>, TransportError> {
        let (inner, peer) = (&self.inner, address.peer_id());
        if let Some(connection) = inner.current(&peer) {
            return Ok(connection);
        }
        if !*inner.online.borrow() {
            return Err(TransportError::ClosedHere);
        }
        let connection = match stranger {
            true => inner.transport.visit(address, CONNECT_DEADLINE).await?,
            false => inner.transport.connect(address, CONNECT_DEADLINE).await?,
        };
        inner.establish(connection);
        // Not necessarily this one: the peer may have dialled as well.
        inner.current(&peer).ok_or(TransportError::ClosedHere)
    }

    /// Closes the connection to a peer that was only visited: that this node dialled, and that it does not keep connected.
    pub fn leave(&self, peer: &PeerId) {
        let peers = self.inner.peers();
        let visited = peers.get(peer).filter(|peer| peer.address.is_none()).and_then(|peer| peer.current.as_ref());
        if let Some(current) = visited.filter(|current| current.dialled) {
            current.connection.close(CloseReason::Done);
        }
    }

    /// Does not dial this peer any more. A connection that is there stays until it is closed.
    pub fn forget_peer(&self, peer_id: PeerId) {
        let mut peers = self.inner.peers();
        if let Some(peer) = peers.get_mut(&peer_id) {
            // The keeper ends with the sender that it follows.
            peer.address = None;
            if peer.current.is_none() {
                peers.remove(&peer_id);
            }
        }
        drop(peers);
        self.inner.refresh_state();
    }

    /// Goes offline: makes and takes no more connections; those that are there stay until they are closed. Or goes online
    /// again, which dials everybody at once.
    pub fn set_online(&self, online: bool) {
        self.inner.online.send_replace(online);
        self.inner.refresh_state();
    }

    /// Waits until the peers have closed their connections, at most `deadline`, and closes those that are left.
    pub async fn close_all(&self, deadline: Duration) {
        let mut connected = self.inner.connected.subscribe();
        // Over the deadline: the rest is closed from this side.
        let _ = tokio::time::timeout(deadline, connected.wait_for(|connected| *connected == 0)).await;
        for current in self.inner.peers().values().filter_map(|peer| peer.current.as_ref()) {
            current.connection.close(CloseReason::GoingOffline);
        }
    }

    /// Dials everybody who is not connected at once: the network changed, or somebody wants to know.
    pub fn retry_now(&self) {
        self.inner.retries.send_modify(|retries| *retries += 1);
    }

    /// Whether anybody is connected, over time.
    pub fn watch_state(&self) -> watch::Receiver<ConnectionState> {
        self.inner.state.subscribe()
    }

    /// Whether this peer is connected now.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.inner.peers().get(peer).is_some_and(|peer| peer.current.is_some())
    }

    /// The connections there are.
    pub fn list(&self) -> Vec<(ConnectionInfo, ConnectionStats)> {
        let peers = self.inner.peers();
        let current = peers.values().filter_map(|peer| peer.current.as_ref());
        current.map(|current| (current.connection.info(), current.connection.stats())).collect()
    }

    /// Stops dialling and accepting for good, drops the connections and what serves them; the state stays offline and ends.
    pub fn stop(&self) {
        // Dropping the set aborts its tasks, and with them goes what keeps `Inner` alive.
        drop(std::mem::take(&mut *self.inner.tasks()));
        // The tasks that would have taken them out are gone.
        // The peers themselves stay: a keeper that is running just now would take them for changed, again and again.
        self.inner.peers().values_mut().for_each(|peer| peer.current = None);
        self.set_online(false);
        self.inner.state.close();
    }
}

/// The larger of two belongs to the record to use: a clock that was wrong must not win over all that is signed later.
fn rank(record: &PeerAddress, now_us: u64) -> (bool, u64) {
    let latest_us = now_us.saturating_add(u64::try_from(RECORD_CLOCK_SKEW.as_micros()).unwrap_or(u64::MAX));
    (record.timestamp_us() <= latest_us, record.timestamp_us())
}

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connections({:?})", *self.inner.state.borrow())
    }
}

impl Peer {
    fn new() -> Self {
        Self { address: None, current: None, connected: watch::Sender::new(None), connections: 0 }
    }
}

impl Inner {
    fn current(&self, peer: &PeerId) -> Option<Arc<dyn Connection>> {
        self.peers().get(peer)?.current.as_ref().map(|current| Arc::clone(&current.connection))
    }

    /// A connection was made, by either side: it stays, or the one that is there does.
    fn establish(self: &Arc<Self>, connection: Arc<dyn Connection>) {
        let info = connection.info();
        let (peer_id, now) = (info.peer_id, Instant::now());
        if !*self.online.borrow() {
            return connection.close(CloseReason::GoingOffline);
        }
        if !self.handler.admits(&peer_id) {
            tracing::debug!(peer = %peer_id.short(), "not welcome");
            return connection.close(CloseReason::NotWelcome);
        }
        let mut peers = self.peers();
        let peer = peers.entry(peer_id).or_insert_with(Peer::new);
        if let Some(current) = &peer.current {
            let by_smaller = info.dialled == (self.node < peer_id);
            let age = now.duration_since(current.since);
            if !new_connection_wins(age, current.dialled == info.dialled, by_smaller) {
                return connection.close(CloseReason::Superseded);
            }
            current.connection.close(CloseReason::Superseded);
        }
        peer.connections += 1;
        let number = peer.connections;
        let current = Current { number, connection: Arc::clone(&connection), dialled: info.dialled, since: now };
        let news = peer.current.replace(current).is_none();
        peer.connected.send_replace(Some(number));
        if news {
            self.handler.on_change(PeerChange::Connected(info.clone()));
        }
        drop(peers);
        tracing::debug!(peer = %peer_id.short(), dialled = info.dialled, "connected");
        self.refresh_state();
        let (inner, served) = (Arc::clone(self), self.handler.serve(connection));
        self.spawn(async move {
            served.await;
            inner.on_closed(peer_id, number);
        });
    }

    fn on_closed(&self, peer_id: PeerId, number: u64) {
        let mut peers = self.peers();
        if let Some(peer) = peers.get_mut(&peer_id)
            && peer.current.as_ref().is_some_and(|current| current.number == number)
        {
            peer.current = None;
            peer.connected.send_replace(None);
            if peer.address.is_none() {
                peers.remove(&peer_id);
            }
            self.handler.on_change(PeerChange::Disconnected(peer_id));
        }
        drop(peers);
        tracing::debug!(peer = %peer_id.short(), "disconnected");
        self.refresh_state();
    }

    fn refresh_state(&self) {
        let peers = self.peers();
        let connected = peers.values().filter(|peer| peer.current.is_some()).count();
        let state = match (*self.online.borrow(), connected, peers.is_empty()) {
            (false, ..) => ConnectionState::Offline,
            (true, 0, true) => ConnectionState::Idle,
            (true, 0, false) => ConnectionState::Connecting,
            (true, peers, _) => ConnectionState::Connected { peers },
        };
        drop(peers);
        self.connected.send_if_modified(|current| std::mem::replace(current, connected) != connected);
        self.state.send_if_modified(|current| std::mem::replace(current, state) != state);
    }

    /// Uniform in 0.0–1.0.
    fn random(&self) -> f64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).random()
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn peers(&self) -> MutexGuard<'_, BTreeMap<PeerId, Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn a_record_from_the_future_gives_way_to_any_other_and_is_better_than_none() {
        let now_us = 365 * 24 * 3_600_000_000;
        let skew_us = u64::try_from(RECORD_CLOCK_SKEW.as_micros()).unwrap();
        let rank = |timestamp_us| {
            let record = PeerAddress::sign(&Identity::from_seed(&[1; 32]), Vec::new(), Vec::new(), timestamp_us);
            super::rank(&record.unwrap(), now_us)
        };
        let worst_first = [now_us + skew_us + 1, u64::MAX, 1, now_us, now_us + skew_us];
        assert!(worst_first.map(rank).is_sorted());
    }
}
