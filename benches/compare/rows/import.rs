//! Importing an image into the store, for the first time and again.

use crate::bench::{Bench, remove};
use crate::failure::Failure;
use crate::page_cache;
use crate::peers::{Restic, qemu_img_compress};
use crate::samples::in_turns;
use crate::table::{Figure, Row, Wanted};

/// Into an empty store, a new one for each run.
pub(crate) fn first(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut varve = |_| {
        let (varved, data_dir) = bench.serve_fresh("varve")?;
        let seconds = varved.import(&bench.base, "base")?.seconds;
        varved.stop()?;
        remove(&data_dir)?;
        Ok(seconds)
    };
    let mut restic = |_| {
        let directory = bench.fresh_directory("restic")?;
        let restic = Restic::create(&directory)?;
        page_cache::warm(&bench.base)?;
        page_cache::settle();
        let seconds = restic.backup(&bench.base)?.seconds;
        remove(&directory)?;
        Ok(seconds)
    };
    let mut qemu_img = |_| {
        let qcow2 = bench.path("first.qcow2");
        page_cache::warm(&bench.base)?;
        page_cache::settle();
        let seconds = qemu_img_compress(&bench.base, &qcow2)?.seconds;
        remove(&qcow2)?;
        Ok(seconds)
    };
    let [varve, restic, qemu_img] = in_turns(
        "first import",
        bench.runs,
        [&mut varve, &mut restic, &mut qemu_img],
    )?
    .map(Figure::Seconds);
    Ok(vec![
        Row {
            what: "first import".to_owned(),
            against: "restic backup".to_owned(),
            ours: varve.clone(),
            theirs: restic,
            wanted: Wanted::TimesAsFast(10.0),
            note: "repository version 2, compression auto, new for each run; both end with everything durable.",
        },
        Row {
            what: "first import".to_owned(),
            against: "qemu-img convert to zstd qcow2".to_owned(),
            ours: varve,
            theirs: qemu_img,
            wanted: Wanted::TimesAsFast(2.0),
            note: "-m 4 -W; qemu-img leaves it to the kernel when its file becomes durable, Varve does not.",
        },
    ])
}

/// The same image, unchanged, into a store that has it.
pub(crate) fn again(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let (varved, data_dir) = bench.serve_fresh("again")?;
    varved.import(&bench.base, "base")?;
    let directory = bench.fresh_directory("restic")?;
    let restic = Restic::create(&directory)?;
    restic.backup(&bench.base)?;

    let ready = || {
        page_cache::warm(&bench.base)?;
        page_cache::settle();
        Ok(())
    };
    let mut varve = |run| {
        ready()?;
        Ok(varved.import(&bench.base, &format!("again-{run}"))?.seconds)
    };
    let mut skips = |_| {
        ready()?;
        Ok(restic.backup(&bench.base)?.seconds)
    };
    let mut rereads = |_| {
        ready()?;
        Ok(restic.backup_rereading(&bench.base)?.seconds)
    };
    let [varve, skips, rereads] = in_turns(
        "import again",
        bench.runs,
        [&mut varve, &mut skips, &mut rereads],
    )?
    .map(Figure::Seconds);
    varved.stop()?;
    remove(&data_dir)?;
    remove(&directory)?;
    Ok(vec![
        Row {
            what: "import again, nothing changed".to_owned(),
            against: "restic backup again, reading the file".to_owned(),
            ours: varve.clone(),
            theirs: rereads,
            wanted: Wanted::TimesAsFast(25.0),
            note: "restic with --force: both read and hash the whole image.",
        },
        Row {
            what: "import again, nothing changed".to_owned(),
            against: "restic backup again, by time stamp".to_owned(),
            ours: varve,
            theirs: skips,
            wanted: Wanted::TimesAsFast(25.0),
            note: "restic sees by the file's time stamp that nothing changed, and reads nothing; \
                   Varve reads and hashes the whole image.",
        },
    ])
}
