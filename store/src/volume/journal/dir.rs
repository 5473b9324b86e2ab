//! The directory of a volume's journal, and the creation of files in it.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    files::Writers,
    host::Host,
    recycle::{FilePool, SpareFile},
};
use crate::{
    Error, Result,
    format::{StoreId, VolumeId, journal::JOURNAL_BLOCK_BYTES, names},
    io::{Disk, File, OpenMode, is_shortage, offload},
    limits::{JOURNAL_FILE_BYTES_MAX, JOURNAL_FILE_BYTES_MIN, SPARE_PART_OF_JOURNAL},
};

const BLOCK: u64 = JOURNAL_BLOCK_BYTES as u64;

/// The directory of a volume's journal, and the volume.
#[derive(Debug, Clone)]
pub(crate) struct JournalDir {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) data_dir: PathBuf,
    pub(crate) store: StoreId,
    pub(crate) volume: VolumeId,
    /// Bytes that the journal's files may take.
    pub(crate) bytes_max: u64,
    pub(crate) pool: Arc<FilePool>,
    pub(crate) host: Arc<dyn Host>,
}

impl JournalDir {
    pub(crate) fn path(&self) -> PathBuf {
        names::volume(&self.data_dir, self.volume)
    }

    pub(super) fn file_path(&self, number: u64) -> PathBuf {
        names::journal_file(&self.data_dir, self.volume, number)
    }

    /// Makes the directory if it is not there, durably either way.
    ///
    /// # Errors
    ///
    /// [`Error::Shortage`] only when the store closes: the system's shortages are waited for.
    pub(crate) async fn create(&self) -> Result<()> {
        let all = names::volumes(&self.data_dir);
        let own = self.path();
        let patience = self.disk.patience();
        for (dir, parent) in [(&all, &self.data_dir), (&own, &all)] {
            let make = || match self.disk.create_dir(dir) {
                // Its maker may have died before syncing it.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                made => made,
            };
            let made = patience.until_possible(make).await;
            made.map_err(|source| Error::io("create", dir, source))?;
            let sync = || self.disk.sync_dir(parent);
            let synced = patience.until_possible_async(sync).await;
            synced.map_err(|source| Error::io("sync", parent, source))?;
        }
        Ok(())
    }

    /// Free bytes of the file system.
    pub(super) fn free_bytes(&self) -> Result<u64> {
        let free = self.disk.free_bytes(&self.data_dir);
        free.map_err(|source| Error::io("ask for the free space of", &self.data_dir, source))
    }

    /// Makes the names in the directory durable.
    ///
    /// # Errors
    ///
    /// [`Error::Shortage`] when the store closes: no sync has failed then. Any other error is a
    /// failed sync.
    pub(super) async fn sync(&self) -> Result<()> {
        let dir = self.path();
        let sync = || self.disk.sync_dir(&dir);
        let synced = self.disk.patience().until_possible_async(sync).await;
        synced.map_err(|source| sync_error(dir.clone(), source))
    }

    /// The same; a failed sync stops the store.
    pub(super) async fn sync_or_stop(&self) -> Result<()> {
        self.sync().await.inspect_err(|error| match error {
            Error::Shortage { .. } => {}
            error => self.host.stop_writing(error),
        })
    }

    /// Makes a file durable. A failed sync stops the store: the kernel reports it once, and a
    /// second try would seem to succeed.
    pub(super) async fn sync_file_or_stop(&self, file: &File) -> Result<()> {
        let synced = self.disk.sync_data(file).await;
        synced
            .map_err(|source| sync_error(file.path().to_owned(), source))
            .inspect_err(|error| self.host.stop_writing(error))
    }

    /// Removes a file, and waits for the end of any shortage.
    pub(super) async fn remove_file(&self, number: u64) -> Result<()> {
        let path = self.file_path(number);
        let remove = || {
            let (disk, path) = (Arc::clone(&self.disk), path.clone());
            async move { offload(move || remove_at(&*disk, &path)).await? }
        };
        self.disk.patience().until_possible_async(remove).await
    }

