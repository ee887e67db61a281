//! What went wrong on the command line: one line that says what, who erred and what to do.

use std::path::{Path, PathBuf};

use panda_network::PandaError;
use panda_network::address::AddressError;
use panda_network::store::StoreError;
use thiserror::Error;

use crate::file_sync::file_text::FileProblem;
use crate::text_doc::TextError;
use crate::trace::TraceError;

/// A command failed. `main` prints it on one line and exits with 1.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CliError {
    /// The node refused or failed.
    #[error(transparent)]
    Network(Box<PandaError>),
    /// The ticket given is not one. The caller erred.
    #[error("the ticket cannot be used: {0}")]
    Ticket(Box<AddressError>),
    /// The file to share is not fit for it. The caller erred.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: FileProblem,
    },
    /// The file follows another document already. The caller erred.
    #[error("{path} already follows another document; join with another file, or give another --data-dir")]
    OtherDocument {
        /// The file.
        path: PathBuf,
    },
    /// The file follows no document yet. The caller erred.
    #[error("{path} follows no document yet; give the ticket as well: panda join TICKET {path}")]
    NoDocument {
        /// The file.
        path: PathBuf,
    },
    /// The data directory is that of another file. The caller erred.
    #[error("{data_dir} belongs to {file}; give another --data-dir, or move the file back there")]
    OtherFile {
        /// The data directory.
        data_dir: PathBuf,
        /// The file that it belongs to.
        file: PathBuf,
    },
    /// The state file is damaged.
    #[error("{path} is damaged ({reason}); move its directory away and join again")]
    State {
        /// The state file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// A trace cannot be replayed. The file erred.
    #[error("{path}: {source}")]
    Trace {
        /// The trace.
        path: PathBuf,
        /// What is wrong with it.
        source: TraceError,
    },
    /// The document holds something that is not an edit of a text. Another editor erred.
    #[error("the document cannot be shown as text: {0}; is it shared by another kind of editor?")]
    Text(#[from] TextError),
    /// A file or directory could not be used. The environment erred.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A node process died or answered something else. A defect, or the machine is out of memory.
    #[error("node process {name}: {reason}; run again with RUST_LOG=info to see why")]
    Node {
        /// Which one.
        name: String,
        /// What happened.
        reason: String,
    },
    /// A node process did not get where it should in time.
    #[error("gave up waiting until {what}: {state}")]
    TimedOut {
        /// What was awaited.
        what: String,
        /// How far it was.
        state: String,
    },
    /// The promise was not kept: documents differ or operations are missing.
    #[error("the check failed: {0}")]
    CheckFailed(String),
    /// A relay cannot start.
    #[error(transparent)]
    Relay(#[from] panda_network::relay::RelayError),
    /// `--relay-only` without a relay. The caller erred.
    #[error("--relay-only needs a relay: give one with --relay HOST[:PORT][#KEY], or take --relay-only=false")]
    RelayOnly,
    /// `--ticket-without-addresses` of a node that hides in its network. The caller erred.
    #[error(
        "with --relay-only nobody in the network finds this node: leave --ticket-without-addresses out, or take --relay-only=false"
    )]
    LeadsNowhere,
    /// The doctor expects that nobody can be reached, and says why.
    #[error(transparent)]
    Trouble(#[from] panda_network::doctor::Trouble),
    /// This program was built without what was asked for. The caller erred.
    #[cfg(not(feature = "sim"))]
    #[error("this panda was built without simulated networks: build it with `--features cli,sim`")]
    NoSimulation,
    /// Something about this machine is missing.
    #[error("{0}")]
    Environment(String),
    /// Ctrl-C.
    #[error("interrupted; everything was cleaned up")]
    Interrupted,
}

impl CliError {
    /// Names the path in an error of the operating system; for `map_err`.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> Self {
        PandaError::from(error).into()
    }
}

impl From<PandaError> for CliError {
    fn from(error: PandaError) -> Self {
        Self::Network(Box::new(error))
    }
}

impl From<AddressError> for CliError {
    fn from(error: AddressError) -> Self {
        Self::Ticket(Box::new(error))
    }
}
