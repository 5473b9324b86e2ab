//! The files of the log: the current one, `audit.jsonl`, and rotated ones, such as
//! `audit-20261130T211124Z-00000000000000000042.jsonl`, with the time and number of the last line.
//!
//! Invariants: only whole lines are followed by others, lines have ascending numbers, and no line
//! is ever changed or taken out of a file. A file is deleted as a whole, the oldest one first, once
//! all files would exceed their bound.

use std::{
    collections::VecDeque,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, OFlags, flock};
use tracing::{info, warn};

use super::{
    Settings,
    event::{Entry, Waiting},
    limits::{LINE_BYTES_MAX, TAIL_BYTES},
};

/// The directory in that of the daemon.
const DIR: &str = "audit";
/// The current file.
pub(super) const CURRENT: &str = "audit.jsonl";
/// The time in names of rotated files.
const NAME_TIME: &str = "%Y%m%dT%H%M%SZ";

/// A file that lines are appended to.
pub(super) trait Sink: Send {
    /// Appends a beginning of the bytes. Returns its length.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Makes everything appended durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to this length.
    fn cut(&mut self, length: u64) -> io::Result<()>;
}

impl Sink for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

/// Makes a sink of the current file. Tests make one that fails.
pub(super) type MakeSink = Box<dyn FnMut(File) -> Box<dyn Sink> + Send>;

/// The files, for their only writer.
pub(super) struct Files {
    dir: PathBuf,
    file_bytes: u64,
    total_bytes: u64,
    make_sink: MakeSink,
    current: Option<Current>,
    /// The number of the last line, in whichever file. `None` until a file has been opened.
    last_seq: Option<u64>,
    /// Lines that are written and not known to be durable.
    unsynced: u64,
    /// Lines whose `fdatasync` has failed.
    uncertain: u64,
    /// The directory, with the lock that keeps other daemons out.
    lock: File,
}

struct Current {
    sink: Box<dyn Sink>,
    length: u64,
    /// The latest time of a line, as far as known.
    latest: Timestamp,
    /// Device and inode.
    identity: (u64, u64),
}

/// A rotated file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rotated {
    pub(super) path: PathBuf,
    /// No line is later, rounded down to seconds.
    pub(super) until: Timestamp,
    pub(super) last_seq: u64,
}

impl Files {
    /// Makes the directory, if there is none, and locks it. Opens no file yet.
    ///
    /// # Errors
    ///
    /// The directory cannot be made or locked, or another daemon has locked it.
    pub(super) fn new(dir: &Path, settings: &Settings, make_sink: MakeSink) -> io::Result<Self> {
        let parent = dir;
        let dir = dir.join(DIR);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => File::open(parent)?.sync_all()?,
            // Its mode is the operator's.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let lock = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed())
            .open(&dir)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self {
            dir,
            file_bytes: settings.file_bytes,
            total_bytes: settings.total_bytes,
            make_sink,
            current: None,
            last_seq: None,
            unsynced: 0,
            uncertain: 0,
            lock,
        })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn unsynced(&self) -> u64 {
        self.unsynced
    }

    pub(super) fn uncertain(&mut self) -> &mut u64 {
        &mut self.uncertain
    }

