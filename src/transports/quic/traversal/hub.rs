//! The one task of a traversal that listens: to the socket's STUN messages, to the relays, to STUN servers' answers, and to
//! changes of the interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::checker::{CheckInput, is_private};
use super::turn::{Manager, Seen};
use super::{Traversal, Word, lock, meeting};
use crate::ids::PeerId;
use crate::limits::{
    CONNECT_DEADLINE, INTRODUCTIONS_PER_SECOND, OFFERS_REMEMBERED, PUNCH_DELAY_MAX, SIGNAL_CANDIDATES,
};
use crate::nat::binding::{BindingMachine, BindingOptions};
use crate::nat::check;
use crate::nat::path::{Path, Via};
use crate::nat::stun::{Class, Scanned};
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::seal;
use crate::rendezvous::signal::{Candidate, CandidateKind, Signal};
use crate::rendezvous::wire::{NodeFrame, RelayFrame, TurnServer};
use crate::transports::quic::addresses::{canonical, host_addresses};
use crate::transports::quic::paths::{Paths, StunInput};
use crate::transports::relay_client::RelayState;

/// Flows that are asked for again with a new session. More: they are asked for when they are missed.
const FLOWS_CONFIRMED: usize = 16;
/// How often the interfaces and the relays' states are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the relays of the network before are asked how they see the socket, while the sessions with them are made anew:
/// without an answer UDP is blocked here, and a relayed address is asked for meanwhile.
const SERVERS_REMEMBERED: Duration = Duration::from_secs(5);

struct Hub {
    traversal: Arc<Traversal>,
    binding: BindingMachine,
    /// UDP addresses of the relays whose sessions are up.
    servers: BTreeSet<SocketAddr>,
    /// Those of the network before, and when it was left.
    remembered: Option<(Instant, BTreeSet<SocketAddr>)>,
    interfaces: Vec<IpAddr>,
    turn: Manager,
    /// Introductions that are still looked at in this second, and when it began.
    introductions: (Instant, u32),
    /// Offers that were heard, and when first.
    offers: BTreeMap<(PeerId, u64), Instant>,
}

/// Runs until the traversal is stopped.
pub(super) async fn run(
    traversal: Arc<Traversal>,
    mut stun: mpsc::Receiver<StunInput>,
    mut heard: mpsc::Receiver<(RelayAddress, RelayFrame)>,
) {
    let binding = BindingMachine::new(BindingOptions::new(), traversal.random());
    let introductions = (Instant::now(), INTRODUCTIONS_PER_SECOND);
    let interfaces = traversal.options.network.interface_addresses();
    let (mut turns, mut external) = (traversal.turns.subscribe(), traversal.port_mapping.external());
    let mut hub = Hub {
        traversal,
        binding,
        servers: BTreeSet::new(),
        remembered: None,
        interfaces,
        turn: Manager::default(),
        introductions,
        offers: BTreeMap::new(),
    };
    let mut look_at = Instant::now();
    hub.tell_candidates();
    loop {
        let timeout = hub.binding.poll_timeout().map_or(look_at, |(at, _)| look_at.min(at.into()));
        let turn_at = hub.turn.poll_timeout();
        let timeout = turn_at.map_or(timeout, |at| timeout.min(at));
        tokio::select! {
            biased;
            input = stun.recv() => match input {
                Some((path, message)) => hub.on_stun(path, &message),
                None => return,
            },
            Some((relay, frame)) = heard.recv() => hub.on_relay(&relay, frame),
            Ok(()) = external.changed() => hub.tell_candidates(),
            () = hub.traversal.network_changed.notified() => hub.on_network_change(),
            Ok(()) = turns.changed() => {
                hub.drive_turn();
                hub.tell_candidates();
            }
            () = hub.traversal.look.notified() => look_at = Instant::now(),
            () = sleep_until(timeout) => {}
        }
        let now = Instant::now();
        if now >= look_at {
            look_at = now + LOOK_INTERVAL;
            hub.look();
        }
        if turn_at.is_some_and(|at| at <= now) {
            hub.drive_turn();
        }
        hub.drive_binding();
    }
}

