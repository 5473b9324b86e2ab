//! The cost of serving NBD: whole snapshots, single requests, many connections, and processor time.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use varve_benches::images::data_ranges;

use crate::bench::{Bench, RAW_DISK_BYTES, remove};
use crate::failure::{Failure, While};
use crate::fio::{self, Does, Load, Pattern, Until};
use crate::page_cache;
use crate::peers::NbdServer;
use crate::process::{self, Over};
use crate::rows::nbd::{WARM_BYTES, data_bytes, stretch_of_data};
use crate::samples::{Samples, figures_in_turns};
use crate::table::{Figure, Row, Wanted};
use crate::varve::Content;

const GIB: u64 = 1 << 30;
/// Total size of the single reads.
const LATENCY_BYTES: u64 = 128 << 20;
/// The range of the many connections, on a volume of [`RAW_DISK_BYTES`].
const CROWD_BYTES: u64 = 1 << 30;
const CROWD_JOBS: u32 = 4;
const CROWD_SECONDS: u32 = 5;

/// Reads a whole export and discards it. Returns the time that it took.
fn nbdcopy(uri: &str) -> Result<f64, Failure> {
    Ok(process::run(Command::new("nbdcopy").args([uri, "null:"]))?.seconds)
}

/// The elapsed time, and the processor time of a server meanwhile.
fn with_cpu(
    cpu: impl Fn() -> Result<f64, Failure>,
    run: impl FnOnce() -> Result<f64, Failure>,
) -> Result<[f64; 2], Failure> {
    let before = cpu()?;
    let figure = run()?;
    Ok([figure, cpu()? - before])
}

pub(crate) fn whole_snapshot(bench: &Bench, over: Over) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.data_dir_with_base("nbd-copy")?;
    let varved = bench.programs.serve(&data_dir)?;
    let nbdkit = NbdServer::nbdkit_read_only(over, &bench.path(""), &bench.base)?;
    let (ours, theirs) = (varved.uri_over(over, "base"), nbdkit.uri());
    page_cache::warm(&bench.base)?;
    for uri in [&ours, &theirs] {
        nbdcopy(uri)?;
    }
    let [[varve, varve_cpu], [nbdkit_s, nbdkit_cpu]] = figures_in_turns(
        "nbdcopy of a whole snapshot",
        bench.runs,
        [
            &mut |_| with_cpu(|| varved.cpu_seconds(), || nbdcopy(&ours)),
            &mut |_| with_cpu(|| nbdkit.cpu_seconds(), || nbdcopy(&theirs)),
        ],
    )?;
    varved.stop()?;
    nbdkit.stop()?;
    remove(&data_dir)?;
    let gib = data_bytes(bench)? as f64 / GIB as f64;
    let per_gib = |samples: Samples| Figure::CpuPerGib(samples.map(|seconds| seconds / gib));
    let what = format!("nbdcopy of a whole snapshot, warm{}", over.suffix());
    Ok(vec![
        Row {
            what: what.clone(),
            against: "nbdkit file".to_owned(),
            ours: Figure::Seconds(varve),
            theirs: Figure::Seconds(nbdkit_s),
            wanted: Wanted::TimesAsFast(1.0),
            note: "4 connections with 64 requests of 256 KiB each; the client discards the data. \
                   Both servers have read it before: varved keeps it decoded if its cache, a \
                   sixteenth of the memory, is large enough.",
        },
        Row {
            what: format!("{what}: processor time"),
            against: "nbdkit file".to_owned(),
            ours: per_gib(varve_cpu),
            theirs: per_gib(nbdkit_cpu),
            wanted: Wanted::Nothing,
            note: "of the server alone, for each GiB of data.",
        },
    ])
}

