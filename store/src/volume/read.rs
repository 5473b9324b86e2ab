//! Reading a volume: from the journal, from the base, or nothing but zeros.

use futures::future::try_join_all;

use super::{
    journal::BlockPlace,
    layers::{BlockExtent, Place, Stack},
    volume::{BLOCK, Volume, VolumeState},
};
use crate::{
    Error, Result,
    read::{ContentReader, Extent, Piece, push_extent, push_zeros},
};

impl Volume {
    /// Reads a range, of which data and zeros are returned in order.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] past the end of the volume, [`Error::Damaged`] where the base is damaged.
    pub async fn read(&self, offset_bytes: u64, len_bytes: usize) -> Result<Vec<Piece>> {
        self.inner().check_range(offset_bytes, len_bytes as u64)?;
        self.inner().read(offset_bytes, len_bytes).await
    }

    /// Lists data and holes of a range, neighbours of a kind as one.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    pub async fn extents(&self, offset_bytes: u64, len_bytes: u64) -> Result<Vec<Extent>> {
        let (blocks, base) = self.inner().extents_now(offset_bytes, len_bytes)?;
        let mut extents = Vec::new();
        for extent in blocks {
            let (start, end) = bytes_of(&extent, offset_bytes, len_bytes);
            let len = usize::try_from(end - start).unwrap_or(usize::MAX);
            match extent.place {
                Place::Journal { .. } => push_extent(&mut extents, len, false),
                Place::Zeros => push_extent(&mut extents, len, true),
                Place::Base => {
                    let within = in_base(base.as_ref(), start, end);
                    if let (Some(base), true) = (&base, within > 0) {
                        for extent in base.extents(start, within as u64).await? {
                            let len = usize::try_from(extent.len_bytes).unwrap_or(usize::MAX);
                            push_extent(&mut extents, len, extent.hole);
                        }
                    }
                    push_extent(&mut extents, len - within, true);
                }
            }
        }
        Ok(extents)
    }
}

/// An open source of blocks.
pub(super) enum Source {
    Zeros,
    Journal(BlockPlace),
    Base(ContentReader),
}

