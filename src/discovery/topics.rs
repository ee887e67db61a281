//! Finding the peers of our documents by asking others: the driver of the walk and of the runs, on both ends.
//!
//! [`TopicDiscovery::start`] begins to walk: it visits the peers that the address book names, one run each (`run`),
//! reports who shares a document, and learns whom to visit next. [`TopicDiscovery::handler`] answers the runs of others. Nobody
//! is asked unless a document is open here; others are answered in any case. A visited peer that shares nothing is left at
//! once. It makes connections only through [`Visits`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use metrics::{Counter, counter};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::run::{Learnt, Run, RunError};
use super::walk::{Failure, Origin, Walk};
use super::{Finds, Found, NodeView, Source};
use crate::address::PeerAddress;
use crate::ids::{DocumentId, PeerId};
use crate::limits::{
    DISCOVERY_RECORDS, DISCOVERY_RUN_DEADLINE, DISCOVERY_RUN_INTERVAL, DISCOVERY_RUNS, DISCOVERY_UNPROVEN_RUNS,
    MAX_KNOWN_PEERS, WALK_PEERS,
};
use crate::store::{Heard, KnownPeer, Store, StoreError};
use crate::sync::wire::StreamOpen;
use crate::transport::{BiStream, BoxFuture, CloseReason, Connection, Priority, StreamHandler, TransportError};

/// How visits are made.
pub trait Visits: Send + Sync + std::fmt::Debug {
    /// The connection to a peer: the one there is, or a new one, which this node need not keep. A `stranger` is one that this
    /// node's user did not name.
    fn visit(&self, peer: PeerAddress, stranger: bool) -> BoxFuture<'_, Result<Arc<dyn Connection>, TransportError>>;
    /// The visit is over, and the peer shares nothing: its connection goes, if we made it and nobody else wants it.
    fn leave(&self, peer: &PeerId);
}

/// What discovery has done so far, and what it knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiscoveryStats {
    /// Runs that this node started and that were through.
    pub asked: u64,
    /// Runs that others started and that were through.
    pub answered: u64,
    /// Runs that others started and that were refused: too many at once, or too soon after the one before.
    pub refused: u64,
    /// Runs and visits that failed.
    pub failed: u64,
    /// Records that were not signed by the peer they speak of.
    pub forged: u64,
    /// Records that were signed too far in the future or, of strangers, too long ago.
    pub out_of_time: u64,
    /// Bytes of messages, both directions.
    pub bytes: u64,
    /// Peers that share a document, each time that a run showed it.
    pub found: u64,
    /// Peers that may be asked.
    pub known: u64,
}

/// What discovery works with.
#[derive(Debug)]
pub struct TopicParts {
    /// This node.
    pub node: Arc<dyn NodeView>,
    /// The address book.
    pub store: Arc<dyn Store>,
    /// How to reach peers.
    pub visits: Arc<dyn Visits>,
    /// Where finds go.
    pub finds: Finds,
    /// Drives the walk.
    pub seed: u64,
}

/// Confidential discovery of one node. Clones are handles; it runs until [`stop`](Self::stop).
#[derive(Debug, Clone)]
pub struct TopicDiscovery(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    me: PeerId,
    parts: TopicParts,
    state: Mutex<State>,
    /// Something changed what the walk does next.
    wake: Notify,
    tasks: Mutex<JoinSet<()>>,
    metrics: Metrics,
}

#[derive(Debug)]
struct State {
    walk: Walk,
    stats: DiscoveryStats,
    /// When peers last started a run; of those that run now as well.
    asked: BTreeMap<PeerId, Instant>,
    /// Runs that peers started, under way.
    answering: BTreeSet<PeerId>,
}

impl TopicDiscovery {
    /// Starts to answer and to ask. `me` is this node.
    pub fn start(me: PeerId, parts: TopicParts) -> Self {
        let state = Mutex::new(State::new(Walk::new(ChaCha8Rng::seed_from_u64(parts.seed), Instant::now())));
        let inner = Arc::new(Inner {
            me,
            parts,
            state,
            wake: Notify::new(),
            tasks: Mutex::new(JoinSet::new()),
            metrics: Metrics::new(),
        });
        inner.spawn(walk_on(Arc::clone(&inner)));
        Self(inner)
    }

