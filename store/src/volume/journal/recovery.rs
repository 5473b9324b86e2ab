//! Reading the journal of an earlier process.
//!
//! Batches count from the first one on, as long as each is whole and has the next number. The
//! journal ends at the first batch for which this is not so: a loss of power tore it, and it was
//! never promised. Two witnesses turn that end into damage, and then the volume is not opened: a
//! descriptor behind the end that says that a lost batch was durable, and the volume's record,
//! which says which batches were durable when a snapshot was promised.
//!
//! The order, and why a crash anywhere in it loses nothing:
//!
//! 1. Files before the first one go: their content is in the base.
//! 2. All files are synced. A killed process may not have synced its acknowledged writes; from here
//!    on they are durable. The page cache is dropped, so that the next reads come from the disk.
//! 3. The batches are read, and the witnesses are checked. Until here only 1 and 2 have changed
//!    files, and they may be repeated.
//! 4. The torn end is cut off, from the last file back, so that a crash leaves no gap.
//! 5. The last file and the directory are synced: the torn end stays cut off.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
    sync::Arc,
};

use tokio::sync::Semaphore;

use super::{
    closed::journal_numbers,
    dir::{JournalDir, remove_at},
    journal::Recovered,
    slot::{EPOCH_FILES_MAX, Slot, slot_of},
    windows::Windows,
};
use crate::{
    Damage, Error, Result,
    format::{
        FormatError,
        journal::{Descriptor, Entry, FileHeader, JOURNAL_BLOCK_BYTES, Nonce, first_sequence_of},
    },
    io::{AlignedBuf, File, offload},
    limits::JOURNAL_FILE_BYTES_MAX,
};

const BLOCK: usize = JOURNAL_BLOCK_BYTES;

/// The content of a journal, as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalReport {
    /// Batches that count.
    pub batches: u64,
    /// Data blocks in them.
    pub blocks: u64,
    /// Journal files.
    pub files: u64,
    /// The unreadable end, which was cut off. It was never promised.
    pub torn: Option<String>,
}

/// The promises in a volume's record.
#[derive(Debug)]
pub(crate) struct Promises {
    /// The number of the first file.
    pub(crate) first_file: u64,
    /// The cuts of pending snapshots, in their order.
    pub(crate) cuts: Vec<PromisedCut>,
    /// Batches up to this one were durable, if it is above those of the base.
    pub(crate) sequence: u64,
}

/// A cut through the journal. All before it was durable when its snapshot was promised.
#[derive(Debug)]
pub(crate) struct PromisedCut {
    /// The file that the epoch behind it begins with.
    pub(crate) next_file: u64,
    /// The snapshot's name, for people.
    pub(crate) snapshot: String,
}

/// Receives the content of a journal, from the first batch to the last.
pub(crate) trait Replay: Send + Sync {
    /// Begins an epoch: slots are counted from this file on. Called once before all batches, and at
    /// each cut.
    fn begin_epoch(&mut self, first_file: u64);

    /// Takes in a batch whose first data block is in `slot`.
    fn batch(&mut self, entries: &[Entry], slot: Slot);
}

/// The end of the batches that count, of the journal or of one file.
struct End {
    number: u64,
    offset_bytes: u64,
    /// The reason why the bytes there are no batch; `None` if they never were one.
    why: Option<FormatError>,
}

/// The reason why the batches of a file do not count.
enum Refused {
    /// Its header is not whole, or the file is missing.
    Itself(FormatError),
    /// Its header names another batch as the one before its first.
    Before(FormatError),
}

struct Reader<'a> {
    dir: &'a JournalDir,
    replay: &'a mut dyn Replay,
    /// The first file of the epoch that is being read.
    epoch_first: u64,
    /// The first files of the epochs that follow.
    cuts: Peekable<std::vec::IntoIter<u64>>,
    first_number: u64,
    /// All files below this one were there when a snapshot was promised.
    promised_files_end: u64,
    /// Of the file that is being read.
    nonce: Nonce,
    /// A number below those of the first file. All batches up to it are in the base, whatever their
    /// numbers are.
    in_base_sequence: u64,
    /// The last batch that counts.
    sequence: u64,
    /// The file that it is in, and the offset where it ends; `None` if no batch counts.
    kept: Option<(u64, u64)>,
    /// The batch that is due.
    next_sequence: u64,
    report: JournalReport,
}

