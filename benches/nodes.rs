//! Whole nodes: two in one process, on loopback, with their stores in the temporary directory.
//!
//! `cargo bench --bench nodes`. What is timed is what the second editor sees: the time until its subscription brings the
//! operation. Both nodes, their writers and both editors share the machine, so on few cores this is the sum of all work.
//! Raw quinn runs beside it: its round trip (there and back; an operation goes one way and is on two disks then), and one
//! bulk stream, pair by pair with ours, whose ratio is printed at the end.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, SamplingMode, Throughput};
use panda_network::identity::Identity;
use panda_network::transport::{Connection, Priority, Transport, TransportKind};
use panda_network::transports::quic::{QuicTransport, QuicTransportOptions};
use panda_network::{
    Document, DocumentEvent, Durability, PandaNetwork, PandaNetworkOptions, PeerAddress, StartFrom, Subscription,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use support::raw_quinn::RawQuinn;
use support::{PAYLOAD_BYTES, identity, payload, runtime};

mod support;

const BURST: usize = 1_000;
const CATCH_UP: usize = 10_000;
/// Publishes under way at once while a log is made.
const QUEUED: usize = 1_000;
const BULK_CHUNK_BYTES: usize = 64 * 1024;
const BULK_CHUNKS: usize = 512;
const DURABILITIES: [(&str, Durability); 2] = [("process", Durability::Process), ("power", Durability::Power)];

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// A node, in a directory that goes with it.
struct Node {
    network: PandaNetwork,
    _directory: TempDir,
}

impl Node {
    async fn start(durability: Durability) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options =
            PandaNetworkOptions::new(directory.path()).with_listen_address(loopback()).with_durability(durability);
        Self { network: PandaNetwork::start(options).await.unwrap(), _directory: directory }
    }

    async fn stop(self) {
        self.network.shutdown(Duration::from_secs(5)).await.unwrap();
    }
}

/// Publishes operations, many at once, and waits until all are durable here.
async fn publish(document: &Document, count: usize) {
    let payload = payload(PAYLOAD_BYTES);
    let mut publishing = JoinSet::new();
    for number in 0..count {
        if number >= QUEUED {
            publishing.join_next().await.unwrap().unwrap();
        }
        let (document, payload) = (document.clone(), payload.clone());
        publishing.spawn(async move { drop(document.publish(payload).await.unwrap()) });
    }
    publishing.join_all().await;
}

async fn receive(events: &mut Subscription, count: usize) {
    let mut received = 0;
    while received < count {
        if let DocumentEvent::Operation(_) = events.next().await.unwrap().unwrap() {
            received += 1;
        }
    }
}

/// Two nodes that are connected by a document, and what the second editor reads.
async fn connected(durability: Durability) -> ([Node; 2], Document, Subscription) {
    let nodes = [Node::start(durability).await, Node::start(durability).await];
    let here = nodes[0].network.create().await.unwrap();
    let there = nodes[1].network.open(here.ticket().await.unwrap()).await.unwrap();
    let mut events = there.subscribe(StartFrom::Start).await.unwrap();
    here.publish("hello").await.unwrap().delivered_to(1).await;
    receive(&mut events, 1).await;
    (nodes, here, events)
}

fn live(criterion: &mut Criterion, runtime: &Runtime) {
    let payload = payload(PAYLOAD_BYTES);
    for (name, durability) in DURABILITIES {
        let (nodes, here, mut events) = runtime.block_on(connected(durability));
        let mut group = criterion.benchmark_group(format!("nodes/{name}"));
        group.bench_function("live-operation", |bencher| {
            bencher.iter(|| {
                runtime.block_on(async {
                    let (published, ()) = tokio::join!(here.publish(payload.clone()), receive(&mut events, 1));
                    published.unwrap();
                });
            });
        });
        group.throughput(Throughput::Elements(BURST as u64)).sample_size(20);
        group.bench_function(format!("burst-{BURST}"), |bencher| {
            bencher.iter(|| {
                runtime.block_on(async { tokio::join!(publish(&here, BURST), receive(&mut events, BURST)) });
            });
        });
        let [alice, bob] = nodes;
        runtime.block_on(async { tokio::join!(alice.stop(), bob.stop()) });
    }
}

/// Two new nodes for every measurement: how long from `open` until the second one has all that the first published before.
async fn join(operations: usize) -> Duration {
    let (alice, bob) = (Node::start(Durability::Process).await, Node::start(Durability::Process).await);
    let here = alice.network.create().await.unwrap();
    publish(&here, operations).await;
    let ticket = here.ticket().await.unwrap();
    let start = Instant::now();
    let there = bob.network.open(ticket).await.unwrap();
    let mut events = there.subscribe(StartFrom::Start).await.unwrap();
    receive(&mut events, operations).await;
    let taken = start.elapsed();
    tokio::join!(alice.stop(), bob.stop());
    taken
}

