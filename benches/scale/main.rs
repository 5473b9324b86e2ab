//! A synthetic store of millions of chunks and thousands of snapshots: made quickly, and measured.
//!
//! Nothing is asserted: the figures are for people to compare. The store has the formats of any
//! other, and `varved` opens it.

mod collection;
mod content;
mod make;
mod measure;
mod reads;
mod report;

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// The reason why something could not be made or measured.
type Failure = Box<dyn Error>;

#[derive(Debug, Parser)]
#[command(version, about = "Makes a large synthetic store, and measures it")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a store in a directory that is empty or absent
    Make {
        /// The data directory
        dir: PathBuf,
        /// Chunks, rounded up to whole segments
        #[arg(long, default_value_t = 10_000_000)]
        chunks: u64,
        /// Snapshots, rounded up to as many for each host
        #[arg(long, default_value_t = 50_000)]
        snapshots: u64,
    },
    /// Measure starts, memory, lists, status and a collection's marks of varved on such a store. It
    /// changes the store a little
    Measure {
        /// The data directory
        dir: PathBuf,
        /// Also delete half of the snapshots, and collect what that leaves
        #[arg(long)]
        delete: bool,
    },
    /// Measure random reads of 4 KiB from all chunks, in this process
    Reads {
        /// The data directory
        dir: PathBuf,
        /// Seconds
        #[arg(long, default_value_t = 20)]
        seconds: u64,
        /// Reads under way at one time
        #[arg(long, default_value_t = 32)]
        depth: usize,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Make {
            dir,
            chunks,
            snapshots,
        } => make::make(&dir, chunks, snapshots),
        Command::Measure { dir, delete } => measure::measure(&dir, delete),
        Command::Reads {
            dir,
            seconds,
            depth,
        } => reads::random(&dir, seconds, depth),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("varve-scale: {failure}");
            ExitCode::FAILURE
        }
    }
}
