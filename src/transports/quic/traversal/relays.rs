//! Which relays this node has sessions with: a plain data structure; the clock and the sessions are handed in.
//!
//! *Kept* ones are where this node wants to be found: those of its options and of tickets, in that order, as
//! [`Relays::keep`] is told. *Borrowed* ones are other people's, where a dial looks for a peer: there while somebody leases them
//! and for a while after, and with slots of their own, so that what others write in their records displaces nothing of ours.
//! When these slots are taken, makes room what nobody needs now, and what has not come up.

use std::time::Duration;

use tokio::time::Instant;

use crate::ids::PeerId;
use crate::limits::{RELAYS_BORROWED, RELAYS_PER_NODE};
use crate::rendezvous::address::RelayAddress;

/// How long a borrowed relay stays that nobody leases: whoever was dialled there is often dialled again.
const UNUSED: Duration = Duration::from_secs(60);
/// How long one that does not come up keeps its slot from others.
const PATIENCE: Duration = Duration::from_secs(2);

/// A session, as far as it matters here.
pub(super) trait Session {
    /// The relay's key, while the session is up.
    fn key(&self) -> Option<PeerId>;
}

/// All relays, in the order in which they were opened.
#[derive(Debug)]
pub(super) struct Relays<S> {
    known: Vec<Known<S>>,
    opened: u64,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Known<S> {
    /// Never used again.
    number: u64,
    pub(super) address: RelayAddress,
    pub(super) session: S,
    /// Its place among the kept ones; `None`: borrowed.
    place: Option<usize>,
    /// Leases of dials, and of connections that this relay carries.
    needed: usize,
    /// Leases of connections that have something better.
    standby: usize,
    opened_at: Instant,
    /// When it was last leased or kept, or ceased to be.
    used_at: Instant,
}

impl<S> Known<S> {
    pub(super) fn is_kept(&self) -> bool {
        self.place.is_some()
    }
}

impl<S: Session> Known<S> {
    /// Whether this is the relay of that address. One that was named without a key is whoever answers there.
    fn is(&self, address: &RelayAddress) -> bool {
        let same_key = match (&self.address.key, &address.key) {
            (Some(one), Some(other)) => one == other,
            (None, Some(key)) => self.session.key().is_none_or(|shown| shown == *key),
            (_, None) => true,
        };
        self.address.server == address.server && same_key
    }

    fn gives_way(&self, now: Instant) -> bool {
        let hopeless = self.session.key().is_none() && now >= self.opened_at + PATIENCE;
        !self.is_kept() && (self.needed == 0 || hopeless)
    }
}

impl<S> Default for Relays<S> {
    fn default() -> Self {
        Self { known: Vec::new(), opened: 0 }
    }
}

impl<S: Session> Relays<S> {
    /// Keeps these from now on, best first, as many as may be; others are borrowed ones from now on. Returns those that were
    /// not kept before.
    pub(super) fn keep(
        &mut self,
        wanted: &[RelayAddress],
        now: Instant,
        mut start: impl FnMut(&RelayAddress) -> S,
    ) -> Vec<RelayAddress> {
        let mut before = Vec::new();
        for known in self.known.iter_mut().filter(|known| known.is_kept()) {
            (known.place, known.used_at) = (None, now);
            before.push(known.number);
        }
        let (mut places, mut new) = (0, Vec::new());
        for address in wanted {
            if places == RELAYS_PER_NODE {
                break;
            }
            let known = match self.known.iter().position(|known| known.is(address)) {
                Some(at) => &mut self.known[at],
                None => self.open(address, now, &mut start),
            };
            if known.place.is_none() {
                known.place = Some(places);
                places += 1;
                if !before.contains(&known.number) {
                    new.push(known.address.clone());
                }
            }
        }
        new
    }

    /// Leases a relay, which is opened if it is not there. `None` while all slots are taken.
    pub(super) fn borrow(
        &mut self,
        address: &RelayAddress,
        now: Instant,
        start: impl FnMut(&RelayAddress) -> S,
    ) -> Option<(u64, &Known<S>)> {
        if !self.has(address) {
            while self.known.iter().filter(|known| !known.is_kept()).count() >= RELAYS_BORROWED {
                let victims = self.known.iter().enumerate().filter(|(_, known)| known.gives_way(now));
                let (at, _) = victims.min_by_key(|(_, known)| (known.needed > 0, known.standby > 0, known.used_at))?;
                self.known.remove(at);
            }
            self.open(address, now, start);
        }
        self.lease(address, now)
    }

