//! What kind of NAT is in the way: mapping and filtering behaviour (RFC 5780, words of RFC 4787), hairpinning, and whether ports
//! are preserved. Takes about two seconds and thirty packets, once per network.
//!
//! The driver binds **two fresh UDP sockets**, to port 0 of the same address, and gives the machine their ports. Fresh,
//! because a NAT lets in whoever a socket has sent to before, and a mapping that exists already may follow other rules: the
//! filtering test is void on a socket that ever sent anything else, so the mapping test, which asks the server's other address,
//! has a socket of its own. Packets say which [`Probe`] socket they leave from ([`poll_transmit`](NatTypeMachine::poll_transmit)),
//! and what comes in is handed in with the socket that it came to. Then as always: timeouts, until
//! [`report`](NatTypeMachine::report) has something.
//!
//! A server with OTHER-ADDRESS is needed for filtering and for the exact mapping behaviour. Without one, the answers of
//! two servers on different addresses are compared, which tells endpoint-independent mapping from the rest.

mod report;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

pub use report::{FilteringBehaviour, Mapping, MappingBehaviour, NatReport};

use super::binding::mapped_address;
use super::stun::{Attribute, Class, Method, Request, Scanned};
use super::transaction::{RetransmitOptions, Transaction, TransactionIds, Transmit, Waited};
use crate::limits::STUN_MAX_SERVERS;

/// One of the two sockets of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Asks several addresses.
    Mapping,
    /// Asks one address.
    Filtering,
}

/// What a test needs to know about this machine.
#[derive(Debug, Clone)]
pub struct NatTypeOptions {
    retransmit: RetransmitOptions,
    local_ips: Vec<IpAddr>,
}

impl NatTypeOptions {
    /// Addresses of the interfaces that are up: a mapped address among them means that there is no NAT. Requests are sent
    /// three times each and given up after 1.4 s; an answer that is filtered has to be waited for.
    pub fn new(local_ips: Vec<IpAddr>) -> Self {
        Self { retransmit: RetransmitOptions::new().with_tries(3), local_ips }
    }

    /// How requests are repeated. Fewer or shorter: on a slow network, lost answers look like filtered ones.
    pub fn with_retransmit(mut self, retransmit: RetransmitOptions) -> Self {
        self.retransmit = retransmit;
        self
    }
}

/// What a request is to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// RFC 5780 §4.3 test I, of every server.
    Mapped,
    /// Test II: from the server's other address, same port.
    MappedByOtherAddress,
    /// Test III: from the server's other address and port.
    MappedByOtherPort,
    /// Opens the filtering socket's mapping towards the server (RFC 5780 §4.4 test I).
    Open,
    /// Test II: may the server's other address and port answer?
    FilteredByAddress,
    /// Test III: may its other port?
    FilteredByPort,
    /// Does a packet to our other socket's mapped address come back to us? (RFC 5780 §4.5)
    Hairpin,
}

#[derive(Debug)]
struct Asked {
    question: Question,
    socket: Probe,
    to: SocketAddr,
    transaction: Transaction,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    server: SocketAddr,
    mapped: SocketAddr,
    other: Option<SocketAddr>,
}

#[derive(Debug)]
enum State {
    /// Who of the servers is there?
    Servers,
    /// One of them is asked further.
    Behaviour,
    Done(NatReport),
}

/// One run of the tests.
#[derive(Debug)]
pub struct NatTypeMachine {
    options: NatTypeOptions,
    ids: TransactionIds,
    ports: (u16, u16),
    asked: Vec<Asked>,
    /// What each server said to the mapping socket, in the order of arrival.
    answers: Vec<Answer>,
    /// What the filtering socket is mapped to.
    filtering_mapped: Option<SocketAddr>,
    mapping: Option<MappingBehaviour>,
    /// What the server's other address saw, when that is not what its first one saw.
    mapped_by_other: Option<SocketAddr>,
    /// Whether what came from the other address, and from the other port, was let in.
    let_in: (Option<bool>, Option<bool>),
    hairpin: Option<bool>,
    /// The server's other address answered: then its silence says something about the NAT.
    other_answers: bool,
    state: State,
}

impl NatTypeMachine {
    /// Starts with the local ports of the mapping and the filtering socket, up to `STUN_MAX_SERVERS` servers (more are not
    /// asked), and 32 bytes from the system's generator.
    pub fn start(
        now: Instant,
        options: NatTypeOptions,
        (mapping_port, filtering_port): (u16, u16),
        servers: &[SocketAddr],
        seed: [u8; 32],
    ) -> Self {
        let mut machine = Self {
            options,
            ids: TransactionIds::from_seed(seed),
            ports: (mapping_port, filtering_port),
            asked: Vec::new(),
            answers: Vec::new(),
            filtering_mapped: None,
            mapping: None,
            mapped_by_other: None,
            let_in: (None, None),
            hairpin: None,
            other_answers: false,
            state: State::Servers,
        };
        for server in servers.iter().take(STUN_MAX_SERVERS) {
            machine.ask(now, Question::Mapped, Probe::Mapping, *server, Request::binding());
        }
        machine.advance(now);
        machine
    }

