//! Every bound of the node in one place: what it limits and what happens when it is reached.
//!
//! A limit that an embedder may want to change is also an option; the value here is then its default.

use std::time::Duration;

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

/// Peers in one ticket. More: decoding fails.
pub const TICKET_MAX_PEERS: usize = 8;

/// Relays in one ticket. More: decoding fails.
pub const TICKET_MAX_RELAYS: usize = 4;

/// Longest ticket text, in characters. Longer: refused before it is decoded.
pub const TICKET_MAX_CHARS: usize = 8192;

/// Addresses of other peers that a session passes on. More: the least recently heard of are left out.
pub const PEERS_PER_FRAME: usize = 16;

/// Addresses of other peers that one session may bring. More: the session is closed, a new one starts over.
pub const PEERS_PER_SESSION: usize = 4096;

/// Peers known per node. More: the oldest that shares no document is forgotten.
pub const MAX_KNOWN_PEERS: usize = 4096;

/// Strangers in the address book: peers that share no document with this node. More: who was never met goes first, then who
/// was not heard of for longest.
pub const BOOK_MAX_STRANGERS: usize = 1024;

/// Attempts in vain at a peer before it counts as stale: it is not tried for discovery, and others do not hear of it.
pub const BOOK_STALE_FAILURES: u32 = 8;

/// How far in the future a peer may have signed its record, by our clock. Further: not kept, for it would win over all
/// that the peer signs later. Generous, because clocks of laptops are wrong by hours.
pub const RECORD_CLOCK_SKEW: Duration = Duration::from_secs(24 * 3600);

/// Age of a stranger's record, by when it was signed and when it was heard. Older: not kept. Who is there signs new ones.
pub const STRANGER_RECORD_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Topics in one message of confidential discovery: all documents that a node may have open. More: the run ends.
pub const DISCOVERY_TOPICS: usize = MAX_OPEN_DOCUMENTS;

/// Records of peers in one message of confidential discovery. More: the run ends.
pub const DISCOVERY_RECORDS: usize = 64;

/// Bytes of these records. More: the rest is left out.
pub const DISCOVERY_RECORDS_MAX_BYTES: usize = 48 * 1024;

/// Runs of confidential discovery that peers started, at once. More: refused with `TooBusy` and counted.
pub const DISCOVERY_RUNS: usize = 16;

/// Time between two runs that one peer starts. Sooner: as above.
pub const DISCOVERY_RUN_INTERVAL: Duration = Duration::from_secs(10);

/// How long one run may take. Longer: given up.
pub const DISCOVERY_RUN_DEADLINE: Duration = Duration::from_secs(20);

/// Visits to peers for discovery at once, each a connection that may be for nothing else. More wait.
pub const DISCOVERY_VISITS: usize = 4;

/// Peers that the walk of discovery knows of. More: not visited before one of the others is given up.
pub const WALK_PEERS: usize = 1024;

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

/// Paths to one peer that are checked. More: further candidates are ignored, unless one that is asked no more makes room, or
/// they are relayed and one that never answered does.
pub const PATHS_PER_PEER: usize = 40;

/// Checks in one round on a path that does not answer.
pub const CHECKS_PER_ROUND: usize = 6;

/// Rounds on a path that never answered, minutes apart. Then it is left alone until the network changes.
pub const CHECK_ROUNDS_MAX: u32 = 4;

/// Largest STUN message, in bytes: an Ethernet frame's payload. Larger: dropped before it is looked at.
pub const STUN_MESSAGE_MAX_BYTES: usize = 1500;

/// Largest TURN frame that carries a peer's data, in bytes: Send and Data indications, ChannelData. Larger: a datagram is
/// dropped; in a stream it is skipped and counted, since whoever may send to a relayed address chooses its size.
pub const TURN_FRAME_MAX_BYTES: usize = 2048;

/// Attributes in one STUN message. More: dropped before any is decoded.
pub const STUN_MAX_ATTRIBUTES: usize = 32;

/// Longest user name, password, realm or nonce of a TURN server, in bytes. Longer: refused when it is handed in or arrives.
pub const STUN_TEXT_MAX_BYTES: usize = 508;

/// Largest sealed signal that a relay passes on, in bytes. Larger: the session with the relay is closed.
pub const SIGNAL_SEALED_MAX_BYTES: usize = 4096;

/// Candidates in one signal. More: the rest is left out, and a peer that sends more is not understood.
pub const SIGNAL_CANDIDATES: usize = 20;

