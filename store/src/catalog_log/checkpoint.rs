//! Writing the log anew, with a checkpoint at its beginning.
//!
//! 1. All records of the catalog as it is at one moment are written to a new file. Changes go on
//!    meanwhile, and go to the old log.
//! 2. The records of these changes are copied behind the checkpoint.
//! 3. Once no change can come between, the last of them are copied, the new log is synced, the old
//!    one gets a second name, and the new one takes its place ([`CatalogLog::switch_to`]).
//!
//! The new file belongs to nobody before step 3. If anything fails until then, it is removed and
//! everything is as it was.
//!
//! [`CatalogLog::switch_to`]: super::CatalogLog::switch_to

use std::{
    io::ErrorKind,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::mpsc;

use super::{Deletions, LogReader, Piece, journals};
use crate::{
    Error, Result,
    format::{
        CatalogRecord as _, Change, FormatError, Kinds, StoreId,
        catalog_log::{CheckpointId, LogHeader, Position, checkpoint::BlockWriter},
        names,
        record::Entry,
    },
    io::{AlignedBuf, Disk, File, OpenMode, offload},
    meta::{CatalogView, Meta, Totals, VolumeRecord},
};

/// Blocks that wait to be written.
const BLOCKS_WAITING: usize = 2;

/// A log that is to be replaced.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(super) kinds: Kinds,
    pub(super) header: LogHeader,
    /// From its beginning.
    pub(super) reader: LogReader,
    /// Its end when it was looked at.
    pub(super) end: Position,
}

impl Source {
    /// Its end when it was looked at.
    pub(crate) const fn end(&self) -> Position {
        self.end
    }

    pub(crate) const fn kinds(&self) -> Kinds {
        self.kinds
    }

    pub(crate) fn generation(&self) -> u64 {
        self.header.generation()
    }

    /// Notes the deletions that the log has.
    ///
    /// # Errors
    ///
    /// Errors of reading it.
    pub(crate) async fn note_deletions(mut self, missing: &mut Deletions) -> Result<()> {
        while let Some(piece) = self.reader.next().await? {
            piece.changes().for_each(|change| missing.note(change));
        }
        Ok(())
    }
}

/// A log that is being written, and that nobody relies on yet.
#[derive(Debug)]
pub(crate) struct NewLog {
    disk: Arc<dyn Disk>,
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) header: LogHeader,
    pub(super) checkpoint_bytes: u64,
    pub(super) position: Position,
}

impl NewLog {
    /// Makes the file. An existing file of that name is the remains of a process that ended early.
    ///
    /// # Errors
    ///
    /// Errors of removing and making files.
    pub(crate) fn create(disk: &Arc<dyn Disk>, data_dir: &Path, header: LogHeader) -> Result<Self> {
        let path = names::catalog_log_new(data_dir);
        remove_if_there(&**disk, &path)?;
        let file = disk
            .open_direct(&path, OpenMode::CreateNew)
            .map_err(|source| Error::io("create", &path, source))?;
        Ok(Self {
            disk: Arc::clone(disk),
            file,
            path,
            header,
            checkpoint_bytes: 0,
            position: Position {
                offset_bytes: 0,
                next_sequence: header.base_sequence().saturating_add(1),
            },
        })
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    ///
    /// Errors of writing. The log cannot be completed then.
    async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let bytes = AlignedBuf::from_slice(bytes);
        let len = bytes.len() as u64;
        let offset_bytes = self.position.offset_bytes;
        let written = self.disk.write(&self.file, offset_bytes, bytes).await;
        written.map_err(|source| Error::io("write", &self.path, source))?;
        self.position.offset_bytes += len;
        Ok(())
    }

    /// Copies the remaining records of a reader. Skips those that the checkpoint stands for.
    ///
    /// # Errors
    ///
    /// Errors of reading and writing.
    pub(crate) async fn copy(&mut self, from: &mut LogReader) -> Result<()> {
        while let Some(piece) = from.next().await? {
            let Piece::Records(records) = piece else {
                continue;
            };
            let mut bytes = Vec::new();
            for (sequence, record) in records {
                if sequence < self.position.next_sequence {
                    continue;
                }
                self.check_next(sequence)?;
                bytes.extend_from_slice(&record.encode(sequence));
                self.position.next_sequence += 1;
            }
            if !bytes.is_empty() {
                self.write(&bytes).await?;
            }
        }
        Ok(())
    }

