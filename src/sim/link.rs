//! What one link does to one packet. Pure: time, randomness and the state of the link are handed in.

use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::options::LinkOptions;
use super::trace::Fate;

/// How a packet came out of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passage {
    /// Not at all, and why.
    Dropped(Fate),
    /// At this time, and perhaps a copy of it at another.
    Arrives { first: Duration, copy: Option<Duration> },
}

/// Sends `size` bytes at `now` over a link that is busy with earlier packets until `busy_until`.
///
/// Randomness is drawn only for conditions that are switched on.
pub(super) fn carry(
    link: &LinkOptions,
    busy_until: &mut Duration,
    rng: &mut ChaCha8Rng,
    now: Duration,
    size: usize,
) -> Passage {
    if size > link.mtu {
        return Passage::Dropped(Fate::TooLarge);
    }
    let Some(departs) = enqueue(link, busy_until, now, size) else {
        return Passage::Dropped(Fate::LinkFull);
    };
    if happens(rng, link.loss) {
        return Passage::Dropped(Fate::Lost);
    }
    let first = departs + delay(link, rng);
    let copy = happens(rng, link.duplication).then(|| departs + delay(link, rng));
    Passage::Arrives { first, copy }
}

/// When the last bit leaves the bottleneck; `None` when the queue before it is full.
fn enqueue(link: &LinkOptions, busy_until: &mut Duration, now: Duration, size: usize) -> Option<Duration> {
    let Some(bandwidth) = link.bandwidth else {
        return Some(now);
    };
    let backlog = busy_until.saturating_sub(now);
    if !backlog.is_zero() && bytes_in(backlog, bandwidth) + size as u128 > link.queue_bytes as u128 {
        return None;
    }
    *busy_until = now + backlog + time_for(size, bandwidth);
    Some(*busy_until)
}

fn delay(link: &LinkOptions, rng: &mut ChaCha8Rng) -> Duration {
    let jitter = match u64::try_from(link.jitter.as_nanos()) {
        Ok(0) | Err(_) => Duration::ZERO,
        Ok(largest) => Duration::from_nanos(rng.random_range(0..=largest)),
    };
    let extra = if happens(rng, link.reordering) { link.reordering_delay } else { Duration::ZERO };
    link.latency + jitter + extra
}

fn happens(rng: &mut ChaCha8Rng, probability: f64) -> bool {
    probability > 0.0 && rng.random_bool(probability)
}

fn time_for(bytes: usize, bandwidth: u64) -> Duration {
    let nanos = (bytes as u128 * 8 * 1_000_000_000).div_ceil(u128::from(bandwidth));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn bytes_in(time: Duration, bandwidth: u64) -> u128 {
    time.as_nanos() * u128::from(bandwidth) / 8_000_000_000
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Sends `count` packets of `size` bytes, `gap` apart, and tells what became of each.
    fn send(link: &LinkOptions, count: u32, size: usize, gap: Duration) -> Vec<Passage> {
        let (mut rng, mut busy_until) = (ChaCha8Rng::seed_from_u64(1), Duration::ZERO);
        (0..count).map(|n| carry(link, &mut busy_until, &mut rng, gap * n, size)).collect()
    }

    fn arrivals(passages: &[Passage]) -> Vec<Duration> {
        let arrival = |passage: &Passage| match passage {
            Passage::Arrives { first, .. } => Some(*first),
            Passage::Dropped(_) => None,
        };
        passages.iter().filter_map(arrival).collect()
    }

    #[test]
    fn twenty_percent_loss_loses_twenty_percent() {
        let passages = send(&LinkOptions::new().with_loss(0.2), 100_000, 1200, Duration::from_micros(10));
        let lost = passages.iter().filter(|passage| **passage == Passage::Dropped(Fate::Lost)).count();
        // Five standard deviations of a binomial distribution: 5 × √(100,000 × 0.2 × 0.8) = 632.
        assert!(lost.abs_diff(20_000) < 632, "{lost} of 100,000 lost");
    }

    #[test]
    fn jitter_is_uniform_between_zero_and_its_bound() {
        let (latency, jitter) = (Duration::from_millis(40), Duration::from_millis(10));
        let link = LinkOptions::new().with_latency(latency).with_jitter(jitter);
        let delays = arrivals(&send(&link, 10_000, 100, Duration::ZERO));
        let mean = delays.iter().sum::<Duration>() / 10_000;
        assert!(delays.iter().all(|delay| (latency..=latency + jitter).contains(delay)));
        assert!(mean.abs_diff(Duration::from_millis(45)) < Duration::from_micros(150), "mean delay {mean:?}");
    }

    #[test]
    fn a_packet_that_is_held_back_is_overtaken() {
        let link = LinkOptions::new().with_reordering(0.1, Duration::from_millis(5));
        let arrivals = arrivals(&send(&link, 1_000, 100, Duration::from_millis(1)));
        let overtaken = arrivals.windows(2).filter(|pair| pair[1] < pair[0]).count();
        assert!((60..150).contains(&overtaken), "{overtaken} of 1,000 overtaken");
    }

    #[test]
    fn duplication_makes_second_copies() {
        let passages = send(&LinkOptions::new().with_duplication(0.5), 1_000, 100, SECOND);
        let copies =
            passages.iter().filter(|passage| matches!(passage, Passage::Arrives { copy: Some(_), .. })).count();
        assert!((400..600).contains(&copies), "{copies} of 1,000 duplicated");
    }

    #[test]
    fn bandwidth_spaces_packets_by_their_bits() {
        let link = LinkOptions::new().with_latency(Duration::ZERO).with_bandwidth(8_000_000).with_queue(1 << 20);
        let arrivals = arrivals(&send(&link, 100, 1_000, Duration::ZERO));
        let expected: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(arrivals, expected);
    }

    #[test]
    fn the_queue_takes_its_bytes_and_drops_the_tail() {
        let link = LinkOptions::new().with_bandwidth(8_000).with_queue(3_000);
        let passages = send(&link, 5, 1_000, Duration::ZERO);
        assert_eq!(arrivals(&passages).len(), 3);
        assert_eq!(passages[3..], [Passage::Dropped(Fate::LinkFull); 2]);
    }

    #[test]
    fn an_idle_link_takes_a_packet_larger_than_its_queue() {
        let link = LinkOptions::new().with_bandwidth(8_000).with_queue(0);
        assert_eq!(arrivals(&send(&link, 3, 1_000, SECOND)).len(), 3);
    }

    #[test]
    fn the_mtu_lets_its_own_size_pass_and_no_byte_more() {
        let link = LinkOptions::new().with_mtu(1_280);
        assert_eq!(arrivals(&send(&link, 1, 1_280, SECOND)).len(), 1);
        assert_eq!(send(&link, 1, 1_281, SECOND), [Passage::Dropped(Fate::TooLarge)]);
    }
}
