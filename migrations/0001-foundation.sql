-- The foundation: documents, their authors' logs, and what a node remembers beside them.
--
-- Migrations are append-only: never change this file, add the next one. Rows refer to documents and authors by small
-- integers, so that a row and its three index entries stay small. There are no foreign keys: the one writer keeps the
-- references right.

PRAGMA application_id = 0x50614E64; -- "PaNd"

-- Documents that this node takes part in.
CREATE TABLE documents (
    log INTEGER PRIMARY KEY,
    log_id BLOB NOT NULL UNIQUE,            -- 32 bytes, follows from document and key
    document BLOB NOT NULL,                 -- UUID, 16 bytes
    key BLOB NOT NULL,                      -- the document's secret, 32 bytes
    unconfirmed INTEGER NOT NULL DEFAULT 0  -- 1: newer operations of our own may be out there, see instance
) STRICT;

-- Which file this database was when it was last used. Another one means that it was copied or restored from a backup.
CREATE TABLE instance (
    row INTEGER PRIMARY KEY CHECK (row = 1),
    file BLOB NOT NULL                      -- hash of what the file system calls it
) STRICT;

-- Every public key that any row speaks of, once.
CREATE TABLE authors (
    author INTEGER PRIMARY KEY,
    public_key BLOB NOT NULL UNIQUE         -- Ed25519, 32 bytes
) STRICT;

-- Operations in the order in which this node stored them. The writer hands out positions; none is used twice.
CREATE TABLE operations (
    position INTEGER PRIMARY KEY,
    log INTEGER NOT NULL,
    author INTEGER NOT NULL,
    seq_num INTEGER NOT NULL,
    id BLOB NOT NULL,                       -- BLAKE3 of the header, 32 bytes
    backlink BLOB,                          -- id of the author's operation before, NULL for the first
    timestamp_us INTEGER NOT NULL,          -- as the author says: an unsigned number, the same 64 bits
    header BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;

CREATE UNIQUE INDEX operations_by_author ON operations (log, author, seq_num);
-- The position is the row id, which every index ends with: this is the index on (log, position).
CREATE INDEX operations_by_position ON operations (log);
CREATE UNIQUE INDEX operations_by_id ON operations (id);

-- The newest operation of every author in every document.
CREATE TABLE heads (
    log INTEGER NOT NULL,
    author INTEGER NOT NULL,
    seq_num INTEGER NOT NULL,
    id BLOB NOT NULL,
    frozen INTEGER NOT NULL DEFAULT 0,      -- 1 after a fork: nothing more is accepted of this author here
    delivered INTEGER,                      -- own logs only: acknowledged by some peer up to and including this
    PRIMARY KEY (log, author)
) STRICT, WITHOUT ROWID;

-- The proof of a fork: an operation in the log and one that contradicts it. One for each frozen log.
CREATE TABLE forks (
    log INTEGER NOT NULL,
    author INTEGER NOT NULL,
    kept INTEGER NOT NULL,                  -- position of the one in the log
    other_header BLOB NOT NULL,
    other_body BLOB NOT NULL,
    UNIQUE (log, author)
) STRICT;

-- Up to where a subscriber has committed.
CREATE TABLE cursors (
    log INTEGER NOT NULL,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (log, name)
) STRICT, WITHOUT ROWID;

-- Where peers can be reached, as they signed it.
CREATE TABLE peers (
    peer INTEGER PRIMARY KEY,               -- an author
    address BLOB NOT NULL,
    timestamp_us INTEGER NOT NULL           -- of the address, by the peer's clock
) STRICT;

-- Which documents a peer shares with us, and when we last heard so.
CREATE TABLE peer_documents (
    log INTEGER NOT NULL,
    peer INTEGER NOT NULL,
    heard_us INTEGER NOT NULL,              -- by our clock
    PRIMARY KEY (log, peer)
) STRICT, WITHOUT ROWID;
CREATE INDEX peer_documents_by_peer ON peer_documents (peer);
