//! Where sockets meet the router: bound addresses, their queues and wakers, and the task that keeps time.
//!
//! One driver task per network sleeps until the next arrival and hands packets to their sockets. It is one task and not
//! one sleep per socket because only on arrival is it known which socket a packet belongs to. Every other access goes
//! through [`Hub::with`], which first delivers what is due, so nobody sees a state that depends on which task ran first.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::mem;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, Sleep, sleep_until};

use super::network::SimError;
use super::options::SimOptions;
use super::router::{Packet, Router};
use super::trace::Fate;

/// Sockets bound at once in one network. More: `bind` fails.
const MAX_SOCKETS: usize = 65_536;

/// Ports that `bind` chooses from when it is given port 0 (RFC 6335, section 6).
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
    sockets: BTreeMap<SocketAddr, Inbox>,
    socket_queue: usize,
    next_socket: u64,
    next_port: u16,
    driver: Option<Waker>,
    /// When the driver wakes up by itself.
    armed: Option<Duration>,
    /// Woken after the lock is released.
    woken: Vec<Waker>,
}

/// The receiving end of one bound address.
#[derive(Debug)]
pub(super) struct Inbox {
    socket: u64,
    pub(super) queue: VecDeque<Packet>,
    pub(super) reader: Option<Waker>,
}

impl Hub {
    pub(super) fn new(options: &SimOptions) -> Self {
        let state = State {
            router: Router::new(options),
            now: Duration::ZERO,
            sockets: BTreeMap::new(),
            socket_queue: options.socket_queue,
            next_socket: 0,
            next_port: *EPHEMERAL_PORTS.start(),
            driver: None,
            armed: None,
            woken: Vec::new(),
        };
        Self { start: Instant::now(), state: Mutex::new(state) }
    }

    /// Delivers what is due, acts, and wakes whom that concerns once the lock is released.
    ///
    /// Return wakers and inboxes from `act` instead of dropping them there: they may own a socket of this network.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        // Outside a runtime the clock is the machine's; the simulation has ended then, and stays as it was.
        if Handle::try_current().is_ok() {
            state.now = state.now.max(self.start.elapsed());
            state.deliver_due();
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
    /// Binds `address`, with port 0 to a free port, and returns the address and the number of the socket.
    pub(super) fn bind(&mut self, address: SocketAddr) -> Result<(SocketAddr, u64), SimError> {
        let (ip, port) = (address.ip(), address.port());
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(SimError::NotAHost(ip));
        }
        if self.sockets.len() >= MAX_SOCKETS {
            return Err(SimError::TooManySockets(MAX_SOCKETS));
        }
        let port = if port == 0 { self.free_port(ip).ok_or(SimError::NoFreePort(ip))? } else { port };
        let address = SocketAddr::new(ip, port);
        if self.sockets.contains_key(&address) {
            return Err(SimError::AddressInUse(address));
        }
        let socket = self.next_socket;
        self.next_socket += 1;
        self.sockets.insert(address, Inbox { socket, queue: VecDeque::new(), reader: None });
        Ok((address, socket))
    }

    /// The inbox of a socket, unless its host crashed.
    pub(super) fn inbox(&mut self, address: SocketAddr, socket: u64) -> Option<&mut Inbox> {
        self.sockets.get_mut(&address).filter(|inbox| inbox.socket == socket)
    }

    /// Frees the address of a socket, unless another socket has it by now.
    pub(super) fn unbind(&mut self, address: SocketAddr, socket: u64) -> Option<Inbox> {
        self.inbox(address, socket)?;
        self.sockets.remove(&address)
    }

    /// Frees all addresses of a host.
    pub(super) fn unbind_all(&mut self, host: IpAddr) -> Vec<Inbox> {
        let addresses: Vec<_> = self.sockets.keys().filter(|address| address.ip() == host).copied().collect();
        addresses.iter().filter_map(|address| self.sockets.remove(address)).collect()
    }

    fn free_port(&mut self, ip: IpAddr) -> Option<u16> {
        for _ in EPHEMERAL_PORTS {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(*EPHEMERAL_PORTS.start());
            if !self.sockets.contains_key(&SocketAddr::new(ip, port)) {
                return Some(port);
            }
        }
        None
    }

    fn deliver_due(&mut self) {
        while let Some(arrival) = self.router.pop_due(self.now) {
            let fate = match self.sockets.get_mut(&arrival.packet.to) {
                None => Fate::Unbound,
                Some(inbox) if inbox.queue.len() >= self.socket_queue => Fate::SocketFull,
                Some(inbox) => {
                    inbox.queue.push_back(arrival.packet.clone());
                    self.woken.extend(inbox.reader.take());
                    Fate::Delivered
                }
            };
            self.router.settle(&arrival, fate);
        }
    }

    /// A packet may arrive before the one that the driver sleeps for.
    fn rearm_driver(&mut self) {
        let Some(next) = self.router.next_arrival() else { return };
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
                state.armed = state.router.next_arrival();
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
