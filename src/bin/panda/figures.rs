//! Figures that demo and bench share: latencies as percentiles, rates.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart, in µs (one hour); longer ones count as this.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// Latencies, in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub samples: u64,
    /// Half are faster.
    pub p50_ms: f64,
    /// One in a hundred is slower.
    pub p99_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

impl Latency {
    /// From measurements in µs.
    pub fn from_us(values: impl IntoIterator<Item = u64>) -> Self {
        // These bounds are valid; without a histogram there would be no figures to give.
        let Ok(mut histogram) = Histogram::<u64>::new_with_bounds(1, LATENCY_MAX_US, 3) else {
            return Self::default();
        };
        for value in values {
            histogram.saturating_record(value.max(1));
        }
        let ms = |us: u64| us as f64 / 1000.0;
        Self {
            samples: histogram.len(),
            p50_ms: ms(histogram.value_at_quantile(0.5)),
            p99_ms: ms(histogram.value_at_quantile(0.99)),
            max_ms: ms(histogram.max()),
        }
    }
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.2} ms, p99 {:.2} ms ({} measured)", self.p50_ms, self.p99_ms, self.samples)
    }
}

/// So many per second, given µs.
pub fn per_second(count: u64, elapsed_us: u64) -> f64 {
    count as f64 * 1e6 / elapsed_us.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_values() {
        let latency = Latency::from_us(1..=1000);
        assert_eq!(latency.samples, 1000);
        assert!((latency.p50_ms - 0.5).abs() < 0.01 && (latency.p99_ms - 0.99).abs() < 0.01);
        let slow = Latency::from_us([5_000, 2_000_000, 7_000_000_000]);
        assert!((slow.p50_ms - 2000.0).abs() < 2.0 && slow.max_ms > 3_590_000.0);
        assert_eq!(Latency::from_us([]), Latency::default());
        assert!((per_second(500, 250_000) - 2000.0).abs() < 1e-9);
    }
}
