//! The content of each pack: records that are needed, and the rest.
//!
//! Rows show the records; the length of a pack shows the rest. A record without a row is needed by
//! nobody: the row points to another copy, or the record was given up. Such records, and the zeros
//! that flushes add, fill the rest of a pack up to where it is indexed. Behind that, records may be
//! on their way into the index.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use super::{look::fold_rows, mark::Live, ranks::Ranks};
use crate::{
    Error, Result,
    engine::{Engine, Priority},
    format::{
        Location, Name, PackId, PackPhase, PackState,
        pack::{PACK_HEADER_BYTES, RECORD_ALIGN},
    },
    io::offload,
};

/// A number of records, and the bytes that they take in packs.
#[derive(Debug, Copy, Clone, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

impl Sum {
    fn add(&mut self, place: &Location) {
        self.records += 1;
        self.bytes += place.payload.record_bytes();
    }
}

/// The content of a pack.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub(crate) struct PackTally {
    pub(crate) pack: PackId,
    /// True if the pack was sealed when the first slice was counted.
    pub(crate) sealed: bool,
    /// Records that are needed.
    pub(crate) live: Sum,
    /// Records that have a row and are not needed; the bytes include records without rows and
    /// zeros, up to where the pack is indexed.
    pub(crate) dead: Sum,
    /// Length of the pack's file; 0 if it has none.
    pub(crate) file_bytes: u64,
}

/// Counts of packs, to which slices are added. Takes 100 bytes for each pack.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tallies {
    packs: BTreeMap<PackId, Counts>,
    /// States of packs before the first slice was counted. A pack sealed then gets no more rows.
    states: Option<Vec<PackState>>,
    /// Plain bytes of the chunks that are needed.
    live_plain_bytes: u64,
}

#[derive(Debug, Copy, Clone, Default)]
struct Counts {
    live: Sum,
    dead: Sum,
}

impl Tallies {
    /// Counts a row.
    pub(super) fn add(&mut self, name: &Name, place: &Location, is_needed: bool) {
        let counts = self.packs.entry(place.pack).or_default();
        match is_needed {
            true => counts.live.add(place),
            false => counts.dead.add(place),
        }
        if is_needed && name.kind() == crate::format::pack::RecordKind::Chunk {
            self.live_plain_bytes += u64::from(place.payload.plain_bytes);
        }
    }

    /// Reads the states of packs, unless they were read before.
    pub(super) async fn with_states(mut self, engine: &Engine) -> Result<Self> {
        if self.states.is_none() {
            let states = engine.meta(Priority::Manage, |meta| meta.pack_states());
            self.states = Some(states.await?);
        }
        Ok(self)
    }

    /// Plain bytes of the chunks that are needed.
    pub(super) const fn live_plain_bytes(&self) -> u64 {
        self.live_plain_bytes
    }

    /// Counts the rows of a slice; its marks decide which are needed.
    ///
    /// # Errors
    ///
    /// Those of the index.
    pub(crate) async fn count(self, engine: &Arc<Engine>, live: Arc<Live>) -> Result<Self> {
        let before = self.with_states(engine).await?;
        let ranks = Arc::clone(live.ranks());
        let count = move |tallies: &mut Self, _: &Ranks, name: Name, place: Location| {
            tallies.add(&name, &place, live.needs(&name, &place));
        };
        fold_rows(engine, &ranks, before, count).await
    }

    /// Returns all packs that the index knows or points into, by kind and number.
    ///
    /// # Errors
    ///
    /// Errors of asking for the lengths of files.
    pub(crate) async fn finish(self, engine: &Engine) -> Result<Vec<PackTally>> {
        let mut packs = self.packs;
        let states = self.states.unwrap_or_default();
        for state in &states {
            packs.entry(state.pack).or_default();
        }
        let states: BTreeMap<_, _> = states.iter().map(|state| (state.pack, *state)).collect();
        let store = Arc::clone(engine.packs.store());
        let lengths = offload(move || {
            let with_length = |(pack, counts): (PackId, Counts)| {
                let file_bytes = match store.len_bytes(pack).blocking_wait() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
                    length => length,
                };
                let file_bytes = file_bytes
                    .map_err(|source| Error::io("read the length of", &store.path(pack), source))?;
                Ok((pack, counts, file_bytes))
            };
            packs
                .into_iter()
                .map(with_length)
                .collect::<Result<Vec<_>>>()
        });
        let tallies = lengths.await??.into_iter();
        let tallies = tallies.map(|(pack, Counts { live, mut dead }, file_bytes)| {
            let state = states.get(&pack);
            let state = state.filter(|it| it.phase != PackPhase::Emptied && file_bytes > 0);
            if let Some(state) = state {
                let records_bytes = state.indexed_bytes.saturating_sub(PACK_HEADER_BYTES as u64);
                dead.bytes = records_bytes.saturating_sub(live.bytes).max(dead.bytes);
            }
            PackTally {
                pack,
                sealed: state.is_some_and(|it| it.phase == PackPhase::Sealed),
                live,
                dead,
                file_bytes,
            }
        });
        Ok(tallies.collect())
    }
}

/// The needed records of some packs, by their places: all that is kept of the marks of several
/// slices. Takes 4 bytes for each record.
#[derive(Debug, Clone, Default)]
pub(crate) struct NeededPlaces(BTreeMap<PackId, Vec<u32>>);

impl NeededPlaces {
    /// Adds the needed records of a slice.
    ///
    /// # Errors
    ///
    /// Those of the index.
    pub(crate) async fn add(
        self,
        engine: &Arc<Engine>,
        live: Arc<Live>,
        packs: Arc<BTreeSet<PackId>>,
    ) -> Result<Self> {
        let ranks = Arc::clone(live.ranks());
        let add = move |places: &mut Self, _: &Ranks, name: Name, place: Location| {
            if packs.contains(&place.pack) && live.needs(&name, &place) {
                let offsets = places.0.entry(place.pack).or_default();
                offsets.push(unit_of(&place));
            }
        };
        let mut places = fold_rows(engine, &ranks, self, add).await?;
        places.0.values_mut().for_each(|it| it.sort_unstable());
        Ok(places)
    }

    /// Returns true if the record at a place is needed.
    pub(crate) fn contains(&self, place: &Location) -> bool {
        let offsets = self.0.get(&place.pack);
        offsets.is_some_and(|it| it.binary_search(&unit_of(place)).is_ok())
    }
}

/// The offset of a record in units of the record alignment: packs are shorter than 32 GiB.
fn unit_of(place: &Location) -> u32 {
    u32::try_from(place.offset_bytes / RECORD_ALIGN).unwrap_or(u32::MAX)
}
