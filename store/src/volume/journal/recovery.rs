//! Reads a journal that a process left behind.
//!
//! Batches count from the first on, as long as each is whole and has the number it should have. The first that is not is the end: what
//! a loss of power tore, of which nobody was promised anything. Unless a descriptor behind it says that it was
//! durable: then it is damage, and the volume is not opened.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
    path::Path,
};

use super::{
    dir::Owner,
    journal::{FILES_MAX, Found, slot, unsynced},
    windows::Windows,
};
use crate::{
    Damage, Error, Result,
    commit::Commit,
    format::{
        FormatError,
        journal::{Descriptor, FileHeader, JOURNAL_BLOCK_BYTES, Nonce, first_sequence_of},
        names,
    },
    io::{Completion, File},
    limits::JOURNAL_FILE_BYTES_MAX,
    store::Engine,
    volume::layers::Epoch,
    workers::Workers,
};

const BLOCK: usize = JOURNAL_BLOCK_BYTES;
/// What was found in a volume's journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JournalReport {
    /// Batches that count.
    pub batches: u64,
    /// Data blocks in them.
    pub blocks: u64,
    /// Journal files.
    pub files: u64,
    /// What could not be read at the end, and was cut off: nobody was promised it.
    pub torn: Option<String>,
}

/// What the volume's record says of its journal.
#[derive(Debug)]
pub(crate) struct Promises {
    /// The cuts of pending snapshots, in their order.
    pub(crate) cuts: Vec<PromisedCut>,
    /// Batches up to this one were durable, if it is above those of the base.
    pub(crate) sequence: u64,
}

/// All in front of it was durable when its snapshot was promised.
#[derive(Debug)]
pub(crate) struct PromisedCut {
    /// The file that the epoch behind it begins with.
    pub(crate) next_file: u64,
    /// For people.
    pub(crate) snapshot: String,
}

/// Where batches end that count, or those of one file.
struct End {
    number: u64,
    offset_bytes: u64,
    /// What is wrong with what is there. Nothing, where no batch is.
    why: Option<FormatError>,
}

/// What keeps a file from being read.
enum Refused {
    /// Its header, or that there is no such file.
    Itself(FormatError),
    /// What it says of the batch before its first.
    Before(FormatError),
}

struct Reader<'a> {
    owner: &'a Owner,
    workers: &'a Workers,
    /// The last is the one that is being read.
    epochs: Vec<Epoch>,
    /// The files with which the others begin.
    cuts: Peekable<std::vec::IntoIter<u64>>,
    first_number: u64,
    /// All files below this one were there when a snapshot was promised.
    promised_files_end: u64,
    /// Of the file that is being read.
    nonce: Nonce,
    /// A number below those of the first file. All batches up to it are in the base, whatever their numbers are.
    in_base_sequence: u64,
    /// Of the last batch that counts.
    sequence: u64,
    /// Where that one ends, and in which file. Nothing, where there is none.
    kept: Option<(u64, u64)>,
    /// Of the batch that is to follow.
    next_sequence: u64,
    report: JournalReport,
}