/// Proofs in one offer. More: as above.
pub const SIGNAL_PROOFS: usize = 8;

/// Longest host name, in bytes (RFC 1035, section 2.3.4, without the last dot).
pub const HOST_NAME_MAX_BYTES: usize = 253;

/// UDP addresses that a relay's welcome names. More: the session is closed by the node.
pub const RELAY_DATAGRAM_ADDRESSES: usize = 8;

/// STUN servers, and TURN servers, that a relay names. More: as above.
pub const RELAY_SERVERS: usize = 16;

/// Longest user name, and longest password, for a TURN server, in bytes. Longer: as above, and refused by our own server.
pub const TURN_CREDENTIAL_MAX_BYTES: usize = 256;

/// STUN messages that wait on one socket for whoever handles them. More: dropped and counted.
pub const SOCKET_STUN_WAITING: usize = 256;

/// Relayed datagrams that wait for QUIC on one socket. More: dropped and counted, as a full socket does.
pub const SOCKET_INJECTED: usize = 4096;

/// Addresses that are taken from the answer to one name. More: the rest is left out.
pub const RESOLVED_ADDRESSES: usize = 16;

/// Largest rendezvous record, in bytes: four relays with the longest names. Larger: the session is closed.
pub const RENDEZVOUS_RECORD_MAX_BYTES: usize = 2048;

/// How long a relay keeps a rendezvous record. Then the peer is not found there any more, unless it published again.
pub const RELAY_RECORD_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// How often a node publishes its record again at the relays that it uses, whether or not it changed.
pub const RENDEZVOUS_PUBLISH_INTERVAL: Duration = Duration::from_secs(12 * 3600);

/// Relays at which one dial looks for a peer: those of its record and of this node, and where it moved to. More: left out.
pub const RELAYS_PER_DIAL: usize = 2 * TICKET_MAX_RELAYS;

/// How long both ends of a forwarding flow may be silent before a relay ends it.
pub const RELAY_FLOW_IDLE: Duration = Duration::from_secs(60);

/// Datagrams that wait in a relay for an end that has not shown its address yet, per end. More: dropped and counted.
pub const RELAY_FLOW_QUEUE: usize = 4;

/// Frames that wait in a relay for a slow client. More: its session is closed.
pub const RELAY_SESSION_QUEUE: usize = 128;

/// Frames over its quota that a relay forgives a client before it closes the session.
pub const RELAY_REFUSALS_PER_SESSION: u32 = 1024;

/// Largest datagram that a relay takes on any of its ports, in bytes. Larger: cut off, which whoever gets it notices.
pub const RELAY_DATAGRAM_MAX_BYTES: usize = 2048;

/// Longest one-way time that a punch is delayed for. Whoever is further away starts late.
pub const PUNCH_DELAY_MAX: Duration = Duration::from_secs(1);

/// How long TURN credentials that a relay makes are good for. Nodes ask for new ones before.
pub const TURN_CREDENTIAL_LIFETIME: Duration = Duration::from_secs(3600);

/// How long a nonce of our TURN server is good for. Older: 438 with a new one.
pub const TURN_NONCE_LIFETIME: Duration = Duration::from_secs(600);

/// How long an allocation lives that does not ask for more (RFC 8656, section 3.2).
pub const TURN_LIFETIME: Duration = Duration::from_secs(600);

/// How long an allocation lives at most without a refresh.
pub const TURN_LIFETIME_MAX: Duration = Duration::from_secs(3600);

/// Permissions of one allocation. More: 508.
pub const TURN_PERMISSIONS: usize = 128;

/// Channels of one allocation. More: 508.
pub const TURN_CHANNELS: usize = 128;

/// Frames that wait in a relay for a slow TURN client's stream. More: dropped, as a network would.
pub const TURN_STREAM_QUEUE: usize = 256;

/// Addresses that a relay counts STUN requests of. More: those that asked nothing lately are forgotten, or new ones dropped.
pub const STUN_ADDRESSES: usize = 65_536;

/// How long a relay waits for a TLS handshake, or for a client to take what was sent. Longer: the connection is closed.
pub const RELAY_STREAM_DEADLINE: Duration = Duration::from_secs(10);

/// Frames that wait on a node for a relay to take them. More: refused, as if the session were down.
pub const RELAY_CLIENT_QUEUE: usize = 64;

