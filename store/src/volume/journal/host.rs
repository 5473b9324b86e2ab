//! The journal's interface to the rest of the store.

use std::fmt;

use futures::future::BoxFuture;

use crate::{
    Error, Result,
    format::journal::{JOURNAL_BLOCK_BYTES, data_crc},
    io::AlignedBuf,
};

/// The store around a journal.
pub(crate) trait Host: Send + Sync + fmt::Debug {
    /// Stops all writes of the store: after a failed sync the state of the disk is unknown.
    fn stop_writing(&self, why: &Error);

    /// Checksums blocks on a thread that is there for work that takes processor time.
    ///
    /// # Errors
    ///
    /// [`Error::Closing`] once the store closes.
    fn checksum(&self, bytes: AlignedBuf) -> BoxFuture<'_, Result<ChecksummedBlocks>>;
}

/// Bytes of a journal file, and the checksums of those blocks that are whole.
#[derive(Debug)]
pub(crate) struct ChecksummedBlocks {
    pub(super) bytes: AlignedBuf,
    pub(super) crcs: Vec<u32>,
}

impl ChecksummedBlocks {
    /// Computes the checksums, here and now.
    pub(crate) fn new(bytes: AlignedBuf) -> Self {
        let (blocks, _) = bytes.as_chunks::<JOURNAL_BLOCK_BYTES>();
        let crcs = blocks.iter().map(|block| data_crc(block)).collect();
        Self { bytes, crcs }
    }

    /// Bytes that need no checksums.
    pub(super) fn unchecked(bytes: AlignedBuf) -> Self {
        Self {
            bytes,
            crcs: Vec::new(),
        }
    }
}
