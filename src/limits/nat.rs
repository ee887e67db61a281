//! Bounds of NAT traversal: STUN, TURN, relays on both sides, checks and paths.

use std::time::Duration;

use super::{MAX_CONNECTIONS, TICKET_MAX_RELAYS};

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

/// What an IPv6 /48 may have of all that a relay counts per address, in IPv6 /64s: who rents a server often gets a whole /48.
/// More: refused, as for an address.
pub const RELAY_SITE_NETWORKS: usize = 4;

/// What a datagram costs of a relay's byte quotas besides its payload, in bytes: IP, UDP and the header that names flow or
/// peer. Without it small ones would be many, and empty ones free.
pub const RELAY_DATAGRAM_COST_BYTES: u64 = 60;

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

/// Sessions of checks at once: one per connection, and one per meeting under way. More: no checks for further ones. Meetings
/// leave [`MAX_CONNECTIONS`] of them to connections.
pub const TRAVERSAL_SESSIONS: usize = 3 * MAX_CONNECTIONS;

/// Meetings under way that others asked for, per relay: each keeps a session of checks for ten seconds. More: not answered;
/// who means it asks again.
pub const ANSWERED_PER_RELAY: usize = 128;

/// How many of these with one peer, which asks at every relay that both have. More: as above.
pub const ANSWERED_PER_PEER: usize = 16;

/// Relays that a node keeps sessions with. More in the options: refused at the start; in tickets: peers are still looked for
/// there, but this node is not found there.
pub const RELAYS_PER_NODE: usize = 8;

/// Relays besides, with which a node has a session for as long as it looks for a peer there, is connected by it, or a minute
/// after. More: those make room that nobody needs now, then those that did not come up; a dial waits for that.
pub const RELAYS_BORROWED: usize = 16;

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

/// How many of these may be strangers': peers that others named and that share nothing with this node, as far as is known.
pub const VISITED_ADDRESSES: usize = UNPROVEN_ADDRESSES / 2;

/// Packets that one node sends per second to servers that relays name and that did not answer yet. More: not sent, and counted.
/// To one address go as many as to any other, counted apart.
pub const NAMED_PER_SECOND: u32 = 250;

/// IP addresses of such servers that are counted at once. More: nothing is sent to further ones.
pub const NAMED_ADDRESSES: usize = 256;

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

/// Offers that were answered and are remembered, so that a relay cannot repeat them. More: the oldest is forgotten. Members
/// who flood a node with offers reach that in a minute; a relay that kept older ones can have those answered once more, which
/// shows it nothing and sends checks to addresses that the peer had.
pub const OFFERS_REMEMBERED: usize = 4096;
