//! Tests with a `main` of their own, of which some need programs that may not be installed.

use std::process::Command;

use libtest_mimic::{Completion, Failed, Trial};

/// A test; `needs` is a program of coturn's without which it is reported as ignored, or fails with `PANDA_NETNS=require`.
pub fn trial(name: &str, needs: Option<&'static str>, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        let missing = needs.filter(|program| Command::new(program).arg("-h").output().is_err());
        if let Some(program) = missing {
            let reason = format!("{program} is not installed: apt-get install coturn");
            let required = std::env::var("PANDA_NETNS").is_ok_and(|value| value == "require");
            return if required { Err(Failed::from(reason)) } else { Ok(Completion::ignored_with(reason)) };
        }
        test();
        Ok(Completion::Completed)
    })
}

/// Runs what has to wait, on threads and in real time.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(test);
}
