//! The channels of one allocation: which number stands for which peer (RFC 8656 §12).
//!
//! A number belongs to its peer for as long as the server remembers it, so a peer that is let go keeps its entry until then
//! and gets its number back when it returns. Numbers are taken in turn: one that was in use is used again last.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::permissions::Grant;
use crate::limits::TURN_MAX_PEERS;
use crate::nat::stun::ChannelNumber;

/// RFC 8656 §12: a channel lives ten minutes.
const LIFETIME: Duration = Duration::from_secs(600);
/// A minute before that.
const REFRESH: Duration = Duration::from_secs(540);

#[derive(Debug)]
struct Channel {
    peer: SocketAddr,
    number: ChannelNumber,
    grant: Grant,
    /// False when the peer was let go: nothing is sent or taken, nothing refreshed.
    wanted: bool,
}

/// At most `TURN_MAX_PEERS`, so looking one up is a short walk.
#[derive(Debug)]
pub(super) struct Channels {
    entries: Vec<Channel>,
    next: ChannelNumber,
}

impl Channels {
    pub(super) fn new() -> Self {
        Self { entries: Vec::new(), next: ChannelNumber::MIN }
    }

    pub(super) fn want(&mut self, peer: SocketAddr) {
        if let Some(channel) = self.entries.iter_mut().find(|channel| channel.peer == peer) {
            channel.wanted = true;
            return;
        }
        if self.entries.len() >= TURN_MAX_PEERS {
            // There are fewer peers than entries, so one was let go; entries are in the order of their making.
            let Some(oldest) = self.entries.iter().position(|channel| !channel.wanted) else { return };
            self.entries.remove(oldest);
        }
        let number = self.free_number();
        self.entries.push(Channel { peer, number, grant: Grant::Wanted, wanted: true });
    }

    pub(super) fn let_go(&mut self, peer: SocketAddr) {
        self.entries.iter_mut().filter(|channel| channel.peer == peer).for_each(|channel| channel.wanted = false);
    }

    pub(super) fn grant_mut(&mut self, peer: SocketAddr) -> Option<&mut Grant> {
        self.entries.iter_mut().find(|channel| channel.peer == peer).map(|channel| &mut channel.grant)
    }

    /// The number to send on.
    pub(super) fn bound(&self, peer: SocketAddr) -> Option<ChannelNumber> {
        let bound = |channel: &&Channel| channel.peer == peer && channel.wanted && channel.grant.is_held();
        self.entries.iter().find(bound).map(|channel| channel.number)
    }

    /// Whose number it is. Data may come before the answer that says that the channel is bound.
    pub(super) fn peer(&self, number: ChannelNumber) -> Option<SocketAddr> {
        self.entries.iter().find(|channel| channel.number == number && channel.wanted).map(|channel| channel.peer)
    }

    pub(super) fn on_granted(&mut self, now: Instant, peer: SocketAddr) {
        if let Some(grant) = self.grant_mut(peer) {
            grant.on_granted(now, REFRESH, LIFETIME);
        }
    }

    pub(super) fn next_wanted(&self, now: Instant) -> Option<(SocketAddr, ChannelNumber)> {
        let wanted = |channel: &&Channel| channel.wanted && channel.grant.wants(now);
        self.entries.iter().find(wanted).map(|channel| (channel.peer, channel.number))
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.entries.iter().filter(|channel| channel.wanted).filter_map(|channel| channel.grant.due()).min()
    }

    pub(super) fn on_timeout(&mut self, now: Instant) {
        self.entries.iter_mut().for_each(|channel| channel.grant.on_timeout(now));
        // What was let go and has lapsed is free for others.
        self.entries.retain(|channel| channel.wanted || channel.grant.is_held() || channel.grant == Grant::Asking);
    }

    fn free_number(&mut self) -> ChannelNumber {
        loop {
            let number = self.next;
            self.next = ChannelNumber::new(number.value() + 1).unwrap_or(ChannelNumber::MIN);
            // Ends: there are far more numbers than entries.
            if self.entries.iter().all(|channel| channel.number != number) {
                return number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: usize) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port as u16))
    }

    fn number(channels: &Channels, port: usize) -> u16 {
        channels.entries.iter().find(|channel| channel.peer == peer(port)).unwrap().number.value()
    }

    #[test]
    fn a_peer_that_returns_gets_its_number_back_and_nobody_elses() {
        let mut channels = Channels::new();
        (1..=3).for_each(|port| channels.want(peer(port)));
        let numbers = [1, 2, 3].map(|port| number(&channels, port));
        assert_eq!(numbers, [0x4000, 0x4001, 0x4002]);
        channels.on_granted(Instant::now(), peer(2));
        channels.let_go(peer(2));
        assert_eq!((channels.bound(peer(2)), channels.peer(ChannelNumber::new(0x4001).unwrap())), (None, None));
        channels.want(peer(4));
        channels.want(peer(2));
        assert_eq!((number(&channels, 2), number(&channels, 4)), (0x4001, 0x4003));
        assert!(channels.bound(peer(2)).is_some(), "the server has not forgotten it");
    }

    #[test]
    fn when_the_table_is_full_the_one_let_go_longest_ago_makes_room() {
        let mut channels = Channels::new();
        (0..TURN_MAX_PEERS).for_each(|port| channels.want(peer(port)));
        channels.let_go(peer(5));
        channels.let_go(peer(3));
        channels.want(peer(1000));
        assert!(channels.entries.iter().all(|channel| channel.peer != peer(3)));
        assert_eq!(channels.entries.len(), TURN_MAX_PEERS);
        assert_eq!(number(&channels, 1000), 0x4000 + TURN_MAX_PEERS as u16);
    }

    #[test]
    fn numbers_are_used_again_after_all_others() {
        let mut channels = Channels::new();
        let seen: Vec<_> = (0..0x1000).map(|_| channels.free_number().value()).collect();
        assert!(seen.iter().copied().eq(0x4000..0x5000));
        channels.want(peer(1));
        channels.next = ChannelNumber::MIN;
        channels.want(peer(2));
        assert_eq!((number(&channels, 1), number(&channels, 2)), (0x4000, 0x4001));
    }
}
