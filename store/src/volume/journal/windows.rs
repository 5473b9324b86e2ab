//! A journal file's blocks and their checksums, read ahead of who looks at them.
//!
//! A volume is not opened before its journal was read, and a guest waits for that. So several reads are under way, past the page cache,
//! which reads ahead too little; and checksums are made by the store's threads, of all blocks, for which of them are data block_lock
//! out only one batch after the other.

use std::collections::VecDeque;

use futures::{StreamExt as _, stream, stream::BoxStream};

use crate::{
    Error, Result,
    format::journal::{JOURNAL_BLOCK_BYTES, data_crc},
    io::{AlignedBuf, Disk, File, OpenMode},
    limits::{JOURNAL_SCAN_READS, JOURNAL_SCAN_WINDOW_BYTES},
    workers::{Priority, Workers},
};

const BLOCK: usize = JOURNAL_BLOCK_BYTES;
const WINDOW_BLOCKS: usize = JOURNAL_SCAN_WINDOW_BYTES / BLOCK;

/// The blocks of a file from one on, as far as somebody has asked for them.
pub(crate) struct Windows<'a> {
    ahead: BoxStream<'a, Result<Window>>,
    /// Neighbours, in order.
    there: VecDeque<Window>,
    /// With which the first of them begins, or the first of those to come.
    first_block: u64,
}

struct Window {
    bytes: AlignedBuf,
    /// Of its whole blocks, if they were asked for.
    crcs: Vec<u32>,
}

impl Window {
    /// Whether the file ends in it.
    fn is_last(&self) -> bool {
        self.bytes.len() < JOURNAL_SCAN_WINDOW_BYTES
    }
}

impl<'a> Windows<'a> {
    /// Begins to read a file at a block.
    pub(crate) async fn new(
        disk: &'a dyn Disk,
        workers: &'a Workers,
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
                if !with_checksums {
                    let crcs = Vec::new();
                    return Ok(Window { bytes, crcs });
                }
                let sum = move |_: &mut _| {
                    let (blocks, _) = bytes.as_chunks::<BLOCK>();
                    let crcs = blocks.iter().map(|block| data_crc(block)).collect();
                    Window { bytes, crcs }
                };
                workers.run(Priority::Read, sum).await
            }
        };
        let ahead = stream::iter(0..).map(window).buffered(JOURNAL_SCAN_READS);
        Ok(Self {
            ahead: ahead.boxed(),
            there: VecDeque::new(),
            first_block,
        })
    }

    /// Brings blocks, and lets go of those before. If the file ends before: how many bytes it has from the first of them on.
    pub(crate) async fn bring(&mut self, start: u64, blocks: u64) -> Result<Option<u64>> {
        debug_assert!(start >= self.first_block);
        loop {
            let let_go = |first: &mut Window| {
                start >= self.first_block + WINDOW_BLOCKS as u64 && !first.is_last()
            };
            if self.there.pop_front_if(let_go).is_some() {
                self.first_block += WINDOW_BLOCKS as u64;
                continue;
            }
            let there: usize = self.there.iter().map(|window| window.bytes.len()).sum();
            let end_bytes = self.first_block * BLOCK as u64 + there as u64;
            if (start + blocks) * BLOCK as u64 <= end_bytes {
                return Ok(None);
            }
            if self.there.back().is_some_and(Window::is_last) {
                return Ok(Some(end_bytes.saturating_sub(start * BLOCK as u64)));
            }
            match self.ahead.next().await {
                Some(window) => self.there.push_back(window?),
                None => return Err(Error::Closing),
            }
        }
    }

    fn place(&self, block: u64) -> Option<(&Window, usize)> {
        let at = usize::try_from(block.checked_sub(self.first_block)?).ok()?;
        let window = self.there.get(at / WINDOW_BLOCKS)?;
        Some((window, at % WINDOW_BLOCKS))
    }

    /// A block that was brought.
    pub(crate) fn block(&self, block: u64) -> Option<&[u8; BLOCK]> {
        let (window, at) = self.place(block)?;
        let (blocks, _) = window.bytes.as_chunks::<BLOCK>();
        blocks.get(at)
    }

    /// Its checksum.
    pub(crate) fn crc(&self, block: u64) -> Option<u32> {
        let (window, at) = self.place(block)?;
        window.crcs.get(at).copied()
    }
}

/// The same file, opened for reads past the page cache. Where it does not end with a block, as no journal file does by itself, only the
/// cache can read its end.
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

    use varve_content::codec::Compression;

    use super::*;
    use crate::io::sim::SimDisk;

    #[test]
    fn all_blocks_of_a_file_are_there_in_turn_wherever_it_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let workers = Workers::start(1, Compression::None).unwrap();
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
                let mut windows = Windows::new(&*disk, &workers, &file, 1, true)
                    .await
                    .unwrap();
                let mut at = 1;
                // As long as a batch is, which spans windows.
                while windows.bring(at, 3).await.unwrap().is_none() {
                    for block in at..at + 3 {
                        let start = usize::try_from(block).unwrap() * BLOCK;
                        let expected = &bytes[start..start + BLOCK];
                        assert!(windows.block(block).unwrap() == expected);
                        assert_eq!(windows.crc(block), Some(data_crc(expected)));
                    }
                    at += 1;
                }
                let rest = windows.bring(at, 3).await.unwrap().unwrap();
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
