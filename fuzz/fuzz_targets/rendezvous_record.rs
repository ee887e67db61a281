//! libFuzzer's way into [`targets::rendezvous_record`].
#![no_main]

#[allow(dead_code, reason = "one target of several")]
#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    targets::rendezvous_record(data);
});
