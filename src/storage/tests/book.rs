//! The address book keeps the newest that real peers signed, whatever others send.

use std::collections::HashSet;
use std::time::Duration;

use p2panda_store::address_book::{AddressBookStore, NodeInfo};

use super::*;
use crate::address::PeerAddress;
use crate::limits::{BOOK_MAX_STRANGERS, BOOK_STALE_FAILURES, MAX_KNOWN_PEERS, RECORD_CLOCK_SKEW, STRANGER_RECORD_AGE};
use crate::storage::P2pandaStoreError;
use crate::store::KnownPeer;

/// A year after the epoch, in µs.
const NOW_US: u64 = 365 * 24 * 3600 * 1_000_000;

fn identity(number: u32) -> Identity {
    let mut seed = [7; 32];
    seed[..4].copy_from_slice(&number.to_be_bytes());
    Identity::from_seed(&seed)
}

fn record(number: u32, timestamp_us: u64) -> PeerAddress {
    PeerAddress::sign(&identity(number), Vec::new(), Vec::new(), timestamp_us).unwrap()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap()
}

/// A store with document 1 open, and its clock.
async fn book() -> (SqliteStore, Arc<AtomicU64>) {
    let clock = Arc::new(AtomicU64::new(NOW_US));
    let read = Arc::clone(&clock);
    let options = StorageOptions::in_memory().with_clock(Clock::new(move || read.load(Ordering::Relaxed)));
    let store = SqliteStore::open(options, alice()).unwrap();
    store.open_document(document(1), ignore()).await.unwrap();
    (store, clock)
}

async fn knows(store: &SqliteStore, number: u32) -> bool {
    store.known_peer(identity(number).peer_id()).await.unwrap().is_some()
}

async fn len(store: &SqliteStore) -> usize {
    AddressBookStore::<_, KnownPeer>::all_nodes_len(store).await.unwrap()
}

#[tokio::test]
async fn ten_thousand_identities_push_nobody_out_who_is_real() {
    let (store, clock) = book().await;
    let (bootstrap, met, sharing, heard_of) = (1, 2, 3, 4);
    store.note_peers(vec![record(bootstrap, NOW_US)], true).await.unwrap();
    store.note_peers(vec![record(met, NOW_US)], false).await.unwrap();
    store.note_visit(identity(met).peer_id(), true).await.unwrap();
    store.remember_peer(document(1).log(), record(sharing, NOW_US), Heard::FromItself).await.unwrap();
    store.remember_peer(document(1).log(), record(heard_of, NOW_US), Heard::FromOthers).await.unwrap();
    for flood in 0..160 {
        clock.fetch_add(1_000_000, Ordering::Relaxed);
        let records = (0..64).map(|n| record(100 + flood * 64 + n, NOW_US)).collect();
        assert_eq!(store.note_peers(records, false).await.unwrap().new.len(), 64);
        assert!(len(&store).await <= BOOK_MAX_STRANGERS + 3, "{}", len(&store).await);
    }
    for real in [bootstrap, met, sharing, heard_of] {
        assert!(knows(&store, real).await, "{real}");
    }
    let log = document(1).log();
    let peers = (store.peers(log, 9).await.unwrap(), store.rumoured_peers(log, 9).await.unwrap());
    assert_eq!(peers, (vec![record(sharing, NOW_US)], vec![record(heard_of, NOW_US)]));
    let rows = store.read(|connection, _| {
        Ok(connection.query_row("SELECT count(*) FROM authors", [], |row| row.get::<_, i64>(0))?)
    });
    assert_eq!(rows.await.unwrap(), 0, "strangers leave nothing behind in tables that only grow");
}

#[tokio::test]
async fn made_up_peers_of_a_document_push_out_each_other_and_not_who_was_met_or_named() {
    let (store, clock) = book().await;
    let log = document(1).log();
    let fill = store.write(0, move |engine| {
        for row in 0..MAX_KNOWN_PEERS as i64 {
            engine.connection.execute(
                "INSERT INTO address_book (peer, public_key, record, timestamp_us, heard_us)
                 VALUES (?1, randomblob(32), x'00', 1, ?1)",
                [1_000 + row],
            )?;
            engine.connection.execute("INSERT INTO sharing VALUES (1, ?1, ?1, 0)", [1_000 + row])?;
        }
        // Those that were heard of first are real.
        engine.connection.execute("UPDATE address_book SET met_us = 1 WHERE peer = 1000", [])?;
        engine.connection.execute("UPDATE sharing SET named = 1 WHERE peer = 1001", [])?;
        Ok(())
    });
    fill.await.unwrap();
    clock.fetch_add(1, Ordering::Relaxed);
    assert!(store.remember_peer(log, record(2, NOW_US), Heard::FromOthers).await.unwrap());
    let rows = "SELECT count(*), count(*) FILTER (WHERE peer < 1002), count(*) FILTER (WHERE peer = 1002),
                (SELECT count(*) FROM sharing) FROM address_book";
    let left = store.read(move |connection, _| {
        Ok(connection.query_row(rows, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, i64>(3)?]))?)
    });
    assert_eq!(left.await.unwrap(), [MAX_KNOWN_PEERS as i64, 2, 0, MAX_KNOWN_PEERS as i64]);
}

