//! A TURN server (RFC 8656) as a pure machine: UDP relayed for clients that come by UDP, TCP or TLS.
//!
//! Drive it with [`TurnServer::on_frame`] for what clients send, [`on_peer_datagram`](TurnServer::on_peer_datagram) for what
//! arrives at relayed addresses, [`on_stream_closed`](TurnServer::on_stream_closed) and
//! [`on_timeout`](TurnServer::on_timeout); after each, unbind what [`take_freed`](TurnServer::take_freed) names. Ports are
//! bound through [`Ports`].
//!
//! Relayed addresses of this server reach each other without leaving it, whatever the peer policy says of the server's own
//! address: two clients behind the strictest NATs meet that way.
//!
//! A client that asks for both families gets a relayed address of each, or of the one that this machine has (RFC 8656,
//! section 7.2). They are one allocation: refreshed together, deleted together or one at a time.
//!
//! Not here: RESERVATION-TOKEN, DONT-FRAGMENT, ICMP, mobility, TCP allocations. Clients that insist are refused, with 508 for a
//! reservation and 420 for the rest.

mod allocation;
pub(super) mod auth;
mod requests;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use rand::Rng;
use rand_chacha::ChaCha20Rng;

use self::allocation::Allocation;
use self::auth::{Credentials, Nonces};
use super::limits::RelayLimits;
use super::peers::PeerPolicy;
use super::quota::{Bucket, NetworkTally, Tally, cost_of};
use crate::nat::framing::{is_channel_data, parse_channel_data, put_channel_data};
use crate::nat::stun::relayed::{payload, put_data};
use crate::nat::stun::{AddressFamily, Class, Scanned, TransactionId};

/// How a client reaches us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Via {
    /// The number of our UDP socket.
    Datagrams(usize),
    /// The number of its stream, never used twice.
    Stream(u64),
}

/// A client's end of the 5-tuple.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) via: Via,
    pub(super) address: SocketAddr,
}

/// An allocation's number, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AllocationId(pub(super) u64);

/// A port of an allocation, which has one per family at most.
pub(super) type PortId = (AllocationId, AddressFamily);

/// Binds the UDP ports of allocations.
pub(super) trait Ports {
    /// Binds the port of an allocation on this address, with an even number if asked; `None` when there is none.
    fn bind(&mut self, allocation: AllocationId, ip: IpAddr, even: bool) -> Option<SocketAddr>;
}

/// Both clocks: the monotonic, and the wall's in µs since the Unix epoch, which only expiry times of credentials need.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) now: Instant,
    pub(super) wall_us: u64,
}

