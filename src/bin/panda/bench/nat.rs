//! `panda bench --nat`: how fast a document fills while a path changes under its connection, on simulated lines.
//!
//! Virtual time: the lines have a bandwidth and a length, computing costs nothing, and the same journey gives the same
//! figures on every machine. What computing costs per path is what `--paths` measures.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;
use panda_network::relay::RelayLimits;
use panda_network::sim::{self, LinkOptions, Place, Sim, SimHost};
use panda_network::{Document, DocumentEvent, PandaNetwork, StartFrom};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::PLENTY;
use super::journey::Journey;
use super::nat_report::{JourneyFigures, NatBenchReport, Stay};
use crate::demo::nat_world::{LATENCY, World};
use crate::demo::{node_dir, print, progress_bar};
use crate::error::CliError;
use crate::options::stop_requested;

/// The same in every run.
const SEED: u64 = 1;
/// Of the line of each of the two, in each direction, in bits per second.
pub const BANDWIDTH: u64 = 20_000_000;
/// What waits in front of such a line: 100 ms.
const QUEUE_BYTES: usize = 250_000;
/// Size of an operation.
const OPERATION_BYTES: usize = 16 * 1024;
/// Operations that have not arrived yet: twice what the line and its queue hold.
const UNDER_WAY: usize = 64;
/// How long Bob stays at a place.
const STAY: Duration = Duration::from_secs(30);
/// The end of a stay, when the path is what it will be.
const SETTLED: Duration = Duration::from_secs(10);
/// The first moments after a move, once data flows again.
const FIRST: Duration = Duration::from_secs(2);

/// Measures the journey, and beside it what each kind of path gives from the start.
///
/// # Errors
/// When a node fails, or nothing flows any more after a move.
pub async fn run(journey: Journey, json: bool) -> Result<(), CliError> {
    let journeys = [
        ("direct", true, Journey { alice: Place::Public, bob: vec![Place::Public] }),
        ("TURN over UDP", false, Journey { alice: Place::Symmetric, bob: vec![Place::PortRestricted] }),
        ("the journey", true, journey),
    ];
    let bar = progress_bar(journeys.iter().map(|(_, _, journey)| journey.bob.len() as u64).sum());
    let mut figures = Vec::new();
    for (name, forwards, journey) in journeys {
        // Out here, so that they go when the bench is interrupted.
        let (alice, bob) = (node_dir()?, node_dir()?);
        let dirs = [alice.path().to_path_buf(), bob.path().to_path_buf()];
        let progress = bar.clone();
        // The simulation brings a runtime of its own.
        let travelled = tokio::task::spawn_blocking(move || {
            let limits = if forwards { RelayLimits::new() } else { RelayLimits::new().with_flows(0) };
            let dirs = [&*dirs[0], &*dirs[1]];
            let stays = sim::run(SEED, |sim| travel(sim, limits, &journey, dirs, &progress))?;
            Ok::<_, CliError>(JourneyFigures { name, journey: journey.to_string(), stays })
        });
        figures.push(tokio::select! {
            biased;
            () = stop_requested() => return Err(CliError::Interrupted),
            travelled = travelled => travelled.map_err(|error| CliError::Environment(error.to_string()))??,
        });
    }
    bar.finish_and_clear();
    print(&NatBenchReport { megabits_per_second: BANDWIDTH as f64 / 1e6, journeys: figures }, json)
}

async fn travel(
    sim: Sim,
    limits: RelayLimits,
    journey: &Journey,
    dirs: [&Path; 2],
    bar: &ProgressBar,
) -> Result<Vec<Stay>, CliError> {
    // No jitter: packets that overtake each other look like loss, and that is another measurement.
    let world = World::new(
        sim,
        LinkOptions::new().with_latency(LATENCY),
        limits.with_bytes_per_client(PLENTY).with_bytes(PLENTY),
    )?;
    let alice = world.node(&with_line(world.host(journey.alice, 1)?), 0, dirs[0]).await?;
    let document = alice.create().await?;
    // Time to meet the relay, so that it is in the ticket.
    sleep(Duration::from_secs(5)).await;
    let (mut stays, mut on_the_way) = (Vec::new(), None);
    for (place, number) in journey.bob.iter().zip(2..) {
        bar.set_message(format!("Alice is behind {}, Bob behind {}", journey.alice.name(), place.name()));
        let moved = Instant::now();
        let bob = match on_the_way.take() {
            None => {
                let host = with_line(world.host(*place, number)?);
                let network = world.node(&host, 1, dirs[1]).await?;
                let there = network.open(document.ticket().await?).await?;
                Bob { host, network, transfer: Transfer::start(document.clone(), there).await? }
            }
            Some(Bob { host, network, transfer }) => {
                let (site, ip) = world.place(*place, number)?;
                host.move_to(&site, ip).map_err(|error| CliError::Environment(error.to_string()))?;
                Bob { host, network, transfer }
            }
        };
        stays.push(bob.stay(*place, moved, &alice).await?);
        bar.inc(1);
        on_the_way = Some(bob);
    }
    Ok(stays)
}

