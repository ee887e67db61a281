//! One allocation: whom its client may hear and by which channels. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::Client;
use crate::limits::{TURN_CHANNELS, TURN_PERMISSIONS};
use crate::nat::stun::{AddressFamily, ChannelNumber, ErrorCode, IntegrityKey, TransactionId};
use crate::relay::quota::Bucket;

/// RFC 8656, section 9.
const PERMISSION_LIFETIME: std::time::Duration = std::time::Duration::from_secs(300);
/// RFC 8656, section 12.
const CHANNEL_LIFETIME: std::time::Duration = std::time::Duration::from_secs(600);

/// Why something cannot be granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The channel has another peer, or the peer another channel (RFC 8656, section 12.2).
    Taken,
    /// There are as many as allowed.
    Full,
}

#[derive(Debug)]
struct Channel {
    peer: SocketAddr,
    until: Instant,
}

/// An allocation.
#[derive(Debug)]
pub(super) struct Allocation {
    pub(super) client: Client,
    /// The user's name without expiry.
    pub(super) name: String,
    /// The whole user name, and the key: what every further request must be signed with.
    pub(super) username: String,
    pub(super) key: IntegrityKey,
    /// The transaction that made it: a repeated one gets the same answer.
    pub(super) transaction: TransactionId,
    /// Where peers send to, one address per family that was granted: what the client is told, and what is in the headers of
    /// our own datagrams.
    pub(super) relayed: Vec<SocketAddr>,
    /// A family that was asked for besides, and why there is none.
    pub(super) refused: Option<(AddressFamily, ErrorCode)>,
    pub(super) until: Instant,
    pub(super) bytes: Bucket,
    permissions: HashMap<IpAddr, Instant>,
    channels: HashMap<ChannelNumber, Channel>,
    by_peer: HashMap<SocketAddr, ChannelNumber>,
}

impl Allocation {
    pub(super) fn new(
        client: Client,
        user: (String, String, IntegrityKey),
        transaction: TransactionId,
        (relayed, refused): (Vec<SocketAddr>, Option<(AddressFamily, ErrorCode)>),
        until: Instant,
        bytes: Bucket,
    ) -> Self {
        let (name, username, key) = user;
        let (permissions, channels, by_peer) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self {
            client,
            name,
            username,
            key,
            transaction,
            relayed,
            refused,
            until,
            bytes,
            permissions,
            channels,
            by_peer,
        }
    }

    /// The relayed address that reaches peers of this family.
    pub(super) fn relayed(&self, family: AddressFamily) -> Option<SocketAddr> {
        self.relayed.iter().copied().find(|relayed| AddressFamily::of(relayed) == family)
    }

    /// Lets all these hosts send, or none of them.
    pub(super) fn permit(&mut self, peers: &[IpAddr], now: Instant) -> Result<(), Refused> {
        let new = peers.iter().filter(|peer| !self.permissions.contains_key(*peer)).count();
        if self.permissions.len() + new > TURN_PERMISSIONS {
            self.permissions.retain(|_, until| *until > now);
        }
        if self.permissions.len() + new > TURN_PERMISSIONS {
            return Err(Refused::Full);
        }
        self.permissions.extend(peers.iter().map(|peer| (*peer, now + PERMISSION_LIFETIME)));
        Ok(())
    }

    pub(super) fn permits(&self, peer: IpAddr, now: Instant) -> bool {
        self.permissions.get(&peer).is_some_and(|until| *until > now)
    }

    /// Gives a peer a channel and a permission, or renews both.
    pub(super) fn bind(&mut self, channel: ChannelNumber, peer: SocketAddr, now: Instant) -> Result<(), Refused> {
        self.forget_channels(now);
        match (self.channels.get(&channel), self.by_peer.get(&peer)) {
            (Some(bound), _) if bound.peer != peer => return Err(Refused::Taken),
            (_, Some(other)) if *other != channel => return Err(Refused::Taken),
            (None, _) if self.channels.len() >= TURN_CHANNELS => return Err(Refused::Full),
            _ => {}
        }
        self.permit(&[peer.ip()], now)?;
        self.channels.insert(channel, Channel { peer, until: now + CHANNEL_LIFETIME });
        self.by_peer.insert(peer, channel);
        Ok(())
    }

    /// The peer of a channel.
    pub(super) fn peer_of(&self, channel: ChannelNumber, now: Instant) -> Option<SocketAddr> {
        self.channels.get(&channel).filter(|bound| bound.until > now).map(|bound| bound.peer)
    }

    /// The channel of a peer.
    pub(super) fn channel_of(&self, peer: SocketAddr, now: Instant) -> Option<ChannelNumber> {
        self.by_peer.get(&peer).copied().filter(|channel| self.peer_of(*channel, now).is_some())
    }

    fn forget_channels(&mut self, now: Instant) {
        self.channels.retain(|_, bound| bound.until > now);
        let channels = &self.channels;
        self.by_peer.retain(|_, channel| channels.contains_key(channel));
    }
}
