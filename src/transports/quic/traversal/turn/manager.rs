//! Starts and stops the allocations of a node: knows the servers that relays name, what became of them, and the network.
//!
//! The hub owns the one [`Manager`], tells it what relays say, and calls [`Manager::drive`] once a second and whenever
//! something changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::driver::{self, Plan, TurnError};
use super::policy::{Choice, Situation, wanted};
use super::{Ended, Turns};
use crate::limits::TURN_ALLOCATIONS;
use crate::nat::allocation::{TurnFailure, TurnTransport as Framing};
use crate::nat::credentials::TurnCredentials;
use crate::rendezvous::address::{HostPort, RelayAddress};
use crate::rendezvous::wire::{NodeFrame, TurnServer, TurnTransport};
use crate::transports::quic::addresses::has_family;
use crate::transports::quic::traversal::{Traversal, lock};
use crate::transports::relay_client::RelayInfo;
use crate::transports::turn_tls::ServerKey;

/// No STUN server answered within this time of the first question, which is repeated within it: UDP is taken for blocked until
/// one does. Short: a person waits, and an allocation that turns out to be needless costs a relay little.
const UDP_PATIENCE: Duration = Duration::from_millis(300);
/// How long an allocation that is not wanted any more is kept: it may be again, and connections move away meanwhile.
const KEPT_UNWANTED: Duration = Duration::from_secs(60);
/// Wait before a server that failed is tried again; doubles up to the second.
const FAILED_WAIT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(320));
/// The same for one that worked until then.
const LOST_WAIT: Duration = Duration::from_secs(1);
/// Between two requests for fresh credentials.
const CREDENTIALS_AGAIN: Duration = Duration::from_secs(30);

/// How a server is known over renewals of its credentials.
type Key = (TurnTransport, HostPort);

/// What one relay offers.
#[derive(Debug)]
struct Offers {
    info: RelayInfo,
    servers: Vec<TurnServer>,
    received: Instant,
    asked: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    key: Key,
    unwanted_since: Option<Instant>,
    /// Dropped to end it.
    _stop: oneshot::Sender<()>,
}

/// What the hub sees of the network.
#[derive(Debug)]
pub(in crate::transports::quic::traversal) struct Seen {
    /// STUN servers that are asked; they forward as well.
    pub(in crate::transports::quic::traversal) servers: BTreeSet<SocketAddr>,
    /// What they answered.
    pub(in crate::transports::quic::traversal) mappings: Vec<(SocketAddr, SocketAddr)>,
    /// Addresses of this machine.
    pub(in crate::transports::quic::traversal) interfaces: Vec<IpAddr>,
    /// Relays whose servers may be used.
    pub(in crate::transports::quic::traversal) relays: BTreeSet<RelayAddress>,
}

/// All allocations of a node.
#[derive(Debug, Default)]
pub(in crate::transports::quic::traversal) struct Manager {
    offers: BTreeMap<RelayAddress, Offers>,
    running: BTreeMap<u8, Running>,
    /// Until when a server is left alone, and how often in a row it failed.
    failed: BTreeMap<Key, (Instant, u32)>,
    /// Since when these STUN servers have been asked in this network.
    asked: Option<(Instant, BTreeSet<SocketAddr>)>,
    undecided: bool,
    next_id: u8,
}

impl Manager {
    /// A relay welcomed us, or sent fresh credentials.
    pub(in crate::transports::quic::traversal) fn on_servers(
        &mut self,
        relay: &RelayAddress,
        info: RelayInfo,
        servers: Vec<TurnServer>,
    ) {
        let offers = Offers { info, servers, received: Instant::now(), asked: None };
        self.offers.insert(relay.clone(), offers);
        self.forget_failed();
    }

    /// Forgets relays that there is no session with any more. What runs at their servers goes on while it is in use.
    pub(in crate::transports::quic::traversal) fn retain(&mut self, is_known: impl Fn(&RelayAddress) -> bool) {
        let before = self.offers.len();
        self.offers.retain(|relay, _| is_known(relay));
        if self.offers.len() < before {
            self.forget_failed();
        }
    }

    /// What became of a server that no relay names any more is of no use: relays may name others again and again.
    fn forget_failed(&mut self) {
        self.failed.retain(|key, _| self.offers.values().any(|offers| offers.has(key)));
    }