/// Reads a journal, makes it durable, and cuts off the bytes that do not count. Only `scan_permits`
/// journals are read at a time.
///
/// Must run to its end: a sync that fails stops the store, and must be seen.
///
/// # Errors
///
/// [`Error::Damaged`] when what was promised is not there, [`Error::Incompatible`] when a file is
/// of another journal or of an unknown version.
pub(crate) async fn recover(
    dir: &JournalDir,
    mut promises: Promises,
    scan_permits: &Semaphore,
    replay: &mut dyn Replay,
) -> Result<(Recovered, JournalReport)> {
    let first_number = promises.first_file;
    let mut files = remove_old_files(dir, first_number).await?;
    // Cuts before the first file are in the base.
    promises.cuts.retain(|cut| cut.next_file > first_number);
    for number in &files {
        // One is open at a time: there may be many, and other journals have theirs.
        let file = dir.open_file_patiently(*number).await?;
        dir.sync_file_or_stop(&file).await?;
        // After a sync that failed before a restart, the cache may hold more than the disk.
        dir.disk.forget_cached(&file);
    }
    // An empty journal does not wait.
    let scan = match files.is_empty() {
        true => None,
        false => Some(scan_permits.acquire().await.map_err(|_| Error::Closing)?),
    };
    let mut reader = Reader::new(dir, &promises, replay);
    let end = reader.read_all(&files).await?;
    reader.check_promises(&promises, &end)?;
    reader.check_nothing_promised(&files, &end).await?;
    drop(scan);
    cut_off(dir, &mut files, reader.kept).await?;
    reader.report.torn = end.why.map(|why| {
        let path = dir.file_path(end.number);
        format!("{} at offset {}: {why}", path.display(), end.offset_bytes)
    });
    if let Some(last) = files.last() {
        let last = dir.open_file_patiently(*last).await?;
        dir.sync_file_or_stop(&last).await?;
    }
    dir.sync_or_stop().await?;
    reader.report.files = files.len() as u64;
    let mut lengths = BTreeMap::new();
    for number in files {
        let file = dir.open_file_patiently(number).await?;
        lengths.insert(number, file_len(dir, &file)?);
    }
    reader.begin_epochs_to(u64::MAX);
    let recovered = Recovered {
        epoch_first: reader.epoch_first,
        files: lengths,
        last_sequence: reader.sequence,
    };
    Ok((recovered, reader.report))
}

/// Removes the files before the first one, spare ones among them, and returns the numbers of the
/// others.
async fn remove_old_files(dir: &JournalDir, first_number: u64) -> Result<BTreeSet<u64>> {
    let pool = Arc::clone(&dir.pool);
    let volume = dir.volume;
    // Files of an earlier opening, if it is still being closed.
    offload(move || pool.remove_spares_of(volume)).await?;
    let list = || {
        let dir = dir.clone();
        async move { offload(move || journal_numbers(&*dir.disk, &dir.path())).await? }
    };
    let numbers = dir.disk.patience().until_possible_async(list).await?;
    let (old, live): (BTreeSet<_>, BTreeSet<_>) = numbers
        .into_iter()
        .partition(|number| *number < first_number);
    let dir = dir.clone();
    let remove = move || {
        old.into_iter()
            .try_for_each(|number| remove_at(&*dir.disk, &dir.file_path(number)))
    };
    offload(remove).await??;
    Ok(live)
}

fn file_len(dir: &JournalDir, file: &File) -> Result<u64> {
    let len = dir.disk.len(file);
    len.map_err(|source| Error::io("read the length of", file.path(), source))
}

/// Removes everything behind the last batch that counts.
///
/// A file without a batch goes as a whole, header included, and the next file gets its number. If
/// it stayed, two headers would name the batch before theirs; and once the files before are in the
/// base, the second would name a batch that does not exist any more.
async fn cut_off(
    dir: &JournalDir,
    files: &mut BTreeSet<u64>,
    kept: Option<(u64, u64)>,
) -> Result<()> {
    // From the last on, so that a crash in between leaves no gap.
    while let Some(number) = files.last().copied() {
        let Some((last, end_bytes)) = kept.filter(|(last, _)| number <= *last) else {
            dir.remove_file(number).await?;
            files.remove(&number);
            continue;
        };
        debug_assert_eq!(number, last);
        let file = dir.open_file_patiently(number).await?;
        if file_len(dir, &file)? > end_bytes {
            dir.cut_file_off(&file, end_bytes).await?;
        }
        break;
    }
    Ok(())
}