/// What to do with a frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<'a> {
    /// Nothing; why.
    Drop(&'static str),
    /// Send what is in the buffer to the client.
    Answer {
        /// Whether it says no.
        error: bool,
    },
    /// Send this from a relayed address.
    ToPeer { from: PortId, peer: SocketAddr, payload: &'a [u8] },
    /// Send what is in the buffer to another client, so many payload bytes: its relayed address was the peer.
    ToClient { client: Client, bytes: usize },
}

/// What the server is told once.
#[derive(Debug)]
pub(super) struct TurnConfig {
    pub(super) limits: RelayLimits,
    pub(super) policy: PeerPolicy,
    /// Addresses to bind relayed ports on, one per family.
    pub(super) relay_ips: Vec<IpAddr>,
    /// What to tell clients instead, one per family.
    pub(super) public_ips: Vec<IpAddr>,
}

/// The machine.
#[derive(Debug)]
pub(super) struct TurnServer {
    config: TurnConfig,
    credentials: Credentials,
    nonces: Nonces,
    rng: ChaCha20Rng,
    clients: HashMap<Client, AllocationId>,
    allocations: HashMap<AllocationId, Allocation>,
    by_relayed: HashMap<SocketAddr, AllocationId>,
    by_name: Tally<String>,
    by_network: NetworkTally,
    next_allocation: u64,
    bytes: Bucket,
    freed: Vec<PortId>,
    /// No allocation ends before.
    next_check: Option<Instant>,
}

impl TurnServer {
    pub(super) fn new(config: TurnConfig, secret: &[u8], rng: ChaCha20Rng, now: Instant) -> Self {
        Self {
            bytes: Bucket::new(config.limits.bytes, now),
            config,
            credentials: Credentials::new(secret),
            nonces: Nonces::new(secret, now),
            rng,
            clients: HashMap::new(),
            allocations: HashMap::new(),
            by_relayed: HashMap::new(),
            by_name: Tally::default(),
            by_network: NetworkTally::default(),
            next_allocation: 0,
            freed: Vec::new(),
            next_check: None,
        }
    }

    /// Allocations there are.
    pub(super) fn allocations(&self) -> usize {
        self.allocations.len()
    }

    /// A datagram or a frame of a stream came from a client. Answers are written into `out`.
    pub(super) fn on_frame<'a>(
        &mut self,
        client: Client,
        frame: &'a [u8],
        times: Times,
        ports: &mut dyn Ports,
        out: &mut Vec<u8>,
    ) -> Action<'a> {
        out.clear();
        if is_channel_data(frame) {
            return self.on_channel_data(client, frame, times.now, out);
        }
        let Ok(scanned) = Scanned::scan(frame) else { return Action::Drop("malformed") };
        match scanned.class() {
            Class::Request => self.on_request(client, frame, &scanned, times, ports, out),
            Class::Indication => {
                let Some((peer, range)) = payload(&scanned) else { return Action::Drop("malformed") };
                let Some(&id) = self.clients.get(&client) else { return Action::Drop("no allocation") };
                let permitted = self.allocations.get(&id).is_some_and(|of| of.permits(peer.ip(), times.now));
                match permitted {
                    true => self.relay(id, peer, &frame[range], times.now, out),
                    false => Action::Drop("no permission"),
                }
            }
            Class::Success | Class::Error => Action::Drop("malformed"),
        }
    }

    /// A datagram arrived at a relayed address. Returns to whom to send what is in `out`.
    pub(super) fn on_peer_datagram(
        &mut self,
        id: AllocationId,
        from: SocketAddr,
        payload: &[u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Option<Client> {
        let allocation = self.allocations.get_mut(&id).filter(|allocation| allocation.until > now)?;
        let permitted = allocation.permits(from.ip(), now);
        let bytes = cost_of(payload);
        if !permitted || !allocation.bytes.take(bytes, now) || !self.bytes.take(bytes, now) {
            return None;
        }
        let over_stream = matches!(allocation.client.via, Via::Stream(_));
        let put = match allocation.channel_of(from, now) {
            Some(channel) => put_channel_data(channel, payload, over_stream, out),
            // Nobody compares the ids of indications.
            None => put_data(TransactionId::from_random(self.rng.random()), from, payload, out),
        };
        put.then_some(allocation.client)
    }

    /// A client's stream is gone, and its allocation with it (RFC 8656, section 3.1).
    pub(super) fn on_stream_closed(&mut self, client: Client) {
        if let Some(id) = self.clients.get(&client) {
            self.free(*id);
        }
    }

    /// Ends what was not refreshed.
    pub(super) fn on_timeout(&mut self, now: Instant) {
        if self.next_check.is_none_or(|check| now < check) {
            return;
        }
        let over = self.allocations.iter().filter(|(_, allocation)| allocation.until <= now);
        let mut over = over.map(|(id, _)| *id).collect::<Vec<_>>();
        // In an order that does not change from run to run.
        over.sort_unstable();
        over.into_iter().for_each(|id| self.free(id));
        self.next_check = self.allocations.values().map(|allocation| allocation.until).min();
    }

    /// When to call [`on_timeout`](Self::on_timeout), and why.
    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.next_check.map(|at| (at, "allocation"))
    }

    /// Ports that are free again.
    pub(super) fn take_freed(&mut self) -> Vec<PortId> {
        std::mem::take(&mut self.freed)
    }

    fn on_channel_data<'a>(&mut self, client: Client, frame: &'a [u8], now: Instant, out: &mut Vec<u8>) -> Action<'a> {
        let Some((channel, range)) = parse_channel_data(frame) else { return Action::Drop("malformed") };
        let Some(&id) = self.clients.get(&client) else { return Action::Drop("no allocation") };
        let peer = self.allocations.get(&id).and_then(|allocation| allocation.peer_of(channel, now));
        match peer {
            Some(peer) => self.relay(id, peer, &frame[range], now, out),
            None => Action::Drop("no channel"),
        }
    }

    fn relay<'a>(
        &mut self,
        id: AllocationId,
        peer: SocketAddr,
        payload: &'a [u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Action<'a> {
        let Some(allocation) = self.allocations.get_mut(&id).filter(|of| of.until > now) else {
            return Action::Drop("no allocation");
        };
        let bytes = cost_of(payload);
        if !allocation.bytes.take(bytes, now) || !self.bytes.take(bytes, now) {
            return Action::Drop("over quota");
        }
        let family = AddressFamily::of(&peer);
        let Some(from) = allocation.relayed(family) else { return Action::Drop("no address of that family") };
        if let Some(&neighbour) = self.by_relayed.get(&peer) {
            return match self.on_peer_datagram(neighbour, from, payload, now, out) {
                Some(client) => Action::ToClient { client, bytes: payload.len() },
                None => Action::Drop("no permission"),
            };
        }
        // Own addresses are permitted for the sake of neighbours only.
        if self.config.policy.allows(peer.ip()) {
            Action::ToPeer { from: (id, family), peer, payload }
        } else {
            Action::Drop("denied address")
        }
    }

    fn free(&mut self, id: AllocationId) {
        let Some(allocation) = self.allocations.remove(&id) else { return };
        self.clients.remove(&allocation.client);
        for relayed in allocation.relayed {
            self.by_relayed.remove(&relayed);
            self.freed.push((id, AddressFamily::of(&relayed)));
        }
        self.by_name.remove(&allocation.name);
        self.by_network.remove(allocation.client.address.ip());
    }

    /// Ends one of the two addresses of an allocation.
    fn free_one(&mut self, id: AllocationId, family: AddressFamily) {
        let Some(allocation) = self.allocations.get_mut(&id) else { return };
        for relayed in allocation.relayed.extract_if(.., |relayed| AddressFamily::of(relayed) == family) {
            self.by_relayed.remove(&relayed);
            self.freed.push((id, family));
        }
    }
}

#[cfg(test)]
mod tests;
