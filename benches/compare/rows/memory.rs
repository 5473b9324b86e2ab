//! The peak memory of client and daemon, on a volume much larger than any memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use varve_benches::images::read_data;

use crate::bench::{Bench, image, remove};
use crate::failure::{Failure, While};
use crate::fio::{self, Does, Load, Pattern, Until};
use crate::table::{Figure, Row, Wanted};
use crate::varve::{Content, Volume};

const VOLUME_BYTES: u64 = 1 << 40;
const CLIENT_LIMIT_BYTES: u64 = 256 << 20;
const DAEMON_LIMIT_BYTES: u64 = 512 << 20;
/// Images at equal distances on the volume.
const NAMES: [&str; 4] = ["base", "changed", "web", "database"];

pub(crate) fn peaks(bench: &Bench) -> Result<Vec<Row>, Failure> {
    eprintln!("memory: import and export of a large volume");
    let volume = bench.path("large.raw");
    make_volume(&volume)?;
    let data_dir = bench.fresh_directory("memory")?;

    let varved = bench.programs.serve(&data_dir)?;
    let import = varved.import(&volume, "large")?.peak_bytes;
    let daemon_import = varved.peak_bytes()?;
    varved.stop()?;

    let exported = bench.path("large-exported.raw");
    let varved = bench.programs.serve(&data_dir)?;
    let export = varved.export("large", &exported)?.peak_bytes;
    let daemon_export = varved.peak_bytes()?;
    varved.stop()?;

    for path in [&volume, &exported, &data_dir] {
        remove(path)?;
    }
    let row = |what: &str, peak, limit, note| Row {
        what: what.to_owned(),
        against: "its limit".to_owned(),
        ours: Figure::Bytes(peak),
        theirs: Figure::Bytes(limit),
        wanted: Wanted::TimesAsMuch(1.0),
        note,
    };
    Ok(vec![
        row(
            "memory of snapctl import",
            import,
            CLIENT_LIMIT_BYTES,
            "the largest resident set while a sparse volume of 1 TiB, with the data of four \
             images, is imported or exported.",
        ),
        row("memory of snapctl export", export, CLIENT_LIMIT_BYTES, ""),
        row(
            "memory of varved at import",
            daemon_import,
            DAEMON_LIMIT_BYTES,
            "",
        ),
        row(
            "memory of varved at export",
            daemon_export,
            DAEMON_LIMIT_BYTES,
            "",
        ),
    ])
}

/// With random writes to several volumes at a time.
pub(crate) fn of_volumes(bench: &Bench) -> Result<Vec<Row>, Failure> {
    const VOLUMES: u64 = 8;
    const SIZE_BYTES: u64 = 8 << 30;
    const WRITTEN_BYTES: u64 = 1 << 30;
    /// The bound that a test of the store holds for single blocks at this density.
    const MAP_BYTES_OF_TWO_BLOCKS: u64 = 17;
    eprintln!("memory: {VOLUMES} volumes are written to");
    let data_dir = bench.fresh_directory("memory")?;
    let varved = bench.programs.serve(&data_dir)?;
    let bytes = SIZE_BYTES;
    let volumes = (0..VOLUMES)
        .map(|number| varved.make_volume(&format!("disk-{number}"), Content::Zeros { bytes }))
        .collect::<Result<Vec<_>, _>>()?;
    let uris: Vec<_> = volumes.iter().map(Volume::uri).collect();
    let load = Load {
        does: Does::Write,
        pattern: Pattern::RANDOM,
        block_bytes: 4096,
        depth: 32,
        range: 0..SIZE_BYTES,
        until: Until::Bytes(WRITTEN_BYTES),
    };
    let uris: Vec<_> = uris.iter().map(String::as_str).collect();
    thread::scope(|scope| {
        let writer = scope.spawn(|| fio::run_on_all(&uris, &load));
        for (number, volume) in volumes.iter().enumerate() {
            varved.snapshot(volume, &format!("snapshot-{number}"))?;
        }
        writer
            .join()
            .map_err(|_| Failure::new("the writers ended early"))?
    })?;
    let peak = varved.peak_bytes()?;
    varved.stop()?;
    remove(&data_dir)?;
    let blocks = VOLUMES * WRITTEN_BYTES / 4096;
    Ok(vec![Row {
        what: "memory of varved with 8 volumes written to".to_owned(),
        against: "its limit and the maps".to_owned(),
        ours: Figure::Bytes(peak),
        theirs: Figure::Bytes(DAEMON_LIMIT_BYTES + blocks / 2 * MAP_BYTES_OF_TWO_BLOCKS),
        wanted: Wanted::TimesAsMuch(1.0),
        note: "the largest resident set while 8 volumes of 8 GiB are written to at a time, each at \
               depth 32 with 1 GiB of random single blocks, and one snapshot after another is \
               taken; the limit is 512 MiB, and 8.5 bytes for each block in a journal.",
    }])
}

fn make_volume(path: &Path) -> Result<(), Failure> {
    let volume = File::create_new(path).during(|| format!("create {}", path.display()))?;
    volume
        .set_len(VOLUME_BYTES)
        .during(|| format!("set the length of {}", path.display()))?;
    for (place, name) in (0..).zip(NAMES) {
        let start = place * (VOLUME_BYTES / NAMES.len() as u64);
        let source = image(name)?;
        File::open(&source)
            .and_then(|file| {
                read_data(&file, |offset, piece| {
                    volume.write_all_at(piece, start + offset)
                })
            })
            .during(|| format!("copy {} to {}", source.display(), path.display()))?;
    }
    Ok(())
}
