//! Bounds of what is said with p2panda Nodes.

use std::time::Duration;

use super::OPERATION_PAYLOAD_MAX_BYTES;

/// p2panda Nodes that one node bridges to. More: starting fails. Every open document has a connection to each, and these count
/// in `MAX_CONNECTIONS`: when that is full, further documents wait.
pub const BRIDGE_NODES: usize = 8;

/// Handshakes with one Node at once; it has one connection per document. More: they wait.
pub const BRIDGE_DIALS_PER_NODE: usize = 8;

/// Largest frame from a Node, in bytes: the largest operation, or its heights. Larger: skipped unread and counted as refused; its
/// author is left out when it is missing in the Node's log session after session.
pub const BRIDGE_FRAME_MAX_BYTES: usize = OPERATION_PAYLOAD_MAX_BYTES + 64 * 1024;

/// Operations sent to a Node in one document of which its heights do not say yet that it has them. It loses what it is sent
/// faster than it stores it (about 1,000), and takes a lost one only after hundreds of others. More: they wait for its heights.
/// Half of them at most are of authors whose operations it does not take.
pub const BRIDGE_UNVERIFIED_OPERATIONS: usize = 512;

/// Bytes of operations that are read for one round of catch-up of a Node, but for the last one. More: the next round.
pub const BRIDGE_CHUNK_BYTES: usize = 1024 * 1024;

/// Operations of a Node that cannot be stored, in one session, those of authors aside that are left out already. More: the session
/// ends, the next one leaves their authors out.
pub const BRIDGE_REFUSED_PER_SESSION: u32 = 256;

/// Damaged operations of a Node in one session. More: the session ends, and is tried again later and later.
pub const BRIDGE_MALFORMED_PER_SESSION: u32 = 16;

/// How long a Node may take to greet and to tell its heights.
pub const BRIDGE_ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Silence after which a connection to a Node is given up. A Node that is killed says nothing, and knows no old connection.
pub const BRIDGE_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a Node may neither send nor take a byte while it owes some. Longer: the session ends, and is tried again later and
/// later. Long enough for a Node to read a large log from its disk.
pub const BRIDGE_PROGRESS_DEADLINE: Duration = Duration::from_secs(60);

/// How long a Node may take to close a session, with `BRIDGE_SEND_WINDOW_BYTES` still on their way. Longer: what is in flight is
/// taken for lost.
pub const BRIDGE_CLOSE_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes on their way to a Node that it has not confirmed. More: writing waits, so that what counts as sent has left.
pub const BRIDGE_SEND_WINDOW_BYTES: u64 = 256 * 1024;

/// After so long without further operations the Node's heights are asked for, to see whether it has what it was sent. Each time
/// that it has, twice as long has to pass since the time before, up to `BRIDGE_VERIFY_MOST`: a Node frees no session's memory.
pub const BRIDGE_VERIFY_AFTER: Duration = Duration::from_secs(10);

/// Longest time between two such questions while there is something to ask for.
pub const BRIDGE_VERIFY_MOST: Duration = Duration::from_secs(320);

/// When an author's operations are offered again that a Node does not take; twice as long each time, up to
/// `BRIDGE_OFFER_AGAIN_MOST`.
pub const BRIDGE_OFFER_AGAIN: Duration = Duration::from_secs(60);

/// Longest time until such an author is offered again, and until a gap is asked for again.
pub const BRIDGE_OFFER_AGAIN_MOST: Duration = Duration::from_secs(5 * 60);

/// Sessions in which a Node's own log of an author has the same gap before that author is left out.
pub const BRIDGE_SAME_GAP: u32 = 3;

/// Rounds in which a Node stores nothing of what it was sent before that is taken for lost and sent again; and in which a gap stays
/// before it is asked for only when it is met again.
pub const BRIDGE_STALLED_ROUNDS: u32 = 8;