impl Hub {
    fn on_stun(&mut self, path: Path, message: &[u8]) {
        let Ok(scanned) = Scanned::scan(message) else { return };
        match scanned.class() {
            Class::Request => self.on_check(path, &scanned),
            Class::Success | Class::Error => {
                let now = Instant::now().into_std();
                if path.via == Via::Socket && self.binding.handle_input(now, path.remote, &scanned) {
                    return;
                }
                let id = scanned.transaction_id();
                let Some((consumer, _)) = id.as_bytes().split_first_chunk::<4>() else { return };
                let consumer = u32::from_be_bytes(*consumer);
                let sessions = lock(&self.traversal.sessions);
                if let Some(session) = sessions.values().find(|session| session.consumer == consumer) {
                    let message = bytes::Bytes::copy_from_slice(message);
                    // Full: as if it had been lost.
                    let _ = session.input.try_send(CheckInput::Answered { path, message });
                }
            }
            Class::Indication => {}
        }
    }

    /// Authenticated before anything is done; everything else is silence.
    fn on_check(&mut self, path: Path, request: &Scanned<'_>) {
        let Some(claimed) = check::claimed_session(request) else { return };
        let ours = check::Session { asker: claimed.asker.other(), ..claimed };
        let sessions = lock(&self.traversal.sessions);
        let Some(session) = sessions.get(&ours) else { return };
        let Some(in_use) = check::authenticate(request, &session.key) else { return };
        // For the answer, and for a while: the session asks for what it needs.
        let _lease = match path.via {
            Via::Turn { allocation } => self.traversal.turns.lease(allocation, path.remote),
            Via::Socket | Via::Forward { .. } => None,
        };
        if let Some(answer) = check::answer(request, &session.key, path.remote) {
            self.traversal.paths.send(path, &answer);
        }
        // Full: the peer asks again.
        let _ = session.input.try_send(CheckInput::Asked { path, in_use });
    }

    fn on_relay(&mut self, relay: &RelayAddress, frame: RelayFrame) {
        match frame {
            RelayFrame::Signal { from, sealed } => self.on_signal(relay, from, &sealed),
            RelayFrame::Busy { .. } => {
                lock(&self.traversal.refused_flows).insert(relay.clone(), Instant::now());
                self.drive_turn();
            }
            RelayFrame::NotHere { to } => {
                let meetings = lock(&self.traversal.meetings);
                for (_, meeting) in meetings.iter().filter(|((peer, _), _)| *peer == to) {
                    let _ = meeting.try_send(Word::NotHere);
                }
            }
            RelayFrame::Flow { peer, flow } => self.on_flow(relay, peer, flow),
            RelayFrame::FlowClosed { flow } => {
                let closed = |path: &Path| path.via == Via::Forward { flow };
                lock(&self.traversal.flows).values_mut().for_each(|flows| flows.retain(|_, path| !closed(path)));
                self.traversal.flows_changed.send_modify(|version| *version += 1);
            }
            RelayFrame::Punch { peer, session, after_ms } => {
                let after = Duration::from_millis(after_ms.into()).min(PUNCH_DELAY_MAX);
                if let Some(meeting) = lock(&self.traversal.meetings).get(&(peer, session)) {
                    let _ = meeting.try_send(Word::Punch(after));
                }
            }
            RelayFrame::Welcome(welcome) => {
                self.on_turn_servers(relay, welcome.turn);
                self.look_at_relays();
                self.confirm_flows(relay);
            }
            RelayFrame::Credentials { turn } => self.on_turn_servers(relay, turn),
            RelayFrame::Ping { .. } | RelayFrame::Pong { .. } | RelayFrame::GoingAway => {}
        }
    }

