//! Replacing a file whole or not at all: temporary file beside it, fsync, a last look at the old content, rename.
//!
//! The last look is what keeps an edit that was made meanwhile. Between it and the rename lies one system call; POSIX has
//! no rename that compares. The given path must not be a symbolic link (see `file_text::resolve`), or the link would go.

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
/// happen after all, before the temporary file goes. So after a crash the temporary file is gone exactly if it happened.
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
    if let Err(failed) = temporary.persist(path) {
        note(None)?;
        return Err(failed.error);
    }
    // The file is replaced, whatever this says; some file systems cannot sync a directory.
    if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
        tracing::warn!(%error, "the directory cannot be synced");
    }
    Ok(Replaced::Done)
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
