//! When to dial one peer: the pure state machine of reconnection.
//!
//! Tell it what happens (`on_*`, with the time and a random number where it needs one), look at [`PeerMachine::state`], and
//! call [`PeerMachine::on_timeout`] when [`PeerMachine::poll_timeout`] says so. It dials nothing itself.

use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::ReconnectionPolicy;

/// A connection that lasted this long was a good one: the next attempt after it starts from the shortest wait.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Longest wait before the first attempt after a loss; spreads the attempts of two peers that lost each other.
const FIRST_RETRY_SPREAD: Duration = Duration::from_millis(100);

/// Where the connection to one peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerConnectionState {
    /// Not wanted now: this node is offline.
    Disconnected,
    /// An attempt is under way.
    Connecting,
    /// Connected since then.
    Connected {
        /// When it was established.
        since: Instant,
    },
    /// The next attempt is at this time.
    Reconnecting {
        /// When.
        at: Instant,
    },
    /// As many attempts failed as the policy allows: waits for a network change, a new address or the peer itself.
    ConnectionFailed,
}

/// Reconnection to one peer.
#[derive(Debug)]
pub struct PeerMachine {
    policy: ReconnectionPolicy,
    state: PeerConnectionState,
    failures: u32,
}

impl PeerMachine {
    /// A peer that is to be dialled at once.
    pub fn new(policy: ReconnectionPolicy) -> Self {
        Self { policy, state: PeerConnectionState::Connecting, failures: 0 }
    }

    /// Where it stands.
    pub fn state(&self) -> PeerConnectionState {
        self.state
    }

    /// A connection exists, whoever dialled.
    pub fn on_connected(&mut self, now: Instant) {
        if !matches!(self.state, PeerConnectionState::Connected { .. }) {
            self.state = PeerConnectionState::Connected { since: now };
        }
    }

    /// The attempt failed.
    pub fn on_attempt_failed(&mut self, now: Instant, random: f64) {
        self.failures = self.failures.saturating_add(1);
        self.state = match self.policy.delay_after(self.failures, random) {
            Some(delay) => PeerConnectionState::Reconnecting { at: now + delay },
            None => PeerConnectionState::ConnectionFailed,
        };
    }

    /// The connection was lost: the first attempt follows at once, later ones wait longer and longer, unless it was stable.
    pub fn on_lost(&mut self, now: Instant, random: f64) {
        let PeerConnectionState::Connected { since } = self.state else { return };
        if now.duration_since(since) >= STABLE_AFTER {
            self.failures = 0;
        }
        if self.failures == 0 {
            self.failures = 1;
            self.state = PeerConnectionState::Reconnecting { at: now + FIRST_RETRY_SPREAD.mul_f64(random) };
        } else {
            self.on_attempt_failed(now, random);
        }
    }

    /// The network changed, the machine woke up, somebody asked, or the peer has a new address: dial at once.
    pub fn on_network_change(&mut self) {
        match self.state {
            PeerConnectionState::Disconnected
            | PeerConnectionState::Reconnecting { .. }
            | PeerConnectionState::ConnectionFailed => {
                self.failures = 0;
                self.state = PeerConnectionState::Connecting;
            }
            PeerConnectionState::Connecting | PeerConnectionState::Connected { .. } => {}
        }
    }

    /// This node went offline on purpose.
    pub fn on_offline(&mut self) {
        self.failures = 0;
        self.state = PeerConnectionState::Disconnected;
    }

    /// When to call `on_timeout`, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match self.state {
            PeerConnectionState::Reconnecting { at } => Some((at, "next attempt")),
            PeerConnectionState::Disconnected
            | PeerConnectionState::Connecting
            | PeerConnectionState::Connected { .. }
            | PeerConnectionState::ConnectionFailed => None,
        }
    }

    /// The time of `poll_timeout` may have come.
    pub fn on_timeout(&mut self, now: Instant) {
        if let PeerConnectionState::Reconnecting { at } = self.state
            && at <= now
        {
            self.state = PeerConnectionState::Connecting;
        }
    }
}

