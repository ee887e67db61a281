//! One path as [`PathSelection`](super::PathSelection) knows it: how far its checks are, and when the next one is due.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::limits::{CHECK_ROUNDS_MAX, CHECKS_PER_ROUND};
use crate::transport::PathKind;

/// Waits between the checks of one round, while a path has not answered: dense while both ends open their NATs.
const ROUND: [Duration; CHECKS_PER_ROUND] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(150),
    Duration::from_millis(300),
    Duration::from_millis(600),
    Duration::from_millis(1200),
];
/// Between two rounds for a path that does not answer; doubles with each.
const ROUND_PAUSE: Duration = Duration::from_secs(30);
/// Between two checks of a selected path that is in doubt, and of its standbys meanwhile.
const DOUBT_INTERVAL: Duration = Duration::from_millis(200);
/// Shortest and longest wait for the answer to a check.
pub(super) const ANSWER_WAIT: (Duration, Duration) = (Duration::from_millis(300), Duration::from_millis(1000));
/// Checks without an answer before a path is dead.
pub(super) const MISSED_MAX: u32 = 3;
/// Between two checks of a path that answered once and does not now: an outage ends when it ends.
const RETURN_INTERVAL: Duration = Duration::from_millis(400);
/// How many of those. Later the path is asked in rounds, like a new one.
const RETURN_CHECKS: u32 = 150;
/// How long a path is avoided after it failed or its quality fell; doubles with each time, up to 32 times.
const AVOIDED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Candidate {
    pub kind: PathKind,
    pub state: State,
    pub next_check: Option<Instant>,
    /// The checks that may still be answered, newest first.
    pub sent: VecDeque<Sent>,
    /// Whether the newest of them still may, for all that is decided.
    pub waiting: bool,
    pub avoided_until: Option<Instant>,
    pub avoided_times: u32,
    /// An answer to a datagram of the size that the connection uses was seen.
    pub proven: u16,
    /// Padded checks in a row without an answer.
    pub unproven_tries: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum State {
    /// No answer yet: which check of the round is next, and how many rounds there were.
    Unanswered {
        tries: usize,
        rounds: u32,
    },
    /// It answered before: how often it was asked since.
    Silent {
        tries: u32,
    },
    Answers {
        round_trip: Duration,
        missed: u32,
    },
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub number: u32,
    pub at: Instant,
    pub padded_to: u16,
    /// It said that this path is in use.
    pub selected: bool,
}

impl Candidate {
    pub fn new(at: Instant, kind: PathKind) -> Self {
        Self {
            kind,
            state: State::Unanswered { tries: 0, rounds: 0 },
            next_check: Some(at),
            sent: VecDeque::new(),
            waiting: false,
            avoided_until: None,
            avoided_times: 0,
            proven: 0,
            unproven_tries: 0,
        }
    }

    pub fn check_by(&mut self, at: Instant) {
        self.next_check = Some(self.next_check.map_or(at, |next| next.min(at)));
    }

    pub fn avoid(&mut self, now: Instant) {
        self.avoided_until = Some(now + AVOIDED * 2u32.pow(self.avoided_times));
        self.avoided_times = (self.avoided_times + 1).min(5);
    }

    pub fn is_avoided(&self, now: Instant) -> bool {
        self.avoided_until.is_some_and(|until| until > now)
    }

    /// When the check under way counts as missed.
    pub fn answer_by(&self) -> Option<Instant> {
        let newest = self.sent.front().filter(|_| self.waiting)?.at;
        Some(match self.state {
            State::Unanswered { tries, .. } => newest + ROUND[tries.min(CHECKS_PER_ROUND - 1)],
            State::Silent { .. } => newest + RETURN_INTERVAL,
            State::Answers { round_trip, .. } => newest + (round_trip * 2).clamp(ANSWER_WAIT.0, ANSWER_WAIT.1),
        })
    }

    /// The check under way was not answered. True when the path is dead with it.
    pub fn on_missed(&mut self, now: Instant, doubt: bool) -> bool {
        self.waiting = false;
        let padded = self.sent.front().is_some_and(|sent| sent.padded_to > 0);
        self.next_check = Some(now);
        match &mut self.state {
            State::Unanswered { tries, rounds } => {
                *tries += 1;
                if *tries >= CHECKS_PER_ROUND {
                    *tries = 0;
                    *rounds += 1;
                    let pause = ROUND_PAUSE * 2u32.pow((*rounds - 1).min(5));
                    self.next_check = (*rounds < CHECK_ROUNDS_MAX).then(|| now + pause);
                }
                false
            }
            State::Silent { tries } => {
                *tries += 1;
                if *tries >= RETURN_CHECKS {
                    self.state = State::Unanswered { tries: 0, rounds: 0 };
                }
                false
            }
            State::Answers { .. } if padded => {
                self.unproven_tries += 1;
                false
            }
            State::Answers { missed, .. } => {
                *missed += 1;
                let dead = *missed >= MISSED_MAX;
                if doubt {
                    self.next_check = Some(now + DOUBT_INTERVAL);
                }
                if dead {
                    self.state = State::Silent { tries: 0 };
                }
                dead
            }
        }
    }
}
