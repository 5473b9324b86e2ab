//! Snapshots of volumes, and volumes made from snapshots.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use varve_content::chunker::cut_segment;
use varve_content::{BLOCK_BYTES, SEGMENT_BYTES};

use crate::bench::{Bench, RAW_DISK_BYTES, remove};
use crate::failure::{Failure, While};
use crate::fio::{self, Does, Load, Pattern, Request, Until};
use crate::page_cache;
use crate::process;
use crate::samples::{Samples, in_turns};
use crate::table::{Figure, Row, Wanted};
use crate::varve::{Content, Varved, Volume};

const GIB: u64 = 1 << 30;
/// Limits: for the latency of a write around a snapshot, and for the time of a clone.
const PAUSE_LIMIT_SECONDS: f64 = 0.005;
const CLONE_LIMIT_SECONDS: f64 = 0.010;

/// Random single blocks of a volume.
fn random_writes(volume_bytes: u64, until: Until) -> Load {
    Load {
        does: Does::Write,
        pattern: Pattern::RANDOM,
        block_bytes: 4096,
        depth: 32,
        range: 0..volume_bytes,
        until,
    }
}

/// Time for which the writer is at full load. The snapshot is taken in the middle.
const PAUSE_LOAD_SECONDS: u32 = 6;
const PAUSE_AFTER: Duration = Duration::from_secs(3);
/// The period around the start of snapctl.
const WINDOW_SECONDS: Range<f64> = -0.05..0.25;

/// Latency of writes in a period: the 99th percentile, and the longest.
#[derive(Debug, Clone, Copy)]
struct Took {
    p99: f64,
    longest: f64,
}

fn took(requests: &[Request], within: Range<f64>) -> Result<Took, Failure> {
    let mut seconds: Vec<f64> = requests
        .iter()
        .filter(|request| within.contains(&request.at))
        .map(|request| request.seconds)
        .collect();
    seconds.sort_by(f64::total_cmp);
    match (seconds.get(seconds.len() * 99 / 100), seconds.last()) {
        (Some(&p99), Some(&longest)) => Ok(Took { p99, longest }),
        _ => Err(Failure::new("no write was answered around the snapshot")),
    }
}

/// One snapshot under load: write latency around it, before it, and until it is complete.
#[derive(Debug, Clone, Copy)]
struct Pause {
    around: Took,
    before: Took,
    until_complete: Took,
}

fn one_pause(bench: &Bench, volume_bytes: u64) -> Result<Pause, Failure> {
    let data_dir = bench.fresh_directory("pause")?;
    let varved = bench.programs.serve(&data_dir)?;
    let content = Content::Zeros {
        bytes: volume_bytes,
    };
    let volume = varved.make_volume("disk", content)?;
    fio::run(
        &volume.uri(),
        &random_writes(volume_bytes, Until::Bytes(GIB)),
    )?;
    page_cache::settle();
    let load = Load {
        pattern: Pattern::Random { seed: 2 },
        ..random_writes(volume_bytes, Until::Seconds(PAUSE_LOAD_SECONDS))
    };
    let (requests, started, complete) = thread::scope(|scope| {
        let writer =
            scope.spawn(|| fio::run_logged(&volume.uri(), &load, &bench.path("pause-log")));
        thread::sleep(PAUSE_AFTER);
        let started = seconds_of_clock();
        let snapshot = varved.snapshot(&volume, "snapshot");
        let complete = seconds_of_clock();
        let requests = writer
            .join()
            .map_err(|_| Failure::new("the writer ended early"))??;
        snapshot?;
        Ok::<_, Failure>((requests, started, complete))
    })?;
    varved.stop()?;
    remove(&data_dir)?;
    let at = |seconds: f64| started + seconds;
    Ok(Pause {
        around: took(&requests, at(WINDOW_SECONDS.start)..at(WINDOW_SECONDS.end))?,
        before: took(&requests, at(-1.5)..at(WINDOW_SECONDS.start))?,
        until_complete: took(&requests, started..complete)?,
    })
}

fn seconds_of_clock() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

