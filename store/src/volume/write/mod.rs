//! Writing to a volume: bytes become changes of whole blocks, which wait in its queue.
//!
//! A change of a part of a block reads the rest of the block first. The block lock keeps all other
//! changes away meanwhile, so that none is lost.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use varve_content::BLOCK_BYTES;

use super::{
    journal::Change,
    queue::{BlockLock, Op},
    volume::{BLOCK, Volume, VolumeState},
};
use crate::{
    Error, Result,
    limits::{JOURNAL_CHANGE_BYTES, VOLUME_QUEUE_BYTES},
};

impl Volume {
    /// Writes bytes. When this returns they are in the kernel: they survive the end of this
    /// process, and after a [`flush`](Self::flush) also a loss of power.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] past the end of the volume. [`Error::Full`] and [`Error::JournalFull`]
    /// when there is no room; any of the blocks may then be as they were. [`Error::Quota`] when the
    /// owner has stored as many bytes as it may. [`Error::Poisoned`] once a write or a sync of the
    /// store has failed.
    pub async fn write(&self, offset_bytes: u64, data: Bytes) -> Result<()> {
        let inner = &self.inner();
        inner.check_range(offset_bytes, data.len() as u64)?;
        inner.ledger.read().write(data.len() as u64)?;
        let whole = offset_bytes.is_multiple_of(BLOCK) && data.len().is_multiple_of(BLOCK_BYTES);
        if whole {
            let lock = inner.shared_lock().await;
            let start_block = offset_bytes / BLOCK;
            return inner
                .change([Change::Data { start_block, data }], lock)
                .await;
        }
        let lock = inner.exclusive_lock().await;
        let changes = inner.with_edges(offset_bytes, data).await?;
        inner.change(changes, lock).await
    }

    /// Makes a range read as zeros, without writing them. Gives the same promise as
    /// [`write`](Self::write).
    ///
    /// # Errors
    ///
    /// As for [`write`](Self::write).
    pub async fn write_zeroes(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        let inner = &self.inner();
        inner.check_range(offset_bytes, len_bytes)?;
        let end = offset_bytes + len_bytes;
        let whole = offset_bytes.is_multiple_of(BLOCK);
        let lock = inner.lock_to_zero(whole, end).await;
        let (start_block, end_block) = inner.whole_blocks(offset_bytes, end);
        // A block that is zeroed in part is written.
        let zeroed_bytes = end_block.saturating_sub(start_block) * BLOCK;
        if zeroed_bytes < len_bytes {
            inner.ledger.read().write(len_bytes - zeroed_bytes)?;
        }
        let mut changes = Vec::with_capacity(3);
        let head_end = end.min(start_block * BLOCK);
        if offset_bytes < head_end {
            changes.push(inner.zeroed(offset_bytes, head_end).await?);
        }
        if start_block < end_block {
            changes.push(Change::Zeros {
                start_block,
                blocks: end_block - start_block,
            });
        }
        let tail = head_end.max(end_block * BLOCK);
        if tail < end {
            changes.push(inner.zeroed(tail, end).await?);
        }
        inner.change(changes, lock).await
    }

    /// Gives a range back: its whole blocks read as zeros from now on, parts of blocks stay as they
    /// are.
    ///
    /// # Errors
    ///
    /// As for [`write`](Self::write).
    pub async fn trim(&self, offset_bytes: u64, len_bytes: u64) -> Result<()> {
        let inner = &self.inner();
        inner.check_range(offset_bytes, len_bytes)?;
        let end = offset_bytes + len_bytes;
        // Bytes before the first whole block are not touched.
        let lock = inner.lock_to_zero(true, end).await;
        let (start_block, end_block) = inner.whole_blocks(offset_bytes, end);
        let blocks = end_block.saturating_sub(start_block);
        inner
            .change(
                [Change::Zeros {
                    start_block,
                    blocks,
                }],
                lock,
            )
            .await
    }

    /// Waits until all changes that were begun before are made or refused, even if their callers
    /// have gone away.
    pub async fn settle(&self) {
        drop(self.inner().exclusive_lock().await);
    }
}

impl VolumeState {
    /// The block lock of a change that zeroes a range up to `end`. The volume's end may cut its
    /// last block short; such a block counts as whole until the volume grows. So no other change
    /// goes beside one that ends within a block.
    async fn lock_to_zero(&self, begins_whole: bool, end: u64) -> BlockLock {
        if begins_whole && end.is_multiple_of(BLOCK) {
            self.shared_lock().await
        } else {
            self.exclusive_lock().await
        }
    }

