//! How long to wait before the next try. Pure: the random number is handed in.

use std::time::Duration;

/// When to try a lost or failed connection again: `initial × factor^attempt`, capped, with jitter.
#[derive(Debug, Clone, PartialEq)]
pub struct ReconnectionPolicy {
    initial: Duration,
    max: Duration,
    factor: f64,
    jitter: f64,
    max_attempts: Option<u32>,
}

impl Default for ReconnectionPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl ReconnectionPolicy {
    /// 500 ms, doubling up to 30 s, ±20 % jitter, for ever.
    pub fn new() -> Self {
        Self {
            initial: Duration::from_millis(500),
            max: Duration::from_secs(30),
            factor: 2.0,
            jitter: 0.2,
            max_attempts: None,
        }
    }

    /// Wait before the second attempt. Default 500 ms. Too small floods a peer that is down; at least 1 ms.
    pub fn with_initial_delay(mut self, delay: Duration) -> Self {
        self.initial = delay.max(Duration::from_millis(1));
        self
    }

    /// Longest wait between two attempts. Default 30 s. Too large makes a returning peer wait that long.
    pub fn with_max_delay(mut self, delay: Duration) -> Self {
        self.max = delay;
        self
    }

    /// Growth of the wait from one attempt to the next. Default 2.0; values below 1.0 are taken as 1.0.
    pub fn with_factor(mut self, factor: f64) -> Self {
        self.factor = if factor.is_finite() { factor.max(1.0) } else { 2.0 };
        self
    }

    /// Share of the wait that is random, 0.0–1.0. Default 0.2. Zero lets peers that failed together retry together.
    pub fn with_jitter(mut self, jitter: f64) -> Self {
        self.jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.2 };
        self
    }

    /// Attempts before giving up until the next network change or manual retry. Default: never give up.
    pub fn with_max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// How long to wait after `failures` failed attempts in a row (1 or more), or `None` to give up.
    /// `random` is uniform in 0.0–1.0 and spreads the wait over `1 ± jitter`.
    pub fn delay_after(&self, failures: u32, random: f64) -> Option<Duration> {
        if self.max_attempts.is_some_and(|max| failures >= max) {
            return None;
        }
        let exponent = failures.saturating_sub(1).min(1024) as i32;
        let wait = (self.initial.as_secs_f64() * self.factor.powi(exponent)).min(self.max.as_secs_f64());
        let spread = 1.0 + self.jitter * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        Some(Duration::from_secs_f64(wait * spread))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_from_half_a_second_to_thirty_seconds() {
        let policy = ReconnectionPolicy::new().with_jitter(0.0);
        let waits: Vec<_> = (1..=9).map(|n| policy.delay_after(n, 0.5).unwrap().as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert!(policy.delay_after(u32::MAX, 0.5).is_some(), "by default it never gives up");
    }

    #[test]
    fn jitter_spreads_the_wait_by_at_most_its_share() {
        let policy = ReconnectionPolicy::new();
        assert_eq!(policy.delay_after(1, 0.0), Some(Duration::from_millis(400)));
        assert_eq!(policy.delay_after(1, 1.0), Some(Duration::from_millis(600)));
    }

    #[test]
    fn it_gives_up_after_the_configured_attempts() {
        let policy = ReconnectionPolicy::new().with_max_attempts(3);
        assert!(policy.delay_after(2, 0.5).is_some());
        assert!(policy.delay_after(3, 0.5).is_none());
    }
}