#[tokio::test]
async fn a_record_from_the_future_is_refused_and_the_newest_of_the_others_wins() {
    let (store, _) = book().await;
    let log = document(1).log();
    let latest_us = NOW_US + micros(RECORD_CLOCK_SKEW);
    assert!(store.remember_peer(log, record(2, NOW_US), Heard::FromItself).await.unwrap());
    assert!(!store.remember_peer(log, record(2, latest_us + 1), Heard::FromItself).await.unwrap());
    assert!(!store.remember_peer(log, record(3, u64::MAX), Heard::FromOthers).await.unwrap());
    let noted = store.note_peers(vec![record(2, u64::MAX), record(4, latest_us + 1)], false).await.unwrap();
    assert_eq!((noted.new.len(), noted.refused), (0, 2));
    assert_eq!(store.peers(log, 9).await.unwrap(), [record(2, NOW_US)]);
    let records = vec![record(2, NOW_US - 1), record(2, NOW_US + 1), record(2, NOW_US)];
    let noted = store.note_peers(records, false).await.unwrap();
    assert_eq!(noted.new, [identity(2).peer_id()], "that it signed again is news, once");
    assert_eq!(store.peers(log, 9).await.unwrap(), [record(2, NOW_US + 1)]);
    assert!(store.remember_peer(log, record(2, latest_us), Heard::FromItself).await.unwrap());
}

#[tokio::test]
async fn strangers_expire_and_peers_of_a_document_do_not() {
    let (store, clock) = book().await;
    let age_us = micros(STRANGER_RECORD_AGE);
    assert_eq!(store.note_peers(vec![record(1, NOW_US - age_us - 1)], false).await.unwrap().refused, 1);
    store.note_peers(vec![record(2, NOW_US)], false).await.unwrap();
    store.note_peers(vec![record(3, 5)], true).await.unwrap();
    store.remember_peer(document(1).log(), record(4, 5), Heard::FromOthers).await.unwrap();
    clock.fetch_add(age_us + 1, Ordering::Relaxed);
    store.note_peers(vec![record(5, NOW_US + age_us)], false).await.unwrap();
    let mut known = Vec::new();
    for number in 1..=5 {
        known.push(knows(&store, number).await);
    }
    assert_eq!(known, [false, false, true, true, true]);
}

#[tokio::test]
async fn who_was_met_last_and_whom_a_ticket_named_come_before_a_crowd_that_is_talked_about() {
    let (store, clock) = book().await;
    let log = document(1).log();
    let (named, first, second, stale) = (1, 2, 3, 4);
    for (number, heard) in [
        (named, Heard::FromTicket),
        (first, Heard::FromItself),
        (stale, Heard::FromItself),
        (second, Heard::FromItself),
    ] {
        clock.fetch_add(1, Ordering::Relaxed);
        store.remember_peer(log, record(number, NOW_US), heard).await.unwrap();
    }
    for number in 100..200 {
        clock.fetch_add(1, Ordering::Relaxed);
        store.remember_peer(log, record(number, NOW_US), Heard::FromOthers).await.unwrap();
    }
    // That others speak of it as well takes nothing away.
    store.remember_peer(log, record(named, NOW_US), Heard::FromOthers).await.unwrap();
    for _ in 0..BOOK_STALE_FAILURES {
        store.note_visit(identity(stale).peer_id(), false).await.unwrap();
    }
    let records = |numbers: &[u32]| numbers.iter().map(|number| record(*number, NOW_US)).collect::<Vec<_>>();
    assert_eq!(store.peers(log, 9).await.unwrap(), records(&[second, first, named]));
    assert_eq!(store.peers(log, 2).await.unwrap(), records(&[second, first]));
    assert_eq!(store.rumoured_peers(log, 3).await.unwrap(), records(&[stale, 100, 101]));
    assert_eq!(store.rumoured_peers(log, 999).await.unwrap().len(), 101);
}

#[tokio::test]
async fn who_does_not_answer_becomes_stale_until_it_is_met_or_signs_again() {
    let (store, _) = book().await;
    let (log, peer) = (document(1).log(), identity(2).peer_id());
    store.remember_peer(log, record(2, NOW_US), Heard::FromItself).await.unwrap();
    let sharing = async || store.sharing_peers(vec![log], 8).await.unwrap().len();
    for _ in 0..BOOK_STALE_FAILURES {
        assert_eq!(sharing().await, 1);
        store.note_visit(peer, false).await.unwrap();
    }
    assert_eq!(sharing().await, 0);
    store.note_peers(vec![record(2, NOW_US)], false).await.unwrap();
    assert_eq!(sharing().await, 0, "an old record is no news");
    store.note_peers(vec![record(2, NOW_US + 1)], false).await.unwrap();
    assert_eq!(sharing().await, 1);
    assert_eq!(store.peers(log, 9).await.unwrap(), [record(2, NOW_US + 1)]);
}

