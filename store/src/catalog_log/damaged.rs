//! A damaged log: the parts that can still be read.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{LogReader, Piece, WINDOW_BYTES, found::read_header};
use crate::{
    Error, Result,
    format::{
        Change, Kinds, StoreId,
        catalog_log::{
            LOG_ALIGN, LOG_HEADER_BYTES, LogHeader, Position, checkpoint::is_end_mark, sequence_at,
        },
    },
    io::{Disk, File, OpenMode},
};

/// A log in which something is damaged.
#[derive(Debug)]
pub(crate) struct DamagedLog {
    disk: Arc<dyn Disk>,
    file: File,
    path: PathBuf,
    store: StoreId,
    /// `None` if the header is damaged.
    header: Option<LogHeader>,
    len_bytes: u64,
}

/// The unreadable part of a log, and the readable part behind it.
#[derive(Debug)]
pub(crate) struct Lost {
    /// Number of the last unreadable record; if unknown, the highest that it can have. If only a
    /// checkpoint is unreadable, number of the last record that it stands for.
    pub(crate) last_sequence: u64,
    /// The records behind the last damage, if there are any.
    pub(crate) rest: Option<LogReader>,
}

/// A finding of [`DamagedLog::pass`], in the order of the log.
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    /// Something that cannot be read.
    Damage,
    /// A change of the record with this number, behind the first damage.
    Change(u64, &'a Change),
}

impl DamagedLog {
    /// Opens a log.
    ///
    /// # Errors
    ///
    /// [`Error::Incompatible`] for the log of another store or of a later version.
    pub(crate) async fn open(disk: &Arc<dyn Disk>, path: &Path, store: StoreId) -> Result<Self> {
        let file = disk
            .open_direct(path, OpenMode::Read)
            .map_err(|source| Error::io("open", path, source))?;
        let header = match read_header(&**disk, &file, path).await {
            Ok(header) => Some(header),
            Err(Error::Damaged(_)) => None,
            Err(error) => return Err(error),
        };
        let len_bytes = disk
            .len(&file)
            .map_err(|source| Error::io("read the length of", path, source))?;
        Ok(Self {
            disk: Arc::clone(disk),
            file,
            path: path.to_owned(),
            store,
            header,
            len_bytes,
        })
    }

    pub(crate) const fn header(&self) -> Option<&LogHeader> {
        self.header.as_ref()
    }

    /// Goes through the log. `look` is shown each damage, and the changes of all records behind the
    /// first one.
    ///
    /// # Errors
    ///
    /// [`Error::Incompatible`] for a record of a later version, those of reading, and of `look`.
    pub(crate) async fn pass(&self, mut look: impl FnMut(Seen<'_>) -> Result<()>) -> Result<Lost> {
        let header = self
            .header
            .unwrap_or(LogHeader::without_checkpoint(self.store));
        let file = (&self.file, &*self.path);
        let mut reader = LogReader::new(&self.disk, file, Kinds::ALL, &header, self.len_bytes);
        let mut lost = Lost {
            last_sequence: 0,
            rest: None,
        };
        let mut is_damaged = self.header.is_none();
        if is_damaged {
            look(Seen::Damage)?;
            reader = match self.go_on(reader.position(), &mut lost).await? {
                Some(reader) => reader,
                None => return Ok(lost),
            };
        }
        loop {
            match reader.next().await {
                Ok(None) => return Ok(lost),
                Ok(Some(Piece::Checkpoint(_))) => {}
                Ok(Some(Piece::Records(records))) if is_damaged => {
                    for (sequence, record) in &records {
                        for change in record.changes() {
                            look(Seen::Change(*sequence, change))?;
                        }
                    }
                }
                Ok(Some(Piece::Records(_))) => {}
                Err(Error::Damaged(_)) => {
                    is_damaged = true;
                    look(Seen::Damage)?;
                    // After an error the reader is in front of the unreadable part.
                    let at = reader.position();
                    let behind = Position {
                        offset_bytes: at.offset_bytes.saturating_add(LOG_ALIGN as u64),
                        ..at
                    };
                    reader = match self.go_on(behind, &mut lost).await? {
                        Some(reader) => reader,
                        None => return Ok(lost),
                    };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Finds the next record behind damage, from an offset on, and notes the loss. The number of
    /// the position is that of the first record that may be lost.
    async fn go_on(&self, from: Position, lost: &mut Lost) -> Result<Option<LogReader>> {
        let mut offset_bytes = from.offset_bytes;
        let mut last_is_mark = false;
        loop {
            let read = self
                .disk
                .read_up_to(&self.file, offset_bytes, WINDOW_BYTES)
                .await;
            let window = read.map_err(|source| Error::io("read", &self.path, source))?;
            if window.is_empty() {
                break;
            }
            for block in window.chunks(LOG_ALIGN) {
                // The header of the damaged record itself may be readable. It does not count: only
                // records from the number of `from` on do.
                if let Some(sequence) = sequence_at(block)
                    && sequence >= from.next_sequence
                {
                    lost.last_sequence = sequence - 1;
                    let file = (&self.file, &*self.path);
                    let header = LogHeader::without_checkpoint(self.store);
                    let reader =
                        LogReader::new(&self.disk, file, Kinds::ALL, &header, self.len_bytes);
                    let reader = reader.from(Position {
                        offset_bytes,
                        next_sequence: sequence,
                    });
                    lost.rest = Some(reader.clone());
                    return Ok(Some(reader));
                }
                last_is_mark = is_end_mark(block);
                offset_bytes += block.len() as u64;
            }
            // The end, perhaps in the middle of a block. Nothing can be read behind it.
            if window.len() < WINDOW_BYTES {
                break;
            }
        }
        lost.rest = None;
        // Nothing can be read behind the damage: each block may have been a record.
        let first = from.offset_bytes.saturating_sub(LOG_ALIGN as u64);
        let first = first.max(LOG_HEADER_BYTES as u64);
        let most = self
            .len_bytes
            .saturating_sub(first)
            .div_ceil(LOG_ALIGN as u64);
        let most = if last_is_mark { 0 } else { most };
        lost.last_sequence = (from.next_sequence - 1).saturating_add(most);
        Ok(None)
    }
}
