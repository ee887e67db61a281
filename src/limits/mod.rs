//! Every bound of the node in one place: what it limits and what happens when it is reached.
//!
//! A limit that an embedder may want to change is also an option; the value here is then its default.

mod bridge;
mod discovery;
mod nat;

use std::time::Duration;

pub use bridge::*;
pub use discovery::*;
pub use nat::*;

/// Largest payload of one operation, in bytes (16 MiB). Larger: `publish` fails with `PayloadTooLarge`, a peer's is refused.
pub const OPERATION_PAYLOAD_MAX_BYTES: usize = 16 * 1024 * 1024;

/// Largest encoded operation header, in bytes. A Node's header is 221 bytes. Larger: refused before it is decoded.
pub const OPERATION_HEADER_MAX_BYTES: usize = 1024;

/// Bytes that the body envelope may add to a payload.
pub const ENVELOPE_OVERHEAD_MAX_BYTES: usize = 16;

/// Largest frame on any stream, in bytes. Longer: the stream is closed with a code and counted.
pub const FRAME_MAX_BYTES: usize = 64 * 1024;

/// Operations whose header and body are larger than this travel in chunks, in bytes.
pub const CHUNK_BYTES: usize = 48 * 1024;

/// Operations in one page of catch-up, and in one batch of a live frame.
pub const PAGE_MAX_OPERATIONS: usize = 256;

/// Header and body bytes in one page that is read from the store; one operation may exceed it alone.
pub const PAGE_MAX_BYTES: usize = 256 * 1024;

/// Authors of one document. More: operations of further authors are refused.
pub const DOCUMENT_MAX_AUTHORS: usize = 4096;

/// Authors that one session keeps track of: ours, and those that the peer speaks of. More: what the peer says about
/// further ones is forgotten.
pub const SESSION_MAX_AUTHORS: usize = 2 * DOCUMENT_MAX_AUTHORS;

/// Documents that are open at once on one node. More: `open` fails.
pub const MAX_OPEN_DOCUMENTS: usize = 1024;

/// Heads in one frame; more authors are spread over several frames.
pub const HEADS_PER_FRAME: usize = 512;

/// Own operations that no peer has acknowledged yet, per document. Full: `publish` fails with `QueueFull`, nothing is lost.
pub const OUTBOX_MAX_OPERATIONS: usize = 1_000_000;

/// Bytes of own operations that no peer has acknowledged yet, per document. Full: as above.
pub const OUTBOX_MAX_BYTES: u64 = 1024 * 1024 * 1024;

/// Recent operations that one document keeps in memory for its live sessions; older ones are read from the store.
pub const RECENT_MAX_OPERATIONS: usize = 1024;

/// Bytes of recent operations that one document keeps in memory.
pub const RECENT_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Commands that wait for the store's writer. Full: callers wait.
pub const STORE_QUEUE: usize = 4096;

/// Bytes of operations in these commands. Full: callers wait.
pub const STORE_QUEUE_BYTES: usize = 64 * 1024 * 1024;

/// Commands that share one transaction of the store. More: the rest takes the next one.
pub const STORE_BATCH: usize = 1024;

/// Bytes of operations in one transaction of the store, but for the last command in it.
pub const STORE_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// Reads of the store at once. More: callers wait.
pub const STORE_READERS: usize = 4;

/// Acknowledgements that are known but not written; a crash within this time loses them, they come again.
pub const STORE_ACKNOWLEDGED_DELAY: Duration = Duration::from_secs(1);

/// Bytes of fork proofs that one call returns. More: the rest is left out.
pub const FORK_PROOFS_MAX_BYTES: usize = 32 * 1024 * 1024;

/// Bytes of a log that p2panda's store traits return at once. More: a typed error.
pub const P2PANDA_RANGE_MAX_BYTES: usize = 256 * 1024 * 1024;

/// Events that wait for a slow listener of the node's events. Full: the listener is told how many it missed.
pub const EVENTS_QUEUE: usize = 1024;

/// Largest presence state, in bytes. It rides in one datagram with its signature. Larger: `set` fails.
pub const PRESENCE_MAX_BYTES: usize = 896;

