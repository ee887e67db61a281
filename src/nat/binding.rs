//! What STUN servers see of one UDP socket, and keeping it that way: Binding requests and keep-alives.
//!
//! [`BindingMachine::add_server`] starts asking. Drive it: send what [`poll_transmit`](BindingMachine::poll_transmit) gives from
//! that socket, hand in what comes back, call [`handle_timeout`](BindingMachine::handle_timeout) at
//! [`poll_timeout`](BindingMachine::poll_timeout), take events. Every keep-alive is a request, so a mapping that changed is
//! noticed with the next one. All that is known belongs to one network: [`on_network_change`](BindingMachine::on_network_change)
//! forgets it and asks again.
//!
//! Not here: what kind of NAT it is ([`nat_type`](super::nat_type)), and relayed addresses ([`allocation`](super::allocation)).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::stun::{Class, Method, Request, Scanned};
use super::transaction::{Events, RetransmitOptions, Transaction, TransactionIds, Transmit, Waited};
use crate::limits::{NAT_KEEP_ALIVE_MAX, STUN_MAX_SERVERS};

/// How a socket's mapping is asked for and kept.
#[derive(Debug, Clone, Copy)]
pub struct BindingOptions {
    retransmit: RetransmitOptions,
    keep_alive: Duration,
}

impl BindingOptions {
    /// Keep-alive every 25 s; retransmissions as in [`RetransmitOptions::new`].
    pub fn new() -> Self {
        Self { retransmit: RetransmitOptions::new(), keep_alive: NAT_KEEP_ALIVE_MAX }
    }

    /// How requests are repeated.
    pub fn with_retransmit(mut self, retransmit: RetransmitOptions) -> Self {
        self.retransmit = retransmit;
        self
    }

    /// Time from an answer to the next request, 1 to 25 s; default 25 s. Short: packets and battery. Longer than the NAT
    /// remembers: the mapping is lost in between.
    pub fn with_keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = interval.clamp(Duration::from_secs(1), NAT_KEEP_ALIVE_MAX);
        self
    }
}

impl Default for BindingOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// What the driver should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BindingEvent {
    /// A server sees the socket at this address: a server-reflexive candidate.
    Mapped {
        /// Who says so.
        server: SocketAddr,
        /// Our address.
        address: SocketAddr,
    },
    /// It is another one than before: candidates with the old one are void.
    Changed {
        /// Who says so.
        server: SocketAddr,
        /// What it was.
        before: SocketAddr,
        /// What it is.
        address: SocketAddr,
    },
    /// A server did not answer, or refused. What it said before is forgotten; it is asked again after a keep-alive interval.
    Silent {
        /// Which one.
        server: SocketAddr,
    },
}

#[derive(Debug)]
enum State {
    Asking(Transaction),
    /// Until the next request.
    Resting {
        until: Instant,
    },
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    mapped: Option<SocketAddr>,
    state: State,
}

/// The mappings of one socket.
#[derive(Debug)]
pub struct BindingMachine {
    options: BindingOptions,
    ids: TransactionIds,
    servers: Vec<Server>,
    events: Events<BindingEvent>,
}

impl BindingMachine {
    /// Asks nobody yet. The seed is 32 bytes from the system's generator: transaction ids come from it.
    pub fn new(options: BindingOptions, seed: [u8; 32]) -> Self {
        Self { options, ids: TransactionIds::from_seed(seed), servers: Vec::new(), events: Events::new() }
    }

    /// Asks this server at once. False when there are `STUN_MAX_SERVERS` already; true also when it is known.
    pub fn add_server(&mut self, now: Instant, address: SocketAddr) -> bool {
        if self.servers.iter().any(|server| server.address == address) {
            return true;
        }
        if self.servers.len() == STUN_MAX_SERVERS {
            return false;
        }
        let state = State::Resting { until: now };
        self.servers.push(Server { address, mapped: None, state });
        self.handle_timeout(now);
        true
    }

    /// Asks it no more.
    pub fn remove_server(&mut self, address: SocketAddr) {
        self.servers.retain(|server| server.address != address);
    }

    /// What the servers see, by server, of the network that we are in.
    pub fn mappings(&self) -> impl Iterator<Item = (SocketAddr, SocketAddr)> {
        self.servers.iter().filter_map(|server| Some((server.address, server.mapped?)))
    }

    /// The machine is in another network, or woke up: forgets everything and asks again at once. Answers to what was asked
    /// before do not count any more.
    pub fn on_network_change(&mut self, now: Instant) {
        for server in &mut self.servers {
            (server.mapped, server.state) = (None, State::Resting { until: now });
        }
        self.handle_timeout(now);
    }

