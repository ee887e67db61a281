-- Who is named in a ticket stays a peer to begin with after a restart, also when it was never met.
ALTER TABLE sharing ADD COLUMN named INTEGER NOT NULL DEFAULT 0; -- 1: a ticket of this document named it
