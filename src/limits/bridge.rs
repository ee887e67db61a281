//! Bounds of what is said with p2panda Nodes.

use std::time::Duration;

use super::OPERATION_PAYLOAD_MAX_BYTES;

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