    /// Everything that is known of the network is void. An allocation stays when its stream hangs on an address that this
    /// machine still has, and has to prove that it lives; others are made anew.
    pub(in crate::transports::quic::traversal) fn on_network_change(&mut self, turns: &Turns, interfaces: &[IpAddr]) {
        self.running.retain(|id, _| turns.outlives(*id, interfaces));
        self.failed.clear();
        self.asked = None;
    }

    /// When to drive it at the latest, besides every second.
    pub(in crate::transports::quic::traversal) fn poll_timeout(&self) -> Option<Instant> {
        let (since, _) = self.asked.as_ref().filter(|_| self.undecided)?;
        Some(*since + UDP_PATIENCE)
    }

    /// Starts what is wanted and not there, and ends what has not been wanted for a while.
    pub(in crate::transports::quic::traversal) fn drive(&mut self, traversal: &Arc<Traversal>, seen: &Seen) {
        let now = Instant::now();
        let ended = std::mem::take(&mut *lock(&traversal.turns.ended));
        ended.into_iter().for_each(|ended| self.on_ended(ended, now));
        self.renew(traversal, now, &seen.relays);
        traversal.turns.links().iter().for_each(|link| link.sweep(now.into_std()));
        let (unsettled, in_use) = traversal.connections_in_use();
        let (refused, udp_blocked) = (traversal.relays_without_flows(), self.is_udp_blocked(now, seen));
        let refuses = |server: &SocketAddr| {
            let offers = self.offers.iter().filter(|(relay, _)| refused.contains(*relay));
            offers.into_iter().any(|(_, offers)| offers.info.datagrams().any(|address| address.ip() == server.ip()))
        };
        let forwarding = seen.mappings.iter().filter(|(server, _)| !refuses(server));
        let situation = Situation {
            udp_blocked,
            hidden: traversal.options.relay_only,
            standby: !refused.is_empty() || unsettled && is_symmetric(&seen.mappings),
            forwarding: forwarding.map(|(server, _)| self.machine_at(server.ip())).collect(),
        };
        let (keys, choices): (Vec<_>, Vec<_>) = self.choices(now, seen).into_iter().unzip();
        let wanted: Vec<_> = wanted(&situation, &choices).into_iter().map(|place| &keys[place]).collect();
        for running in self.running.values_mut() {
            let is_wanted = wanted.iter().any(|(key, _)| *key == running.key);
            running.unwanted_since = (!is_wanted).then(|| running.unwanted_since.unwrap_or(now));
        }
        self.running.retain(|id, running| {
            in_use.contains(id) || running.unwanted_since.is_none_or(|since| now < since + KEPT_UNWANTED)
        });
        let new: Vec<_> = wanted.into_iter().filter(|(key, ..)| !self.is_running(key)).cloned().collect();
        for (key, relay) in new {
            self.make_room();
            self.start(traversal, key, &relay);
        }
    }

    /// What a machine with this address is called: a relay may have one of either family.
    fn machine_at(&self, ip: IpAddr) -> String {
        let is_relay = |offers: &&Offers| offers.info.datagrams().any(|address| address.ip() == ip);
        let relay = self.offers.values().find(is_relay).map(|offers| offers.info.address.ip());
        relay.unwrap_or(ip).to_canonical().to_string()
    }

    fn is_running(&self, key: &Key) -> bool {
        self.running.values().any(|running| running.key == *key)
    }

    fn on_ended(&mut self, ended: Ended, now: Instant) {
        let Some(running) = self.running.remove(&ended.id) else { return };
        let failed = self.failed.entry(running.key.clone()).or_insert((now, 0));
        failed.1 = if ended.lived { 0 } else { failed.1 + 1 };
        failed.0 = now
            + match failed.1.checked_sub(1) {
                None => LOST_WAIT,
                Some(before) => (FAILED_WAIT.0 * 2u32.pow(before.min(5))).min(FAILED_WAIT.1),
            };
        // What an allocation that lived was made with says nothing about the credentials of now.
        if matches!(ended.why, TurnError::Failed(TurnFailure::CredentialsRefused)) && !ended.lived {
            // Older than their lifetime says: the relay was started anew, or a clock was set.
            for offers in self.offers.values_mut().filter(|offers| offers.has(&running.key)) {
                offers.received = now.checked_sub(offers.lifetime()).unwrap_or(now);
            }
        }
    }

