//! The cost of content on one core: cutting, hashing, packing, and coding of leaves, on blocks of a
//! real disk image.
//!
//! Cutting has to cost less than a tenth of hashing: compare `cut` with `hash`.

#![expect(
    clippy::expect_used,
    reason = "a bench that cannot go on stops, and says why"
)]

use std::fs::File;
use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use varve_benches::images;
use varve_content::block::is_zero;
use varve_content::chunker::{Cut, cut_segment};
use varve_content::codec::{Decoder, Encoder};
use varve_content::tree::{Leaf, LeafEntry};
use varve_content::{ChunkId, Codec, Compression, SEGMENT_BYTES};

/// One segment of data, cut into chunks.
struct Sample {
    bytes: Vec<u8>,
    cuts: Vec<Cut>,
}

impl Sample {
    /// Takes the middle of the base image's data, which has programs and libraries, not only the
    /// start of a disk.
    fn take() -> Self {
        let image = images::find("base")
            .and_then(File::open)
            .expect("open the base image");
        let blocks = images::nonzero_blocks(&image).expect("read the base image");
        let middle = blocks.len() / 2 / SEGMENT_BYTES * SEGMENT_BYTES;
        let bytes = blocks[middle..middle + SEGMENT_BYTES].to_vec();
        let mut cuts = Vec::new();
        cut_segment(&bytes, &mut cuts);
        Self { bytes, cuts }
    }

    fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.cuts.iter().map(|cut| &self.bytes[cut.byte_range()])
    }
}

fn cut_and_hash(criterion: &mut Criterion) {
    let sample = Sample::take();
    let mut group = criterion.benchmark_group("content");
    group.throughput(Throughput::Bytes(SEGMENT_BYTES as u64));
    group.bench_function("zero scan", |bencher| {
        let zeros = vec![0; SEGMENT_BYTES];
        bencher.iter(|| is_zero(black_box(&zeros)));
    });
    group.bench_function("cut", |bencher| {
        let mut cuts = Vec::with_capacity(sample.cuts.len());
        bencher.iter(|| {
            cuts.clear();
            cut_segment(black_box(&sample.bytes), &mut cuts);
        });
    });
    group.bench_function("hash", |bencher| {
        bencher.iter(|| {
            for chunk in sample.chunks() {
                black_box(ChunkId::of(black_box(chunk)));
            }
        });
    });
    group.finish();
}

fn pack(criterion: &mut Criterion) {
    let sample = Sample::take();
    let mut group = criterion.benchmark_group("codec");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(SEGMENT_BYTES as u64));
    for compression in [Compression::Zstd, Compression::Lz4] {
        group.bench_function(BenchmarkId::new("encode", compression), |bencher| {
            let mut encoder = Encoder::new(compression);
            bencher.iter(|| {
                for chunk in sample.chunks() {
                    black_box(encoder.encode(black_box(chunk)));
                }
            });
        });
        let mut encoder = Encoder::new(compression);
        let packed: Vec<(Codec, Vec<u8>, usize)> = sample
            .chunks()
            .map(|chunk| {
                let (codec, stored) = encoder.encode(chunk);
                (codec, stored.to_vec(), chunk.len())
            })
            .collect();
        group.bench_function(BenchmarkId::new("decode", compression), |bencher| {
            let mut decoder = Decoder::new();
            let mut plain = Vec::new();
            bencher.iter(|| {
                for (codec, stored, plain_len) in &packed {
                    decoder
                        .decode(*codec, black_box(stored), *plain_len, &mut plain)
                        .expect("decode what was encoded");
                }
            });
        });
    }
    group.finish();
}

fn leaf(criterion: &mut Criterion) {
    let sample = Sample::take();
    let entries: Vec<LeafEntry> = sample
        .cuts
        .iter()
        .zip(sample.chunks())
        .map(|(cut, chunk)| LeafEntry {
            start_block: cut.start_block,
            blocks: cut.blocks,
            chunk: ChunkId::of(chunk),
        })
        .collect();
    let leaf = Leaf::new(entries.clone()).expect("the cuts of a segment make a leaf");
    let encoded = leaf.encode();
    let mut group = criterion.benchmark_group("leaf");
    group.throughput(Throughput::Elements(entries.len() as u64));
    group.bench_function("new", |bencher| {
        bencher.iter_batched(|| entries.clone(), Leaf::new, BatchSize::SmallInput);
    });
    group.bench_function("encode", |bencher| {
        bencher.iter(|| black_box(&leaf).encode())
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| Leaf::decode(black_box(&encoded)))
    });
    group.bench_function("id", |bencher| bencher.iter(|| black_box(&leaf).id()));
    group.finish();
}

criterion_group!(benches, cut_and_hash, pack, leaf);
criterion_main!(benches);
