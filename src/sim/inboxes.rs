//! Bound UDP sockets and what waits in them. Pure but for the wakers, which it hands back to be woken or dropped.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::task::Waker;

use super::network::SimError;
use super::packet::Packet;
use super::topology::HostId;
use super::trace::Fate;

/// Sockets bound at once in one network. More: `bind` fails.
const MAX_SOCKETS: usize = 65_536;

/// Where a socket is bound; without an address it gets what comes to any of its host.
type Binding = (HostId, u16, Option<IpAddr>);

/// All bound sockets of a network.
#[derive(Debug)]
pub(super) struct Inboxes {
    /// Which socket is bound where.
    bound: BTreeMap<Binding, u64>,
    inboxes: BTreeMap<u64, Inbox>,
    queue: usize,
    next_socket: u64,
}

/// The receiving end of one socket.
#[derive(Debug)]
pub(super) struct Inbox {
    binding: Binding,
    pub(super) queue: VecDeque<Packet>,
    pub(super) reader: Option<Waker>,
}

impl Inboxes {
    /// Each socket holds up to `queue` datagrams.
    pub(super) fn new(queue: usize) -> Self {
        Self { bound: BTreeMap::new(), inboxes: BTreeMap::new(), queue, next_socket: 0 }
    }

    /// The caller has checked that the port is free.
    pub(super) fn bind(&mut self, host: HostId, ip: Option<IpAddr>, port: u16) -> Result<u64, SimError> {
        if self.inboxes.len() >= MAX_SOCKETS {
            return Err(SimError::TooManySockets);
        }
        let (socket, binding) = (self.next_socket, (host, port, ip));
        self.next_socket += 1;
        self.bound.insert(binding, socket);
        self.inboxes.insert(socket, Inbox { binding, queue: VecDeque::new(), reader: None });
        Ok(socket)
    }

    /// Whether a port is taken on this address, or on any.
    pub(super) fn is_bound(&self, host: HostId, ip: Option<IpAddr>, port: u16) -> bool {
        let mut bound = self.bound.range((host, port, None)..).take_while(|((h, p, _), _)| (*h, *p) == (host, port));
        bound.any(|((_, _, other), _)| other.is_none() || ip.is_none() || *other == ip)
    }

    /// The inbox of a socket, unless its host crashed.
    pub(super) fn get(&mut self, socket: u64) -> Option<&mut Inbox> {
        self.inboxes.get_mut(&socket)
    }

    /// Frees the port of a socket.
    pub(super) fn unbind(&mut self, socket: u64) -> Option<Inbox> {
        let inbox = self.inboxes.remove(&socket)?;
        self.bound.remove(&inbox.binding);
        Some(inbox)
    }

    /// Frees all ports of a host.
    pub(super) fn unbind_all(&mut self, host: HostId) -> Vec<Inbox> {
        let of_host = self.bound.iter().filter(|((bound, _, _), _)| *bound == host);
        let sockets: Vec<_> = of_host.map(|(_, socket)| *socket).collect();
        sockets.into_iter().filter_map(|socket| self.unbind(socket)).collect()
    }

    /// Puts a packet that reached a host into the socket it is for; returns who waits for it.
    pub(super) fn deliver(&mut self, host: HostId, packet: &Packet) -> (Fate, Option<Waker>) {
        let (ip, port) = (packet.to.ip(), packet.to.port());
        let socket = self.bound.get(&(host, port, Some(ip))).or_else(|| self.bound.get(&(host, port, None)));
        match socket.and_then(|socket| self.inboxes.get_mut(socket)) {
            None => (Fate::Unbound, None),
            Some(inbox) if inbox.queue.len() >= self.queue => (Fate::SocketFull, None),
            Some(inbox) => {
                inbox.queue.push_back(packet.clone());
                (Fate::Delivered, inbox.reader.take())
            }
        }
    }
}
