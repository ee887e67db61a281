//! What `panda bench --nat` says at the end.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

/// Figures of all journeys; virtual time.
#[derive(Debug, Serialize)]
pub struct NatBenchReport {
    /// Of the line of each of the two.
    pub megabits_per_second: f64,
    /// The journeys, the one that was asked for last.
    pub journeys: Vec<JourneyFigures>,
}

/// Figures of one journey.
#[derive(Debug, Serialize)]
pub struct JourneyFigures {
    /// What it is there for.
    pub name: &'static str,
    /// As it is written on the command line.
    pub journey: String,
    /// One for each place of Bob's.
    pub stays: Vec<Stay>,
}

/// Figures of one place.
#[derive(Debug, Serialize)]
pub struct Stay {
    /// What Bob is behind.
    pub place: &'static str,
    /// Alice's and Bob's at the end.
    pub paths: [String; 2],
    /// The longest time without an arrival, from the move on; at the first place from the start of Bob's node.
    pub gap_seconds: f64,
    /// In the two seconds after that.
    pub first_mebibytes_per_second: f64,
    /// In the last ten seconds of thirty.
    pub settled_mebibytes_per_second: f64,
}

impl Display for NatBenchReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let most = self.megabits_per_second * 1e6 / 8.0 / f64::from(1 << 20);
        writeln!(
            f,
            "Simulated lines of {} Mbit/s ({most:.2} MiB/s), virtual time, operations of 16 KiB",
            self.megabits_per_second
        )?;
        for JourneyFigures { name, journey, stays } in &self.journeys {
            writeln!(f, "\n{name} ({journey})")?;
            writeln!(f, "  {:<22}{:>10}{:>14}{:>14}  path", "Bob is behind", "silence", "then MiB/s", "settled MiB/s")?;
            for stay in stays {
                let Stay { place, paths: [alices, bobs], gap_seconds, .. } = stay;
                let path = if alices == bobs { bobs.clone() } else { format!("{bobs}; Alice: {alices}") };
                writeln!(
                    f,
                    "  {place:<22}{gap_seconds:>8.2} s{:>14.2}{:>14.2}  {path}",
                    stay.first_mebibytes_per_second, stay.settled_mebibytes_per_second
                )?;
            }
        }
        Ok(())
    }
}