impl<'a> Reader<'a> {
    fn new(dir: &'a JournalDir, promises: &Promises, replay: &'a mut dyn Replay) -> Self {
        let first_number = promises.first_file;
        let mut cuts: Vec<_> = promises.cuts.iter().map(|cut| cut.next_file).collect();
        cuts.dedup();
        let promised_files_end = cuts.last().copied().unwrap_or(first_number);
        let in_base_sequence = first_sequence_of(first_number).saturating_sub(1);
        replay.begin_epoch(first_number);
        Self {
            dir,
            replay,
            epoch_first: first_number,
            cuts: cuts.into_iter().peekable(),
            first_number,
            promised_files_end,
            nonce: Nonce::default(),
            in_base_sequence,
            sequence: in_base_sequence,
            kept: None,
            next_sequence: first_sequence_of(first_number),
            report: JournalReport::default(),
        }
    }

    /// Reads all batches that count, and returns where they end.
    async fn read_all(&mut self, files: &BTreeSet<u64>) -> Result<End> {
        // The end of the file before: the end of the journal, or only of that file.
        let mut left = End {
            number: self.first_number,
            offset_bytes: 0,
            why: None,
        };
        for (number, expected) in files.iter().zip(self.first_number..) {
            let file = &self.file(*number).await?;
            let begun = if *number == expected {
                self.begin_file(*number, file).await?
            } else {
                let what = "number of a journal file";
                let differs = FormatError::differs(what, expected, number);
                Err(Refused::Itself(differs))
            };
            match begun {
                Ok(()) => left = self.read_file(*number, file).await?,
                Err(Refused::Itself(_)) if left.why.is_some() => return Ok(left),
                Err(Refused::Itself(why)) => {
                    return Ok(End {
                        number: expected,
                        offset_bytes: 0,
                        why: Some(why),
                    });
                }
                // Something is missing where the file before ended.
                Err(Refused::Before(why)) => {
                    return Ok(End {
                        why: left.why.or(Some(why)),
                        ..left
                    });
                }
            }
        }
        let next = self.first_number + files.len() as u64;
        if left.why.is_none() && next < self.promised_files_end {
            let what = "journal file in front of a pending snapshot's cut";
            return Ok(End {
                number: next,
                offset_bytes: 0,
                why: Some(FormatError::differs(what, "one that is there", "none")),
            });
        }
        Ok(left)
    }

    /// Checks that a file continues the one before.
    async fn begin_file(
        &mut self,
        number: u64,
        file: &File,
    ) -> Result<std::result::Result<(), Refused>> {
        let head = self.read_at(file, 0, BLOCK).await?;
        let header = match self.header(number, file, &head)? {
            Ok(header) => header,
            Err(why) => return Ok(Err(Refused::Itself(why))),
        };
        if number == self.first_number {
            self.in_base_sequence = header.first_sequence.saturating_sub(1);
            self.sequence = self.in_base_sequence;
        }
        // The batches before the first file are in the base, and it does not matter which of them
        // was the last. So the first file may name any. So may files behind it as long as no batch
        // was read: earlier versions kept files with only a header, and the files behind repeat the
        // last batch at the time when those were made. That is safe: if the first file had ever
        // held an acknowledged batch, this header would name it or a later one, and their numbers
        // are above those of the base.
        let previous = header.previous_sequence.max(self.in_base_sequence);
        if previous != self.sequence {
            return Ok(Err(Refused::Before(FormatError::differs(
                "batch in front of a journal file",
                self.sequence,
                header.previous_sequence,
            ))));
        }
        self.next_sequence = header.first_sequence;
        self.nonce = header.nonce;
        self.begin_epochs_to(number);
        if number - self.epoch_first >= EPOCH_FILES_MAX {
            return Err(Error::Incompatible {
                path: file.path().to_owned(),
                why: format!(
                    "the journal begins with file {}: it has too many",
                    self.first_number
                ),
            });
        }
        Ok(Ok(()))
    }

    /// Begins the epochs up to the one that a file is in.
    fn begin_epochs_to(&mut self, number: u64) {
        while let Some(cut) = self.cuts.next_if(|cut| *cut <= number) {
            self.epoch_first = cut;
            self.replay.begin_epoch(cut);
        }
    }