/// How long connecting to a relay may take, from resolving its name to its welcome.
pub const RELAY_CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// STUN servers that one socket asks. More: `add_server` refuses.
pub const STUN_MAX_SERVERS: usize = 8;

/// Longest time between two packets that keep a NAT's mapping: some forget after 30 s. Longer in an option: this is used.
pub const NAT_KEEP_ALIVE_MAX: Duration = Duration::from_secs(25);

/// Events that a NAT traversal machine keeps for a driver that does not ask. More: the oldest is lost; the state can be asked.
pub const NAT_EVENTS: usize = 256;

/// Peers of one TURN allocation, with those let go whose channel still lives. More: the one let go longest ago is
/// forgotten; without such, `add_peer` refuses.
pub const TURN_MAX_PEERS: usize = 64;

/// Requests to one TURN server under way at once. More: they wait for an answer to one of these.
pub const TURN_MAX_TRANSACTIONS: usize = 16;

/// TURN allocations of one node, for all its peers together. More are not made.
pub const TURN_ALLOCATIONS: usize = 2;

/// Payloads that wait on a node for the stream to a TURN server. More: dropped, as a network would.
pub const TURN_SEND_QUEUE: usize = 256;

/// Check inputs that wait for one session. More: as if they had been lost.
pub const CHECKS_WAITING: usize = 64;

/// Sessions of checks at once: one per connection, and one per meeting under way. More: no checks for further ones.
pub const TRAVERSAL_SESSIONS: usize = 2 * MAX_CONNECTIONS;

/// Relays that a node keeps sessions with. More: further ones are not used.
pub const RELAYS_PER_NODE: usize = 8;

/// Forwarding flows that a node knows per relay; a relay of ours opens 64. More: the one opened longest ago is forgotten.
pub const FLOWS_PER_RELAY: usize = 1024;

/// Signals that a node opens per second and relay. More: dropped, and sent again by those who mean it.
pub const INTRODUCTIONS_PER_SECOND: u32 = 64;

/// How many of these from one peer. More: as above.
pub const INTRODUCTIONS_PER_PEER: u32 = 8;

/// Packets that one node sends per second to addresses that nobody answered from. More: not sent, and counted.
pub const UNPROVEN_PER_SECOND: u32 = 1000;

/// The second of that bound.
pub const UNPROVEN_SECOND: Duration = Duration::from_secs(1);

/// Packets to one IP address that nobody answered from, per while. A peer that is away is dialled about 120 times. More: as above.
pub const UNPROVEN_PER_ADDRESS: u32 = 200;

/// The while of that bound.
pub const UNPROVEN_PER_ADDRESS_WHILE: Duration = Duration::from_secs(600);

/// IP addresses whose packets are counted at once. More: nothing is sent to further ones.
pub const UNPROVEN_ADDRESSES: usize = 4096;

/// Sockets that one attempt at birthday punching opens, for some seconds; all but one are closed when it is over. Where the
/// system gives fewer, it does with those.
pub const BIRTHDAY_SOCKETS: usize = 256;

/// Packets to random ports in one attempt at birthday punching. They miss 256 of 64,512 ports in 1.7 % of all attempts.
pub const BIRTHDAY_PROBES: usize = 1024;

/// Packets of birthday punching to one IP address per while, whoever names it, and whether or not anybody answers from there. A
/// member of a document that names a victim's address gets it this many packets from each of its peers that opted in, besides
/// [`UNPROVEN_PER_ADDRESS`]. More: not sent, and counted.
pub const BIRTHDAY_PER_ADDRESS: u32 = 1024;

/// The while of that bound.
pub const BIRTHDAY_PER_ADDRESS_WHILE: Duration = Duration::from_secs(600);

/// Packets of birthday punching that one node sends per second. More: as above.
pub const BIRTHDAY_PER_SECOND: u32 = 500;

/// IP addresses whose packets of birthday punching are counted at once. More: nothing is sent to further ones.
pub const BIRTHDAY_ADDRESSES: usize = 256;

/// Time from one attempt at birthday punching with a peer to the next in the same network; doubles up to the second.
pub const BIRTHDAY_REST: (Duration, Duration) = (Duration::from_secs(900), Duration::from_secs(4 * 3600));

/// Peers whose attempts at birthday punching are remembered. More: the one tried longest ago is forgotten.
pub const BIRTHDAY_PEERS: usize = 256;

/// Largest answer of a router that is asked for a port by HTTP, in bytes. Larger: not believed.
pub const ROUTER_ANSWER_MAX_BYTES: usize = 64 * 1024;

