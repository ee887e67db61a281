//! The address book: peers by key, with the newest record that each signed, and which documents they share.
//!
//! It is bounded. Who shares a document is kept before strangers, who proved to be there before who is only talked about, and
//! who was heard of lately before the others: so nobody who sends made-up identities pushes out a peer that is real.
//! Here are the writes, within the transaction of their batch, and the reads.

use std::collections::BTreeMap;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::columns::{blob_ref, number, to_column};
use super::document::find;
use super::engine::Engine;
use super::errors::Outcome;
use super::read::{document_record, log_row};
use crate::address::PeerAddress;
use crate::ids::{LogId, PeerId};
use crate::limits::{BOOK_MAX_STRANGERS, BOOK_STALE_FAILURES, MAX_KNOWN_PEERS, RECORD_CLOCK_SKEW, STRANGER_RECORD_AGE};
use crate::store::{DocumentRecord, Heard, KnownPeer, Noted, StoreError};

/// What a [`KnownPeer`] is read from.
const COLUMNS: &str = "record, bootstrap, address_book.heard_us, met_us, tried_us, failures";

/// Who a peer of a document can be taken for: it was met and is not stale, or a ticket named it.
const PROVEN: &str = "(sharing.named = 1 OR (met_us > 0 AND failures < ?2))";

/// Where a record went.
struct Put {
    peer: i64,
    /// The peer was not known.
    new: bool,
    /// Its record is newer than the one that was here, if there was one.
    newer: bool,
}

impl Engine {
    /// False when the record is from the future and was not kept.
    pub(super) fn remember_peer(&mut self, log: LogId, address: &PeerAddress, heard: Heard) -> Outcome<bool> {
        let log = find(&self.connection, log)?.ok_or(StoreError::UnknownDocument(log))?;
        let Some(put) = self.put_record(address, false)? else { return Ok(false) };
        let now_us = to_column(self.clock.now_us());
        self.connection
            .prepare_cached(
                "INSERT INTO sharing (log, peer, heard_us, named) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT DO UPDATE SET
                     heard_us = max(heard_us, excluded.heard_us), named = max(named, excluded.named)",
            )?
            .execute(params![log, put.peer, now_us, heard == Heard::FromTicket])?;
        if heard == Heard::FromItself {
            self.connection
                .prepare_cached("UPDATE address_book SET met_us = max(met_us, ?2), failures = 0 WHERE peer = ?1")?
                .execute([put.peer, now_us])?;
        }
        if put.new {
            self.forget_peers(put.peer)?;
        }
        Ok(true)
    }

    pub(super) fn note_peers(&mut self, records: &[PeerAddress], bootstrap: bool) -> Outcome<Noted> {
        let oldest_us = self.clock.now_us().saturating_sub(micros(STRANGER_RECORD_AGE));
        let (mut noted, mut last) = (Noted::default(), None);
        for record in records {
            // Who is asked by name is asked at an old address as well.
            let put = match record.timestamp_us() < oldest_us && !bootstrap {
                true => None,
                false => self.put_record(record, bootstrap)?,
            };
            match put {
                Some(put) => {
                    last = put.new.then_some(put.peer).or(last);
                    noted.new.extend(put.newer.then_some(record.peer_id()));
                }
                None => noted.refused += 1,
            }
        }
        if let Some(last) = last {
            self.forget_peers(last)?;
        }
        Ok(noted)
    }

    pub(super) fn note_visit(&mut self, peer: &PeerId, reached: bool) -> Outcome<()> {
        let now_us = to_column(self.clock.now_us());
        let statement = match reached {
            true => "UPDATE address_book SET met_us = ?2, tried_us = ?2, failures = 0 WHERE public_key = ?1",
            false => "UPDATE address_book SET tried_us = ?2, failures = failures + 1 WHERE public_key = ?1",
        };
        self.connection.prepare_cached(statement)?.execute(params![peer.as_bytes(), now_us])?;
        Ok(())
    }

    /// The newest record wins; one from the future would win for ever, and is refused.
    fn put_record(&mut self, address: &PeerAddress, bootstrap: bool) -> Outcome<Option<Put>> {
        let (now_us, key) = (self.clock.now_us(), address.peer_id());
        if address.timestamp_us() > now_us.saturating_add(micros(RECORD_CLOCK_SKEW)) {
            return Ok(None);
        }
        let known = record_row(&self.connection, &key)?;
        self.connection
            .prepare_cached(
                "INSERT INTO address_book (public_key, record, timestamp_us, findable, bootstrap, heard_us)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT DO UPDATE SET
                     record = iif(excluded.timestamp_us > timestamp_us, excluded.record, record),
                     findable = iif(excluded.timestamp_us > timestamp_us, excluded.findable, findable),
                     failures = iif(excluded.timestamp_us > timestamp_us, 0, failures),
                     timestamp_us = max(timestamp_us, excluded.timestamp_us),
                     bootstrap = max(bootstrap, excluded.bootstrap),
                     heard_us = max(heard_us, excluded.heard_us)",
            )?
            .execute(params![
                key.as_bytes(),
                address.encode(),
                to_column(address.timestamp_us()),
                address.is_findable(),
                bootstrap,
                to_column(now_us),
            ])?;
        Ok(Some(match known {
            Some((peer, timestamp_us)) => Put { peer, new: false, newer: timestamp_us < address.timestamp_us() },
            None => Put { peer: self.connection.last_insert_rowid(), new: true, newer: true },
        }))
    }