pub(crate) fn pause(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for gibibytes in [8, 64] {
        let mut pauses = Vec::new();
        for run in 0..bench.runs {
            eprintln!("pause, {gibibytes} GiB: run {} of {}", run + 1, bench.runs);
            pauses.push(one_pause(bench, gibibytes * GIB)?);
        }
        let figure = |of: fn(&Pause) -> f64| {
            Figure::Seconds(Samples::from_runs(pauses.iter().map(of).collect()))
        };
        let what = |which: &str| format!("{which} of writes, depth 32, {gibibytes} GiB volume");
        rows.push(Row {
            what: what("snapshot: p99"),
            against: "its limit".to_owned(),
            ours: figure(|pause| pause.around.p99),
            theirs: Figure::seconds(PAUSE_LIMIT_SECONDS),
            wanted: Wanted::TimesAsMuch(1.0),
            note: if gibibytes == 8 {
                "random writes of 4 KiB at full load, from 50 ms before snapctl is started to 250 \
                 ms after; at least 1 GiB was written as single blocks since the last snapshot."
            } else {
                ""
            },
        });
        rows.push(Row {
            what: what("snapshot: p99"),
            against: "the same without a snapshot".to_owned(),
            ours: figure(|pause| pause.around.p99),
            theirs: figure(|pause| pause.before.p99),
            wanted: Wanted::Nothing,
            note: if gibibytes == 8 {
                "the 1.5 s before."
            } else {
                ""
            },
        });
        rows.push(Row {
            what: what("snapshot: longest"),
            against: "the same without a snapshot".to_owned(),
            ours: figure(|pause| pause.around.longest),
            theirs: figure(|pause| pause.before.longest),
            wanted: Wanted::Nothing,
            note: "",
        });
        rows.push(Row {
            what: what("until complete: p99"),
            against: "the same without a snapshot".to_owned(),
            ours: figure(|pause| pause.until_complete.p99),
            theirs: figure(|pause| pause.before.p99),
            wanted: Wanted::Nothing,
            note: if gibibytes == 8 {
                "from snapctl's start to its end: the changed blocks are read, cut, hashed, packed \
                 and stored beside the writer, on the same cores."
            } else {
                ""
            },
        });
    }
    Ok(rows)
}

/// A volume with the raw disk's content, and the snapshot `whole` of it. Returns the seconds that
/// this snapshot took.
fn written_volume(bench: &Bench, varved: &Varved) -> Result<(Volume, f64), Failure> {
    let disk = bench.raw_disk()?;
    let bytes = RAW_DISK_BYTES;
    let volume = varved.make_volume("disk", Content::Zeros { bytes })?;
    process::run(Command::new("nbdcopy").arg(disk).arg(volume.uri()))?;
    let seconds = varved.snapshot(&volume, "whole")?.seconds;
    Ok((volume, seconds))
}

pub(crate) fn completion(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.fresh_directory("completion")?;
    let mut varved = bench.programs.serve(&data_dir)?;
    let (volume, whole_seconds) = written_volume(bench, &varved)?;
    let mut seconds = Vec::new();
    // The amounts read and stored are the same each time, and only the first run shows them: a
    // later run's cannot be told from outside.
    let (mut touched, mut read, mut new) = (0, 0, 0);
    for run in 0..bench.runs {
        eprintln!("snapshot of 1 %: run {} of {}", run + 1, bench.runs);
        let load = Load {
            pattern: Pattern::Random { seed: 100 + run },
            ..random_writes(RAW_DISK_BYTES, Until::Bytes(RAW_DISK_BYTES / 100))
        };
        let requests = fio::run_logged(&volume.uri(), &load, &bench.path("completion-log"))?;
        // Nothing is left in memory, so all reads come from the disk, and count.
        varved.stop()?;
        page_cache::empty()?;
        varved = bench.programs.serve(&data_dir)?;
        page_cache::settle();
        let before = varved.read_bytes()?;
        let name = format!("changed-{run}");
        seconds.push(varved.snapshot(&volume, &name)?.seconds);
        if run == 0 {
            read = varved.read_bytes()? - before;
            new = varved.of_snapshot(&name, "new_bytes")?;
            let blocks = requests
                .iter()
                .map(|request| request.offset / BLOCK_BYTES as u64);
            touched = bytes_of_chunks(&bench.raw_disk()?, &blocks.collect())?;
        }
    }
    varved.stop()?;
    remove(&data_dir)?;
    let what = "snapshot of 1 % of 8 GiB, changed at random";
    let bytes = |what: String, ours, wanted, note| Row {
        what,
        against: "the chunks that were touched".to_owned(),
        ours: Figure::Bytes(ours),
        theirs: Figure::Bytes(touched),
        wanted: Wanted::TimesAsMuch(wanted),
        note,
    };
    Ok(vec![
        Row {
            what: what.to_owned(),
            against: "the volume's first snapshot, of all 8 GiB".to_owned(),
            ours: Figure::Seconds(Samples::from_runs(seconds)),
            theirs: Figure::Seconds(Samples::from_runs(vec![whole_seconds])),
            wanted: Wanted::Nothing,
            note: "20971 single blocks of a volume full of data that does not compress; the page \
                   cache is emptied before, except for the journal, which varved reads when it \
                   starts.",
        },
        bytes(
            format!("{what}: read"),
            read,
            3.0,
            "bytes that varved read from the disk in the first run, against the plain bytes of all \
             chunks with a changed block.",
        ),
        bytes(format!("{what}: new chunks"), new, 1.0, "plain bytes."),
    ])
}