    /// A peer to ask, now and after every start. It need not share a document.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be kept.
    pub async fn add_peer(&self, address: PeerAddress) -> Result<(), StoreError> {
        let peer = address.peer_id();
        if peer == self.0.me {
            return Ok(());
        }
        self.0.parts.store.note_peers(vec![address], true).await?;
        self.0.state().walk.add(peer, Origin::User, Instant::now());
        self.0.wake.notify_one();
        Ok(())
    }

    /// The network changed: peers that did not answer are tried again.
    pub fn on_network_change(&self) {
        self.0.state().walk.retry_all(Instant::now());
        self.0.wake.notify_one();
    }

    /// Who answers the runs of others.
    pub fn handler(&self) -> Arc<dyn StreamHandler> {
        Arc::new(Answers(Arc::downgrade(&self.0)))
    }

    /// What was done so far.
    pub fn stats(&self) -> DiscoveryStats {
        let state = self.0.state();
        DiscoveryStats { known: state.walk.len() as u64, ..state.stats }
    }

    /// Ends all runs, and starts no more.
    pub fn stop(&self) {
        // Dropping the set aborts its tasks, and with them goes what keeps `Inner` alive.
        drop(std::mem::take(&mut *self.0.tasks()));
    }
}

/// Whether a connection made way for another one to the same peer.
fn is_superseded(error: &TransportError) -> bool {
    let code = CloseReason::Superseded as u64;
    matches!(error, TransportError::ClosedHere) || *error == TransportError::ClosedByPeer { code }
}

/// Does not keep discovery alive.
#[derive(Debug)]
struct Answers(Weak<Inner>);

impl StreamHandler for Answers {
    fn serve(&self, connection: Arc<dyn Connection>, stream: BiStream) {
        match self.0.upgrade() {
            Some(inner) => inner.serve(connection, stream),
            None => refuse(stream, CloseReason::NotOffered),
        }
    }
}

fn refuse((mut send, mut receive): BiStream, reason: CloseReason) {
    send.reset(reason);
    receive.stop(reason);
}

/// Visits one peer after the other for as long as the node lives.
async fn walk_on(inner: Arc<Inner>) {
    let Some(mut changes) = inner.parts.node.changes() else { return };
    match inner.parts.store.known_peers(WALK_PEERS).await {
        Ok(known) => {
            let (mut state, now) = (inner.state(), Instant::now());
            for peer in known.iter().filter(|peer| peer.address.peer_id() != inner.me) {
                let origin = if peer.bootstrap { Origin::User } else { Origin::Book { met: peer.met_us > 0 } };
                state.walk.add(peer.address.peer_id(), origin, now);
            }
        }
        Err(error) => tracing::warn!(%error, "the address book cannot be read"),
    }
    let (mut visits, mut open) = (JoinSet::new(), inner.open_documents());
    loop {
        let timeout = match open.is_empty() {
            true => None,
            false => inner.start_visits(&mut visits),
        };
        tokio::select! {
            biased;
            Some(_) = visits.join_next() => {}
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
                let now_open = inner.open_documents();
                if now_open.iter().any(|document| !open.contains(document)) {
                    inner.state().walk.ask_all_again(Instant::now());
                }
                open = now_open;
            }
            () = inner.wake.notified() => {}
            () = async { sleep_until(timeout.unwrap_or_else(Instant::now)).await }, if timeout.is_some() => {}
        }
    }
}

impl Inner {
    fn open_documents(&self) -> Vec<DocumentId> {
        self.parts.node.documents().iter().map(|record| record.document).collect()
    }