fn with_line(host: SimHost) -> SimHost {
    let line = LinkOptions::new().with_latency(Duration::ZERO).with_bandwidth(BANDWIDTH).with_queue(QUEUE_BYTES);
    host.with_access_link(line)
}

/// The traveller.
struct Bob {
    host: SimHost,
    network: PandaNetwork,
    transfer: Transfer,
}

impl Bob {
    /// Looks at what arrives at one place. What was on its way when Bob moved may still do, so what counts is the longest
    /// silence.
    async fn stay(&self, place: Place, moved: Instant, alice: &PandaNetwork) -> Result<Stay, CliError> {
        sleep(STAY).await;
        let path = |network: &PandaNetwork| network.connections().first().map(|(connection, _)| connection.path);
        let text = |network| path(network).map_or_else(|| "none".into(), |path| path.to_string());
        let (left, paths) = (Instant::now(), [text(alice), text(&self.network)]);
        let arrivals = std::mem::take(&mut *self.transfer.arrivals());
        let longest = std::iter::once(&moved).chain(&arrivals).zip(&arrivals).max_by_key(|(one, next)| **next - **one);
        let Some((one, flows)) = longest.filter(|_| arrivals.last().is_some_and(|last| left - *last < SETTLED)) else {
            let state = format!("Bob is behind {}, paths {}, {}", place.name(), paths[0], paths[1]);
            return Err(CliError::TimedOut { what: "data flows again".into(), state });
        };
        let within = |from: Instant, to: Instant| arrivals.iter().filter(|at| (from..to).contains(at)).count();
        Ok(Stay {
            place: place.name(),
            paths,
            gap_seconds: (*flows - *one).as_secs_f64(),
            first_mebibytes_per_second: mebibytes_per_second(within(*flows, *flows + FIRST), FIRST),
            settled_mebibytes_per_second: mebibytes_per_second(within(left - SETTLED, left), SETTLED),
        })
    }
}

fn mebibytes_per_second(operations: usize, time: Duration) -> f64 {
    (operations * OPERATION_BYTES) as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// Alice writes as fast as it arrives at Bob.
struct Transfer {
    /// When each operation arrived that nobody asked for yet.
    arrivals: Arc<Mutex<Vec<Instant>>>,
    tasks: [JoinHandle<()>; 2],
}

impl Transfer {
    async fn start(here: Document, there: Document) -> Result<Self, CliError> {
        let mut events = there.subscribe(StartFrom::Start).await?;
        let (arrivals, room) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Semaphore::new(UNDER_WAY)));
        let (arrived, more) = (Arc::clone(&arrivals), Arc::clone(&room));
        let reading = tokio::spawn(async move {
            while let Some(Ok(event)) = events.next().await {
                if matches!(event, DocumentEvent::Operation(_)) {
                    lock(&arrived).push(Instant::now());
                    more.add_permits(1);
                }
            }
        });
        let writing = tokio::spawn(async move {
            while let Ok(permit) = room.acquire().await {
                permit.forget();
                if here.publish(vec![0xA5; OPERATION_BYTES]).await.is_err() {
                    break;
                }
            }
        });
        Ok(Self { arrivals, tasks: [reading, writing] })
    }

    fn arrivals(&self) -> MutexGuard<'_, Vec<Instant>> {
        lock(&self.arrivals)
    }
}

fn lock(arrivals: &Mutex<Vec<Instant>>) -> MutexGuard<'_, Vec<Instant>> {
    arrivals.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_flows_at_every_place_by_the_path_that_it_allows_and_as_fast_as_the_line() {
        let dirs = [node_dir().unwrap(), node_dir().unwrap()];
        let dirs = [dirs[0].path(), dirs[1].path()];
        let journey = "port-restricted,symmetric,port-restricted".parse().unwrap();
        let bar = ProgressBar::hidden();
        let stays = sim::run(SEED, |sim| travel(sim, RelayLimits::new(), &journey, dirs, &bar)).unwrap();
        let paths: Vec<_> = stays.iter().map(|stay| stay.paths[0].as_str()).collect();
        assert_eq!(paths, ["relayed", "punched"]);
        let line = BANDWIDTH as f64 / 8.0 / f64::from(1 << 20);
        for stay in &stays {
            assert!(stay.settled_mebibytes_per_second > 0.7 * line, "{stay:?} on a line of {line} MiB/s");
        }
    }
}
