//! Space that comes back after deletions, and a guest beside that.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use varve_tests::random::Random;

use crate::bench::{Bench, remove, size_of};
use crate::failure::{Failure, While};
use crate::fio::{self, Does, Load, Mixed, Pattern, Until};
use crate::page_cache;
use crate::peers::{Borg, Restic};
use crate::process::{Finished, run};
use crate::samples::{Samples, figures_in_turns};
use crate::table::{Figure, Row, Wanted};
use crate::varve::{Content, Varved};

/// Disks that are kept each day, and for how many days. The first half of the days is deleted.
const DISKS: u64 = 4;
const DAYS: u64 = 4;
const DISK_BYTES: u64 = 512 << 20;
/// Extents that change as a whole from day to day, and the part of them that does: one in this
/// many. Larger than the chunks of all contenders, so that all have about the same to give back.
const EXTENT_BYTES: usize = 8 << 20;
const CHANGED_ONE_IN: u64 = 3;
/// Dead percent of a pack that is worth a rewrite: borg's own threshold for its segments.
const DEAD_PERCENT: &str = "10";

/// A disk with data that does not compress, which changes each day.
struct Disk {
    path: PathBuf,
    random: Random,
}

impl Disk {
    fn make(bench: &Bench, number: u64) -> Result<Self, Failure> {
        let mut disk = Self {
            path: bench.path(&format!("disk-{number}.raw")),
            random: Random::seeded(number),
        };
        File::create(&disk.path).during(|| format!("create {}", disk.path.display()))?;
        disk.change(1)?;
        Ok(disk)
    }

    /// Overwrites one extent in [`CHANGED_ONE_IN`].
    fn change(&mut self, one_in: u64) -> Result<(), Failure> {
        let path = &self.path;
        let writing = || format!("write {}", path.display());
        let file = File::options().write(true).open(path).during(writing)?;
        let mut extent = vec![0; EXTENT_BYTES];
        for offset in (0..DISK_BYTES).step_by(extent.len()) {
            if self.random.one_in(one_in) {
                self.random.fill(&mut extent);
                file.write_all_at(&extent, offset).during(writing)?;
            }
        }
        Ok(())
    }
}

fn name_of(disk: u64, day: u64) -> String {
    format!("disk-{disk}-day-{day}")
}

