//! The log as it was found. Nothing is appended before all of it was read.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    CatalogLog, LogReader, Piece,
    reader::{TornTail, damage},
};
use crate::{
    Error, Result,
    format::{
        Change, Kinds, StoreId,
        catalog_log::{LOG_HEADER_BYTES, LogHeader},
    },
    io::{Disk, File, OpenMode},
};

/// A log that was opened, and of which only the header was read.
#[derive(Debug)]
pub(crate) struct FoundLog {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// The kinds of records that it may hold.
    pub(super) kinds: Kinds,
    pub(super) header: LogHeader,
    pub(super) len_bytes: u64,
}

/// The result of reading a whole log.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Number of the last record; without records, that of the last one that the checkpoint stands
    /// for.
    pub(crate) last_sequence: u64,
    /// The part that the catalog lacks.
    pub(crate) rest: Rest,
    pub(crate) torn: Option<TornTail>,
}

/// The part of a log that a catalog lacks.
#[derive(Debug)]
pub(crate) enum Rest {
    /// Everything: the checkpoint and all records.
    All(LogReader),
    /// Records. The first ones may be known already.
    Records(LogReader),
}

impl FoundLog {
    /// Opens a log and reads its header.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] for a damaged header, [`Error::Incompatible`] for the log of another
    /// store or of a later version.
    pub(crate) async fn open(disk: Arc<dyn Disk>, path: PathBuf, store: StoreId) -> Result<Self> {
        Self::open_with(disk, path, store, Kinds::ALL).await
    }

    /// The same for these kinds of records.
    pub(crate) async fn open_with(
        disk: Arc<dyn Disk>,
        path: PathBuf,
        store: StoreId,
        kinds: Kinds,
    ) -> Result<Self> {
        let file = disk
            .open_direct(&path, OpenMode::ReadWrite)
            .map_err(|source| Error::io("open", &path, source))?;
        // A killed process may not have synced its last record. A record must be durable here
        // before it is applied: otherwise a power cut leaves a catalog that is ahead of its log.
        let synced = disk.sync_data(&file).await;
        synced.map_err(|source| Error::Io {
            verb: "sync",
            path: path.clone(),
            source,
        })?;
        disk.forget_cached(&file);
        let header = read_header(&*disk, &file, &path).await?;
        if header.store != store {
            return Err(Error::Incompatible {
                path,
                why: format!(
                    "it belongs to store {}, this is store {store}",
                    header.store
                ),
            });
        }
        let len_bytes = disk
            .len(&file)
            .map_err(|source| Error::io("read the length of", &path, source))?;
        Ok(Self {
            disk,
            file,
            path,
            kinds,
            header,
            len_bytes,
        })
    }

    pub(crate) const fn header(&self) -> &LogHeader {
        &self.header
    }

    /// Reads it from its beginning.
    pub(crate) fn reader(&self) -> LogReader {
        let file = (&self.file, &*self.path);
        LogReader::new(&self.disk, file, self.kinds, &self.header, self.len_bytes)
    }

    /// Returns true if it has no checkpoint and no whole record.
    ///
    /// # Errors
    ///
    /// Errors of reading the first records.
    pub(crate) async fn is_empty(&self) -> Result<bool> {
        if self.header.checkpoint.is_some() {
            return Ok(false);
        }
        Ok(match self.reader().next().await? {
            Some(piece) => piece.changes().next().is_none(),
            None => true,
        })
    }

    /// Reads the whole log. `applied` is the number of the last record that the catalog has; `look`
    /// gets every change, in order.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] for a damaged checkpoint, and for a damaged record that others follow;
    /// [`Error::Incompatible`] for a record of a later version.
    pub(crate) async fn check(
        self,
        applied: u64,
        mut look: impl FnMut(&Change),
    ) -> Result<(CatalogLog, Checked)> {
        let mut reader = self.reader();
        let base_sequence = self.header.base_sequence();
        let mut rest = (applied < base_sequence).then(|| Rest::All(reader.clone()));
        let mut checkpoint_bytes = 0;
        loop {
            let at = reader.clone();
            let Some(piece) = reader.next().await? else {
                break;
            };
            piece.changes().for_each(&mut look);
            match &piece {
                Piece::Checkpoint(_) => checkpoint_bytes = reader.position().offset_bytes,
                Piece::Records(records) => {
                    let is_behind = |(sequence, _): &(u64, _)| *sequence > applied;
                    if rest.is_none() && records.iter().any(is_behind) {
                        rest = Some(Rest::Records(at));
                    }
                }
            }
        }
        let position = reader.position();
        let checked = Checked {
            last_sequence: position.next_sequence - 1,
            rest: rest.unwrap_or_else(|| Rest::Records(reader.clone())),
            torn: reader.into_torn(),
        };
        let log = CatalogLog {
            disk: self.disk,
            file: self.file,
            path: self.path,
            kinds: self.kinds,
            header: self.header,
            checkpoint_bytes,
            position,
        };
        Ok((log, checked))
    }
}

/// Reads the header of a log.
pub(super) async fn read_header(disk: &dyn Disk, file: &File, path: &Path) -> Result<LogHeader> {
    let header = disk
        .read_up_to(file, 0, LOG_HEADER_BYTES)
        .await
        .map_err(|source| Error::io("read", path, source))?;
    LogHeader::decode(&header).map_err(|why| {
        if why.is_unknown() {
            return Error::Incompatible {
                path: path.to_owned(),
                why: why.to_string(),
            };
        }
        damage(path, 0, "header", &why)
    })
}
