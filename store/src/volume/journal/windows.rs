//! A journal file's blocks and their checksums, read ahead of recovery.
//!
//! A guest waits until its volume's journal is read. So several direct reads are in flight; the
//! page cache would read ahead too little. The store's threads checksum all blocks: only the
//! batches, one by one, show which of them are data.

use std::collections::VecDeque;

use futures::{StreamExt as _, stream, stream::BoxStream};

use super::host::{ChecksummedBlocks, Host};
use crate::{
    Error, Result,
    format::journal::JOURNAL_BLOCK_BYTES,
    io::{Disk, File, OpenMode},
    limits::{JOURNAL_SCAN_READS, JOURNAL_SCAN_WINDOW_BYTES},
};

const BLOCK: usize = JOURNAL_BLOCK_BYTES;
const WINDOW_BLOCKS: usize = JOURNAL_SCAN_WINDOW_BYTES / BLOCK;

/// A window that moves over the blocks of a file, from front to back.
pub(super) struct Windows<'a> {
    ahead: BoxStream<'a, Result<ChecksummedBlocks>>,
    /// Neighbours, in order.
    loaded: VecDeque<ChecksummedBlocks>,
    /// The block that the first of them begins with, or the first of those to come.
    first_block: u64,
}

/// Returns true if the file ends in a window.
fn is_last(window: &ChecksummedBlocks) -> bool {
    window.bytes.len() < JOURNAL_SCAN_WINDOW_BYTES
}

impl<'a> Windows<'a> {
    /// Begins to read a file at a block, with or without checksums.
    pub(super) async fn new(
        disk: &'a dyn Disk,
        host: &'a dyn Host,
        file: &File,
        first_block: u64,
        with_checksums: bool,
    ) -> Result<Self> {
        let file = past_the_cache(disk, file).await?;
        let window = move |number: u64| {
            let file = file.clone();
            async move {
                let offset_bytes = (first_block + number * WINDOW_BLOCKS as u64) * BLOCK as u64;
                let read = disk.read_up_to(&file, offset_bytes, JOURNAL_SCAN_WINDOW_BYTES);
                let bytes = read.await;
                let bytes = bytes.map_err(|source| Error::io("read", file.path(), source))?;
                match with_checksums {
                    true => host.checksum(bytes).await,
                    false => Ok(ChecksummedBlocks::unchecked(bytes)),
                }
            }
        };
        let ahead = stream::iter(0..).map(window).buffered(JOURNAL_SCAN_READS);
        Ok(Self {
            ahead: ahead.boxed(),
            loaded: VecDeque::new(),
            first_block,
        })
    }

    /// Loads blocks, and lets go of those before. If the file ends before their end: how many bytes
    /// it has from the first of them on.
    pub(super) async fn load(&mut self, start: u64, blocks: u64) -> Result<Option<u64>> {
        debug_assert!(start >= self.first_block);
        loop {
            let let_go = |first: &mut ChecksummedBlocks| {
                start >= self.first_block + WINDOW_BLOCKS as u64 && !is_last(first)
            };
            if self.loaded.pop_front_if(let_go).is_some() {
                self.first_block += WINDOW_BLOCKS as u64;
                continue;
            }
            let loaded: usize = self.loaded.iter().map(|window| window.bytes.len()).sum();
            let end_bytes = self.first_block * BLOCK as u64 + loaded as u64;
            if (start + blocks) * BLOCK as u64 <= end_bytes {
                return Ok(None);
            }
            if self.loaded.back().is_some_and(is_last) {
                return Ok(Some(end_bytes.saturating_sub(start * BLOCK as u64)));
            }
            match self.ahead.next().await {
                Some(window) => self.loaded.push_back(window?),
                None => return Err(Error::Closing),
            }
        }
    }

    fn place(&self, block: u64) -> Option<(&ChecksummedBlocks, usize)> {
        let at = usize::try_from(block.checked_sub(self.first_block)?).ok()?;
        let window = self.loaded.get(at / WINDOW_BLOCKS)?;
        Some((window, at % WINDOW_BLOCKS))
    }

    /// A block that was loaded.
    pub(super) fn block(&self, block: u64) -> Option<&[u8; BLOCK]> {
        let (window, at) = self.place(block)?;
        let (blocks, _) = window.bytes.as_chunks::<BLOCK>();
        blocks.get(at)
    }

    /// Its checksum.
    pub(super) fn crc(&self, block: u64) -> Option<u32> {
        let (window, at) = self.place(block)?;
        window.crcs.get(at).copied()
    }
}

/// The same file, opened for reads past the page cache. Only the cache can read the end of a file
/// that does not end with a block, which no journal file does unless it was damaged.
async fn past_the_cache(disk: &dyn Disk, file: &File) -> Result<File> {
    let path = file.path();
    let len_bytes = disk.len(file);
    let len_bytes = len_bytes.map_err(|source| Error::io("read the length of", path, source))?;
    if !len_bytes.is_multiple_of(BLOCK as u64) {
        return Ok(file.clone());
    }
    let open = || disk.open_direct(path, OpenMode::Read);
    let opened = disk.patience().until_possible(open).await;
    opened.map_err(|source| Error::io("open", path, source))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        reason = "tests"
    )]

    use std::path::Path;

    use super::*;
    use crate::{format::journal::data_crc, io::sim::SimDisk, volume::journal::tests::TestHost};

    #[test]
    fn all_blocks_of_a_file_are_there_in_turn_wherever_it_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let host = TestHost::default();
        let disk = SimDisk::new();
        let path = Path::new("/file");
        let windows = JOURNAL_SCAN_WINDOW_BYTES;
        for len in [
            0,
            BLOCK,
            BLOCK + 100,
            windows + BLOCK,
            3 * windows,
            20 * windows + 5 * BLOCK + 1,
        ] {
            let whole = (len / BLOCK) as u64;
            let bytes: Vec<u8> = (0..len)
                .map(|at| ((at / BLOCK) % 251 + at % 7) as u8)
                .collect();
            disk.put(path, &bytes).unwrap();
            let file = disk.open(path, OpenMode::Read).unwrap();
            let found = runtime.block_on(async {
                let mut windows = Windows::new(&*disk, &host, &file, 1, true).await.unwrap();
                let mut at = 1;
                // As long as a batch is, which spans windows.
                while windows.load(at, 3).await.unwrap().is_none() {
                    for block in at..at + 3 {
                        let start = usize::try_from(block).unwrap() * BLOCK;
                        let expected = &bytes[start..start + BLOCK];
                        assert!(windows.block(block).unwrap() == expected);
                        assert_eq!(windows.crc(block), Some(data_crc(expected)));
                    }
                    at += 1;
                }
                let rest = windows.load(at, 3).await.unwrap().unwrap();
                let end = usize::try_from(at).unwrap() * BLOCK + usize::try_from(rest).unwrap();
                assert_eq!(end.max(BLOCK), len.max(BLOCK), "of {len} bytes");
                at
            });
            assert_eq!(
                found,
                u64::max(1, u64::saturating_sub(whole, 2)),
                "of {len} bytes"
            );
        }
    }
}
