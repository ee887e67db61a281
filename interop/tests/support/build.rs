//! The program of our side. It is built by the main package and its lock file: SQLite cannot be linked twice.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// Where it is, when somebody has built it already.
const PROGRAM: &str = "PANDA_INTEROP_EDITOR";

/// The path of the editor, which is built first unless `PANDA_INTEROP_EDITOR` says where it is.
pub fn editor() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| std::env::var_os(PROGRAM).map_or_else(build, PathBuf::from)).clone()
}

/// With the profile of this test, so that latencies can be compared.
fn build() -> PathBuf {
    let main_package = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package inside of the main package");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(main_package).args(["build", "--ignore-rust-version", "--locked"]);
    cargo.args(["--features", "cli,sim,bridge", "--example", "interop_editor", "--message-format=json"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let built = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(built.status.success(), "the editor does not build");
    let messages = String::from_utf8_lossy(&built.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let editor = messages.filter(|message| message["target"]["name"] == "interop_editor");
    let path = editor.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).last();
    path.expect("cargo says where the editor is")
}