/// Makes the disks and keeps each of them on each day.
fn keep_all(
    bench: &Bench,
    mut keep: impl FnMut(&Path, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let disks = (0..DISKS).map(|number| Disk::make(bench, number));
    let mut disks = disks.collect::<Result<Vec<_>, _>>()?;
    for day in 0..DAYS {
        eprintln!("disks of day {} of {DAYS}", day + 1);
        for (number, disk) in (0..).zip(&mut disks) {
            if day > 0 {
                disk.change(CHANGED_ONE_IN)?;
            }
            keep(&disk.path, &name_of(number, day))?;
        }
    }
    disks.iter().try_for_each(|disk| remove(&disk.path))
}

/// A directory in the same state before each run.
struct Prepared {
    directory: PathBuf,
    kept: PathBuf,
}

impl Prepared {
    fn new(directory: PathBuf) -> Result<Self, Failure> {
        let kept = directory.with_extension("kept");
        fs::rename(&directory, &kept).during(|| format!("rename {}", directory.display()))?;
        Ok(Self { directory, kept })
    }

    /// Makes the directory anew, and empties the page cache.
    fn again(&self) -> Result<&Path, Failure> {
        remove(&self.directory)?;
        run(Command::new("cp")
            .args(["-a", "--reflink=auto"])
            .args([&self.kept, &self.directory]))?;
        page_cache::empty()?;
        Ok(&self.directory)
    }

    fn remove(self) -> Result<(), Failure> {
        remove(&self.directory)?;
        remove(&self.kept)
    }
}

/// Deletes the first half of the days.
fn delete_half(varved: &Varved) -> Result<Finished, Failure> {
    let days = 0..DAYS / 2;
    let names = days.flat_map(|day| (0..DISKS).map(move |disk| name_of(disk, day)));
    let names: Vec<_> = names.collect();
    let names = names.iter().map(String::as_str);
    let arguments: Vec<_> = ["snapshot", "delete"].into_iter().chain(names).collect();
    varved.ctl(&arguments)
}

/// Figures of a run: seconds, the largest resident set, and the bytes that are left.
#[expect(clippy::cast_precision_loss, reason = "bytes on their way to a ratio")]
fn figures(parts: &[Finished], peak_bytes: u64, left: &Path) -> Result<[f64; 3], Failure> {
    let seconds = parts.iter().map(|part| part.seconds).sum();
    let peaks = parts.iter().map(|part| part.peak_bytes);
    let peak_bytes = peaks.fold(peak_bytes, u64::max);
    let (_, left_bytes) = size_of(left)?;
    Ok([seconds, peak_bytes as f64, left_bytes as f64])
}

pub(crate) fn half_deleted(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let [varve_dir, restic_dir, borg_dir] =
        ["collection-varve", "collection-restic", "collection-borg"]
            .map(|name| bench.fresh_directory(name));
    let (varve_dir, restic_dir, borg_dir) = (varve_dir?, restic_dir?, borg_dir?);
    let (restic, borg) = (Restic::create(&restic_dir)?, Borg::create(&borg_dir)?);
    let varved = bench.programs.serve(&varve_dir)?;
    keep_all(bench, |disk, name| {
        varved.import(disk, name)?;
        restic.backup(disk)?;
        borg.backup(disk, name).map(drop)
    })?;
    varved.stop()?;
    let varve_dir = Prepared::new(varve_dir)?;
    let restic_dir = Prepared::new(restic_dir)?;
    let borg_dir = Prepared::new(borg_dir)?;

    let mut varve = |_| {
        let directory = varve_dir.again()?;
        let varved = bench.programs.serve(directory)?;
        let collect = ["gc", "run", "--rate", "none", "--dead", DEAD_PERCENT];
        let parts = [delete_half(&varved)?, varved.ctl(&collect)?];
        let peak_bytes = varved.peak_bytes()?;
        let figures = figures(&parts, peak_bytes, &directory.join("packs"));
        varved.stop()?;
        figures
    };
    let mut forget = |_| {
        restic_dir.again()?;
        let parts = [restic.forget(u32::try_from(DAYS / 2).unwrap_or(u32::MAX))?];
        figures(&parts, 0, restic.repository())
    };
    let mut compact = |_| {
        borg_dir.again()?;
        let parts = [borg.delete("disk-*-day-[01]")?, borg.compact()?];
        figures(&parts, 0, &borg.repository())
    };
    let [varve, restic_figures, borg_figures] = figures_in_turns(
        "deletion of half",
        bench.runs,
        [&mut varve, &mut forget, &mut compact],
    )?;
    for directory in [varve_dir, restic_dir, borg_dir] {
        directory.remove()?;
    }
    let mut rows = Vec::new();
    for (against, note, theirs) in [
        (
            "restic forget --prune",
            "four disks of 512 MiB, of data that does not compress, are kept on four days; a third \
             of each changes from day to day, in extents of 8 MiB. The first two days \
             are deleted, with an empty page cache. Varve: snapctl snapshot delete and gc run \
             --rate none, for packs that are dead to a tenth. restic: with its own limit, 5 % may \
             be left unused.",
            restic_figures,
        ),
        (
            "borg delete and compact",
            "with borg's own threshold of 10 %, without encryption.",
            borg_figures,
        ),
    ] {
        let [seconds, memory, left] = theirs;
        let [our_seconds, our_memory, our_left] = &varve;
        rows.push(Row {
            what: "deletion of half, until the space is back".to_owned(),
            against: against.to_owned(),
            ours: Figure::Seconds(our_seconds.clone()),
            theirs: Figure::Seconds(seconds),
            wanted: Wanted::Nothing,
            note,
        });
        for (what, ours, theirs, note) in [
            (
                "memory of varved",
                our_memory,
                memory,
                "the largest resident set; of the peers, that of their programs.",
            ),
            (
                "bytes left",
                our_left,
                left,
                "lengths of the files of packs, or of the repository.",
            ),
        ] {
            rows.push(Row {
                what: format!("deletion of half: {what}"),
                against: against.to_owned(),
                ours: bytes(ours),
                theirs: bytes(&theirs),
                wanted: Wanted::Nothing,
                note,
            });
        }
    }
    Ok(rows)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of bytes"
)]
fn bytes(samples: &Samples) -> Figure {
    Figure::Bytes(samples.median() as u64)
}