    /// Returns true if a header is that of the file's earlier use, before it was renamed to be
    /// written again.
    fn is_stale(&self, header: &FileHeader) -> bool {
        header.store == self.dir.store
            && header.volume == self.dir.volume
            && header.number < self.first_number
    }

    /// Decodes a file's first block.
    fn header(
        &self,
        number: u64,
        file: &File,
        head: &[u8],
    ) -> Result<std::result::Result<FileHeader, FormatError>> {
        let header = match FileHeader::decode(head) {
            // It was renamed to be written again, and its own header never became durable.
            Ok(header) if self.is_stale(&header) => {
                return Ok(Err(FormatError::differs(
                    "header of a journal file",
                    format_args!("file {number}"),
                    format_args!("file {}", header.number),
                )));
            }
            Ok(header) => header,
            Err(why) if why.is_unknown() => {
                return Err(Error::Incompatible {
                    path: file.path().to_owned(),
                    why: why.to_string(),
                });
            }
            Err(why) => return Ok(Err(why)),
        };
        if header.store != self.dir.store
            || header.volume != self.dir.volume
            || header.number != number
        {
            return Err(Error::Incompatible {
                path: file.path().to_owned(),
                why: format!(
                    "it is journal file {} of volume {} in store {}, \
                     where file {number} of volume {} in store {} belongs",
                    header.number, header.volume, header.store, self.dir.volume, self.dir.store
                ),
            });
        }
        Ok(Ok(header))
    }

    /// Reads the batches of a file, and returns where they end.
    async fn read_file(&mut self, number: u64, file: &File) -> Result<End> {
        let mut windows = Windows::new(&*self.dir.disk, &*self.dir.host, file, 1, true).await?;
        let mut block = 1;
        let why = loop {
            match self.batch(number, block, &mut windows).await? {
                Ok(Step::Batch(blocks)) => {
                    block += blocks;
                    self.kept = Some((number, block * BLOCK as u64));
                }
                Ok(Step::End) => break None,
                Err(why) if why.is_unknown() => {
                    return Err(Error::Incompatible {
                        path: file.path().to_owned(),
                        why: format!("at offset {}: {why}", block * BLOCK as u64),
                    });
                }
                Err(why) => break Some(why),
            }
        };
        Ok(End {
            number,
            offset_bytes: block * BLOCK as u64,
            why,
        })
    }

    /// Takes in the batch that begins at a block.
    async fn batch(
        &mut self,
        number: u64,
        at: u64,
        windows: &mut Windows<'_>,
    ) -> Result<std::result::Result<Step, FormatError>> {
        let short = |len| FormatError::short("batch of a journal", len + 1, len);
        match windows.load(at, 1).await? {
            None => {}
            Some(0) => return Ok(Ok(Step::End)),
            Some(len) => return Ok(Err(short(len))),
        }
        // Anything else was there before the file was made or written again.
        let block = windows.block(at);
        let Some(block) = block.filter(|block| Descriptor::is_of(block, &self.nonce)) else {
            return Ok(Ok(Step::End));
        };
        let descriptor = match Descriptor::decode(block) {
            Ok(descriptor) => descriptor,
            Err(why) => return Ok(Err(why)),
        };
        if descriptor.file_number != number
            || descriptor.nonce != self.nonce
            || descriptor.sequence != self.next_sequence
        {
            return Ok(Err(FormatError::differs(
                "number of a journal batch",
                format_args!("batch {} in file {number}", self.next_sequence),
                format_args!(
                    "batch {} in file {}",
                    descriptor.sequence, descriptor.file_number
                ),
            )));
        }
        let blocks = 1 + descriptor.data_crcs.len() as u64;
        if let Some(len) = windows.load(at, blocks).await? {
            return Ok(Err(short(len)));
        }
        for (block, expected) in (at + 1..).zip(&descriptor.data_crcs) {
            let found = windows.crc(block).unwrap_or(!expected);
            if found != *expected {
                return Ok(Err(FormatError::differs(
                    "data block of a journal batch",
                    format_args!("CRC-32 {expected:08x}"),
                    format_args!("{found:08x}"),
                )));
            }
        }
        self.apply(number, at * BLOCK as u64, &descriptor);
        Ok(Ok(Step::Batch(blocks)))
    }

    fn apply(&mut self, number: u64, offset_bytes: u64, descriptor: &Descriptor) {
        let first = offset_bytes / BLOCK as u64 + 1;
        let slot = slot_of(number - self.epoch_first, first);
        self.replay.batch(&descriptor.entries, slot);
        self.report.blocks += descriptor.data_crcs.len() as u64;
        self.sequence = descriptor.sequence;
        self.next_sequence = descriptor.sequence + 1;
        self.report.batches += 1;
    }

