//! What the blocks of a volume are read from: journal, base, or nothing.

use futures::future::try_join_all;

use super::{
    journal::BlockPlace,
    layers::{Place, Stretch},
    volume::{BLOCK, VolumeState, bytes_of, in_base},
};
use crate::{
    Error, Result,
    read::{ContentReader, Piece, push_zeros},
};

/// What some blocks are read from.
pub(super) enum Source {
    Zeros,
    Journal(BlockPlace),
    Base(ContentReader),
}

impl VolumeState {
    /// Opens what stretches are read from. Files may be removed once the layers have changed, but not from under a reader.
    pub(super) fn sources(
        &self,
        stretches: Vec<Stretch>,
        base: Option<&ContentReader>,
    ) -> Result<Vec<(Stretch, Source)>> {
        let source = |stretch: &Stretch| -> Result<Source> {
            Ok(match stretch.place {
                Place::Zeros => Source::Zeros,
                Place::Base => base.map_or(Source::Zeros, |base| Source::Base(base.clone())),
                Place::Journal { first_file, slot } => {
                    Source::Journal(self.journal.place(first_file, slot)?)
                }
            })
        };
        stretches
            .into_iter()
            .map(|stretch| Ok((stretch, source(&stretch)?)))
            .collect()
    }

    pub(super) async fn gather(
        &self,
        sources: Vec<(Stretch, Source)>,
        offset_bytes: u64,
        len_bytes: u64,
    ) -> Result<Vec<Piece>> {
        let read = async |(stretch, source): &(Stretch, Source)| {
            let (start, end) = bytes_of(stretch, offset_bytes, len_bytes);
            self.read_source(source, start - stretch.start * BLOCK, start, end)
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
                let _space = self
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
