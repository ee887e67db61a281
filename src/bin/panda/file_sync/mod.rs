//! Keeping a file and a shared document in step.
//!
//! `session` drives: it listens to the document and the file and runs the pure merge engine (`text_merge`, `diff`);
//! `file_text` reads, `atomic_write` writes, `state_file` remembers, `watcher` wakes, `status_line` tells.

pub mod atomic_write;
pub mod diff;
pub mod file_text;
pub mod session;
pub mod state_file;
pub mod status_line;
pub mod text_merge;
pub mod watcher;