    /// Checks that all is there of which the volume's record says that it was durable.
    fn check_promises(&self, promises: &Promises, end: &End) -> Result<()> {
        let cut_behind = |number| promises.cuts.iter().find(|cut| cut.next_file > number);
        // Records of earlier versions name no batch, but the file before which all was durable.
        let is_torn = end.why.is_some() && cut_behind(end.number).is_some();
        let is_short = self.sequence < promises.sequence;
        if !is_torn && !is_short {
            return Ok(());
        }
        // The number of a batch determines its file. Bytes that are lost there look as if they had
        // never been written.
        let is_of = |number| promises.sequence < first_sequence_of(number + 1);
        let (number, offset_bytes) = match self.kept {
            Some((number, offset_bytes)) if is_short && is_of(number) => (number, offset_bytes),
            _ => (end.number, end.offset_bytes),
        };
        let witness = match cut_behind(number) {
            Some(cut) => format!(
                "everything before journal file {} was durable when snapshot {} was promised",
                cut.next_file, cut.snapshot
            ),
            None => format!(
                "the volume's record says that batch {} was durable",
                promises.sequence
            ),
        };
        Err(self.damage(number, offset_bytes, end, &witness))
    }

    /// Checks that no descriptor behind the end says that a lost batch was durable.
    async fn check_nothing_promised(&self, files: &BTreeSet<u64>, end: &End) -> Result<()> {
        // From the end of the last batch that counts: the loss may be before the place where
        // reading stopped.
        let (first_number, first_offset) = self.kept.unwrap_or((self.first_number, 0));
        for number in files.range(first_number..) {
            let file = &self.file(*number).await?;
            // Its own header was never durable, and neither was anything behind it. The bytes may
            // be a guest's data, whatever they look like.
            let head = self.read_at(file, 0, BLOCK).await?;
            if FileHeader::decode(&head).is_ok_and(|header| self.is_stale(&header)) {
                continue;
            }
            // A header that cannot be read gives no nonce. Then any descriptor counts: better an
            // error too many.
            let nonce = self.header(*number, file, &head)?.ok();
            let nonce = nonce.map(|header| header.nonce);
            let mut at = if *number == first_number {
                first_offset / BLOCK as u64
            } else {
                0
            };
            let (disk, host) = (&*self.dir.disk, &*self.dir.host);
            let mut windows = Windows::new(disk, host, file, at, false).await?;
            while windows.load(at, 1).await?.is_none() {
                if let Some(block) = windows.block(at)
                    && let Ok(descriptor) = Descriptor::decode(block)
                    && descriptor.file_number == *number
                    && nonce.is_none_or(|nonce| descriptor.nonce == nonce)
                    && descriptor.synced_sequence > self.sequence
                {
                    let witness = format!(
                        "batch {} in {} at offset {} says that it was durable",
                        descriptor.sequence,
                        file.path().display(),
                        at * BLOCK as u64
                    );
                    return Err(self.damage(end.number, end.offset_bytes, end, &witness));
                }
                at += 1;
            }
        }
        Ok(())
    }

    fn damage(&self, number: u64, offset_bytes: u64, end: &End, witness: &str) -> Error {
        let is_end = (number, offset_bytes) == (end.number, end.offset_bytes);
        let why = end.why.as_ref().filter(|_| is_end).map(ToString::to_string);
        let why = why.as_deref().unwrap_or("there is no batch");
        Damage::in_file(
            &self.dir.file_path(number),
            offset_bytes,
            format_args!("journal of volume {}", self.dir.volume),
            format_args!("{why}; but {witness}"),
        )
        .into()
    }

    async fn file(&self, number: u64) -> Result<File> {
        self.dir.open_file_patiently(number).await
    }

    async fn read_at(&self, file: &File, offset_bytes: u64, len: usize) -> Result<AlignedBuf> {
        debug_assert!(offset_bytes <= JOURNAL_FILE_BYTES_MAX);
        let read = self.dir.disk.read_up_to(file, offset_bytes, len).await;
        read.map_err(|source| Error::io("read", file.path(), source))
    }
}

enum Step {
    /// A batch of so many blocks, descriptor included.
    Batch(u64),
    /// No batch of this file was written there.
    End,
}
