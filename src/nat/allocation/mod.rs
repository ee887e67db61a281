//! A relayed address at one TURN server (RFC 8656), with permissions and channels for its peers, as a pure machine.
//!
//! Drive it: [`allocate`](Allocation::allocate), then send what [`poll_transmit`](Allocation::poll_transmit) gives to the
//! server, hand in every frame that comes from it ([`handle_input`](Allocation::handle_input)), call
//! [`handle_timeout`](Allocation::handle_timeout) at [`poll_timeout`](Allocation::poll_timeout), and take events after each. Over UDP a
//! frame is a datagram, over TCP and TLS what [`TurnFramer`](super::framing::TurnFramer) cuts out; connecting again is the
//! driver's, which then tells [`on_transport_lost`](Allocation::on_transport_lost).
//!
//! Over UDP it sends a packet every 25 s at least, so that the NAT on the way keeps the mapping that the allocation hangs on.
//!
//! Peers that are wanted ([`add_peer`](Allocation::add_peer)) stay wanted over failures: with a new allocation they are asked
//! for again. Each gets a channel, so a payload costs four bytes more; until it is bound, indications carry it.
//!
//! What is trusted: a response whose transaction id is that of a request under way and whose MESSAGE-INTEGRITY is right.
//! Anything else changes nothing, but for three: 401 and 438, which are never signed, make a request be signed anew a few
//! times; a 401 over a stream ends an allocation whose credentials have expired; and errors to the first Allocate, which
//! goes out unsigned. A success to that one is not taken.
//!
//! Not here: choosing servers, TLS, ALTERNATE-SERVER, relayed TCP (RFC 6062), mobility (RFC 8016).

mod channels;
mod live;
mod options;
mod permissions;
mod requests;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use live::Live;
use options::Families;
pub use options::{TurnEvent, TurnFailure, TurnOptions, TurnTransport};
use requests::{Challenged, Purpose, Signer, Underway};

use super::credentials::TurnCredentials;
use super::framing::{is_channel_data, parse_channel_data, put_channel_data};
use super::stun::{AddressFamily, Class, ErrorCode, Message, Method, Scanned, relayed};
use super::transaction::{Events, Waited};
use crate::limits::TURN_MAX_PEERS;

/// After a failure that may pass. RFC 8656 §7.4 asks for a minute at least after 508.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// After silence: the network may be back.
const RETRY_SILENCE: Duration = Duration::from_secs(10);
/// After an old allocation of ours was deleted.
const RETRY_CLEARED: Duration = Duration::from_secs(1);

/// What a frame from the server was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnInput {
    /// A payload of a peer, at this place in the frame.
    Data {
        /// Who sent it: a peer that was added, or another port of its host.
        peer: SocketAddr,
        /// Where in the frame.
        payload: Range<usize>,
    },
    /// It was for the machine: ask it for packets, timeouts and events.
    Handled,
    /// Nothing that was asked for, or nothing that can be trusted.
    Ignored,
}

#[derive(Debug)]
enum State {
    Idle,
    Allocating(Underway),
    Allocated(Box<Live>),
    Releasing(Underway),
    /// The server has an allocation for this socket that we do not know, most likely ours whose answer was lost.
    Clearing(Underway),
    Failed {
        retry_at: Option<Instant>,
    },
}

/// One allocation at one server.
#[derive(Debug)]
pub struct Allocation {
    signer: Signer,
    peers: Vec<SocketAddr>,
    state: State,
    events: Events<TurnEvent>,
    frame: Vec<u8>,
}

impl Allocation {
    /// Asks for nothing yet. The seed is 32 bytes from the system's generator: transaction ids come from it.
    pub fn new(options: TurnOptions, credentials: TurnCredentials, seed: [u8; 32]) -> Self {
        let signer = Signer::new(options, credentials, seed);
        Self { signer, peers: Vec::new(), state: State::Idle, events: Events::new(), frame: Vec::new() }
    }

    /// Asks for a relayed address, also after a failure. Nothing happens when there is one, or it is under way.
    pub fn allocate(&mut self, now: Instant) {
        match self.state {
            State::Idle | State::Failed { .. } | State::Releasing(_) => self.start_allocating(now),
            State::Allocating(_) | State::Allocated(_) | State::Clearing(_) => {}
        }
    }

    /// Gives the address back. [`TurnEvent::Released`] tells when the server knows, or cannot be told.
    pub fn release(&mut self, now: Instant) {
        match &self.state {
            State::Allocated(_) => match self.signer.start(now, Purpose::Release) {
                Ok(underway) => self.state = State::Releasing(underway),
                Err(_) => self.on_released(),
            },
            State::Releasing(_) => {}
            State::Idle | State::Allocating(_) | State::Clearing(_) | State::Failed { .. } => self.on_released(),
        }
    }

