//! Writing to a volume, and reading back what was written, over NBD.

use std::ops::Range;

use crate::bench::{Bench, RAW_DISK_BYTES, remove};
use crate::failure::Failure;
use crate::fio::{self, Does, Load, Pattern, Rate, Until};
use crate::page_cache;
use crate::peers::NbdServer;
use crate::process::Over;
use crate::samples::{Samples, in_turns};
use crate::table::{Figure, Row, Wanted};
use crate::varve::{Content, Varved, Volume};

const GIB: u64 = 1 << 30;
/// The range of the requests, in the middle of a volume of [`RAW_DISK_BYTES`].
const REGION: Range<u64> = 3 * GIB..4 * GIB;
/// Less than starts a checkpoint meanwhile.
const SEQUENTIAL_BYTES: u64 = 2 * GIB;
/// 8192 of them.
const FLUSHED_BYTES: u64 = 32 << 20;

const RANDOM_WRITES: Load = Load {
    does: Does::Write,
    pattern: Pattern::RANDOM,
    block_bytes: 4096,
    depth: 32,
    range: REGION,
    until: Until::Bytes(GIB),
};
const RANDOM_READS: Load = Load {
    does: Does::Read,
    ..RANDOM_WRITES
};
const FLUSHED_WRITES: Load = Load {
    does: Does::WriteAndFlush,
    depth: 1,
    until: Until::Bytes(FLUSHED_BYTES),
    ..RANDOM_WRITES
};
const SEQUENTIAL_WRITES: Load = Load {
    does: Does::Write,
    pattern: Pattern::Sequential,
    block_bytes: 1 << 20,
    depth: 8,
    range: 0..SEQUENTIAL_BYTES,
    until: Until::Bytes(SEQUENTIAL_BYTES),
};

/// A volume that has been in use: written to, and checkpointed.
struct Used {
    varved: Varved,
    volume: Volume,
    over: Over,
}

impl Used {
    fn start(bench: &Bench, over: Over) -> Result<Self, Failure> {
        let varved = bench.programs.serve(&bench.fresh_directory("volume")?)?;
        let bytes = RAW_DISK_BYTES;
        let volume = varved.make_volume("disk", Content::Zeros { bytes })?;
        fio::run(&volume.uri(), &RANDOM_WRITES)?;
        Ok(Self {
            varved,
            volume,
            over,
        })
    }

    /// One run on an empty journal.
    fn run(&self, load: &Load, run: u32) -> Result<Rate, Failure> {
        self.varved
            .snapshot(&self.volume, &format!("before-{run}"))?;
        page_cache::settle();
        fio::run(&self.uri(), load)
    }

    fn uri(&self) -> String {
        self.volume.uri_over(self.over)
    }

    fn stop(self, bench: &Bench) -> Result<(), Failure> {
        self.varved.stop()?;
        remove(&bench.path("volume"))
    }
}

fn run_on(peer: &NbdServer, load: &Load) -> Result<Rate, Failure> {
    page_cache::settle();
    fio::run(&peer.uri(), load)
}

fn per_second(ours: &Samples, theirs: Samples) -> (Figure, Figure) {
    (Figure::PerSecond(ours.clone()), Figure::PerSecond(theirs))
}

pub(crate) fn random_writes(bench: &Bench, over: Over) -> Result<Vec<Row>, Failure> {
    let (used, disk) = (Used::start(bench, over)?, bench.raw_disk()?);
    let directory = bench.path("");
    let null = NbdServer::nbdkit_null(over, &directory, RAW_DISK_BYTES)?;
    let load = &RANDOM_WRITES;
    // One at a time: both use the same file.
    let mut qemu_nbd = |_| {
        let server = NbdServer::qemu_nbd_raw(over, &directory, &disk)?;
        let rate = run_on(&server, load)?.per_second;
        server.stop()?;
        Ok(rate)
    };
    let mut nbdkit = |_| {
        let server = NbdServer::nbdkit_file(over, &directory, &disk)?;
        let rate = run_on(&server, load)?.per_second;
        server.stop()?;
        Ok(rate)
    };
    let [varve, qemu_nbd, nbdkit, nothing] = in_turns(
        "volume, random writes",
        bench.runs,
        [
            &mut |run| Ok(used.run(load, run)?.per_second),
            &mut qemu_nbd,
            &mut nbdkit,
            &mut |_| Ok(run_on(&null, load)?.per_second),
        ],
    )?;
    used.stop(bench)?;
    null.stop()?;
    let row = |against: &str, theirs, wanted, note| {
        let (ours, theirs) = per_second(&varve, theirs);
        Row {
            what: format!("volume: random write 4 KiB, depth 32{}", over.suffix()),
            against: against.to_owned(),
            ours,
            theirs,
            wanted: Wanted::TimesAsFast(wanted),
            note,
        }
    };
    Ok(vec![
        row(
            "qemu-nbd, raw file, cache none, io_uring",
            qemu_nbd,
            3.0,
            "262144 writes, each block of 1 GiB in the middle of a volume of 8 GiB once. The \
             volume was written to before, and a snapshot taken, so that its journal begins empty; \
             the peers' raw file of 8 GiB was preallocated and fully written. Varve and nbdkit \
             answer when a write is in the kernel, qemu-nbd when the disk has it.",
        ),
        row("nbdkit file", nbdkit, 1.0, ""),
        row(
            "nbdkit null",
            nothing,
            0.7,
            "it keeps nothing: the cost of the protocol and fio alone.",
        ),
    ])
}

