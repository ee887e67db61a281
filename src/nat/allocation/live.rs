//! An allocation that exists: its refreshes, its peers, and the requests under way for them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::channels::Channels;
use super::options::{TurnEvent, TurnFailure};
use super::permissions::Permissions;
use super::requests::{Purpose, Signer, Underway};
use crate::limits::{NAT_KEEP_ALIVE_MAX, TURN_MAX_TRANSACTIONS};
use crate::nat::stun::{self, ErrorCode, Message};
use crate::nat::transaction::{Events, Waited};

/// How long before its end an allocation is refreshed. One that is granted for less than twice that: at half time.
const REFRESH_BEFORE: Duration = Duration::from_secs(60);
/// Between two refreshes at least, whatever the server says.
const REFRESH_REST: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Live {
    pub(super) relayed: SocketAddr,
    /// Of the other family.
    pub(super) also_relayed: Option<SocketAddr>,
    pub(super) mapped: SocketAddr,
    expires_at: Instant,
    refresh_at: Instant,
    refreshing: bool,
    /// When the NAT between us and the server needs a packet; `None` over a stream, which NATs keep for longer.
    keep_alive_at: Option<Instant>,
    pub(super) keep_alive: Option<Vec<u8>>,
    pub(super) permissions: Permissions,
    pub(super) channels: Channels,
    pub(super) under_way: Vec<Underway>,
}

impl Live {
    /// From a trusted response to Allocate.
    pub(super) fn from_response(now: Instant, message: &Message, signer: &Signer) -> Option<(Self, Duration)> {
        let lifetime = message.lifetime().filter(|lifetime| !lifetime.is_zero())?;
        let relayed = message.relayed_addresses().next()?;
        let live = Self {
            relayed,
            also_relayed: message.relayed_addresses().find(|other| other.is_ipv4() != relayed.is_ipv4()),
            mapped: message.mapped_address()?,
            expires_at: now + lifetime,
            refresh_at: now + refresh_after(lifetime),
            refreshing: false,
            keep_alive_at: (!signer.options.transport.is_stream()).then(|| now + NAT_KEEP_ALIVE_MAX),
            keep_alive: None,
            permissions: Permissions::default(),
            channels: Channels::new(),
            under_way: Vec::new(),
        };
        Some((live, lifetime))
    }

    pub(super) fn add_peer(&mut self, peer: SocketAddr) {
        self.permissions.want(peer.ip());
        self.channels.want(peer);
    }

    /// `last`: no other peer is on that host.
    pub(super) fn remove_peer(&mut self, peer: SocketAddr, last: bool) {
        self.channels.let_go(peer);
        if last {
            self.permissions.forget(peer.ip());
        }
    }

    /// A channel alone does not do: it outlives the permission of a peer that was let go (RFC 8656 §12).
    pub(super) fn is_ready(&self, peer: SocketAddr) -> bool {
        self.permissions.is_held(peer.ip())
    }

    /// Starts what is due, as far as there is room.
    pub(super) fn ask(&mut self, now: Instant, signer: &mut Signer) {
        while self.under_way.len() < TURN_MAX_TRANSACTIONS {
            let purpose = if !self.refreshing && self.refresh_at <= now {
                self.refreshing = true;
                Purpose::Refresh
            } else if let Some(host) = self.permissions.next_wanted(now) {
                Purpose::Permission(host)
            } else if let Some((peer, number)) = self.channels.next_wanted(now) {
                Purpose::Channel(peer, number)
            } else {
                return;
            };
            match purpose {
                Purpose::Permission(host) => {
                    self.permissions.get_mut(host).into_iter().for_each(|grant| grant.on_asked())
                }
                Purpose::Channel(peer, _) => {
                    self.channels.grant_mut(peer).into_iter().for_each(|grant| grant.on_asked())
                }
                Purpose::Allocate | Purpose::Refresh | Purpose::Release => {}
            }
            match signer.start(now, purpose) {
                Ok(underway) => self.under_way.push(underway),
                Err(_) => self.on_given_up(now, purpose),
            }
        }
    }