    /// Starts the visits that are due, and says when the next one is.
    fn start_visits(self: &Arc<Self>, visits: &mut JoinSet<()>) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.state();
        while let Some(peer) = state.walk.next(now) {
            let inner = Arc::clone(self);
            visits.spawn(async move { inner.visit(peer).await });
        }
        state.walk.poll_timeout().map(|(at, _reason)| at)
    }

    /// One visit: connects, asks, leaves.
    async fn visit(self: Arc<Self>, peer: PeerId) {
        let Err(error) = self.try_visit(peer).await else {
            self.state().walk.on_visited(&peer, Instant::now());
            return;
        };
        tracing::debug!(peer = %peer.short(), %error, "a visit failed");
        self.metrics.failed.increment(1);
        let failure = match &error {
            RunError::Transport(TransportError::ClosedByPeer { .. }) => Failure::Refused,
            RunError::Transport(TransportError::ClosedHere) => Failure::NotTried,
            _ => Failure::Unreached,
        };
        let against = {
            let mut state = self.state();
            state.stats.failed += 1;
            state.walk.on_failed(&peer, failure, Instant::now())
        };
        if against && let Err(error) = self.parts.store.note_visit(peer, false).await {
            tracing::debug!(%error, "a visit cannot be noted");
        }
    }

    async fn try_visit(&self, peer: PeerId) -> Result<(), RunError> {
        let Some(known) = self.parts.store.known_peer(peer).await? else {
            // Forgotten meanwhile, for want of room.
            return Err(TransportError::ClosedHere.into());
        };
        let mut learnt = self.ask(&known).await;
        if let Err(RunError::Transport(error)) = &learnt
            && is_superseded(error)
        {
            // Both dialled each other, and the other connection stayed.
            learnt = self.ask(&known).await;
        }
        let shares = learnt.as_ref().is_ok_and(|learnt| !learnt.shared.is_empty());
        if !shares && !self.state().answering.contains(&peer) {
            self.parts.visits.leave(&peer);
        }
        self.on_learnt(peer, learnt?, true).await
    }

    async fn ask(&self, known: &KnownPeer) -> Result<Learnt, RunError> {
        let connection = self.parts.visits.visit(known.address.clone(), !known.bootstrap).await?;
        let asked = async {
            let (mut send, receive) = connection.open_bi(Priority::Low).await?;
            let mut open = Vec::new();
            StreamOpen::Discovery.encode(&mut open);
            send.write(open.into()).await?;
            self.run(&*connection, (send, receive), true).await
        };
        let learnt = timeout(DISCOVERY_RUN_DEADLINE, asked).await;
        learnt.unwrap_or(Err(RunError::Timeout(DISCOVERY_RUN_DEADLINE)))
    }

    async fn run(&self, connection: &dyn Connection, stream: BiStream, asks: bool) -> Result<Learnt, RunError> {
        let peer = connection.info().peer_id;
        let own = self.parts.node.address().ok_or(TransportError::ClosedHere)?;
        let own = own.map_err(|error| RunError::Protocol(error.to_string()))?;
        let documents = self.parts.node.documents();
        let findable = self.state().walk.sample(DISCOVERY_RECORDS / 2 - 1, &peer);
        let store = Arc::clone(&self.parts.store);
        Run { own, documents, findable, store }.run(connection, stream, asks).await
    }

    /// Keeps what a run brought, and reports who shares a document.
    async fn on_learnt(&self, peer: PeerId, mut learnt: Learnt, asked: bool) -> Result<(), RunError> {
        learnt.records.remove(&self.me);
        let own = learnt.records.remove(&peer);
        // Whoever shares no document with us has no reason to name peers that do not want to be named.
        learnt.records.retain(|_, record| record.is_findable() || !learnt.shared.is_empty());
        let named: Vec<_> =
            learnt.records.values().filter(|record| record.is_findable()).map(PeerAddress::peer_id).collect();
        let records = own.iter().cloned().chain(learnt.records.into_values()).collect();
        let noted = self.parts.store.note_peers(records, false).await?;
        self.parts.store.note_visit(peer, true).await?;
        {
            let (mut state, now) = (self.state(), Instant::now());
            let stats = &mut state.stats;
            *if asked { &mut stats.asked } else { &mut stats.answered } += 1;
            stats.bytes += learnt.bytes;
            stats.forged += learnt.forged as u64;
            stats.out_of_time += noted.refused as u64;
            stats.found += u64::from(!learnt.shared.is_empty());
            if own.as_ref().is_some_and(PeerAddress::is_findable) {
                state.walk.add(peer, Origin::Itself, now);
            }
            // Those that were given up are heard of again in new records.
            for named in named.iter().filter(|peer| noted.new.contains(peer)) {
                state.walk.add(*named, Origin::Peer(peer), now);
            }
        }
        self.metrics.runs.increment(1);
        self.metrics.forged.increment(learnt.forged as u64);
        if let Some(own) = own {
            for document in &learnt.shared {
                self.parts.store.remember_peer(document.log(), own.clone(), Heard::FromItself).await?;
                let found = Found { peer: own.clone(), document: document.document, source: Source::Discovery };
                self.parts.finds.report(found).await;
            }
        }
        Ok(())
    }

    /// A peer asks.
    fn serve(self: &Arc<Self>, connection: Arc<dyn Connection>, stream: BiStream) {
        let peer = connection.info().peer_id;
        if !self.state().admit(peer, Instant::now()) {
            self.metrics.refused.increment(1);
            return refuse(stream, CloseReason::TooBusy);
        }
        let inner = Arc::clone(self);
        self.spawn(async move {
            let answering = Answering(&inner, peer);
            let run = timeout(DISCOVERY_RUN_DEADLINE, inner.run(&*connection, stream, false)).await;
            drop(answering);
            let learnt = match run.unwrap_or(Err(RunError::Timeout(DISCOVERY_RUN_DEADLINE))) {
                Ok(learnt) => {
                    // A run in the other direction may be under way.
                    if learnt.shared.is_empty() && !inner.state().walk.is_visiting(&peer) {
                        inner.parts.visits.leave(&peer);
                    }
                    inner.on_learnt(peer, learnt, false).await
                }
                Err(error) => Err(error),
            };
            match learnt {
                Ok(()) => inner.state().walk.on_met(&peer, Instant::now()),
                Err(error) => {
                    tracing::debug!(peer = %peer.short(), %error, "a peer's run failed");
                    inner.metrics.failed.increment(1);
                    inner.state().stats.failed += 1;
                }
            }
            inner.wake.notify_one();
        });
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(walk: Walk) -> Self {
        Self { walk, stats: DiscoveryStats::default(), asked: BTreeMap::new(), answering: BTreeSet::new() }
    }

    /// Whether a peer may start a run now; counts it in.
    fn admit(&mut self, peer: PeerId, now: Instant) -> bool {
        self.asked.retain(|_, at| now.duration_since(*at) < DISCOVERY_RUN_INTERVAL);
        // Keys cost nothing: those that were never met leave some room for the others.
        let limit = if self.walk.knows(&peer) { DISCOVERY_RUNS } else { DISCOVERY_UNPROVEN_RUNS };
        let room = self.answering.len() < limit && self.asked.len() < MAX_KNOWN_PEERS;
        let admitted = room && !self.answering.contains(&peer) && !self.asked.contains_key(&peer);
        if admitted {
            self.walk.on_asked(&peer, now);
            self.asked.insert(peer, now);
            self.answering.insert(peer);
        } else {
            self.stats.refused += 1;
        }
        admitted
    }
}

