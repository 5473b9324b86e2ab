//! A range of a snapshot, as bytes and holes.

use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use varve_store::{Piece, SnapshotReader};

use crate::{
    limits::{EXTENTS_WINDOW_BYTES, READ_MESSAGE_BYTES, READ_PIECES_IN_FLIGHT},
    service::{
        error::{Error, Result},
        streams::Outlet,
    },
};

/// A part of a read.
#[derive(Debug)]
pub(crate) struct RangePart {
    pub(crate) offset_bytes: u64,
    pub(crate) content: RangeContent,
}

/// The content of a part of a range.
#[derive(Debug)]
pub(crate) enum RangeContent {
    Data(Bytes),
    /// Length in bytes; a hole is not stored and reads as zeros.
    Hole(u64),
}

/// The range of a request; a length of 0 means: to the end.
pub(super) fn range(size_bytes: u64, offset_bytes: u64, length_bytes: u64) -> Result<Range<u64>> {
    if offset_bytes > size_bytes {
        return Err(Error::field(
            "offset_bytes",
            format!("{offset_bytes} is past the end of the snapshot at {size_bytes}"),
        ));
    }
    match length_bytes {
        0 => Ok(offset_bytes..size_bytes),
        _ if length_bytes > size_bytes - offset_bytes => Err(Error::field(
            "length_bytes",
            format!(
                "{length_bytes} bytes from {offset_bytes} go past the end of the snapshot at {size_bytes}"
            ),
        )),
        _ => Ok(offset_bytes..offset_bytes + length_bytes),
    }
}

/// Sends a range. Holes are looked up first, in large windows: an empty volume of terabytes is one
/// message.
pub(super) async fn send(
    reader: SnapshotReader,
    range: Range<u64>,
    outlet: Outlet<RangePart>,
) -> Result<()> {
    let mut sender = Sender {
        outlet,
        next: range.start,
        hole_bytes: 0,
    };
    let mut window = range.start;
    while window < range.end {
        let window_bytes = EXTENTS_WINDOW_BYTES.min(range.end - window);
        let mut position = window;
        for extent in reader.extents(window, window_bytes).await? {
            if extent.hole {
                sender.hole(extent.len_bytes);
            } else {
                send_data(&reader, position..position + extent.len_bytes, &mut sender).await?;
            }
            position += extent.len_bytes;
        }
        window += window_bytes;
    }
    sender.flush_hole().await
}

async fn send_data(reader: &SnapshotReader, range: Range<u64>, sender: &mut Sender) -> Result<()> {
    let parts = (range.start..range.end)
        .step_by(READ_MESSAGE_BYTES)
        .map(|offset| {
            let length = (range.end - offset).min(READ_MESSAGE_BYTES as u64);
            #[expect(
                clippy::cast_possible_truncation,
                reason = "at most READ_MESSAGE_BYTES"
            )]
            reader.read(offset, length as usize)
        });
    let mut parts = stream::iter(parts).buffered(READ_PIECES_IN_FLIGHT);
    while let Some(pieces) = parts.try_next().await? {
        for piece in pieces {
            match piece {
                Piece::Data(bytes) => sender.data(bytes).await?,
                Piece::Zero(bytes) => sender.hole(bytes as u64),
            }
        }
    }
    Ok(())
}

/// Sends bytes as they come, and holes when they end.
struct Sender {
    outlet: Outlet<RangePart>,
    /// Offset of the next part.
    next: u64,
    /// Length of a hole at `next` that was not sent yet.
    hole_bytes: u64,
}

impl Sender {
    fn hole(&mut self, bytes: u64) {
        self.hole_bytes += bytes;
    }

    async fn data(&mut self, bytes: Bytes) -> Result<()> {
        self.flush_hole().await?;
        let length = bytes.len() as u64;
        self.send(RangeContent::Data(bytes), length).await
    }

    async fn flush_hole(&mut self) -> Result<()> {
        match std::mem::take(&mut self.hole_bytes) {
            0 => Ok(()),
            bytes => self.send(RangeContent::Hole(bytes), bytes).await,
        }
    }

    async fn send(&mut self, content: RangeContent, length_bytes: u64) -> Result<()> {
        let part = RangePart {
            offset_bytes: self.next,
            content,
        };
        self.next += length_bytes;
        self.outlet.send(part).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::error::{Classified as _, ErrorKind};

    #[test]
    fn ranges_end_within_the_snapshot() {
        assert_eq!(range(100, 0, 0).unwrap(), 0..100);
        assert_eq!(range(100, 40, 0).unwrap(), 40..100);
        assert_eq!(range(100, 40, 60).unwrap(), 40..100);
        assert_eq!(range(100, 100, 0).unwrap(), 100..100);
        for (offset, length, field) in [
            (101, 0, "offset_bytes"),
            (40, 61, "length_bytes"),
            (1, u64::MAX, "length_bytes"),
        ] {
            let error = range(100, offset, length).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(error.to_string().contains(field), "{error}");
        }
    }
}
