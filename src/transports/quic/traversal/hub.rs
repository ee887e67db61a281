//! The one task of a traversal that listens: to the socket's STUN messages, to the relays, to STUN servers' answers, and to
//! changes of the interfaces.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::checker::{CheckInput, is_private};
use super::introductions::Introductions;
use super::offers::{Offers, Verdict};
use super::reached::Reached;
use super::relays::Known;
use super::turn::{Manager, Seen};
use super::{Traversal, Word, lock, meeting};
use crate::ids::PeerId;
use crate::limits::{PUNCH_DELAY_MAX, SIGNAL_CANDIDATES};
use crate::nat::binding::{BindingMachine, BindingOptions};
use crate::nat::birthday::mapping_behaviour;
use crate::nat::check;
use crate::nat::path::{Path, Via};
use crate::nat::stun::{Class, Scanned};
use crate::rendezvous::address::RelayAddress;
use crate::rendezvous::record::RendezvousRecord;
use crate::rendezvous::seal;
use crate::rendezvous::signal::{Candidate, CandidateKind, Signal};
use crate::rendezvous::wire::{NodeFrame, RelayFrame, TurnServer};
use crate::transports::quic::addresses::{canonical, has_family, host_addresses, outside, shorten};
use crate::transports::quic::paths::{Paths, StunInput};
use crate::transports::relay_client::RelayInfo;

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
    relays: Reached,
    /// Those of the network before, and when it was left.
    remembered: Option<(Instant, Reached)>,
    interfaces: Vec<IpAddr>,
    turn: Manager,
    introductions: Introductions,
    offers: Offers,
}

