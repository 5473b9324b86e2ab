//! Changes to a volume whose bytes are in a file.

use std::{collections::BTreeMap, fs::File, io, ops::Range, os::unix::fs::FileExt};

use super::source::Source;
use crate::error::{Error, ErrorKind, Result};

/// Changes whose bytes are in a file: a [`Source`] for an upload
/// [on a base](crate::Upload::base).
///
/// ```no_run
/// use std::fs::File;
///
/// use varve_client::{Client, PatchSource, Result};
///
/// # async fn restore(client: &Client, file: File) -> Result<()> {
/// // A volume of 1 GiB, of which the block at 4096 is the file's first one, and the next is zeros.
/// let mut patch = PatchSource::new(file, "monday.patch", 1 << 30);
/// patch.data(4096..8192, 0)?;
/// patch.zeros(8192..12288)?;
/// client.upload("web/monday").base("web/sunday").run(patch).await?;
/// # Ok(())
/// # }
/// ```
///
/// It needs some 50 bytes of memory for each range that does not continue the previous one, in the
/// volume and in the file.
#[derive(Debug)]
pub struct PatchSource {
    file: File,
    name: String,
    size_bytes: u64,
    /// By offset in the volume. They do not overlap.
    ranges: BTreeMap<u64, Patched>,
}

/// The new content of a range of the volume.
#[derive(Clone, Copy, Debug)]
struct Patched {
    end_bytes: u64,
    /// Where its bytes are in the file; `None` for zeros.
    file_offset_bytes: Option<u64>,
}

impl PatchSource {
    /// Creates an empty set of changes to a volume that has `size_bytes` afterwards. Errors call
    /// the file `name`.
    #[must_use]
    pub fn new(file: File, name: impl Into<String>, size_bytes: u64) -> Self {
        Self {
            file,
            name: name.into(),
            size_bytes,
            ranges: BTreeMap::new(),
        }
    }

    /// Adds a range, in bytes of the volume, whose bytes are in the file from `file_offset_bytes`
    /// on.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Invalid`] for a range that is empty, is not in the volume, or overlaps with
    /// another, or for an offset that no file has.
    pub fn data(&mut self, range: Range<u64>, file_offset_bytes: u64) -> Result<()> {
        self.add(range, Some(file_offset_bytes))
    }

    /// Adds a range of zeros, in bytes of the volume.
    ///
    /// # Errors
    ///
    /// As for [`data`](Self::data).
    pub fn zeros(&mut self, range: Range<u64>) -> Result<()> {
        self.add(range, None)
    }

    fn add(&mut self, range: Range<u64>, file_offset_bytes: Option<u64>) -> Result<()> {
        let refused = |why: &str| {
            let what = format!("change bytes {} to {}", range.start, range.end);
            Err(Error::new(ErrorKind::Invalid, what, why))
        };
        if range.is_empty() || range.end > self.size_bytes {
            return refused("they are not a range of the volume");
        }
        let len_bytes = range.end - range.start;
        if file_offset_bytes.is_some_and(|at| at.checked_add(len_bytes).is_none()) {
            return refused("no file has bytes where theirs are to be");
        }
        let mut before = self.ranges.range_mut(..range.end);
        if let Some((&start, patched)) = before.next_back() {
            if patched.end_bytes > range.start {
                return refused("some of them are changed already");
            }
            let continued = patched
                .file_offset_bytes
                .map(|at| at + (range.start - start));
            if patched.end_bytes == range.start && continued == file_offset_bytes {
                patched.end_bytes = range.end;
                return Ok(());
            }
        }
        let patched = Patched {
            end_bytes: range.end,
            file_offset_bytes,
        };
        self.ranges.insert(range.start, patched);
        Ok(())
    }

    /// The first range that ends behind an offset.
    fn range_at(&self, offset_bytes: u64) -> Option<(u64, Patched)> {
        let before = self.ranges.range(..=offset_bytes).next_back();
        let before = before.filter(|(_, patched)| patched.end_bytes > offset_bytes);
        let found = before.or_else(|| self.ranges.range(offset_bytes..).next());
        found.map(|(start, patched)| (*start, *patched))
    }
}

impl Source for PatchSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        let found = self.range_at(offset_bytes);
        Ok(found.map(|(start, patched)| start..patched.end_bytes))
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        let end_bytes = offset_bytes + buffer.len() as u64;
        let mut next = offset_bytes;
        while next < end_bytes
            && let Some((start, patched)) = self.range_at(next)
            && start < end_bytes
        {
            let (from, to) = (start.max(next), patched.end_bytes.min(end_bytes));
            if let Some(file_offset_bytes) = patched.file_offset_bytes {
                // Within the buffer, whose length is a usize.
                let at = |offset: u64| usize::try_from(offset - offset_bytes);
                let (Ok(first), Ok(last)) = (at(from), at(to)) else {
                    return Err(io::ErrorKind::InvalidInput.into());
                };
                let file_offset_bytes = file_offset_bytes + (from - start);
                self.file
                    .read_exact_at(&mut buffer[first..last], file_offset_bytes)?;
            }
            next = to;
        }
        Ok(())
    }

    fn data_bytes_hint(&self) -> u64 {
        let ranges = self.ranges.iter();
        ranges.map(|(start, it)| it.end_bytes - start).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn patch() -> PatchSource {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"abcdefgh", 0).unwrap();
        PatchSource::new(file, "p", 100)
    }

    #[test]
    fn ranges_are_given_in_order_and_read_with_zeros() {
        let mut patch = patch();
        patch.zeros(20..24).unwrap();
        patch.data(10..14, 4).unwrap();
        patch.data(14..16, 0).unwrap();
        // These continue each other, in the volume and in the file.
        patch.data(16..17, 2).unwrap();
        patch.data(50..52, 0).unwrap();
        patch.data(52..54, 2).unwrap();
        let mut found = Vec::new();
        let mut next = 0;
        while let Some(range) = patch.next_data(next).unwrap() {
            next = range.end;
            found.push(range);
        }
        assert_eq!(found, [10..14, 14..17, 20..24, 50..54]);
        assert_eq!(patch.next_data(12).unwrap(), Some(10..14));
        assert_eq!(patch.data_bytes_hint(), 15);
        let mut read = [1; 12];
        patch.read_at(12, &mut read).unwrap();
        assert_eq!(&read, b"ghabc\0\0\0\0\0\0\0");
        // Reads that end where they began, and within a range.
        patch.read_at(11, &mut []).unwrap();
        let mut read = [1; 2];
        patch.read_at(11, &mut read).unwrap();
        assert_eq!(&read, b"fg");
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        let mut patch = patch();
        patch.data(10..14, 0).unwrap();
        for wrong in [10..10, 90..101, 0..11, 13..20, 11..12, 0..50] {
            let error = patch.data(wrong.clone(), 0).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{wrong:?}");
        }
        // Nor are bytes that no file has.
        let error = patch.data(20..30, u64::MAX - 5).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        patch.zeros(14..100).unwrap();
        patch.zeros(0..10).unwrap();
    }
}
