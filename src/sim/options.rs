//! What a simulated network is like: [`SimOptions`] for the whole, [`LinkOptions`] for one direction between two hosts.
//!
//! Setters clamp what makes no sense instead of failing, so that a test may hand in generated values.

use std::time::Duration;

/// Longest latency, jitter or extra delay. Longer is taken as this.
const MAX_DELAY: Duration = Duration::from_secs(3600);

/// Slowest link, in bits per second. Slower is taken as this.
const MIN_BANDWIDTH: u64 = 1_000;

/// Largest queue before a slow link, in bytes. Larger is taken as this.
const MAX_QUEUE_BYTES: usize = 1 << 30;

/// How one direction between two hosts treats packets. Sizes are UDP payload bytes, without IP and UDP headers.
///
/// A packet meets the conditions in this order: MTU, bandwidth and queue, loss, then latency with jitter and
/// reordering, and duplication. So a lost packet still took its share of the bandwidth.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkOptions {
    pub(super) latency: Duration,
    pub(super) jitter: Duration,
    pub(super) loss: f64,
    pub(super) reordering: f64,
    pub(super) reordering_delay: Duration,
    pub(super) duplication: f64,
    pub(super) bandwidth: Option<u64>,
    pub(super) queue_bytes: usize,
    pub(super) mtu: usize,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl LinkOptions {
    /// A good local network: 1 ms, nothing lost, no limit on bandwidth, MTU of Ethernet.
    pub fn new() -> Self {
        Self {
            latency: Duration::from_millis(1),
            jitter: Duration::ZERO,
            loss: 0.0,
            reordering: 0.0,
            reordering_delay: Duration::ZERO,
            duplication: 0.0,
            bandwidth: None,
            queue_bytes: 64 * 1024,
            mtu: 1472,
        }
    }

    /// Time that every packet needs, one way. Default 1 ms, at most one hour.
    ///
    /// Zero is allowed, but two hosts that answer each other at once then never let the clock move.
    pub fn with_latency(mut self, latency: Duration) -> Self {
        self.latency = latency.min(MAX_DELAY);
        self
    }

    /// Largest random time on top of the latency, uniform and drawn for each packet. Default zero, at most one hour.
    ///
    /// Packets sent closer together than this overtake each other.
    pub fn with_jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter.min(MAX_DELAY);
        self
    }

    /// Probability, 0.0–1.0, that a packet is lost, independent of all others. Default 0.0; at 1.0 nothing arrives.
    pub fn with_loss(mut self, probability: f64) -> Self {
        self.loss = as_probability(probability);
        self
    }

    /// Probability, 0.0–1.0, that a packet is held back by `extra` on top of latency and jitter. Default 0.0.
    ///
    /// Packets sent less than `extra` later overtake it; shorter than the gap between packets, nothing is reordered.
    pub fn with_reordering(mut self, probability: f64, extra: Duration) -> Self {
        self.reordering = as_probability(probability);
        self.reordering_delay = extra.min(MAX_DELAY);
        self
    }

    /// Probability, 0.0–1.0, that a second copy arrives, with jitter of its own. Default 0.0.
    pub fn with_duplication(mut self, probability: f64) -> Self {
        self.duplication = as_probability(probability);
        self
    }

    /// Bits of UDP payload per second, at least 1,000. Default: no limit.
    ///
    /// What comes faster waits in the queue of [`with_queue`](Self::with_queue), which adds delay, and then is dropped.
    pub fn with_bandwidth(mut self, bits_per_second: u64) -> Self {
        self.bandwidth = Some(bits_per_second.max(MIN_BANDWIDTH));
        self
    }

    /// Bytes that may wait before a link with limited bandwidth; the packet under way counts. Default 64 KiB, at most 1 GiB.
    ///
    /// Too small drops every burst; too large lets delay grow to queue ÷ bandwidth. An idle link takes any packet.
    pub fn with_queue(mut self, bytes: usize) -> Self {
        self.queue_bytes = bytes.min(MAX_QUEUE_BYTES);
        self
    }

    /// Largest UDP payload that passes, in bytes; larger packets vanish without notice. Default 1,472 (Ethernet, IPv4).
    ///
    /// An MTU of the IP layer is 28 bytes more over IPv4, 48 more over IPv6. QUIC needs at least 1,200.
    pub fn with_mtu(mut self, bytes: usize) -> Self {
        self.mtu = bytes;
        self
    }
}

/// Options of a [`SimNetwork`](super::SimNetwork).
#[derive(Debug, Clone, PartialEq)]
pub struct SimOptions {
    pub(super) seed: u64,
    pub(super) default_link: LinkOptions,
    pub(super) socket_queue: usize,
    pub(super) in_flight: usize,
    pub(super) recorded_events: usize,
}

impl SimOptions {
    /// A network whose every random choice follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, default_link: LinkOptions::new(), socket_queue: 1024, in_flight: 65_536, recorded_events: 0 }
    }

    /// Conditions on the internet where [`set_link`](super::SimNetwork::set_link) says nothing else; inside NATs see
    /// [`NatOptions::with_inside_link`](super::NatOptions::with_inside_link).
    /// Default: [`LinkOptions::new`].
    pub fn with_default_link(mut self, link: LinkOptions) -> Self {
        self.default_link = link;
        self
    }

    /// Datagrams that wait in one socket for its reader, at least 1. Default 1,024. Full: further ones are dropped
    /// and counted in [`SimStats::socket_full`](super::SimStats::socket_full), as a kernel does.
    pub fn with_socket_queue(mut self, datagrams: usize) -> Self {
        self.socket_queue = datagrams.max(1);
        self
    }

    /// Packets on their way in the whole network at once, at least 1; this bounds memory. Default 65,536.
    /// Full: further ones are dropped and counted in [`SimStats::network_full`](super::SimStats::network_full).
    pub fn with_in_flight(mut self, packets: usize) -> Self {
        self.in_flight = packets.max(1);
        self
    }

    /// Newest trace events kept for [`SimNetwork::trace`](super::SimNetwork::trace). Default 0: only the digest is
    /// kept. Each costs about 100 bytes.
    pub fn with_recorded_events(mut self, events: usize) -> Self {
        self.recorded_events = events;
        self
    }
}

fn as_probability(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_clamped_instead_of_panicking_later() {
        let link = LinkOptions::new()
            .with_loss(f64::NAN)
            .with_duplication(7.0)
            .with_reordering(-1.0, Duration::MAX)
            .with_latency(Duration::MAX)
            .with_bandwidth(0)
            .with_queue(usize::MAX);
        assert_eq!((link.loss, link.duplication, link.reordering), (0.0, 1.0, 0.0));
        assert_eq!((link.latency, link.reordering_delay), (MAX_DELAY, MAX_DELAY));
        assert_eq!((link.bandwidth, link.queue_bytes), (Some(MIN_BANDWIDTH), MAX_QUEUE_BYTES));
    }
}
