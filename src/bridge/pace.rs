//! When a session is ended to hear the Node's heights anew. Pure: the clock is handed in.
//!
//! Every session costs a Node memory that it never frees, so what does not move is asked for later and later.

use std::time::Duration;

use tokio::time::Instant;

use crate::limits::{BRIDGE_OFFER_AGAIN, BRIDGE_OFFER_AGAIN_MOST, BRIDGE_VERIFY_AFTER, BRIDGE_VERIFY_MOST};

/// How long a session lasts at least in which something waits for the Node to store what is in flight.
const DIGESTION: Duration = Duration::from_millis(300);
/// Longest such time.
const DIGESTION_MOST: Duration = Duration::from_secs(2);

/// Why the Node's heights should be asked for, and how often that was in vain, or as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Something waits for what was in flight before, or for room. Sessions in a row in which nothing of that arrived.
    Waits(u32),
    /// Something came that does not follow what is here, or at the Node. Sessions in a row that did not mend it.
    Gap(u32),
    /// To see whether what was sent is there. Times in a row that it was.
    Verify(u32),
    /// An author is offered again whose operations the Node does not take. Times in a row that it did not.
    Stuck(u32),
}

/// One session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) began: Instant,
    /// Both sides were done.
    pub(super) live: Instant,
    /// The last operation was handed to the transport.
    pub(super) sent: Instant,
}

impl Why {
    /// When to ask.
    pub(super) fn due(self, times: &Times) -> Instant {
        match self {
            // What came while the session was live is stored by now, but for the last of it: live operations do not wait.
            Self::Waits(rounds) => times.live + doubled(DIGESTION, rounds, DIGESTION_MOST),
            Self::Gap(rounds) => times.live + doubled(DIGESTION, rounds, BRIDGE_OFFER_AGAIN_MOST),
            Self::Verify(times_well) => {
                let pause = doubled(BRIDGE_VERIFY_AFTER, times_well, BRIDGE_VERIFY_MOST);
                (times.sent + BRIDGE_VERIFY_AFTER).max(times.began + pause)
            }
            Self::Stuck(rounds) => times.began + doubled(BRIDGE_OFFER_AGAIN, rounds, BRIDGE_OFFER_AGAIN_MOST),
        }
    }
}

fn doubled(first: Duration, times: u32, most: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_move_is_asked_for_later_and_later_and_not_for_ever_later() {
        let began = Instant::now();
        let (live, sent) = (began + Duration::from_secs(1), began + Duration::from_secs(2));
        let times = Times { began, live, sent };
        let due = |why: fn(u32) -> Why| [0, 1, 5, u32::MAX].map(|rounds| (why(rounds).due(&times) - began).as_millis());
        assert_eq!(due(Why::Waits), [1_300, 1_600, 3_000, 3_000]);
        assert_eq!(due(Why::Gap), [1_300, 1_600, 10_600, 301_000]);
        assert_eq!(due(Why::Verify), [12_000, 20_000, 320_000, 320_000]);
        assert_eq!(due(Why::Stuck), [60_000, 120_000, 300_000, 300_000]);
    }
}