    /// Keeps the book within its limits: strangers first, of these and of the others who was never met nor named in a ticket,
    /// and of these who was not heard of for longest. Not the one just heard of, and nobody whom the user named.
    fn forget_peers(&mut self, heard: i64) -> Outcome<()> {
        let expired = to_column(self.clock.now_us().saturating_sub(micros(STRANGER_RECORD_AGE)));
        self.connection
            .prepare_cached(
                "DELETE FROM address_book WHERE bootstrap = 0 AND max(heard_us, met_us) < ?1
                 AND NOT EXISTS (SELECT 1 FROM sharing WHERE sharing.peer = address_book.peer)",
            )?
            .execute([expired])?;
        let (all, strangers): (i64, i64) = self
            .connection
            .prepare_cached(
                "SELECT count(*), count(*) FILTER (WHERE bootstrap = 0
                     AND NOT EXISTS (SELECT 1 FROM sharing WHERE sharing.peer = address_book.peer)) FROM address_book",
            )?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let over = |count: i64, limit: usize| count - limit as i64;
        let surplus = over(strangers, BOOK_MAX_STRANGERS).max(over(all, MAX_KNOWN_PEERS));
        if surplus > 0 {
            self.connection
                .prepare_cached(
                    "DELETE FROM address_book WHERE peer IN (
                         SELECT peer FROM address_book WHERE bootstrap = 0 AND peer <> ?1
                         ORDER BY EXISTS (SELECT 1 FROM sharing WHERE sharing.peer = address_book.peer),
                                  met_us > 0 OR EXISTS (
                                      SELECT 1 FROM sharing WHERE sharing.peer = address_book.peer AND named = 1),
                                  max(met_us, heard_us), peer LIMIT ?2)",
                )?
                .execute([heard, surplus])?;
            self.forget_sharing()?;
        }
        Ok(())
    }

    /// What the book no longer speaks of.
    fn forget_sharing(&mut self) -> Outcome<()> {
        self.connection
            .prepare_cached("DELETE FROM sharing WHERE peer NOT IN (SELECT peer FROM address_book)")?
            .execute([])?;
        Ok(())
    }

    /// Forgets a peer, whoever it is. False when it was not known.
    pub(super) fn forget_peer(&mut self, peer: &PeerId) -> Outcome<bool> {
        let deleted = self
            .connection
            .prepare_cached("DELETE FROM address_book WHERE public_key = ?1")?
            .execute([peer.as_bytes()])?;
        self.forget_sharing()?;
        Ok(deleted > 0)
    }

    /// Forgets who was not heard of since, and returns how many these were.
    pub(super) fn forget_peers_before(&mut self, heard_us: u64) -> Outcome<usize> {
        let deleted = self
            .connection
            .prepare_cached("DELETE FROM address_book WHERE max(heard_us, met_us) < ?1")?
            .execute([to_column(heard_us)])?;
        self.forget_sharing()?;
        Ok(deleted)
    }

    /// These documents and no others are shared by a peer. False when the peer is not known.
    pub(super) fn set_sharing(&mut self, peer: &PeerId, logs: &[LogId]) -> Outcome<bool> {
        let rows: Vec<i64> = logs
            .iter()
            .map(|log| Ok(find(&self.connection, *log)?.ok_or(StoreError::UnknownDocument(*log))?))
            .collect::<Outcome<_>>()?;
        let Some(peer) = peer_row(&self.connection, peer)? else { return Ok(false) };
        self.connection.prepare_cached("DELETE FROM sharing WHERE peer = ?1")?.execute([peer])?;
        let now_us = to_column(self.clock.now_us());
        let mut insert = self
            .connection
            .prepare_cached("INSERT OR IGNORE INTO sharing (log, peer, heard_us) VALUES (?1, ?2, ?3)")?;
        for log in rows {
            insert.execute([log, peer, now_us])?;
        }
        Ok(true)
    }
}

/// The peers of a document that were met or named; who was met last comes first.
pub(super) fn peers(connection: &Connection, log: LogId, limit: usize) -> Outcome<Vec<PeerAddress>> {
    sharing(connection, log, &format!("{PROVEN} ORDER BY met_us DESC, peer LIMIT ?3"), limit)
}

/// Its other peers; who was known first comes first.
pub(super) fn rumoured_peers(connection: &Connection, log: LogId, limit: usize) -> Outcome<Vec<PeerAddress>> {
    sharing(connection, log, &format!("NOT {PROVEN} ORDER BY peer LIMIT ?3"), limit)
}

fn sharing(connection: &Connection, log: LogId, which: &str, limit: usize) -> Outcome<Vec<PeerAddress>> {
    let parameters = [log_row(connection, log)?, BOOK_STALE_FAILURES.into(), to_column(limit as u64)];
    let known = select(connection, &format!("JOIN sharing USING (peer) WHERE log = ?1 AND {which}"), parameters)?;
    Ok(known.into_iter().map(|known| known.address).collect())
}