impl VolumeState {
    /// The places of a range's blocks at this moment, and the base that some of them are in.
    pub(super) fn extents_now(
        &self,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<(Vec<BlockExtent>, Option<ContentReader>)> {
        self.check_range(offset_bytes, len_bytes)?;
        let (first, blocks) = blocks_of(offset_bytes, len_bytes)?;
        let layers = self.layers.read();
        Ok((layers.extents(first, blocks), layers.below.base.clone()))
    }

    /// Reads a range that was checked.
    pub(super) async fn read(&self, offset_bytes: u64, len_bytes: usize) -> Result<Vec<Piece>> {
        if len_bytes == 0 {
            return Ok(Vec::new());
        }
        let (first, blocks) = blocks_of(offset_bytes, len_bytes as u64)?;
        let sources_now = || {
            let layers = self.layers.read();
            let extents = layers.extents(first, blocks);
            self.sources(extents, layers.below.base.as_ref())
        };
        let patience = self.engine.disk.patience();
        let sources = patience.until_possible(sources_now).await?;
        self.gather(sources, offset_bytes, len_bytes as u64).await
    }

    /// Reads a range of layers that have ended.
    pub(super) async fn read_ended(
        &self,
        stack: &Stack,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<Piece>> {
        let (first, blocks) = blocks_of(offset_bytes, len_bytes)?;
        let extents = stack.extents(first, blocks);
        let sources_now = || self.sources(extents.clone(), stack.base.as_ref());
        let patience = self.engine.disk.patience();
        let sources = patience.until_possible(sources_now).await?;
        self.gather(sources, offset_bytes, len_bytes).await
    }

    /// Opens what extents are read from. A file may be removed once the layers have changed;
    /// a reader that has it open reads on.
    fn sources(
        &self,
        extents: Vec<BlockExtent>,
        base: Option<&ContentReader>,
    ) -> Result<Vec<(BlockExtent, Source)>> {
        let source = |extent: &BlockExtent| -> Result<Source> {
            Ok(match extent.place {
                Place::Zeros => Source::Zeros,
                Place::Base => base.map_or(Source::Zeros, |base| Source::Base(base.clone())),
                Place::Journal { first_file, slot } => {
                    Source::Journal(self.journal.place(first_file, slot)?)
                }
            })
        };
        extents
            .into_iter()
            .map(|extent| Ok((extent, source(&extent)?)))
            .collect()
    }

    async fn gather(
        &self,
        sources: Vec<(BlockExtent, Source)>,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<Piece>> {
        let read = async |(extent, source): &(BlockExtent, Source)| {
            let (start, end) = bytes_of(extent, offset_bytes, len_bytes);
            self.read_source(source, start - extent.start * BLOCK, start, end)
                .await
        };
        if let [only] = &*sources {
            return read(only).await;
        }
        let reads = sources.iter().map(read);
        let mut pieces = Vec::with_capacity(sources.len());
        for piece in try_join_all(reads).await?.into_iter().flatten() {
            match piece {
                Piece::Zero(zeros) => push_zeros(&mut pieces, zeros),
                data @ Piece::Data(_) => pieces.push(data),
            }
        }
        Ok(pieces)
    }

    /// Reads bytes `start..end` of the volume, which begin `skip` bytes into a source.
    async fn read_source(
        &self,
        source: &Source,
        skip: u64,
        start: u64,
        end: u64,
    ) -> Result<Vec<Piece>> {
        let len = usize::try_from(end - start).unwrap_or(usize::MAX);
        match source {
            Source::Zeros => Ok(vec![Piece::Zero(len)]),
            Source::Journal(place) => {
                let (disk, file) = (&self.engine.disk, &place.file);
                let offset_bytes = place.offset_bytes + skip;
                if let Some(data) = disk.read_at_once(file, offset_bytes, len) {
                    return Ok(vec![Piece::Data(data.into_bytes())]);
                }
                let (start, around) = place.around(offset_bytes);
                disk.will_need(file, start, around);
                let _budget = self
                    .engine
                    .read_budget(u32::try_from(len).unwrap_or(u32::MAX))
                    .await?;
                let read = disk.read(file, offset_bytes, len).await;
                let data = read.map_err(|source| Error::io("read", file.path(), source))?;
                Ok(vec![Piece::Data(data.into_bytes())])
            }
            Source::Base(base) => {
                let within = in_base(Some(base), start, end);
                let mut pieces = if within > 0 {
                    base.read(start, within).await?
                } else {
                    Vec::new()
                };
                push_zeros(&mut pieces, len - within);
                Ok(pieces)
            }
        }
    }
}

/// The part of these bytes that is in the base. The volume may be longer.
pub(super) fn in_base(base: Option<&ContentReader>, start: u64, end: u64) -> usize {
    let size_bytes = base.map_or(0, ContentReader::size_bytes);
    usize::try_from(end.min(size_bytes).saturating_sub(start)).unwrap_or(usize::MAX)
}

/// The blocks of a byte range: the first, and their number.
fn blocks_of(offset_bytes: u64, len_bytes: u64) -> Result<(u64, u32)> {
    let first = offset_bytes / BLOCK;
    let blocks = (offset_bytes + len_bytes).div_ceil(BLOCK) - first;
    let blocks = u32::try_from(blocks)
        .map_err(|_| Error::Invalid(format!("{len_bytes} bytes are too many for one read")))?;
    Ok((first, blocks))
}

/// The bytes of an extent that are in a range: start and end.
pub(super) fn bytes_of(extent: &BlockExtent, offset_bytes: u64, len_bytes: u64) -> (u64, u64) {
    let start = extent.start * BLOCK;
    let end = start + u64::from(extent.blocks) * BLOCK;
    (start.max(offset_bytes), end.min(offset_bytes + len_bytes))
}