    /// Opens the current file if it is not open, or if its name now belongs to another file or to
    /// none: lines must not go to a file that nobody finds.
    ///
    /// # Errors
    ///
    /// The file system fails or is full.
    pub(super) fn open(&mut self) -> io::Result<()> {
        if let Some(current) = &self.current {
            match fs::symlink_metadata(self.path()) {
                Ok(found) if (found.dev(), found.ino()) == current.identity => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let path = self.path();
            warn!(path = %path.display(), "somebody took the audit file away, a new one is begun");
            if let Some(mut current) = self.current.take() {
                // It may have been moved, not deleted. Nothing more can be done for its lines.
                let _ = current.sink.sync();
            }
        }
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(self.path())?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut length = metadata.len();
        let tail = Tail::read(&file, length)?;
        let rotated = rotated(&self.dir)?;
        let rotated_seq = rotated.last().map_or(0, |file| file.last_seq);
        let seq = tail.last.as_ref().map_or(0, |entry| entry.seq);
        let latest = tail.last.as_ref().map(Entry::until);
        let mut sink = (self.make_sink)(file);
        if tail.is_torn {
            // It is kept, because it may be evidence.
            append_all(&mut *sink, b"\n")?;
            length += 1;
        }
        self.sync_dir()?;
        self.last_seq = Some(seq.max(rotated_seq).max(self.last_seq.unwrap_or(0)));
        self.current = Some(Current {
            sink,
            length,
            latest: latest.unwrap_or(Timestamp::MIN),
            identity: (metadata.dev(), metadata.ino()),
        });
        self.prune();
        Ok(())
    }

    /// Appends lines, and takes their events off the queue. Calls `written` with each event whose
    /// line is in the file. After an error, the events that are still in the queue have none.
    ///
    /// # Errors
    ///
    /// The file system fails or is full.
    pub(super) fn append(
        &mut self,
        waiting: &mut VecDeque<Waiting>,
        mut written: impl FnMut(&Waiting),
    ) -> io::Result<()> {
        let mut lines = String::new();
        let mut ends = Vec::new();
        while !waiting.is_empty() {
            self.open()?;
            let (Some(current), Some(last_seq)) = (&mut self.current, &mut self.last_seq) else {
                return Err(io::Error::other("the audit file is not open"));
            };
            lines.clear();
            ends.clear();
            for (seq, event) in (*last_seq + 1..).zip(&*waiting) {
                let start = lines.len();
                event.write(seq, &mut lines);
                let length = current.length + lines.len() as u64;
                if length > self.file_bytes && current.length + start as u64 > 0 {
                    lines.truncate(start);
                    break;
                }
                ends.push(lines.len());
            }
            if ends.is_empty() {
                self.rotate()?;
                continue;
            }
            let (appended, result) = append_all_of(&mut *current.sink, lines.as_bytes());
            let whole = ends.iter().take_while(|end| **end <= appended).count();
            for event in waiting.drain(..whole) {
                current.latest = current.latest.max(event.until());
                *last_seq += 1;
                self.unsynced += 1;
                written(&event);
            }
            let kept = whole.checked_sub(1).and_then(|last| ends.get(last));
            current.length += kept.map_or(0, |end| *end as u64);
            if let Err(error) = result {
                // Otherwise each attempt on a full disk would leave a part of a line.
                if current.sink.cut(current.length).is_err() {
                    // Opening it again completes the line.
                    self.current = None;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Makes all lines durable.
    ///
    /// # Errors
    ///
    /// The disk fails. The next lines go to a new file: what the old one has is uncertain, and a
    /// second `fdatasync` would not say so again.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let result = current.sink.sync();
        let lines = std::mem::take(&mut self.unsynced);
        let Err(error) = result else {
            return Ok(());
        };
        self.uncertain += lines;
        if let Err(why) = self.move_away() {
            warn!(%why, "the audit file is used on, though the disk failed");
        }
        self.current = None;
        Err(error)
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.sync()?;
        self.move_away()?;
        // It deletes old files, too.
        self.open()
    }

    /// Gives the current file the name of a rotated one.
    fn move_away(&mut self) -> io::Result<()> {
        let latest = self.current.as_ref().map(|current| current.latest);
        let until = latest.unwrap_or(Timestamp::MIN).max(Timestamp::now());
        let last_seq = self.last_seq.unwrap_or(0);
        let path = self.dir.join(rotated_name(until, last_seq));
        // No other daemon is here to make one in between.
        if path.try_exists()? {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(self.path(), &path)?;
        self.current = None;
        self.sync_dir()
    }

    /// Deletes the oldest files. A failure leaves too many files, which does not stop the log.
    fn prune(&self) {
        let found = rotated(&self.dir).and_then(|files| {
            let with_length = |file: Rotated| Ok((fs::symlink_metadata(&file.path)?.len(), file));
            files.into_iter().map(with_length).collect()
        });
        let files: Vec<(u64, Rotated)> = match found {
            Ok(files) => files,
            Err(error) => return warn!(%error, "old audit files are not found"),
        };
        // The current file grows to its bound before the next look.
        let room = self.total_bytes.saturating_sub(self.file_bytes);
        let mut total: u64 = files.iter().map(|(length, _)| length).sum();
        for (length, file) in files {
            if total <= room {
                return;
            }
            let path = file.path.display();
            match fs::remove_file(&file.path) {
                Ok(()) => info!(%path, "the oldest audit file is deleted"),
                Err(error) => warn!(%error, %path, "an old audit file is not deleted"),
            }
            total -= length;
        }
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.lock.sync_all()
    }

    fn path(&self) -> PathBuf {
        self.dir.join(CURRENT)
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

fn append_all(sink: &mut dyn Sink, bytes: &[u8]) -> io::Result<()> {
    append_all_of(sink, bytes).1
}

/// Appends as much as possible. Returns its length too.
fn append_all_of(sink: &mut dyn Sink, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut appended = 0;
    while let Some(rest) = bytes.get(appended..).filter(|rest| !rest.is_empty()) {
        match sink.append(rest) {
            Ok(0) => return (appended, Err(io::ErrorKind::WriteZero.into())),
            Ok(length) => appended += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (appended, Err(error)),
        }
    }
    (appended, Ok(()))
}

/// The directory of the log in that of the daemon.
pub(super) fn audit_dir(dir: &Path) -> PathBuf {
    dir.join(DIR)
}

fn rotated_name(until: Timestamp, last_seq: u64) -> String {
    format!("audit-{}-{last_seq:020}.jsonl", until.strftime(NAME_TIME))
}

fn parse_rotated_name(name: &str) -> Option<(Timestamp, u64)> {
    let (time, seq) = name
        .strip_prefix("audit-")?
        .strip_suffix(".jsonl")?
        .split_once('-')?;
    let time = jiff::civil::DateTime::strptime(NAME_TIME, time).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
    Some((time, seq.parse().ok()?))
}

/// The rotated files, the oldest one first. Files with other names are not of the log.
///
/// # Errors
///
/// The directory cannot be read.
pub(super) fn rotated(dir: &Path) -> io::Result<Vec<Rotated>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some((until, last_seq)) = name.to_str().and_then(parse_rotated_name) {
            let path = entry.path();
            found.push(Rotated {
                path,
                until,
                last_seq,
            });
        }
    }
    found.sort_by_key(|file| (file.last_seq, file.until));
    Ok(found)
}

/// The end of a file.
struct Tail {
    last: Option<Entry>,
    /// True if the last line has no line feed.
    is_torn: bool,
}

impl Tail {
    /// Reads the last part of a file, and further parts only if it has no line that parses.
    fn read(file: &File, length: u64) -> io::Result<Self> {
        let mut end = length;
        let mut is_torn = false;
        loop {
            let start = end.saturating_sub(TAIL_BYTES);
            let mut part = vec![0; usize::try_from(end - start).unwrap_or(0)];
            file.read_exact_at(&mut part, start)?;
            if end == length {
                is_torn = part.last().is_some_and(|last| *last != b'\n');
            }
            let mut lines = part.rsplit(|byte| *byte == b'\n');
            if let Some(last) = lines.find_map(Entry::parse) {
                let last = Some(last);
                return Ok(Self { last, is_torn });
            }
            if start == 0 {
                return Ok(Self {
                    last: None,
                    is_torn,
                });
            }
            // The first line of this part may have begun in the one before.
            end = start + LINE_BYTES_MAX as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn names_of_rotated_files_say_when_and_where_they_end() {
        let until = "2026-11-30T21:11:24.9Z".parse().unwrap();
        let name = rotated_name(until, 42);
        assert_eq!(name, "audit-20261130T211124Z-00000000000000000042.jsonl");
        let until = "2026-11-30T21:11:24Z".parse().unwrap();
        assert_eq!(parse_rotated_name(&name), Some((until, 42)));
        for other in [
            CURRENT,
            "audit-x-1.jsonl",
            "audit-20261130T211124Z-.jsonl",
            "",
        ] {
            assert_eq!(parse_rotated_name(other), None, "{other}");
        }
    }

    #[test]
    fn the_last_line_is_found_behind_any_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let good = "{\"seq\":5,\"time\":\"2026-11-30T21:11:24Z\"}\n";
        for damage in [
            0,
            1,
            TAIL_BYTES - good.len() as u64,
            TAIL_BYTES - 1,
            TAIL_BYTES,
            TAIL_BYTES + 7,
            3 * TAIL_BYTES,
        ] {
            let mut bytes = good.repeat(3).into_bytes();
            bytes.resize(bytes.len() + usize::try_from(damage).unwrap(), b'x');
            fs::write(&path, &bytes).unwrap();
            let file = File::open(&path).unwrap();
            let tail = Tail::read(&file, bytes.len() as u64).unwrap();
            assert_eq!(tail.last.map(|last| last.seq), Some(5), "{damage}");
            assert_eq!(tail.is_torn, damage > 0, "{damage}");
        }
    }
}
