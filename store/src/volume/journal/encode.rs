//! The encoding of a batch, with as few copies as possible.

use std::iter;

use bytes::Bytes;

use super::batch::Batch;
use crate::{
    format::journal::{Descriptor, FileHeader, JOURNAL_BLOCK_BYTES},
    io::{AlignedBuf, BUFFER_ALIGN},
    limits::JOURNAL_LARGE_BYTES,
};

/// Writes what precedes a batch's data: the header of its file, if it is the first there, and its
/// descriptor.
fn put_head(buf: &mut AlignedBuf, header: Option<&FileHeader>, descriptor: &Descriptor) {
    if let Some(header) = header {
        buf.extend_from_slice(&header.encode());
    }
    buf.extend_from_slice(&descriptor.encode());
}

/// The parts of a batch that is written to the page cache.
pub(super) fn to_cache(
    header: Option<&FileHeader>,
    descriptor: &Descriptor,
    batch: &Batch,
) -> Vec<Bytes> {
    let mut head = AlignedBuf::with_capacity(2 * JOURNAL_BLOCK_BYTES);
    put_head(&mut head, header, descriptor);
    iter::once(head.into_bytes())
        .chain(batch.data().cloned())
        .collect()
}

/// The parts of a batch that is written past the page cache. Large aligned data is written from
/// where it is, all else is copied.
pub(super) fn past_cache(
    header: Option<&FileHeader>,
    descriptor: &Descriptor,
    batch: &Batch,
) -> Vec<Bytes> {
    let copied_bytes: usize = batch
        .data()
        .filter(|data| !is_large(data))
        .map(Bytes::len)
        .sum();
    let mut copied = AlignedBuf::with_capacity(2 * JOURNAL_BLOCK_BYTES + copied_bytes);
    put_head(&mut copied, header, descriptor);
    // The places in the copies where large data goes in between.
    let mut cuts = Vec::new();
    for data in batch.data() {
        if is_large(data) {
            cuts.push((copied.len(), data));
        } else {
            copied.extend_from_slice(data);
        }
    }
    let mut copied = copied.into_bytes();
    let mut parts = Vec::with_capacity(2 * cuts.len() + 1);
    let mut position = 0;
    for (at, data) in cuts {
        if at > position {
            parts.push(copied.split_to(at - position));
            position = at;
        }
        parts.push(data.clone());
    }
    if !copied.is_empty() {
        parts.push(copied);
    }
    parts
}

/// Returns true if data is written from where it is.
fn is_large(data: &Bytes) -> bool {
    data.len() >= JOURNAL_LARGE_BYTES && data.as_ptr().addr().is_multiple_of(BUFFER_ALIGN)
}
