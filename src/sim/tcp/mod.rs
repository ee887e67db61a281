//! All simulated TCP connections and listeners of one network, pure: which segment belongs to which, and whose timer is
//! next. The hub drives it: [`Tcp::on_packet`] for what arrives, [`Tcp::on_timeouts`] at [`Tcp::next_timeout`].
//!
//! A connection belongs to the two addresses it was made between. When its host moves away from its address, what it sends
//! goes nowhere, and the other side gives up after a while, as in real life.

mod connection;
mod receiving;
mod segment;
mod sending;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;
use std::time::Duration;

use self::connection::Connection;
use self::segment::Kind;
pub(super) use self::segment::Segment;
pub(super) use self::stream::{SimListener, SimStream};
use super::packet::{Content, Packet};
use super::router::Router;
use super::topology::HostId;
use super::trace::Fate;

/// Connections that wait for `accept` or are being made, per listener. Full: new ones get no answer.
const BACKLOG: usize = 128;

/// Connections and listeners at once in one network. More: connecting and listening fail, those that come in get no answer.
const MAX_SOCKETS: usize = 16_384;

/// Names one connection or listener for ever.
pub(super) type TcpId = u64;

/// Everything that speaks TCP.
#[derive(Debug, Default)]
pub(super) struct Tcp {
    entries: BTreeMap<TcpId, Entry>,
    by_addresses: BTreeMap<(HostId, SocketAddr, SocketAddr), TcpId>,
    listeners: BTreeMap<TcpId, Listener>,
    deadlines: BTreeSet<(Duration, TcpId)>,
    next_id: TcpId,
    /// Whom the caller has to wake.
    pub(super) woken: Vec<Waker>,
}

#[derive(Debug)]
struct Entry {
    host: HostId,
    local: SocketAddr,
    remote: SocketAddr,
    /// Which listener it waits in.
    listener: Option<TcpId>,
    deadline: Option<Duration>,
    connection: Connection,
}

#[derive(Debug)]
struct Listener {
    host: HostId,
    /// `None`: all addresses of the host.
    ip: Option<IpAddr>,
    port: u16,
    being_made: BTreeSet<TcpId>,
    ready: VecDeque<TcpId>,
    acceptor: Option<Waker>,
}

impl Tcp {
    /// Whether somebody listens on a port of an address of a host, or of any (`None`).
    pub(super) fn is_listening(&self, host: HostId, ip: Option<IpAddr>, port: u16) -> bool {
        let overlaps = |other: Option<IpAddr>| other.is_none() || ip.is_none() || other == ip;
        let mut listeners = self.listeners.values();
        listeners.any(|bound| bound.host == host && bound.port == port && overlaps(bound.ip))
    }

    /// Whether a connection uses a port of a host.
    pub(super) fn is_used(&self, host: HostId, port: u16) -> bool {
        self.entries.values().any(|entry| entry.host == host && entry.local.port() == port)
    }

    /// The address of its host that a connection was made from.
    fn local_ip(&self, id: TcpId) -> Option<IpAddr> {
        self.entries.get(&id).map(|entry| entry.local.ip().to_canonical())
    }

    pub(super) fn is_full(&self) -> bool {
        self.entries.len() + self.listeners.len() >= MAX_SOCKETS
    }

    /// The caller has checked that the port is free.
    pub(super) fn listen(&mut self, host: HostId, ip: Option<IpAddr>, port: u16) -> TcpId {
        let id = self.new_id();
        let (being_made, ready) = (BTreeSet::new(), VecDeque::new());
        self.listeners.insert(id, Listener { host, ip, port, being_made, ready, acceptor: None });
        id
    }

    /// Begins a connection.
    pub(super) fn connect(
        &mut self,
        now: Duration,
        router: &mut Router,
        host: HostId,
        (local, remote): (SocketAddr, SocketAddr),
    ) -> TcpId {
        let id = self.insert(host, (local, remote), None, Connection::connect(now));
        self.flush(now, router, id);
        id
    }

    /// A connection that is ready, or leaves a waker. `None` also when the host crashed.
    fn accept(&mut self, listener: TcpId, waker: &Waker) -> (Option<(TcpId, SocketAddr)>, Option<Waker>) {
        let Some(found) = self.listeners.get_mut(&listener) else { return (None, None) };
        let Some(id) = found.ready.pop_front() else {
            return (None, found.acceptor.replace(waker.clone()));
        };
        let Some(entry) = self.entries.get_mut(&id) else { return (None, None) };
        entry.listener = None;
        (Some((id, entry.remote)), None)
    }

    /// Ends a listener; connections that nobody accepted are reset.
    fn unlisten(&mut self, now: Duration, router: &mut Router, id: TcpId) {
        let Some(listener) = self.listeners.remove(&id) else { return };
        self.woken.extend(listener.acceptor);
        for id in listener.ready.into_iter().chain(listener.being_made) {
            self.act(now, router, id, Connection::reset);
        }
    }

    /// Acts on a connection and sends what follows from that; `None` when its host crashed.
    fn act<T>(
        &mut self,
        now: Duration,
        router: &mut Router,
        id: TcpId,
        act: impl FnOnce(&mut Connection) -> T,
    ) -> Option<T> {
        let result = act(&mut self.entries.get_mut(&id)?.connection);
        self.flush(now, router, id);
        Some(result)
    }

