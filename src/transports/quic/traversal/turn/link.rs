//! One allocation as the socket and the checkers see it: a machine behind a lock, and who needs which of its peers.
//!
//! The driver makes a [`Link`] and [steps](Link::step) it whenever it was woken or something is due. Checkers take a
//! [`Lease`] on each peer that they want to reach. What is sent and what comes goes through [`TurnLink`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

use crate::limits::TURN_MAX_PEERS;
use crate::nat::allocation::{Allocation, TurnEvent, TurnFailure, TurnInput};
use crate::nat::path::{Path, Via};
use crate::nat::stun::ErrorCode;
use crate::transport::PathKind;
use crate::transports::quic::paths::{Received, TurnLink};
use crate::transports::quic::traversal::{is_private, lock};

/// How long a peer that nobody needs keeps its permission: a connection takes over what its meeting found.
const PEER_LINGERS: Duration = Duration::from_secs(60);
/// A machine that tries again by itself within this time is left to it.
const RETRY_SOON: Duration = Duration::from_secs(2);

/// An allocation that is being made, or is there. Shared by all peers.
#[derive(Debug)]
pub(in crate::transports::quic::traversal) struct Link {
    pub(super) id: u8,
    pub(super) kind: PathKind,
    way: Way,
    /// Told when the machine has something to send, or to wait for.
    pub(super) wake: Notify,
    /// Told when the stream may be dead.
    pub(super) doubted: Notify,
    state: Mutex<State>,
}

/// How frames reach the server.
#[derive(Debug)]
pub(super) enum Way {
    /// By the node's UDP socket.
    Datagrams(SocketAddr),
    /// By a stream's queue. Full: dropped, as a network would.
    Stream {
        frames: mpsc::Sender<Bytes>,
        /// The address of ours that the stream hangs on, if it is known.
        local: Option<IpAddr>,
    },
}

#[derive(Debug)]
struct State {
    allocation: Allocation,
    /// Whether there was a relayed address at any time.
    lived: bool,
    peers: BTreeMap<SocketAddr, Need>,
}

/// Who needs a peer.
#[derive(Debug, Default)]
struct Need {
    leases: usize,
    /// Since when there is none.
    unused_since: Option<Instant>,
}

/// What came of a step.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// For the server.
    pub(super) frames: Vec<Vec<u8>>,
    /// When to step again at the latest.
    pub(super) due: Option<Instant>,
    /// There is a relayed address, or a peer became ready.
    pub(super) news: bool,
    /// It is over.
    pub(super) failed: Option<TurnFailure>,
}

impl Link {
    /// Starts to allocate with the first step.
    pub(super) fn new(now: Instant, id: u8, kind: PathKind, way: Way, mut allocation: Allocation) -> Self {
        allocation.allocate(now);
        let state = Mutex::new(State { allocation, lived: false, peers: BTreeMap::new() });
        Self { id, kind, way, wake: Notify::new(), doubted: Notify::new(), state }
    }

    /// Where peers reach this node through it, once it is there: one address, or one of each family.
    pub(super) fn relayed_addresses(&self) -> Vec<SocketAddr> {
        lock(&self.state).allocation.relayed_addresses().collect()
    }

    /// Whether it was there at any time.
    pub(super) fn lived(&self) -> bool {
        lock(&self.state).lived
    }

    /// The network changed. False when the allocation is gone with the one before: the stream's address is no more, or it hangs
    /// on datagrams, which may come from another address now. A stream that may live is asked for a sign of it.
    pub(super) fn on_network_change(&self, interfaces: &[IpAddr]) -> bool {
        let Way::Stream { local, .. } = &self.way else { return false };
        let lives = local.is_none_or(|ip| ip.is_loopback() || interfaces.contains(&ip));
        if lives {
            self.doubted.notify_one();
        }
        lives
    }

    /// Lets the machine work.
    pub(super) fn step(&self, now: Instant) -> Step {
        let mut state = lock(&self.state);
        let State { allocation, lived, .. } = &mut *state;
        if allocation.poll_timeout().is_some_and(|(at, _)| at <= now) {
            allocation.handle_timeout(now);
        }
        let mut step = Step::default();
        while let Some(event) = allocation.poll_event() {
            match event {
                TurnEvent::Allocated { .. } => (*lived, step.news) = (true, true),
                TurnEvent::PeerReady { .. } => step.news = true,
                TurnEvent::PeerRefused { code, .. } => {
                    tracing::debug!(code = code.number(), "a TURN server does not relay to a peer");
                }
                TurnEvent::Failed { why, retry_at } => {
                    let soon = retry_at.is_some_and(|at| at <= now + RETRY_SOON);
                    // A new one after a lost one is another allocation: peers have to hear of its address.
                    if why == TurnFailure::Lost || !soon {
                        step.failed = Some(why);
                    }
                }
                TurnEvent::Released => {}
            }
        }
        step.frames.extend(std::iter::from_fn(|| allocation.poll_transmit()));
        step.due = allocation.poll_timeout().map(|(at, _)| at);
        step
    }