    /// The stream to the server ended, or the socket is a new one: the server's allocation belongs to the old one. Connect
    /// again, then [`allocate`](Self::allocate).
    pub fn on_transport_lost(&mut self) {
        match self.state {
            State::Allocating(_) | State::Allocated(_) | State::Clearing(_) => {
                self.fail(TurnFailure::TransportLost, None);
            }
            State::Releasing(_) => self.on_released(),
            State::Idle | State::Failed { .. } => {}
        }
    }

    /// Where peers reach us: one address, or one of each family.
    pub fn relayed_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.live().into_iter().flat_map(|live| [Some(live.relayed), live.also_relayed]).flatten()
    }

    /// How the server sees us.
    pub fn mapped_address(&self) -> Option<SocketAddr> {
        self.live().map(|live| live.mapped)
    }

    /// Wants to talk to this peer; [`TurnEvent::PeerReady`] follows. False when there are `TURN_MAX_PEERS` already.
    pub fn add_peer(&mut self, now: Instant, peer: SocketAddr) -> bool {
        if self.peers.contains(&peer) {
            return true;
        }
        if self.peers.len() == TURN_MAX_PEERS {
            return false;
        }
        self.peers.push(peer);
        if let State::Allocated(live) = &mut self.state {
            live.add_peer(peer);
            live.ask(now, &mut self.signer);
            if live.is_ready(peer) {
                self.events.push(TurnEvent::PeerReady { peer });
            }
        }
        true
    }

    /// Does not any more. What it sends is dropped from here on.
    pub fn remove_peer(&mut self, peer: SocketAddr) {
        self.peers.retain(|known| *known != peer);
        let last = self.peers.iter().all(|known| known.ip() != peer.ip());
        if let State::Allocated(live) = &mut self.state {
            live.remove_peer(peer, last);
        }
    }

    /// Whether payloads go to this peer now.
    pub fn is_ready(&self, peer: SocketAddr) -> bool {
        self.live().is_some_and(|live| live.is_ready(peer))
    }

    /// Why the server relays nothing to this peer, if it said so.
    pub fn refusal(&self, peer: SocketAddr) -> Option<ErrorCode> {
        self.live()?.permissions.refusal(peer.ip())
    }

    /// Wraps a payload: the frame to send to the server, on the peer's channel or else as an indication. `None`: the peer was
    /// not added or is not ready, or the payload is too large (`TURN_FRAME_MAX_BYTES` with up to 48 bytes around it). The
    /// frame lies in a buffer of the machine, so nothing is allocated per packet.
    pub fn send(&mut self, peer: SocketAddr, payload: &[u8]) -> Option<&[u8]> {
        let State::Allocated(live) = &self.state else { return None };
        if !live.is_ready(peer) || !self.peers.contains(&peer) {
            return None;
        }
        let fits = if let Some(channel) = live.channels.bound(peer) {
            put_channel_data(channel, payload, self.signer.options.transport.is_stream(), &mut self.frame)
        } else {
            relayed::put_send(self.signer.ids.draw(), peer, payload, &mut self.frame)
        };
        fits.then_some(&self.frame[..])
    }

    /// Takes a frame that came from the server.
    pub fn handle_input(&mut self, now: Instant, frame: &[u8]) -> TurnInput {
        if is_channel_data(frame) {
            return self.channel_data(frame).unwrap_or(TurnInput::Ignored);
        }
        let Ok(scanned) = Scanned::scan(frame) else { return TurnInput::Ignored };
        let handled = match scanned.class() {
            Class::Request => None,
            Class::Indication => return self.indication(&scanned).unwrap_or(TurnInput::Ignored),
            Class::Success => self.on_success(now, &scanned),
            Class::Error => self.on_error(now, &scanned),
        };
        handled.map_or(TurnInput::Ignored, |()| TurnInput::Handled)
    }

    /// The next frame to send to the server, as long as there is one.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        if let State::Allocated(live) = &mut self.state
            && let Some(keep_alive) = live.keep_alive.take()
        {
            return Some(keep_alive);
        }
        self.under_way_mut().iter_mut().find_map(|underway| underway.transaction.take_transmit())
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.state {
            State::Idle => None,
            State::Allocating(underway) => Some((underway.transaction.due(), "allocate answer")),
            State::Releasing(underway) | State::Clearing(underway) => {
                Some((underway.transaction.due(), "release answer"))
            }
            State::Failed { retry_at } => retry_at.map(|at| (at, "allocate retry")),
            State::Allocated(live) => {
                let answers = live.under_way.iter().map(|underway| (underway.transaction.due(), "turn answer"));
                answers.chain([live.due()]).min_by_key(|(at, _)| *at)
            }
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            State::Idle => {}
            State::Allocating(underway) => {
                if underway.transaction.on_timeout(now) == Waited::GivenUp {
                    let why = TurnFailure::NoAnswer { unsigned: underway.unsigned };
                    self.fail(why, Some(now + RETRY_SILENCE));
                }
            }
            State::Releasing(underway) | State::Clearing(underway) => {
                if underway.transaction.on_timeout(now) == Waited::GivenUp {
                    self.on_release_answered(now, false);
                }
            }
            State::Failed { retry_at } => {
                if retry_at.is_some_and(|at| at <= now) {
                    self.start_allocating(now);
                }
            }
            State::Allocated(live) => {
                if live.on_timeout(now, &mut self.signer) {
                    self.fail(TurnFailure::Lost, Some(now));
                }
            }
        }
    }

    /// What happened.
    pub fn poll_event(&mut self) -> Option<TurnEvent> {
        self.events.pop()
    }

    fn live(&self) -> Option<&Live> {
        match &self.state {
            State::Allocated(live) => Some(live),
            State::Idle | State::Allocating(_) | State::Releasing(_) | State::Clearing(_) | State::Failed { .. } => {
                None
            }
        }
    }

    fn under_way_mut(&mut self) -> &mut [Underway] {
        match &mut self.state {
            State::Allocating(underway) | State::Releasing(underway) | State::Clearing(underway) => {
                std::slice::from_mut(underway)
            }
            State::Allocated(live) => &mut live.under_way,
            State::Idle | State::Failed { .. } => &mut [],
        }
    }

    fn start_allocating(&mut self, now: Instant) {
        match self.signer.start(now, Purpose::Allocate) {
            Ok(underway) => self.state = State::Allocating(underway),
            // What the server calls itself does not fit into a request.
            Err(_) => self.fail(TurnFailure::BadResponse, None),
        }
    }

    fn fail(&mut self, why: TurnFailure, retry_at: Option<Instant>) {
        self.state = State::Failed { retry_at };
        self.events.push(TurnEvent::Failed { why, retry_at });
    }

    fn on_released(&mut self) {
        self.state = State::Idle;
        self.events.push(TurnEvent::Released);
    }

    /// The server deleted an allocation, or would not.
    fn on_release_answered(&mut self, now: Instant, deleted: bool) {
        match self.state {
            State::Clearing(_) => {
                let retry_after = if deleted { RETRY_CLEARED } else { RETRY_AFTER };
                self.fail(TurnFailure::AddressInUse, Some(now + retry_after));
            }
            State::Idle | State::Allocating(_) | State::Allocated(_) | State::Releasing(_) | State::Failed { .. } => {
                self.on_released();
            }
        }
    }

    fn channel_data(&self, frame: &[u8]) -> Option<TurnInput> {
        let (number, payload) = parse_channel_data(frame)?;
        let peer = self.live()?.channels.peer(number)?;
        Some(TurnInput::Data { peer, payload })
    }

    /// Data indications are not signed. The server lets in whom we permitted, so nobody else's data is taken.
    fn indication(&self, scanned: &Scanned<'_>) -> Option<TurnInput> {
        let (peer, payload) = relayed::payload(scanned).filter(|_| scanned.method() == Method::Data)?;
        let permitted = self.live()?.permissions.is_held(peer.ip());
        permitted.then_some(TurnInput::Data { peer, payload })
    }

    /// The request that this is the response to, by its id.
    fn answered(&mut self, scanned: &Scanned<'_>) -> Option<&mut Underway> {
        self.under_way_mut().iter_mut().find(|underway| {
            underway.transaction.is_answered_by(scanned) && underway.purpose.method() == scanned.method()
        })
    }

    fn on_success(&mut self, now: Instant, scanned: &Scanned<'_>) -> Option<()> {
        let asked = self.answered(scanned)?;
        let purpose = asked.purpose;
        scanned.check_integrity(asked.key.as_ref()?).ok()?;
        // RFC 8489 §6.3.3: what must be understood and is not makes the response void.
        let message = scanned.decode().ok().filter(|message| message.unknown_attributes().is_empty())?;
        match purpose {
            Purpose::Allocate => match Live::from_response(now, &message, &self.signer) {
                Some((live, lifetime)) => self.on_allocated(now, live, lifetime),
                None => self.fail(TurnFailure::BadResponse, Some(now + RETRY_AFTER)),
            },
            Purpose::Release => self.on_release_answered(now, true),
            Purpose::Refresh | Purpose::Permission(_) | Purpose::Channel(..) => {
                let State::Allocated(live) = &mut self.state else { return None };
                live.under_way.retain(|underway| !underway.transaction.is_answered_by(scanned));
                live.on_success(now, purpose, &message, &self.peers, &mut self.events);
                live.ask(now, &mut self.signer);
            }
        }
        Some(())
    }

    fn on_allocated(&mut self, now: Instant, mut live: Live, lifetime: Duration) {
        let (relayed, also_relayed, mapped) = (live.relayed, live.also_relayed, live.mapped);
        self.peers.iter().for_each(|peer| live.add_peer(*peer));
        live.ask(now, &mut self.signer);
        self.state = State::Allocated(Box::new(live));
        self.events.push(TurnEvent::Allocated { relayed, also_relayed, mapped, lifetime });
    }

    fn on_error(&mut self, now: Instant, scanned: &Scanned<'_>) -> Option<()> {
        let asked = self.answered(scanned)?;
        let message = scanned.decode().ok()?;
        let code = message.error()?;
        if matches!(code, ErrorCode::Unauthorized | ErrorCode::StaleNonce) {
            return self.on_challenge(now, scanned, &message);
        }
        if let Some(key) = &asked.key
            && scanned.check_integrity(key).is_err()
        {
            asked.unsigned = Some(code);
            return None;
        }
        let purpose = asked.purpose;
        match purpose {
            Purpose::Allocate => {
                let signed = asked.key.is_some();
                self.on_allocate_refused(now, code, signed);
            }
            Purpose::Release => self.on_release_answered(now, false),
            _ if code == ErrorCode::WrongCredentials && self.signer.is_expired(now, purpose) => {
                self.fail(TurnFailure::CredentialsRefused, Some(now + RETRY_AFTER));
            }
            Purpose::Refresh | Purpose::Permission(_) | Purpose::Channel(..) => {
                let State::Allocated(live) = &mut self.state else { return None };
                live.under_way.retain(|underway| !underway.transaction.is_answered_by(scanned));
                match live.on_error(now, purpose, code, &self.peers, &mut self.events) {
                    Some(why) => self.fail(why, Some(now)),
                    None => live.ask(now, &mut self.signer),
                }
            }
        }
        Some(())
    }

    fn on_challenge(&mut self, now: Instant, scanned: &Scanned<'_>, message: &Message) -> Option<()> {
        let asked = match &mut self.state {
            State::Allocating(underway) | State::Releasing(underway) | State::Clearing(underway) => underway,
            State::Allocated(live) => {
                live.under_way.iter_mut().find(|underway| underway.transaction.is_answered_by(scanned))?
            }
            State::Idle | State::Failed { .. } => return None,
        };
        match self.signer.on_challenge(now, asked, message) {
            Challenged::Again(again) => *asked = *again,
            Challenged::Refused => self.fail(TurnFailure::CredentialsRefused, Some(now + RETRY_AFTER)),
            Challenged::Ignored => return None,
        }
        Some(())
    }

    fn on_allocate_refused(&mut self, now: Instant, code: ErrorCode, signed: bool) {
        let later = Some(now + RETRY_AFTER);
        // What anybody on the path could have sent does not stop us for good.
        let never = if signed { None } else { later };
        let (why, retry_at) = match code {
            ErrorCode::AllocationMismatch => {
                if let Ok(underway) = self.signer.start(now, Purpose::Release) {
                    self.state = State::Clearing(underway);
                    return;
                }
                (TurnFailure::AddressInUse, later)
            }
            // A server without IPv4 that does not know how both are asked for.
            ErrorCode::AddressFamilyNotSupported if self.signer.options.families == Families::Both => {
                self.signer.options.families = Families::One(AddressFamily::V6);
                return self.start_allocating(now);
            }
            ErrorCode::WrongCredentials => (TurnFailure::CredentialsRefused, later),
            ErrorCode::Forbidden => (TurnFailure::Forbidden, never),
            ErrorCode::AddressFamilyNotSupported | ErrorCode::UnsupportedTransport => {
                (TurnFailure::Unsupported(code), never)
            }
            ErrorCode::AllocationQuotaReached | ErrorCode::InsufficientCapacity => (TurnFailure::Busy(code), later),
            other => (TurnFailure::Refused(other), later),
        };
        self.fail(why, retry_at);
    }
}
