//! The vectors that the main package's tests read are what p2panda writes.

use std::path::Path;

const FILE: &str = "../tests/data/p2panda_vectors.txt";

#[test]
fn the_vectors_of_the_main_package_are_what_p2panda_writes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    let text = std::fs::read_to_string(&path).expect("the vectors are there");
    for (kept, written) in text.lines().zip(panda_network_interop::vectors::text().lines()) {
        assert_eq!(kept, written);
    }
    assert_eq!(text, panda_network_interop::vectors::text(), "lines are missing");
}
