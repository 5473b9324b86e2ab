//! Which chunks and nodes the store has, in the index or on the way there.

use varve_content::ChunkId;

use super::{Engine, Generation, Priority, node_keys};
use crate::{Result, format::pack::Payload, pack::EncodedRecord};

impl Engine {
    /// Positions of the chunks that the store lacks, ascending.
    pub(crate) async fn missing_chunks(&self, ids: &[ChunkId]) -> Result<Vec<u32>> {
        let known = self.known_chunks(ids.to_vec()).await?;
        Ok((0u32..)
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(position, _)| position)
            .collect())
    }

    /// For each chunk, how the store keeps it; `None` if it has not got it.
    pub(crate) async fn known_chunks(&self, ids: Vec<ChunkId>) -> Result<Vec<Option<Payload>>> {
        // A chunk leaves the pending ones only after it has entered the index: asked in this order,
        // none is missed.
        let mut known = self.commit.pending_chunks(&ids);
        let (positions, unknown): (Vec<_>, Vec<_>) = known
            .iter()
            .zip(ids)
            .enumerate()
            .filter(|(_, (known, _))| known.is_none())
            .map(|(at, (_, id))| (at, id))
            .unzip();
        if unknown.is_empty() {
            return Ok(known);
        }
        let indexed = self
            .meta(Priority::Write, move |meta| meta.chunks(&unknown))
            .await?;
        let lost = self.lost.read();
        for (position, place) in positions.into_iter().zip(indexed) {
            if let Some(slot) = known.get_mut(position) {
                *slot = place
                    .filter(|place| !lost.hold(place))
                    .map(|place| place.payload);
            }
        }
        Ok(known)
    }

    /// Appends those nodes that are not there yet. Returns the bytes they take.
    pub(crate) async fn append_new_nodes(
        &self,
        generation: Generation,
        records: Vec<EncodedRecord>,
    ) -> Result<u64> {
        let keys: Vec<_> = node_keys(&records).collect();
        let pending = self.commit.pending_nodes(&keys);
        let indexed = self
            .meta(Priority::Write, move |meta| meta.nodes(&keys))
            .await?;
        let new: Vec<_> = {
            let lost = self.lost.read();
            let known = pending.iter().zip(&indexed).map(|(pending, indexed)| {
                *pending || indexed.is_some_and(|place| !lost.hold(&place))
            });
            let records = records.into_iter().zip(known);
            let new = records.filter(|(_, known)| !known);
            new.map(|(record, _)| record).collect()
        };
        if new.is_empty() {
            return Ok(0);
        }
        self.commit.append_nodes(generation, new).await
    }
}
