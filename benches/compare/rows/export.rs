//! Exporting an image from the store, into a sparse raw file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::bench::{Bench, files_below, remove};
use crate::failure::{Failure, While};
use crate::page_cache;
use crate::peers::{qemu_img_compress, qemu_img_expand};
use crate::samples::in_turns;
use crate::table::{Figure, Row, Wanted};

pub(crate) fn to_file(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let data_dir = bench.data_dir_with_base("export")?;
    let packs = files_below(&data_dir.join("packs"))?;
    let qcow2 = bench.path("export.qcow2");
    qemu_img_compress(&bench.base, &qcow2)?;
    let file = bench.path("export.raw");

    let mut varve = |run| {
        // A new process each time: nothing stays decoded from the run before.
        let varved = bench.programs.serve(&data_dir)?;
        packs.iter().try_for_each(|pack| page_cache::warm(pack))?;
        page_cache::settle();
        let seconds = varved.export("base", &file)?.seconds;
        varved.stop()?;
        if run == 0 {
            check_equal(&bench.base, &file)?;
        }
        remove(&file)?;
        Ok(seconds)
    };
    let mut qemu_img = |run| {
        page_cache::warm(&qcow2)?;
        page_cache::settle();
        let seconds = qemu_img_expand(&qcow2, &file)?.seconds;
        if run == 0 {
            check_equal(&bench.base, &file)?;
        }
        remove(&file)?;
        Ok(seconds)
    };
    let [varve, qemu_img] =
        in_turns("export", bench.runs, [&mut varve, &mut qemu_img])?.map(Figure::Seconds);
    remove(&data_dir)?;
    remove(&qcow2)?;
    Ok(vec![Row {
        what: "export to a file".to_owned(),
        against: "qemu-img convert from that qcow2".to_owned(),
        ours: varve,
        theirs: qemu_img,
        wanted: Wanted::TimesAsFast(1.5),
        note: "both write a sparse file; the result is compared with the image once.",
    }])
}

fn check_equal(expected: &Path, actual: &Path) -> Result<(), Failure> {
    const PIECE_BYTES: usize = 1 << 20;
    let open = |path: &Path| File::open(path).during(|| format!("open {}", path.display()));
    let (mut expected_file, mut actual_file) = (open(expected)?, open(actual)?);
    let (mut wanted, mut got) = (
        Vec::with_capacity(PIECE_BYTES),
        Vec::with_capacity(PIECE_BYTES),
    );
    loop {
        for (file, path, piece) in [
            (&mut expected_file, expected, &mut wanted),
            (&mut actual_file, actual, &mut got),
        ] {
            piece.clear();
            file.take(PIECE_BYTES as u64)
                .read_to_end(piece)
                .during(|| format!("read {}", path.display()))?;
        }
        if wanted != got {
            return Err(Failure::new(format!(
                "{} and {} differ",
                expected.display(),
                actual.display()
            )));
        }
        if wanted.is_empty() {
            return Ok(());
        }
    }
}
