//! The log, open for appending.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{LogReader, NewLog, WINDOW_BYTES, checkpoint::Source, found::read_header};
use crate::{
    Error, Result,
    failpoints::{Failpoint, reach},
    format::{
        Kinds, StoreId,
        catalog_log::{LOG_ALIGN, LogHeader, Position, Record},
        names,
    },
    io::{AlignedBuf, Disk, File, OpenMode},
};

/// The log, open for appending.
#[derive(Debug)]
pub(crate) struct CatalogLog {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) file: File,
    /// The name of the file: it may have been opened under another.
    pub(super) path: PathBuf,
    /// The kinds of records that it may hold.
    pub(super) kinds: Kinds,
    pub(super) header: LogHeader,
    /// The end of the checkpoint, without its end mark.
    pub(super) checkpoint_bytes: u64,
    /// The place of the next record: all before is durable.
    pub(super) position: Position,
}

/// The outcome of [`CatalogLog::switch_to`].
#[derive(Debug)]
pub(crate) enum Switch {
    /// The new log is in place.
    Made,
    /// Everything is as it was.
    Refused(Error),
}

impl CatalogLog {
    /// Makes an empty log and makes it durable, but for its name in the directory.
    ///
    /// # Errors
    ///
    /// Errors of making the file, writing and syncing it.
    pub(crate) async fn create(disk: Arc<dyn Disk>, path: PathBuf, store: StoreId) -> Result<Self> {
        let file = disk
            .open_direct(&path, OpenMode::CreateNew)
            .map_err(|source| Error::io("create", &path, source))?;
        let header = LogHeader::without_checkpoint(store);
        let log = Self {
            disk,
            file,
            path,
            kinds: Kinds::ALL,
            header,
            checkpoint_bytes: 0,
            position: Position::START,
        };
        log.write(0, &header.encode()).await?;
        log.sync().await?;
        Ok(log)
    }

    /// Returns true if the log has grown beyond `least_bytes`, and beyond `ratio` times the
    /// checkpoint that it begins with.
    pub(crate) fn is_long(&self, least_bytes: u64, ratio: u64) -> bool {
        self.position.offset_bytes > least_bytes
            && self.position.offset_bytes > self.checkpoint_bytes.saturating_mul(ratio)
    }

    /// The log as it is now, to be read beside further changes.
    pub(crate) fn source(&self) -> Source {
        let end = self.position;
        let file = (&self.file, &*self.path);
        let reader = LogReader::new(&self.disk, file, self.kinds, &self.header, end.offset_bytes);
        Source {
            kinds: self.kinds,
            header: self.header,
            reader,
            end,
        }
    }

    /// The records from a position on that the log has by now.
    pub(crate) fn since(&self, position: Position) -> LogReader {
        self.source().reader.from(position)
    }

    /// Puts a new log in the place of this one, which keeps another name until the next time. The
    /// new log must be [durable](NewLog::sync), and have all records.
    ///
    /// # Errors
    ///
    /// If it is unknown which of both logs has the name, or will have it after a loss of power.
    /// Nothing may be appended to either then.
    pub(crate) async fn switch_to(&mut self, new: NewLog, data_dir: &Path) -> Result<Switch> {
        if let Err(error) = self.keep_as_old(data_dir) {
            return Ok(Switch::Refused(error));
        }
        reach(Failpoint::LogCheckpointWritten);
        if let Err(source) = self.disk.rename(&new.path, &self.path) {
            let error = Error::io("rename to", &self.path, source);
            return match self.is_in_place().await {
                true => Ok(Switch::Refused(error)),
                false => Err(error),
            };
        }
        reach(Failpoint::LogCheckpointRenamed);
        let sync = || self.disk.sync_dir(data_dir);
        let synced = self.disk.patience().until_possible_async(sync).await;
        // The reason does not matter: the new name may be durable or not.
        synced.map_err(|source| Error::Io {
            verb: "sync",
            path: data_dir.to_owned(),
            source,
        })?;
        self.file = new.file;
        self.header = new.header;
        self.checkpoint_bytes = new.checkpoint_bytes;
        self.position = new.position;
        Ok(Switch::Made)
    }

