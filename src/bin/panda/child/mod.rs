//! Node processes for `panda demo` and `panda bench`: a hidden subcommand that is driven by JSON lines.
//!
//! `process` is the parent's side, `driver` the child's; `protocol` is what they say, one answer per command;
//! `payload` and `ledger` tell every operation apart and count it; `publisher` publishes in order without waiting for each.

pub mod blocked;
pub mod driver;
pub mod ledger;
pub mod payload;
pub mod process;
pub mod protocol;
pub mod publisher;
pub mod work;
