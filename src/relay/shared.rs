//! What the tasks of a relay share: the machines behind their locks, and where their outputs go.
//!
//! No lock is held across an await. A task that acted on a machine delivers the machine's outputs before it lets go of
//! the lock, so that frames reach a session in the order in which they were decided.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use tokio::sync::mpsc::Sender;
use tokio::sync::{Notify, watch};

use super::counters::{Counters, RelaySnapshot};
use super::flows::FlowPath;
use super::options::ExternalServer;
use super::ports::TurnState;
use super::quota::{AddressBuckets, NetworkTally};
use super::sessions::{Forwarded, NoRoom, Output, Rendezvous, SessionId};
use super::stun::Origins;
use super::turn::auth::Credentials;
use super::turn::{Client, Via};
use crate::clock::Clock;
use crate::ids::PeerId;
use crate::limits::TURN_CREDENTIAL_LIFETIME;
use crate::nat::stun::{Method, Scanned};
use crate::net::{DatagramSocket, HostNetwork};
use crate::rendezvous::address::HostPort;
use crate::rendezvous::forward::{parse_forward, put_forward};
use crate::rendezvous::record::RendezvousRecord;
use crate::rendezvous::wire::{NodeFrame, RelayFrame, TurnServer, Welcome};

/// A session's way out, and what its TURN credentials are called.
#[derive(Debug)]
struct Outlet {
    frames: Sender<RelayFrame>,
    name: String,
}

/// The rendezvous machine and the ways out of its sessions.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) machine: Rendezvous,
    outlets: HashMap<SessionId, Outlet>,
    rng: ChaCha20Rng,
}

/// How many streams there are, altogether and per address.
#[derive(Debug, Default)]
pub(super) struct Streams {
    count: usize,
    by_network: NetworkTally,
    pub(super) next: u64,
}

/// What the tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) network: Arc<dyn HostNetwork>,
    pub(super) sockets: Vec<Arc<dyn DatagramSocket>>,
    pub(super) origins: Origins,
    pub(super) sessions: Mutex<Sessions>,
    pub(super) turn: Option<Mutex<TurnState>>,
    pub(super) streams: Mutex<Streams>,
    pub(super) stun_buckets: Mutex<AddressBuckets>,
    pub(super) credentials: Option<Credentials>,
    pub(super) turn_servers: Vec<ExternalServer>,
    pub(super) stun_servers: Vec<HostPort>,
    pub(super) datagrams: Vec<SocketAddr>,
    pub(super) limits: super::limits::RelayLimits,
    pub(super) counters: Counters,
    pub(super) clock: Clock,
    /// A machine's next timeout may have come nearer.
    pub(super) wake: Notify,
    pub(super) stopping: watch::Sender<bool>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The runtime's clock, which a simulation may have stopped.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Sessions {
    pub(super) fn new(machine: Rendezvous, rng: ChaCha20Rng) -> Self {
        Self { machine, outlets: HashMap::new(), rng }
    }

    /// Lets the writers of all sessions end when they have written what they have.
    pub(super) fn close_all(&mut self) {
        self.outlets.clear();
    }
}

impl Shared {
    pub(super) fn snapshot(&self) -> RelaySnapshot {
        let (sessions, flows, records) = {
            let machine = &lock(&self.sessions).machine;
            (machine.sessions(), machine.flows(), machine.records() as u64)
        };
        let allocations = self.turn.as_ref().map_or(0, |turn| lock(turn).machine.allocations());
        let (sessions, flows, allocations) = (sessions as u64, flows as u64, allocations as u64);
        RelaySnapshot { sessions, flows, allocations, records, ..self.counters.snapshot() }
    }

