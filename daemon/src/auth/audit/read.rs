//! Pages of events, from the oldest to the newest, also while the thread writes.
//!
//! A page takes up where the one before ended, by the number of the last line that was looked at.
//! Lines are sorted by number, so the place in a file is found by bisection.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::OFlags;

use super::{
    event::Entry,
    files::{CURRENT, Rotated, audit_dir, rotated},
    limits::{LINE_BYTES_MAX, PAGE_EVENTS_MAX, PAGE_SCAN_BYTES_MAX},
};

/// The events that are asked for.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// Only events with a greater number: the [`cursor`](Page::cursor) of the page before, or 0.
    pub after: u64,
    /// Only events at this time or later. A file is not opened if its name says that it ended
    /// before.
    pub since: Option<Timestamp>,
    /// Only events before this time.
    pub until: Option<Timestamp>,
    /// Only events with exactly this account.
    pub account: Option<String>,
    /// Only events with exactly this action.
    pub action: Option<String>,
    /// Events on the page: 1 to 1024. 0 means as many as possible.
    pub limit: usize,
}

/// A page of events, the newest one last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    pub events: Vec<Entry>,
    /// Where the next page begins: see [`Query::after`].
    pub cursor: u64,
    /// True if there may be more. The page may have few events, even none: it ends after 64 MiB of
    /// lines, too. If false, a later question with the same cursor finds the events since.
    pub has_more: bool,
    /// Lines that were skipped because they are damaged. One such line behind the last event of a
    /// page may count on the next page too.
    pub damaged: u64,
}

/// The log cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the audit log: {}: {error}", path.display())]
pub struct ReadError {
    path: PathBuf,
    error: io::Error,
}

/// Reads a page of the log in the directory `audit` of `dir`. It reads files, so it is not for an
/// async task. A log that does not exist has no events.
///
/// # Errors
///
/// The directory or a file cannot be read.
pub fn read(dir: &Path, query: &Query) -> Result<Page, ReadError> {
    let dir = audit_dir(dir);
    let current = dir.join(CURRENT);
    let failed = |path: &Path, error| {
        let path = path.to_owned();
        ReadError { path, error }
    };
    // The current file first: if it is rotated now, it is found twice, and not missed.
    let newest = open(&current).map_err(|error| failed(&current, error))?;
    let files = match rotated(&dir) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(failed(&dir, error)),
    };
    let mut scan = Scan::new(query);
    for Rotated {
        path,
        until,
        last_seq,
    } in files
    {
        // The name has whole seconds, rounded down.
        let end = until.saturating_add(SignedDuration::from_secs(1));
        let is_before = query
            .since
            .is_some_and(|since| end.is_ok_and(|end| end <= since));
        if is_before || last_seq <= scan.page.cursor {
            continue;
        }
        // It may have been deleted meanwhile, as the oldest one.
        let Some(file) = open(&path).map_err(|error| failed(&path, error))? else {
            continue;
        };
        if scan.file(&file).map_err(|error| failed(&path, error))? {
            return Ok(scan.page);
        }
    }
    if let Some(file) = newest {
        scan.file(&file).map_err(|error| failed(&current, error))?;
    }
    Ok(scan.page)
}

fn open(path: &Path) -> io::Result<Option<File>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A page that is being filled.
struct Scan<'a> {
    query: &'a Query,
    limit: usize,
    /// Bytes that may still be read.
    bytes: u64,
    page: Page,
}

impl<'a> Scan<'a> {
    fn new(query: &'a Query) -> Self {
        let limit = if query.limit == 0 {
            PAGE_EVENTS_MAX
        } else {
            query.limit
        };
        Self {
            query,
            limit: limit.min(PAGE_EVENTS_MAX),
            bytes: PAGE_SCAN_BYTES_MAX,
            page: Page {
                cursor: query.after,
                ..Page::default()
            },
        }
    }

