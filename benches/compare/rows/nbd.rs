//! Reading an image over NBD.

use std::fs::File;
use std::ops::Range;

use varve_benches::images::{data_ranges, densest_stretch};

use crate::bench::{Bench, remove};
use crate::failure::{Failure, While};
use crate::fio::{self, Does, Load, Pattern, Until};
use crate::page_cache;
use crate::peers::{NbdServer, qemu_img_compress};
use crate::process::Over;
use crate::samples::in_turns;
use crate::table::{Figure, Row, Wanted};

/// Size of the range that a warm server reads again and again. Less than varved keeps decoded in
/// memory.
pub(crate) const WARM_BYTES: u64 = 96 << 20;
/// Enough to take seconds.
const SEQUENTIAL_BYTES: u64 = 4 << 30;
/// Size of random reads of a cold image: 16384 blocks, far apart.
const RANDOM_BYTES: u64 = 64 << 20;

pub(crate) fn sequential(bench: &Bench, over: Over) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.data_dir_with_base("nbd")?;
    let varved = bench.programs.serve(&data_dir)?;
    let nbdkit = NbdServer::nbdkit_read_only(over, &bench.path(""), &bench.base)?;
    let stretch = stretch_of_data(bench)?;

    let measure = |what: &str, range: Range<u64>| {
        let load = Load {
            does: Does::Read,
            pattern: Pattern::Sequential,
            block_bytes: 1 << 20,
            depth: 8,
            range,
            until: Until::Bytes(SEQUENTIAL_BYTES),
        };
        let run = |uri: &str| {
            fio::run(
                uri,
                &Load {
                    until: Until::Bytes(load.range.end - load.range.start),
                    ..load.clone()
                },
            )?;
            Ok(fio::run(uri, &load)?.bytes_per_second)
        };
        let figures = in_turns(
            what,
            bench.runs,
            [&mut |_| run(&varved.uri_over(over, "base")), &mut |_| {
                run(&nbdkit.uri())
            }],
        )?;
        Ok::<_, Failure>(figures.map(Figure::BytesPerSecond))
    };
    let warm = stretch.start..stretch.end.min(stretch.start + WARM_BYTES);
    let [varve_warm, nbdkit_warm] = measure("NBD read, warm", warm)?;
    let [varve_all, nbdkit_all] = measure("NBD read of all data", stretch)?;
    varved.stop()?;
    nbdkit.stop()?;
    remove(&data_dir)?;
    Ok(vec![
        Row {
            what: format!("NBD read 1 MiB, depth 8, warm{}", over.suffix()),
            against: "nbdkit file".to_owned(),
            ours: varve_warm,
            theirs: nbdkit_warm,
            wanted: Wanted::TimesAsFast(1.0),
            note: "96 MiB of data, read once before and then repeatedly; nbdkit has the raw file \
                   in the page cache.",
        },
        Row {
            what: format!("NBD read 1 MiB, depth 8, all data{}", over.suffix()),
            against: "nbdkit file".to_owned(),
            ours: varve_all,
            theirs: nbdkit_all,
            wanted: Wanted::Nothing,
            note: "all data of the image, which is more than varved keeps decoded: it reads, \
                   decodes and verifies each time.",
        },
    ])
}

pub(crate) fn random(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.data_dir_with_base("nbd")?;
    let qcow2 = bench.path("nbd.qcow2");
    qemu_img_compress(&bench.base, &qcow2)?;
    let load = Load {
        does: Does::Read,
        pattern: Pattern::RANDOM,
        block_bytes: 4096,
        depth: 32,
        range: stretch_of_data(bench)?,
        until: Until::Bytes(RANDOM_BYTES),
    };

    let mut varve = |_| {
        let varved = bench.programs.serve(&data_dir)?;
        page_cache::empty()?;
        let rate = fio::run(&varved.uri("base"), &load)?.per_second;
        varved.stop()?;
        Ok(rate)
    };
    let mut qemu_nbd = |_| {
        let server = NbdServer::qemu_nbd_qcow2(&bench.path(""), &qcow2)?;
        page_cache::empty()?;
        let rate = fio::run(&server.uri(), &load)?.per_second;
        server.stop()?;
        Ok(rate)
    };
    let [varve, qemu_nbd] = in_turns(
        "NBD random read, cold",
        bench.runs,
        [&mut varve, &mut qemu_nbd],
    )?
    .map(Figure::PerSecond);
    remove(&data_dir)?;
    remove(&qcow2)?;
    Ok(vec![Row {
        what: "NBD random read 4 KiB, depth 32, cache cold".to_owned(),
        against: "qemu-nbd on the zstd qcow2".to_owned(),
        ours: varve,
        theirs: qemu_nbd,
        wanted: Wanted::TimesAsFast(3.0),
        note: "16384 blocks of the image's data, each once; both servers are restarted and the \
               page cache is emptied for each run.",
    }])
}

/// Data bytes of the image, without its holes.
pub(crate) fn data_bytes(bench: &Bench) -> Result<u64, Failure> {
    let ranges = File::open(&bench.base).and_then(|file| data_ranges(&file));
    let ranges = ranges.during(|| format!("look for data in {}", bench.base.display()))?;
    Ok(ranges.iter().map(|range| range.end - range.start).sum())
}

pub(crate) fn stretch_of_data(bench: &Bench) -> Result<Range<u64>, Failure> {
    let ranges = File::open(&bench.base).and_then(|file| data_ranges(&file));
    let stretch =
        densest_stretch(&ranges.during(|| format!("look for data in {}", bench.base.display()))?);
    if stretch.end - stretch.start < WARM_BYTES {
        return Err(Failure::new(format!(
            "{} has too little data in one place",
            bench.base.display()
        )));
    }
    Ok(stretch)
}
