//! One request until it is answered or given up: the retransmissions of RFC 8489 §6.2.1, shared by all machines here.
//!
//! A machine starts a [`Transaction`] with a sealed request, sends what [`Transaction::take_transmit`] gives, and asks
//! [`Transaction::on_timeout`] when its time has come. Matching responses is one comparison: [`Transaction::is_answered_by`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::stun::{Scanned, Sealed, TransactionId};
use crate::limits::NAT_EVENTS;

/// RFC 8489 §6.2.1 asks for 500 ms; most servers answer within 100 ms, and a user waits.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// RFC 8489 §6.2.1: Rc.
const TRIES: u32 = 7;
/// RFC 8489 §6.2.1: Rm, how many first waits the last one is long.
const LAST_WAIT_FACTOR: u32 = 16;

/// A datagram to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

/// How often and how long a request is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetransmitOptions {
    first_wait: Duration,
    tries: u32,
}

impl RetransmitOptions {
    /// 7 tries, the first wait 200 ms: sent at 0, 0.2, 0.6, 1.4, 3, 6.2 and 12.6 s, given up at 15.8 s.
    pub fn new() -> Self {
        Self { first_wait: FIRST_WAIT, tries: TRIES }
    }

    /// The first wait; each further one is twice as long. Default 200 ms, at least 10 ms. Shorter than the round trip: packets
    /// are sent for nothing. Long: a lost packet is noticed late.
    pub fn with_first_wait(mut self, wait: Duration) -> Self {
        self.first_wait = wait.clamp(Duration::from_millis(10), Duration::from_secs(5));
        self
    }

    /// How often a request is sent, 1 to 10; default 7. Few: a lossy network looks like a dead one.
    pub fn with_tries(mut self, tries: u32) -> Self {
        self.tries = tries.clamp(1, 10);
        self
    }

    /// How long after the first packet of a request it is given up.
    pub fn total(&self) -> Duration {
        (1..=self.tries).map(|sent| self.wait_after(sent)).sum()
    }

    /// How long to wait after the n-th packet, from 1.
    fn wait_after(&self, sent: u32) -> Duration {
        let doubled = self.first_wait * (1 << (sent - 1));
        if sent < self.tries { doubled } else { doubled.min(self.first_wait * LAST_WAIT_FACTOR) }
    }
}

impl Default for RetransmitOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes transaction ids from a seed that the driver draws from the system.
#[derive(Debug)]
pub(super) struct TransactionIds(ChaCha20Rng);

impl TransactionIds {
    pub(super) fn from_seed(seed: [u8; 32]) -> Self {
        Self(ChaCha20Rng::from_seed(seed))
    }

    pub(super) fn draw(&mut self) -> TransactionId {
        let mut bytes = [0; 12];
        self.0.fill_bytes(&mut bytes);
        TransactionId::from_random(bytes)
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Transaction {
    sealed: Sealed,
    options: RetransmitOptions,
    sent: u32,
    transmit: bool,
    due: Instant,
}

/// What the end of a wait means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waited {
    /// Its time has not come, or it is sent once more.
    GoesOn,
    /// Nobody answered.
    GivenUp,
}

impl Transaction {
    /// To be sent at once.
    pub(super) fn start(sealed: Sealed, options: RetransmitOptions, now: Instant) -> Self {
        Self { sealed, options, sent: 1, transmit: true, due: now + options.wait_after(1) }
    }

    /// Over TCP and TLS: sent once, given up as late as over UDP (RFC 8489 §6.2.2).
    pub(super) fn start_reliable(sealed: Sealed, options: RetransmitOptions, now: Instant) -> Self {
        Self { sealed, options, sent: options.tries, transmit: true, due: now + options.total() }
    }

    /// The packet, if it is time for one.
    pub(super) fn take_transmit(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.transmit).then(|| self.sealed.bytes().to_vec())
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    pub(super) fn on_timeout(&mut self, now: Instant) -> Waited {
        if now < self.due {
            return Waited::GoesOn;
        }
        if self.sent >= self.options.tries {
            return Waited::GivenUp;
        }
        self.sent += 1;
        self.transmit = true;
        // From now, not from when it was due: a driver that slept sends no burst.
        self.due = now + self.options.wait_after(self.sent);
        Waited::GoesOn
    }

    pub(super) fn is_answered_by(&self, message: &Scanned<'_>) -> bool {
        self.sealed.transaction_id() == message.transaction_id()
    }
}

/// Events for the driver, at most `NAT_EVENTS`.
#[derive(Debug)]
pub(super) struct Events<T>(VecDeque<T>);

impl<T> Events<T> {
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn push(&mut self, event: T) {
        if self.0.len() == NAT_EVENTS {
            self.0.pop_front();
        }
        self.0.push_back(event);
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        self.0.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::super::stun::Request;
    use super::*;

    /// When packets go out, in milliseconds after the start, and when it is given up.
    fn schedule(mut transaction: Transaction, start: Instant) -> (Vec<u128>, u128) {
        let (mut now, mut sent) = (start, Vec::new());
        loop {
            sent.extend(transaction.take_transmit().map(|_| (now - start).as_millis()));
            now = transaction.due();
            if transaction.on_timeout(now) == Waited::GivenUp {
                return (sent, (now - start).as_millis());
            }
        }
    }

    fn sealed() -> Sealed {
        Request::binding().seal(TransactionIds::from_seed([1; 32]).draw(), None).unwrap()
    }

    #[test]
    fn a_request_is_repeated_with_doubling_waits_and_given_up() {
        let (now, options) = (Instant::now(), RetransmitOptions::new());
        let over_udp = schedule(Transaction::start(sealed(), options, now), now);
        assert_eq!(over_udp, (vec![0, 200, 600, 1400, 3000, 6200, 12600], 15800));
        let over_tcp = schedule(Transaction::start_reliable(sealed(), options, now), now);
        assert_eq!(over_tcp, (vec![0], 15800));
    }

    #[test]
    fn with_the_values_of_rfc_8489_the_schedule_is_that_of_rfc_8489() {
        let now = Instant::now();
        let options = RetransmitOptions::new().with_first_wait(Duration::from_millis(500));
        let (sent, given_up) = schedule(Transaction::start(sealed(), options, now), now);
        assert_eq!((sent, given_up), (vec![0, 500, 1500, 3500, 7500, 15500, 31500], 39500));
    }

    #[test]
    fn few_tries_do_not_end_in_a_long_wait() {
        assert_eq!(RetransmitOptions::new().with_tries(3).total(), Duration::from_millis(1400));
    }

    #[test]
    fn ids_repeat_with_their_seed_only() {
        let draw = |seed| TransactionIds::from_seed([seed; 32]).draw();
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
