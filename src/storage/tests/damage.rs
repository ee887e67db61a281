//! What happens when the directory is taken, or the file in it is not what it should be.

use std::io::{Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::*;
use crate::storage::database::DATABASE_FILE;

/// The file of a closed store with some operations in it.
async fn closed(directory: &std::path::Path, operations: usize) -> PathBuf {
    let store = open(directory);
    state(&store, 1).await;
    for _ in 0..operations {
        publish(&store, document(1).log(), &"x".repeat(500)).await.unwrap();
    }
    store.close().await.unwrap();
    directory.join(DATABASE_FILE)
}

fn assert_damaged(result: Result<impl std::fmt::Debug, StoreError>, file: &std::path::Path) {
    match result {
        Err(StoreError::Damaged { path, .. }) => assert_eq!(path, file),
        other => panic!("expected damage, got {other:?}"),
    }
}

#[tokio::test]
async fn a_directory_belongs_to_one_store_at_a_time() {
    let (directory, store, _) = on_disk().await;
    let in_use = SqliteStore::open(options(directory.path()), alice()).unwrap_err();
    assert!(matches!(in_use, StoreError::InUse { path } if path == directory.path()));
    drop(store);
    open(directory.path());
}

#[test]
fn another_process_with_the_lock_keeps_us_out() {
    let directory = tempfile::tempdir().unwrap();
    let lock = directory.path().join("lock");
    // `flock` of util-linux holds the lock until its standard input ends.
    let other = std::process::Command::new("flock")
        .args([lock.as_os_str(), "-c".as_ref(), "echo locked; cat".as_ref()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut other) = other else {
        not_run("another process with the lock, which takes the program `flock`");
        return;
    };
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(other.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert_eq!(line, "locked\n");
    assert!(matches!(SqliteStore::open(options(directory.path()), alice()), Err(StoreError::InUse { .. })));
    drop(other.stdin.take());
    other.wait().unwrap();
    open(directory.path());
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_can_read_what_is_kept() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("made/by/us");
    let store = open(&directory);
    state(&store, 1).await;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o700);
    let mut files = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
        files += 1;
    }
    assert_eq!(files, 4, "database, write-ahead log, its index, lock");
}

#[tokio::test]
async fn a_file_of_random_bytes_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = closed(directory.path(), 1).await;
    let noise: Vec<u8> = (0..8192_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(&path, noise).unwrap();
    assert_damaged(SqliteStore::open(options(directory.path()), alice()), &path);
}

#[tokio::test]
async fn a_truncated_file_is_damage_even_when_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let path = closed(directory.path(), 50).await;
    let whole = std::fs::metadata(&path).unwrap().len();
    for length in [whole / 2, 50, 0] {
        std::fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        assert_damaged(SqliteStore::open(options(directory.path()), alice()), &path);
    }
}

#[tokio::test]
async fn a_database_of_another_program_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(DATABASE_FILE);
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
    let before = std::fs::read(&path).unwrap();
    assert_damaged(SqliteStore::open(options(directory.path()), alice()), &path);
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn damage_that_is_found_later_names_the_file_and_spares_the_rest_of_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = closed(directory.path(), 200).await;
    let length = std::fs::metadata(&path).unwrap().len();
    let mut file = std::fs::File::options().write(true).open(&path).unwrap();
    // All but the pages with the schema.
    let start = length / 2;
    file.seek(SeekFrom::Start(start)).unwrap();
    file.write_all(&vec![0xA5; (length - start) as usize]).unwrap();
    let store = open(directory.path());
    let log = document(1).log();
    let mut failed = None;
    for seq_num in 0..200 {
        match store.author_page(log, alice().peer_id(), seq_num, seq_num).await {
            Ok(page) => page.iter().for_each(|stored| assert_eq!(stored.operation.payload(), [b'x'; 500])),
            Err(error) => failed = Some(error),
        }
    }
    let failed: Result<(), _> = Err(failed.expect("half of the file is damaged"));
    assert_damaged(failed, &path);
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = closed(directory.path(), 1).await;
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.pragma_update(None, "user_version", 1_000).unwrap();
    drop(connection);
    let error = SqliteStore::open(options(directory.path()), alice()).unwrap_err();
    assert!(matches!(error, StoreError::TooNew { path: of } if of == path));
}

#[tokio::test]
async fn a_start_that_was_interrupted_while_it_made_the_database_is_made_up_for() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("panda.new"), b"half a database").unwrap();
    std::fs::write(directory.path().join("panda.new-journal"), b"half a journal").unwrap();
    let path = closed(directory.path(), 1).await;
    assert!(path.exists());
    assert!(!directory.path().join("panda.new").exists());
}

#[tokio::test]
async fn a_write_ahead_log_without_its_database_is_not_mixed_into_a_new_one() {
    let (directory, store, log) = on_disk().await;
    publish(&store, log, "edit").await.unwrap();
    std::mem::forget(store);
    let elsewhere = tempfile::tempdir().unwrap();
    let wal = format!("{DATABASE_FILE}-wal");
    std::fs::copy(directory.path().join(&wal), elsewhere.path().join(&wal)).unwrap();
    let path = elsewhere.path().join(DATABASE_FILE);
    assert_damaged(SqliteStore::open(options(elsewhere.path()), alice()), &path);
    std::fs::remove_file(elsewhere.path().join(&wal)).unwrap();
    open(elsewhere.path());
}
