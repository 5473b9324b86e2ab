//! The owner record beside a journal, kept up to date.
//!
//! The catalog comes first. Once a change there is durable, the owner record is written and synced.
//! Only then follow the steps that build on the change: a journal file is created or removed, or a
//! guest writes behind the old end. So the record may be one change behind the catalog, never ahead
//! of it, and it always describes the files beside it correctly.
//!
//! The journal of a volume that is not open does not change, and neither does the record: opening
//! brings it up to date. It is written in place, so a full disk does not prevent a checkpoint of
//! the journal.

use std::{
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::dir::JournalDir;
use crate::{
    Error, Result,
    format::{
        FormatError, OwnerRecord, StoreId, VolumeId, VolumeRecord, names, owner::OWNER_FILE_BYTES,
    },
    io::{AlignedBuf, Disk, File, OpenMode},
};

/// The owner record of an open journal.
#[derive(Debug)]
pub(crate) struct OwnerFile {
    path: PathBuf,
    /// The record on disk; `None` if there is none, or none that is whole.
    last: Option<OwnerRecord>,
}

impl OwnerFile {
    /// Reads the record, and writes it if it is absent or differs from the catalog. The directory
    /// exists.
    ///
    /// # Errors
    ///
    /// [`Error::Incompatible`] when the journal is another volume's, or the catalog is older than
    /// the journal.
    pub(crate) async fn open(dir: &JournalDir, record: &VolumeRecord) -> Result<Self> {
        let mut opened = Self {
            path: names::journal_owner(&dir.data_dir, dir.volume),
            last: None,
        };
        match read_owner(&dir.disk, &dir.data_dir, dir.volume).await? {
            Some(Ok(last)) => {
                check_owner(&last, dir.store, dir.volume).map_err(|why| opened.refuse(why))?;
                let numbers = |of: &VolumeRecord| [of.journal_from, of.size_bytes];
                let both = numbers(&last.volume).into_iter().zip(numbers(record));
                for ((says, catalog), what) in both.zip(["first file", "size in bytes"]) {
                    if says > catalog {
                        return Err(opened.refuse(format!(
                            "{what} of volume {:?}: {says} by its journal, \
                             {catalog} by the catalog, which is older; \
                             `varved rebuild` puts the volume on what its journal says",
                            record.label()
                        )));
                    }
                }
                opened.last = Some(last);
            }
            Some(Err(why)) if why.is_unknown() => return Err(opened.refuse(why)),
            // It was never finished, or it is damaged. The catalog is the truth.
            Some(Err(_)) | None => {}
        }
        opened.follow(dir, record).await?;
        Ok(opened)
    }

    /// Writes the catalog's current state of the volume, if the record on disk differs.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] if the disk is full and a record was there before. A write or sync that
    /// fails for another reason stops the store.
    pub(crate) async fn follow(&mut self, dir: &JournalDir, record: &VolumeRecord) -> Result<()> {
        let volume = OwnerRecord::kept(record);
        let number = match &self.last {
            Some(last) if last.volume == volume => return Ok(()),
            Some(last) => last.number + 1,
            None => 1,
        };
        let next = OwnerRecord {
            store: dir.store,
            number,
            volume,
        };
        let written = match &self.last {
            Some(_) => self.write_next(dir, &next).await,
            None => self.write_first(dir, &next).await,
        };
        match written {
            Ok(()) => {
                self.last = Some(next);
                Ok(())
            }
            // There is no record that could be wrong, and a volume can be read on a full disk.
            Err(error @ Error::Full { .. }) if self.last.is_none() => {
                tracing::warn!(volume = &*record.label(), %error, "its journal has no owner record yet");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the file in its full length, so that later records take no more space.
    async fn write_first(&self, dir: &JournalDir, first: &OwnerRecord) -> Result<()> {
        let slot = first.encode().map_err(|why| self.refuse(why))?;
        let mut bytes = vec![0; OWNER_FILE_BYTES];
        for (into, byte) in bytes.iter_mut().skip(slot_start(first)).zip(slot) {
            *into = byte;
        }
        let open = || match dir.disk.open_direct(&self.path, OpenMode::ReadWrite) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                dir.disk.open_direct(&self.path, OpenMode::CreateNew)
            }
            opened => opened,
        };
        let file = dir.disk.patience().until_possible(open).await;
        let file = file.map_err(|source| Error::io("create", &self.path, source))?;
        write(dir, &file, 0, &bytes).await?;
        dir.sync_or_stop().await
    }

    async fn write_next(&self, dir: &JournalDir, next: &OwnerRecord) -> Result<()> {
        let slot = next.encode().map_err(|why| self.refuse(why))?;
        // Not kept open: there may be thousands of volumes.
        let open = || dir.disk.open_direct(&self.path, OpenMode::ReadWrite);
        let file = dir.disk.patience().until_possible(open).await;
        let file = file.map_err(|source| Error::io("open", &self.path, source))?;
        write(dir, &file, next.offset_bytes(), &slot).await
    }

    fn refuse(&self, why: impl fmt::Display) -> Error {
        Error::Incompatible {
            path: self.path.clone(),
            why: why.to_string(),
        }
    }
}

fn slot_start(record: &OwnerRecord) -> usize {
    usize::try_from(record.offset_bytes()).unwrap_or(OWNER_FILE_BYTES)
}

/// Reads the owner record in a volume's directory: `None` if there is none.
pub(crate) async fn read_owner(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
    volume: VolumeId,
) -> Result<Option<std::result::Result<OwnerRecord, FormatError>>> {
    let path = names::journal_owner(data_dir, volume);
    let open = || disk.open(&path, OpenMode::Read);
    let file = match disk.patience().until_possible(open).await {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::io("open", &path, source)),
    };
    let read = disk.read_up_to(&file, 0, OWNER_FILE_BYTES).await;
    let bytes = read.map_err(|source| Error::io("read", &path, source))?;
    Ok(Some(OwnerRecord::latest(&bytes)))
}

/// Checks that a record is of this store's volume.
pub(crate) fn check_owner(
    record: &OwnerRecord,
    store: StoreId,
    volume: VolumeId,
) -> std::result::Result<(), String> {
    if record.store == store && record.volume.id == volume {
        return Ok(());
    }
    Err(format!(
        "it is of volume {} in store {}, where that of volume {volume} in store {store} belongs",
        record.volume.id, record.store
    ))
}

async fn write(dir: &JournalDir, file: &File, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
    let written = dir
        .disk
        .write(file, offset_bytes, AlignedBuf::from_slice(bytes));
    match written.await {
        Ok(_) => dir.sync_file_or_stop(file).await,
        Err(source) => {
            let error = Error::io("write", file.path(), source);
            if !matches!(error, Error::Full { .. }) {
                dir.host.stop_writing(&error);
            }
            Err(error)
        }
    }
}
