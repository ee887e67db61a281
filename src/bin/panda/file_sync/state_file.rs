//! What `panda` remembers of a followed file between two runs, beside the node's own data.
//!
//! The log of operations is the truth about the document; this only says which document it is and how much of the log is in
//! the file. A write in progress is noted with its temporary file: if that still holds the new text at start, it did not
//! happen.

use std::io::Write;
use std::path::{Path, PathBuf};

use panda_network::ids::DocumentId;
use panda_network::store::Position;
use serde::{Deserialize, Serialize};

use crate::error::CliError;
use crate::reach::Reach;

const FILE_NAME: &str = "panda-file.json";

/// Remembered facts about one followed file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// The document's UUID.
    document: String,
    /// The file, so that a data directory is not used for another one.
    file: String,
    /// Newest position that is in the file; `None` before it was first read or written.
    written: Option<Position>,
    /// A write under way.
    intent: Option<Intent>,
    /// The port of the last run: tickets and peers remember it.
    port: Option<u16>,
    /// Relays, so that the next start needs no option.
    #[serde(default)]
    reach: Reach,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Intent {
    position: Position,
    temporary: PathBuf,
    /// BLAKE3 of the text before and after, in hexadecimal.
    before: String,
    after: String,
}

fn hash(text: &[u8]) -> String {
    blake3::hash(text).to_hex().to_string()
}

/// The state and where it lives.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    state: FileState,
}

