//! Prints what p2panda's crates encode, for the main package's tests: `cargo run --ignore-rust-version --bin p2panda-vectors`.

fn main() {
    print!("{}", panda_network_interop::vectors::text());
}
