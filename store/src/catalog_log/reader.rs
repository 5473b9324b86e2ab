//! Reading a log from end to end. Memory does not grow with the log: one window is read and decoded
//! at a time.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    Damage, Error, Result,
    format::{
        Change, FormatError, Kinds,
        catalog_log::{
            self, Found, LOG_ALIGN, LOG_HEADER_BYTES, LOG_RECORD_BYTES_MAX, LogHeader, Position,
            Record,
            checkpoint::{BLOCK_BYTES_MAX, BlockReader, Part},
        },
    },
    io::{Disk, File},
};

/// Bytes read at a time.
pub(crate) const WINDOW_BYTES: usize = 1 << 20;

const _: () = assert!(WINDOW_BYTES > LOG_RECORD_BYTES_MAX && WINDOW_BYTES > BLOCK_BYTES_MAX);

/// A log that is being read.
#[derive(Debug, Clone)]
pub(crate) struct LogReader {
    file: Readable,
    kinds: Kinds,
    /// The checkpoint, until its end mark is read.
    checkpoint: Option<BlockReader>,
    /// The start of the next piece, and the number of the next record.
    position: Position,
    torn: Option<TornTail>,
}

/// The file of a log, up to where it is read.
#[derive(Debug, Clone)]
struct Readable {
    disk: Arc<dyn Disk>,
    file: File,
    /// The name that the file has by now.
    path: PathBuf,
    end_bytes: u64,
}

impl Readable {
    /// The bytes from an offset on, up to one window.
    async fn window(&self, offset_bytes: u64) -> Result<Bytes> {
        let rest = self.end_bytes.saturating_sub(offset_bytes);
        let len = usize::try_from(rest).map_or(WINDOW_BYTES, |rest| rest.min(WINDOW_BYTES));
        // A torn end has any length, and reads past the page cache have whole blocks.
        let aligned = len.next_multiple_of(LOG_ALIGN);
        let read = self
            .disk
            .read_up_to(&self.file, offset_bytes, aligned)
            .await;
        let read = read.map_err(|source| Error::io("read", &self.path, source))?;
        let bytes = read.into_bytes();
        Ok(bytes.slice(..len.min(bytes.len())))
    }
}

/// A piece of a log, in the order of the log.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A block of the checkpoint.
    Checkpoint(Vec<Change>),
    /// The records of a window, with their numbers.
    Records(Vec<(u64, Record)>),
}

impl Piece {
    /// All changes, in order.
    pub(crate) fn changes(&self) -> Box<dyn Iterator<Item = &Change> + '_> {
        match self {
            Self::Checkpoint(changes) => Box::new(changes.iter()),
            Self::Records(records) => {
                Box::new(records.iter().flat_map(|(_, record)| record.changes()))
            }
        }
    }
}

/// The unreadable end of a log: the record that was being written when the process or the power
/// failed, or the last record, damaged. A caller that knows that the record was applied must report
/// the damage.
#[derive(Debug, Clone)]
pub(crate) struct TornTail {
    offset_bytes: u64,
    why: FormatError,
}

impl fmt::Display for TornTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "catalog log at offset {}: {}",
            self.offset_bytes, self.why
        )
    }
}

impl LogReader {
    /// Begins behind the header of a log, which is read up to `end_bytes`.
    pub(super) fn new(
        disk: &Arc<dyn Disk>,
        (file, path): (&File, &Path),
        kinds: Kinds,
        header: &LogHeader,
        end_bytes: u64,
    ) -> Self {
        let checkpoint = header.checkpoint;
        Self {
            file: Readable {
                disk: Arc::clone(disk),
                file: file.clone(),
                path: path.to_owned(),
                end_bytes,
            },
            kinds,
            checkpoint: checkpoint.map(|it| BlockReader::new(kinds, it.generation)),
            position: start_of(header),
            torn: None,
        }
    }

