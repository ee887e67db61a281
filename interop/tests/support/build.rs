//! The programs of our side. They are built by the main package and its lock file: SQLite cannot be linked twice.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The folder that they are in, when somebody has built them already.
const PROGRAMS: &str = "PANDA_INTEROP_EXAMPLES";

/// The path of an example of the main package, which are built first unless `PANDA_INTEROP_EXAMPLES` says where they are.
pub fn example(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| std::env::var_os(PROGRAMS).map_or_else(build, PathBuf::from)).join(name)
}

/// With the profile of this test, so that latencies can be compared.
fn build() -> PathBuf {
    let main_package = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package inside of the main package");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(main_package).args(["build", "--ignore-rust-version", "--locked"]);
    cargo.args(["--features", "cli,sim,bridge", "--example", "interop_editor", "--example", "p2panda_bridge"]);
    cargo.arg("--message-format=json");
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let built = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(built.status.success(), "the examples do not build");
    let messages = String::from_utf8_lossy(&built.stdout);
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let editor = messages.filter(|message| message["target"]["name"] == "interop_editor");
    let path = editor.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).last();
    path.expect("cargo says where the editor is").parent().expect("a folder").to_owned()
}