    pub(super) fn on_success(
        &mut self,
        now: Instant,
        purpose: Purpose,
        message: &Message,
        peers: &[SocketAddr],
        events: &mut Events<TurnEvent>,
    ) {
        let host = match purpose {
            Purpose::Refresh => {
                let lifetime = message.lifetime().filter(|lifetime| !lifetime.is_zero());
                self.refreshing = false;
                self.refresh_at = now + lifetime.map_or(REFRESH_REST, refresh_after);
                self.expires_at = lifetime.map_or(self.expires_at, |lifetime| now + lifetime);
                return;
            }
            // A channel brings its permission along (RFC 8656 §12.2).
            Purpose::Channel(peer, _) => {
                self.channels.on_granted(now, peer);
                peer.ip()
            }
            Purpose::Permission(host) => host,
            Purpose::Allocate | Purpose::Release => return,
        };
        if self.permissions.on_granted(now, host) {
            let ready = peers.iter().filter(|peer| peer.ip() == host);
            ready.for_each(|peer| events.push(TurnEvent::PeerReady { peer: *peer }));
        }
    }

    /// The failure, if the allocation is gone.
    pub(super) fn on_error(
        &mut self,
        now: Instant,
        purpose: Purpose,
        code: ErrorCode,
        peers: &[SocketAddr],
        events: &mut Events<TurnEvent>,
    ) -> Option<TurnFailure> {
        if code == ErrorCode::AllocationMismatch {
            return Some(TurnFailure::Lost);
        }
        match purpose {
            Purpose::Permission(host) => {
                let grant = self.permissions.get_mut(host)?;
                if grant.on_refused(now, code) {
                    let refused = peers.iter().filter(|peer| peer.ip() == host);
                    refused.for_each(|peer| events.push(TurnEvent::PeerRefused { peer: *peer, code }));
                }
            }
            // Indications do as well.
            Purpose::Channel(peer, _) => _ = self.channels.grant_mut(peer)?.on_refused(now, code),
            Purpose::Allocate | Purpose::Refresh | Purpose::Release => self.on_given_up(now, purpose),
        }
        None
    }

    fn on_given_up(&mut self, now: Instant, purpose: Purpose) {
        match purpose {
            Purpose::Permission(host) => {
                self.permissions.get_mut(host).into_iter().for_each(|grant| grant.on_given_up(now));
            }
            Purpose::Channel(peer, _) => {
                self.channels.grant_mut(peer).into_iter().for_each(|grant| grant.on_given_up(now));
            }
            Purpose::Refresh => (self.refreshing, self.refresh_at) = (false, now + REFRESH_REST),
            Purpose::Allocate | Purpose::Release => {}
        }
    }

    /// True when the allocation has expired.
    pub(super) fn on_timeout(&mut self, now: Instant, signer: &mut Signer) -> bool {
        if self.expires_at <= now {
            return true;
        }
        let mut given_up = Vec::new();
        self.under_way.retain_mut(|underway| match underway.transaction.on_timeout(now) {
            Waited::GoesOn => true,
            Waited::GivenUp => {
                given_up.push(underway.purpose);
                false
            }
        });
        given_up.into_iter().for_each(|purpose| self.on_given_up(now, purpose));
        self.permissions.on_timeout(now);
        self.channels.on_timeout(now);
        self.ask(now, signer);
        if self.keep_alive_at.is_some_and(|at| at <= now) {
            self.keep_alive_at = Some(now + NAT_KEEP_ALIVE_MAX);
            self.keep_alive = stun::keep_alive(signer.ids.draw()).ok();
        }
        false
    }

    /// When something is due besides transactions.
    pub(super) fn due(&self) -> (Instant, &'static str) {
        let keep_alive = self.keep_alive_at.map(|at| (at, "keep-alive"));
        let expiry = (self.expires_at, "allocation expiry");
        // When all transactions are taken, nothing can be asked before one of them ends.
        let has_room = self.under_way.len() < TURN_MAX_TRANSACTIONS;
        let refresh = (!self.refreshing).then_some((self.refresh_at, "allocation refresh"));
        let asks = [
            refresh,
            self.permissions.due().map(|at| (at, "permission refresh")),
            self.channels.due().map(|at| (at, "channel refresh")),
        ];
        let asks = asks.into_iter().flatten().filter(|_| has_room);
        asks.chain(keep_alive).fold(expiry, |first, next| if next.0 < first.0 { next } else { first })
    }
}

fn refresh_after(lifetime: Duration) -> Duration {
    lifetime.saturating_sub(REFRESH_BEFORE).max(lifetime / 2).max(REFRESH_REST)
}
