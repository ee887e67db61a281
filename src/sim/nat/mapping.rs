//! The table of a NAT: which public port stands for which inside socket, and who may send to it. Pure: time and
//! randomness are handed in.
//!
//! Expired entries are skipped when they are met and swept out when a new mapping needs room, so no timer is needed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::options::{Behaviour, NatOptions, PortAllocation};
use crate::sim::packet::Protocol;

/// RFC 5382, section 5: an established connection lives for at least 2 hours and 4 minutes.
const TCP_TIMEOUT: Duration = Duration::from_secs(7440);

/// Remotes that may send to one mapping. More: the one whose leave ends first loses it.
const MAX_ALLOWED: usize = 1024;

/// RFC 4787, section 4.2.2: the well-known ports are not given away.
const PORTS: RangeInclusive<u16> = 1024..=65_535;

/// Random ports that are tried before the search goes on in order.
const RANDOM_TRIES: usize = 64;

/// An inside socket, and what the mapping behaviour tells apart of its remote.
type Inside = (Protocol, SocketAddr, SocketAddr);

/// All mappings of one NAT.
#[derive(Debug)]
pub(super) struct MappingTable {
    ports: BTreeMap<Inside, u16>,
    mappings: BTreeMap<(Protocol, u16), Mapping>,
    last_port: u16,
}

#[derive(Debug)]
struct Mapping {
    inside: Inside,
    expires: Duration,
    /// Remotes that may send here, blanked by the filtering behaviour, and until when.
    allowed: BTreeMap<SocketAddr, Duration>,
}

/// What of the options counts for a protocol.
struct Rules {
    mapping: Behaviour,
    filtering: Behaviour,
    timeout: Duration,
}

impl Rules {
    fn of(options: &NatOptions, protocol: Protocol) -> Self {
        let strict = Behaviour::AddressAndPortDependent;
        match protocol {
            Protocol::Udp => {
                Self { mapping: options.mapping, filtering: options.filtering, timeout: options.udp_timeout }
            }
            Protocol::Tcp => Self { mapping: strict, filtering: strict, timeout: TCP_TIMEOUT },
        }
    }
}

impl MappingTable {
    pub(super) fn new() -> Self {
        Self { ports: BTreeMap::new(), mappings: BTreeMap::new(), last_port: *PORTS.end() }
    }

    /// The public port for a packet from `inside` to `remote`; `None` when the table is full.
    pub(super) fn outbound(
        &mut self,
        options: &NatOptions,
        rng: &mut ChaCha8Rng,
        now: Duration,
        (protocol, inside, remote): Inside,
    ) -> Option<u16> {
        let rules = Rules::of(options, protocol);
        let key = (protocol, inside, rules.mapping.key(remote));
        let known = self.ports.get(&key).copied();
        let live = known.filter(|port| self.mappings.get(&(protocol, *port)).is_some_and(|m| m.expires > now));
        let port = match live {
            Some(port) => port,
            None => self.add(options, rng, now, key)?,
        };
        let mapping = self.mappings.get_mut(&(protocol, port))?;
        mapping.expires = now + rules.timeout;
        mapping.allow(rules.filtering.key(remote), mapping.expires);
        Some(port)
    }

    /// The inside socket that a packet from `remote` to the public `port` is for; `None` when it may not pass.
    pub(super) fn inbound(
        &mut self,
        options: &NatOptions,
        now: Duration,
        (protocol, remote): (Protocol, SocketAddr),
        port: u16,
    ) -> Option<SocketAddr> {
        let rules = Rules::of(options, protocol);
        let mapping = self.mappings.get_mut(&(protocol, port)).filter(|mapping| mapping.expires > now)?;
        let remote = rules.filtering.key(remote);
        mapping.allowed.get(&remote).filter(|until| **until > now)?;
        // A TCP connection is alive whoever of the two speaks.
        if options.refresh_by_inbound || protocol == Protocol::Tcp {
            mapping.expires = now + rules.timeout;
            mapping.allow(remote, mapping.expires);
        }
        Some(mapping.inside.1)
    }

    /// Mappings that live.
    pub(super) fn len(&self, now: Duration) -> usize {
        self.mappings.values().filter(|mapping| mapping.expires > now).count()
    }

    fn add(&mut self, options: &NatOptions, rng: &mut ChaCha8Rng, now: Duration, inside: Inside) -> Option<u16> {
        self.sweep(now);
        if self.mappings.len() >= options.max_mappings {
            return None;
        }
        let port = self.free_port(options.ports, rng, inside)?;
        self.last_port = port;
        self.ports.insert(inside, port);
        self.mappings.insert((inside.0, port), Mapping { inside, expires: now, allowed: BTreeMap::new() });
        Some(port)
    }

    fn sweep(&mut self, now: Duration) {
        self.mappings.retain(|_, mapping| mapping.expires > now);
        let mappings = &self.mappings;
        self.ports.retain(|inside, port| mappings.contains_key(&(inside.0, *port)));
    }

    fn free_port(&self, ports: PortAllocation, rng: &mut ChaCha8Rng, inside: Inside) -> Option<u16> {
        let is_free = |port: &u16| PORTS.contains(port) && !self.mappings.contains_key(&(inside.0, *port));
        let in_order = || (self.last_port..=*PORTS.end()).skip(1).chain(PORTS).find(is_free);
        let mut at_random = || (0..RANDOM_TRIES).map(|_| rng.random_range(PORTS)).find(is_free);
        match ports {
            PortAllocation::Preserve => Some(inside.1.port()).filter(is_free).or_else(at_random),
            PortAllocation::Random => at_random(),
            PortAllocation::Sequential => None,
        }
        .or_else(in_order)
    }
}

impl Mapping {
    fn allow(&mut self, remote: SocketAddr, until: Duration) {
        if self.allowed.len() >= MAX_ALLOWED && !self.allowed.contains_key(&remote) {
            let first = self.allowed.iter().min_by_key(|(_, until)| **until).map(|(remote, _)| *remote);
            first.and_then(|first| self.allowed.remove(&first));
        }
        self.allowed.insert(remote, until);
    }
}