pub(crate) fn latency(bench: &Bench, over: Over) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.data_dir_with_base("nbd-latency")?;
    let varved = bench.programs.serve(&data_dir)?;
    let nbdkit = NbdServer::nbdkit_read_only(over, &bench.path(""), &bench.base)?;
    let stretch = stretch_of_data(bench)?;
    let load = Load {
        does: Does::Read,
        pattern: Pattern::RANDOM,
        block_bytes: 4096,
        depth: 1,
        range: stretch.start..stretch.end.min(stretch.start + WARM_BYTES),
        until: Until::Bytes(LATENCY_BYTES),
    };
    let warm = Load {
        pattern: Pattern::Sequential,
        block_bytes: 1 << 20,
        depth: 8,
        until: Until::Bytes(load.range.end - load.range.start),
        ..load.clone()
    };
    let (ours, theirs) = (varved.uri_over(over, "base"), nbdkit.uri());
    let run = |uri: &str, cpu: &dyn Fn() -> Result<f64, Failure>| {
        fio::run(uri, &warm)?;
        let before = cpu()?;
        let rate = fio::run(uri, &load)?;
        Ok([rate.median_seconds, rate.p99_seconds, cpu()? - before])
    };
    let [[p50, p99, cpu], [their_p50, their_p99, their_cpu]] = figures_in_turns(
        "NBD read 4 KiB, depth 1",
        bench.runs,
        [&mut |_| run(&ours, &|| varved.cpu_seconds()), &mut |_| {
            run(&theirs, &|| nbdkit.cpu_seconds())
        }],
    )?;
    varved.stop()?;
    nbdkit.stop()?;
    remove(&data_dir)?;
    let gib = LATENCY_BYTES as f64 / GIB as f64;
    let row = |what: &str, ours, theirs, wanted, note| Row {
        what: format!("NBD read 4 KiB, depth 1, warm{}: {what}", over.suffix()),
        against: "nbdkit file".to_owned(),
        ours,
        theirs,
        wanted,
        note,
    };
    let note = "32768 reads of 96 MiB of data, in random order; all of it was read before.";
    Ok(vec![
        row(
            "median",
            Figure::Seconds(p50),
            Figure::Seconds(their_p50),
            Wanted::TimesAsMuch(1.0),
            note,
        ),
        row(
            "p99",
            Figure::Seconds(p99),
            Figure::Seconds(their_p99),
            Wanted::TimesAsMuch(1.0),
            "",
        ),
        row(
            "processor time",
            Figure::CpuPerGib(cpu.map(|seconds| seconds / gib)),
            Figure::CpuPerGib(their_cpu.map(|seconds| seconds / gib)),
            Wanted::Nothing,
            "",
        ),
    ])
}

pub(crate) fn crowd(bench: &Bench, over: Over) -> Result<Vec<Row>, Failure> {
    let disk = bench.raw_disk()?;
    let varved = bench.programs.serve(&bench.fresh_directory("nbd-crowd")?)?;
    let volume = varved.make_volume(
        "disk",
        Content::Zeros {
            bytes: RAW_DISK_BYTES,
        },
    )?;
    let range = 0..CROWD_BYTES;
    let fill = Load {
        does: Does::Write,
        pattern: Pattern::Sequential,
        block_bytes: 1 << 20,
        depth: 8,
        range: range.clone(),
        until: Until::Bytes(CROWD_BYTES),
    };
    fio::run(&volume.uri(), &fill)?;
    varved.snapshot(&volume, "filled")?;
    let peer = NbdServer::qemu_nbd_raw(over, &bench.path(""), &disk)?;
    let (ours, theirs) = (volume.uri_over(over), peer.uri());
    let run = |uri: &str, cpu: &dyn Fn() -> Result<f64, Failure>| {
        page_cache::settle();
        let before = cpu()?;
        let per_second = fio::run_crowd(uri, CROWD_JOBS, &range, CROWD_SECONDS)?;
        let gib = per_second * f64::from(CROWD_SECONDS) * 4096.0 / GIB as f64;
        Ok([per_second, (cpu()? - before) / gib])
    };
    let [[varve, cpu], [qemu_nbd, their_cpu]] = figures_in_turns(
        "NBD, 8 connections",
        bench.runs,
        [&mut |_| run(&ours, &|| varved.cpu_seconds()), &mut |_| {
            run(&theirs, &|| peer.cpu_seconds())
        }],
    )?;
    peer.stop()?;
    varved.stop()?;
    remove(&bench.path("nbd-crowd"))?;
    let what = format!("NBD, 8 connections{}", over.suffix());
    let against = "qemu-nbd --shared=8, raw file, cache none, io_uring";
    Ok(vec![
        Row {
            what: what.clone(),
            against: against.to_owned(),
            ours: Figure::PerSecond(varve),
            theirs: Figure::PerSecond(qemu_nbd),
            wanted: Wanted::TimesAsFast(1.5),
            note: "4 jobs of fio with 2 connections each, for 5 s: random requests of 4 KiB at \
                   depth 16, 70 % of them reads, in 1 GiB of a volume that was filled and \
                   snapshotted, and of a raw file that was fully written.",
        },
        Row {
            what: format!("{what}: processor time"),
            against: against.to_owned(),
            ours: Figure::CpuPerGib(cpu),
            theirs: Figure::CpuPerGib(their_cpu),
            wanted: Wanted::Nothing,
            note: "",
        },
    ])
}