    /// Asks for fresh credentials before the old ones expire.
    fn renew(&mut self, traversal: &Traversal, now: Instant, used: &BTreeSet<RelayAddress>) {
        for (relay, offers) in self.offers.iter_mut().filter(|(relay, _)| used.contains(*relay)) {
            let old = !offers.servers.is_empty() && now >= offers.received + offers.lifetime() * 3 / 4;
            if old && offers.asked.is_none_or(|asked| now >= asked + CREDENTIALS_AGAIN) {
                offers.asked = Some(now);
                traversal.say(relay, NodeFrame::Credentials);
            }
        }
    }

    fn is_udp_blocked(&mut self, now: Instant, seen: &Seen) -> bool {
        let answered = !seen.mappings.is_empty();
        match &self.asked {
            Some((_, servers)) if answered || *servers == seen.servers => {}
            _ => self.asked = (!seen.servers.is_empty()).then(|| (now, seen.servers.clone())),
        }
        let since = self.asked.as_ref().filter(|_| !answered).map(|(since, _)| *since);
        let blocked = since.is_some_and(|since| now >= since + UDP_PATIENCE);
        self.undecided = since.is_some() && !blocked;
        blocked
    }

    /// The servers that there are, with the relay that names each.
    fn choices(&self, now: Instant, seen: &Seen) -> Vec<((Key, RelayAddress), Choice)> {
        let mut choices: Vec<((Key, RelayAddress), Choice)> = Vec::new();
        for (relay, offers) in self.offers.iter().filter(|(relay, _)| seen.relays.contains(*relay)) {
            for server in &offers.servers {
                let key = (server.transport, server.server.clone());
                if choices.iter().any(|((known, _), _)| *known == key) {
                    continue;
                }
                let fresh = now < offers.good_until(server);
                let reached =
                    server.server.ip().is_none_or(|ip| ip.is_unspecified() || has_family(&seen.interfaces, ip));
                let choice = Choice {
                    transport: server.transport,
                    machine: machine(&server.server, relay, &offers.info),
                    port: server.server.port(),
                    usable: fresh && reached && self.failed.get(&key).is_none_or(|(until, _)| *until <= now),
                    running: self.is_running(&key),
                };
                choices.push(((key, relay.clone()), choice));
            }
        }
        choices
    }

    /// What is wanted takes the place of what is not.
    fn make_room(&mut self) {
        while self.running.len() >= TURN_ALLOCATIONS {
            let unwanted = self.running.iter().filter(|(_, running)| running.unwanted_since.is_some());
            let Some(id) = unwanted.map(|(id, _)| *id).next() else { return };
            self.running.remove(&id);
        }
    }

    fn start(&mut self, traversal: &Arc<Traversal>, key: Key, relay: &RelayAddress) {
        if self.running.len() >= TURN_ALLOCATIONS {
            return;
        }
        let Some(offers) = self.offers.get(relay) else { return };
        let Some(server) = offers.servers.iter().find(|server| (server.transport, &server.server) == (key.0, &key.1))
        else {
            return;
        };
        let Ok(credentials) = TurnCredentials::new(server.username.clone(), server.password.clone()) else { return };
        let transport = match server.transport {
            TurnTransport::Udp => Framing::Udp,
            TurnTransport::Tcp => Framing::Tcp,
            TurnTransport::Tls => Framing::Tls,
        };
        let is_relay = machine(&server.server, relay, &offers.info)
            == offers.info.address.ip().to_canonical().to_string()
            && server.server.port() == offers.info.address.port();
        let server_key = match server.pin {
            _ if is_relay => ServerKey::Relay(offers.info.key),
            Some(pin) => ServerKey::Pinned(pin),
            None => ServerKey::Any,
        };
        let id = loop {
            self.next_id = self.next_id.wrapping_add(1);
            // One that has just been told to end may still be there.
            if !self.running.contains_key(&self.next_id) && !traversal.turns.has(self.next_id) {
                break self.next_id;
            }
        };
        tracing::debug!(?transport, server = %server.server, "allocating at a TURN server");
        let plan = Plan {
            id,
            transport,
            server: server.server.clone(),
            relay_ip: offers.info.address.ip(),
            key: server_key,
            credentials,
            credentials_until: offers.good_until(server),
        };
        let (stop, stopped) = oneshot::channel();
        self.running.insert(id, Running { key, unwanted_since: None, _stop: stop });
        traversal.spawn(driver::run(traversal.clone(), plan, stopped));
    }
}

impl Offers {
    /// The shortest of its credentials'.
    fn lifetime(&self) -> Duration {
        let shortest = self.servers.iter().map(|server| server.lifetime_s).min();
        Duration::from_secs(shortest.unwrap_or(0).into())
    }