fn joining(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("nodes/process");
    // Most of an iteration is starting and stopping nodes. That is not in the figure, but criterion plans with it.
    group.sampling_mode(SamplingMode::Flat).warm_up_time(Duration::from_millis(100));
    let (few, many) = (("connect-and-first-operation", 1), ("connect-and-catch-up-10000", CATCH_UP));
    for ((name, operations), samples, time) in [(few, 30, Duration::from_secs(8)), (many, 10, Duration::from_secs(12))]
    {
        group.throughput(Throughput::Elements(operations as u64)).sample_size(samples).measurement_time(time);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                runtime.block_on(async {
                    let mut taken = Duration::ZERO;
                    for _ in 0..iterations {
                        taken += join(operations).await;
                    }
                    taken
                })
            });
        });
    }
}

/// Both ends of a connection of our transport.
struct OurQuic {
    here: Arc<dyn Connection>,
    there: Arc<dyn Connection>,
    _transports: [QuicTransport; 2],
}

impl OurQuic {
    async fn connect() -> Self {
        let start = |identity: &Identity| {
            QuicTransport::start(identity, QuicTransportOptions::new().with_listen_address(loopback())).unwrap()
        };
        let (here, there) = (start(&identity(1)), start(&identity(2)));
        let addresses = there.local_addresses().into_iter().map(|address| (TransportKind::Quic, address)).collect();
        let address = PeerAddress::sign(&identity(2), addresses, Vec::new(), 1).unwrap();
        let (connected, accepted) = tokio::join!(here.connect(&address, Duration::from_secs(10)), there.accept());
        Self { here: connected.unwrap(), there: accepted.unwrap(), _transports: [here, there] }
    }

    /// As [`RawQuinn::bulk`].
    async fn bulk(&self, chunk: &Bytes, count: usize) -> Duration {
        let start = Instant::now();
        let (mut send, _receive) = self.here.open_bi(Priority::Medium).await.unwrap();
        let (there, expected) = (Arc::clone(&self.there), chunk.len() * count);
        let receiver = tokio::spawn(async move {
            let (_send, mut receive) = there.accept_bi().await.unwrap();
            let mut received = 0;
            while let Some(chunk) = receive.read(BULK_CHUNK_BYTES).await.unwrap() {
                received += chunk.len();
            }
            assert_eq!(received, expected);
        });
        for _ in 0..count {
            send.write(chunk.clone()).await.unwrap();
        }
        send.finish();
        receiver.await.unwrap();
        start.elapsed()
    }
}

fn beside_raw_quinn(criterion: &mut Criterion, runtime: &Runtime) {
    let (raw, ours) = runtime.block_on(async { (RawQuinn::connect().await, OurQuic::connect().await) });
    let mut echo = runtime.block_on(raw.echo(PAYLOAD_BYTES));
    criterion.bench_function("raw-quinn/round-trip-200", |bencher| {
        bencher.iter(|| runtime.block_on(echo.round_trip()));
    });
    let mut pairs = Vec::new();
    let chunk = payload(BULK_CHUNK_BYTES);
    let mut group = criterion.benchmark_group("transport");
    group.throughput(Throughput::Bytes((BULK_CHUNK_BYTES * BULK_CHUNKS) as u64)).sample_size(10);
    group.bench_function("bulk-stream", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut taken = Duration::ZERO;
            for _ in 0..iterations {
                // One after the other, so that whatever else the machine does falls on both.
                let baseline = runtime.block_on(raw.bulk(&chunk, BULK_CHUNKS));
                let own = runtime.block_on(ours.bulk(&chunk, BULK_CHUNKS));
                pairs.push((baseline, own));
                taken += own;
            }
            taken
        });
    });
    group.finish();
    print_ratio(&pairs);
}

/// Prints nothing when a filter left the bulk streams out.
fn print_ratio(pairs: &[(Duration, Duration)]) {
    if pairs.is_empty() {
        return;
    }
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let mebibytes = (BULK_CHUNK_BYTES * BULK_CHUNKS) as f64 / (1 << 20) as f64;
    let rates = |of: fn(&(Duration, Duration)) -> Duration| {
        median(pairs.iter().map(|pair| mebibytes / of(pair).as_secs_f64()).collect())
    };
    let ratio = median(pairs.iter().map(|(raw, ours)| raw.as_secs_f64() / ours.as_secs_f64()).collect());
    println!(
        "bulk stream, medians of {} pairs: raw quinn {:.0} MiB/s, our transport {:.0} MiB/s, ours/raw {ratio:.2}\n",
        pairs.len(),
        rates(|pair| pair.0),
        rates(|pair| pair.1),
    );
}

fn main() {
    let (mut criterion, runtime) = (support::criterion(), runtime());
    live(&mut criterion, &runtime);
    joining(&mut criterion, &runtime);
    beside_raw_quinn(&mut criterion, &runtime);
    criterion.final_summary();
}
