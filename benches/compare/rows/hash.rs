//! The cost of cutting beside hashing, and of hashing beside b3sum: on one thread, over the blocks
//! of the base image that are not zero.

use std::fs::{self, File};
use std::hint::black_box;
use std::time::{Duration, Instant};

use varve_benches::images::nonzero_blocks;
use varve_content::chunker::{Cut, cut_segment};
use varve_content::{ChunkId, SEGMENT_BYTES};

use crate::bench::{Bench, remove};
use crate::failure::{Failure, While};
use crate::page_cache;
use crate::peers::b3sum;
use crate::samples::{Samples, in_turns};
use crate::table::{Figure, Row, Wanted};

pub(crate) fn cut_and_hash(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let reading = || format!("read {}", bench.base.display());
    let image = File::open(&bench.base).during(reading)?;
    let blocks = nonzero_blocks(&image).during(reading)?;
    let file = bench.path("blocks");
    fs::write(&file, &blocks).during(|| format!("write {}", file.display()))?;
    page_cache::settle();
    let segments: Vec<Vec<Cut>> = blocks
        .chunks(SEGMENT_BYTES)
        .map(|segment| {
            let mut cuts = Vec::new();
            cut_segment(segment, &mut cuts);
            cuts
        })
        .collect();

    let mut cuts = Vec::new();
    let mut cut = |_| {
        Ok(seconds_of_segments(&blocks, |_, segment| {
            cuts.clear();
            cut_segment(segment, &mut cuts);
        }))
    };
    let mut hash = |_| {
        Ok(seconds_of_segments(&blocks, |number, segment| {
            hash_chunks(segment, &segments[number])
        }))
    };
    let mut hash_all = |_| {
        let started = Instant::now();
        for (segment, cuts) in blocks.chunks(SEGMENT_BYTES).zip(&segments) {
            hash_chunks(segment, cuts);
        }
        Ok(started.elapsed().as_secs_f64())
    };
    let mut other = |_| Ok(b3sum(&file)?.seconds);
    let [cut, hash, hash_all, other] = in_turns(
        "cut and hash",
        bench.runs,
        [&mut cut, &mut hash, &mut hash_all, &mut other],
    )?;
    remove(&file)?;
    Ok(vec![
        Row {
            what: "cutting".to_owned(),
            against: "hashing the same chunks".to_owned(),
            ours: Figure::Seconds(cut),
            theirs: Figure::Seconds(hash),
            wanted: Wanted::TimesAsMuch(0.1),
            note: "one thread, segment by segment; each was just read into a buffer, as in an \
                   import.",
        },
        Row {
            what: "hashing chunk by chunk".to_owned(),
            against: "b3sum --num-threads 1".to_owned(),
            ours: rate(&hash_all, blocks.len()),
            theirs: rate(&other, blocks.len()),
            wanted: Wanted::TimesAsFast(0.9),
            note: "one thread each, the same bytes in memory; b3sum maps its file from the page cache, its start included.",
        },
    ])
}

fn hash_chunks(segment: &[u8], cuts: &[Cut]) {
    for cut in cuts {
        black_box(ChunkId::of(black_box(&segment[cut.byte_range()])));
    }
}

/// Works on one segment after another as an import does, in a buffer into which each was just read.
/// Only the work is timed.
fn seconds_of_segments(blocks: &[u8], mut work: impl FnMut(usize, &[u8])) -> f64 {
    let mut buffer = vec![0; SEGMENT_BYTES];
    let mut took = Duration::ZERO;
    for (number, segment) in blocks.chunks(SEGMENT_BYTES).enumerate() {
        let buffer = &mut buffer[..segment.len()];
        buffer.copy_from_slice(segment);
        let started = Instant::now();
        work(number, black_box(buffer));
        took += started.elapsed();
    }
    took.as_secs_f64()
}

fn rate(seconds: &Samples, bytes: usize) -> Figure {
    Figure::BytesPerSecond(seconds.map(|seconds| bytes as f64 / seconds))
}
