//! Getting to peers behind NATs: candidates, relays, meetings and the paths of live connections.
//!
//! One [`Traversal`] per transport. `hub` is its task: it hands out what the socket and the relays bring, asks STUN servers how
//! they see the socket, and knows the candidates of this node. `meeting` introduces two nodes through a relay so that a dial
//! gets paths to try; `upkeep` keeps the paths of a live connection; both run their checks with `checker`. `relays` is which
//! relays there are sessions with, ours and other people's, `leases` and `standbys` who needs the latter, `reached` what the
//! hub does with them. `flows`, `offers` and `introductions` are what it remembers of relays and of who speaks through them:
//! one takes nothing from another.
//!
//! Everything a stranger can cause is bounded: sessions, signals per second, checks per session and altogether.

mod birthday;
mod checker;
mod flows;
mod hub;
mod introductions;
mod leases;
mod meeting;
mod offers;
mod port_mapping;
mod reached;
mod relays;
mod standbys;
mod turn;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::paths::Paths;
use crate::identity::Identity;
use crate::ids::PeerId;
use crate::limits::TRAVERSAL_SESSIONS;
use crate::nat::check::Session;
use crate::nat::path::{Path, Via};
use crate::nat::stun::IntegrityKey;
use crate::net::HostNetwork;
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::doorkeeper::Doorkeeper;
use crate::rendezvous::seal;
use crate::rendezvous::signal::{Candidate, Signal};
use crate::rendezvous::wire::{NodeFrame, RelayFrame};
use crate::transport::PathKind;
use crate::transports::relay_client::RelayClient;
use crate::transports::tls::TlsIdentity;
use crate::watch;
use birthday::Birthdays;
use checker::{CheckInput, InUse, Registered, is_private};
use flows::Flows;
pub(super) use meeting::{DialNews, Meeting};
use port_mapping::PortMapping;
use relays::Relays;
use turn::Turns;
pub(super) use upkeep::{Kept, PathStream, keep_paths};

/// A connection that has been on a direct path for this long needs no further standby.
const SETTLED: Duration = Duration::from_secs(60);

/// How long a relay that had no flow for us is not counted on.
const FLOW_REFUSED: Duration = Duration::from_secs(60);

/// What a transport needs to traverse NATs.
#[derive(Debug, Clone)]
pub(super) struct TraversalOptions {
    pub(super) network: Arc<dyn HostNetwork>,
    pub(super) relays: Vec<RelayAddress>,
    /// Use relayed paths only, and tell nobody our addresses.
    pub(super) relay_only: bool,
    /// Ask the router for a port. Not together with `relay_only`.
    pub(super) port_mapping: bool,
    /// Open many sockets, or try many ports, for a peer that is only relayed otherwise. Not together with `relay_only`.
    pub(super) birthday_punching: bool,
}

/// What came of an introduction, for the meeting that asked for it.
#[derive(Debug)]
enum Word {
    Signal(Signal),
    /// Both ends begin after this time.
    Punch(Duration),
    /// The peer has no session with that relay, or too many wait for it.
    NotHere,
    /// By its own word, the peer can be met at these relays.
    Moved(Vec<RelayAddress>),
}

/// Shared by all tasks of the traversal.
#[derive(Debug)]
pub(super) struct Traversal {
    pub(super) paths: Arc<Paths>,
    pub(super) options: TraversalOptions,
    identity: Identity,
    tls: Arc<TlsIdentity>,
    doorkeeper: OnceLock<Arc<dyn Doorkeeper>>,
    random: Mutex<ChaCha20Rng>,
    relays: Mutex<Relays<RelayClient>>,
    heard: mpsc::Sender<(RelayAddress, RelayFrame)>,
    sessions: Mutex<BTreeMap<Session, Registered>>,
    meetings: Mutex<BTreeMap<(PeerId, u64), mpsc::Sender<Word>>>,
    flows: Mutex<Flows>,
    flows_changed: watch::Sender<u64>,
    /// Relays that had no flow for us, and when they last said so.
    refused_flows: Mutex<BTreeMap<RelayAddress, Instant>>,
    turns: Turns,
    /// Where this node may be reached, best first.
    candidates: watch::Sender<Vec<Candidate>>,
    /// Whether this node is reached at an IPv4 address of its own.
    public_v4: AtomicBool,
    /// The same for IPv6.
    public_v6: AtomicBool,
    network_changed: Notify,
    /// Somebody has reason to think that it did: a path does not answer.
    look: Notify,
    port_mapping: PortMapping,
    birthdays: Birthdays,
    /// What relays keep for whoever asks for this node.
    record: Mutex<Option<Bytes>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Traversal {
    /// Starts the tasks; they end with [`stop`](Self::stop).
    pub(super) fn start(
        paths: Arc<Paths>,
        identity: Identity,
        tls: Arc<TlsIdentity>,
        options: TraversalOptions,
        seed: [u8; 32],
    ) -> Arc<Self> {
        let (heard, to_hear) = mpsc::channel(crate::limits::RELAY_CLIENT_QUEUE);
        let relays = options.relays.clone();
        let interfaces = options.network.interface_addresses();
        let mut hosts = hub::host_candidates(&paths, &interfaces);
        hosts.retain(|_| !options.relay_only);
        let (enabled, birthdays) = (options.port_mapping, Birthdays::new(options.birthday_punching));
        let traversal = Arc::new(Self {
            options,
            identity,
            tls,
            doorkeeper: OnceLock::new(),
            random: Mutex::new(ChaCha20Rng::from_seed(seed)),
            relays: Mutex::default(),
            heard,
            sessions: Mutex::default(),
            meetings: Mutex::default(),
            flows: Mutex::default(),
            flows_changed: watch::Sender::new(0),
            refused_flows: Mutex::default(),
            turns: Turns::new(),
            candidates: watch::Sender::new(hosts),
            public_v4: AtomicBool::new(false),
            public_v6: AtomicBool::new(false),
            network_changed: Notify::new(),
            look: Notify::new(),
            port_mapping: PortMapping::new(enabled),
            birthdays,
            record: Mutex::default(),
            tasks: Mutex::default(),
            paths,
        });
        if let Some(stun) = traversal.paths.take_stun() {
            traversal.spawn(hub::run(traversal.clone(), stun, to_hear));
        }
        if enabled {
            traversal.spawn(port_mapping::run(traversal.clone()));
        }
        traversal.keep_relays(&relays);
        traversal
    }

