//! What a relay counts: for `/metrics` and its snapshot, and, by the `metrics` facade, for whoever listens.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// One count, shown in both places. The handle of the facade is made once.
#[derive(Debug)]
pub(super) struct Count {
    value: AtomicU64,
    metric: metrics::Counter,
}

impl Count {
    pub(super) fn add(&self, amount: u64) {
        self.value.fetch_add(amount, Ordering::Relaxed);
        self.metric.increment(amount);
    }

    fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

/// Defines the counters, the snapshot and its text from one list.
macro_rules! counters {
    ($($name:ident, $metric:literal, $help:literal;)*) => {
        /// All counts of one relay.
        #[derive(Debug)]
        pub(super) struct Counters {
            $(pub(super) $name: Count,)*
        }

        impl Counters {
            pub(super) fn new() -> Self {
                Self { $($name: Count { value: AtomicU64::new(0), metric: metrics::counter!($metric) },)* }
            }

            pub(super) fn snapshot(&self) -> RelaySnapshot {
                RelaySnapshot { $($name: self.$name.get(),)* ..RelaySnapshot::default() }
            }
        }

        /// What a relay has done so far, and what it does now.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct RelaySnapshot {
            /// Sessions now.
            pub sessions: u64,
            /// Forwarding flows now.
            pub flows: u64,
            /// TURN allocations now.
            pub allocations: u64,
            /// Rendezvous records now.
            pub records: u64,
            $(#[doc = $help] pub $name: u64,)*
        }

        impl RelaySnapshot {
            /// The text format of Prometheus, version 0.0.4.
            pub fn to_prometheus(&self) -> String {
                let mut text = String::new();
                let mut put = |kind, name, help, value| {
                    // Writing to a String cannot fail.
                    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
                };
                put("gauge", "panda_relay_sessions", "Sessions now.", self.sessions);
                put("gauge", "panda_relay_flows", "Forwarding flows now.", self.flows);
                put("gauge", "panda_relay_allocations", "TURN allocations now.", self.allocations);
                put("gauge", "panda_relay_records", "Rendezvous records now.", self.records);
                $(put("counter", $metric, $help, self.$name);)*
                text
            }
        }
    };
}

counters! {
    accepted, "panda_relay_sessions_accepted_total", "Sessions that nodes started.";
    turned_away, "panda_relay_turned_away_total", "Connections for which there was no room.";
    failed_handshakes, "panda_relay_failed_handshakes_total", "Connections that failed or broke off before they said what they want.";
    misbehaved, "panda_relay_misbehaved_total", "Sessions and streams closed because the client sent what it must not.";
    slow, "panda_relay_slow_total", "Sessions closed because the client did not read.";
    frames, "panda_relay_frames_total", "Frames from nodes.";
    refused, "panda_relay_refused_total", "Frames from nodes that were over their quota.";
    forwarded, "panda_relay_forwarded_total", "Datagrams forwarded.";
    forwarded_bytes, "panda_relay_forwarded_bytes_total", "Payload bytes forwarded.";
    forward_dropped, "panda_relay_forward_dropped_total", "Datagrams of flows that were dropped.";
    stun, "panda_relay_stun_total", "STUN binding requests answered.";
    turn_relayed, "panda_relay_turn_relayed_total", "Datagrams relayed by TURN, both directions.";
    turn_relayed_bytes, "panda_relay_turn_relayed_bytes_total", "Payload bytes relayed by TURN, both directions.";
    turn_dropped, "panda_relay_turn_dropped_total", "Datagrams that TURN dropped: no permission, denied, over quota.";
    turn_errors, "panda_relay_turn_errors_total", "TURN requests answered with an error.";
    malformed, "panda_relay_malformed_total", "Datagrams that are nothing we know, or damaged.";
}
