//! Asking the router for a port that is let in, by PCP (RFC 6887) and NAT-PMP (RFC 6886): one mapping at one router, pure.
//!
//! [`PortMappingMachine::new`] asks at once, in both protocols, since many routers speak only one. Drive it: send what
//! [`poll_transmit`](PortMappingMachine::poll_transmit) gives, hand in what comes back with its sender, call
//! [`handle_timeout`](PortMappingMachine::handle_timeout) at [`poll_timeout`](PortMappingMachine::poll_timeout), and look at
//! [`status`](PortMappingMachine::status). The mapping is renewed at half its lifetime; [`release`](PortMappingMachine::release)
//! gives it back. [`upnp`] has the messages of the third protocol, which is no machine: its driver asks and waits.
//!
//! Answers count only from the router. Anybody in the local network can forge them nevertheless, so what comes out of here
//! is a candidate to be checked, never an address to be trusted. IPv4 only: where IPv6 is, no port is translated.

mod nat_pmp;
mod pcp;
pub mod upnp;

use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::Transmit;
use crate::net::Gateway;
use pcp::Nonce;

/// Where routers listen (RFC 6886, section 3; RFC 6887, section 19.1).
pub const PORT: u16 = 5351;
/// For how long a port is asked for: a router that was restarted has forgotten it, and hears of it within half of this.
pub const LIFETIME: Duration = Duration::from_secs(3600);
/// Longest lifetime that is believed, so that a wrong one does not outlive the day.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Wait for a first answer (RFC 6886, section 3.1). Each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Tries before the router counts as silent: it is one hop away, so 3.75 s mean that it does not listen.
const TRIES: u32 = 3;
/// Shortest time between two renewals (RFC 6887, section 11.2.1).
const RENEW_MIN: Duration = Duration::from_secs(4);

/// The router to ask for a port, if one should be asked: our address is private, and outside another one is seen.
pub fn router_to_ask(gateways: &[Gateway], hosts: &[SocketAddr], mapped: &BTreeSet<SocketAddr>) -> Option<Gateway> {
    let behind_nat = mapped.iter().any(|address| address.is_ipv4() && !hosts.contains(address));
    let listens = |interface: Ipv4Addr| hosts.iter().any(|host| host.ip() == interface);
    let asked = |gateway: &&Gateway| gateway.interface.is_private() && listens(gateway.interface);
    gateways.iter().find(asked).filter(|_| behind_nat).copied()
}

/// True for addresses that anybody on the internet can send to: a router that has another one is behind a NAT itself.
pub fn is_global(ip: Ipv4Addr) -> bool {
    let [first, second, ..] = ip.octets();
    // RFC 6598: what carriers use between themselves and their customers.
    let carrier = first == 100 && second & 0xc0 == 64;
    let local = ip.is_private() || ip.is_loopback() || ip.is_link_local() || first == 0;
    !(local || carrier || ip.is_multicast() || ip.is_broadcast())
}

/// By which protocol a router granted a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// RFC 6887.
    Pcp,
    /// RFC 6886.
    NatPmp,
}

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// No answer yet.
    Asking,
    /// Who sends to this address reaches us.
    Mapped(SocketAddrV4),
    /// The router did not answer, or does not want to.
    Refused,
    /// The router is behind a NAT itself: its mapping helps nobody, and was given back.
    DoubleNat,
    /// Given back.
    Released,
}

#[derive(Debug)]
enum State {
    Asking { tries: u32, again_at: Instant, external: Option<Ipv4Addr> },
    Mapped(Held),
    Ended(Status),
}

#[derive(Debug, Clone, Copy)]
struct Held {
    protocol: Protocol,
    external: SocketAddrV4,
    renew_at: Instant,
    expires_at: Instant,
}

/// One UDP port of ours at one router.
#[derive(Debug)]
pub struct PortMappingMachine {
    gateway: Gateway,
    port: u16,
    nonce: Nonce,
    state: State,
    outgoing: VecDeque<Vec<u8>>,
}

impl PortMappingMachine {
    /// Asks for `port`. The nonce is random and stays the same for as long as this node uses the port: PCP takes a renewal
    /// only from who knows it.
    pub fn new(now: Instant, gateway: Gateway, port: u16, nonce: [u8; 12]) -> Self {
        let state = State::Asking { tries: 0, again_at: now, external: None };
        let mut machine = Self { gateway, port, nonce, state, outgoing: VecDeque::new() };
        machine.handle_timeout(now);
        machine
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        match &self.state {
            State::Asking { .. } => Status::Asking,
            State::Mapped(held) => Status::Mapped(held.external),
            State::Ended(status) => *status,
        }
    }

    /// A datagram that came to the socket.
    pub fn handle_input(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        if from != self.router() {
            return;
        }
        if let Some(answer) = pcp::read(datagram, &self.nonce, self.port) {
            if let pcp::Answer::Mapped { external, lifetime } = answer {
                self.on_mapped(now, Protocol::Pcp, external, lifetime);
            }
        } else if let Some(answer) = nat_pmp::read(datagram, self.port) {
            match answer {
                nat_pmp::Answer::Address(ip) => self.on_address(ip),
                nat_pmp::Answer::Mapped { external_port, lifetime } => self.on_port(now, external_port, lifetime),
                nat_pmp::Answer::Other => {}
            }
        }
    }

