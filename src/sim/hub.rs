//! Where sockets meet the router: bound addresses, their queues and wakers, and the task that keeps time.
//!
//! One driver task per network sleeps until the next arrival or TCP timeout and hands packets to their sockets. It is one
//! task and not one sleep per socket because only on arrival is it known which socket a packet belongs to. Every other
//! access goes through [`Hub::with`], which first does what is due, at the time it was due, so nobody sees a state that
//! depends on which task ran first.

use std::collections::BTreeMap;
use std::future::Future;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

use super::inboxes::{Inbox, Inboxes};
use super::lan::Boards;
use super::network::SimError;
use super::options::SimOptions;
use super::packet::{Content, Protocol};
use super::router::{Arrival, Router};
use super::run;
use super::tcp::{Tcp, TcpId};
use super::topology::HostId;
use super::trace::Fate;

/// Ports that are chosen from when port 0 is asked for (RFC 6335, section 6).
const EPHEMERAL_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// The state of one network behind its lock, and when its time began.
#[derive(Debug)]
pub(super) struct Hub {
    start: Instant,
    state: Mutex<State>,
}

/// Everything that changes.
#[derive(Debug)]
pub(super) struct State {
    pub(super) router: Router,
    /// The newest time that was seen.
    pub(super) now: Duration,
    pub(super) inboxes: Inboxes,
    /// What names stand for, in small letters.
    pub(super) names: BTreeMap<String, Vec<IpAddr>>,
    /// Routers that hosts know of.
    pub(super) routers: BTreeMap<HostId, Ipv4Addr>,
    /// What hosts post in their home networks.
    pub(super) lan: Boards,
    tcp: Tcp,
    next_port: u16,
    driver: Option<Waker>,
    /// When the driver wakes up by itself.
    armed: Option<Duration>,
    /// Woken after the lock is released.
    woken: Vec<Waker>,
}

impl Hub {
    pub(super) fn new(options: &SimOptions) -> Self {
        let state = State {
            router: Router::new(options),
            now: Duration::ZERO,
            inboxes: Inboxes::new(options.socket_queue),
            names: BTreeMap::new(),
            routers: BTreeMap::new(),
            lan: Boards::default(),
            tcp: Tcp::default(),
            next_port: *EPHEMERAL_PORTS.start(),
            driver: None,
            armed: None,
            woken: Vec::new(),
        };
        Self { start: Instant::now(), state: Mutex::new(state) }
    }

