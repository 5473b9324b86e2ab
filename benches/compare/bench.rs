//! Everything that all measurements share: the input, the programs, and a place for their files.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use varve_benches::images;
use varve_tests::daemon::free_address;

use crate::failure::{Failure, While};
use crate::page_cache;
use crate::varve::{Programs, Varved};

/// Size of [`Bench::raw_disk`]: that of the volumes beside which it is measured.
pub(crate) const RAW_DISK_BYTES: u64 = 8 << 30;

#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) runs: u32,
    pub(crate) programs: Programs,
    /// The image of most measurements.
    pub(crate) base: PathBuf,
    scratch: tempfile::TempDir,
}

impl Bench {
    /// Puts its files in a new directory below `parent`, which is removed on drop.
    pub(crate) fn new(runs: u32, parent: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(parent).during(|| format!("create {}", parent.display()))?;
        let scratch = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in(parent)
            .during(|| format!("create a directory in {}", parent.display()))?;
        Ok(Self {
            runs,
            programs: Programs::find()?,
            base: image("base")?,
            scratch,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// An empty directory.
    pub(crate) fn fresh_directory(&self, name: &str) -> Result<PathBuf, Failure> {
        let directory = self.path(name);
        remove(&directory)?;
        fs::create_dir(&directory).during(|| format!("create {}", directory.display()))?;
        Ok(directory)
    }

    /// A data directory that holds the base image as snapshot `base`, with no varved running on it.
    pub(crate) fn data_dir_with_base(&self, name: &str) -> Result<PathBuf, Failure> {
        let data_dir = self.fresh_directory(name)?;
        let varved = self.programs.serve(&data_dir)?;
        varved.import(&self.base, "base")?;
        varved.stop()?;
        Ok(data_dir)
    }

    /// A raw file with every block written, of data that does not compress: a disk that has been in
    /// use, as other servers keep it. The first call makes it. Later rows see what earlier rows
    /// wrote to it.
    pub(crate) fn raw_disk(&self) -> Result<PathBuf, Failure> {
        let path = self.path("disk.raw");
        if !path.exists() {
            eprintln!("a raw disk of {} GiB is written", RAW_DISK_BYTES >> 30);
            write_disk(&path).during(|| format!("write {}", path.display()))?;
            page_cache::settle();
        }
        Ok(path)
    }

    /// A varved on an empty data directory that listens on TCP, too.
    pub(crate) fn serve_on_tcp(
        &self,
        name: &str,
    ) -> Result<(Varved, PathBuf, SocketAddr), Failure> {
        let data_dir = self.fresh_directory(name)?;
        let address = free_address();
        let varved = self.programs.serve_on_tcp(&data_dir, address)?;
        Ok((varved, data_dir, address))
    }

    /// A varved on an empty data directory, with the base image ready in the page cache.
    pub(crate) fn serve_fresh(&self, name: &str) -> Result<(Varved, PathBuf), Failure> {
        let data_dir = self.fresh_directory(name)?;
        let varved = self.programs.serve(&data_dir)?;
        page_cache::warm(&self.base)?;
        page_cache::settle();
        Ok((varved, data_dir))
    }
}

/// The whole of a disk, with the same data each time.
fn write_disk(path: &Path) -> io::Result<()> {
    rustix::fs::fallocate(
        File::create(path)?,
        FallocateFlags::empty(),
        0,
        RAW_DISK_BYTES,
    )?;
    write_noise(path, RAW_DISK_BYTES)
}

/// A file of data that does not compress, the same each time. Overwrites an existing file.
pub(crate) fn write_noise(path: &Path, size_bytes: u64) -> io::Result<()> {
    const PIECE_BYTES: usize = 4 << 20;
    let disk = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut state = 0_u64;
    for offset in (0..size_bytes).step_by(PIECE_BYTES) {
        for word in piece.chunks_exact_mut(8) {
            // SplitMix64 (Steele, Lea, Flood 2014).
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
        disk.write_all_at(&piece, offset)?;
    }
    disk.sync_all()
}

pub(crate) fn image(name: &str) -> Result<PathBuf, Failure> {
    images::find(name).during(|| format!("find the image {name}"))
}

/// Removes a file, or a directory with everything in it, if it exists.
pub(crate) fn remove(path: &Path) -> Result<(), Failure> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::new(format!("remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// The files below a directory.
pub(crate) fn files_below(directory: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        let reading = || format!("read directory {}", directory.display());
        for entry in fs::read_dir(&directory).during(reading)? {
            let entry = entry.during(reading)?;
            let kind = entry.file_type().during(reading)?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// The space on disk of the files below a directory, and the sum of their lengths.
pub(crate) fn size_of(directory: &Path) -> Result<(u64, u64), Failure> {
    const STAT_BLOCK_BYTES: u64 = 512;
    let (mut on_disk, mut lengths) = (0, 0);
    for file in files_below(directory)? {
        let metadata = fs::metadata(&file).during(|| format!("look at {}", file.display()))?;
        on_disk += metadata.blocks() * STAT_BLOCK_BYTES;
        lengths += metadata.len();
    }
    Ok((on_disk, lengths))
}
