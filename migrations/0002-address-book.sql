-- The address book: every peer that this node knows of, whether or not it shares a document. Keys stand here and not in
-- `authors`, whose rows are never deleted: strangers come and go.

CREATE TABLE address_book (
    peer INTEGER PRIMARY KEY,
    public_key BLOB NOT NULL UNIQUE,        -- Ed25519, 32 bytes
    record BLOB NOT NULL,                   -- where it can be reached, as it signed it
    timestamp_us INTEGER NOT NULL,          -- of the record, by the peer's clock
    findable INTEGER NOT NULL DEFAULT 0,    -- 1: its record says that strangers may hear of it and ask it
    bootstrap INTEGER NOT NULL DEFAULT 0,   -- 1: this node's user named it as a peer to ask; never forgotten
    heard_us INTEGER NOT NULL,              -- when the record was last heard, by our clock
    met_us INTEGER NOT NULL DEFAULT 0,      -- when it last proved to be there itself, 0: never
    tried_us INTEGER NOT NULL DEFAULT 0,    -- when it was last tried, 0: never
    failures INTEGER NOT NULL DEFAULT 0     -- attempts in vain since it was met, or signed a new record
) STRICT;

-- Which documents a peer shares with us, and when we last heard so.
CREATE TABLE sharing (
    log INTEGER NOT NULL,
    peer INTEGER NOT NULL,                  -- in the address book
    heard_us INTEGER NOT NULL,              -- by our clock
    PRIMARY KEY (log, peer)
) STRICT, WITHOUT ROWID;
CREATE INDEX sharing_by_peer ON sharing (peer);

INSERT INTO address_book (peer, public_key, record, timestamp_us, heard_us)
SELECT peer, public_key, address, timestamp_us, coalesce((SELECT max(heard_us) FROM peer_documents AS of WHERE of.peer = peers.peer), 0)
FROM peers JOIN authors ON author = peer;
INSERT INTO sharing SELECT log, peer, heard_us FROM peer_documents WHERE peer IN (SELECT peer FROM address_book);
DROP TABLE peer_documents;
DROP TABLE peers;
