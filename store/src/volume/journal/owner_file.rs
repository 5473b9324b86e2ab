//! The owner record beside a journal, kept true.
//!
//! The catalog comes first. Its change is durable, then the owner record is written and synced, and only then does anything
//! follow that builds on the change: a journal file is made, or one is removed, or a guest writes behind the old end. So the
//! record may be one change behind the catalog, never ahead of it, and what it says is always true of the files beside it.
//!
//! While a volume is not open its journal does not change, and neither does the record: opening brings it up to date.
//! It is written in place, so a full disk does not keep a journal from being emptied.

use std::{
    fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{dir::Owner, recovery::durable};
use crate::{
    Error, Result,
    commit::Commit,
    format::{
        FormatError, OwnerRecord, StoreId, VolumeId, VolumeRecord, names, owner::OWNER_FILE_BYTES,
    },
    io::{AlignedBuf, Disk, File, OpenMode},
    volume::volume::VolumeState,
};

/// The owner record of the journal of an open volume.
#[derive(Debug)]
pub(crate) struct OwnerFile {
    path: PathBuf,
    /// What is there; `None` while nothing whole is.
    last: Option<OwnerRecord>,
}

impl OwnerFile {
    /// Reads the record, and writes it if it is not there or not what the catalog says. The directory is there.
    ///
    /// # Errors
    ///
    /// [`Error::Incompatible`] when the journal is another volume's, or the catalog is older than the journal.
    pub(crate) async fn open(
        commit: &Commit,
        owner: &Owner,
        record: &VolumeRecord,
    ) -> Result<Self> {
        let mut opened = Self {
            path: names::journal_owner(&owner.data_dir, owner.volume),
            last: None,
        };
        match read_owner(&owner.disk, &owner.data_dir, owner.volume).await? {
            Some(Ok(last)) => {
                check_owner(&last, owner.store, owner.volume).map_err(|why| opened.refuse(why))?;
                let numbers = |of: &VolumeRecord| [of.journal_from, of.size_bytes];
                let both = numbers(&last.volume).into_iter().zip(numbers(record));
                for ((says, catalog), what) in both.zip(["first file", "size in bytes"]) {
                    if says > catalog {
                        return Err(opened.refuse(format!(
                            "{what} of volume {:?}: {says} by its journal, {catalog} by the catalog, which is older; \
                             `varved rebuild` puts the volume on what its journal says",
                            record.name
                        )));
                    }
                }
                opened.last = Some(last);
            }
            Some(Err(why)) if why.is_unknown() => return Err(opened.refuse(why)),
            // Its making was cut short, or it is damaged. The catalog is the truth.
            Some(Err(_)) | None => {}
        }
        opened.follow(commit, owner, record).await?;
        Ok(opened)
    }

    /// Writes down what the catalog says of the volume now, if that is not what is there.
    ///
    /// # Errors
    ///
    /// A write or sync that fails, other than for want of space, stops the store.
    pub(crate) async fn follow(
        &mut self,
        commit: &Commit,
        owner: &Owner,
        record: &VolumeRecord,
    ) -> Result<()> {
        let volume = OwnerRecord::kept(record);
        let number = match &self.last {
            Some(last) if last.volume == volume => return Ok(()),
            Some(last) => last.number + 1,
            None => 1,
        };
        let next = OwnerRecord {
            store: owner.store,
            number,
            volume,
        };
        let written = match &self.last {
            Some(_) => self.write_next(commit, owner, &next).await,
            None => self.write_first(commit, owner, &next).await,
        };
        match written {
            Ok(()) => {
                self.last = Some(next);
                Ok(())
            }
            // Nothing is there that could be wrong. A volume can be read on a full disk.
            Err(error @ Error::Full { .. }) if self.last.is_none() => {
                tracing::warn!(volume = record.name, %error, "its journal has no owner record yet");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the file in its full length, so that what is written later takes no more space.
    async fn write_first(&self, commit: &Commit, owner: &Owner, first: &OwnerRecord) -> Result<()> {
        let slot = first.encode().map_err(|why| self.refuse(why))?;
        let mut bytes = vec![0; OWNER_FILE_BYTES];
        for (into, byte) in bytes.iter_mut().skip(slot_start(first)).zip(slot) {
            *into = byte;
        }
        let open = || match owner.disk.open_direct(&self.path, OpenMode::ReadWrite) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                owner.disk.open_direct(&self.path, OpenMode::CreateNew)
            }
            opened => opened,
        };
        let file = owner.disk.patience().until_possible(open).await;
        let file = file.map_err(|source| Error::io("create", &self.path, source))?;
        write(commit, &owner.disk, &file, 0, &bytes).await?;
        owner.sync_dir().await.inspect_err(|error| match error {
            Error::Shortage { .. } => {}
            error => commit.poison(error),
        })
    }

    async fn write_next(&self, commit: &Commit, owner: &Owner, next: &OwnerRecord) -> Result<()> {
        let slot = next.encode().map_err(|why| self.refuse(why))?;
        // Not kept open: there may be thousands of volumes.
        let open = || owner.disk.open_direct(&self.path, OpenMode::ReadWrite);
        let file = owner.disk.patience().until_possible(open).await;
        let file = file.map_err(|source| Error::io("open", &self.path, source))?;
        write(commit, &owner.disk, &file, next.offset_bytes(), &slot).await
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

impl VolumeState {
    /// Writes beside the journal what the catalog says of the volume now. The record is asked for in turn, so that an older one does
    /// not overtake a newer one.
    pub(crate) async fn record_owner(self: &Arc<Self>) -> Result<()> {
        let volume = Arc::clone(self);
        let write = async move |commit: Arc<Commit>| {
            let mut owner_file = volume.owner_file.lock().await;
            match volume.engine.find(&volume.record.id.to_string()).await {
                Ok(record) => {
                    let owner = volume.journal.owner();
                    owner_file.follow(&commit, owner, &record).await
                }
                // Deleted, and so is its journal.
                Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.engine.commit.to_the_end(write).await
    }
}

/// The owner record in a volume's directory: `None` if there is none.
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

/// That a record is of this store's volume.
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

async fn write(
    commit: &Commit,
    disk: &Arc<dyn Disk>,
    file: &File,
    offset_bytes: u64,
    bytes: &[u8],
) -> Result<()> {
    let written = disk.write(file, offset_bytes, AlignedBuf::from_slice(bytes));
    match written.await {
        Ok(_) => durable(commit, disk.sync_data(file), file.path()).await,
        Err(source) => {
            let error = Error::io("write", file.path(), source);
            if !matches!(error, Error::Full { .. }) {
                commit.poison(&error);
            }
            Err(error)
        }
    }
}
