//! Reading the followed file: what it is now, never more than the limit, nothing destroyed.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Largest file that is followed, in bytes (16 MiB).
pub const FILE_MAX_BYTES: u64 = 16 * 1024 * 1024;
/// Symbolic links followed before a loop is assumed, as Linux does.
const LINKS_MAX: usize = 40;

/// Why a file is not followed. The message says what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FileProblem {
    /// It is not there.
    #[error("there is no such file; create it first")]
    Missing,
    /// It is a directory, a socket or the like.
    #[error("this is not a regular file; give the path of a text file")]
    NotAFile,
    /// Too large.
    #[error("{0} bytes, at most {FILE_MAX_BYTES} can be shared; split the file")]
    TooLarge(u64),
    /// Not UTF-8.
    #[error("not UTF-8 text (byte {0} is not); only text files can be shared, convert it first")]
    NotText(usize),
    /// The operating system refused.
    #[error("{0}")]
    Io(String),
}

/// The text of a file.
///
/// # Errors
/// [`FileProblem`], one variant per way in which it is not a text file that can be shared.
pub fn read_text(path: &Path) -> Result<String, FileProblem> {
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => FileProblem::Missing,
        _ => FileProblem::Io(error.to_string()),
    };
    // Looked at before it is opened: opening a named pipe would wait for a writer.
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(FileProblem::NotAFile);
    }
    if metadata.len() > FILE_MAX_BYTES {
        return Err(FileProblem::TooLarge(metadata.len()));
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(FileProblem::TooLarge(bytes.len() as u64));
    }
    String::from_utf8(bytes).map_err(|error| FileProblem::NotText(error.utf8_error().valid_up_to()))
}

/// The absolute path of the file itself: symbolic links are followed, whether or not the file is there.
///
/// # Errors
/// When the directory is not there or links go in a circle.
pub fn resolve(path: &Path) -> std::io::Result<PathBuf> {
    let mut path = std::path::absolute(path)?;
    for _ in 0..LINKS_MAX {
        let directory = path.parent().unwrap_or(Path::new("/")).canonicalize()?;
        let Some(name) = path.file_name() else { return path.canonicalize() };
        let file = directory.join(name);
        match std::fs::read_link(&file) {
            Ok(target) => path = directory.join(target),
            Err(_) => return Ok(file),
        }
    }
    Err(std::io::Error::other("too many symbolic links"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_shared_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        assert_eq!(read_text(&file), Err(FileProblem::Missing));
        assert_eq!(read_text(dir.path()), Err(FileProblem::NotAFile));
        std::fs::write(&file, b"abc\xff\xfe").unwrap();
        assert_eq!(read_text(&file), Err(FileProblem::NotText(3)));
        File::create(&file).unwrap().set_len(FILE_MAX_BYTES + 1).unwrap();
        assert_eq!(read_text(&file), Err(FileProblem::TooLarge(FILE_MAX_BYTES + 1)));
        std::fs::write(&file, "täxt\r\n").unwrap();
        assert_eq!(read_text(&file).unwrap(), "täxt\r\n");
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_to_the_file_even_when_it_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink("real/notes.md", root.join("link")).unwrap();
        assert_eq!(resolve(&root.join("link")).unwrap(), root.join("real/notes.md"));
        std::os::unix::fs::symlink("circle", root.join("circle")).unwrap();
        assert!(resolve(&root.join("circle")).is_err());
    }
}