/// Plain bytes of those chunks of a disk that contain one of these blocks.
fn bytes_of_chunks(disk: &Path, blocks: &BTreeSet<u64>) -> Result<u64, Failure> {
    const SEGMENT_BLOCKS: u64 = (SEGMENT_BYTES / BLOCK_BYTES) as u64;
    let reading = || format!("read {}", disk.display());
    let file = File::open(disk).during(reading)?;
    let mut segment = vec![0; SEGMENT_BYTES];
    let mut cuts = Vec::new();
    let mut touched = 0;
    for (number, offset) in (0..RAW_DISK_BYTES).step_by(SEGMENT_BYTES).enumerate() {
        file.read_exact_at(&mut segment, offset).during(reading)?;
        cuts.clear();
        cut_segment(&segment, &mut cuts);
        for cut in &cuts {
            let bytes = cut.byte_range();
            let block = |byte: usize| number as u64 * SEGMENT_BLOCKS + (byte / BLOCK_BYTES) as u64;
            if blocks
                .range(block(bytes.start)..block(bytes.end))
                .next()
                .is_some()
            {
                touched += bytes.len() as u64;
            }
        }
    }
    Ok(touched)
}

pub(crate) fn clone(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.fresh_directory("clone")?;
    let varved = bench.programs.serve(&data_dir)?;
    for gibibytes in [8, 64, 1024] {
        let bytes = gibibytes * GIB;
        let name = format!("{gibibytes}");
        let volume = varved.make_volume(&name, Content::Zeros { bytes })?;
        fio::run(&volume.uri(), &random_writes(bytes, Until::Bytes(GIB / 4)))?;
        varved.snapshot(&volume, &name)?;
    }
    let one = |gibibytes: u64, run: u32| {
        let content = format!("{gibibytes}");
        let name = format!("clone-{gibibytes}-{run}");
        let of = Content::Snapshot(&content);
        Ok(varved.create_volume(&name, of)?.seconds)
    };
    let [small, large, huge, nothing] = in_turns(
        "clone",
        bench.runs.max(10),
        [
            &mut |run| one(8, run),
            &mut |run| one(64, run),
            &mut |run| one(1024, run),
            &mut |_| Ok(varved.ctl(&["volume", "show", "8"])?.seconds),
        ],
    )?;
    varved.stop()?;
    remove(&data_dir)?;
    let row = |what: &str, ours: &Samples, note| Row {
        what: what.to_owned(),
        against: "its limit".to_owned(),
        ours: Figure::Seconds(ours.clone()),
        theirs: Figure::seconds(CLONE_LIMIT_SECONDS),
        wanted: Wanted::TimesAsMuch(1.0),
        note,
    };
    Ok(vec![
        row(
            "clone of 8 GiB",
            &small,
            "a volume is made from a snapshot by `snapctl volume create --from`, with the start of \
             snapctl and its connection: at least 10 runs.",
        ),
        row("clone of 64 GiB", &large, ""),
        row("clone of 1 TiB", &huge, ""),
        Row {
            what: "clone of 8 GiB".to_owned(),
            against: "snapctl volume show".to_owned(),
            ours: Figure::Seconds(small),
            theirs: Figure::Seconds(nothing),
            wanted: Wanted::Nothing,
            note: "which changes nothing: the time of snapctl and of the way to the daemon alone.",
        },
    ])
}

