//! What journals take on disk, and files of theirs that are no longer needed and are kept to be written again.
//!
//! The first sync behind writes to a place that was only allocated makes the file system write down, in its own journal, that
//! something is there now. In a file that was written before it need not, which takes a third off such a sync. So PostgreSQL does
//! with its log, which it calls recycling.
//!
//! A spare file keeps its name, which is one before those that the volume's record says are in use: whoever opens the volume
//! removes it. Nothing is promised of what is in it, and whoever is short of space has it removed.

use std::{
    io::ErrorKind,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::files::JournalFiles;
use crate::{
    format::volume::VolumeId,
    io::{Disk, File},
    limits::{SPARE_BYTES_MAX, SPARE_PART_OF_FREE},
};

/// Of the journals of all open volumes.
#[derive(Debug)]
pub(crate) struct JournalSpace {
    disk: Arc<dyn Disk>,
    pub(crate) files: JournalFiles,
    /// What is in use.
    live_bytes: AtomicU64,
    spares: Mutex<Vec<Spare>>,
}

/// A file that may be written again.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) volume: VolumeId,
    pub(crate) path: PathBuf,
    /// As long as reads may hold it that were begun when it was in use.
    pub(crate) file: Option<File>,
    pub(crate) len_bytes: u64,
}

impl JournalSpace {
    /// There is none yet. Their files may take so many descriptors.
    pub(crate) fn new(disk: Arc<dyn Disk>, files_open_max: usize) -> Self {
        Self {
            disk,
            files: JournalFiles::new(files_open_max),
            live_bytes: AtomicU64::new(0),
            spares: Mutex::default(),
        }
    }

    /// What files take that are in use.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn add_live(&self, bytes: u64) {
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn subtract_live(&self, bytes: u64) {
        self.live_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Keeps a file that is not in use any more, unless its volume has spare files of `volume_max` bytes, or all of them would be too
    /// much for so much free space. Whether it is kept; one that is not is to be removed.
    pub(crate) fn keep(&self, spare: Spare, volume_max: u64, free_bytes: u64) -> bool {
        let mut spares = self.spares.lock();
        let of_volume = spares.iter().filter(|other| other.volume == spare.volume);
        let of_volume: u64 = of_volume.map(|other| other.len_bytes).sum();
        let of_all: u64 = spares.iter().map(|other| other.len_bytes).sum();
        let all_max = SPARE_BYTES_MAX.min(free_bytes / SPARE_PART_OF_FREE);
        if of_volume + spare.len_bytes > volume_max || of_all + spare.len_bytes > all_max {
            return false;
        }
        spares.push(spare);
        // Descriptors are for those that are in use.
        for spare in spares.iter_mut() {
            spare.file.take_if(|file| !file.is_shared());
        }
        true
    }

    /// The length of the longest spare file of a volume that is not longer than that.
    pub(crate) fn spare_bytes(&self, volume: VolumeId, most_bytes: u64) -> Option<u64> {
        let spares = self.spares.lock();
        let fit = |spare: &&Spare| spare.volume == volume && spare.len_bytes <= most_bytes;
        spares.iter().filter(fit).map(|spare| spare.len_bytes).max()
    }

    /// A spare file of a volume that is as long as that, and that nobody reads any more.
    pub(crate) fn take(&self, volume: VolumeId, len_bytes: u64) -> Option<Spare> {
        let mut spares = self.spares.lock();
        let fits = |spare: &Spare| {
            spare.volume == volume
                && spare.len_bytes == len_bytes
                && !spare.file.as_ref().is_some_and(File::is_shared)
        };
        let at = spares.iter().position(fits)?;
        Some(spares.remove(at))
    }

    /// Removes all spare files, because there is too little space. Whoever asks looks at the space again: somebody else may have done it.
    pub(crate) fn give_up(&self) {
        self.give_up_those(|_| true);
    }

    /// Removes the spare files of a volume.
    pub(crate) fn give_up_of(&self, volume: VolumeId) {
        self.give_up_those(|spare| spare.volume == volume);
    }

    fn give_up_those(&self, which: impl Fn(&Spare) -> bool) {
        // Removed under the lock: who finds none there may rely on the space.
        let mut spares = self.spares.lock();
        for spare in spares.extract_if(.., |spare| which(&*spare)) {
            match self.disk.remove(&spare.path) {
                Ok(()) => {}
                // With its volume.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // It goes when its volume is opened again. Whose space it takes is not to suffer for it more than by that.
                Err(error) => {
                    let path = spare.path.display();
                    tracing::warn!(%path, %error, "a spare journal file was not removed");
                }
            }
        }
    }
}
