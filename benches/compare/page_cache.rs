//! The state of the page cache before a run: the same for all.

use std::fs::{self, File};
use std::path::Path;

use varve_benches::images::read_data;

use crate::failure::{Failure, While};

/// Writes out what other runs left dirty, so that no contender writes it while being measured.
pub(crate) fn settle() {
    rustix::fs::sync();
}

/// Reads a file's data, so that it comes from memory.
pub(crate) fn warm(path: &Path) -> Result<(), Failure> {
    File::open(path)
        .and_then(|file| read_data(&file, |_, _| Ok(())))
        .during(|| format!("read {}", path.display()))
}

/// Empties the page cache, so that everything comes from the disk.
pub(crate) fn empty() -> Result<(), Failure> {
    settle();
    fs::write("/proc/sys/vm/drop_caches", "3").during(|| {
        "empty the page cache, which only root may (/proc/sys/vm/drop_caches)".to_owned()
    })
}
