//! What one relay gives away: to a client, to an address, altogether.
//!
//! "An address" is an IPv4 address or an IPv6 /64. Of a whole IPv6 /48 together come at most four times as many.

use super::quota::Rate;

/// Quotas of a relay. What is over one is refused or dropped, and counted.
#[derive(Debug, Clone)]
pub struct RelayLimits {
    pub(super) sessions: usize,
    pub(super) sessions_per_address: usize,
    pub(super) sessions_per_peer: usize,
    pub(super) requests_per_client: Rate,
    pub(super) flows: usize,
    pub(super) flows_per_client: usize,
    pub(super) flows_per_address: usize,
    pub(super) bytes: Rate,
    pub(super) bytes_per_client: Rate,
    pub(super) allocations: usize,
    pub(super) allocations_per_user: usize,
    pub(super) allocations_per_address: usize,
    pub(super) streams: usize,
    pub(super) streams_per_address: usize,
    pub(super) stun_per_address: Rate,
    pub(super) records: usize,
    pub(super) records_per_address: usize,
}

impl Default for RelayLimits {
    fn default() -> Self {
        Self::new()
    }
}

impl RelayLimits {
    /// For a cooperative's relay on a small server: some thousand users, 1 Gbit/s.
    pub fn new() -> Self {
        Self {
            sessions: 8192,
            sessions_per_address: 128,
            sessions_per_peer: 4,
            requests_per_client: Rate { per_second: 20, burst: 200 },
            flows: 8192,
            flows_per_client: 64,
            flows_per_address: 512,
            bytes: Rate { per_second: 125_000_000, burst: 125_000_000 },
            bytes_per_client: Rate { per_second: 4_000_000, burst: 8_000_000 },
            allocations: 4096,
            allocations_per_user: 8,
            allocations_per_address: 256,
            streams: 16_384,
            streams_per_address: 256,
            stun_per_address: Rate { per_second: 50, burst: 500 },
            records: 32_768,
            records_per_address: 512,
        }
    }

    /// Sessions at once. Default 8192; each costs about 40 kB. More clients are turned away before their handshake.
    pub fn with_sessions(mut self, sessions: usize) -> Self {
        self.sessions = sessions;
        self
    }

    /// Sessions at once from one address: an IPv4 address or an IPv6 /64; four times as many from an IPv6 /48. Default 128: an
    /// office behind one NAT. Too small locks colleagues out, too large lets one host fill the relay.
    pub fn with_sessions_per_address(mut self, sessions: usize) -> Self {
        self.sessions_per_address = sessions;
        self
    }

    /// Sessions at once of one peer. Default 4. Over it the oldest is closed.
    pub fn with_sessions_per_peer(mut self, sessions: usize) -> Self {
        self.sessions_per_peer = sessions.max(1);
        self
    }

    /// Frames of one session. Default 20 per second, 200 at once. Over it requests are answered with `Busy`, and after
    /// 1024 of these the session is closed.
    pub fn with_requests_per_client(mut self, rate: Rate) -> Self {
        self.requests_per_client = rate;
        self
    }

    /// Flows at once. Default 8192. Over it `Forward` is answered with `Busy`.
    pub fn with_flows(mut self, flows: usize) -> Self {
        self.flows = flows;
        self
    }

    /// Flows at once that one session asked for. Default 64. Those that others asked for to it do not count, or strangers could
    /// use its quota up.
    pub fn with_flows_per_client(mut self, flows: usize) -> Self {
        self.flows_per_client = flows;
        self
    }

    /// Flows at once that sessions from one address asked for, as for sessions. Default 512: four for each session.
    pub fn with_flows_per_address(mut self, flows: usize) -> Self {
        self.flows_per_address = flows;
        self
    }

    /// Bytes that the relay forwards altogether, and again that its TURN server does: payload and 60 more per datagram. Default
    /// 125 MB per second. Over it datagrams are dropped, which QUIC takes for a full link.
    pub fn with_bytes(mut self, rate: Rate) -> Self {
        self.bytes = rate;
        self
    }

    /// Bytes that it forwards from one session, or relays for one allocation, as above. Default 4 MB per second, 8 at once.
    pub fn with_bytes_per_client(mut self, rate: Rate) -> Self {
        self.bytes_per_client = rate;
        self
    }

    /// TURN allocations at once; each is a UDP port. Default 4096. Over it they are refused with 508.
    pub fn with_allocations(mut self, allocations: usize) -> Self {
        self.allocations = allocations;
        self
    }

    /// TURN allocations at once of one user name. Default 8; 0: none at all. Over it they are refused with 486.
    pub fn with_allocations_per_user(mut self, allocations: usize) -> Self {
        self.allocations_per_user = allocations;
        self
    }

    /// TURN allocations at once from one address, as for sessions, under whatever names. Default 256: two for each session, which
    /// is what a node takes. Over it they are refused with 486. They outlive their sessions.
    pub fn with_allocations_per_address(mut self, allocations: usize) -> Self {
        self.allocations_per_address = allocations;
        self
    }

    /// TCP connections at once, those in their handshake and those to TURN included. Default 16384; more are closed at once.
    pub fn with_streams(mut self, streams: usize) -> Self {
        self.streams = streams;
        self
    }

    /// TCP connections at once from one address, as for sessions. Default 256.
    pub fn with_streams_per_address(mut self, streams: usize) -> Self {
        self.streams_per_address = streams;
        self
    }

    /// Rendezvous records that are kept. Default 32768; each costs about 600 bytes, at most 2.5 kB. When there are as many, the
    /// oldest goes.
    pub fn with_records(mut self, records: usize) -> Self {
        self.records = records;
        self
    }

    /// Records that are kept of peers at one address, as for sessions. Default 512. Over it no new ones are taken.
    pub fn with_records_per_address(mut self, records: usize) -> Self {
        self.records_per_address = records;
        self
    }

    /// STUN and TURN requests from one address that are answered. Default 50 per second, 500 at once; over it they are
    /// dropped, so that a forged source is not flooded with our answers.
    pub fn with_stun_per_address(mut self, rate: Rate) -> Self {
        self.stun_per_address = rate;
        self
    }
}