    /// Asks again, renews, or gives up.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Asking { tries, again_at, external } if *again_at <= now => {
                if *tries == TRIES {
                    self.state = State::Ended(Status::Refused);
                    return;
                }
                *again_at = now + FIRST_WAIT * 2_u32.pow(*tries);
                *tries += 1;
                let external = *external;
                self.ask_pcp(None);
                self.outgoing.push_back(nat_pmp::external_address());
                if external.is_some() {
                    self.outgoing.push_back(nat_pmp::map(self.port, self.port, seconds(LIFETIME)));
                }
            }
            State::Mapped(held) if held.expires_at <= now => {
                self.state = State::Asking { tries: 0, again_at: now, external: None };
                self.handle_timeout(now);
            }
            State::Mapped(held) if held.renew_at <= now => {
                // Half of what is left, again and again (RFC 6887, section 11.2.1).
                held.renew_at = (now + (held.expires_at - now) / 2).max(now + RENEW_MIN);
                let held = *held;
                match held.protocol {
                    Protocol::Pcp => self.ask_pcp(Some(held.external)),
                    Protocol::NatPmp => {
                        self.outgoing.push_back(nat_pmp::external_address());
                        let wish = held.external.port();
                        self.outgoing.push_back(nat_pmp::map(self.port, wish, seconds(LIFETIME)));
                    }
                }
            }
            State::Asking { .. } | State::Mapped(_) | State::Ended(_) => {}
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.state {
            State::Asking { again_at, .. } => Some((*again_at, "no answer from the router")),
            State::Mapped(held) if held.renew_at < held.expires_at => Some((held.renew_at, "mapping to be renewed")),
            State::Mapped(held) => Some((held.expires_at, "mapping expired")),
            State::Ended(_) => None,
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        Some(Transmit { to: self.router(), bytes: self.outgoing.pop_front()? })
    }

    /// Gives the mapping back, best effort: nobody waits for an answer. What is left to send is one datagram.
    pub fn release(&mut self) {
        self.end(Status::Released);
    }

    fn end(&mut self, status: Status) {
        if let State::Mapped(Held { protocol, .. }) = self.state {
            self.outgoing.clear();
            self.outgoing.push_back(match protocol {
                Protocol::Pcp => pcp::map(self.gateway.interface, &self.nonce, self.port, None, 0),
                Protocol::NatPmp => nat_pmp::map(self.port, 0, 0),
            });
        }
        self.state = State::Ended(status);
    }

    fn router(&self) -> SocketAddr {
        (self.gateway.router, PORT).into()
    }

    fn ask_pcp(&mut self, wish: Option<SocketAddrV4>) {
        let wish = wish.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, self.port));
        let lifetime = seconds(LIFETIME);
        self.outgoing.push_back(pcp::map(self.gateway.interface, &self.nonce, self.port, Some(wish), lifetime));
    }

    /// NAT-PMP's address: the port is asked for as soon as it is known.
    fn on_address(&mut self, ip: Ipv4Addr) {
        match &mut self.state {
            State::Asking { external, .. } => {
                if external.replace(ip).is_none() {
                    self.outgoing.push_back(nat_pmp::map(self.port, self.port, seconds(LIFETIME)));
                }
            }
            State::Mapped(held) if held.protocol == Protocol::NatPmp => held.external.set_ip(ip),
            State::Mapped(_) | State::Ended(_) => {}
        }
    }

    /// NAT-PMP's port.
    fn on_port(&mut self, now: Instant, port: u16, lifetime: u32) {
        let ip = match &self.state {
            State::Asking { external, .. } => *external,
            State::Mapped(held) if held.protocol == Protocol::NatPmp => Some(*held.external.ip()),
            State::Mapped(_) | State::Ended(_) => None,
        };
        if let Some(ip) = ip {
            self.on_mapped(now, Protocol::NatPmp, SocketAddrV4::new(ip, port), lifetime);
        }
    }

    fn on_mapped(&mut self, now: Instant, protocol: Protocol, external: SocketAddrV4, lifetime: u32) {
        match &self.state {
            State::Ended(_) => return,
            // PCP's answer came, and NAT-PMP's as well: it is one mapping at the router, and one is enough to renew it.
            State::Mapped(held) if held.protocol != protocol => return,
            State::Asking { .. } | State::Mapped(_) => {}
        }
        let lifetime = Duration::from_secs(lifetime.into()).clamp(RENEW_MIN, LIFETIME_MAX);
        let (renew_at, expires_at) = (now + lifetime / 2, now + lifetime);
        self.state = State::Mapped(Held { protocol, external, renew_at, expires_at });
        if !is_global(*external.ip()) {
            self.end(Status::DoubleNat);
        }
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

/// What to send to a router to learn which protocols it speaks; nothing changes by it.
pub fn probes(gateway: Gateway) -> [Vec<u8>; 2] {
    [pcp::announce(gateway.interface), nat_pmp::external_address()]
}

/// What a router answered to a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// It speaks PCP.
    Pcp,
    /// It speaks NAT-PMP; its external address, if it told one.
    NatPmp(Option<Ipv4Addr>),
}

/// Reads an answer to [`probes`].
pub fn read_probe(datagram: &[u8]) -> Option<ProbeAnswer> {
    /// Section 7.4 of RFC 6887: "the version is not supported" is not support.
    const UNSUPPORTED_VERSION: pcp::Answer = pcp::Answer::Other { result: 1 };
    match (pcp::read(datagram, &[0; 12], 0), nat_pmp::read(datagram, 0)) {
        (Some(UNSUPPORTED_VERSION), _) => None,
        (Some(_), _) => Some(ProbeAnswer::Pcp),
        (None, Some(nat_pmp::Answer::Address(ip))) => Some(ProbeAnswer::NatPmp(Some(ip))),
        (None, Some(_)) => Some(ProbeAnswer::NatPmp(None)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests;
