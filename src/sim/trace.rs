//! What happened to every packet: a running digest over all events, counters, and the newest events if wanted.
//!
//! The digest is BLAKE3 over a fixed encoding, so it is the same on every machine and in every process. Payload bytes
//! are left out on purpose: TLS draws its randomness from the operating system, so they differ from run to run while
//! times, addresses and sizes do not.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::packet::Protocol;

/// What became of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Fate {
    /// It reached the socket.
    Delivered = 0,
    /// The link lost it.
    Lost = 1,
    /// A partition or an isolated host was in the way.
    Partitioned = 2,
    /// It was larger than the MTU of the link.
    TooLarge = 3,
    /// The queue before the link was full.
    LinkFull = 4,
    /// The queue of the receiving socket was full.
    SocketFull = 5,
    /// Too many packets were on their way in the whole network.
    NetworkFull = 6,
    /// No socket was bound to the address when it arrived.
    Unbound = 7,
    /// A NAT or a firewall did not let it pass.
    Filtered = 8,
    /// The sender did not have the address it sent from, or the destination was a private address of another network.
    Unroutable = 9,
    /// A NAT had no room for another mapping.
    NatFull = 10,
}

/// One packet and its fate. Times count from the creation of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceEvent {
    /// When it was sent.
    pub sent: Duration,
    /// When its fate was sealed: the arrival of a delivered packet.
    pub at: Duration,
    /// Who sent it, as its address was spelled where its way ended.
    pub from: SocketAddr,
    /// Where it was going, spelled likewise.
    pub to: SocketAddr,
    /// UDP payload in bytes; of a TCP segment payload and 12 more, since its header is longer.
    pub size: usize,
    /// What carried it.
    pub protocol: Protocol,
    /// What became of it.
    pub fate: Fate,
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, at, from, to, size, protocol, fate } = self;
        let what = if *protocol == Protocol::Tcp { " of TCP" } else { "" };
        write!(f, "{:>14.6} → {:>14.6} ms  {from} → {to}  {size} B{what}  {fate:?}", millis(*sent), millis(*at))
    }
}

/// Counters since the network was created. `sent + duplicated` equals the sum of all fates and `in_flight`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SimStats {
    /// Packets that hosts sent; a GSO batch counts as its datagrams.
    pub sent: u64,
    /// Copies that links made on top.
    pub duplicated: u64,
    /// Packets that reached a socket.
    pub delivered: u64,
    /// Bytes of these, counted as in [`TraceEvent::size`].
    pub delivered_bytes: u64,
    /// See [`Fate::Lost`].
    pub lost: u64,
    /// See [`Fate::Partitioned`].
    pub partitioned: u64,
    /// See [`Fate::TooLarge`].
    pub too_large: u64,
    /// See [`Fate::LinkFull`].
    pub link_full: u64,
    /// See [`Fate::SocketFull`].
    pub socket_full: u64,
    /// See [`Fate::NetworkFull`].
    pub network_full: u64,
    /// See [`Fate::Unbound`].
    pub unbound: u64,
    /// See [`Fate::Filtered`].
    pub filtered: u64,
    /// See [`Fate::Unroutable`].
    pub unroutable: u64,
    /// See [`Fate::NatFull`].
    pub nat_full: u64,
    /// Packets on their way now.
    pub in_flight: u64,
}

/// Digest, counters and the bounded record.
#[derive(Debug)]
pub(super) struct Trace {
    hasher: blake3::Hasher,
    recent: VecDeque<TraceEvent>,
    keep: usize,
    stats: SimStats,
}

impl Trace {
    pub(super) fn new(keep: usize) -> Self {
        Self { hasher: blake3::Hasher::new(), recent: VecDeque::new(), keep, stats: SimStats::default() }
    }

    pub(super) fn on_sent(&mut self) {
        self.stats.sent += 1;
    }

    pub(super) fn on_duplicated(&mut self) {
        self.stats.duplicated += 1;
    }

    pub(super) fn record(&mut self, event: TraceEvent) {
        self.hasher.update(&encode(&event));
        self.count(&event);
        if self.keep == 0 {
            return;
        }
        if self.recent.len() == self.keep {
            self.recent.pop_front();
        }
        self.recent.push_back(event);
    }

    /// Counters; `in_flight` is the caller's to fill in.
    pub(super) fn stats(&self) -> SimStats {
        self.stats
    }

    pub(super) fn events(&self) -> Vec<TraceEvent> {
        self.recent.iter().copied().collect()
    }