pub(crate) fn flushed_writes(bench: &Bench, over: Over) -> Result<Vec<Row>, Failure> {
    let (used, disk) = (Used::start(bench, over)?, bench.raw_disk()?);
    let peer = NbdServer::qemu_nbd_raw(over, &bench.path(""), &disk)?;
    let load = &FLUSHED_WRITES;
    let [varve, qemu_nbd] = in_turns(
        "volume, write and flush",
        bench.runs,
        [&mut |run| Ok(used.run(load, run)?.per_second), &mut |_| {
            Ok(run_on(&peer, load)?.per_second)
        }],
    )?;
    used.stop(bench)?;
    peer.stop()?;
    let (ours, theirs) = per_second(&varve, qemu_nbd);
    Ok(vec![Row {
        what: format!(
            "volume: random write 4 KiB and FLUSH, depth 1{}",
            over.suffix()
        ),
        against: "qemu-nbd, raw file, cache none, io_uring".to_owned(),
        ours,
        theirs,
        wanted: Wanted::TimesAsFast(1.0),
        note: "8192 writes, each followed by a FLUSH; volume and raw file as above.",
    }])
}

pub(crate) fn journal_reads(bench: &Bench, over: Over) -> Result<Vec<Row>, Failure> {
    let (used, disk) = (Used::start(bench, over)?, bench.raw_disk()?);
    let peer = NbdServer::nbdkit_file(over, &bench.path(""), &disk)?;
    fio::run(&peer.uri(), &RANDOM_WRITES)?;
    let [varve, nbdkit] = in_turns(
        "volume, reads of the journal",
        bench.runs,
        [
            &mut |_| {
                page_cache::settle();
                Ok(fio::run(&used.uri(), &RANDOM_READS)?.per_second)
            },
            &mut |_| Ok(run_on(&peer, &RANDOM_READS)?.per_second),
        ],
    )?;
    used.stop(bench)?;
    peer.stop()?;
    let (ours, theirs) = per_second(&varve, nbdkit);
    Ok(vec![Row {
        what: format!(
            "volume: random read 4 KiB, depth 32, of the journal{}",
            over.suffix()
        ),
        against: "nbdkit file".to_owned(),
        ours,
        theirs,
        wanted: Wanted::TimesAsFast(1.0),
        note: "262144 reads of 1 GiB that was just written, in random order, to the volume and to \
               the raw file: all of it is in the page cache.",
    }])
}

pub(crate) fn sequential_writes(bench: &Bench, over: Over) -> Result<Vec<Row>, Failure> {
    let (used, disk) = (Used::start(bench, over)?, bench.raw_disk()?);
    let peer = NbdServer::nbdkit_file(over, &bench.path(""), &disk)?;
    let load = &SEQUENTIAL_WRITES;
    let [varve, nbdkit] = in_turns(
        "volume, sequential writes",
        bench.runs,
        [
            &mut |run| Ok(used.run(load, run)?.bytes_per_second),
            &mut |_| Ok(run_on(&peer, load)?.bytes_per_second),
        ],
    )?;
    used.stop(bench)?;
    peer.stop()?;
    Ok(vec![Row {
        what: format!("volume: sequential write 1 MiB, depth 8{}", over.suffix()),
        against: "nbdkit file".to_owned(),
        ours: Figure::BytesPerSecond(varve),
        theirs: Figure::BytesPerSecond(nbdkit),
        wanted: Wanted::TimesAsFast(0.9),
        note: "2 GiB; both answer when the data is in the page cache. Volume and raw file as \
               above.",
    }])
}