    /// Takes a message that came to the socket. True when it was an answer to this machine.
    pub fn handle_input(&mut self, now: Instant, from: SocketAddr, message: &Scanned<'_>) -> bool {
        // Strangers may answer as they like: only who was asked, with the id of the question, is heard.
        let asked = |server: &&mut Server| {
            server.address == from
                && matches!(&server.state, State::Asking(transaction) if transaction.is_answered_by(message))
        };
        let Some(server) = self.servers.iter_mut().find(asked) else { return false };
        let address = match message.class() {
            Class::Request | Class::Indication => return false,
            Class::Error => None,
            Class::Success => mapped_address(message),
        };
        let before = std::mem::replace(&mut server.mapped, address);
        server.state = State::Resting { until: now + self.options.keep_alive };
        let server = server.address;
        match (before, address) {
            (_, None) => self.events.push(BindingEvent::Silent { server }),
            (None, Some(address)) => self.events.push(BindingEvent::Mapped { server, address }),
            (Some(before), Some(address)) if before != address => {
                self.events.push(BindingEvent::Changed { server, before, address });
            }
            (Some(_), Some(_)) => {}
        }
        true
    }

    /// The next packet to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.servers.iter_mut().find_map(|server| match &mut server.state {
            State::Asking(transaction) => {
                transaction.take_transmit().map(|bytes| Transmit { to: server.address, bytes })
            }
            State::Resting { .. } => None,
        })
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let due = |server: &Server| match &server.state {
            State::Asking(transaction) => (transaction.due(), "binding answer"),
            State::Resting { until } => (*until, "binding keep-alive"),
        };
        self.servers.iter().map(due).min_by_key(|(at, _)| *at)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        for server in &mut self.servers {
            match &mut server.state {
                State::Asking(transaction) => {
                    if transaction.on_timeout(now) == Waited::GivenUp {
                        (server.mapped, server.state) = (None, State::Resting { until: now + self.options.keep_alive });
                        self.events.push(BindingEvent::Silent { server: server.address });
                    }
                }
                State::Resting { until } if *until <= now => {
                    // A bare Binding request is always encodable; were it not, it would be tried again later.
                    server.state = match Request::binding().seal(self.ids.draw(), None) {
                        Ok(sealed) => State::Asking(Transaction::start(sealed, self.options.retransmit, now)),
                        Err(_) => State::Resting { until: now + self.options.keep_alive },
                    };
                }
                State::Resting { .. } => {}
            }
        }
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<BindingEvent> {
        self.events.pop()
    }
}

