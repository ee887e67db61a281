//! What `panda` remembers of a followed file between two runs, beside the node's own data.
//!
//! The log of operations is the truth about the document; this only says which document it is and how much of the log is in
//! the file. A write in progress is noted with its temporary file: if that is still there at start, it did not happen.

use std::io::Write;
use std::path::{Path, PathBuf};

use panda_network::ids::DocumentId;
use panda_network::store::Position;
use serde::{Deserialize, Serialize};

use crate::error::CliError;

const FILE_NAME: &str = "panda-file.json";

/// Remembered facts about one followed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// The document's UUID.
    document: String,
    /// Newest position that is in the file; `None` before it was first read or written.
    written: Option<Position>,
    /// A write under way.
    intent: Option<Intent>,
    /// The port of the last run: tickets and peers remember it.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    position: Position,
    temporary: PathBuf,
}

/// The state and where it lives.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    state: FileState,
}

impl StateFile {
    /// The state of an earlier run, if there was one.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, CliError> {
        let path = data_dir.join(FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CliError::io("read", &path)(error)),
        };
        let damaged = |reason: String| CliError::State { path: path.clone(), reason };
        let state: FileState = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        state.document.parse::<DocumentId>().map_err(|error| damaged(error.to_string()))?;
        let mut file = Self { path, state };
        file.finish_intent()?;
        Ok(Some(file))
    }

    /// The state of a file that was never followed. Nothing is written yet.
    pub fn new(data_dir: &Path, document: DocumentId) -> Self {
        let state = FileState { document: document.to_string(), written: None, intent: None, port: None };
        Self { path: data_dir.join(FILE_NAME), state }
    }

    /// The document; `load` checked that it is one.
    pub fn document(&self) -> Option<DocumentId> {
        self.state.document.parse().ok()
    }

    /// Newest position that is in the file; `None` before it was first read or written.
    pub fn written(&self) -> Option<Position> {
        self.state.written
    }

    /// Port of the last run.
    pub fn port(&self) -> Option<u16> {
        self.state.port
    }

    /// Remembers the port.
    ///
    /// # Errors
    /// When it cannot be saved.
    pub fn set_port(&mut self, port: Option<u16>) -> Result<(), CliError> {
        self.state.port = port;
        self.save().map_err(CliError::io("save", &self.path))
    }

    /// Notes the write that `temporary` holds and that is about to happen, or with `None` that it will not.
    ///
    /// # Errors
    /// When it cannot be saved; then the write must not happen.
    pub fn note_write(&mut self, position: Position, temporary: Option<&Path>) -> std::io::Result<()> {
        self.state.intent = temporary.map(|temporary| Intent { position, temporary: temporary.to_path_buf() });
        self.save()
    }

    /// The file holds everything up to this position.
    ///
    /// # Errors
    /// When it cannot be saved.
    pub fn set_written(&mut self, position: Position) -> Result<(), CliError> {
        self.state.written = Some(position);
        self.state.intent = None;
        self.save().map_err(CliError::io("save", &self.path))
    }

    fn finish_intent(&mut self) -> Result<(), CliError> {
        let Some(intent) = self.state.intent.take() else { return Ok(()) };
        if intent.temporary.exists() {
            self.save().map_err(CliError::io("save", &self.path))?;
            std::fs::remove_file(&intent.temporary).map_err(CliError::io("remove", &intent.temporary))
        } else {
            self.set_written(intent.position)
        }
    }

    fn save(&self) -> std::io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let mut temporary = tempfile::Builder::new().prefix(".state-").tempfile_in(directory)?;
        serde_json::to_writer(&mut temporary, &self.state)?;
        temporary.write_all(b"\n")?;
        temporary.as_file().sync_all()?;
        temporary.persist(&self.path).map_err(|error| error.error)?;
        std::fs::File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> DocumentId {
        "67e55044-10b1-426f-9247-bb680e5fe0c8".parse().unwrap()
    }

    #[test]
    fn the_state_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(StateFile::load(dir.path()).unwrap().is_none());
        let mut state = StateFile::new(dir.path(), document());
        state.set_written(7).unwrap();
        state.set_port(Some(4000)).unwrap();
        let loaded = StateFile::load(dir.path()).unwrap().unwrap();
        assert_eq!((loaded.document(), loaded.written(), loaded.port()), (Some(document()), Some(7), Some(4000)));
    }

    #[test]
    fn a_write_that_a_crash_cut_short_counts_only_if_it_happened() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("x.tmp");
        std::fs::write(&temporary, "new text").unwrap();
        let mut state = StateFile::new(dir.path(), document());
        state.set_written(7).unwrap();
        state.note_write(9, Some(&temporary)).unwrap();
        assert_eq!(StateFile::load(dir.path()).unwrap().unwrap().written(), Some(7));
        assert!(!temporary.exists(), "the half-made write is cleaned up");
        state.note_write(9, Some(&temporary)).unwrap();
        assert_eq!(StateFile::load(dir.path()).unwrap().unwrap().written(), Some(9));
    }

    #[test]
    fn a_damaged_state_is_said_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "{").unwrap();
        assert!(matches!(StateFile::load(dir.path()), Err(CliError::State { .. })));
    }
}