    fn on_turn_servers(&mut self, relay: &RelayAddress, servers: Vec<TurnServer>) {
        let info = lock(&self.traversal.relays).get(relay).and_then(|client| client.info());
        if let Some(info) = info {
            self.turn.on_servers(relay, info, servers);
            self.drive_turn();
        }
    }

    /// Looks whether allocations are needed.
    fn drive_turn(&mut self) {
        let seen = Seen { servers: self.servers.clone(), mappings: self.binding.mappings().collect() };
        self.turn.drive(&self.traversal, &seen);
    }

    /// A new session: flows of the one before are the same, or replaced by what the relay answers.
    fn confirm_flows(&self, relay: &RelayAddress) {
        let flows = lock(&self.traversal.flows);
        let peers = flows.iter().filter(|(_, flows)| flows.contains_key(relay)).map(|(peer, _)| *peer);
        for to in peers.take(FLOWS_CONFIRMED) {
            self.traversal.say(relay, NodeFrame::Forward { to });
        }
    }

    fn on_flow(&mut self, relay: &RelayAddress, peer: PeerId, flow: u64) {
        let Some(client) = lock(&self.traversal.relays).get(relay).and_then(|client| client.info()) else { return };
        let Some(remote) = client.datagrams().find(|address| self.traversal.paths.reaches(address)) else { return };
        let path = Path { via: Via::Forward { flow }, remote: canonical(remote) };
        let mut flows = lock(&self.traversal.flows);
        if flows.len() >= crate::limits::MAX_KNOWN_PEERS && !flows.contains_key(&peer) {
            return;
        }
        flows.entry(peer).or_default().insert(relay.clone(), path);
        lock(&self.traversal.refused_flows).remove(relay);
        drop(flows);
        self.traversal.flows_changed.send_modify(|version| *version += 1);
    }

    /// A sealed signal: for a meeting under way, or an offer to meet.
    fn on_signal(&mut self, relay: &RelayAddress, from: PeerId, sealed: &[u8]) {
        if self.introductions.0.elapsed() >= Duration::from_secs(1) {
            self.introductions = (Instant::now(), INTRODUCTIONS_PER_SECOND);
        }
        let Some(left) = self.introductions.1.checked_sub(1) else { return };
        self.introductions.1 = left;
        let Ok(opened) = seal::open(&self.traversal.identity, &from, sealed) else { return };
        let Ok(signal) = Signal::decode(&opened.into()) else { return };
        if let Signal::Offer { session, secret, candidates, proofs } = signal {
            if self.is_repeated(from, session) {
                return;
            }
            let admitted = self.traversal.doorkeeper.get().is_some_and(|keeper| keeper.admits(&from, session, &proofs));
            if admitted {
                let answering =
                    meeting::answer(self.traversal.clone(), relay.clone(), from, (session, secret), candidates);
                self.traversal.spawn(answering);
            } else {
                self.traversal.signal(relay, from, &Signal::Refused { session });
            }
            return;
        }
        let session = match &signal {
            Signal::Answer { session, .. } | Signal::Candidates { session, .. } | Signal::Refused { session } => {
                *session
            }
            Signal::Offer { .. } => return,
        };
        if let Some(meeting) = lock(&self.traversal.meetings).get(&(from, session)) {
            let _ = meeting.try_send(Word::Signal(signal));
        }
    }

    /// An offer is said again while its dial lasts; whoever says it later, the relay or somebody behind it, has kept it.
    fn is_repeated(&mut self, from: PeerId, session: u64) -> bool {
        let now = Instant::now();
        let first = *self.offers.entry((from, session)).or_insert(now);
        if self.offers.len() > OFFERS_REMEMBERED {
            let oldest = self.offers.iter().min_by_key(|(_, at)| **at).map(|(offer, _)| *offer);
            oldest.and_then(|offer| self.offers.remove(&offer));
        }
        now.duration_since(first) > CONNECT_DEADLINE
    }