impl StateFile {
    /// The state of an earlier run with this file, if there was one. Changes nothing, so it may be read while another
    /// process follows the file.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or belongs to another file.
    pub fn load(data_dir: &Path, file: &Path) -> Result<Option<Self>, CliError> {
        let path = data_dir.join(FILE_NAME);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CliError::io("read", &path)(error)),
        };
        let damaged = |reason: String| CliError::State { path: path.clone(), reason };
        let state: FileState = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        state.document.parse::<DocumentId>().map_err(|error| damaged(error.to_string()))?;
        if state.file != file.to_string_lossy() {
            return Err(CliError::OtherFile { data_dir: data_dir.to_path_buf(), file: state.file.into() });
        }
        Ok(Some(Self { path, state }))
    }

    /// Like [`StateFile::load`], and clears up after a crash. Only when the node runs, which keeps other processes out.
    ///
    /// # Errors
    /// As `load`, and when the state cannot be saved.
    pub fn recover(data_dir: &Path, file: &Path) -> Result<Option<Self>, CliError> {
        let mut loaded = Self::load(data_dir, file)?;
        if let Some(state) = &mut loaded {
            state.finish_intent()?;
        }
        Ok(loaded)
    }

    /// The state of a file that was never followed. Nothing is written yet.
    pub fn new(data_dir: &Path, file: &Path, document: DocumentId) -> Self {
        let (document, file) = (document.to_string(), file.to_string_lossy().into_owned());
        let state = FileState { document, file, written: None, intent: None, port: None, reach: Reach::default() };
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

    /// How the node was to be reached.
    pub fn reach(&self) -> &Reach {
        &self.state.reach
    }

    /// Remembers the port, and how the node is to be reached.
    ///
    /// # Errors
    /// When it cannot be saved.
    pub fn set_port_and_reach(&mut self, port: Option<u16>, reach: Reach) -> Result<(), CliError> {
        (self.state.port, self.state.reach) = (port, reach);
        self.save().map_err(CliError::io("save", &self.path))
    }

    /// Notes a write that is about to happen, from one text to another by way of `temporary`.
    ///
    /// # Errors
    /// When it cannot be saved; then the write must not happen.
    pub fn begin_write(
        &mut self,
        position: Position,
        temporary: &Path,
        before: &str,
        after: &str,
    ) -> std::io::Result<()> {
        let (before, after) = (hash(before.as_bytes()), hash(after.as_bytes()));
        self.state.intent = Some(Intent { position, temporary: temporary.to_path_buf(), before, after });
        self.save()
    }

    /// Notes that the write will not happen.
    ///
    /// # Errors
    /// When it cannot be saved.
    pub fn abandon_write(&mut self) -> std::io::Result<()> {
        self.state.intent = None;
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
        let Some(Intent { position, temporary, before, after }) = self.state.intent.take() else { return Ok(()) };
        let left = std::fs::read(&temporary).ok().map(|text| hash(&text));
        if left.as_ref() == Some(&after) {
            self.save().map_err(CliError::io("save", &self.path))?;
        } else {
            self.set_written(position)?;
        }
        match left {
            None => Ok(()),
            Some(left) if left == before || left == after => {
                std::fs::remove_file(&temporary).map_err(CliError::io("remove", &temporary))
            }
            Some(_) => {
                let path = temporary.display();
                tracing::error!(%path, "an edit came just as the last run was killed; it is kept in this file");
                Ok(())
            }
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
        assert!(StateFile::recover(dir.path(), Path::new("/notes.md")).unwrap().is_none());
        let mut state = StateFile::new(dir.path(), Path::new("/notes.md"), document());
        state.set_written(7).unwrap();
        let relays = vec!["relay.example.org:443".into()];
        let reach = Reach { relays, relay_only: true, birthday_punching: true };
        state.set_port_and_reach(Some(4000), reach.clone()).unwrap();
        let loaded = StateFile::recover(dir.path(), Path::new("/notes.md")).unwrap().unwrap();
        assert_eq!((loaded.document(), loaded.written(), loaded.port()), (Some(document()), Some(7), Some(4000)));
        assert_eq!(loaded.reach(), &reach);
    }

    #[test]
    fn a_state_from_before_relays_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(r#"{{"document":"{}","file":"/notes.md","written":7,"intent":null,"port":1}}"#, document());
        std::fs::write(dir.path().join(FILE_NAME), text).unwrap();
        let loaded = StateFile::load(dir.path(), Path::new("/notes.md")).unwrap().unwrap();
        assert_eq!(loaded.reach(), &Reach::default());
    }

    #[test]
    fn a_write_that_a_crash_cut_short_counts_only_if_it_happened() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("x.tmp");
        std::fs::write(&temporary, "new text").unwrap();
        let mut state = StateFile::new(dir.path(), Path::new("/notes.md"), document());
        state.set_written(7).unwrap();
        state.begin_write(9, &temporary, "old text", "new text").unwrap();
        assert_eq!(StateFile::recover(dir.path(), Path::new("/notes.md")).unwrap().unwrap().written(), Some(7));
        assert!(!temporary.exists(), "the half-made write is cleaned up");
        state.begin_write(9, &temporary, "old text", "new text").unwrap();
        assert_eq!(StateFile::recover(dir.path(), Path::new("/notes.md")).unwrap().unwrap().written(), Some(9));
    }

    #[test]
    fn a_write_that_was_cut_short_after_the_exchange_counts_and_an_edit_in_its_way_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("x.tmp");
        for (left, kept) in [("old text", false), ("an edit", true)] {
            std::fs::write(&temporary, left).unwrap();
            let mut state = StateFile::new(dir.path(), Path::new("/notes.md"), document());
            state.begin_write(9, &temporary, "old text", "new text").unwrap();
            let recovered = StateFile::recover(dir.path(), Path::new("/notes.md")).unwrap().unwrap();
            assert_eq!((recovered.written(), temporary.exists()), (Some(9), kept));
        }
    }

    #[test]
    fn a_damaged_state_is_said_and_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "{").unwrap();
        assert!(matches!(StateFile::recover(dir.path(), Path::new("/notes.md")), Err(CliError::State { .. })));
    }

    #[test]
    fn a_data_directory_belongs_to_one_file() {
        let dir = tempfile::tempdir().unwrap();
        StateFile::new(dir.path(), Path::new("/notes.md"), document()).set_written(7).unwrap();
        assert!(matches!(StateFile::load(dir.path(), Path::new("/other.md")), Err(CliError::OtherFile { .. })));
    }

    #[test]
    fn looking_at_the_state_of_a_running_process_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let temporary = dir.path().join("x.tmp");
        std::fs::write(&temporary, "new text").unwrap();
        StateFile::new(dir.path(), Path::new("/notes.md"), document())
            .begin_write(9, &temporary, "old text", "new text")
            .unwrap();
        StateFile::load(dir.path(), Path::new("/notes.md")).unwrap().unwrap();
        assert!(temporary.exists());
    }
}