/// The load of the guest, after the range was read once.
const GUEST_SECONDS: u32 = 12;
const GUEST_DEPTH: u32 = 8;
const GUEST_RANGE: Range<u64> = 0..DISK_BYTES;
const GUEST_READS: Load = Load {
    does: Does::Read,
    pattern: Pattern::Sequential,
    block_bytes: 1 << 20,
    depth: 4,
    range: GUEST_RANGE,
    until: Until::Bytes(DISK_BYTES),
};

/// A guest on a volume that was made from a kept snapshot, while half of the others are collected
/// or not.
pub(crate) fn beside_a_guest(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.fresh_directory("collection-guest")?;
    let varved = bench.programs.serve(&data_dir)?;
    keep_all(bench, |disk, name| varved.import(disk, name).map(drop))?;
    varved.stop()?;
    let data_dir = Prepared::new(data_dir)?;
    let mut without = |_| {
        let varved = bench.programs.serve(data_dir.again()?)?;
        let mixed = as_a_guest(&varved, || Ok(()))?;
        varved.stop()?;
        Ok(mixed)
    };
    let mut with = |_| {
        let varved = bench.programs.serve(data_dir.again()?)?;
        let mixed = thread::scope(|scope| {
            let mut collection = None;
            let mixed = as_a_guest(&varved, || {
                delete_half(&varved)?;
                collection = Some(scope.spawn(|| varved.ctl(&["gc", "run"])));
                wait_until_it_sweeps(&varved)
            })?;
            if varved.json(&["gc", "status"])?["running"].is_null() {
                return Err(Failure::new("the collection ended before the load"));
            }
            varved.ctl(&["gc", "stop"])?;
            let collection = collection.map(|it| it.join());
            collection
                .and_then(Result::ok)
                .ok_or_else(|| Failure::new("the collection ended early"))??;
            Ok(mixed)
        })?;
        varved.stop()?;
        Ok(mixed)
    };
    let [with, without] = figures_in_turns(
        "guest beside a collection",
        bench.runs,
        [&mut with, &mut without],
    )?;
    data_dir.remove()?;
    let row = |what: &str, ours: &Samples, theirs: &Samples, note| Row {
        what: format!("guest while garbage is collected: p99 of random {what}"),
        against: "the same without a collection".to_owned(),
        ours: Figure::Seconds(ours.clone()),
        theirs: Figure::Seconds(theirs.clone()),
        wanted: Wanted::TimesAsMuch(1.2),
        note,
    };
    Ok(vec![
        row(
            "reads of 4 KiB",
            &with[0],
            &without[0],
            "requests of 4 KiB at depth 8, 70 % of them reads, on a volume of 512 MiB that was \
             made from a snapshot and read once, for 12 s. The disks and days are those of the \
             deletion of half; the collection has the default rate and rewrites packs all the \
             time.",
        ),
        row("writes of 4 KiB", &with[1], &without[1], ""),
        Row {
            what: "guest while garbage is collected: random requests of 4 KiB".to_owned(),
            against: "the same without a collection".to_owned(),
            ours: Figure::PerSecond(with[2].clone()),
            theirs: Figure::PerSecond(without[2].clone()),
            wanted: Wanted::Nothing,
            note: "",
        },
    ])
}

/// Latency of reads and of writes, and their rate, after `done`.
fn as_a_guest(
    varved: &Varved,
    before: impl FnOnce() -> Result<(), Failure>,
) -> Result<[f64; 3], Failure> {
    let volume = varved.make_volume("guest", Content::Snapshot(&name_of(0, DAYS - 1)))?;
    fio::run(&volume.uri(), &GUEST_READS)?;
    page_cache::settle();
    before()?;
    let Mixed {
        read_p99_seconds,
        write_p99_seconds,
        per_second,
    } = fio::run_mixed(&volume.uri(), &GUEST_RANGE, GUEST_DEPTH, GUEST_SECONDS)?;
    Ok([read_p99_seconds, write_p99_seconds, per_second])
}

/// Waits until packs are rewritten.
fn wait_until_it_sweeps(varved: &Varved) -> Result<(), Failure> {
    loop {
        let status = varved.json(&["gc", "status"])?;
        if status["running"]["phase"] == "sweeping" {
            return Ok(());
        }
        if !status["last"].is_null() {
            return Err(Failure::new("the collection found nothing to rewrite"));
        }
    }
}
