//! What a link is like: bandwidth, largest packet, delay, jitter, loss. Bandwidth is the kernel's (tbf); delay and loss are a
//! user-space forwarder's (`link.py`), since not every kernel has netem.

use std::time::Duration;

/// Bytes that may pass at once through a link of limited bandwidth, and how long a packet may queue for it.
const BURST: &str = "16kb";
const QUEUE: &str = "100ms";
/// Frames that the forwarder holds at most: 50 ms of 100,000 packets a second.
const WAITING_FRAMES: u32 = 5_000;

/// Both directions of a link are alike.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Link {
    mtu_bytes: Option<u32>,
    rate: Option<String>,
    delay: Duration,
    jitter: Duration,
    loss: f64,
    seed: u64,
}

impl Link {
    /// As fast as the kernel, 1,500 bytes a packet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A larger packet from inside is answered with ICMP by the router, from outside it is dropped in silence.
    pub fn with_mtu_bytes(mut self, bytes: u32) -> Self {
        self.mtu_bytes = Some(bytes);
        self
    }

    /// Bandwidth as `tc` writes it: `2mbit`.
    pub fn with_rate(mut self, rate: &str) -> Self {
        self.rate = Some(rate.into());
        self
    }

    /// One way.
    pub fn with_delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Up to so much on top of the delay, evenly; packets overtake each other.
    pub fn with_jitter(mut self, jitter: Duration) -> Self {
        self.jitter = jitter;
        self
    }

    /// Share of the packets that are lost, 0 to 1.
    pub fn with_loss(mut self, share: f64) -> Self {
        self.loss = share;
        self
    }

    /// Of jitter and loss.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Arguments of the forwarder between two interfaces, if this link needs one.
    pub fn forwarder(&self, first: &str, second: &str) -> Option<Vec<String>> {
        let plain = self.delay.is_zero() && self.jitter.is_zero() && self.loss == 0.0;
        let ms = |duration: Duration| (duration.as_secs_f64() * 1e3).to_string();
        (!plain).then(|| {
            vec![
                concat!(env!("CARGO_MANIFEST_DIR"), "/tests/netns/link.py").into(),
                first.into(),
                second.into(),
                ms(self.delay),
                ms(self.jitter),
                self.loss.to_string(),
                self.seed.to_string(),
                WAITING_FRAMES.to_string(),
            ]
        })
    }

    /// Options of `ip link set` at each end. Batches are cut to packets before the link: each is delayed or lost by itself.
    pub fn interface(&self) -> String {
        let mtu = self.mtu_bytes.map_or(String::new(), |bytes| format!("mtu {bytes}"));
        format!("gso_max_segs 1 {mtu}")
    }

    /// Arguments of `tc qdisc replace dev <interface>`, if the bandwidth is limited.
    pub fn shaper(&self) -> Option<String> {
        self.rate.as_ref().map(|rate| format!("root tbf rate {rate} burst {BURST} latency {QUEUE}"))
    }
}