/// Reads the files from `first_number` on, makes them durable and clean, and removes those before. Epochs end where cuts say that
/// others begin; the last one goes on.
pub(crate) async fn recover(
    engine: &Engine,
    owner: &Owner,
    first_number: u64,
    mut promises: Promises,
) -> Result<(Found, Vec<Epoch>, JournalReport)> {
    let commit = &engine.commit;
    // Of this volume as it was open before, if that is still being closed.
    owner.space.give_up_of(owner.volume);
    let dir = owner.dir();
    let patience = owner.disk.patience();
    let names = patience.until_possible(|| owner.disk.list(&dir)).await;
    let names = names.map_err(|source| Error::io("list", &dir, source))?;
    let mut numbers: Vec<_> = names
        .iter()
        .filter_map(|name| names::journal_number_of(name))
        .collect();
    numbers.sort_unstable();
    let (old, live): (Vec<_>, Vec<_>) = numbers
        .into_iter()
        .partition(|number| *number < first_number);
    // Spare ones among them.
    for number in old {
        owner.remove(number)?;
    }

    // What is in front of others is in the base.
    promises.cuts.retain(|cut| cut.next_file > first_number);
    let mut cuts: Vec<_> = promises.cuts.iter().map(|cut| cut.next_file).collect();
    cuts.dedup();
    let promised_files_end = cuts.last().copied().unwrap_or(first_number);
    let mut reader = Reader {
        owner,
        workers: &engine.workers,
        epochs: vec![Epoch::new(first_number)],
        cuts: cuts.into_iter().peekable(),
        first_number,
        promised_files_end,
        nonce: Nonce::default(),
        in_base_sequence: first_sequence_of(first_number).saturating_sub(1),
        sequence: first_sequence_of(first_number).saturating_sub(1),
        kept: None,
        next_sequence: first_sequence_of(first_number),
        report: JournalReport::default(),
    };
    // One is open at a time: journals may have many, and others have theirs.
    let mut files = BTreeSet::new();
    for number in &live {
        let file = owner.open_patiently(&owner.path(*number)).await?;
        // A process that was killed may not have lived to sync what it acknowledged: from here on it is promised. What the cache
        // holds may be more than what is on the disk, where a sync has failed.
        durable(commit, owner.disk.sync_data(&file), file.path()).await?;
        owner.disk.forget_cached(&file);
        files.insert(*number);
    }
    // One that is empty waits for nobody.
    let scan = match files.is_empty() {
        true => None,
        false => Some(engine.journal_scan_permits.acquire().await),
    };
    let end = reader.read_all(&files).await?;
    reader.check_promises(&promises, &end)?;
    reader.check_nothing_promised(&files, &end).await?;
    drop(scan);
    cut_off(owner, &mut files, reader.kept).await?;
    reader.report.torn = end.why.map(|why| {
        let path = owner.path(end.number);
        format!("{} at offset {}: {why}", path.display(), end.offset_bytes)
    });
    // What was cut off stays cut off.
    if let Some(last) = files.last() {
        let last = owner.open_patiently(&owner.path(*last)).await?;
        durable(commit, owner.disk.sync_data(&last), last.path()).await?;
    }
    owner.sync_dir().await.inspect_err(|error| match error {
        Error::Shortage { .. } => {}
        error => commit.poison(error),
    })?;
    reader.report.files = files.len() as u64;
    let mut lengths = BTreeMap::new();
    for number in files {
        let file = owner.open_patiently(&owner.path(number)).await?;
        let len = owner.disk.len(&file);
        let len_bytes =
            len.map_err(|source| Error::io("read the length of", file.path(), source))?;
        lengths.insert(number, len_bytes);
    }
    reader.go_on_in(u64::MAX);
    let found = Found {
        epoch_first: reader.epoch_first(),
        files: lengths,
        last_sequence: reader.sequence,
    };
    Ok((found, reader.epochs, reader.report))
}

/// Waits for a sync. One that fails stops the store: the kernel tells it once, and who tried again would be told that all is well.
pub(crate) async fn durable(commit: &Commit, sync: Completion<()>, path: &Path) -> Result<()> {
    sync.await
        .map_err(|source| unsynced(path.to_owned(), source))
        .inspect_err(|error| commit.poison(error))
}