    /// When the credentials for this server expire.
    fn good_until(&self, server: &TurnServer) -> Instant {
        self.received + Duration::from_secs(server.lifetime_s.into())
    }

    fn has(&self, key: &Key) -> bool {
        self.servers.iter().any(|server| server.transport == key.0 && server.server == key.1)
    }
}

/// What the addresses of one machine have in common, as far as that is known: the relay's own are its ip.
fn machine(server: &HostPort, relay: &RelayAddress, info: &RelayInfo) -> String {
    let of_relay = |ip: IpAddr| ip.is_unspecified() || info.datagrams().any(|address| address.ip() == ip);
    let own = server.host() == relay.server.host() || server.ip().is_some_and(of_relay);
    if own { info.address.ip().to_canonical().to_string() } else { server.host().to_owned() }
}

/// Two servers see different addresses of one socket.
fn is_symmetric(mappings: &[(SocketAddr, SocketAddr)]) -> bool {
    [true, false].into_iter().any(|v4| {
        let mut seen = mappings.iter().map(|(_, mapped)| mapped).filter(|mapped| mapped.is_ipv4() == v4);
        let first = seen.next();
        seen.any(|mapped| Some(mapped) != first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;
    use crate::rendezvous::wire::Welcome;

    fn server(name: &str) -> TurnServer {
        let server = HostPort::new(name, 3478).unwrap();
        TurnServer {
            transport: TurnTransport::Udp,
            server,
            username: "anna".into(),
            password: "secret".into(),
            lifetime_s: 3600,
            pin: None,
        }
    }

    fn info() -> RelayInfo {
        let address = SocketAddr::from(([203, 0, 113, 1], 443));
        let welcome = Welcome { observed: address, datagrams: Vec::new(), turn: Vec::new(), stun: Vec::new() };
        RelayInfo { key: Identity::from_seed(&[1; 32]).peer_id(), address, welcome: Arc::new(welcome) }
    }

    #[test]
    fn only_servers_that_a_relay_names_now_are_remembered_as_failed() {
        let (mut manager, relay) = (Manager::default(), "relay.example.org:443".parse().unwrap());
        let fail = |manager: &mut Manager, name: &str| {
            let key = (TurnTransport::Udp, server(name).server);
            manager.failed.insert(key, (Instant::now() + FAILED_WAIT.0, 1));
        };
        for number in 0..100 {
            let name = format!("turn-{number}.example.org");
            manager.on_servers(&relay, info(), vec![server("turn.example.org"), server(&name)]);
            fail(&mut manager, "turn.example.org");
            fail(&mut manager, &name);
            assert_eq!(manager.failed.len(), 2);
        }
    }

    #[test]
    fn credentials_are_void_when_they_are_refused_at_once_and_not_when_an_old_allocation_outlived_its_own() {
        for (lived, usable_later) in [(true, true), (false, false)] {
            let mut manager = Manager::default();
            let relay: RelayAddress = "relay.example.org:443".parse().unwrap();
            manager.on_servers(&relay, info(), vec![server("turn.example.org")]);
            let key = (TurnTransport::Udp, server("turn.example.org").server);
            let (stop, _stopped) = oneshot::channel();
            manager.running.insert(7, Running { key, unwanted_since: None, _stop: stop });
            let (now, why) = (Instant::now(), TurnError::Failed(TurnFailure::CredentialsRefused));
            manager.on_ended(Ended { id: 7, lived, why }, now);
            let seen = Seen {
                servers: BTreeSet::new(),
                mappings: Vec::new(),
                interfaces: Vec::new(),
                relays: BTreeSet::from([relay]),
            };
            let choices = manager.choices(now + FAILED_WAIT.1, &seen);
            assert_eq!(choices[0].1.usable, usable_later);
        }
    }

    #[test]
    fn a_nat_is_symmetric_when_two_servers_see_different_addresses_of_one_family() {
        let seen = |addresses: &[&str]| {
            let server = SocketAddr::from(([192, 0, 2, 1], 3478));
            is_symmetric(&addresses.iter().map(|address| (server, address.parse().unwrap())).collect::<Vec<_>>())
        };
        assert!(!seen(&[]) && !seen(&["198.51.100.1:1"]));
        assert!(!seen(&["198.51.100.1:1", "[2001:db8::1]:1", "198.51.100.1:1"]));
        assert!(seen(&["198.51.100.1:1", "[2001:db8::1]:1", "198.51.100.1:2"]));
    }
}