    /// What was found out, when that is all.
    pub fn report(&self) -> Option<&NatReport> {
        match &self.state {
            State::Done(report) => Some(report),
            State::Servers | State::Behaviour => None,
        }
    }

    /// Takes a message that came to one of the two sockets. True when it belongs to the tests.
    pub fn handle_input(&mut self, now: Instant, to: Probe, from: SocketAddr, message: &Scanned<'_>) -> bool {
        let Some(at) = self.asked.iter().position(|asked| asked.transaction.is_answered_by(message)) else {
            return false;
        };
        let (question, socket, server) = (self.asked[at].question, self.asked[at].socket, self.asked[at].to);
        match message.class() {
            // Only our own requests have our ids: the NAT sent it back to our other socket.
            Class::Request => {
                if question != Question::Hairpin || to == socket {
                    return false;
                }
                self.hairpin = Some(true);
            }
            Class::Success if to == socket => {
                if !self.on_answer(now, question, server, from, message) {
                    return false;
                }
            }
            // A server that cannot do what is asked does not tell anything about the NAT.
            Class::Error if to == socket && from == server => {}
            Class::Success | Class::Error | Class::Indication => return false,
        }
        self.asked.remove(at);
        self.advance(now);
        true
    }

    /// The next packet and the socket to send it from.
    pub fn poll_transmit(&mut self) -> Option<(Probe, Transmit)> {
        self.asked.iter_mut().find_map(|asked| {
            let bytes = asked.transaction.take_transmit()?;
            Some((asked.socket, Transmit { to: asked.to, bytes }))
        })
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.asked.iter().map(|asked| (asked.transaction.due(), "nat test answer")).min_by_key(|(at, _)| *at)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut silent = Vec::new();
        self.asked.retain_mut(|asked| match asked.transaction.on_timeout(now) {
            Waited::GoesOn => true,
            Waited::GivenUp => {
                silent.push(asked.question);
                false
            }
        });
        for question in silent {
            match question {
                Question::FilteredByAddress => self.let_in.0 = Some(false),
                Question::FilteredByPort => self.let_in.1 = Some(false),
                Question::Hairpin => _ = self.hairpin.get_or_insert(false),
                // An address of the server that does not answer is the server's matter.
                Question::Mapped | Question::MappedByOtherAddress | Question::MappedByOtherPort | Question::Open => {}
            }
        }
        self.advance(now);
    }

    fn ask(&mut self, now: Instant, question: Question, socket: Probe, to: SocketAddr, request: Request) {
        // A Binding request is always encodable; a question that is not asked stays open in the report.
        if let Ok(sealed) = request.seal(self.ids.draw(), None) {
            let transaction = Transaction::start(sealed, self.options.retransmit, now);
            self.asked.push(Asked { question, socket, to, transaction });
        }
    }

    /// False when the message is not the answer to the question.
    fn on_answer(
        &mut self,
        now: Instant,
        question: Question,
        server: SocketAddr,
        from: SocketAddr,
        message: &Scanned<'_>,
    ) -> bool {
        if message.method() != Method::Binding {
            return false;
        }
        // Filtering tests are about answers from elsewhere; from where it was asked, the server has not understood.
        match question {
            Question::FilteredByAddress if from.ip() != server.ip() => self.let_in.0 = Some(true),
            Question::FilteredByPort if from.ip() == server.ip() && from.port() != server.port() => {
                self.let_in.1 = Some(true);
            }
            Question::FilteredByAddress | Question::FilteredByPort => return from == server,
            Question::Hairpin => return false,
            Question::Mapped | Question::MappedByOtherAddress | Question::MappedByOtherPort | Question::Open => {
                if from != server {
                    return false;
                }
                let Some(mapped) = mapped_address(message) else { return true };
                self.on_mapped(now, question, server, mapped, message);
            }
        }
        true
    }

    fn on_mapped(
        &mut self,
        now: Instant,
        question: Question,
        server: SocketAddr,
        mapped: SocketAddr,
        message: &Scanned<'_>,
    ) {
        let other = message.decode().ok().and_then(|message| message.other_address());
        let first = self.chosen().map(|answer| answer.mapped);
        self.other_answers |= matches!(question, Question::MappedByOtherAddress | Question::MappedByOtherPort);
        match question {
            Question::Mapped => {
                let other = other.filter(|other| is_other(*other, server));
                self.answers.push(Answer { server, mapped, other });
            }
            Question::MappedByOtherAddress if Some(mapped) == first => {
                self.mapping = Some(MappingBehaviour::EndpointIndependent);
            }
            Question::MappedByOtherAddress => {
                self.answers.push(Answer { server, mapped, other: None });
                self.mapped_by_other = Some(mapped);
                if let Some(other) = self.chosen().and_then(|answer| answer.other) {
                    self.ask(now, Question::MappedByOtherPort, Probe::Mapping, other, Request::binding());
                }
            }
            Question::MappedByOtherPort => {
                let by_address = self.mapped_by_other == Some(mapped);
                self.mapping = Some(if by_address {
                    MappingBehaviour::AddressDependent
                } else {
                    MappingBehaviour::AddressAndPortDependent
                });
            }
            Question::Open => {
                self.filtering_mapped = Some(mapped);
                self.ask_through_filter(now, server, mapped);
            }
            Question::FilteredByAddress | Question::FilteredByPort | Question::Hairpin => {}
        }
    }