/// Presence states kept per document. More: one that is no longer shown is forgotten; when all are, further peers' presence
/// is ignored and counted.
pub const PRESENCE_MAX_PEERS: usize = 256;

/// Addresses in one `PeerAddress`. More: decoding fails.
pub const PEER_ADDRESS_MAX_ADDRESSES: usize = 20;

/// Peers in one ticket. More: left out when it is made, decoding fails.
pub const TICKET_MAX_PEERS: usize = 8;

/// Relays in one ticket. More: left out when it is made, decoding fails.
pub const TICKET_MAX_RELAYS: usize = 4;

/// Longest ticket text, in characters. Longer: peers are left out when it is made, and it is refused before it is decoded.
pub const TICKET_MAX_CHARS: usize = 8192;

/// Addresses of other peers that a session passes on in one frame. More: the next frame follows.
pub const PEERS_PER_FRAME: usize = 16;

/// Addresses of other peers that one session may bring. More: the session is closed, a new one starts over.
pub const PEERS_PER_SESSION: usize = 4096;

/// Peers known per node. More: the oldest that shares no document is forgotten.
pub const MAX_KNOWN_PEERS: usize = 4096;

/// Connections at once, both directions. More: incoming ones are refused.
pub const MAX_CONNECTIONS: usize = 1024;

/// Handshakes under way at once before new ones must prove their address (QUIC Retry).
pub const HANDSHAKES_BEFORE_RETRY: usize = 64;

/// Incoming connections that wait for the application. More: dropped by the transport.
pub const MAX_INCOMING: usize = 1024;

/// Bidirectional streams that one peer may hold open: one per document, its catch-up, and requests.
pub const STREAMS_PER_CONNECTION: u32 = 2 * MAX_OPEN_DOCUMENTS as u32 + 64;

/// Requests under way at once on one connection. More: callers wait within their deadline.
pub const REQUESTS_PER_CONNECTION: usize = 32;

/// Largest request or response, in bytes.
pub const REQUEST_MAX_BYTES: usize = 64 * 1024;

/// Damaged or refused operations that one document session forgives before it closes.
pub const NACKS_PER_SESSION: u32 = 3;

/// Refused or damaged frames one peer may cause before its connection is closed.
pub const PROTOCOL_ERRORS_PER_CONNECTION: u32 = 16;

/// A document stream with nothing to say closes after this long; it reopens on demand.
pub const DOCUMENT_STREAM_IDLE: Duration = Duration::from_secs(300);

/// How long a handshake may take, from the first packet to the peer's hello.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// How long a presence state lives without being renewed.
pub const PRESENCE_TTL: Duration = Duration::from_secs(30);

/// How often a presence state that is set is sent again: several times per life, since datagrams get lost.
pub const PRESENCE_RENEWAL: Duration = Duration::from_secs(5);

/// Time between two heartbeats on the control stream.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

/// Heartbeats without an answer before the connection is given up.
pub const HEARTBEATS_MISSED: u32 = 3;

/// Largest certificate of a peer, in bytes; ours has about 270. Larger: the handshake fails.
pub const CERTIFICATE_MAX_BYTES: usize = 1024;

/// TLS session tickets that a node remembers, for either role. More: the oldest is forgotten, which costs a round trip.
pub const SESSION_TICKETS: usize = 1024;

/// Largest hello that peers exchange while they connect, in bytes. Larger: refused by the options, the connection closed.
pub const HELLO_MAX_BYTES: usize = 1024;

/// Network addresses that one socket tells apart. More: the longest unused one without a connection is forgotten; when all
/// have connections, datagrams from new addresses are dropped and counted.
pub const SOCKET_ROUTES: usize = 8 * MAX_CONNECTIONS;

/// Errors in a row while receiving before a socket is taken for broken.
pub const SOCKET_RECEIVE_ERRORS: u32 = 1024;

/// Streams of one connection that wait for their first byte, or for the application. More: reset with `TooBusy`.
pub const STREAMS_WAITING: usize = STREAMS_PER_CONNECTION as usize;

/// How long a peer may leave a new stream without the byte that says what it is, or a request without its end.
pub const STREAM_TYPE_DEADLINE: Duration = Duration::from_secs(30);