/// One peer.
pub(super) fn known_peer(connection: &Connection, peer: &PeerId) -> Outcome<Option<KnownPeer>> {
    Ok(select(connection, "WHERE public_key = ?1", [peer.as_bytes()])?.pop())
}

/// Whom to ask: those that the user named, and those that want to be asked; who was met last comes first, then who was heard
/// of last.
pub(super) fn known_peers(connection: &Connection, limit: usize) -> Outcome<Vec<KnownPeer>> {
    let of = "WHERE (findable OR bootstrap) AND (failures < ?1 OR bootstrap)
              ORDER BY bootstrap DESC, met_us DESC, heard_us DESC, peer LIMIT ?2";
    select(connection, of, [i64::from(BOOK_STALE_FAILURES), to_column(limit as u64)])
}

/// Who shares one of these documents and is not stale; who was met last comes first.
pub(super) fn sharing_peers(connection: &Connection, logs: &[LogId], limit: usize) -> Outcome<Vec<KnownPeer>> {
    let rows: Vec<_> = logs.iter().map(|log| find(connection, *log)).collect::<Result<_, _>>()?;
    let mut peers = BTreeMap::new();
    let of = "JOIN sharing USING (peer) WHERE log = ?1 AND failures < ?2 ORDER BY met_us DESC, peer LIMIT ?3";
    for log in rows.into_iter().flatten() {
        let sharing = select(connection, of, [log, BOOK_STALE_FAILURES.into(), to_column(limit as u64)])?;
        peers.extend(sharing.into_iter().map(|known| (known.address.peer_id(), known)));
    }
    let mut peers: Vec<_> = peers.into_values().collect();
    peers.sort_by_key(|known| std::cmp::Reverse(known.met_us));
    peers.truncate(limit);
    Ok(peers)
}

/// Everybody, or those that the user named, who is not stale; in any order, or one at random, for p2panda's traits.
pub(super) fn everybody(connection: &Connection, bootstrap: bool, one: bool) -> Outcome<Vec<KnownPeer>> {
    let of = match one {
        true => "WHERE failures < ?1 AND bootstrap >= ?2 ORDER BY random() LIMIT 1",
        false => "WHERE failures < ?1 AND bootstrap >= ?2 ORDER BY peer",
    };
    select(connection, of, [BOOK_STALE_FAILURES.into(), i64::from(bootstrap)])
}

/// How many these are.
pub(super) fn count(connection: &Connection, bootstrap: bool) -> Outcome<usize> {
    let count = "SELECT count(*) FROM address_book WHERE failures < ?1 AND bootstrap >= ?2";
    let parameters = [BOOK_STALE_FAILURES.into(), i64::from(bootstrap)];
    Ok(connection.prepare_cached(count)?.query_row(parameters, |row| number(row, 0))?)
}

/// The documents that a peer shares, for p2panda's traits.
pub(super) fn shared_by(connection: &Connection, peer: &PeerId) -> Outcome<Vec<DocumentRecord>> {
    let mut statement = connection.prepare_cached(
        "SELECT document, key FROM sharing JOIN address_book USING (peer) JOIN documents USING (log)
         WHERE public_key = ?1 ORDER BY log",
    )?;
    let records = statement.query_map([peer.as_bytes()], document_record)?;
    Ok(records.collect::<Result<_, _>>()?)
}

fn select(connection: &Connection, of: &str, parameters: impl rusqlite::Params) -> Outcome<Vec<KnownPeer>> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM address_book {of}"))?;
    let mut rows = statement.query(parameters)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        match PeerAddress::decode(blob_ref(row, 0)?) {
            Ok(address) => found.push(known(row, address)?),
            // An address is a hint, and other peers have it as well: no reason to fail.
            Err(error) => tracing::warn!(%error, "a stored peer address cannot be read"),
        }
    }
    Ok(found)
}

fn known(row: &Row<'_>, address: PeerAddress) -> rusqlite::Result<KnownPeer> {
    Ok(KnownPeer {
        address,
        bootstrap: row.get(1)?,
        heard_us: number(row, 2)?,
        met_us: number(row, 3)?,
        tried_us: number(row, 4)?,
        failures: number(row, 5)?,
    })
}

fn peer_row(connection: &Connection, peer: &PeerId) -> rusqlite::Result<Option<i64>> {
    let find = "SELECT peer FROM address_book WHERE public_key = ?1";
    connection.prepare_cached(find)?.query_row([peer.as_bytes()], |row| row.get(0)).optional()
}

/// A peer, and when it signed its record.
fn record_row(connection: &Connection, peer: &PeerId) -> rusqlite::Result<Option<(i64, u64)>> {
    let find = "SELECT peer, timestamp_us FROM address_book WHERE public_key = ?1";
    let row = |row: &Row<'_>| Ok((row.get(0)?, number(row, 1)?));
    connection.prepare_cached(find)?.query_row([peer.as_bytes()], row).optional()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