    /// Gives the log a second name, under which it stays when another takes its first one.
    fn keep_as_old(&self, data_dir: &Path) -> Result<()> {
        let old = names::catalog_log_old(data_dir);
        match self.disk.remove(&old) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(Error::io("remove", &old, source));
            }
            _ => {}
        }
        let linked = self.disk.link(&self.path, &old);
        linked.map_err(|source| Error::io("link", &old, source))
    }

    /// Returns true if the file of the log's name is certainly this one.
    async fn is_in_place(&self) -> bool {
        let open = || self.disk.open_direct(&self.path, OpenMode::Read);
        let Ok(file) = self.disk.patience().until_possible(open).await else {
            return false;
        };
        let header = read_header(&*self.disk, &file, &self.path).await;
        header.is_ok_and(|header| header == self.header)
    }

    /// The unreadable end and its offset.
    ///
    /// # Errors
    ///
    /// Errors of reading it.
    pub(crate) async fn torn_tail(&self) -> Result<(u64, AlignedBuf)> {
        let offset_bytes = self.position.offset_bytes;
        let len_bytes = self
            .disk
            .len(&self.file)
            .map_err(|source| Error::io("read the length of", self.path(), source))?;
        // An end that is longer than a record is damage, and is not cut off.
        let len = usize::try_from(len_bytes.saturating_sub(offset_bytes))
            .map_or(WINDOW_BYTES, |len| len.min(WINDOW_BYTES));
        // Reads past the page cache have whole blocks.
        let len = len.next_multiple_of(LOG_ALIGN);
        let read = self.disk.read_up_to(&self.file, offset_bytes, len).await;
        let tail = read.map_err(|source| Error::io("read", self.path(), source))?;
        Ok((offset_bytes, tail))
    }

    /// Cuts off the unreadable end.
    ///
    /// # Errors
    ///
    /// Errors of truncating and syncing the file.
    pub(crate) async fn cut_torn_tail(&mut self) -> Result<()> {
        let cut = || self.disk.set_len(&self.file, self.position.offset_bytes);
        let cut = self.disk.patience().until_possible(cut).await;
        cut.map_err(|source| Error::io("cut the torn tail of", self.path(), source))?;
        self.sync().await
    }

    pub(crate) const fn header(&self) -> &LogHeader {
        &self.header
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a record; it is durable when its number is returned.
    ///
    /// # Errors
    ///
    /// [`Error::Full`] when the disk is full; the log is as it was. After any other error its end
    /// is unknown, and nothing must be appended.
    pub(crate) async fn append(&mut self, record: &Record) -> Result<u64> {
        let Position {
            offset_bytes,
            next_sequence,
        } = self.position;
        let bytes = record.encode(next_sequence);
        self.write(offset_bytes, &bytes).await?;
        reach(Failpoint::CatalogLogWritten);
        self.sync().await?;
        self.position = Position {
            offset_bytes: offset_bytes + bytes.len() as u64,
            next_sequence: next_sequence + 1,
        };
        Ok(next_sequence)
    }

    async fn write(&self, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let path = &*self.path;
        let Err(source) = self
            .disk
            .write(&self.file, offset_bytes, AlignedBuf::from_slice(bytes))
            .await
        else {
            return Ok(());
        };
        let error = Error::io("append to", path, source);
        if matches!(error, Error::Full { .. }) {
            let cut = || self.disk.set_len(&self.file, offset_bytes);
            let cut = self.disk.patience().until_possible(cut).await;
            // The reason does not matter: the refused record may still be there.
            cut.map_err(|source| Error::Io {
                verb: "cut back",
                path: path.to_owned(),
                source,
            })?;
            // A refused record must not come back: after a loss of power it would count as a change
            // that was made.
            self.sync().await?;
        }
        Err(error)
    }

    async fn sync(&self) -> Result<()> {
        // The reason does not matter: the effect of a failed sync is unknown, also when the disk
        // was full.
        self.disk
            .sync_data(&self.file)
            .await
            .map_err(|source| Error::Io {
                verb: "sync",
                path: self.path.clone(),
                source,
            })
    }
}
