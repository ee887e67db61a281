//! The plot of the demo between two simulated NATs, on virtual time: meet, edit together, go offline, come back, crash,
//! come back, be equal.

use std::path::Path;
use std::time::Duration;

use panda_network::relay::RelayLimits;
use panda_network::sim::{self, LinkOptions, Sim, SimHost};
use tokio::time::{Instant, sleep};

use super::nat_pair::NatPair;
use super::nat_report::{NatReport, PathsSeen};
use super::nat_world::{JITTER, LATENCY, World};
use super::report::{CatchUp, StoryReport};
use super::story::{ALICE, BOB, lost};
use crate::child::driver::Driver;
use crate::child::process::{all_arrived, describe};
use crate::child::protocol::{Command, Reply, Report, Work};
use crate::error::CliError;
use crate::figures::{Latency, per_second};
use crate::options::DurabilityArg;

/// The same in every run, so that anybody sees the same.
const SEED: u64 = 1;
/// Edits a second of each writer.
const TYPING_RATE: u32 = 50;
/// How long they edit together, in seconds: time enough to find the best path.
const LIVE_S: u32 = 10;
/// Edits that each makes while apart.
const APART: u32 = 500;
/// How long each types around the crash.
const CRASH_S: u32 = 2;
/// How long anything may take, in virtual time, before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks, which is how exactly times of paths are known.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Plays it. Blocks until it is over, which takes a few seconds; not inside of a runtime's tasks.
///
/// # Errors
/// When a node fails or something does not happen in time. What a check finds is in the report.
pub fn run(pair: NatPair, dirs: [&Path; 2]) -> Result<NatReport, CliError> {
    let started = std::time::Instant::now();
    let mut report = sim::run(SEED, |sim| async move { play(sim, pair, dirs).await })?;
    report.wall_seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

async fn play(sim: Sim, pair: NatPair, dirs: [&Path; 2]) -> Result<NatReport, CliError> {
    let world =
        World::new(sim.clone(), LinkOptions::new().with_latency(LATENCY).with_jitter(JITTER), RelayLimits::new())?;
    let mut cast = Cast::meet(&world, pair, dirs).await?;
    let first_operation_ms = cast.first_operation().await?;
    let connect_ms = cast.reports()?[BOB].connected_after_us.unwrap_or_default() as f64 / 1000.0;
    let latency = cast.edit_together().await?;
    let paths = std::mem::take(&mut cast.paths);
    let queued_offline = cast.edit_apart().await?;
    let catch_up = cast.catch_up(queued_offline).await?;
    let acknowledged = cast.crash_bob().await?;
    cast.revive_bob(&world, dirs[BOB]).await?;
    let reports = cast.finish(acknowledged).await?;
    let texts = [cast.text(ALICE).await?, cast.text(BOB).await?];
    Ok(NatReport {
        nat: [pair.0.name(), pair.1.name()],
        paths,
        first_operation_ms,
        wall_seconds: 0.0,
        story: StoryReport {
            identical: texts[ALICE] == texts[BOB],
            characters: texts[ALICE].chars().count(),
            operations: reports.iter().map(|report| u64::from(report.published)).sum(),
            queued_offline,
            lost: lost(&reports, acknowledged),
            duplicates: reports.iter().map(|report| report.duplicates).sum(),
            latency,
            catch_up,
            connect_ms,
            durability: DurabilityArg::Process.to_string(),
            seconds: sim.now().as_secs_f64(),
        },
    })
}

/// Alice and Bob.
struct Cast {
    nodes: Vec<Driver>,
    bobs_laptop: SimHost,
    paths: [PathsSeen; 2],
    /// When Bob's node was started for the first time.
    since: Instant,
}

impl Cast {
    /// Alice is there for a while and has written something; Bob has never been anywhere and gets her ticket.
    async fn meet(world: &World, pair: NatPair, dirs: [&Path; 2]) -> Result<Self, CliError> {
        let mut alice = world.start(&world.host(pair.0, 1)?, 0, dirs[ALICE], 0).await?;
        let ticket = match alice.obey(Command::Create).await? {
            Reply::Opened { ticket } => ticket,
            other => return Err(unexpected(&other)),
        };
        alice.obey(type_(1, 0)).await?;
        sleep(Duration::from_secs(5)).await;
        // Made after the relay is known, so that it is in the ticket's address of Alice.
        let bobs_laptop = world.host(pair.1, 2)?;
        let since = Instant::now();
        let mut bob = world.start(&bobs_laptop, 1, dirs[BOB], 0).await?;
        bob.obey(Command::Open { ticket }).await?;
        Ok(Self { nodes: vec![alice, bob], bobs_laptop, paths: Default::default(), since })
    }

    /// When Bob saw the first one.
    async fn first_operation(&mut self) -> Result<f64, CliError> {
        let arrived = |reports: &[Report]| reports[BOB].arrived.get(&0).is_some_and(|count| *count > 0);
        self.wait_until("Bob has the first operation", arrived).await?;
        // Before, a connection that is being made may name a path that nothing has gone by yet.
        self.paths = Default::default();
        Ok(ms(self.since.elapsed()))
    }

    async fn edit_together(&mut self) -> Result<Latency, CliError> {
        self.tell_both(Command::Measure(true)).await?;
        self.tell_both(type_(TYPING_RATE * LIVE_S, TYPING_RATE)).await?;
        self.wait_until("both have what the other typed", all_arrived).await?;
        self.tell_both(Command::Measure(false)).await?;
        let mut latencies = Vec::new();
        for node in &mut self.nodes {
            match node.obey(Command::Latencies).await? {
                Reply::Latencies(measured) => latencies.extend(measured),
                other => return Err(unexpected(&other)),
            }
        }
        Ok(Latency::from_us(latencies))
    }

    /// Returns how many operations waited for the other side at the end.
    async fn edit_apart(&mut self) -> Result<u64, CliError> {
        self.nodes[BOB].obey(Command::SetConnected(false)).await?;
        self.tell_both(type_(APART, TYPING_RATE)).await?;
        let done = |reports: &[Report]| reports.iter().all(|report| !report.working);
        let reports = self.wait_until("both have typed offline", done).await?;
        Ok(reports.iter().map(|report| report.pending as u64).sum())
    }

    async fn catch_up(&mut self, operations: u64) -> Result<CatchUp, CliError> {
        let start = Instant::now();
        self.nodes[BOB].obey(Command::SetConnected(true)).await?;
        self.wait_until("both have caught up", all_arrived).await?;
        let elapsed_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(CatchUp { operations, seconds: elapsed_us as f64 / 1e6, per_second: per_second(operations, elapsed_us) })
    }

    /// The power of Bob's laptop fails while both type. Returns how many of his operations Bob had called durable.
    async fn crash_bob(&mut self) -> Result<u32, CliError> {
        self.tell_both(type_(TYPING_RATE * 2 * CRASH_S, TYPING_RATE)).await?;
        sleep(Duration::from_secs(CRASH_S.into())).await;
        self.bobs_laptop.crash();
        Ok(self.reports()?[BOB].published)
    }

    /// The laptop is switched on again, and Bob goes on typing.
    async fn revive_bob(&mut self, world: &World, dir: &Path) -> Result<(), CliError> {
        // The dead node lets go of its directory.
        self.nodes.truncate(BOB);
        sleep(Duration::from_secs(1)).await;
        let mut bob = world.start(&self.bobs_laptop, 1, dir, 1).await?;
        bob.obey(Command::Reopen).await?;
        bob.obey(type_(TYPING_RATE * CRASH_S, TYPING_RATE)).await?;
        self.nodes.push(bob);
        Ok(())
    }

    async fn finish(&mut self, acknowledged: u32) -> Result<Vec<Report>, CliError> {
        let wanted = |reports: &[Report]| all_arrived(reports) && reports[BOB].published >= acknowledged;
        match self.wait_until("both have everything", wanted).await {
            // Not having everything is what the report is there to say.
            Err(CliError::TimedOut { .. }) => self.reports(),
            other => other,
        }
    }

    async fn tell_both(&mut self, command: Command) -> Result<(), CliError> {
        for node in &mut self.nodes {
            node.obey(command.clone()).await?;
        }
        Ok(())
    }

    async fn text(&mut self, agent: usize) -> Result<String, CliError> {
        match self.nodes[agent].obey(Command::Text).await? {
            Reply::Text(text) => Ok(text),
            other => Err(unexpected(&other)),
        }
    }

    fn reports(&self) -> Result<Vec<Report>, CliError> {
        let reports = self.nodes.iter().map(Driver::report).collect::<Result<Vec<_>, _>>()?;
        match reports.iter().find_map(|report| report.failure.clone()) {
            Some(reason) => Err(CliError::Environment(reason)),
            None => Ok(reports),
        }
    }

    /// Waits until they are as wanted, and sees on the way by which paths they speak.
    async fn wait_until(&mut self, what: &str, wanted: impl Fn(&[Report]) -> bool) -> Result<Vec<Report>, CliError> {
        let start = Instant::now();
        loop {
            self.look_at_paths();
            let reports = self.reports()?;
            if wanted(&reports) {
                return Ok(reports);
            }
            if start.elapsed() > PATIENCE {
                return Err(CliError::TimedOut { what: what.into(), state: describe(&reports) });
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    fn look_at_paths(&mut self) {
        for (node, seen) in self.nodes.iter().zip(&mut self.paths) {
            if let Some((connection, _)) = node.network.connections().first() {
                seen.note(connection.path, ms(self.since.elapsed()));
            }
        }
    }
}

fn type_(operations: u32, per_second: u32) -> Command {
    Command::Work(Work::Type { operations, per_second })
}

fn unexpected(reply: &Reply) -> CliError {
    CliError::Environment(format!("a simulated node: {reply:?}"))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pair: &str) -> NatReport {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let report = run(pair.parse().unwrap(), [dirs[0].path(), dirs[1].path()]).unwrap();
        report.story.check().unwrap();
        assert_eq!((report.story.lost, report.story.duplicates), (0, 0));
        assert!(report.story.operations > 1000 && report.story.characters > 1000, "they typed something");
        assert!(report.story.queued_offline >= u64::from(2 * APART), "the wire was cut while they typed");
        report
    }

    fn settled(pair: &str) -> [String; 2] {
        told(pair).paths.map(|seen| seen.settled().unwrap().path.clone())
    }

    #[test]
    fn two_homes_speak_straight_through_their_nats() {
        assert_eq!(settled("port-restricted,port-restricted"), ["punched", "punched"]);
    }

    #[test]
    fn the_relay_carries_what_a_symmetric_nat_does_not_let_through() {
        assert_eq!(settled("symmetric,port-restricted"), ["relayed", "relayed"]);
    }

    #[test]
    fn an_office_without_udp_is_reached_over_tls() {
        assert_eq!(settled("udp-blocked,carrier-grade"), ["relayed (TURN over TLS)", "relayed (TURN)"]);
    }

    #[test]
    fn the_story_is_the_same_every_time() {
        let [one, two] = [told("public,full-cone"), told("public,full-cone")];
        assert_eq!(one.paths, two.paths);
        assert_eq!(one.first_operation_ms, two.first_operation_ms);
        assert_eq!(one.story.characters, two.story.characters);
    }
}