/// Size of the range that is read again and again: less than varved keeps decoded in memory.
const DEPTH_RANGE: Range<u64> = GIB..GIB + (64 << 20);
const DEPTH_BLOCKS: u64 = (DEPTH_RANGE.end - DEPTH_RANGE.start) / 4096;
const DEPTH_CHANGES: u32 = 8;
/// Prime to the number of blocks.
const DEPTH_STEP_BLOCKS: u64 = 6151;
const DEPTH_READS: Load = Load {
    does: Does::Read,
    pattern: Pattern::RANDOM,
    block_bytes: 4096,
    depth: 1,
    range: DEPTH_RANGE,
    until: Until::Bytes(64 << 20),
};

/// A volume that was changed a little and snapshotted, this many times.
fn layered(varved: &Varved, snapshots: u32) -> Result<Volume, Failure> {
    eprintln!("{snapshots} snapshots in a row are taken");
    let name = format!("after-{snapshots}");
    let bytes = 2 * GIB;
    let volume = varved.make_volume(&name, Content::Zeros { bytes })?;
    let fill = Load {
        does: Does::Write,
        pattern: Pattern::Sequential,
        block_bytes: 1 << 20,
        depth: 8,
        ..DEPTH_READS
    };
    fio::run(&volume.uri(), &fill)?;
    let mut place = 0;
    for number in 0..snapshots {
        let changes = (0..DEPTH_CHANGES).flat_map(|_| {
            // Far apart; over time every block is hit.
            place = (place + DEPTH_STEP_BLOCKS) % DEPTH_BLOCKS;
            let offset = DEPTH_RANGE.start + place * 4096;
            [
                "-c".to_owned(),
                format!("write -P {} {offset} 4k", number % 255 + 1),
            ]
        });
        let changes: Vec<_> = changes.collect();
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw"]).args(changes).arg(volume.uri());
        process::run(&mut command)?;
        varved.snapshot(&volume, &format!("{name}/{number}"))?;
    }
    Ok(volume)
}

pub(crate) fn depth(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.fresh_directory("depth")?;
    let varved = bench.programs.serve(&data_dir)?;
    let [one, hundred, thousand] = [1, 100, 1000].map(|snapshots| layered(&varved, snapshots));
    let (one, hundred, thousand) = (one?, hundred?, thousand?);
    let read = |volume: &Volume| {
        fio::run(&volume.uri(), &DEPTH_READS)?;
        Ok(fio::run(&volume.uri(), &DEPTH_READS)?.median_seconds)
    };
    let [one, hundred, thousand] = in_turns(
        "reads through snapshots",
        bench.runs,
        [&mut |_| read(&one), &mut |_| read(&hundred), &mut |_| {
            read(&thousand)
        }],
    )?;
    varved.stop()?;
    remove(&data_dir)?;
    let row = |what: &str, ours, note| Row {
        what: format!("random read 4 KiB, depth 1, after {what} snapshots"),
        against: "after 1 snapshot".to_owned(),
        ours: Figure::Seconds(ours),
        theirs: Figure::Seconds(one.clone()),
        wanted: Wanted::TimesAsMuch(1.1),
        note,
    };
    Ok(vec![
        row(
            "100",
            hundred,
            "16384 reads of 64 MiB that were fully written, and in which 8 blocks far apart \
             changed before each snapshot; read once before, so that they come from memory. The \
             median of a run's reads.",
        ),
        row("1000", thousand, ""),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn percentiles_are_of_a_stretch_of_time() {
        let requests: Vec<_> = (0..1000)
            .map(|number| Request {
                at: f64::from(number),
                seconds: f64::from(number % 100),
                offset: 0,
            })
            .collect();
        let took = took(&requests, 100.0..300.0).unwrap();
        assert_eq!((took.p99, took.longest), (99.0, 99.0));
        let early = super::took(&requests, 0.0..50.0).unwrap();
        assert_eq!((early.p99, early.longest), (49.0, 49.0));
        assert!(super::took(&requests, 2000.0..3000.0).is_err());
    }
}
