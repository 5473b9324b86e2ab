//! Which chunks and nodes the store has, in the index or on the way there.

use varve_content::ChunkId;

use super::{Engine, Generation, Priority};
use crate::{
    Result,
    format::{Name, PackKind, pack::Payload},
    pack::EncodedRecord,
};

impl Engine {
    /// Positions of the chunks that the store lacks, ascending.
    pub(crate) async fn missing_chunks(&self, ids: &[ChunkId]) -> Result<Vec<u32>> {
        let names = ids.iter().copied().map(Name::chunk);
        let known = self.known(names.collect()).await?;
        Ok((0u32..)
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(position, _)| position)
            .collect())
    }

    /// For each record, how the store keeps it; `None` if it has not got it.
    pub(crate) async fn known(&self, names: Vec<Name>) -> Result<Vec<Option<Payload>>> {
        // A record leaves the pending ones only after it has entered the index: asked in this
        // order, none is missed.
        let mut known = self.commit.pending(&names);
        let (positions, unknown): (Vec<_>, Vec<_>) = known
            .iter()
            .zip(names)
            .enumerate()
            .filter(|(_, (known, _))| known.is_none())
            .map(|(at, (_, name))| (at, name))
            .unzip();
        if unknown.is_empty() {
            return Ok(known);
        }
        let indexed = self
            .meta(Priority::Write, move |meta| meta.lookup(&unknown))
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
        let names = records.iter().map(EncodedRecord::name);
        let known = self.known(names.collect()).await?;
        let records = records.into_iter().zip(known);
        let new = records.filter(|(_, known)| known.is_none());
        let new: Vec<_> = new.map(|(record, _)| record).collect();
        if new.is_empty() {
            return Ok(0);
        }
        self.commit.append(generation, PackKind::Nodes, new).await
    }
}
