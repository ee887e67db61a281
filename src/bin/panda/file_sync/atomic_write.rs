//! Replacing a file whole or not at all: temporary file beside it, fsync, a last look at the old content, rename.
//!
//! Nothing is overwritten unseen. On Linux the new file and the old one are exchanged and the old one is looked at
//! afterwards: if an edit slipped in between, they are exchanged back. Where that is not possible a last look before the
//! rename must do, which leaves one system call's time. The given path must not be a symbolic link (see
//! `file_text::resolve`), or the link would go.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

use super::file_text::{FileProblem, read_text};

/// How a replacement ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The file has the new content, durably.
    Done,
    /// The file was not what it should have been and was left alone.
    Changed,
}

/// Replaces the content of `path`, which must still be `expected` (`None`: there must be no file), by `text`.
///
/// `note` is told the temporary file's name when that is complete and durable, and `None` when the replacement will not
/// happen after all, before the temporary file goes. So after a crash the temporary file still holds `text` exactly if it
/// did not happen.
///
/// # Errors
/// What the operating system said; the file is as it was.
pub fn replace(
    path: &Path,
    expected: Option<&str>,
    text: &str,
    mut note: impl FnMut(Option<&Path>) -> std::io::Result<()>,
) -> std::io::Result<Replaced> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut temporary = tempfile::Builder::new().prefix(".panda-").suffix(".tmp").tempfile_in(directory)?;
    temporary.write_all(text.as_bytes())?;
    set_permissions(path, &temporary)?;
    temporary.as_file().sync_all()?;
    note(Some(temporary.path()))?;
    let unchanged = match (read_text(path), expected) {
        (Ok(now), Some(expected)) => now == expected,
        (Err(FileProblem::Missing), None) => true,
        (Ok(_) | Err(_), _) => false,
    };
    if !unchanged {
        note(None)?;
        return Ok(Replaced::Changed);
    }
    match put_in_place(temporary, path, expected) {
        Ok(None) => {}
        Ok(Some(unused)) => {
            note(None)?;
            drop(unused);
            return Ok(Replaced::Changed);
        }
        Err(failed) => {
            note(None)?;
            if read_text(failed.file.path()).as_deref() != Ok(text) {
                // What was in the way and could not be put back is kept under its temporary name.
                failed.file.keep().map_err(|error| error.error)?;
            }
            return Err(failed.error);
        }
    }
    // The file is replaced, whatever this says; some file systems cannot sync a directory.
    if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
        tracing::warn!(%error, "the directory cannot be synced");
    }
    Ok(Replaced::Done)
}

/// Gives the temporary file back when an edit slipped in; it holds the new text again.
fn put_in_place(
    temporary: NamedTempFile,
    path: &Path,
    expected: Option<&str>,
) -> Result<Option<NamedTempFile>, tempfile::PersistError> {
    let Some(expected) = expected else {
        return match temporary.persist_noclobber(path) {
            Ok(_) => Ok(None),
            Err(failed) if failed.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(Some(failed.file)),
            Err(failed) => Err(failed),
        };
    };
    match exchange(temporary.path(), path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Some(temporary)),
        // Not on this system or this file system.
        Err(_) => return temporary.persist(path).map(|_| None),
    }
    if read_text(temporary.path()).is_ok_and(|displaced| displaced == expected) {
        return Ok(None);
    }
    match exchange(temporary.path(), path) {
        Ok(()) => Ok(Some(temporary)),
        Err(error) => Err(tempfile::PersistError { error, file: temporary }),
    }
}

#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}

#[cfg(not(target_os = "linux"))]
fn exchange(_one: &Path, _other: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// The permissions of the file that is replaced, or those of a newly made file.
fn set_permissions(path: &Path, temporary: &NamedTempFile) -> std::io::Result<()> {
    match std::fs::metadata(path) {
        Ok(metadata) => temporary.as_file().set_permissions(metadata.permissions()),
        Err(_) => set_default_permissions(temporary),
    }
}

/// Temporary files are private; a document that was not there before gets what most files have.
#[cfg(unix)]
fn set_default_permissions(temporary: &NamedTempFile) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    temporary.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_default_permissions(_temporary: &NamedTempFile) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says past the capture of tests what was not run here; a failure where everything has to be (`PANDA_NETNS=require`, as in
    /// CI).
    fn not_run(what: &str) {
        assert!(std::env::var_os("PANDA_NETNS").is_none_or(|value| value != "require"), "not run: {what}");
        let _ = writeln!(std::io::stderr(), "NOT RUN: {what}");
    }

    #[test]
    fn the_file_gets_the_new_content_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.md");
        assert_eq!(replace(&file, None, "one", |_| Ok(())).unwrap(), Replaced::Done);
        assert_eq!(replace(&file, Some("one"), "two", |_| Ok(())).unwrap(), Replaced::Done);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_edit_after_the_last_look_stays_and_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.md");
        std::fs::write(&file, "edited after the last look").unwrap();
        let temporary = || {
            let mut temporary = tempfile::Builder::new().tempfile_in(dir.path()).unwrap();
            temporary.write_all(b"two").unwrap();
            temporary
        };
        if cfg!(target_os = "linux") && put_in_place(temporary(), &file, Some("one")).unwrap().is_none() {
            not_run("an edit after the last look: this file system cannot exchange files");
            return;
        }
        if cfg!(target_os = "linux") {
            assert_eq!(std::fs::read_to_string(&file).unwrap(), "edited after the last look");
        }
        assert!(put_in_place(temporary(), &file, None).unwrap().is_some(), "a file that has appeared is not replaced");
        std::fs::remove_file(&file).unwrap();
        if cfg!(target_os = "linux") {
            assert!(put_in_place(temporary(), &file, Some("one")).unwrap().is_some());
            assert!(!file.exists(), "a file that was just removed is not made again");
        }
    }

    #[test]
    fn an_edit_in_between_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.md");
        std::fs::write(&file, "one").unwrap();
        let edit = |_: Option<&Path>| std::fs::write(&file, "edited");
        assert_eq!(replace(&file, Some("one"), "two", edit).unwrap(), Replaced::Changed);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "edited");
        let remove = |temporary: Option<&Path>| temporary.map_or(Ok(()), |_| std::fs::remove_file(&file));
        assert_eq!(replace(&file, Some("edited"), "two", remove).unwrap(), Replaced::Changed);
        assert!(!file.exists());
        let create = |_: Option<&Path>| std::fs::write(&file, "new");
        assert_eq!(replace(&file, None, "two", create).unwrap(), Replaced::Changed);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_temporary_file_is_there_until_it_is_noted_that_nothing_happens() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.md");
        std::fs::write(&file, "other").unwrap();
        let mut noted = Vec::new();
        let note = |temporary: Option<&Path>| {
            noted.push((temporary.is_some(), std::fs::read_dir(dir.path())?.count()));
            Ok(())
        };
        assert_eq!(replace(&file, Some("one"), "two", note).unwrap(), Replaced::Changed);
        assert_eq!(noted, [(true, 2), (false, 2)]);
    }

    #[cfg(unix)]
    #[test]
    fn permissions_stay() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("notes.md");
        std::fs::write(&file, "one").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        replace(&file, Some("one"), "two", |_| Ok(())).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("notes.md"), dir.path().join("link.md"));
        std::fs::write(&file, "one").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let target = crate::file_sync::file_text::resolve(&link).unwrap();
        replace(&target, Some("one"), "two", |_| Ok(())).unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "two");
    }
}