    /// A node showed its key: it is welcomed.
    pub(super) fn on_connected(
        &self,
        peer: PeerId,
        from: SocketAddr,
        frames: Sender<RelayFrame>,
    ) -> Result<SessionId, NoRoom> {
        let mut sessions = lock(&self.sessions);
        let id = sessions.machine.on_connected(peer, from.ip(), now())?;
        let name = format!("{:016x}", sessions.rng.random::<u64>());
        let turn = self.issue(&name);
        let (datagrams, stun) = (self.datagrams.clone(), self.stun_servers.clone());
        // The queue is new: there is room.
        let _ = frames.try_send(RelayFrame::Welcome(Box::new(Welcome { observed: from, datagrams, turn, stun })));
        sessions.outlets.insert(id, Outlet { frames, name });
        self.deliver(&mut sessions);
        self.counters.accepted.add(1);
        Ok(id)
    }

    pub(super) fn on_session_closed(&self, id: SessionId) {
        let mut sessions = lock(&self.sessions);
        sessions.outlets.remove(&id);
        sessions.machine.on_closed(id);
        self.deliver(&mut sessions);
    }

    pub(super) fn on_node_frame(&self, id: SessionId, frame: NodeFrame) {
        self.counters.frames.add(1);
        let record = match &frame {
            NodeFrame::Publish { record } => Some(record.clone()),
            _ => None,
        };
        let mut taken = {
            let mut sessions = lock(&self.sessions);
            let taken = sessions.machine.on_frame(id, frame, now());
            self.deliver(&mut sessions);
            taken
        };
        if let Some(record) = record.filter(|_| taken) {
            // Verified before the lock is taken again, which every forwarded datagram waits for.
            let record = RendezvousRecord::decode(&record);
            let publish = |record| lock(&self.sessions).machine.on_record(id, &record, now(), self.clock.now_us());
            taken = record.is_ok_and(publish);
        }
        if !taken {
            self.counters.refused.add(1);
        }
    }

    /// Takes the outputs of the rendezvous machine to the sessions.
    pub(super) fn deliver(&self, sessions: &mut Sessions) {
        while let Some(output) = sessions.machine.poll_output() {
            let (id, frame) = match output {
                Output::Frame(id, frame) => (id, frame),
                Output::Credentials(id) => {
                    let Some(outlet) = sessions.outlets.get(&id) else { continue };
                    (id, RelayFrame::Credentials { turn: self.issue(&outlet.name) })
                }
                Output::Close(id, why) => {
                    tracing::debug!(session = id.0, why, "session closed");
                    sessions.outlets.remove(&id);
                    continue;
                }
            };
            let taken = sessions.outlets.get(&id).map(|outlet| outlet.frames.try_send(frame).is_ok());
            if taken == Some(false) {
                self.counters.slow.add(1);
                sessions.outlets.remove(&id);
                sessions.machine.on_closed(id);
            }
        }
        self.wake.notify_one();
    }

    fn issue(&self, name: &str) -> Vec<TurnServer> {
        let Some(credentials) = &self.credentials else { return Vec::new() };
        let (username, password) = credentials.issue(name, self.clock.now_us());
        let servers = self.turn_servers.iter().map(|ExternalServer { transport, server, pin }| TurnServer {
            transport: *transport,
            server: server.clone(),
            pin: *pin,
            username: username.clone(),
            password: password.to_string(),
            lifetime_s: u32::try_from(TURN_CREDENTIAL_LIFETIME.as_secs()).unwrap_or(u32::MAX),
        });
        servers.collect()
    }

    /// Looks at the first byte of a datagram and hands it to whom it is for. `out` is a buffer to reuse.
    pub(super) fn on_datagram(self: &Arc<Self>, at: usize, from: SocketAddr, datagram: &[u8], out: &mut Vec<u8>) {
        if let Some((flow, payload)) = parse_forward(datagram) {
            return self.forward(FlowPath { socket: at, address: from }, flow, payload, out);
        }
        let client = Client { via: Via::Datagrams(at), address: from };
        match datagram.first() {
            Some(0x00..=0x03 | 0x40..=0x7F) => self.on_stun_or_turn(client, datagram, out),
            _ => self.counters.malformed.add(1),
        }
    }