    /// Takes the events of a file. Returns true if the page is full.
    fn file(&mut self, file: &File) -> io::Result<bool> {
        let start = place_after(file, self.page.cursor)?;
        let mut reader = BufReader::with_capacity(64 << 10, file);
        reader.seek(SeekFrom::Start(start))?;
        let mut line = Vec::new();
        while let Some(length) = next_line(&mut reader, &mut line)? {
            if let Some(entry) = Entry::parse(&line) {
                if entry.seq <= self.page.cursor {
                    continue;
                }
                if self.page.events.len() >= self.limit || self.bytes < length {
                    self.page.has_more = true;
                    return Ok(true);
                }
                self.page.cursor = entry.seq;
                if self.is_wanted(&entry) {
                    self.page.events.push(entry);
                }
            } else {
                self.page.damaged += 1;
            }
            self.bytes = self.bytes.saturating_sub(length);
        }
        Ok(false)
    }

    fn is_wanted(&self, entry: &Entry) -> bool {
        let Query {
            since,
            until,
            account,
            action,
            ..
        } = self.query;
        since.is_none_or(|since| entry.until() >= since)
            && until.is_none_or(|until| entry.time < until)
            && (account.is_none() || *account == entry.account)
            && action.as_ref().is_none_or(|action| *action == entry.action)
    }
}

/// Reads a line, without its line feed. Returns its length in the file, or `None` at the end: a
/// last line without a line feed is still being written. A line that is too long is shortened, and
/// then does not parse.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<u64>> {
    line.clear();
    let mut length = reader.take(LINE_BYTES_MAX as u64).read_until(b'\n', line)? as u64;
    if line.len() < LINE_BYTES_MAX && line.last() != Some(&b'\n') {
        // More of it may be there by now, but what was read is no beginning of a long line.
        return Ok(None);
    }
    while line.last() != Some(&b'\n') {
        let rest = reader.fill_buf()?;
        if rest.is_empty() {
            return Ok(None);
        }
        let end = rest.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(rest.len(), |end| end + 1);
        reader.consume(taken);
        length += taken as u64;
        if end.is_some() {
            line.clear();
            line.push(b'\n');
        }
    }
    line.pop();
    Ok(Some(length))
}

/// The start of a line at or before the first one with a number above `seq`.
fn place_after(file: &File, seq: u64) -> io::Result<u64> {
    // The probe finds a whole line, wherever it falls.
    const PROBE_BYTES: usize = 4 * LINE_BYTES_MAX;
    if seq == 0 {
        return Ok(0);
    }
    // The line is behind the start of a line at `low`; one at `high` or behind is too late.
    let (mut low, mut high) = (0, file.metadata()?.len());
    let mut probe = vec![0; PROBE_BYTES];
    // A file that was tampered with may have smaller numbers behind greater ones.
    while high.saturating_sub(low) > PROBE_BYTES as u64 {
        let middle = low.midpoint(high);
        let mut at = middle;
        let found = loop {
            let length = file.read_at(&mut probe, at)?;
            let found = whole_line(probe.get(..length).unwrap_or_default());
            if found.is_some() || at + length as u64 >= high {
                break found.map(|(within, entry)| (at + within, entry));
            }
            // Nothing but damage so far. The next line may have begun at the end of the probe.
            at += (PROBE_BYTES - LINE_BYTES_MAX) as u64;
        };
        match found {
            Some((start, entry)) if entry.seq <= seq => low = start,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// The first whole line that parses and begins behind a line feed, with its place.
fn whole_line(bytes: &[u8]) -> Option<(u64, Entry)> {
    let mut at = bytes.iter().position(|byte| *byte == b'\n')? + 1;
    loop {
        let rest = bytes.get(at..)?;
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        if let Some(entry) = rest.get(..end).and_then(Entry::parse) {
            return Some((at as u64, entry));
        }
        at += end + 1;
    }
}