    /// The blocks that a range covers whole, as start and end. The volume's last block may be
    /// shorter than the others. The caller holds the block lock: the volume may grow before.
    fn whole_blocks(&self, start: u64, end: u64) -> (u64, u64) {
        let end_block = if end == self.size_bytes() {
            end.div_ceil(BLOCK)
        } else {
            end / BLOCK
        };
        (start.div_ceil(BLOCK), end_block)
    }

    /// The block lock, shared with other changes of whole blocks.
    async fn shared_lock(&self) -> BlockLock {
        let block_lock = Arc::clone(&self.block_lock);
        let _guard = match block_lock.try_read_owned() {
            Ok(guard) => guard,
            Err(_) => Arc::clone(&self.block_lock).read_owned().await,
        };
        BlockLock::Shared { _guard }
    }

    /// Takes bytes of the volume's queue. A change may wait long for room in the journal, so until
    /// its batch is in flight it takes nothing that all volumes share.
    async fn queue_budget(&self, bytes: u32) -> Result<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.queue_budget).try_acquire_many_owned(bytes) {
            return Ok(permit);
        }
        let permit = Arc::clone(&self.queue_budget).acquire_many_owned(bytes);
        permit.await.map_err(|_| Error::Closing)
    }

    /// The block lock, for one change alone.
    async fn exclusive_lock(&self) -> BlockLock {
        BlockLock::Exclusive {
            _guard: Arc::clone(&self.block_lock).write_owned().await,
        }
    }

    /// Queues changes, in this order, and waits until they are in the kernel. A change that is
    /// larger than the queue is split, so that the bytes in the queue are counted exactly.
    async fn change(
        &self,
        changes: impl IntoIterator<Item = Change>,
        lock: BlockLock,
    ) -> Result<()> {
        let lock = Arc::new(lock);
        let mut replies = Vec::new();
        for change in changes {
            for change in change.split(VOLUME_QUEUE_BYTES) {
                let bytes = match &change {
                    Change::Data { data, .. } => data.len(),
                    Change::Zeros { .. } => JOURNAL_CHANGE_BYTES as usize,
                };
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                let budget = self.queue_budget(bytes).await?;
                let (reply, outcome) = oneshot::channel();
                self.queue.push(Op {
                    change,
                    is_begun: false,
                    reply,
                    _lock: Arc::clone(&lock),
                    _budget: budget,
                })?;
                replies.push(outcome);
            }
        }
        for outcome in replies {
            outcome.await.map_err(|_| Error::Closing)??;
        }
        Ok(())
    }

    /// The changes that write some bytes: whole blocks, and the blocks at the edges with the rest
    /// of their content.
    async fn with_edges(&self, offset_bytes: u64, mut data: Bytes) -> Result<Vec<Change>> {
        let mut changes = Vec::with_capacity(3);
        let mut position = offset_bytes;
        while !data.is_empty() {
            let in_block = position % BLOCK;
            let whole = data.len() / BLOCK_BYTES * BLOCK_BYTES;
            if in_block == 0 && whole > 0 {
                changes.push(Change::Data {
                    start_block: position / BLOCK,
                    data: data.split_to(whole),
                });
                position += whole as u64;
            } else {
                let rest = usize::try_from(BLOCK - in_block).unwrap_or(BLOCK_BYTES);
                let edge = data.split_to(rest.min(data.len()));
                let len = edge.len() as u64;
                changes.push(self.filled_up(position, edge).await?);
                position += len;
            }
        }
        Ok(changes)
    }

    /// The change of the block that some bytes are in, with the rest of its content.
    async fn filled_up(&self, offset_bytes: u64, data: Bytes) -> Result<Change> {
        let end = offset_bytes + data.len() as u64;
        let start_block = offset_bytes / BLOCK;
        let end_of_block = (start_block + 1) * BLOCK;
        debug_assert!(end <= end_of_block);
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        self.read_into(start_block * BLOCK, offset_bytes, &mut block)
            .await?;
        block.extend_from_slice(&data);
        self.read_into(end, end_of_block, &mut block).await?;
        Ok(Change::Data {
            start_block,
            data: Bytes::from(block),
        })
    }

    /// The same for zeros.
    async fn zeroed(&self, start: u64, end: u64) -> Result<Change> {
        let zeros = usize::try_from(end - start).unwrap_or(0);
        self.filled_up(start, Bytes::from(vec![0; zeros])).await
    }

    /// Appends bytes of the volume to `bytes`, and zeros behind its end.
    async fn read_into(&self, start: u64, end: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let within = end.min(self.size_bytes()).saturating_sub(start);
        let wanted = bytes.len() + usize::try_from(end - start).unwrap_or(0);
        let within = usize::try_from(within).unwrap_or(0);
        if within > 0 {
            for piece in self.read(start, within).await? {
                piece.append_to(bytes);
            }
        }
        bytes.resize(wanted, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