/// A snapshot read from front to back with nothing in memory, beside a decompressor with all cores.
pub(crate) fn cold_sequential(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.data_dir_with_base("nbd-cold")?;
    let (data, zstd) = (bench.path("data.raw"), bench.path("data.zst"));
    write_data(bench, &data)?;
    // pzstd's own format, which all cores decode at a time.
    let mut compress = Command::new("pzstd");
    process::run(
        compress
            .args(["-q", "-f", "-1", "-o"])
            .arg(&zstd)
            .arg(&data),
    )?;
    remove(&data)?;
    let run = |copy: &dyn Fn(&str) -> Result<f64, Failure>| {
        let varved = bench.programs.serve(&data_dir)?;
        page_cache::empty()?;
        let seconds = copy(&varved.uri("base"))?;
        varved.stop()?;
        Ok([seconds])
    };
    let one = |uri: &str| {
        let mut command = Command::new("nbdcopy");
        command.args(["--connections=1", "--requests=1", uri, "null:"]);
        Ok(process::run(&mut command)?.seconds)
    };
    let [[usual], [alone], [decoded]] = figures_in_turns(
        "NBD, a cold snapshot from front to back",
        bench.runs,
        [&mut |_| run(&nbdcopy), &mut |_| run(&one), &mut |_| {
            page_cache::empty()?;
            let mut command = Command::new("pzstd");
            command
                .args(["-q", "-d", "-f", "-o", "/dev/null"])
                .arg(&zstd);
            Ok([process::run(&mut command)?.seconds])
        }],
    )?;
    remove(&data_dir)?;
    remove(&zstd)?;
    let row = |what: &str, ours, note| Row {
        what: format!("cold snapshot from front to back, {what}"),
        against: "pzstd -d with all cores".to_owned(),
        ours: Figure::Seconds(ours),
        theirs: Figure::Seconds(decoded.clone()),
        wanted: Wanted::TimesAsFast(1.0),
        note,
    };
    Ok(vec![
        row(
            "nbdcopy",
            usual,
            "the base image; pzstd: its data without holes, at level 1. The daemon is restarted \
             and the page cache is emptied before each run.",
        ),
        row(
            "nbdcopy, one request at a time",
            alone,
            "a single connection with a single request of 256 KiB under way, like a guest that \
             reads sequentially without readahead of its own.",
        ),
    ])
}

/// Writes the base image's data without its holes.
fn write_data(bench: &Bench, path: &Path) -> Result<(), Failure> {
    let copy = || {
        let (from, to) = (File::open(&bench.base)?, File::create(path)?);
        let mut buffer = vec![0; 1 << 20];
        for range in data_ranges(&from)? {
            let mut at = range.start;
            while at < range.end {
                let count = buffer
                    .len()
                    .min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
                from.read_exact_at(&mut buffer[..count], at)?;
                (&to).write_all(&buffer[..count])?;
                at += count as u64;
            }
        }
        to.sync_all()
    };
    copy().during(|| format!("write {}", path.display()))
}
