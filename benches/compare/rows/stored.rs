//! The space that three separately built images take together.

use crate::bench::{Bench, image, remove, size_of};
use crate::failure::Failure;
use crate::peers::casync_make;
use crate::table::{Figure, Row, Wanted};

const NAMES: [&str; 3] = ["base", "web", "database"];

pub(crate) fn three_images(bench: &Bench) -> Result<Vec<Row>, Failure> {
    eprintln!("stored bytes: once, as they come out the same each time");
    let data_dir = bench.fresh_directory("three")?;
    let varved = bench.programs.serve(&data_dir)?;
    for name in NAMES {
        varved.import(&image(name)?, name)?;
    }
    let in_packs = varved.status("stored_bytes")?;
    varved.stop()?;
    let (on_disk, _) = size_of(&data_dir)?;
    eprintln!("stored bytes: {on_disk} on disk, of these {in_packs} in packs");
    remove(&data_dir)?;

    let directory = bench.fresh_directory("casync")?;
    for name in NAMES {
        casync_make(
            &directory.join("store.castr"),
            &directory.join(format!("{name}.caibx")),
            &image(name)?,
        )?;
    }
    let (_, lengths) = size_of(&directory)?;
    remove(&directory)?;
    Ok(vec![Row {
        what: "stored after three images built separately".to_owned(),
        against: "casync make --store".to_owned(),
        ours: Figure::Bytes(on_disk),
        theirs: Figure::Bytes(lengths),
        wanted: Wanted::TimesAsMuch(1.0),
        note: "Varve: the space on disk of its whole data directory, with index and catalog. \
               casync: the lengths of its chunks and indexes, without the file system's overhead \
               for so many small files.",
    }])
}
