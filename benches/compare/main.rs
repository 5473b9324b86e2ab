//! Varve side by side with its peers: one run, one table.
//!
//! For each measurement all contenders take turns, run by run, from the same state of the page
//! cache; the table shows medians. Nothing is asserted: a missed target is a line that says so. The
//! exit code is not zero only if something could not be measured.

mod bench;
mod facts;
mod failure;
mod fio;
mod page_cache;
mod peers;
mod process;
mod report;
mod rows;
mod samples;
mod table;
mod varve;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use varve_benches::images::cache_directory;

use crate::bench::Bench;
use crate::failure::Failure;
use crate::process::Over;
use crate::table::{Row, Table};

#[derive(Debug, Parser)]
#[command(version, about = "Measures Varve side by side with its peers")]
struct Arguments {
    /// Measure only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Subject>,
    /// How often each is measured; the table shows medians
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Where files are put while measuring: some 40 GiB on the disk that is to be measured
    #[arg(long, default_value_os_t = cache_directory())]
    dir: PathBuf,
    /// Put the table in this document, between its two marks
    #[arg(long, conflicts_with = "only")]
    write: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    Import,
    Again,
    Stored,
    Export,
    NbdSequential,
    NbdCopy,
    NbdLatency,
    NbdCrowd,
    NbdCold,
    NbdRandom,
    VolumeWrite,
    VolumeFlush,
    VolumeRead,
    VolumeSequential,
    SnapshotPause,
    SnapshotCompletion,
    Clone,
    Depth,
    Boot,
    Database,
    Memory,
    VolumeMemory,
    CopyFar,
    CopyNothing,
    CopyNear,
    CopyBound,
    Collection,
    CollectionPause,
    Hash,
}

impl Subject {
    fn measure(self, bench: &Bench) -> Result<Vec<Row>, Failure> {
        match self {
            Self::Import => rows::import::first(bench),
            Self::Again => rows::import::again(bench),
            Self::Stored => rows::stored::three_images(bench),
            Self::Export => rows::export::to_file(bench),
            Self::NbdSequential => over_both(|over| rows::nbd::sequential(bench, over)),
            Self::NbdCopy => over_both(|over| rows::protocol::whole_snapshot(bench, over)),
            Self::NbdLatency => over_both(|over| rows::protocol::latency(bench, over)),
            Self::NbdCrowd => over_both(|over| rows::protocol::crowd(bench, over)),
            Self::NbdCold => rows::protocol::cold_sequential(bench),
            Self::NbdRandom => rows::nbd::random(bench),
            Self::VolumeWrite => over_both(|over| rows::volume::random_writes(bench, over)),
            Self::VolumeFlush => over_both(|over| rows::volume::flushed_writes(bench, over)),
            Self::VolumeRead => over_both(|over| rows::volume::journal_reads(bench, over)),
            Self::VolumeSequential => {
                over_both(|over| rows::volume::sequential_writes(bench, over))
            }
            Self::SnapshotPause => rows::snapshots::pause(bench),
            Self::SnapshotCompletion => rows::snapshots::completion(bench),
            Self::Clone => rows::snapshots::clone(bench),
            Self::Depth => rows::snapshots::depth(bench),
            Self::Boot => rows::boot::guest(bench),
            Self::Database => rows::database::guest(bench),
            Self::Memory => rows::memory::peaks(bench),
            Self::VolumeMemory => rows::memory::of_volumes(bench),
            Self::CopyFar => rows::copy::over_a_link(bench),
            Self::CopyNothing => rows::copy::nothing_missing(bench),
            Self::CopyNear => rows::copy::near(bench),
            Self::CopyBound => rows::copy::bound(bench),
            Self::Collection => rows::collection::half_deleted(bench),
            Self::CollectionPause => rows::collection::beside_a_guest(bench),
            Self::Hash => rows::hash::cut_and_hash(bench),
        }
    }
}

/// Measures over a unix socket, then over TCP.
fn over_both(measure: impl Fn(Over) -> Result<Vec<Row>, Failure>) -> Result<Vec<Row>, Failure> {
    let mut rows = measure(Over::Unix)?;
    rows.extend(measure(Over::Tcp)?);
    Ok(rows)
}

fn main() -> ExitCode {
    match compare(&Arguments::parse()) {
        Ok(table) if table.unmeasured.is_empty() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("varve-compare: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn compare(arguments: &Arguments) -> Result<Table, Failure> {
    let bench = Bench::new(arguments.runs, &arguments.dir)?;
    let subjects = Subject::value_variants()
        .iter()
        .filter(|subject| arguments.only.is_empty() || arguments.only.contains(subject));
    let mut table = Table::default();
    for subject in subjects {
        match subject.measure(&bench) {
            Ok(rows) => table.rows.extend(rows),
            Err(failure) => table.unmeasured.push(format!("{subject:?}: {failure}")),
        }
    }
    let facts = facts::markdown(&bench)?;
    println!("{facts}\n{}", table.markdown());
    if let Some(document) = &arguments.write {
        report::write(document, &facts, &table, arguments.runs)?;
    }
    Ok(table)
}
