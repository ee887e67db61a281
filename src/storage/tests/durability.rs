//! What was acknowledged is there after a restart, a crash and a full disk.

use super::*;
use crate::address::PeerAddress;
use crate::storage::Backend;
use crate::storage::database::DATABASE_FILE;

/// What the files in a directory hold at this moment, as a crash would leave them to the next start.
fn crash(directory: &std::path::Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        // The index of the write-ahead log is memory; a start makes it anew.
        if path.extension().is_none_or(|extension| extension != "sqlite-shm") {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

/// Everything that the calls of the port show of document 1.
async fn seen(store: &SqliteStore) -> impl PartialEq + std::fmt::Debug + use<> {
    let log = document(1).log();
    (
        state(store, 1).await,
        everything(store, log).await,
        store.cursor(log, "editor").await.unwrap(),
        (store.peers(log, 9).await.unwrap(), store.rumoured_peers(log, 9).await.unwrap()),
        store.fork_proofs(log).await.unwrap(),
        store.documents().await.unwrap(),
    )
}

async fn fill(store: &SqliteStore) {
    let log = document(1).log();
    for _ in 0..5 {
        publish(store, log, "edit").await.unwrap();
    }
    store.ingest(log, chain(&bob(), log, 3, "one ")).await.unwrap();
    store.ingest(log, chain(&bob(), log, 1, "other ")).await.unwrap();
    store.set_cursor(log, "editor", 4).await.unwrap();
    let address = PeerAddress::sign(&bob(), Vec::new(), Vec::new(), 5).unwrap();
    store.remember_peer(log, address, Heard::FromOthers).await.unwrap();
}

#[tokio::test]
async fn after_a_restart_everything_is_as_it_was() {
    for durability in [Durability::Power, Durability::Process] {
        let directory = tempfile::tempdir().unwrap();
        let open = || SqliteStore::open(options(directory.path()).with_durability(durability), alice()).unwrap();
        let store = open();
        state(&store, 1).await;
        fill(&store).await;
        store.set_delivered(document(1).log(), 2).await.unwrap();
        let before = seen(&store).await;
        store.close().await.unwrap();
        let store = open();
        assert_eq!(seen(&store).await, before);
        drop(store);
        assert_eq!(seen(&open()).await, before, "without close as well");
    }
}

#[tokio::test]
async fn after_a_crash_everything_that_returned_is_there() {
    let (directory, store, log) = on_disk().await;
    fill(&store).await;
    let before = seen(&store).await;
    let copy = crash(directory.path());
    std::mem::forget(store);
    let store = open(copy.path());
    assert!(state(&store, 1).await.unconfirmed, "the test copies what the crash left, and that is noticed");
    store.confirm(log).await.unwrap();
    assert_eq!(seen(&store).await, before);
    let next = publish(&store, log, "next").await.unwrap();
    assert_eq!(next.operation.seq_num(), 5);
    assert_eq!(assert_gapless(&store, log, alice().peer_id()).await, 6);
}

#[tokio::test]
async fn after_a_crash_at_any_byte_of_the_log_a_prefix_of_what_was_written_is_there() {
    let (directory, store, log) = on_disk().await;
    for _ in 0..6 {
        publish(&store, log, "edit").await.unwrap();
    }
    let copy = crash(directory.path());
    let wal = copy.path().join(format!("{DATABASE_FILE}-wal"));
    let database = std::fs::read(copy.path().join(DATABASE_FILE)).unwrap();
    let whole = std::fs::read(&wal).unwrap();
    let mut most = 0;
    for length in (0..=whole.len()).step_by(1021).chain([whole.len()]) {
        std::fs::write(copy.path().join(DATABASE_FILE), &database).unwrap();
        std::fs::write(&wal, &whole[..length]).unwrap();
        let store = open(copy.path());
        state(&store, 1).await;
        let operations = assert_gapless(&store, log, alice().peer_id()).await;
        assert!(operations >= most, "more of the log never means fewer operations");
        most = operations;
        let head = state(&store, 1).await.heads.get(&alice().peer_id()).map_or(0, |head| head.seq_num as usize + 1);
        assert_eq!(head, operations, "head and log agree");
    }
    assert_eq!(most, 6);
}

#[tokio::test]
async fn an_acknowledgement_goes_along_with_the_next_commit() {
    let (directory, store, log) = on_disk().await;
    publish(&store, log, "edit").await.unwrap();
    store.set_delivered(log, 0).await.unwrap();
    publish(&store, log, "edit").await.unwrap();
    let copy = crash(directory.path());
    let state = state(&open(copy.path()), 1).await;
    assert_eq!((state.delivered, state.outbox_operations), (Some(0), 1));
}

#[tokio::test]
async fn an_acknowledgement_is_written_by_itself_after_a_while_and_later_commits_wait_for_the_disk_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path()).with_inline(true).with_durability(Durability::Power);
    let store = SqliteStore::open(options, alice()).unwrap();
    state(&store, 1).await;
    publish(&store, document(1).log(), "edit").await.unwrap();
    store.set_delivered(document(1).log(), 0).await.unwrap();
    let delivered = async |directory: &std::path::Path| state(&open(crash(directory).path()), 1).await.delivered;
    assert_eq!(delivered(directory.path()).await, None);
    let Backend::Inline(engine) = store.backend.as_ref() else { panic!("it is inline") };
    let written = engine.lock().unwrap().as_mut().unwrap().write_acknowledged();
    written.unwrap();
    assert_eq!(delivered(directory.path()).await, Some(0));
    publish(&store, document(1).log(), "edit").await.unwrap();
    let synchronous =
        store.read(|connection, _| Ok(connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0))?));
    assert_eq!(synchronous.await.unwrap(), 2, "FULL");
}