    /// Gives the address back, without waiting for an answer: what to send, and where. A stream that ends says as much.
    pub(super) fn farewell(&self, now: Instant) -> Option<(SocketAddr, Vec<u8>)> {
        let Way::Datagrams(server) = self.way else { return None };
        let mut state = lock(&self.state);
        state.allocation.relayed_addresses().next()?;
        state.allocation.release(now);
        Some((server, state.allocation.poll_transmit()?))
    }

    /// Wants to reach a peer. `None` when that makes no sense, or when as many are in use as may be.
    pub(super) fn lease(self: &Arc<Self>, now: Instant, peer: SocketAddr) -> Option<Lease> {
        let mut state = lock(&self.state);
        let relayed = state.allocation.relayed_addresses().find(|relayed| relayed.is_ipv4() == peer.is_ipv4())?;
        // What a server with a public address can reach of a private network is another network.
        let elsewhere = is_private(peer.ip()) && !is_private(relayed.ip());
        if relayed == peer || elsewhere {
            return None;
        }
        if !state.peers.contains_key(&peer) && state.peers.len() >= TURN_MAX_PEERS && !state.forget_one() {
            return None;
        }
        if !state.allocation.add_peer(now, peer) {
            return None;
        }
        let need = state.peers.entry(peer).or_default();
        need.leases += 1;
        need.unused_since = None;
        drop(state);
        self.wake.notify_one();
        Some(Lease { link: self.clone(), peer })
    }

    /// Forgets peers that nobody needed for a while.
    pub(super) fn sweep(&self, now: Instant) {
        let mut state = lock(&self.state);
        let over = |need: &Need| need.unused_since.is_some_and(|since| since + PEER_LINGERS <= now);
        let unused: Vec<_> = state.peers.iter().filter(|(_, need)| over(need)).map(|(peer, _)| *peer).collect();
        unused.into_iter().for_each(|peer| state.forget(peer));
    }
}

impl State {
    /// Makes room: the peer that nobody has needed for longest goes.
    fn forget_one(&mut self) -> bool {
        let unused = self.peers.iter().filter_map(|(peer, need)| Some((need.unused_since?, *peer)));
        let Some((_, oldest)) = unused.min() else { return false };
        self.forget(oldest);
        true
    }

    fn forget(&mut self, peer: SocketAddr) {
        self.peers.remove(&peer);
        self.allocation.remove_peer(peer);
    }
}

impl TurnLink for Link {
    fn server(&self) -> Option<SocketAddr> {
        match self.way {
            Way::Datagrams(server) => Some(server),
            Way::Stream { .. } => None,
        }
    }

    fn frame(&self, peer: SocketAddr, payload: &[u8], out: &mut Vec<u8>) -> Option<SocketAddr> {
        let mut state = lock(&self.state);
        let frame = state.allocation.send(peer, payload)?;
        match &self.way {
            Way::Datagrams(server) => {
                out.extend_from_slice(frame);
                Some(*server)
            }
            Way::Stream { frames, .. } => {
                let _ = frames.try_send(Bytes::copy_from_slice(frame));
                None
            }
        }
    }

    fn receive<'a>(&self, frame: &'a [u8]) -> Received<'a> {
        let now = tokio::time::Instant::now().into_std();
        let input = lock(&self.state).allocation.handle_input(now, frame);
        match input {
            TurnInput::Data { peer, payload } => {
                frame.get(payload).map_or(Received::Taken, |payload| Received::Payload { peer, payload })
            }
            TurnInput::Handled => {
                self.wake.notify_one();
                Received::Taken
            }
            TurnInput::Ignored => Received::Other,
        }
    }
}

/// Somebody's wish to reach a peer through an allocation, until it is dropped.
#[derive(Debug)]
pub(in crate::transports::quic::traversal) struct Lease {
    link: Arc<Link>,
    peer: SocketAddr,
}

impl Lease {
    /// The path that it stands for.
    pub(in crate::transports::quic::traversal) fn path(&self) -> Path {
        Path { via: Via::Turn { allocation: self.link.id }, remote: self.peer }
    }

    /// What kind of path that is.
    pub(in crate::transports::quic::traversal) fn kind(&self) -> PathKind {
        self.link.kind
    }

    /// Why the server does not relay to the peer, if it said so.
    pub(in crate::transports::quic::traversal) fn refusal(&self) -> Option<ErrorCode> {
        lock(&self.link.state).allocation.refusal(self.peer)
    }