    /// Copies a log from its beginning: its checkpoint, if it has one, and all records.
    ///
    /// # Errors
    ///
    /// Errors of reading and writing.
    pub(crate) async fn copy_all(&mut self, from: &mut LogReader) -> Result<()> {
        self.write(&self.header.encode()).await?;
        if let Some(checkpoint) = self.header.checkpoint {
            let mut blocks = BlockWriter::new(checkpoint.generation);
            while let Some(changes) = from.next_of_checkpoint().await? {
                for change in &changes {
                    if let Some(block) = blocks.push(change) {
                        self.write(&block).await?;
                    }
                }
            }
            self.write(&blocks.finish()).await?;
            self.checkpoint_bytes = self.position.offset_bytes;
        }
        self.copy(from).await
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that a record is the next one.
    fn check_next(&self, sequence: u64) -> Result<()> {
        let expected = self.position.next_sequence;
        if sequence == expected {
            return Ok(());
        }
        Err(Error::Internal(format!(
            "{} is to have record {expected} next, and gets record {sequence}",
            self.path.display()
        )))
    }

    /// Makes the log durable, except for its name.
    ///
    /// # Errors
    ///
    /// Errors of the sync.
    pub(crate) async fn sync(&self) -> Result<()> {
        let synced = self.disk.sync_data(&self.file).await;
        synced.map_err(|source| Error::Io {
            verb: "sync",
            path: self.path.clone(),
            source,
        })
    }

    /// Checks that it has the same last record as the log that it is to replace.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`].
    pub(crate) fn check_end(&self, old: Position) -> Result<()> {
        let (expected, found) = (old.next_sequence, self.position.next_sequence);
        if expected == found {
            return Ok(());
        }
        Err(Error::Internal(format!(
            "{} has records up to {}, and is to replace a log with records up to {}",
            self.path.display(),
            found - 1,
            expected - 1
        )))
    }

    pub(crate) const fn position(&self) -> Position {
        self.position
    }

    pub(crate) const fn base_sequence(&self) -> u64 {
        match self.header.checkpoint {
            Some(checkpoint) => checkpoint.base_sequence,
            None => 0,
        }
    }
}

/// Removes the unfinished new log. If this fails, the next start removes it.
pub(crate) fn abandon(disk: &dyn Disk, data_dir: &Path) {
    if let Err(error) = remove_if_there(disk, &names::catalog_log_new(data_dir)) {
        tracing::debug!(%error, "an unfinished catalog log was not removed");
    }
}

/// A new log whose checkpoint has all records of the catalog, and lacks deletions and end mark.
#[derive(Debug)]
pub(crate) struct Unfinished {
    new: NewLog,
    blocks: BlockWriter,
    /// Volumes that have a journal and no record. The caller notes which of them were deleted.
    pub(crate) missing: Deletions,
}

/// Begins a new log with the records of a catalog as they are at one moment. Calls `may_go_on`
/// before each write.
///
/// # Errors
///
/// Errors of reading the catalog, of writing, and of `may_go_on`.
pub(crate) async fn begin_checkpoint(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
    id: (StoreId, Kinds, u64),
    meta: Arc<dyn Meta>,
    may_go_on: impl Fn() -> Result<()>,
) -> Result<Unfinished> {
    let (store, kinds, generation) = id;
    // Before the view: a volume has a record before it has a journal. So a journal whose volume has
    // no record in the view is of a volume that was deleted before, or that nobody knows.
    let (there, dir) = (Arc::clone(disk), data_dir.to_owned());
    let missing = Deletions::of(offload(move || journals(&*there, &dir)).await??);
    let (send, mut blocks) = mpsc::channel(BLOCKS_WAITING);
    let scanning = offload(move || {
        let mut scan = Scan {
            blocks: BlockWriter::new(generation),
            totals: Totals::default(),
            missing,
            send,
        };
        meta.view_catalog(&mut |view| scan.all(view, kinds))?;
        Ok::<_, Error>((scan.blocks, scan.missing))
    });
    let writing = async move {
        let mut new = None;
        while let Some(part) = blocks.recv().await {
            may_go_on()?;
            match (part, &mut new) {
                (Part::Begin { base_sequence }, new) => {
                    let checkpoint = Some(CheckpointId {
                        base_sequence,
                        generation,
                    });
                    let header = LogHeader { store, checkpoint };
                    let begun = new.insert(NewLog::create(disk, data_dir, header)?);
                    begun.write(&header.encode()).await?;
                }
                (Part::Block(bytes), Some(new)) => new.write(&bytes).await?,
                (Part::Block(_), None) => {}
            }
        }
        Ok::<_, Error>(new)
    };
    let (scanned, written) = tokio::join!(scanning, writing);
    // The scan also fails if nobody writes its output.
    let new = written?;
    let (blocks, missing) = scanned??;
    let new = new.ok_or(Error::Closing)?;
    Ok(Unfinished {
        new,
        blocks,
        missing,
    })
}

impl Unfinished {
    /// Ends the checkpoint.
    ///
    /// # Errors
    ///
    /// Errors of writing.
    pub(crate) async fn finish(self) -> Result<NewLog> {
        let Self {
            mut new,
            mut blocks,
            missing,
        } = self;
        for id in missing.iter() {
            let deletion = Change::delete::<VolumeRecord>(&id);
            if let Some(block) = blocks.push(&deletion) {
                new.write(&block).await?;
            }
        }
        new.write(&blocks.finish()).await?;
        new.checkpoint_bytes = new.position.offset_bytes;
        Ok(new)
    }
}

/// A part of a new log, on its way to the disk.
#[derive(Debug)]
enum Part {
    Begin { base_sequence: u64 },
    Block(Vec<u8>),
}

/// A pass over the catalog.
struct Scan {
    blocks: BlockWriter,
    /// The sums over the records so far.
    totals: Totals,
    missing: Deletions,
    send: mpsc::Sender<Part>,
}

impl Scan {
    fn all(&mut self, view: &dyn CatalogView, kinds: Kinds) -> Result<()> {
        let base_sequence = view.catalog_sequence()?;
        self.send(Part::Begin { base_sequence })?;
        for kind in kinds.iter() {
            let mut added = Ok(());
            view.all_entries(kind, &mut |entry| {
                added = self.add(entry);
                match added {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            })?;
            added?;
        }
        self.check_totals(&view.totals()?)
    }

    /// Checks that all records were there. The log without a checkpoint is the truth, and RocksDB
    /// is not: a RocksDB that lost records must not become the truth.
    fn check_totals(&self, expected: &Totals) -> Result<()> {
        let sums = |totals: &Totals| {
            let Totals {
                snapshots,
                volumes,
                logical_bytes,
                others,
                ..
            } = *totals;
            (snapshots, volumes, logical_bytes, others)
        };
        let (expected, found) = (sums(expected), sums(&self.totals));
        if expected == found {
            return Ok(());
        }
        Err(Error::Index {
            verb: "be the source of a log checkpoint",
            message: format!(
                "its totals are {expected:?} snapshots, volumes, bytes and others, and it has \
                {found:?}; `varved rebuild` makes it anew from the log"
            ),
        })
    }

    fn add(&mut self, entry: Entry) -> Result<()> {
        // A record that cannot be decoded must not become the truth, either.
        let keys = entry.keys().map_err(undecodable)?;
        if let Some(count) = self.totals.count_mut(entry.kind()) {
            *count += 1;
        }
        self.totals.logical_bytes += u128::from(keys.logical_bytes);
        if entry.kind() == VolumeRecord::KIND {
            let volume = entry.record::<VolumeRecord>().map_err(undecodable)?;
            self.missing.forget(volume.id);
        }
        match self.blocks.push(&Change::Put(entry)) {
            Some(block) => self.send(Part::Block(block)),
            None => Ok(()),
        }
    }

    /// Waits for a place in the queue.
    fn send(&self, part: Part) -> Result<()> {
        let sent = self.send.blocking_send(part);
        sent.map_err(|_| Error::Closing)
    }
}

fn undecodable(error: FormatError) -> Error {
    Error::Index {
        verb: "decode a record",
        message: error.to_string(),
    }
}

fn remove_if_there(disk: &dyn Disk, path: &Path) -> Result<()> {
    match disk.remove(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(Error::io("remove", path, source))
        }
        _ => Ok(()),
    }
}