    /// The same, from a record on.
    pub(super) fn from(self, position: Position) -> Self {
        Self {
            checkpoint: None,
            position,
            ..self
        }
    }

    /// The start of the next piece; at the end, the end of the last whole record.
    pub(crate) const fn position(&self) -> Position {
        self.position
    }

    /// Bytes that are still to be read.
    pub(crate) const fn rest_bytes(&self) -> u64 {
        let end_bytes = self.file.end_bytes;
        end_bytes.saturating_sub(self.position.offset_bytes)
    }

    /// The unreadable end of the log, if it has one. Known once the end was reached.
    pub(crate) fn into_torn(self) -> Option<TornTail> {
        self.torn
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] for a damaged checkpoint, and for a damaged record that others follow;
    /// [`Error::Incompatible`] for a record of a later version.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>> {
        match self.next_of_checkpoint().await? {
            Some(changes) => Ok(Some(Piece::Checkpoint(changes))),
            None => self.records().await,
        }
    }

    /// The next block of the checkpoint; `None` behind its end mark, and in a log without one.
    ///
    /// # Errors
    ///
    /// As of [`next`](Self::next).
    pub(super) async fn next_of_checkpoint(&mut self) -> Result<Option<Vec<Change>>> {
        let Some(checkpoint) = &mut self.checkpoint else {
            return Ok(None);
        };
        let offset_bytes = self.position.offset_bytes;
        let window = self.file.window(offset_bytes).await?;
        let path = &*self.file.path;
        let (bytes, part) = checkpoint.part(&window).map_err(|why| {
            if why.is_unknown() {
                unknown(path, offset_bytes, &why)
            } else {
                damage(path, offset_bytes, "checkpoint", &why)
            }
        })?;
        self.position.offset_bytes += bytes as u64;
        Ok(match part {
            Part::Block(changes) => Some(changes),
            Part::End => {
                self.checkpoint = None;
                None
            }
        })
    }

    async fn records(&mut self) -> Result<Option<Piece>> {
        let from = self.position;
        if self.torn.is_some() {
            return Ok(None);
        }
        let window = self.file.window(from.offset_bytes).await?;
        if window.is_empty() {
            return Ok(None);
        }
        let at_end = window.len() < WINDOW_BYTES
            || from.offset_bytes.saturating_add(window.len() as u64) >= self.file.end_bytes;
        let mut records = Vec::new();
        let mut scan = catalog_log::scan(self.kinds, &window, from, at_end);
        for found in &mut scan {
            match found {
                Found::Record {
                    sequence, record, ..
                } => records.push((sequence, record)),
                Found::Torn { offset_bytes, why } => {
                    self.torn = Some(TornTail { offset_bytes, why });
                }
                // The records before the damage come first.
                Found::Damaged { .. } | Found::Unknown { .. } if !records.is_empty() => break,
                Found::Damaged { offset_bytes, why } => {
                    return Err(damage(&self.file.path, offset_bytes, "record", &why));
                }
                Found::Unknown { offset_bytes, why } => {
                    return Err(unknown(&self.file.path, offset_bytes, &why));
                }
            }
        }
        self.position = scan.position();
        Ok(Some(Piece::Records(records)))
    }
}

fn unknown(path: &Path, offset_bytes: u64, why: &FormatError) -> Error {
    Error::Incompatible {
        path: path.to_owned(),
        why: format!("record at offset {offset_bytes}: {why}"),
    }
}

/// The end of a log's header, with the number of the first record behind its checkpoint.
fn start_of(header: &LogHeader) -> Position {
    Position {
        offset_bytes: LOG_HEADER_BYTES as u64,
        next_sequence: header.base_sequence().saturating_add(1),
    }
}

pub(super) fn damage(path: &Path, offset_bytes: u64, what: &str, problem: &FormatError) -> Error {
    Damage::in_file(
        path,
        offset_bytes,
        format_args!("catalog log {what}"),
        problem,
    )
    .into()
}