/// Counts a run out, however it ends.
struct Answering<'a>(&'a Inner, PeerId);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.state().answering.remove(&self.1);
    }
}

/// Counters, made once.
struct Metrics {
    runs: Counter,
    refused: Counter,
    failed: Counter,
    forged: Counter,
}

impl Metrics {
    fn new() -> Self {
        Self {
            runs: counter!("panda_discovery_runs_total"),
            refused: counter!("panda_discovery_refused_total"),
            failed: counter!("panda_discovery_failed_total"),
            forged: counter!("panda_discovery_forged_records_total"),
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    #[test]
    fn throw_away_keys_leave_room_for_the_runs_of_those_that_were_met_or_named() {
        let now = Instant::now();
        let mut state = State::new(Walk::new(ChaCha8Rng::seed_from_u64(1), now));
        let peer = |number| Identity::from_seed(&[number; 32]).peer_id();
        let (met, named) = (peer(201), peer(202));
        state.walk.add(met, Origin::Itself, now);
        state.walk.on_met(&met, now);
        state.walk.add(named, Origin::User, now);
        let admitted = (0..100).filter(|number| state.admit(peer(*number), now)).count();
        assert_eq!(admitted, DISCOVERY_UNPROVEN_RUNS);
        assert!(state.admit(met, now) && state.admit(named, now));
        assert!(!state.admit(met, now), "one run at once");
        assert_eq!(state.stats.refused, 89);
    }
}