    /// Leases a relay that is there.
    pub(super) fn lease(&mut self, address: &RelayAddress, now: Instant) -> Option<(u64, &Known<S>)> {
        let known = self.known.iter_mut().find(|known| known.is(address))?;
        known.needed += 1;
        known.used_at = now;
        Some((known.number, known))
    }

    fn open(
        &mut self,
        address: &RelayAddress,
        now: Instant,
        mut start: impl FnMut(&RelayAddress) -> S,
    ) -> &mut Known<S> {
        let (number, at) = (self.opened, self.known.len());
        self.opened += 1;
        self.known.push(Known {
            number,
            address: address.clone(),
            session: start(address),
            place: None,
            needed: 0,
            standby: 0,
            opened_at: now,
            used_at: now,
        });
        &mut self.known[at]
    }

    /// Whether there is a session, up or not, with that relay.
    pub(super) fn has(&self, address: &RelayAddress) -> bool {
        self.known.iter().any(|known| known.is(address))
    }
}

impl<S> Relays<S> {
    /// Whoever has a lease needs the relay, or has something better now.
    pub(super) fn set_needed(&mut self, number: u64, needed: bool) {
        let Some(known) = self.known.iter_mut().find(|known| known.number == number) else { return };
        let (more, less) = match needed {
            true => (&mut known.needed, &mut known.standby),
            false => (&mut known.standby, &mut known.needed),
        };
        *more += 1;
        *less = less.saturating_sub(1);
    }

    /// A lease is given back, that of somebody who needed the relay or not.
    pub(super) fn release(&mut self, number: u64, needed: bool, now: Instant) {
        let Some(known) = self.known.iter_mut().find(|known| known.number == number) else { return };
        let leases = if needed { &mut known.needed } else { &mut known.standby };
        *leases = leases.saturating_sub(1);
        known.used_at = now;
    }

    /// Lets borrowed ones go that nobody has leased for a while.
    pub(super) fn sweep(&mut self, now: Instant) {
        let is_used = |known: &Known<S>| known.is_kept() || known.needed + known.standby > 0;
        self.known.retain(|known| is_used(known) || now < known.used_at + UNUSED);
    }

    /// The session with the relay that goes by exactly this address.
    pub(super) fn get(&self, address: &RelayAddress) -> Option<&Known<S>> {
        self.known.iter().find(|known| known.address == *address)
    }

    /// Whether a lease is one of a session that is still there.
    pub(super) fn is_open(&self, number: u64) -> bool {
        self.known.iter().any(|known| known.number == number)
    }

    /// Those that are kept, best first.
    pub(super) fn kept(&self) -> Vec<&Known<S>> {
        let mut kept: Vec<_> = self.known.iter().filter(|known| known.is_kept()).collect();
        kept.sort_by_key(|known| known.place);
        kept
    }

    /// All of them: first those that are kept.
    pub(super) fn all(&self) -> impl Iterator<Item = &Known<S>> {
        self.kept().into_iter().chain(self.known.iter().filter(|known| !known.is_kept()))
    }

