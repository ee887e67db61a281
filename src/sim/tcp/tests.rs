//! What two ends of a connection promise on every link, and that they keep to their bounds.

use std::io::ErrorKind;

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::receiving::WINDOW_BYTES;
use super::*;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Two ends and the segments between them, of which some are lost, held back or doubled.
struct Wire {
    now: Duration,
    rng: ChaCha8Rng,
    loss: f64,
    doubling: f64,
    jitter: u64,
    ends: [Connection; 2],
    /// By arrival: for whom, and what.
    between: BTreeMap<(Duration, usize), (usize, Segment)>,
    sent: usize,
}

impl Wire {
    fn new(seed: u64) -> Self {
        let ends = [Connection::connect(Duration::ZERO), Connection::accept(Duration::ZERO, Duration::ZERO)];
        let (rng, between) = (ChaCha8Rng::seed_from_u64(seed), BTreeMap::new());
        // The second end answers the first one's greeting, which took until now.
        Self { now: millis(10), rng, loss: 0.0, doubling: 0.0, jitter: 0, ends, between, sent: 0 }
    }

    /// A wire whose ends are open.
    fn open() -> Self {
        let mut wire = Self::new(1);
        wire.run_until(millis(100));
        assert_eq!(wire.ends.each_ref().map(Connection::is_open), [Ok(true); 2]);
        wire
    }

    fn transmit(&mut self) {
        for from in 0..2 {
            while let Some(segment) = self.ends[from].poll_transmit(self.now) {
                for _ in 0..1 + usize::from(self.rng.random_bool(self.doubling)) {
                    if self.rng.random_bool(self.loss) {
                        continue;
                    }
                    let at = self.now + millis(10) + Duration::from_micros(self.rng.random_range(0..=self.jitter));
                    self.sent += 1;
                    self.between.insert((at, self.sent), (1 - from, segment.clone()));
                }
            }
        }
    }

    /// The next thing that happens; false when nothing does before `limit`.
    fn step(&mut self, limit: Duration) -> bool {
        self.transmit();
        let arrival = self.between.first_key_value().map(|((at, _), _)| *at);
        let timeouts = self.ends.iter().filter(|end| !end.is_over(self.now)).filter_map(Connection::deadline);
        let Some(next) = timeouts.chain(arrival).min().filter(|next| *next <= limit) else { return false };
        self.now = self.now.max(next);
        match self.between.first_entry().filter(|entry| entry.key().0 <= self.now) {
            Some(entry) => {
                let (to, segment) = entry.remove();
                self.ends[to].on_segment(self.now, &segment);
            }
            None => self.ends.iter_mut().for_each(|end| end.on_timeout(self.now)),
        }
        true
    }

    fn run_until(&mut self, limit: Duration) {
        while self.step(limit) {}
        self.now = limit;
    }

    fn read(&mut self, end: usize) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
        while let Some(Ok(count @ 1..)) = self.ends[end].read(&mut buffer) {
            all.extend(&buffer[..count]);
        }
        all
    }
}

