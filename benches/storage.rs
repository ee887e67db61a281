//! The store on a real file system: publishing, taking in what peers sent, reading pages.
//!
//! `cargo bench --bench storage`. The database lies in the temporary directory: set `TMPDIR` to the disk that is meant, for on
//! a file system in memory `Power` costs nothing. Reads do not depend on the durability, and are measured once.

use criterion::{BatchSize, Criterion, SamplingMode, Throughput};
use panda_network::limits::PAGE_MAX_OPERATIONS;
use panda_network::store::Store;
use panda_network::{Durability, Operation};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use support::{Author, OpenStore, PAYLOAD_BYTES, payload, runtime};

mod support;

const BATCH: usize = 256;
/// Operations in the log that pages are read from.
const LOG_OPERATIONS: usize = 10_000;
const DURABILITIES: [(&str, Durability); 2] = [("process", Durability::Process), ("power", Durability::Power)];

fn publish(criterion: &mut Criterion, runtime: &Runtime) {
    let payload = payload(PAYLOAD_BYTES);
    for (name, durability) in DURABILITIES {
        let mut group = criterion.benchmark_group(format!("storage/{name}"));
        let OpenStore { store, log, .. } = &OpenStore::new(runtime, durability);
        group.throughput(Throughput::Elements(1));
        group.bench_function("publish-one-at-a-time", |bencher| {
            bencher.iter(|| runtime.block_on(store.publish(*log, payload.clone())).unwrap());
        });
        group.throughput(Throughput::Elements(BATCH as u64)).sampling_mode(SamplingMode::Flat);
        group.bench_function(format!("publish-{BATCH}-queued"), |bencher| {
            bencher.iter(|| {
                runtime.block_on(async {
                    let mut queued = JoinSet::new();
                    for _ in 0..BATCH {
                        let (store, log, payload) = (store.clone(), *log, payload.clone());
                        queued.spawn(async move { store.publish(log, payload).await.unwrap().position });
                    }
                    queued.join_all().await
                })
            });
        });
    }
}

fn ingest(criterion: &mut Criterion, runtime: &Runtime) {
    for (name, durability) in DURABILITIES {
        let mut group = criterion.benchmark_group(format!("storage/{name}"));
        let OpenStore { store, log, .. } = &OpenStore::new(runtime, durability);
        let mut author = Author::new(2, PAYLOAD_BYTES);
        group.throughput(Throughput::Elements(BATCH as u64)).sampling_mode(SamplingMode::Flat);
        group.bench_function(format!("ingest-{BATCH}"), |bencher| {
            let ingest = |batch: Vec<Operation>| {
                let ingested = runtime.block_on(store.ingest(*log, batch)).unwrap();
                assert_eq!(ingested.stored.len(), BATCH);
                ingested
            };
            // Signing is not part of it.
            bencher.iter_batched(|| author.sign(BATCH), ingest, BatchSize::PerIteration);
        });
    }
}

fn read(criterion: &mut Criterion, runtime: &Runtime) {
    let OpenStore { store, log, .. } = &OpenStore::new(runtime, Durability::Process);
    let operations = Author::new(2, PAYLOAD_BYTES).sign(LOG_OPERATIONS);
    let author = operations[0].author();
    let mut middle = 0;
    for batch in operations.chunks(BATCH) {
        let ingested = runtime.block_on(store.ingest(*log, batch.to_vec())).unwrap();
        if middle == 0 && batch[0].seq_num() as usize >= LOG_OPERATIONS / 2 {
            middle = ingested.stored[0].position;
        }
    }
    let mut group = criterion.benchmark_group("storage/read");
    group.throughput(Throughput::Elements(PAGE_MAX_OPERATIONS as u64));
    let first = LOG_OPERATIONS as u32 / 2;
    let last = first + PAGE_MAX_OPERATIONS as u32 - 1;
    group.bench_function("author-page", |bencher| {
        bencher.iter(|| {
            let page = runtime.block_on(store.author_page(*log, author, first, last)).unwrap();
            assert_eq!(page.len(), PAGE_MAX_OPERATIONS);
        });
    });
    group.bench_function("page-after", |bencher| {
        bencher.iter(|| {
            let page = runtime.block_on(store.page_after(*log, middle)).unwrap();
            assert_eq!(page.len(), PAGE_MAX_OPERATIONS);
        });
    });
}

fn main() {
    let (mut criterion, runtime) = (support::criterion(), runtime());
    publish(&mut criterion, &runtime);
    ingest(&mut criterion, &runtime);
    read(&mut criterion, &runtime);
    criterion.final_summary();
}