    /// Whether datagrams get through to the server's side of the peer.
    pub(in crate::transports::quic::traversal) fn is_ready(&self) -> bool {
        lock(&self.link.state).allocation.is_ready(self.peer)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = lock(&self.link.state);
        let Some(need) = state.peers.get_mut(&self.peer) else { return };
        need.leases -= 1;
        if need.leases == 0 {
            need.unused_since = Some(tokio::time::Instant::now().into_std());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::allocation::{TurnOptions, TurnTransport};
    use crate::nat::credentials::TurnCredentials;
    use crate::nat::stun::{Attribute, Response, Scanned};

    const SECOND: Duration = Duration::from_secs(1);

    fn peer(number: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, 7], 1000 + number))
    }

    /// Answers every request as a server would that has room.
    fn answer(request: &Scanned<'_>) -> Vec<u8> {
        if !request.is_signed() {
            let response = Response::error(request, ErrorCode::Unauthorized);
            let response = response.with(Attribute::Realm("example.org".into())).with(Attribute::Nonce("1".into()));
            return response.encode(None).unwrap();
        }
        let (relayed, mapped) = (SocketAddr::from(([203, 0, 113, 1], 5000)), SocketAddr::from(([192, 0, 2, 1], 4000)));
        let response = Response::success(request).with(Attribute::Lifetime(600 * SECOND));
        let response = response.with(Attribute::XorMappedAddress(mapped)).with(Attribute::XorRelayedAddress(relayed));
        response.encode(Some(&credentials().key("example.org"))).unwrap()
    }

    fn credentials() -> TurnCredentials {
        TurnCredentials::new("anna", "secret").unwrap()
    }

    fn settle(link: &Link, now: Instant) {
        loop {
            let step = link.step(now);
            if step.frames.is_empty() {
                return;
            }
            for frame in step.frames {
                let answer = answer(&Scanned::scan(&frame).unwrap());
                assert_eq!(link.receive(&answer), Received::Taken);
            }
        }
    }

    fn link(now: Instant, transport: TurnTransport, way: Way) -> Arc<Link> {
        let allocation = Allocation::new(TurnOptions::new(transport), credentials(), [7; 32]);
        let link = Arc::new(Link::new(now, 3, PathKind::TurnUdp, way, allocation));
        assert!(link.lease(now, peer(0)).is_none(), "there is no relayed address yet");
        settle(&link, now);
        link
    }

    fn datagrams(now: Instant) -> Arc<Link> {
        link(now, TurnTransport::Udp, Way::Datagrams(SocketAddr::from(([203, 0, 113, 1], 3478))))
    }

    #[test]
    fn a_peer_is_reached_for_as_long_as_somebody_needs_it_and_a_while_longer() {
        let now = Instant::now();
        let link = datagrams(now);
        let leases = [link.lease(now, peer(1)).unwrap(), link.lease(now, peer(1)).unwrap()];
        settle(&link, now);
        assert!(leases[0].is_ready());
        let [one, other] = leases;
        drop(one);
        link.sweep(now + 3600 * SECOND);
        assert!(other.is_ready());
        drop(other);
        let mut out = Vec::new();
        link.sweep(now + 30 * SECOND);
        assert!(link.frame(peer(1), b"x", &mut out).is_some());
        link.sweep(now + 3600 * SECOND);
        assert!(link.frame(peer(1), b"x", &mut out).is_none());
    }

    #[test]
    fn when_all_peers_are_in_use_there_is_no_room_and_one_that_is_not_makes_some() {
        let now = Instant::now();
        let link = datagrams(now);
        let peers = u16::try_from(TURN_MAX_PEERS).unwrap();
        let mut leases: Vec<_> = (0..peers).map(|number| link.lease(now, peer(number)).unwrap()).collect();
        assert!(link.lease(now, peer(peers)).is_none());
        leases.pop();
        assert!(link.lease(now, peer(peers)).is_some());
    }

    #[test]
    fn addresses_that_the_server_cannot_reach_are_not_asked_for() {
        let now = Instant::now();
        let link = datagrams(now);
        for address in ["192.168.1.2:4000", "[2001:db8::1]:4000", "203.0.113.1:5000"] {
            assert!(link.lease(now, address.parse().unwrap()).is_none(), "{address}");
        }
    }

    #[test]
    fn what_a_slow_stream_has_no_room_for_is_dropped() {
        let now = Instant::now();
        let (frames, mut queue) = mpsc::channel(1);
        let link = link(now, TurnTransport::Tls, Way::Stream { frames, local: None });
        let _lease = link.lease(now, peer(1)).unwrap();
        settle(&link, now);
        for payload in [b"one", b"two"] {
            assert_eq!(link.frame(peer(1), payload, &mut Vec::new()), None);
        }
        assert_eq!(&queue.try_recv().unwrap()[4..7], b"one");
        assert!(queue.try_recv().is_err());
    }

    #[test]
    fn an_allocation_outlives_the_network_that_its_stream_does_not_hang_on() {
        let now = Instant::now();
        let ips = ["192.168.1.2", "10.0.0.7"].map(|ip| ip.parse().unwrap());
        let stream = |local| link(now, TurnTransport::Tls, Way::Stream { frames: mpsc::channel(1).0, local });
        assert!(stream(Some(ips[0])).on_network_change(&ips) && stream(None).on_network_change(&ips));
        assert!(!stream(Some(ips[0])).on_network_change(&ips[1..]));
        assert!(!datagrams(now).on_network_change(&ips));
    }

    #[test]
    fn what_nobody_asked_for_is_left_to_others() {
        let now = Instant::now();
        assert_eq!(datagrams(now).receive(b"anything"), Received::Other);
    }
}