    fn on_network_change(&mut self) {
        self.interfaces = self.traversal.options.network.interface_addresses();
        self.remembered = Some((Instant::now(), self.servers.clone()));
        self.traversal.port_mapping.on_network_change();
        self.binding.on_network_change(Instant::now().into_std());
        self.turn.on_network_change();
        self.drive_turn();
        self.tell_candidates();
    }

    /// Looks at what tells nobody when it changes.
    fn look(&mut self) {
        if self.traversal.options.network.interface_addresses() != self.interfaces {
            tracing::info!("the network changed");
            self.traversal.on_network_change();
        }
        self.look_at_relays();
        self.drive_turn();
    }

    /// Which relays can be asked how they see the socket.
    fn look_at_relays(&mut self) {
        let mut servers = BTreeSet::new();
        for (_, state) in self.traversal.relays() {
            let RelayState::Up(info) = state else { continue };
            servers.extend(info.datagrams().filter(|address| self.traversal.paths.reaches(address)).map(canonical));
        }
        self.remembered.take_if(|(since, _)| since.elapsed() >= SERVERS_REMEMBERED);
        servers.extend(self.remembered.iter().flat_map(|(_, servers)| servers));
        if servers == self.servers {
            return;
        }
        let now = Instant::now().into_std();
        for gone in self.servers.difference(&servers) {
            self.binding.remove_server(*gone);
        }
        for server in servers.difference(&self.servers) {
            self.binding.add_server(now, *server);
        }
        self.servers.clone_from(&servers);
        self.traversal.paths.set_relays(servers);
        self.drive_turn();
        self.tell_candidates();
    }

    fn drive_binding(&mut self) {
        let now = Instant::now().into_std();
        if self.binding.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.binding.handle_timeout(now);
        }
        while let Some(transmit) = self.binding.poll_transmit() {
            self.traversal.paths.send(Path::direct(transmit.to), &transmit.bytes);
        }
        let mut changed = false;
        while self.binding.poll_event().is_some() {
            changed = true;
        }
        if changed {
            self.drive_turn();
            self.tell_candidates();
        }
    }

    /// Works out where this node may be reached.
    fn tell_candidates(&self) {
        let mut candidates = host_candidates(&self.traversal.paths, &self.interfaces);
        let hosts: Vec<_> = candidates.iter().map(|candidate| candidate.address).collect();
        let mapped: BTreeSet<_> = self.binding.mappings().map(|(_, address)| canonical(address)).collect();
        let public =
            hosts.iter().any(|host| mapped.contains(host) || !is_private(host.ip()) && self.servers.is_empty());
        self.traversal.public.store(public, Ordering::Relaxed);
        self.traversal.port_mapping.consider(&self.traversal, &hosts, &mapped);
        let external = *self.traversal.port_mapping.external().borrow();
        candidates.extend(external.map(|address| Candidate { kind: CandidateKind::Mapped, address }));
        let known = |address: &&SocketAddr| hosts.contains(address) || external == Some(**address);
        let reflexive = |address: &SocketAddr| Candidate { kind: CandidateKind::ServerReflexive, address: *address };
        candidates.extend(mapped.iter().filter(|address| !known(address)).map(reflexive));
        if self.traversal.options.relay_only {
            candidates.clear();
        }
        let relayed = self.traversal.turns.relayed_addresses().into_iter().map(canonical);
        let relayed: Vec<_> = relayed.map(|address| Candidate { kind: CandidateKind::Relayed, address }).collect();
        // They are few, and for some peers the only ones.
        candidates.truncate(SIGNAL_CANDIDATES.saturating_sub(relayed.len()));
        candidates.extend(relayed);
        self.traversal.candidates.send_if_modified(|known| {
            let changed = *known != candidates;
            *known = candidates;
            changed
        });
    }
}

/// The addresses of this machine.
pub(super) fn host_candidates(paths: &Paths, interfaces: &[IpAddr]) -> Vec<Candidate> {
    let hosts = host_addresses(paths.local_address(), interfaces);
    hosts.into_iter().map(|address| Candidate { kind: CandidateKind::Host, address }).collect()
}