    /// STUN, TURN or ChannelData, from a datagram or a stream.
    pub(super) fn on_stun_or_turn(self: &Arc<Self>, client: Client, frame: &[u8], out: &mut Vec<u8>) {
        // Not a request: ChannelData, or an indication, which has its own quota.
        let Ok(request) = Scanned::scan(frame) else { return self.turn_frame(client, frame, out) };
        if request.class() == crate::nat::stun::Class::Request
            && !lock(&self.stun_buckets).take(client.address.ip(), now())
        {
            return self.counters.refused.add(1);
        }
        if request.method() != Method::Binding {
            return self.turn_frame(client, frame, out);
        }
        if request.class() != crate::nat::stun::Class::Request {
            return;
        }
        let Via::Datagrams(at) = client.via else {
            // A stream's other end is no address of ours to tell.
            let answer = Origins::new(Vec::new()).answer(0, client.address, &request);
            return answer.into_iter().for_each(|(_, bytes)| self.send_to_client(client, &bytes));
        };
        if let Some((socket, bytes)) = self.origins.answer(at, client.address, &request) {
            self.counters.stun.add(1);
            self.send(socket, client.address, &bytes);
        }
    }

    fn forward(&self, path: FlowPath, flow: u64, payload: &[u8], out: &mut Vec<u8>) {
        // A forged source: were it learnt, we would talk to ourselves as fast as we can.
        if self.sockets.iter().any(|socket| socket.local_address() == path.address) {
            return self.counters.forward_dropped.add(1);
        }
        let mut released = Vec::new();
        let forwarded = lock(&self.sessions).machine.on_datagram(path, flow, payload, now(), &mut released);
        let mut send = |path: FlowPath, flow, payload: &[u8]| {
            out.clear();
            put_forward(out, flow, payload);
            self.counters.forwarded.add(1);
            self.counters.forwarded_bytes.add(payload.len() as u64);
            self.send(path.socket, path.address, out);
        };
        released.iter().for_each(|forward| send(forward.path, forward.flow, &forward.payload));
        match forwarded {
            Forwarded::Onward(forward) => send(forward.path, forward.flow, forward.payload),
            Forwarded::Kept => {}
            Forwarded::Dropped(why) => {
                tracing::trace!(why, "forwarded datagram dropped");
                self.counters.forward_dropped.add(1);
            }
        }
    }

    /// Sends a datagram; one that does not fit the socket's buffer is lost, as on any network.
    pub(super) fn send(&self, socket: usize, to: SocketAddr, datagram: &[u8]) {
        if let Some(socket) = self.sockets.get(socket)
            && let Err(error) = socket.try_send(to, datagram)
        {
            tracing::trace!(%error, "datagram not sent");
        }
    }

    /// Counts a stream in; false when there are too many.
    pub(super) fn open_stream(&self, from: SocketAddr) -> Option<u64> {
        let mut streams = lock(&self.streams);
        let room = streams.by_network.has_room(from.ip(), self.limits.streams_per_address);
        if streams.count >= self.limits.streams || !room {
            return None;
        }
        streams.count += 1;
        streams.by_network.add(from.ip());
        streams.next += 1;
        Some(streams.next)
    }

    /// Counts it out.
    pub(super) fn close_stream(&self, from: SocketAddr) {
        let mut streams = lock(&self.streams);
        streams.count = streams.count.saturating_sub(1);
        streams.by_network.remove(from.ip());
    }

    /// The next moment at which a machine wants to be woken, and why.
    pub(super) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let sessions = lock(&self.sessions).machine.poll_timeout();
        let turn = self.turn.as_ref().and_then(|turn| lock(turn).machine.poll_timeout());
        sessions.into_iter().chain(turn).min()
    }

    pub(super) fn on_timeout(&self) {
        let mut sessions = lock(&self.sessions);
        sessions.machine.on_timeout(now());
        self.deliver(&mut sessions);
        drop(sessions);
        if let Some(turn) = &self.turn {
            let mut turn = lock(turn);
            turn.machine.on_timeout(now());
            turn.free();
        }
    }
}