/// The address in a Binding response, unless that is one that we must not understand (RFC 8489 §6.3.3).
pub(super) fn mapped_address(message: &Scanned<'_>) -> Option<SocketAddr> {
    let message = message.decode().ok()?;
    let usable = message.method() == Method::Binding && message.unknown_attributes().is_empty();
    message.mapped_address().filter(|address| usable && address.port() != 0 && !address.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::super::stun::{Attribute, ErrorCode, Response};
    use super::*;
    use proptest::prelude::*;

    const KEEP_ALIVE: Duration = Duration::from_secs(25);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn machine(now: Instant, servers: &[&str]) -> BindingMachine {
        let mut machine = BindingMachine::new(BindingOptions::new(), [7; 32]);
        servers.iter().for_each(|server| assert!(machine.add_server(now, address(server))));
        machine
    }

    /// The server's answer to a request.
    fn answer(request: &Transmit, mapped: &str) -> Vec<u8> {
        let request = Scanned::scan(&request.bytes).unwrap();
        Response::success(&request).with(Attribute::XorMappedAddress(address(mapped))).encode(None).unwrap()
    }

    fn hand_in(machine: &mut BindingMachine, now: Instant, from: SocketAddr, bytes: &[u8]) -> bool {
        machine.handle_input(now, from, &Scanned::scan(bytes).unwrap())
    }

    fn events(machine: &mut BindingMachine) -> Vec<BindingEvent> {
        std::iter::from_fn(|| machine.poll_event()).collect()
    }

    #[test]
    fn every_server_says_where_it_sees_us_and_a_change_is_noticed() {
        let start = Instant::now();
        let (one, two) = ("192.0.2.1:3478", "192.0.2.2:3478");
        let mut machine = machine(start, &[one, two]);
        for (server, mapped) in [(one, "198.51.100.7:1000"), (two, "198.51.100.7:1001")] {
            let request = machine.poll_transmit().unwrap();
            assert_eq!(request.to, address(server));
            assert!(hand_in(&mut machine, start, request.to, &answer(&request, mapped)));
            let (server, address) = (address(server), address(mapped));
            assert_eq!(events(&mut machine), [BindingEvent::Mapped { server, address }]);
        }
        assert_eq!(machine.mappings().count(), 2);
        assert_eq!(machine.poll_timeout(), Some((start + KEEP_ALIVE, "binding keep-alive")));
        machine.handle_timeout(start + KEEP_ALIVE);
        let request = machine.poll_transmit().unwrap();
        hand_in(&mut machine, start + KEEP_ALIVE, request.to, &answer(&request, "203.0.113.9:5"));
        let before = address("198.51.100.7:1000");
        let changed = BindingEvent::Changed { server: request.to, before, address: address("203.0.113.9:5") };
        assert_eq!(events(&mut machine), [changed]);
    }

    #[test]
    fn an_answer_counts_from_who_was_asked_and_with_its_id_only() {
        let now = Instant::now();
        let mut machine = machine(now, &["192.0.2.1:3478"]);
        let request = machine.poll_transmit().unwrap();
        let right = answer(&request, "198.51.100.7:1000");
        assert!(!hand_in(&mut machine, now, address("192.0.2.1:3479"), &right));
        let other = Transmit {
            to: request.to,
            bytes: Request::binding()
                .seal(super::super::stun::TransactionId::from_random([1; 12]), None)
                .unwrap()
                .bytes()
                .to_vec(),
        };
        assert!(!hand_in(&mut machine, now, request.to, &answer(&other, "203.0.113.66:6")));
        assert!(!hand_in(&mut machine, now, request.to, &request.bytes), "our own request come back");
        assert!(hand_in(&mut machine, now, request.to, &right));
        assert!(!hand_in(&mut machine, now, request.to, &right), "once");
        assert_eq!(machine.mappings().collect::<Vec<_>>(), [(request.to, address("198.51.100.7:1000"))]);
    }

    #[test]
    fn another_network_forgets_the_mappings_and_answers_to_older_questions() {
        let now = Instant::now();
        let mut machine = machine(now, &["192.0.2.1:3478"]);
        let old = machine.poll_transmit().unwrap();
        machine.on_network_change(now);
        assert!(!hand_in(&mut machine, now, old.to, &answer(&old, "198.51.100.7:1000")));
        let new = machine.poll_transmit().unwrap();
        assert!(hand_in(&mut machine, now, new.to, &answer(&new, "203.0.113.9:5")));
        machine.on_network_change(now);
        assert_eq!(machine.mappings().count(), 0);
        assert!(machine.poll_transmit().is_some());
    }

    #[test]
    fn a_silent_or_refusing_server_is_told_and_asked_again_later() {
        let start = Instant::now();
        let mut machine = machine(start, &["192.0.2.1:3478"]);
        let mut sent = 0;
        let mut now = start;
        while machine.poll_timeout().unwrap().1 == "binding answer" {
            sent += std::iter::from_fn(|| machine.poll_transmit()).count();
            now = machine.poll_timeout().unwrap().0;
            machine.handle_timeout(now);
        }
        assert_eq!((sent, (now - start).as_millis()), (7, 15800));
        let silent = BindingEvent::Silent { server: address("192.0.2.1:3478") };
        assert_eq!(events(&mut machine), [silent]);
        now += KEEP_ALIVE;
        machine.handle_timeout(now);
        let request = machine.poll_transmit().unwrap();
        let scanned = Scanned::scan(&request.bytes).unwrap();
        let refusal = Response::error(&scanned, ErrorCode::BadRequest).encode(None).unwrap();
        assert!(hand_in(&mut machine, now, request.to, &refusal));
        assert_eq!(events(&mut machine), [silent]);
    }

    #[test]
    fn servers_beyond_the_limit_are_refused() {
        let now = Instant::now();
        let mut machine = machine(now, &[]);
        let server = |number: usize| SocketAddr::from(([192, 0, 2, number as u8], 3478));
        assert!((0..STUN_MAX_SERVERS).all(|number| machine.add_server(now, server(number))));
        assert!(machine.add_server(now, server(0)), "known");
        assert!(!machine.add_server(now, server(99)));
        machine.remove_server(server(0));
        assert!(machine.add_server(now, server(99)));
    }

    proptest! {
        #[test]
        fn whichever_packets_are_lost_a_server_that_answers_one_is_heard(lost in prop::collection::vec(any::<bool>(), 6)) {
            let mut now = Instant::now();
            let mut machine = machine(now, &["192.0.2.1:3478"]);
            let mut lost = lost.into_iter();
            while machine.mappings().count() == 0 {
                while let Some(request) = machine.poll_transmit() {
                    if !lost.next().unwrap_or(false) {
                        hand_in(&mut machine, now, request.to, &answer(&request, "198.51.100.7:1000"));
                    }
                }
                let silent = BindingEvent::Silent { server: address("192.0.2.1:3478") };
                prop_assert!(!events(&mut machine).contains(&silent));
                now = machine.poll_timeout().unwrap().0;
                machine.handle_timeout(now);
            }
        }
    }
}