    /// Does what is due, acts, and wakes whom that concerns once the lock is released.
    ///
    /// Return wakers and inboxes from `act` instead of dropping them there: they may own a socket of this network.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        // Outside a runtime the clock is the machine's; the simulation has ended then, and stays as it was. What is dropped
        // with the runtime is no part of it either: the order of that depends on other runtimes of the process.
        let is_over = Handle::try_current().is_err() || run::is_over();
        state.router.set_over(is_over);
        if !is_over {
            state.now = state.now.max(self.start.elapsed());
            state.do_what_is_due();
        }
        let result = act(&mut state);
        state.rearm_driver();
        let woken = mem::take(&mut state.woken);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let driver = self.lock().driver.take();
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl State {
    /// Binds a UDP socket on a host, on one of its addresses or on all (`None`), with port 0 on a free port; returns the
    /// number of the socket and its port.
    pub(super) fn bind(&mut self, host: HostId, ip: Option<IpAddr>, port: u16) -> Result<(u64, u16), SimError> {
        let port = self.claim_port(Protocol::Udp, host, ip, port)?;
        let socket = self.inboxes.bind(host, ip, port)?;
        self.router.topology.set_up(host, true);
        Ok((socket, port))
    }

    /// Listens for TCP, as [`bind`](Self::bind).
    pub(super) fn listen(&mut self, host: HostId, ip: Option<IpAddr>, port: u16) -> Result<(TcpId, u16), SimError> {
        let port = self.claim_port(Protocol::Tcp, host, ip, port)?;
        self.router.topology.set_up(host, true);
        Ok((self.tcp.listen(host, ip, port), port))
    }

    /// Begins a TCP connection.
    pub(super) fn connect(&mut self, host: HostId, to: SocketAddr) -> Result<TcpId, SimError> {
        let ip = self.router.topology.source(host, to).ok_or(SimError::NoRoute(to))?;
        let port = self.claim_port(Protocol::Tcp, host, Some(ip), 0)?;
        self.router.topology.set_up(host, true);
        Ok(self.tcp.connect(self.now, &mut self.router, host, (SocketAddr::new(ip, port), to)))
    }

    /// Acts on the TCP connections, and wakes whom that concerns.
    pub(super) fn act_on_tcp<T>(&mut self, act: impl FnOnce(&mut Tcp, &mut Router) -> T) -> T {
        let result = act(&mut self.tcp, &mut self.router);
        self.woken.append(&mut self.tcp.woken);
        result
    }

    /// Frees all ports of a host and forgets its connections.
    pub(super) fn crash(&mut self, host: HostId) -> (Vec<Inbox>, Vec<Waker>) {
        self.router.topology.set_up(host, false);
        let mut wakers = self.tcp.crash(host);
        wakers.extend(self.lan.crash(host));
        (self.inboxes.unbind_all(host), wakers)
    }

    /// Somebody is in another network now: wakes who may hear others there.
    pub(super) fn on_moved(&mut self) {
        self.woken.extend(self.lan.readers());
    }

    fn claim_port(&mut self, protocol: Protocol, host: HostId, ip: Option<IpAddr>, port: u16) -> Result<u16, SimError> {
        let shown = ip.unwrap_or_else(|| self.router.topology.first_address(host));
        if let Some(ip) = ip.filter(|ip| !ip.is_loopback() && self.router.topology.interface(host, *ip).is_none()) {
            return Err(SimError::NotAnAddressOfTheHost(ip));
        }
        if protocol == Protocol::Tcp && self.tcp.is_full() {
            return Err(SimError::TooManySockets);
        }
        if port == 0 {
            return self.free_port(protocol, host, ip).ok_or(SimError::NoFreePort(shown));
        }
        let taken = self.is_bound(protocol, host, ip, port);
        if taken { Err(SimError::AddressInUse(SocketAddr::new(shown, port))) } else { Ok(port) }
    }

    fn free_port(&mut self, protocol: Protocol, host: HostId, ip: Option<IpAddr>) -> Option<u16> {
        for _ in EPHEMERAL_PORTS {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(*EPHEMERAL_PORTS.start());
            let is_used = protocol == Protocol::Tcp && self.tcp.is_used(host, port);
            if !is_used && !self.is_bound(protocol, host, ip, port) {
                return Some(port);
            }
        }
        None
    }

    fn is_bound(&self, protocol: Protocol, host: HostId, ip: Option<IpAddr>, port: u16) -> bool {
        match protocol {
            Protocol::Udp => self.inboxes.is_bound(host, ip, port),
            Protocol::Tcp => self.tcp.is_listening(host, ip, port),
        }
    }

    /// When something happens by itself.
    fn next_event(&self) -> Option<Duration> {
        self.router.next_arrival().into_iter().chain(self.tcp.next_timeout()).min()
    }

    fn do_what_is_due(&mut self) {
        while let Some(at) = self.next_event().filter(|at| *at <= self.now) {
            // Arrivals first: what arrives in time keeps a timeout from happening.
            if let Some(arrival) = self.router.pop_due(at) {
                let fate = self.deliver(&arrival);
                self.router.settle(&arrival, fate);
            } else {
                self.act_on_tcp(|tcp, router| tcp.on_timeouts(at, router));
            }
        }
    }

    fn deliver(&mut self, arrival: &Arrival) -> Fate {
        let (from, to) = (arrival.packet.from, arrival.packet.to);
        // It may have moved while the packet crossed its access link.
        let is_there =
            |host: &HostId| to.ip().is_loopback() || self.router.topology.interface(*host, to.ip()).is_some();
        let Some(host) = arrival.host.filter(is_there) else { return Fate::Unbound };
        match &arrival.packet.content {
            Content::Segment(segment) => {
                self.act_on_tcp(|tcp, router| tcp.on_packet(arrival.at, router, host, (from, to), segment))
            }
            Content::Datagram { .. } => {
                let (fate, reader) = self.inboxes.deliver(host, &arrival.packet);
                self.woken.extend(reader);
                fate
            }
        }
    }

    /// Something may happen before that which the driver sleeps for.
    fn rearm_driver(&mut self) {
        let Some(next) = self.next_event() else { return };
        if self.armed.is_none_or(|armed| next < armed) {
            self.armed = Some(next);
            self.woken.extend(self.driver.take());
        }
    }
}

/// The task that delivers packets on time. It ends with the network.
pub(super) struct Driver {
    hub: Weak<Hub>,
    sleep: Pin<Box<Sleep>>,
}

impl Driver {
    pub(super) fn new(hub: Weak<Hub>) -> Self {
        Self { hub, sleep: Box::pin(sleep_until(Instant::now())) }
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(hub) = self.hub.upgrade() else { return Poll::Ready(()) };
            let (next, _replaced) = hub.with(|state| {
                state.armed = state.next_event();
                (state.armed, state.driver.replace(context.waker().clone()))
            });
            let Some(next) = next else { return Poll::Pending };
            let deadline = hub.start + next;
            drop(hub);
            self.sleep.as_mut().reset(deadline);
            ready!(self.sleep.as_mut().poll(context));
        }
    }
}