    /// Makes a file whose space is allocated and that was never written. May take long.
    pub(super) fn allocate_file(&self, path: &Path, len_bytes: u64) -> Result<Writers> {
        let disk = &self.disk;
        let create = || disk.open_direct(path, OpenMode::CreateNew);
        let direct = match create() {
            // A try that failed further down could not remove it either: its number was never used.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                disk.remove(path).and_then(|()| create())
            }
            created => created,
        };
        let direct = direct.map_err(|source| Error::io("create", path, source))?;
        let cached = disk
            .allocate(&direct, len_bytes)
            .map_err(|source| Error::io("allocate", path, source))
            .and_then(|()| self.open_file(path));
        let cached = self.or_remove(path, cached)?;
        Ok(Writers { cached, direct })
    }

    /// Gives a spare file a new name, to be written again. Returns `None` if the spare file is
    /// gone.
    pub(super) fn reuse_file(&self, spare: &SpareFile, path: &Path) -> Option<Result<Writers>> {
        if let Err(error) = self.disk.rename(&spare.path, path) {
            let path = spare.path.display();
            tracing::warn!(%path, %error, "a journal file is not recycled");
            return None;
        }
        Some(self.or_remove(path, self.open_to_write(path)))
    }

    /// Removes a new file that is not needed.
    fn or_remove<T>(&self, path: &Path, opened: Result<T>) -> Result<T> {
        if opened.is_err() {
            remove_at(&*self.disk, path)?;
        }
        opened
    }

    pub(super) fn open_file(&self, path: &Path) -> Result<File> {
        let opened = self.disk.open(path, OpenMode::ReadWrite);
        opened.map_err(|source| Error::io("open", path, source))
    }

    /// Opens a file, and waits for the end of any shortage.
    pub(super) async fn open_file_patiently(&self, number: u64) -> Result<File> {
        let path = self.file_path(number);
        let patience = self.disk.patience();
        patience.until_possible(|| self.open_file(&path)).await
    }

    /// Opens a file to add to it.
    pub(super) fn open_to_write(&self, path: &Path) -> Result<Writers> {
        let direct = self.disk.open_direct(path, OpenMode::ReadWrite);
        let direct = direct.map_err(|source| Error::io("open", path, source))?;
        let cached = self.open_file(path)?;
        Ok(Writers { cached, direct })
    }

    /// Cuts a file off, and waits for the end of any shortage. Not durably.
    pub(super) async fn cut_file_off(&self, file: &File, len_bytes: u64) -> Result<()> {
        let cut = || {
            let (disk, file) = (Arc::clone(&self.disk), file.clone());
            async move {
                let cut = offload(move || {
                    disk.set_len(&file, len_bytes)
                        .map_err(|source| Error::io("cut off", file.path(), source))
                });
                cut.await?
            }
        };
        self.disk.patience().until_possible_async(cut).await
    }

    /// Bytes of spare files that the volume may have.
    pub(super) fn spare_bytes_max(&self) -> u64 {
        self.bytes_max / SPARE_PART_OF_JOURNAL
    }

    /// Keeps a file that is no longer needed as a spare one, if its volume may have so many bytes
    /// of them, or removes it. May take long.
    pub(super) fn retire_file(
        &self,
        number: u64,
        file: Option<File>,
        len_bytes: u64,
        spare_bytes_max: u64,
        free_bytes: u64,
    ) -> Result<()> {
        let path = self.file_path(number);
        let open = || file.or_else(|| self.open_file(&path).ok());
        // A file that was cut off may be too short to be worth it.
        if len_bytes >= JOURNAL_FILE_BYTES_MIN
            && let Some(file) = open()
        {
            // Pages in the cache would conflict with direct writes.
            self.disk.forget_cached(&file);
            let spare = SpareFile {
                volume: self.volume,
                path: path.clone(),
                file: Some(file),
                len_bytes,
            };
            if self.pool.keep(spare, spare_bytes_max, free_bytes) {
                return Ok(());
            }
        }
        remove_at(&*self.disk, &path)
    }

    /// The length of the next file of a journal that takes so many bytes: as many again, so that a
    /// volume of which little is written takes little space, and one of which much is written has
    /// few files. The length of a spare file is as good, if it fits.
    pub(super) fn next_file_bytes(&self, journal_bytes: u64) -> u64 {
        let part = self.bytes_max / 128;
        let most = part.clamp(JOURNAL_FILE_BYTES_MIN, JOURNAL_FILE_BYTES_MAX);
        let next = journal_bytes.clamp(JOURNAL_FILE_BYTES_MIN, most) / BLOCK * BLOCK;
        let room = self.bytes_max.saturating_sub(journal_bytes);
        self.pool.spare_bytes(self.volume, room).unwrap_or(next)
    }
}

pub(super) fn remove_at(disk: &dyn Disk, path: &Path) -> Result<()> {
    disk.remove(path)
        .map_err(|source| Error::io("remove", path, source))
}

/// The error of a sync. It is never [`Error::Full`], because after a failed sync nobody knows what
/// is on the disk. It is [`Error::Shortage`] only where the sync was not begun: see [`Disk`].
pub(super) fn sync_error(path: PathBuf, source: io::Error) -> Error {
    if is_shortage(&source) {
        return Error::io("sync", &path, source);
    }
    Error::Io {
        verb: "sync",
        path,
        source,
    }
}