#[tokio::test]
async fn a_transaction_that_sqlite_fails_takes_nothing_along_and_uses_no_number() {
    let (_directory, store, log) = on_disk().await;
    let before = publish(&store, log, "edit").await.unwrap();
    let broken = store.write(0, move |engine| {
        engine.publish(log, &Bytes::from_static(b"rolled back"))?;
        engine.set_delivered(log, 1)?;
        engine.connection.execute("INSERT INTO no_such_table VALUES (1)", [])?;
        Ok(())
    });
    assert!(matches!(broken.await, Err(StoreError::Io(_))));
    let state = state(&store, 1).await;
    assert_eq!((state.newest, state.outbox_operations, state.delivered), (before.position, 1, None));
    let next = publish(&store, log, "next").await.unwrap();
    assert_eq!(next.operation.backlink(), Some(before.operation.id()));
    assert_eq!(assert_gapless(&store, log, alice().peer_id()).await, 2);
}

#[tokio::test]
async fn a_refused_call_does_not_hold_up_the_others_in_its_transaction() {
    let (_directory, store, log) = on_disk().await;
    let unknown = document(9).log();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..60 {
        let store = store.clone();
        tasks
            .spawn(async move { (number, publish(&store, if number % 2 == 0 { log } else { unknown }, "edit").await) });
    }
    for (number, result) in tasks.join_all().await {
        assert_eq!(result.is_ok(), number % 2 == 0, "{result:?}");
    }
    assert_eq!(assert_gapless(&store, log, alice().peer_id()).await, 30);
}

#[tokio::test]
async fn on_a_full_database_publish_fails_and_works_again_when_there_is_space() {
    let (_directory, store, log) = on_disk().await;
    let limit = |pages: &'static str| {
        store.write(0, move |engine| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            Ok(engine.connection.query_row(&sql, [], |_| Ok(()))?)
        })
    };
    limit("30").await.unwrap();
    let acknowledged = publish_until_full(&store, log).await;
    limit("100000").await.unwrap();
    assert_works_again(&store, log, acknowledged).await;
}

#[tokio::test]
async fn on_a_full_disk_publish_fails_and_works_again_when_there_is_space() {
    let mount = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(mount.path()) else {
        not_run("a full disk, which takes a small file system, which only root can mount");
        return;
    };
    let ballast = mount.path().join("ballast");
    std::fs::write(&ballast, vec![0; 600 * 1024]).unwrap();
    let store = open(&mount.path().join("data"));
    state(&store, 1).await;
    let log = document(1).log();
    let acknowledged = publish_until_full(&store, log).await;
    std::fs::remove_file(ballast).unwrap();
    assert_works_again(&store, log, acknowledged).await;
    store.close().await.unwrap();
    let store = open(&mount.path().join("data"));
    assert_eq!(assert_gapless(&store, log, alice().peer_id()).await, acknowledged + 1);
    drop((store, disk));
}

/// Publishes until the disk is full, twice, and returns how often it worked.
async fn publish_until_full(store: &SqliteStore, log: LogId) -> usize {
    let mut acknowledged = 0;
    let mut failures = 0;
    while failures < 2 {
        match publish(store, log, &"x".repeat(2_000)).await {
            Ok(stored) => {
                assert_eq!(stored.operation.seq_num() as usize, acknowledged);
                acknowledged += 1;
            }
            Err(error) => {
                assert!(matches!(error, StoreError::DiskFull(_)), "{error}");
                failures += 1;
            }
        }
    }
    assert!(acknowledged > 0);
    assert_eq!(assert_gapless(store, log, alice().peer_id()).await, acknowledged, "nothing acknowledged is lost");
    acknowledged
}

async fn assert_works_again(store: &SqliteStore, log: LogId, acknowledged: usize) {
    let next = publish(store, log, "there is space again").await.unwrap();
    assert_eq!(next.operation.seq_num() as usize, acknowledged);
    assert_eq!(assert_gapless(store, log, alice().peer_id()).await, acknowledged + 1);
}

/// A file system of 1 MiB in memory.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &std::path::Path) -> Option<Self> {
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(path).stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Self(path.into()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_copied_store_publishes_nothing_until_it_is_confirmed() {
    let (directory, store, log) = on_disk().await;
    publish(&store, log, "in the backup").await.unwrap();
    store.close().await.unwrap();
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(directory.path().join("panda.sqlite"), copy.path().join("panda.sqlite")).unwrap();
    for _ in 0..2 {
        let restored = open(copy.path());
        assert!(state(&restored, 1).await.unconfirmed, "starting again does not help");
        let refused = publish(&restored, log, "which number would it get?").await;
        assert!(matches!(refused, Err(StoreError::Restored(_))), "{refused:?}");
        restored.close().await.unwrap();
    }
    let restored = open(copy.path());
    state(&restored, 1).await;
    restored.confirm(log).await.unwrap();
    assert_eq!(publish(&restored, log, "the next").await.unwrap().operation.seq_num(), 1);
    let original = open(directory.path());
    assert!(!state(&original, 1).await.unconfirmed, "the original is where it was");
}