#[tokio::test]
async fn peers_of_a_database_of_the_version_before_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("panda.sqlite");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch(include_str!("../../../migrations/0001-foundation.sql")).unwrap();
    connection.pragma_update(None, "user_version", 1).unwrap();
    let (log, key) = (document(1).log(), document(1).key);
    let document_id = document(1).document;
    connection
        .execute(
            "INSERT INTO documents (log, log_id, document, key) VALUES (1, ?1, ?2, ?3)",
            rusqlite::params![log.as_bytes(), document_id.as_uuid().as_bytes(), key.as_bytes()],
        )
        .unwrap();
    for number in [2, 3] {
        let peer = identity(number).peer_id();
        let row = i64::from(number) + 40;
        let address = record(number, 5).encode();
        connection.execute("INSERT INTO authors VALUES (?1, ?2)", rusqlite::params![row, peer.as_bytes()]).unwrap();
        connection.execute("INSERT INTO peers VALUES (?1, ?2, 5)", rusqlite::params![row, address]).unwrap();
        connection.execute("INSERT INTO peer_documents VALUES (1, ?1, ?1)", [row]).unwrap();
    }
    drop(connection);
    let store = open(directory.path());
    assert_eq!(store.rumoured_peers(log, 9).await.unwrap(), [record(2, 5), record(3, 5)]);
}

#[tokio::test]
async fn p2panda_finds_in_the_address_book_what_we_know() {
    let (store, clock) = book().await;
    let topic = document(1).key.topic(&document(1).document);
    let (two, three) = (identity(2).peer_id(), identity(3).peer_id());
    store.remember_peer(document(1).log(), record(2, 5), Heard::FromItself).await.unwrap();
    let two_known = AddressBookStore::<_, KnownPeer>::node_info(&store, &two).await.unwrap().unwrap();
    assert_eq!((two_known.id(), two_known.transports(), two_known.is_bootstrap()), (two, Some(record(2, 5)), false));
    let mut info = KnownPeer { address: record(3, NOW_US), bootstrap: true, ..two_known.clone() };
    assert!(store.insert_node_info(info.clone()).await.unwrap());
    assert!(!store.insert_node_info(info.clone()).await.unwrap());
    info.address = record(3, u64::MAX);
    assert!(matches!(store.insert_node_info(info).await, Err(P2pandaStoreError::Mismatch(_))));
    let ids = |infos: Vec<KnownPeer>| infos.iter().map(NodeInfo::id).collect::<HashSet<_>>();
    assert_eq!(ids(store.all_node_infos().await.unwrap()), HashSet::from([two, three]));
    assert_eq!(ids(store.selected_node_infos(&[three, alice().peer_id()]).await.unwrap()), HashSet::from([three]));
    assert_eq!(ids(store.node_infos_by_topics(&[topic, [9; 32].into()]).await.unwrap()), HashSet::from([two]));
    let topics = AddressBookStore::<_, KnownPeer>::node_topics(&store, &two).await.unwrap();
    assert_eq!(topics, HashSet::from([topic]));
    let set = async |id, topics| AddressBookStore::<_, KnownPeer>::set_topics(&store, id, topics).await;
    set(three, HashSet::from([topic])).await.unwrap();
    set(two, HashSet::new()).await.unwrap();
    assert_eq!(ids(store.node_infos_by_topics(&[topic]).await.unwrap()), HashSet::from([three]));
    set(three, HashSet::from([[9; 32].into()])).await.unwrap_err();
    set(identity(9).peer_id(), HashSet::from([topic])).await.unwrap_err();
    assert_eq!(ids(store.node_infos_by_topics(&[topic]).await.unwrap()), HashSet::from([three]));
    assert_eq!(AddressBookStore::<_, KnownPeer>::all_bootstrap_nodes_len(&store).await.unwrap(), 1);
    let random: KnownPeer = store.random_bootstrap_node().await.unwrap().unwrap();
    assert_eq!(random.id(), three);
    let random: Option<KnownPeer> = store.random_node().await.unwrap();
    assert!(random.is_some());
    assert!(AddressBookStore::<_, KnownPeer>::remove_node_info(&store, &two).await.unwrap());
    assert!(!AddressBookStore::<_, KnownPeer>::remove_node_info(&store, &two).await.unwrap());
    clock.fetch_add(10, Ordering::Relaxed);
    let remove = AddressBookStore::<_, KnownPeer>::remove_older_than(&store, Duration::from_micros(9)).await;
    assert_eq!((remove.unwrap(), len(&store).await), (1, 0));
    let encoded = p2panda_core::cbor::encode_cbor(&record(2, 5)).unwrap();
    let decoded: PeerAddress = p2panda_core::cbor::decode_cbor(&encoded[..]).unwrap();
    assert_eq!(decoded, record(2, 5));
}
