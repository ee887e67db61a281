//! Bounds of finding peers: the address book, asking others, the local network.

use std::time::Duration;

use super::MAX_OPEN_DOCUMENTS;

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

/// Those of them that peers started which this node has not met before. More: as above; the rest is for those that it has.
pub const DISCOVERY_UNPROVEN_RUNS: usize = 12;

/// Time between two runs that one peer starts. Sooner: as above.
pub const DISCOVERY_RUN_INTERVAL: Duration = Duration::from_secs(10);

/// How long one run may take. Longer: given up.
pub const DISCOVERY_RUN_DEADLINE: Duration = Duration::from_secs(20);

/// Visits to peers for discovery at once, each a connection that may be for nothing else. More wait.
pub const DISCOVERY_VISITS: usize = 4;

/// Those of them to peers that did not prove to be there, and that the user did not name. More wait: made-up peers do not
/// keep this node from visiting others.
pub const DISCOVERY_UNPROVEN_VISITS: usize = DISCOVERY_VISITS / 2;

/// Peers that the walk of discovery knows of. More: not visited before one of the others is given up; but one that came
/// itself takes the place of one that did not prove to be there, and one that is named that of one that did not answer.
pub const WALK_PEERS: usize = 1024;

/// Peers that one peer named and that the walk has not met. More: not visited, until it is heard of them again.
pub const WALK_NAMED: usize = 64;

/// Peers that finders found and nobody has looked at yet. Full: finders wait, or find them again later.
pub const DISCOVERY_QUEUE: usize = 256;

/// Peers of earlier runs that a document begins with: those that were met or that a ticket named; and as many of whom others
/// spoke. More: who was met longest ago, or known last, is not dialled before it is heard of again.
pub const STORED_PEERS: usize = 256;

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
