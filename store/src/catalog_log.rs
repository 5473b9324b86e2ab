//! The catalog log: every change of the catalog, in order, durable before it is applied.
//!
//! Queries go to the catalog in RocksDB, which can be rebuilt from this file. Appends are small and
//! rare, one per change of a snapshot or volume.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Damage, Error, Result,
    failpoints::{Failpoint, reach},
    format::{
        FormatError, Kinds, StoreId,
        catalog_log::{
            self, Found, LOG_HEADER_BYTES, LOG_RECORD_BYTES_MAX, LogHeader, Position, Record,
        },
    },
    io::{AlignedBuf, Disk, File, OpenMode},
};

/// Read at a time when the log is opened.
const WINDOW_BYTES: usize = 1 << 20;

const _: () = assert!(WINDOW_BYTES > LOG_RECORD_BYTES_MAX);

/// The log, open for appending.
#[derive(Debug)]
pub(crate) struct CatalogLog {
    disk: Arc<dyn Disk>,
    file: File,
    /// The kinds of records that it may hold.
    kinds: Kinds,
    /// Where the next record goes: all before is durable.
    position: Position,
}

/// The content of a log when it was opened.
#[derive(Debug)]
pub(crate) struct Replay {
    /// The records with their numbers, in order.
    pub(crate) records: Vec<(u64, Record)>,
    /// The unreadable end, if there is one: the record that was being written when the process or
    /// the power failed, or the last record, damaged. A caller that knows that it was applied has
    /// to report the damage.
    pub(crate) torn: Option<TornTail>,
}

/// The end of a log that cannot be read.
#[derive(Debug)]
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

impl CatalogLog {
    /// Makes an empty log and makes it durable, but for its name in the directory.
    pub(crate) async fn create(disk: Arc<dyn Disk>, path: PathBuf, store: StoreId) -> Result<Self> {
        let file = disk
            .open_direct(&path, OpenMode::CreateNew)
            .map_err(|source| Error::io("create", &path, source))?;
        let header = LogHeader { store }.encode();
        let log = Self {
            disk,
            file,
            kinds: Kinds::ALL,
            position: Position::START,
        };
        log.write(0, &header).await?;
        log.sync().await?;
        Ok(log)
    }

    /// Opens a log and reads all of it.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] when a record is damaged that others follow, [`Error::Incompatible`] when
    /// it is another store's or a later version's.
    pub(crate) async fn open(
        disk: Arc<dyn Disk>,
        path: PathBuf,
        store: StoreId,
    ) -> Result<(Self, Replay)> {
        Self::open_with(disk, path, store, Kinds::ALL).await
    }

    /// The same for these kinds of records.
    pub(crate) async fn open_with(
        disk: Arc<dyn Disk>,
        path: PathBuf,
        store: StoreId,
        kinds: Kinds,
    ) -> Result<(Self, Replay)> {
        let file = disk
            .open_direct(&path, OpenMode::ReadWrite)
            .map_err(|source| Error::io("open", &path, source))?;
        let mut log = Self {
            disk,
            file,
            kinds,
            position: Position::START,
        };
        // A process that was killed may not have lived to sync its last record. A record must be
        // durable here before it is applied: otherwise a power cut leaves a catalog that is ahead
        // of its log.
        log.sync().await?;
        log.disk.forget_cached(&log.file);
        let replay = log.replay(store).await?;
        Ok((log, replay))
    }

    /// Reads the log to its end, and leaves the position there.
    async fn replay(&mut self, store: StoreId) -> Result<Replay> {
        let path = self.file.path().to_owned();
        let failed = |verb| move |source| Error::io(verb, &path, source);
        let header = self
            .disk
            .read_up_to(&self.file, 0, LOG_HEADER_BYTES)
            .await
            .map_err(failed.clone()("read"))?;
        let header =
            LogHeader::decode(&header).map_err(|problem| self.damage(0, "header", &problem))?;
        if header.store != store {
            return Err(Error::Incompatible {
                path: self.file.path().to_owned(),
                why: format!(
                    "it belongs to store {}, this is store {store}",
                    header.store
                ),
            });
        }
        let len_bytes = self
            .disk
            .len(&self.file)
            .map_err(failed.clone()("read the length of"))?;
        let mut replay = Replay {
            records: Vec::new(),
            torn: None,
        };
        loop {
            let from = self.position;
            let read = self
                .disk
                .read_up_to(&self.file, from.offset_bytes, WINDOW_BYTES)
                .await;
            let window = read.map_err(failed.clone()("read"))?;
            let at_end = from.offset_bytes + window.len() as u64 >= len_bytes;
            let mut scan = catalog_log::scan(self.kinds, &window, from, at_end);
            for found in &mut scan {
                match found {
                    Found::Record {
                        sequence, record, ..
                    } => replay.records.push((sequence, record)),
                    Found::Torn { offset_bytes, why } => {
                        replay.torn = Some(TornTail { offset_bytes, why });
                    }
                    Found::Damaged { offset_bytes, why } => {
                        return Err(self.damage(offset_bytes, "record", &why));
                    }
                    Found::Unknown { offset_bytes, why } => {
                        return Err(Error::Incompatible {
                            path: self.file.path().to_owned(),
                            why: format!("record at offset {offset_bytes}: {why}"),
                        });
                    }
                }
            }
            self.position = scan.position();
            if at_end {
                break;
            }
        }
        Ok(replay)
    }

    /// The unreadable end and its offset.
    pub(crate) async fn torn_tail(&self) -> Result<(u64, AlignedBuf)> {
        let offset_bytes = self.position.offset_bytes;
        let len_bytes = self
            .disk
            .len(&self.file)
            .map_err(|source| Error::io("read the length of", self.path(), source))?;
        // An end that is longer than a record is damage, and is not cut off.
        let len = usize::try_from(len_bytes.saturating_sub(offset_bytes))
            .map_or(WINDOW_BYTES, |len| len.min(WINDOW_BYTES));
        let read = self.disk.read_up_to(&self.file, offset_bytes, len).await;
        let tail = read.map_err(|source| Error::io("read", self.path(), source))?;
        Ok((offset_bytes, tail))
    }

    /// Cuts off what could not be read at the end.
    pub(crate) async fn cut_torn_tail(&mut self) -> Result<()> {
        let cut = || self.disk.set_len(&self.file, self.position.offset_bytes);
        let cut = self.disk.patience().until_possible(cut).await;
        cut.map_err(|source| Error::io("cut the torn tail of", self.path(), source))?;
        self.sync().await
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    fn damage(&self, offset_bytes: u64, what: &str, problem: &FormatError) -> Error {
        Damage::in_file(
            self.file.path(),
            offset_bytes,
            format_args!("catalog log {what}"),
            problem,
        )
        .into()
    }

    /// Appends a record; it is durable when its number is returned.
    ///
    /// When the disk is full, the log is as it was. After any other error its end is unknown, and
    /// nothing must be appended.
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
        let path = self.file.path();
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
            // Not told apart by its reason: what was refused may still be there.
            cut.map_err(|source| Error::Io {
                verb: "cut back",
                path: path.to_owned(),
                source,
            })?;
            // A record that was refused must not come back: after a loss of power it would be taken
            // for one that was made.
            self.sync().await?;
        }
        Err(error)
    }

    async fn sync(&self) -> Result<()> {
        // Not told apart by its reason: what a failed sync leaves is unknown, also when the disk
        // was full.
        self.disk
            .sync_data(&self.file)
            .await
            .map_err(|source| Error::Io {
                verb: "sync",
                path: self.file.path().to_owned(),
                source,
            })
    }
}