/// Which of two connections to one peer stays, decided alike by both ends: true for the new one.
///
/// Newest wins, except when two peers dialled each other at the same moment: then the one dialled by the smaller peer id.
pub fn new_connection_wins(existing_age: Duration, same_direction: bool, new_dialled_by_smaller: bool) -> bool {
    same_direction || existing_age >= SIMULTANEOUS || new_dialled_by_smaller
}

/// Two connections in opposite directions within this time were dialled at the same moment.
const SIMULTANEOUS: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn machine() -> (PeerMachine, Instant) {
        (PeerMachine::new(ReconnectionPolicy::new().with_jitter(0.0)), Instant::now())
    }

    fn wait(machine: &PeerMachine, now: Instant) -> u128 {
        machine.poll_timeout().unwrap().0.duration_since(now).as_millis()
    }

    #[test]
    fn a_lost_connection_is_dialled_at_once_and_then_with_growing_waits() {
        let (mut machine, now) = machine();
        machine.on_connected(now);
        machine.on_lost(now, 0.5);
        assert_eq!(wait(&machine, now), 50);
        machine.on_timeout(now + FIRST_RETRY_SPREAD);
        assert_eq!(machine.state(), PeerConnectionState::Connecting);
        machine.on_attempt_failed(now, 0.5);
        assert_eq!(wait(&machine, now), 1000);
        machine.on_attempt_failed(now, 0.5);
        assert_eq!(wait(&machine, now), 2000);
    }

    #[test]
    fn a_connection_that_keeps_breaking_is_not_dialled_in_a_tight_loop() {
        let (mut machine, now) = machine();
        let waits: Vec<_> = (0..4)
            .map(|_| {
                machine.on_connected(now);
                machine.on_lost(now, 0.0);
                wait(&machine, now)
            })
            .collect();
        assert_eq!(waits, [0, 1000, 2000, 4000]);
        machine.on_connected(now);
        machine.on_lost(now + STABLE_AFTER, 0.0);
        assert_eq!(wait(&machine, now + STABLE_AFTER), 0, "a stable one starts over");
    }

    #[test]
    fn a_network_change_dials_at_once_even_after_giving_up() {
        let mut machine = PeerMachine::new(ReconnectionPolicy::new().with_max_attempts(1));
        machine.on_attempt_failed(Instant::now(), 0.5);
        assert_eq!(machine.state(), PeerConnectionState::ConnectionFailed);
        assert_eq!(machine.poll_timeout(), None);
        machine.on_network_change();
        assert_eq!(machine.state(), PeerConnectionState::Connecting);
    }

    #[test]
    fn offline_nothing_is_dialled_until_online_again() {
        let (mut machine, now) = machine();
        machine.on_attempt_failed(now, 0.5);
        machine.on_offline();
        machine.on_timeout(now + Duration::from_secs(3600));
        assert_eq!((machine.state(), machine.poll_timeout()), (PeerConnectionState::Disconnected, None));
    }

    proptest! {
        #[test]
        fn two_ends_that_dialled_each_other_keep_the_same_connection(
            a_sees_own_first: bool,
            b_sees_own_first: bool,
            age_ms in 0u64..4999,
        ) {
            // End A has the smaller id. Each end sees the two connections in either order.
            let keeps_own = |sees_own_first: bool, own_is_by_smaller: bool| {
                let new_is_by_smaller = sees_own_first != own_is_by_smaller;
                new_connection_wins(Duration::from_millis(age_ms), false, new_is_by_smaller) != sees_own_first
            };
            let (a_keeps_own, b_keeps_own) = (keeps_own(a_sees_own_first, true), keeps_own(b_sees_own_first, false));
            prop_assert!(a_keeps_own && !b_keeps_own);
        }
    }
}
