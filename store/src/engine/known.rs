//! The chunks and nodes that the store has, in the index or on the way there.

use std::sync::Arc;

use varve_content::ChunkId;

use super::{Engine, Generation, Guard, Priority};
use crate::{
    Result,
    format::{Location, Name, PackKind, pack::Payload},
    pack::EncodedRecord,
};

/// The state of a record in the index.
#[derive(Debug, Clone, Copy)]
enum Row {
    Absent,
    /// The record is damaged. A new copy replaces it.
    Lost,
    Kept(Location),
    /// The pack is about to go, and the guard cannot keep it.
    Going,
}

impl Row {
    const fn kept(&self) -> Option<&Location> {
        match self {
            Self::Kept(place) => Some(place),
            Self::Absent | Self::Lost | Self::Going => None,
        }
    }
}

impl Engine {
    /// Positions of the chunks that the store lacks, ascending. The others are kept for as long as
    /// the guard lives; without a guard, only as long as a root names them.
    pub(crate) async fn missing_chunks(
        &self,
        guard: Option<&Guard>,
        ids: &[ChunkId],
    ) -> Result<Vec<u32>> {
        let names = ids.iter().copied().map(Name::chunk);
        let known = self.known(guard, names.collect()).await?;
        Ok((0u32..)
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(position, _)| position)
            .collect())
    }

    /// For each record, how the store keeps it; `None` if the store lacks it. They are kept for as
    /// long as the guard lives, so a record in a pack that is about to go is not known.
    pub(crate) async fn known(
        &self,
        guard: Option<&Guard>,
        names: Vec<Name>,
    ) -> Result<Vec<Option<Payload>>> {
        // A record leaves the pending ones only after it has entered the index. Asked in this
        // order, no record is missed.
        let mut known = self.commit.pending(&names);
        let rows = self.rows(guard, names.clone()).await?;
        let mut going = Vec::new();
        for (at, (known, row)) in known.iter_mut().zip(rows).enumerate() {
            match row {
                Row::Absent | Row::Lost => {}
                Row::Kept(place) => *known = Some(place.payload),
                Row::Going => going.push(at),
            }
        }
        if !going.is_empty() {
            self.replaced(guard, &names, &going, &mut known).await?;
        }
        Ok(known)
    }

    /// Settles which records are known, of those whose rows point into packs that are about to go.
    /// Packs are condemned while no row is made. So a copy that waits to be indexed will replace
    /// the row, and any other copy has done so, or was dropped in favour of the row.
    async fn replaced(
        &self,
        guard: Option<&Guard>,
        names: &[Name],
        going: &[usize],
        known: &mut [Option<Payload>],
    ) -> Result<()> {
        let names: Vec<_> = going
            .iter()
            .filter_map(|at| names.get(*at))
            .copied()
            .collect();
        let pending = self.commit.pending(&names);
        let rows = self.rows(guard, names).await?;
        for ((at, pending), row) in going.iter().zip(pending).zip(rows) {
            if let Some(known) = known.get_mut(*at) {
                *known = match row {
                    Row::Kept(place) => Some(place.payload),
                    Row::Going | Row::Absent | Row::Lost => pending,
                };
            }
        }
        Ok(())
    }

    /// The rows of records.
    async fn rows(&self, guard: Option<&Guard>, names: Vec<Name>) -> Result<Vec<Row>> {
        let names: Arc<[Name]> = names.into();
        loop {
            let as_of = self.reliance.as_of_now();
            let asked = Arc::clone(&names);
            let places = self
                .meta(Priority::Write, move |meta| meta.lookup(&asked))
                .await?;
            let mut rows: Vec<_> = {
                let lost = self.lost.read();
                let places = places.into_iter().map(|place| match place {
                    None => Row::Absent,
                    Some(place) if lost.hold(&place) => Row::Lost,
                    Some(place) => Row::Kept(place),
                });
                places.collect()
            };
            let Some(guard) = guard else {
                return Ok(rows);
            };
            let kept = || rows.iter().filter_map(Row::kept);
            let Some(held) = guard.hold(as_of, kept().map(|place| place.pack)) else {
                continue;
            };
            let kept = rows.iter_mut().filter(|row| row.kept().is_some());
            for (row, held) in kept.zip(held) {
                if !held {
                    *row = Row::Going;
                }
            }
            return Ok(rows);
        }
    }

    /// Appends the nodes that the store lacks. Returns the bytes that they take.
    pub(crate) async fn append_new_nodes(
        &self,
        guard: &Guard,
        generation: Generation,
        records: Vec<EncodedRecord>,
    ) -> Result<u64> {
        let names = records.iter().map(EncodedRecord::name);
        let known = self.known(Some(guard), names.collect()).await?;
        let records = records.into_iter().zip(known);
        let new = records.filter(|(_, known)| known.is_none());
        let new: Vec<_> = new.map(|(record, _)| record).collect();
        if new.is_empty() {
            return Ok(0);
        }
        self.commit.append(generation, PackKind::Nodes, new).await
    }
}
