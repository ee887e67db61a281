//! [`run`]: one scenario on a paused clock, with one seed that is printed when it fails.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use super::options::SimOptions;

/// What a scenario knows of its simulation.
#[derive(Debug, Clone)]
pub struct Sim {
    seed: u64,
    start: Instant,
}

impl Sim {
    /// The seed of this run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Virtual time since the run began.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Options of a network with the seed of this run.
    pub fn options(&self) -> SimOptions {
        SimOptions::new(self.seed)
    }

    /// 32 bytes that follow from the seed and a name: for [`quinn::EndpointConfig::rng_seed`], keys of test nodes, and
    /// every other choice of a scenario. Two nodes need two names.
    pub fn derive_seed(&self, name: &str) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key("panda-network 2026 simulation");
        hasher.update(&self.seed.to_be_bytes()).update(name.as_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// Runs a scenario on a runtime of its own: one thread, no I/O but the simulation, and a clock that stands still while
/// anything can run and then jumps to the next timer. Returns what the scenario returns; tasks it left are dropped.
///
/// A scenario that waits for something that never comes ends only if nothing keeps a timer alive: put
/// [`tokio::time::timeout`] around it, which costs virtual time only.
///
/// # Panics
/// When the scenario panics, after printing the seed, or when called inside another runtime.
pub fn run<F: Future>(seed: u64, scenario: impl FnOnce(Sim) -> F) -> F::Output {
    let _guard = PrintSeedOnPanic(seed);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build() {
        Ok(runtime) => runtime,
        Err(error) => panic!("cannot build a runtime for the simulation: {error}"),
    };
    let output = runtime.block_on(async {
        let sim = Sim { seed, start: Instant::now() };
        scenario(sim).await
    });
    OVER.set(true);
    drop(runtime);
    OVER.set(false);
    output
}

thread_local! {
    /// The scenario of this thread has returned, and its tasks are being dropped.
    static OVER: Cell<bool> = const { Cell::new(false) };
}

/// True while [`run`] drops the tasks that a scenario left.
pub(super) fn is_over() -> bool {
    OVER.get()
}

struct PrintSeedOnPanic(u64);

impl Drop for PrintSeedOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulation failed with seed {}", self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_of_sleep_takes_no_time() {
        let day = Duration::from_secs(24 * 3600);
        let now = run(1, |sim| async move {
            tokio::time::sleep(day).await;
            sim.now()
        });
        assert_eq!(now, day);
    }

    #[test]
    fn derived_seeds_depend_on_seed_and_name_only() {
        let derive = |seed, name: &'static str| run(seed, |sim| async move { sim.derive_seed(name) });
        assert_eq!(derive(1, "alice"), derive(1, "alice"));
        assert_ne!(derive(1, "alice"), derive(1, "bob"));
        assert_ne!(derive(1, "alice"), derive(2, "alice"));
    }

    #[test]
    #[should_panic(expected = "on purpose")]
    fn a_panic_of_the_scenario_is_a_panic_of_the_run() {
        run(7, |_| async { panic!("on purpose") })
    }
}