/// Offers that were answered and are remembered, so that a relay cannot repeat them. More: the oldest is forgotten.
pub const OFFERS_REMEMBERED: usize = 4096;

/// Peers that finders found and nobody has looked at yet. Full: finders wait, or find them again later.
pub const DISCOVERY_QUEUE: usize = 256;

/// Discovered peers that are kept connected for one document. More: they wait until one of the others is not reached.
pub const DISCOVERED_PEERS_PER_DOCUMENT: usize = 64;

/// Discovered peers that are kept connected in all. More: as above.
pub const DISCOVERED_PEERS: usize = 256;

/// Discovered peers that wait for a place. More: who waited longest is left out, until it is found again.
pub const DISCOVERED_WAITING: usize = 1024;

/// Documents that one notice in the local network is for. More: they take turns, a minute each, newly opened ones first.
pub const LAN_SLOTS: usize = 8;

/// Largest notice in the local network, in bytes. Larger: not made, and dropped before anything is computed.
pub const LAN_NOTICE_MAX_BYTES: usize = 3072;

/// Notices of others that are remembered, to know them again and to try them with documents that are opened later. More:
/// the oldest is forgotten, and counts as new when it is heard again.
pub const LAN_NOTICES: usize = 512;

/// Keys of documents that are tried on notices per second; opening a record counts as 256. More: notices wait, and when as
/// many wait as are remembered, the oldest is dropped.
pub const LAN_TRIALS_PER_SECOND: u32 = 20_000;

/// How far the time at which a peer signed its record may be from ours, back or ahead, for a record from the local network.
/// Further: ignored. Generous, since clocks of laptops are wrong by hours; nodes sign anew every quarter of an hour.
pub const LAN_RECORD_AGE: Duration = Duration::from_secs(24 * 3600);

/// Records that multicast DNS may keep for us at once, about eight per node of ours in the network: it keeps what it hears for
/// as long as others say, at most 9 kB each. More: it is stopped for a minute and starts anew.
pub const LAN_CACHED_RECORDS: i64 = 8192;

/// Notices from the local network that nobody has looked at yet. More: dropped.
pub const LAN_HEARD_QUEUE: usize = 256;

/// p2panda Nodes that one node bridges to. More: starting fails.
pub const BRIDGE_NODES: usize = 8;

/// Handshakes with one Node at once; it has one connection per document. More: they wait.
pub const BRIDGE_DIALS_PER_NODE: usize = 8;

/// Largest frame from a Node, in bytes: the largest operation, or its heights. Larger: skipped unread and counted as refused.
pub const BRIDGE_FRAME_MAX_BYTES: usize = OPERATION_PAYLOAD_MAX_BYTES + 64 * 1024;

/// Operations sent to a Node in one document of which its heights do not say yet that it has them. It loses what it is sent
/// faster than it stores it (about 1,000), and takes a lost one only after hundreds of others. More: they wait for its heights.
pub const BRIDGE_UNVERIFIED_OPERATIONS: usize = 512;

/// Bytes of operations that are read for one round of catch-up of a Node, but for the last one. More: the next round.
pub const BRIDGE_CHUNK_BYTES: usize = 1024 * 1024;

/// Operations of a Node that cannot be stored, in one session. More: the session ends, the next one leaves their authors out.
pub const BRIDGE_REFUSED_PER_SESSION: u32 = 256;

/// Damaged operations of a Node in one session. More: the session ends, and is tried again later and later.
pub const BRIDGE_MALFORMED_PER_SESSION: u32 = 16;

/// How long a Node may take to greet and to tell its heights.
pub const BRIDGE_ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Silence after which a connection to a Node is given up. A Node that is killed says nothing, and knows no old connection.
pub const BRIDGE_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a Node may take to close a session.
pub const BRIDGE_CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// After so long without further operations the Node's heights are asked for, to see whether it has what it was sent.
pub const BRIDGE_VERIFY_AFTER: Duration = Duration::from_secs(10);

/// When an author's operations are offered again that a Node does not take.
pub const BRIDGE_OFFER_AGAIN: Duration = Duration::from_secs(60);

/// Sessions in which a Node's own log of an author has the same gap before that author is left out.
pub const BRIDGE_SAME_GAP: u32 = 3;

/// Rounds in which a Node stores nothing of what it was sent before that is taken for lost and sent again.
pub const BRIDGE_STALLED_ROUNDS: u32 = 8;