/// Removes what does not count: all behind the last batch that does.
///
/// A file without a batch goes as a whole, its header too, and its number is given to the next one. If it stayed, two headers
/// would tell what came before one batch: and once the files before are in the base, the second would name a batch that nobody
/// can find.
async fn cut_off(owner: &Owner, files: &mut BTreeSet<u64>, kept: Option<(u64, u64)>) -> Result<()> {
    // From the last on, so that a crash in between leaves no gap.
    while let Some(number) = files.last().copied() {
        let Some((last, end_bytes)) = kept.filter(|(last, _)| number <= *last) else {
            owner.remove_patiently(number).await?;
            files.remove(&number);
            continue;
        };
        debug_assert_eq!(number, last);
        let file = owner.open_patiently(&owner.path(number)).await?;
        let path = file.path();
        let len_bytes = owner.disk.len(&file);
        let len_bytes =
            len_bytes.map_err(|source| Error::io("read the length of", path, source))?;
        if len_bytes > end_bytes {
            let cut = || owner.disk.set_len(&file, end_bytes);
            let cut = owner.disk.patience().until_possible(cut).await;
            cut.map_err(|source| Error::io("cut off", path, source))?;
        }
        break;
    }
    Ok(())
}

impl Reader<'_> {
    /// Reads all that counts, and tells where that ends.
    async fn read_all(&mut self, files: &BTreeSet<u64>) -> Result<End> {
        // Where the file before ended. What is there may be an end, or the place that was left for the next file.
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

    /// That a file goes on where the one before ends.
    async fn begin_file(
        &mut self,
        number: u64,
        file: &File,
    ) -> Result<std::result::Result<(), Refused>> {
        let head = self.window(file, 0, BLOCK).await?;
        let header = match self.header(number, file, &head)? {
            Ok(header) => header,
            Err(why) => return Ok(Err(Refused::Itself(why))),
        };
        if number == self.first_number {
            self.in_base_sequence = header.first_sequence.saturating_sub(1);
            self.sequence = self.in_base_sequence;
        }
        // What came before the first file is in the base, and it does not matter which of those batches was the last. So of the
        // first file itself nothing is expected. Nor is it of files behind it as long as no batch was read: earlier versions kept
        // files of which only the header was left, and the files behind repeat what was last when those were made. It is safe:
        // had the first file ever held a batch that was acknowledged, this one would name it, or a later one, and their numbers
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
        self.go_on_in(number);
        if number - self.epoch_first() >= FILES_MAX {
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

    /// Ends the epochs that end before a file.
    fn go_on_in(&mut self, number: u64) {
        while let Some(cut) = self.cuts.next_if(|cut| *cut <= number) {
            self.epochs.push(Epoch::new(cut));
        }
    }

    fn epoch_first(&self) -> u64 {
        self.epochs
            .last()
            .map_or(self.first_number, |epoch| epoch.first_file)
    }

    /// Whether it is the header of what a file was before it was renamed to be written again.
    fn is_stale(&self, header: &FileHeader) -> bool {
        header.store == self.owner.store
            && header.volume == self.owner.volume
            && header.number < self.first_number
    }

    /// The header that a file has in its first block.
    fn header(
        &self,
        number: u64,
        file: &File,
        head: &[u8],
    ) -> Result<std::result::Result<FileHeader, FormatError>> {
        let header = match FileHeader::decode(head) {
            // It was renamed to be written again, and what it was is what it still says.
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
        if header.store != self.owner.store
            || header.volume != self.owner.volume
            || header.number != number
        {
            return Err(Error::Incompatible {
                path: file.path().to_owned(),
                why: format!(
                    "it is journal file {} of volume {} in store {}, where file {number} of volume {} in store {} belongs",
                    header.number, header.volume, header.store, self.owner.volume, self.owner.store
                ),
            });
        }
        Ok(Ok(header))
    }

    /// Reads the batches of a file, and tells where they end.
    async fn read_file(&mut self, number: u64, file: &File) -> Result<End> {
        let mut windows = Windows::new(&*self.owner.disk, self.workers, file, 1, true).await?;
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

    /// Takes in the batch that begins with a block.
    async fn batch(
        &mut self,
        number: u64,
        at: u64,
        windows: &mut Windows<'_>,
    ) -> Result<std::result::Result<Step, FormatError>> {
        let short = |there| FormatError::short("batch of a journal", there + 1, there);
        match windows.bring(at, 1).await? {
            None => {}
            Some(0) => return Ok(Ok(Step::End)),
            Some(there) => return Ok(Err(short(there))),
        }
        // What was there before the file was made, or written again, is not of its batches.
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
        if let Some(there) = windows.bring(at, blocks).await? {
            return Ok(Err(short(there)));
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
        let slot = slot(number - self.epoch_first(), first);
        if let Some(epoch) = self.epochs.last_mut() {
            epoch.map.apply(&descriptor.entries, slot);
        }
        self.report.blocks += descriptor.data_crcs.len() as u64;
        self.sequence = descriptor.sequence;
        self.next_sequence = descriptor.sequence + 1;
        self.report.batches += 1;
    }

    /// That all is there of which the volume's record says that it was durable.
    fn check_promises(&self, promises: &Promises, end: &End) -> Result<()> {
        let cut_behind = |number| promises.cuts.iter().find(|cut| cut.next_file > number);
        // Records of earlier versions tell no batch, but in front of which file all was durable.
        let is_torn = end.why.is_some() && cut_behind(end.number).is_some();
        let is_short = self.sequence < promises.sequence;
        if !is_torn && !is_short {
            return Ok(());
        }
        // The number of a batch says which file it is in: what follows there looks as if it had never been written.
        let is_of = |number| promises.sequence < first_sequence_of(number + 1);
        let (number, offset_bytes) = match self.kept {
            Some((number, offset_bytes)) if is_short && is_of(number) => (number, offset_bytes),
            _ => (end.number, end.offset_bytes),
        };
        let witness = match cut_behind(number) {
            Some(cut) => format!(
                "all in front of journal file {} was durable when snapshot {} was promised",
                cut.next_file, cut.snapshot
            ),
            None => format!(
                "the volume's record says that batch {} was durable",
                promises.sequence
            ),
        };
        Err(self.damage(number, offset_bytes, end, &witness))
    }

    /// That no descriptor behind the end says that the batch there was durable.
    async fn check_nothing_promised(&self, files: &BTreeSet<u64>, end: &End) -> Result<()> {
        // From the last batch on that counts: what is missing may be in front of the place where reading ended.
        let (first_number, first_offset) = self.kept.unwrap_or((self.first_number, 0));
        for number in files.range(first_number..) {
            let file = &self.file(*number).await?;
            // Its own header was never durable, and so was nothing in it; and what is there may be a guest's, whatever it looks like.
            let head = self.window(file, 0, BLOCK).await?;
            if FileHeader::decode(&head).is_ok_and(|header| self.is_stale(&header)) {
                continue;
            }
            // A header that cannot be read tells no nonce. Any will do then: better an error too many.
            let nonce = self.header(*number, file, &head)?.ok();
            let nonce = nonce.map(|header| header.nonce);
            let mut at = if *number == first_number {
                first_offset / BLOCK as u64
            } else {
                0
            };
            let disk = &*self.owner.disk;
            let mut windows = Windows::new(disk, self.workers, file, at, false).await?;
            while windows.bring(at, 1).await?.is_none() {
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
            &self.owner.path(number),
            offset_bytes,
            format_args!("journal of volume {}", self.owner.volume),
            format_args!("{why}; but {witness}"),
        )
        .into()
    }

    async fn file(&self, number: u64) -> Result<File> {
        self.owner.open_patiently(&self.owner.path(number)).await
    }

    async fn window(
        &self,
        file: &File,
        offset_bytes: u64,
        len: usize,
    ) -> Result<crate::io::AlignedBuf> {
        debug_assert!(offset_bytes <= JOURNAL_FILE_BYTES_MAX);
        let read = self.owner.disk.read_up_to(file, offset_bytes, len).await;
        read.map_err(|source| Error::io("read", file.path(), source))
    }
}

enum Step {
    /// A batch of so many blocks.
    Batch(u64),
    /// Nothing of this file was written there.
    End,
}
