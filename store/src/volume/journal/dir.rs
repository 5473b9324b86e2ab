//! Whose journal it is, where its files are, and how they are made.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    journal::unsynced,
    recycle::{JournalSpace, Spare},
};
use crate::{
    Error, Result,
    format::{StoreId, journal::JOURNAL_BLOCK_BYTES, names, volume::VolumeId},
    io::{Disk, File, OpenMode},
    limits::{JOURNAL_FILE_BYTES_MAX, JOURNAL_FILE_BYTES_MIN, SPARE_PART_OF_JOURNAL},
};

const BLOCK: u64 = JOURNAL_BLOCK_BYTES as u64;

/// Whose journal it is, and where.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) data_dir: PathBuf,
    pub(crate) store: StoreId,
    pub(crate) volume: VolumeId,
    /// What the journal may take on disk.
    pub(crate) bytes_max: u64,
    /// What the journals of all open volumes take on disk.
    pub(crate) space: Arc<JournalSpace>,
}

impl Owner {
    pub(crate) fn dir(&self) -> PathBuf {
        names::volume(&self.data_dir, self.volume)
    }

    pub(crate) fn path(&self, number: u64) -> PathBuf {
        names::journal_file(&self.data_dir, self.volume, number)
    }

    /// Free space of the file system.
    pub(crate) fn free_bytes(&self) -> Result<u64> {
        let free = self.disk.free_bytes(&self.data_dir);
        free.map_err(|source| Error::io("ask for the free space of", &self.data_dir, source))
    }

    pub(crate) fn remove(&self, number: u64) -> Result<()> {
        let path = self.path(number);
        self.disk
            .remove(&path)
            .map_err(|source| Error::io("remove", &path, source))
    }

    /// The same, as soon as the system is not short of something.
    pub(crate) async fn remove_patiently(&self, number: u64) -> Result<()> {
        let patience = self.disk.patience();
        patience.until_possible(|| self.remove(number)).await
    }

    /// Makes durable which files there are. [`Error::Shortage`]: the store closes, and no sync has failed.
    pub(crate) async fn sync_dir(&self) -> Result<()> {
        let dir = self.dir();
        let mut tries = self.disk.patience().tries();
        loop {
            let synced = self.disk.sync_dir(&dir).await;
            if tries.is_final(&synced).await {
                return synced.map_err(|source| unsynced(dir, source));
            }
        }
    }

    /// Makes a file of which all is allocated and nothing was written, for writes past the page cache and for all else.
    pub(crate) fn allocated(&self, path: &Path, len_bytes: u64) -> Result<(File, File)> {
        let disk = &self.disk;
        let create = || disk.open_direct(path, OpenMode::CreateNew);
        let direct = match create() {
            // Of a try that failed behind it and could not remove it: its number was never used.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                disk.remove(path).and_then(|()| create())
            }
            created => created,
        };
        let direct = direct.map_err(|source| Error::io("create", path, source))?;
        let cached = disk
            .allocate(&direct, len_bytes)
            .map_err(|source| Error::io("allocate", path, source))
            .and_then(|()| self.opened(path));
        Ok((direct, self.or_removed(path, cached)?))
    }

    /// The same of a file that was written before; `None` if it is not there any more.
    pub(crate) fn written_before(
        &self,
        spare: &Spare,
        path: &Path,
    ) -> Option<Result<(File, File)>> {
        let disk = &self.disk;
        if let Err(error) = disk.rename(&spare.path, path) {
            let path = spare.path.display();
            tracing::warn!(%path, %error, "a journal file is not written again");
            return None;
        }
        Some(self.or_removed(path, self.opened_to_write(path)))
    }

    /// Opens a file as soon as the system is not short of something.
    pub(crate) async fn open_patiently(&self, path: &Path) -> Result<File> {
        let patience = self.disk.patience();
        patience.until_possible(|| self.opened(path)).await
    }

    pub(crate) fn opened(&self, path: &Path) -> Result<File> {
        let opened = self.disk.open(path, OpenMode::ReadWrite);
        opened.map_err(|source| Error::io("open", path, source))
    }

    /// Opens a file to add to it.
    pub(crate) fn opened_to_write(&self, path: &Path) -> Result<(File, File)> {
        let direct = self.disk.open_direct(path, OpenMode::ReadWrite);
        let direct = direct.map_err(|source| Error::io("open", path, source))?;
        Ok((direct, self.opened(path)?))
    }

    /// A file that was made and cannot be used must not stay.
    fn or_removed<T>(&self, path: &Path, opened: Result<T>) -> Result<T> {
        if opened.is_err() {
            self.disk
                .remove(path)
                .map_err(|source| Error::io("remove", path, source))?;
        }
        opened
    }

    /// Keeps a file that is not needed any more to be written again, or removes it.
    pub(crate) fn done_with(
        &self,
        number: u64,
        file: Option<File>,
        len_bytes: u64,
        free_bytes: u64,
    ) -> Result<()> {
        let path = self.path(number);
        let open = || file.or_else(|| self.opened(&path).ok());
        // One that was cut off may be too short to be worth it.
        if len_bytes >= JOURNAL_FILE_BYTES_MIN
            && let Some(file) = open()
        {
            // What is in the page cache would be in the way of writes past it.
            self.disk.forget_cached(&file);
            let spare = Spare {
                volume: self.volume,
                path,
                file: Some(file),
                len_bytes,
            };
            let volume_max = self.bytes_max / SPARE_PART_OF_JOURNAL;
            if self.space.keep(spare, volume_max, free_bytes) {
                return Ok(());
            }
        }
        self.remove(number)
    }

    /// The length of the next file of a journal that takes so much: as much again, so that a volume of which little is written takes
    /// little, and one of which much is written has few files. One that is spare is as good, if it fits.
    pub(crate) fn next_file_bytes(&self, journal_bytes: u64) -> u64 {
        let part = self.bytes_max / 128;
        let most = part.clamp(JOURNAL_FILE_BYTES_MIN, JOURNAL_FILE_BYTES_MAX);
        let next = journal_bytes.clamp(JOURNAL_FILE_BYTES_MIN, most) / BLOCK * BLOCK;
        let room = self.bytes_max.saturating_sub(journal_bytes);
        self.space.spare_bytes(self.volume, room).unwrap_or(next)
    }
}