/// Runs until the traversal is stopped.
pub(super) async fn run(
    traversal: Arc<Traversal>,
    mut stun: mpsc::Receiver<StunInput>,
    mut heard: mpsc::Receiver<(RelayAddress, RelayFrame)>,
) {
    let binding = BindingMachine::new(BindingOptions::new(), traversal.random());
    let (introductions, offers) = (Introductions::default(), Offers::default());
    let interfaces = traversal.options.network.interface_addresses();
    let (mut turns, mut external) = (traversal.turns.subscribe(), traversal.port_mapping.external());
    let mut hub = Hub {
        traversal,
        binding,
        relays: Reached::default(),
        remembered: None,
        interfaces,
        turn: Manager::default(),
        introductions,
        offers,
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
                    self.traversal.paths.on_server_answer(path.remote);
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
        // An answer would confirm where a node is that hides.
        if self.traversal.options.relay_only && path.via == Via::Socket {
            return;
        }
        let Some(claimed) = check::claimed_session(request) else { return };
        let ours = check::Session { asker: claimed.asker.other(), ..claimed };
        let sessions = lock(&self.traversal.sessions);
        let Some(session) = sessions.get(&ours) else { return };
        let Some(in_use) = check::authenticate(request, &session.key) else { return };
        // For the answer, and for a while: the session asks for what it needs.
        let _lease = match path.via {
            Via::Turn { allocation } => self.traversal.turns.lease(allocation, path.remote),
            Via::Socket | Via::Forward { .. } | Via::Extra { .. } => None,
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
                if lock(&self.traversal.flows).close_to(relay, &to) {
                    self.tell_flows();
                }
                let meetings = lock(&self.traversal.meetings);
                for (_, meeting) in meetings.iter().filter(|((peer, _), _)| *peer == to) {
                    let _ = meeting.try_send(Word::NotHere);
                }
            }
            RelayFrame::Record { peer, record } => self.on_record(peer, record.as_ref()),
            RelayFrame::Flow { peer, flow } => self.on_flow(relay, peer, flow),
            RelayFrame::FlowClosed { flow } => {
                if lock(&self.traversal.flows).close(relay, flow) {
                    self.tell_flows();
                }
            }
            RelayFrame::Punch { peer, session, after_ms } => {
                let after = Duration::from_millis(after_ms.into()).min(PUNCH_DELAY_MAX);
                if let Some(meeting) = lock(&self.traversal.meetings).get(&(peer, session)) {
                    let _ = meeting.try_send(Word::Punch(after));
                }
            }
            RelayFrame::Welcome(welcome) => {
                self.look_at_relays();
                self.on_turn_servers(relay, welcome.turn);
                self.confirm_flows(relay);
                let record = lock(&self.traversal.record).clone();
                // Who asks for this node at other people's relays was not sent there by it.
                let kept = lock(&self.traversal.relays).get(relay).is_some_and(Known::is_kept);
                if let Some(record) = record.filter(|_| kept) {
                    self.traversal.say(relay, NodeFrame::Publish { record });
                }
            }
            RelayFrame::Credentials { turn } => self.on_turn_servers(relay, turn),
            RelayFrame::Ping { .. } | RelayFrame::Pong { .. } | RelayFrame::GoingAway => {}
        }
    }

    /// Where a peer that was not at a relay can be met. It is a hint for the dial: who answers has to show the dialled key.
    fn on_record(&self, peer: PeerId, record: Option<&Bytes>) {
        let Some(Ok(record)) = record.map(RendezvousRecord::decode) else { return };
        if record.peer() != peer {
            return;
        }
        let meetings = lock(&self.traversal.meetings);
        for (_, meeting) in meetings.iter().filter(|((met, _), _)| *met == peer) {
            // Full: it is looked up again with the next offer.
            let _ = meeting.try_send(Word::Moved(record.relays().to_vec()));
        }
    }

    fn on_turn_servers(&mut self, relay: &RelayAddress, servers: Vec<TurnServer>) {
        let info = self.info(relay);
        if let Some(info) = info {
            self.turn.on_servers(relay, info, servers);
            self.drive_turn();
        }
    }

    /// Looks whether allocations are needed.
    fn drive_turn(&mut self) {
        let servers = self.relays.servers.iter().copied().collect();
        let (mappings, interfaces) = (self.binding.mappings().collect(), self.interfaces.clone());
        let seen = Seen { servers, mappings, interfaces, relays: self.relays.turn.clone() };
        self.turn.drive(&self.traversal, &seen);
    }

    /// A new session: flows of the one before are the same, or replaced by what the relay answers.
    fn confirm_flows(&self, relay: &RelayAddress) {
        for to in lock(&self.traversal.flows).peers_at(relay).take(FLOWS_CONFIRMED) {
            self.traversal.say(relay, NodeFrame::Forward { to });
        }
    }

    fn on_flow(&mut self, relay: &RelayAddress, peer: PeerId, flow: u64) {
        let Some(info) = self.info(relay) else { return };
        let Some(remote) = self.reached(&info) else { return };
        let path = Path { via: Via::Forward { flow }, remote: canonical(remote) };
        lock(&self.traversal.flows).open(relay, peer, path);
        // The relay forwards nothing here before it knows where that is.
        if self.traversal.doorkeeper.get().is_some_and(|keeper| keeper.lets_connect(&peer)) {
            self.traversal.announce(path);
        }
        lock(&self.traversal.refused_flows).remove(relay);
        self.tell_flows();
    }

    /// What is known of a relay whose session is up.
    fn info(&self, relay: &RelayAddress) -> Option<RelayInfo> {
        lock(&self.traversal.relays).get(relay).and_then(|known| known.session.info())
    }

    fn tell_flows(&self) {
        self.traversal.flows_changed.send_modify(|version| *version += 1);
    }

    /// Where a relay's UDP port is reached from here: at an address that answered, else of the family of its session.
    fn reached(&self, relay: &RelayInfo) -> Option<SocketAddr> {
        let answered: BTreeSet<_> = self.binding.mappings().map(|(server, _)| server).collect();
        let other_family = |address: &SocketAddr| address.is_ipv4() != relay.address.ip().to_canonical().is_ipv4();
        let reachable = relay.datagrams().filter(|address| self.can_send_to(address));
        reachable.min_by_key(|address| (!answered.contains(&canonical(*address)), other_family(address)))
    }

    fn can_send_to(&self, address: &SocketAddr) -> bool {
        self.traversal.paths.reaches(address) && has_family(&self.interfaces, address.ip())
    }

    /// A sealed signal: for a meeting under way, or an offer to meet.
    fn on_signal(&mut self, relay: &RelayAddress, from: PeerId, sealed: &[u8]) {
        if !self.introductions.take(relay, from, Instant::now().into_std()) {
            return;
        }
        let Ok(opened) = seal::open(&self.traversal.identity, &from, sealed) else { return };
        let Ok(signal) = Signal::decode(&opened.into()) else { return };
        if let Signal::Offer { session, secret, candidates, proofs } = signal {
            let keeper = self.traversal.doorkeeper.get();
            let is_admitted = || keeper.is_some_and(|keeper| keeper.admits(&from, session, &proofs));
            match self.offers.judge((from, session), Instant::now().into_std(), is_admitted) {
                Verdict::Answer => {
                    let (traversal, relay) = (self.traversal.clone(), relay.clone());
                    self.traversal.spawn(meeting::answer(traversal, relay, from, (session, secret), candidates));
                }
                Verdict::Refuse => _ = self.traversal.signal(relay, from, &Signal::Refused { session }),
                Verdict::Ignore => {}
            }
            return;
        }
        let session = match &signal {
            Signal::Answer { session, .. } | Signal::Candidates { session, .. } | Signal::Refused { session } => {
                *session
            }
            Signal::Offer { .. } | Signal::Birthday { .. } => return,
        };
        if let Some(meeting) = lock(&self.traversal.meetings).get(&(from, session)) {
            let _ = meeting.try_send(Word::Signal(signal));
        }
    }

    fn on_network_change(&mut self) {
        self.interfaces = self.traversal.options.network.interface_addresses();
        self.traversal.networks.fetch_add(1, Ordering::Relaxed);
        self.remembered = Some((Instant::now(), self.relays.clone()));
        self.traversal.port_mapping.on_network_change();
        self.traversal.birthdays.on_network_change();
        self.binding.on_network_change(Instant::now().into_std());
        self.turn.on_network_change(&self.traversal.turns, &self.interfaces);
        self.drive_turn();
        self.tell_candidates();
    }

    /// Looks at what tells nobody when it changes.
    fn look(&mut self) {
        let interfaces = self.traversal.options.network.interface_addresses();
        if outside(&interfaces) != outside(&self.interfaces) {
            tracing::info!("the network changed");
            self.traversal.on_network_change();
        }
        self.look_at_relays();
        self.drive_turn();
    }

    /// Which relays are there, and which of them can be asked how they see the socket.
    fn look_at_relays(&mut self) {
        lock(&self.traversal.relays).sweep(Instant::now());
        self.forget_relays();
        let mut relays = Reached::of(&lock(&self.traversal.relays), |address| self.can_send_to(address));
        self.remembered.take_if(|(since, _)| since.elapsed() >= SERVERS_REMEMBERED);
        self.remembered.iter().for_each(|(_, before)| relays.add(before));
        if relays == self.relays {
            return;
        }
        let now = Instant::now().into_std();
        for gone in self.relays.servers.iter().filter(|server| !relays.servers.contains(server)) {
            self.binding.remove_server(*gone);
        }
        // All of them: one for which there was no slot may have one now.
        for server in &relays.servers {
            self.binding.add_server(now, *server);
        }
        self.traversal.paths.set_relays(&relays.forwarding);
        self.relays = relays;
        self.drive_turn();
        self.tell_candidates();
    }

    /// Nothing is remembered of relays that were let go.
    fn forget_relays(&mut self) {
        let relays = self.traversal.all_relays();
        let is_known = |relay: &RelayAddress| relays.contains(relay);
        if lock(&self.traversal.flows).retain(is_known) {
            self.tell_flows();
        }
        self.introductions.retain(is_known);
        self.turn.retain(is_known);
    }

    fn drive_binding(&mut self) {
        let now = Instant::now().into_std();
        if self.binding.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.binding.handle_timeout(now);
        }
        while let Some(transmit) = self.binding.poll_transmit() {
            // Withheld is as good as lost: a relay may have named somebody else's address.
            if self.traversal.paths.may_ask(transmit.to) {
                self.traversal.paths.send(Path::direct(transmit.to), &transmit.bytes);
            }
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
        let mut hosts = host_addresses(self.traversal.paths.local_address(), &self.interfaces);
        self.traversal.birthdays.set_mapping(mapping_behaviour(self.binding.mappings()));
        let mapped: BTreeSet<_> = self.binding.mappings().map(|(_, address)| canonical(address)).collect();
        for (v4, public) in [(true, &self.traversal.public_v4), (false, &self.traversal.public_v6)] {
            let asked = self.relays.servers.iter().any(|server| server.is_ipv4() == v4);
            let mut hosts = hosts.iter().filter(|host| host.is_ipv4() == v4);
            let is_public = hosts.any(|host| mapped.contains(host) || !is_private(host.ip()) && !asked);
            public.store(is_public, Ordering::Relaxed);
        }
        self.traversal.port_mapping.consider(&self.traversal, &hosts, &mapped);
        let external = *self.traversal.port_mapping.external().borrow();
        let as_candidate = |kind| move |address| Candidate { kind, address };
        let mut others: Vec<_> = external.into_iter().map(as_candidate(CandidateKind::Mapped)).collect();
        let known = |address: &SocketAddr| hosts.contains(address) || external == Some(*address);
        let reflexive = mapped.into_iter().filter(|address| !known(address));
        others.extend(reflexive.map(as_candidate(CandidateKind::ServerReflexive)));
        let relayed = self.traversal.turns.relayed_addresses().into_iter().map(canonical);
        others.extend(relayed.map(as_candidate(CandidateKind::Relayed)));
        if self.traversal.options.relay_only {
            hosts.clear();
            others.retain(|candidate| candidate.kind == CandidateKind::Relayed);
        }
        // The others are few, and for most peers the only ones.
        shorten(&mut hosts, SIGNAL_CANDIDATES.saturating_sub(others.len()));
        let mut candidates: Vec<_> = hosts.into_iter().map(as_candidate(CandidateKind::Host)).collect();
        candidates.extend(others);
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