    fn ask_through_filter(&mut self, now: Instant, server: SocketAddr, mapped: SocketAddr) {
        let Some(chosen) = self.chosen() else { return };
        if chosen.other.is_some() {
            let change = |ip| Request::binding().with(Attribute::ChangeRequest { ip, port: true });
            self.ask(now, Question::FilteredByAddress, Probe::Filtering, server, change(true));
            self.ask(now, Question::FilteredByPort, Probe::Filtering, server, change(false));
        }
        // Both ways, so that each socket has sent to the other, whatever the NAT filters.
        self.ask(now, Question::Hairpin, Probe::Mapping, mapped, Request::binding());
        self.ask(now, Question::Hairpin, Probe::Filtering, chosen.mapped, Request::binding());
    }

    /// The server that is asked further: one with another address, or the first.
    fn chosen(&self) -> Option<Answer> {
        self.answers.iter().find(|answer| answer.other.is_some()).or(self.answers.first()).copied()
    }

    /// Goes on when all that is needed is known.
    fn advance(&mut self, now: Instant) {
        if let State::Servers = self.state
            && (self.asked.is_empty() || self.chosen().is_some_and(|answer| answer.other.is_some()))
        {
            // Answers of further servers still count, should this one's other address be out of reach.
            self.state = State::Behaviour;
            if let Some(chosen) = self.chosen() {
                if let Some(other) = chosen.other {
                    let other_address = SocketAddr::new(other.ip(), chosen.server.port());
                    let question = Question::MappedByOtherAddress;
                    self.ask(now, question, Probe::Mapping, other_address, Request::binding());
                }
                self.ask(now, Question::Open, Probe::Filtering, chosen.server, Request::binding());
            }
        }
        if let State::Behaviour = self.state
            && self.asked.is_empty()
        {
            self.state = State::Done(self.conclude());
        }
    }

    fn conclude(&self) -> NatReport {
        let mapped = self.chosen().map(|answer| answer.mapped);
        let (mapping_port, filtering_port) = self.ports;
        let is_local = |mapped: SocketAddr| self.options.local_ips.contains(&mapped.ip());
        let no_nat = mapped.is_some_and(|mapped| mapped.port() == mapping_port && is_local(mapped));
        let mapping = match self.mapping {
            _ if no_nat => Mapping::NoNat,
            Some(behaviour) => Mapping::Behaviour(behaviour),
            None => self.compare_servers(),
        };
        let filtering = match self.let_in {
            (Some(true), _) => Some(FilteringBehaviour::EndpointIndependent),
            (Some(false), Some(true)) if self.other_answers => Some(FilteringBehaviour::AddressDependent),
            (Some(false), Some(false)) if self.other_answers => Some(FilteringBehaviour::AddressAndPortDependent),
            (None | Some(false), _) => None,
        };
        let preserved = mapped.map(|mapped| {
            let filtering = self.filtering_mapped.is_none_or(|mapped| mapped.port() == filtering_port);
            mapped.port() == mapping_port && filtering
        });
        NatReport { mapped, mapping, filtering, port_preserved: preserved, hairpin: self.hairpin }
    }

    /// Two servers on different addresses that see the same address: it depends on neither.
    fn compare_servers(&self) -> Mapping {
        let Some(first) = self.answers.first() else { return Mapping::Unknown };
        let elsewhere = self.answers.iter().filter(|answer| answer.server.ip() != first.server.ip());
        let mut same = elsewhere.map(|answer| answer.mapped == first.mapped).peekable();
        match (same.peek(), self.answers.iter().all(|answer| answer.mapped == first.mapped)) {
            (None, true) => Mapping::Unknown,
            (Some(_), true) => Mapping::Behaviour(MappingBehaviour::EndpointIndependent),
            (_, false) => Mapping::Dependent,
        }
    }
}

/// Whether a server's other address is of use: another IP address of the same family and another port. We send a few packets
/// there because the server says so, so nothing that is no single host elsewhere.
fn is_other(other: SocketAddr, server: SocketAddr) -> bool {
    let ip = other.ip();
    other.is_ipv4() == server.is_ipv4()
        && ip != server.ip()
        && other.port() != server.port()
        && other.port() != 0
        && !ip.is_unspecified()
        && !ip.is_multicast()
        && ip.is_loopback() == server.ip().is_loopback()
}