    /// Ends all sessions.
    pub(super) fn clear(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    /// Up with this key, or not up.
    #[derive(Debug, Default)]
    struct Fake(Option<PeerId>);

    impl Session for Fake {
        fn key(&self) -> Option<PeerId> {
            self.0
        }
    }

    fn key(number: u8) -> PeerId {
        Identity::from_seed(&[number; 32]).peer_id()
    }

    fn relay(number: usize) -> RelayAddress {
        format!("relay-{number}.example.org:443").parse().unwrap()
    }

    fn keyed(number: usize, by: u8) -> RelayAddress {
        RelayAddress { key: Some(key(by)), ..relay(number) }
    }

    fn up(_: &RelayAddress) -> Fake {
        Fake(Some(key(1)))
    }

    fn down(_: &RelayAddress) -> Fake {
        Fake(None)
    }

    fn servers(relays: &Relays<Fake>) -> Vec<RelayAddress> {
        relays.kept().into_iter().map(|known| known.address.clone()).collect()
    }

    #[test]
    fn what_others_name_takes_no_place_of_what_is_kept() {
        let (mut relays, now) = (Relays::default(), Instant::now());
        relays.keep(&[relay(1)], now, down);
        let leased = (100..1000).filter(|number| relays.borrow(&relay(*number), now, up).is_some()).count();
        assert_eq!(leased, RELAYS_BORROWED);
        let wanted: Vec<_> = (0..2 * RELAYS_PER_NODE).map(relay).collect();
        assert_eq!(relays.keep(&wanted, now, down).len(), RELAYS_PER_NODE - 1);
        assert_eq!(servers(&relays), wanted[..RELAYS_PER_NODE]);
    }

    #[test]
    fn a_borrowed_one_goes_a_while_after_its_last_use() {
        let (mut relays, start) = (Relays::default(), Instant::now());
        let (lease, _) = relays.borrow(&relay(1), start, up).unwrap();
        relays.sweep(start + 10 * UNUSED);
        assert!(relays.has(&relay(1)));
        relays.set_needed(lease, false);
        relays.sweep(start + 10 * UNUSED);
        assert!(relays.has(&relay(1)), "a standby is a use");
        relays.release(lease, false, start + 10 * UNUSED);
        relays.sweep(start + 11 * UNUSED - Duration::from_millis(1));
        assert!(relays.has(&relay(1)));
        relays.sweep(start + 11 * UNUSED);
        assert!(!relays.has(&relay(1)) && !relays.is_open(lease));
    }

    #[test]
    fn when_the_slots_are_taken_room_is_made_by_what_is_needed_least() {
        let (mut relays, start) = (Relays::default(), Instant::now());
        let leases: Vec<_> = (0..RELAYS_BORROWED)
            .map(|number| relays.borrow(&relay(number), start, if number == 3 { down } else { up }).unwrap().0)
            .collect();
        assert!(relays.borrow(&relay(100), start, up).is_none(), "all are needed");
        relays.set_needed(leases[2], false);
        relays.release(leases[1], true, start);
        let later = start + PATIENCE;
        for (number, gone) in [(100, 1), (101, 2), (102, 3)] {
            assert!(relays.borrow(&relay(number), later, up).is_some());
            assert!(!relays.has(&relay(gone)), "{gone}");
        }
        assert!(relays.borrow(&relay(103), later, up).is_none());
        // A lease of a session that is gone changes nothing of another one.
        relays.release(leases[1], true, later);
        assert!(relays.borrow(&relay(103), later, up).is_none());
    }

    #[test]
    fn one_relay_is_one_session_with_and_without_its_key() {
        for start in [up, down] {
            let (mut relays, now) = (Relays::default(), Instant::now());
            relays.keep(&[relay(1), keyed(1, 1)], now, start);
            relays.borrow(&keyed(1, 1), now, start);
            assert_eq!(relays.all().count(), 1);
        }
        let (mut relays, now) = (Relays::default(), Instant::now());
        relays.keep(&[relay(1)], now, up);
        relays.borrow(&keyed(1, 2), now, up);
        assert_eq!(relays.all().count(), 2, "somebody else");
        relays.keep(&[keyed(2, 1), relay(2)], now, up);
        assert_eq!(servers(&relays), [keyed(2, 1)]);
    }

    #[test]
    fn what_is_not_kept_any_more_is_borrowed_for_a_while() {
        let (mut relays, start) = (Relays::default(), Instant::now());
        relays.keep(&[relay(1), relay(2)], start, up);
        assert_eq!(relays.keep(&[relay(2), relay(3)], start + UNUSED, up), [relay(3)]);
        assert_eq!(servers(&relays), [relay(2), relay(3)]);
        relays.sweep(start + UNUSED);
        assert!(relays.has(&relay(1)));
        relays.sweep(start + 2 * UNUSED);
        assert!(!relays.has(&relay(1)));
    }
}