    /// Gives back what the router holds for us, best effort and within half a second.
    pub(super) async fn release(&self) {
        self.port_mapping.end().await;
    }

    /// Ends all tasks and sessions.
    pub(super) fn stop(&self) {
        drop(std::mem::take(&mut *lock(&self.tasks)));
        lock(&self.relays).clear();
    }

    /// Who is answered; without one nobody is.
    pub(super) fn set_doorkeeper(&self, doorkeeper: Arc<dyn Doorkeeper>) {
        // A second one would be a mistake of the composition root; the first stays.
        let _ = self.doorkeeper.set(doorkeeper);
    }

    /// Has the relays that are kept keep where else this node can be met: now, and those that come up later.
    pub(super) fn publish(&self, record: Bytes) {
        *lock(&self.record) = Some(record.clone());
        for known in lock(&self.relays).kept() {
            // Not up: it gets the record with its welcome.
            known.session.say(NodeFrame::Publish { record: record.clone() });
        }
    }

    /// Where this node may be reached, now and later.
    pub(super) fn candidates(&self) -> watch::Receiver<Vec<Candidate>> {
        self.candidates.subscribe()
    }

    /// The network changed: everything that is known of it is asked again.
    pub(super) fn on_network_change(&self) {
        self.network_changed.notify_one();
        lock(&self.relays).all().for_each(|known| known.session.on_network_change());
    }

    /// True when this node is reached at an address of its own, of that family.
    fn has_public_address(&self, v4: bool) -> bool {
        let public = if v4 { &self.public_v4 } else { &self.public_v6 };
        public.load(Ordering::Relaxed)
    }

    /// A connection's path, which decides whether it needs a standby.
    fn note_in_use(&self, session: Session, path: Path, kind: PathKind) {
        let mut sessions = lock(&self.sessions);
        let Some(registered) = sessions.get_mut(&session) else { return };
        let direct = matches!(kind, PathKind::Lan | PathKind::Direct | PathKind::Punched | PathKind::Mapped);
        let since = registered.in_use.filter(|before| before.direct == direct).map_or_else(Instant::now, |it| it.since);
        registered.in_use = Some(InUse { path, direct, since });
    }

    /// Whether a connection may need a standby, and the allocations that carry connections.
    fn connections_in_use(&self) -> (bool, BTreeSet<u8>) {
        let sessions = lock(&self.sessions);
        let in_use = || sessions.values().filter_map(|session| session.in_use);
        let unsettled = in_use().any(|in_use| !in_use.direct || in_use.since.elapsed() < SETTLED);
        let allocations = in_use().filter_map(|in_use| match in_use.path.via {
            Via::Turn { allocation } => Some(allocation),
            Via::Socket | Via::Forward { .. } | Via::Extra { .. } => None,
        });
        (unsettled, allocations.collect())
    }

    fn register(&self, session: Session, key: IntegrityKey, input: mpsc::Sender<CheckInput>) -> Option<u32> {
        let consumer = u32::from_be_bytes(self.random());
        let mut sessions = lock(&self.sessions);
        if sessions.len() >= TRAVERSAL_SESSIONS || sessions.contains_key(&session) {
            return None;
        }
        sessions.insert(session, Registered { key, input, consumer, in_use: None });
        Some(consumer)
    }

    fn unregister(&self, session: Session, consumer: u32) {
        let mut sessions = lock(&self.sessions);
        if sessions.get(&session).is_some_and(|registered| registered.consumer == consumer) {
            sessions.remove(&session);
        }
    }

    /// Seals a signal and gives it to a relay; false when its session is not up.
    fn signal(&self, relay: &RelayAddress, to: PeerId, signal: &Signal) -> bool {
        let Ok(sealed) = seal::seal(&self.identity, &to, &signal.encode(), self.random()) else { return false };
        self.say(relay, NodeFrame::Signal { to, sealed: Bytes::from(sealed) })
    }

    fn say(&self, relay: &RelayAddress, frame: NodeFrame) -> bool {
        lock(&self.relays).get(relay).is_some_and(|known| known.session.say(frame))
    }

    /// The flows that relays opened between this node and a peer.
    fn flows_to(&self, peer: &PeerId) -> BTreeMap<RelayAddress, Path> {
        lock(&self.flows).to(peer)
    }

    /// Relays that forward nothing for us, as far as is known.
    fn relays_without_flows(&self) -> BTreeSet<RelayAddress> {
        let mut refused = lock(&self.refused_flows);
        refused.retain(|_, at| at.elapsed() < FLOW_REFUSED);
        refused.keys().cloned().collect()
    }

    /// Shows a relay where this end of a flow is.
    fn announce(&self, path: Path) {
        if matches!(path.via, Via::Forward { .. }) && self.paths.may_send(&path) {
            self.paths.send(path, &[]);
        }
    }

    fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        lock(&self.random).fill_bytes(&mut bytes);
        bytes
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