    /// A segment arrived at a host.
    pub(super) fn on_packet(
        &mut self,
        now: Duration,
        router: &mut Router,
        host: HostId,
        (from, to): (SocketAddr, SocketAddr),
        segment: &Segment,
    ) -> Fate {
        if let Some(id) = self.by_addresses.get(&(host, to, from)).copied() {
            self.act(now, router, id, |connection| connection.on_segment(now, segment));
            return Fate::Delivered;
        }
        let listens = |bound: &Listener| bound.host == host && bound.port == to.port();
        let matches = |bound: &Listener| listens(bound) && bound.ip.is_none_or(|ip| ip == to.ip());
        let is_full = self.is_full();
        match self.listeners.iter_mut().find(|(_, bound)| matches(bound)) {
            Some((_, bound)) if segment.kind == Kind::Syn && bound.len() >= BACKLOG => Fate::SocketFull,
            Some(_) if segment.kind == Kind::Syn && is_full => Fate::SocketFull,
            Some((listener, _)) if segment.kind == Kind::Syn => {
                let listener = *listener;
                let id = self.insert(host, (to, from), Some(listener), Connection::accept(now, segment.sent));
                if let Some(bound) = self.listeners.get_mut(&listener) {
                    bound.being_made.insert(id);
                }
                self.flush(now, router, id);
                Fate::Delivered
            }
            _ => {
                // A host that is down says nothing; one that is up refuses.
                if segment.kind != Kind::Reset && router.topology.is_up(host) {
                    let content = Content::Segment(Segment::reset());
                    router.route(now, host, Packet { from: to, to: from, content });
                }
                Fate::Unbound
            }
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Duration> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// Everything that is due at `now`.
    pub(super) fn on_timeouts(&mut self, now: Duration, router: &mut Router) {
        while let Some((at, id)) = self.deadlines.first().copied() {
            if at > now {
                return;
            }
            self.deadlines.pop_first();
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.deadline = None;
            }
            self.act(now, router, id, |connection| connection.on_timeout(now));
        }
    }

    /// Forgets what a host had, without a word to anybody.
    pub(super) fn crash(&mut self, host: HostId) -> Vec<Waker> {
        let mut dropped = Vec::new();
        let (gone, kept) = std::mem::take(&mut self.listeners).into_iter().partition(|(_, bound)| bound.host == host);
        self.listeners = kept;
        let gone: BTreeMap<TcpId, Listener> = gone;
        dropped.extend(gone.into_values().filter_map(|listener| listener.acceptor));
        let ids: Vec<_> = self.entries.iter().filter(|(_, entry)| entry.host == host).map(|(id, _)| *id).collect();
        for entry in ids.into_iter().filter_map(|id| self.remove(id)) {
            dropped.extend(entry.connection.reader.into_iter().chain(entry.connection.writer));
        }
        dropped
    }

    /// Sends what is due, wakes who waits, and forgets a connection that is over.
    fn flush(&mut self, now: Duration, router: &mut Router, id: TcpId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        while let Some(segment) = entry.connection.poll_transmit(now) {
            let (from, to) = (entry.local, entry.remote);
            router.route(now, entry.host, Packet { from, to, content: Content::Segment(segment) });
        }
        if entry.connection.is_readable() {
            self.woken.extend(entry.connection.reader.take());
        }
        if entry.connection.is_writable() {
            self.woken.extend(entry.connection.writer.take());
        }
        let (is_open, listener) = (entry.connection.is_open(), entry.listener);
        if let Some(bound) = listener.and_then(|listener| self.listeners.get_mut(&listener)) {
            match is_open {
                Ok(false) => {}
                Ok(true) if bound.being_made.remove(&id) => {
                    bound.ready.push_back(id);
                    self.woken.extend(bound.acceptor.take());
                }
                Ok(true) => {}
                // It failed before anybody saw it.
                Err(_) => {
                    bound.being_made.remove(&id);
                    bound.ready.retain(|ready| *ready != id);
                    entry.connection.abandon(now);
                }
            }
        }
        if entry.connection.is_over(now) {
            self.remove(id);
            return;
        }
        let deadline = entry.connection.deadline();
        let old = std::mem::replace(&mut entry.deadline, deadline);
        if old != deadline {
            old.map(|at| self.deadlines.remove(&(at, id)));
            self.deadlines.extend(deadline.map(|at| (at, id)));
        }
    }

    fn insert(
        &mut self,
        host: HostId,
        (local, remote): (SocketAddr, SocketAddr),
        listener: Option<TcpId>,
        connection: Connection,
    ) -> TcpId {
        let id = self.new_id();
        self.by_addresses.insert((host, local, remote), id);
        self.entries.insert(id, Entry { host, local, remote, listener, deadline: None, connection });
        id
    }

    /// Its wakers were woken or belong to handles that are gone.
    fn remove(&mut self, id: TcpId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.by_addresses.remove(&(entry.host, entry.local, entry.remote));
        if let Some(at) = entry.deadline {
            self.deadlines.remove(&(at, id));
        }
        Some(entry)
    }

    fn new_id(&mut self) -> TcpId {
        self.next_id += 1;
        self.next_id
    }
}

impl Listener {
    fn len(&self) -> usize {
        self.being_made.len() + self.ready.len()
    }
}

#[cfg(test)]
mod tests;