    pub(super) fn digest(&self) -> u64 {
        let hash = self.hasher.finalize();
        hash.as_bytes().iter().take(8).fold(0, |digest, byte| digest << 8 | u64::from(*byte))
    }

    fn count(&mut self, event: &TraceEvent) {
        let stats = &mut self.stats;
        let counter = match event.fate {
            Fate::Delivered => {
                stats.delivered_bytes += event.size as u64;
                &mut stats.delivered
            }
            Fate::Lost => &mut stats.lost,
            Fate::Partitioned => &mut stats.partitioned,
            Fate::TooLarge => &mut stats.too_large,
            Fate::LinkFull => &mut stats.link_full,
            Fate::SocketFull => &mut stats.socket_full,
            Fate::NetworkFull => &mut stats.network_full,
            Fate::Unbound => &mut stats.unbound,
            Fate::Filtered => &mut stats.filtered,
            Fate::Unroutable => &mut stats.unroutable,
            Fate::NatFull => &mut stats.nat_full,
        };
        *counter += 1;
    }
}

/// Beside the fate: what is not UDP.
const TCP_BIT: u8 = 0x80;

/// Fixed width, so that no two sequences of events have one encoding.
fn encode(event: &TraceEvent) -> [u8; 63] {
    let mut out = [0; 63];
    out[..8].copy_from_slice(&nanos(event.sent).to_be_bytes());
    out[8..16].copy_from_slice(&nanos(event.at).to_be_bytes());
    out[16..35].copy_from_slice(&encode_address(event.from));
    out[35..54].copy_from_slice(&encode_address(event.to));
    out[54..62].copy_from_slice(&(event.size as u64).to_be_bytes());
    out[62] = event.fate as u8 | if event.protocol == Protocol::Tcp { TCP_BIT } else { 0 };
    out
}

fn encode_address(address: SocketAddr) -> [u8; 19] {
    let mut out = [0; 19];
    let ip = match address.ip() {
        IpAddr::V4(ip) => {
            out[0] = 4;
            ip.to_ipv6_mapped()
        }
        IpAddr::V6(ip) => {
            out[0] = 6;
            ip
        }
    };
    out[1..17].copy_from_slice(&ip.octets());
    out[17..].copy_from_slice(&address.port().to_be_bytes());
    out
}

/// 584 years fit.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(size: usize, fate: Fate) -> TraceEvent {
        let (from, to) = (SocketAddr::from(([10, 0, 0, 1], 1)), SocketAddr::from(([10, 0, 0, 2], 2)));
        let (sent, at) = (Duration::from_millis(1), Duration::from_nanos(2_500_000));
        TraceEvent { sent, at, from, to, size, protocol: Protocol::Udp, fate }
    }

    #[test]
    fn the_digest_is_the_same_on_every_machine() {
        let mut trace = Trace::new(0);
        trace.record(event(100, Fate::Delivered));
        assert_eq!(trace.digest(), DIGEST_OF_ONE_EVENT);
    }

    /// Changes only when the encoding changes; recorded digests of users are void then.
    const DIGEST_OF_ONE_EVENT: u64 = 15_916_589_351_551_100_808;

    #[test]
    fn the_digest_tells_size_fate_protocol_and_order_apart() {
        let digest = |events: &[TraceEvent]| {
            let mut trace = Trace::new(0);
            events.iter().for_each(|event| trace.record(*event));
            trace.digest()
        };
        let (a, b, c) = (event(100, Fate::Delivered), event(101, Fate::Delivered), event(100, Fate::Lost));
        let d = TraceEvent { protocol: Protocol::Tcp, ..a };
        let digests = [digest(&[a]), digest(&[b]), digest(&[c]), digest(&[d]), digest(&[a, b]), digest(&[b, a])];
        for (index, left) in digests.iter().enumerate() {
            assert!(digests[index + 1..].iter().all(|right| right != left));
        }
    }

    #[test]
    fn only_the_newest_events_are_kept_and_all_are_counted() {
        let mut trace = Trace::new(2);
        (1..=3).for_each(|size| trace.record(event(size, Fate::Delivered)));
        assert_eq!(trace.events().iter().map(|event| event.size).collect::<Vec<_>>(), [2, 3]);
        assert_eq!((trace.stats().delivered, trace.stats().delivered_bytes), (3, 6));
    }

    #[test]
    fn an_event_prints_times_addresses_size_and_fate() {
        let printed = event(100, Fate::Lost).to_string();
        assert_eq!(printed, "      1.000000 →       2.500000 ms  10.0.0.1:1 → 10.0.0.2:2  100 B  Lost");
    }
}
