//! One operation: what it costs to sign, to decode with all checks, and to put into its envelope.
//!
//! `cargo bench --bench operations`. The rates are operations per second on one core.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use panda_network::Operation;
use panda_network::operation::{open_envelope, seal_envelope};

use support::{Author, PAYLOAD_BYTES, identity, payload, record};

mod support;

const SIZES: [usize; 2] = [PAYLOAD_BYTES, 64 * 1024];

fn sign(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("operation/sign");
    let (identity, log) = (identity(1), record().log());
    for bytes in SIZES {
        let payload = payload(bytes);
        // Any but the first operation has a backlink.
        let head = Some(Author::new(1, bytes).sign(1)[0].head());
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
            bencher.iter(|| Operation::sign(&identity, log, head, 1, black_box(&payload)).unwrap());
        });
    }
}

fn decode_and_verify(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("operation/decode-and-verify");
    let log = record().log();
    for bytes in SIZES {
        let operation = &Author::new(1, bytes).sign(2)[1];
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
            let bytes = || (operation.header().clone(), operation.body().clone());
            bencher.iter(|| {
                let (header, body) = black_box(bytes());
                Operation::decode(log, header, body).unwrap()
            });
        });
    }
}

fn envelope(criterion: &mut Criterion) {
    for bytes in SIZES {
        let mut group = criterion.benchmark_group("operation/envelope");
        group.throughput(Throughput::Elements(1));
        let payload = payload(bytes);
        group.bench_function(BenchmarkId::new("seal", bytes), |bencher| {
            bencher.iter(|| seal_envelope(black_box(&payload)));
        });
        let sealed = seal_envelope(&payload);
        group.bench_function(BenchmarkId::new("open", bytes), |bencher| {
            bencher.iter(|| open_envelope(black_box(&sealed)).unwrap());
        });
    }
}

fn main() {
    let mut criterion = support::criterion();
    sign(&mut criterion);
    decode_and_verify(&mut criterion);
    envelope(&mut criterion);
    criterion.final_summary();
}
