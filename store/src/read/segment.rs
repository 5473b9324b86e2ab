//! Segments of a snapshot: a leaf with its number and the places of its chunks.

use std::{collections::HashSet, sync::Arc};

use varve_content::{
    ChunkId,
    tree::{Leaf, LeafWalk},
};

use super::ContentReader;
use crate::{
    Result,
    engine::{Engine, LocatedLeaf, walked},
    format::Location,
};

/// 8 MiB of a snapshot that hold data.
#[derive(Debug, Clone)]
pub struct Segment {
    pub(super) index: u32,
    pub(crate) located: Arc<LocatedLeaf>,
}

impl Segment {
    /// Its number: offset / 8 MiB.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its chunks.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        self.located.leaf()
    }

    /// Its distinct chunks with their places, in the order of their first one; with the entry's
    /// position.
    pub(super) async fn distinct(
        &self,
        engine: &Engine,
    ) -> Result<Vec<(usize, ChunkId, Option<Location>)>> {
        let entries = self.leaf().entries();
        let mut seen = HashSet::with_capacity(entries.len());
        let chunks = entries.iter().map(|entry| entry.chunk).enumerate();
        let distinct: Vec<_> = chunks.filter(|(_, chunk)| seen.insert(*chunk)).collect();
        let positions: Vec<_> = distinct.iter().map(|(position, _)| *position).collect();
        let places = engine.places(&self.located, &positions).await?;
        let located = distinct.into_iter().zip(places);
        Ok(located
            .map(|((at, chunk), place)| (at, chunk, place))
            .collect())
    }
}

/// The segments of a snapshot that hold data.
#[derive(Debug)]
pub struct SegmentStream {
    pub(super) walk: LeafWalk,
    pub(super) reader: ContentReader,
}

impl SegmentStream {
    /// The next one.
    pub async fn next(&mut self) -> Result<Option<Segment>> {
        let next = self
            .walk
            .next(&**self.reader.engine())
            .await
            .map_err(|error| self.reader.named(walked(error)))?;
        let Some((index, id)) = next else {
            return Ok(None);
        };
        let located = self
            .reader
            .engine()
            .located_leaf(id)
            .await
            .map_err(|error| self.reader.named(error))?;
        Ok(Some(Segment { index, located }))
    }
}
