//! Frames: encoding, decoding, and cutting them out of the chunks in which a stream brings them.
//!
//! `cargo bench --bench wire`. Signatures are not checked here; `operations` has them.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use panda_network::frame::FrameDecoder;
use panda_network::identity::Identity;
use panda_network::ids::OperationId;
use panda_network::limits::HEADS_PER_FRAME;
use panda_network::operation::Head;
use panda_network::sync::wire::DocumentFrame;

use support::{Author, PAYLOAD_BYTES};

mod support;

/// Bytes of frames that the decoder is given in one go, at least.
const STREAM_BYTES: usize = 1024 * 1024;
/// What a datagram brings, and what a busy stream brings.
const CHUNKS: [usize; 2] = [1_200, 65_536];

fn operations(count: usize) -> DocumentFrame {
    let signed = Author::new(1, PAYLOAD_BYTES).sign(count);
    let operations = signed.iter().map(|operation| (operation.header().clone(), operation.body().clone())).collect();
    DocumentFrame::Operations { message_id: 1, operations }
}

fn heads() -> DocumentFrame {
    let head = |number: usize| Head { seq_num: number as u32, id: OperationId::from([7; 32]) };
    let author = |number: usize| {
        let mut seed = [1; 32];
        seed[..8].copy_from_slice(&number.to_le_bytes());
        Identity::from_seed(&seed).peer_id()
    };
    DocumentFrame::Heads { heads: (0..HEADS_PER_FRAME).map(|n| (author(n), head(n))).collect(), last: true }
}

fn encoded(frame: &DocumentFrame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

/// The content of the one frame in these bytes.
fn content(out: Vec<u8>) -> Bytes {
    let mut decoder = FrameDecoder::new();
    decoder.push(out.into());
    decoder.next_frame().unwrap().unwrap()
}

fn encode_and_decode(criterion: &mut Criterion) {
    let frames = [
        ("operations/1", operations(1), 1),
        ("operations/128", operations(128), 128),
        ("heads/512", heads(), HEADS_PER_FRAME as u64),
    ];
    let mut group = criterion.benchmark_group("wire");
    for (name, frame, items) in frames {
        group.throughput(Throughput::Elements(items));
        let mut out = Vec::new();
        group.bench_function(format!("{name}/encode"), |bencher| {
            bencher.iter(|| {
                out.clear();
                black_box(&frame).encode(&mut out);
                out.len()
            });
        });
        let content = content(encoded(&frame));
        group.bench_function(format!("{name}/decode"), |bencher| {
            bencher.iter(|| DocumentFrame::decode(black_box(&content)).unwrap());
        });
    }
}

fn cut(chunks: &[Bytes]) -> usize {
    let mut decoder = FrameDecoder::new();
    let mut frames = 0;
    for chunk in chunks {
        decoder.push(chunk.clone());
        while decoder.next_frame().unwrap().is_some() {
            frames += 1;
        }
    }
    frames
}

fn frame_decoder(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire/frame-decoder");
    for (name, frame) in [("1-operation", encoded(&operations(1))), ("128-operations", encoded(&operations(128)))] {
        let count = STREAM_BYTES.div_ceil(frame.len());
        let stream = Bytes::from(frame.repeat(count));
        group.throughput(Throughput::Bytes(stream.len() as u64));
        for chunk in CHUNKS {
            let chunks: Vec<Bytes> =
                (0..stream.len()).step_by(chunk).map(|at| stream.slice(at..stream.len().min(at + chunk))).collect();
            assert_eq!(cut(&chunks), count);
            group.bench_function(BenchmarkId::new(name, chunk), |bencher| bencher.iter(|| cut(black_box(&chunks))));
        }
    }
}

fn main() {
    let mut criterion = support::criterion();
    encode_and_decode(&mut criterion);
    frame_decoder(&mut criterion);
    criterion.final_summary();
}