proptest! {
    #[test]
    fn both_directions_arrive_whole_and_end_on_every_link(
        seed: u64, loss in 0.0..0.3, doubling in 0.0..0.2, jitter in 0..20_000_u64,
        sizes in [0..150_000_usize, 0..150_000_usize],
    ) {
        let mut wire = Wire { loss, doubling, jitter, ..Wire::new(seed) };
        let sent = sizes.map(|size| (0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        let (mut written, mut got) = ([0; 2], [Vec::new(), Vec::new()]);
        while wire.step(Duration::from_secs(3600)) {
            for end in 0..2 {
                prop_assert!(!matches!(wire.ends[end].is_open(), Err(kind) if kind != ErrorKind::TimedOut));
                // Thirty losses in a row end a connection, and that is all right.
                prop_assume!(wire.ends[end].is_open().is_ok());
                if wire.ends[end].is_open() == Ok(true) && written[end] <= sizes[end] {
                    match wire.ends[end].write(wire.now, &sent[end][written[end]..]) {
                        Some(Ok(0)) => {
                            wire.ends[end].finish(wire.now);
                            written[end] += 1;
                        }
                        Some(Ok(count)) => written[end] += count,
                        None => {}
                        Some(Err(kind)) => prop_assert!(false, "{kind}"),
                    }
                }
                let read = wire.read(end);
                got[1 - end].extend(read);
            }
        }
        prop_assert!(got == sent, "what came differs");
        let ends = wire.ends.each_mut().map(|end| end.read(&mut [0; 1]));
        prop_assert_eq!(ends, [Some(Ok(0)); 2]);
    }
}

#[test]
fn a_closed_window_opens_again_although_the_news_of_it_was_lost() {
    let mut wire = Wire::open();
    let mut written = 0;
    while wire.now < millis(60_000) {
        if let Some(Ok(count)) = wire.ends[0].write(wire.now, &[7; 8192]) {
            written += count;
        }
        wire.run_until(wire.now + millis(100));
    }
    assert_eq!(written as u64, 2 * WINDOW_BYTES);
    assert_eq!(wire.read(1).len() as u64, WINDOW_BYTES);
    wire.loss = 1.0;
    wire.transmit();
    wire.loss = 0.0;
    wire.run_until(millis(70_000));
    assert_eq!(wire.read(1).len() as u64, WINDOW_BYTES);
}

#[test]
fn segments_beyond_the_window_and_from_the_past_change_nothing() {
    let mut wire = Wire::open();
    let segment = |sequence, length| Segment {
        kind: Kind::Data,
        sequence,
        acknowledged: 0,
        window: 0,
        sent: Duration::ZERO,
        echo: None,
        payload: vec![1; length].into(),
        finish: false,
    };
    for (sequence, length) in [(WINDOW_BYTES, 2), (u64::MAX / 2, 1_000), (0, 0)] {
        wire.ends[1].on_segment(wire.now, &segment(sequence, length));
    }
    wire.ends[1].on_segment(wire.now, &Segment { acknowledged: 99, ..segment(0, 0) });
    assert!(wire.read(1).is_empty());
    wire.ends[1].on_segment(wire.now, &segment(0, 10));
    wire.ends[1].on_segment(wire.now, &segment(5, 10));
    assert_eq!(wire.read(1).len(), 15);
}

#[test]
fn one_lost_segment_costs_one_segment_and_no_timeout() {
    let mut wire = Wire::open();
    wire.ends[0].write(wire.now, &[7; 10_000]);
    wire.transmit();
    wire.between.pop_first();
    let (start, sent) = (wire.now, wire.sent);
    while wire.read(1).len() < 10_000 && wire.step(millis(10_000)) {}
    let mut after = wire.sent - sent;
    // Eight acknowledgements (nine segments but for the lost), and the lost one again.
    while wire.between.pop_first().is_some() {
        after -= 1;
    }
    assert!(wire.now - start <= millis(40), "took {:?}", wire.now - start);
    assert!(after <= 9, "{after} segments");
}

/// Writes segments of 100 bytes each, loses these transmissions of them (by number, repetitions included), and returns how
/// long it takes until everything is there. A round trip is 20 ms.
fn time_without(lost: &[usize], segments: usize) -> Duration {
    let mut wire = Wire::open();
    let (start, mut number) = (wire.now, 0);
    for _ in 0..segments {
        wire.ends[0].write(wire.now, &[7; 100]);
        let before = wire.sent;
        wire.transmit();
        assert_eq!(wire.sent, before + 1);
    }
    let mut seen = wire.sent - segments;
    let mut missing = 100 * segments;
    loop {
        missing -= wire.read(1).len();
        if missing == 0 {
            return wire.now - start;
        }
        wire.transmit();
        for ((at, sent), (to, segment)) in std::mem::take(&mut wire.between) {
            let is_new = sent > seen && to == 1 && segment.length() > 0;
            number += usize::from(is_new);
            if !is_new || !lost.contains(&number) {
                wire.between.insert((at, sent), (to, segment));
            }
        }
        seen = wire.sent;
        assert!(wire.step(start + millis(60_000)), "nothing more happens");
    }
}

#[test]
fn what_is_lost_at_the_end_comes_again_as_early_as_linux_sends_it() {
    // Alone: when the timeout would come, a round trip and 200 ms, but the timeout after that is not doubled yet.
    assert_eq!(time_without(&[1], 1), millis(220 + 10));
    assert_eq!(time_without(&[1, 2], 1), millis(220 + 220 + 10));
    assert_eq!(time_without(&[1, 2, 3], 1), millis(220 + 220 + 440 + 10));
    assert_eq!(time_without(&[3], 3), millis(20 + 220 + 10), "after others, from when those were acknowledged");
    // Two: the last one after two round trips and 2 ms, and what that is answered with shows that the other is missing.
    assert_eq!(time_without(&[2, 3], 3), millis(20 + 42 + 20 + 10));
    // Before others: what they are answered with shows it.
    assert_eq!(time_without(&[1], 2), millis(20 + 10));
}

#[test]
fn a_greeting_that_was_lost_does_not_slow_down_what_follows() {
    let mut wire = Wire::new(1);
    wire.ends[1] = Connection::accept(millis(1_010), millis(1_000));
    while wire.now < millis(1_000) {
        wire.transmit();
        wire.between.clear();
        wire.step(millis(1_000));
    }
    wire.run_until(millis(1_100));
    assert_eq!(wire.ends.each_ref().map(Connection::is_open), [Ok(true); 2]);
    wire.ends[0].write(wire.now, &[7; 100]);
    wire.transmit();
    wire.between.clear();
    wire.run_until(millis(1_100 + 230));
    assert_eq!(wire.read(1).len(), 100);
}

#[test]
fn an_abandoned_end_is_over_when_both_have_finished_and_time_has_passed() {
    let mut wire = Wire::open();
    wire.ends[0].write(wire.now, b"goodbye");
    wire.ends[0].abandon(wire.now);
    wire.run_until(millis(1_000));
    assert_eq!(wire.read(1), b"goodbye");
    assert!(!wire.ends[0].is_over(wire.now), "what comes late is still answered");
    wire.ends[1].abandon(wire.now);
    wire.run_until(millis(30_000));
    assert!(wire.ends.iter().all(|end| end.is_over(wire.now)));
}
