//! The files of all journals: their space on disk, and spare files for recycling.
//!
//! At the first sync after writes to newly allocated space, the file system records in its own
//! journal that the space is in use. A file that was written before needs no such record, which
//! saves a third of the time of the sync. PostgreSQL recycles the files of its log for the same
//! reason.
//!
//! A spare file keeps its name. Its number is below the numbers in use according to the volume's
//! record, so it is removed when the volume is opened again. Its content has no promised data, and
//! all spare files are removed when space is short.

use std::{
    io::ErrorKind,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::files::OpenFiles;
use crate::{
    format::VolumeId,
    io::{Disk, File},
    limits::{SPARE_BYTES_MAX, SPARE_PART_OF_FREE},
};

/// The files of the journals of all open volumes.
#[derive(Debug)]
pub(crate) struct FilePool {
    disk: Arc<dyn Disk>,
    pub(super) open: Arc<OpenFiles>,
    /// Bytes of files in use.
    live_bytes: AtomicU64,
    spares: Mutex<Vec<SpareFile>>,
    /// Held while spare files are removed, which may take long. Only other removals wait for it.
    removing: Mutex<()>,
}

/// A file that may be written again.
#[derive(Debug)]
pub(super) struct SpareFile {
    pub(super) volume: VolumeId,
    pub(super) path: PathBuf,
    /// Open as long as reads may hold it that began while it was in use.
    pub(super) file: Option<File>,
    pub(super) len_bytes: u64,
}

impl FilePool {
    /// A pool without files, which may use so many descriptors.
    pub(crate) fn new(disk: Arc<dyn Disk>, descriptors_max: usize) -> Self {
        Self {
            disk,
            open: Arc::new(OpenFiles::new(descriptors_max)),
            live_bytes: AtomicU64::new(0),
            spares: Mutex::default(),
            removing: Mutex::default(),
        }
    }

    /// Bytes of files in use.
    pub(super) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn add_live(&self, bytes: u64) {
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn subtract_live(&self, bytes: u64) {
        self.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Keeps a file that is no longer in use, unless its volume would have more than `volume_max`
    /// bytes of spare files, or all volumes more than is fair for so much free space. Returns
    /// whether the file was kept; the caller removes one that was not.
    pub(super) fn keep(&self, spare: SpareFile, volume_max: u64, free_bytes: u64) -> bool {
        let mut spares = self.spares.lock();
        let of_volume = spares.iter().filter(|other| other.volume == spare.volume);
        let of_volume: u64 = of_volume.map(|other| other.len_bytes).sum();
        let of_all: u64 = spares.iter().map(|other| other.len_bytes).sum();
        let all_max = SPARE_BYTES_MAX.min(free_bytes / SPARE_PART_OF_FREE);
        if of_volume + spare.len_bytes > volume_max || of_all + spare.len_bytes > all_max {
            return false;
        }
        spares.push(spare);
        // Descriptors are for files in use.
        for spare in spares.iter_mut() {
            spare.file.take_if(|file| !file.is_shared());
        }
        true
    }

    /// The length of the longest spare file of a volume that is at most `most_bytes` long.
    pub(super) fn spare_bytes(&self, volume: VolumeId, most_bytes: u64) -> Option<u64> {
        let spares = self.spares.lock();
        let fit = |spare: &&SpareFile| spare.volume == volume && spare.len_bytes <= most_bytes;
        spares.iter().filter(fit).map(|spare| spare.len_bytes).max()
    }

    /// Takes a spare file of a volume, of exactly this length and without readers.
    pub(super) fn take(&self, volume: VolumeId, len_bytes: u64) -> Option<SpareFile> {
        let mut spares = self.spares.lock();
        let fits = |spare: &SpareFile| {
            spare.volume == volume
                && spare.len_bytes == len_bytes
                && !spare.file.as_ref().is_some_and(File::is_shared)
        };
        let at = spares.iter().position(fits)?;
        Some(spares.remove(at))
    }

    /// Removes all spare files, because space is short. May take long. The caller looks at the free
    /// space again, even if there were none: another caller may have removed them.
    pub(crate) fn remove_spares(&self) {
        self.remove_those(|_| true);
    }

    /// Removes the spare files of a volume. May take long.
    pub(crate) fn remove_spares_of(&self, volume: VolumeId) {
        self.remove_those(|spare| spare.volume == volume);
    }

    fn remove_those(&self, which: impl Fn(&SpareFile) -> bool) {
        // To the end: a caller that finds no spare files relies on their space being free.
        let _removing = self.removing.lock();
        let removed: Vec<_> = {
            let mut spares = self.spares.lock();
            spares.extract_if(.., |spare| which(&*spare)).collect()
        };
        for spare in removed {
            match self.disk.remove(&spare.path) {
                Ok(()) => {}
                // It went with its volume.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // It goes when its volume is opened again. Until then it takes space, and nothing
                // else is wrong.
                Err(error) => {
                    let path = spare.path.display();
                    tracing::warn!(%path, %error, "a spare journal file was not removed");
                }
            }
        }
    }
}
