//! A small number for each name of the index, so that one bit can stand for a record.
//!
//! A minimal perfect hash gives each of n names a slot of its own below n, in some 3.7 bits a name.
//! For a name that it was not made from, it returns nonsense: any slot, or none. So the caller must
//! know that the name had a row in the view that the ranks were made from. A row that points below
//! the watermark of its pack is such a row ([`Ranks::is_below`]):
//!
//! - A watermark is the indexed length of the pack in that view, so a record below it was indexed.
//! - A row changes only when its pack is swept or was found lost, and then it points to where
//!   nothing was indexed before. So a row that points below a watermark was there in that view.
//!
//! The hash is over the first 16 bytes of a name. Names that share them do not occur by chance, and
//! cost 2^64 hashes to make. They are kept as they are, in a map.
//!
//! Chunk names that do not fit into memory are ranked in slices: ranges of names, one after the
//! other, each with its own view, ranks and marks. Every slice has the names of all nodes, because
//! no tree can be walked without them.

use std::{
    collections::{BTreeMap, HashMap},
    ops::ControlFlow,
    sync::Arc,
};

use boomphf::Mphf;

use super::look::{Wanted, look};
use crate::{
    Error, Result,
    engine::Engine,
    format::{Location, Name, PackId, PackKind},
    limits,
    meta::IndexView,
};

/// Bits of the first level of a hash, for each name: the default of its authors, a balance of
/// memory and query time.
const GAMMA: f64 = 1.7;
/// Quarters of a bit that a hash takes for each name: 3.64 bits were measured.
const RANK_QUARTER_BITS: u64 = 15;

/// Number of names that fit in [`limits::GC_BYTES_MAX`] at `bits_each` bits beside the rank.
pub(crate) const fn names_max(bits_each: u64) -> u64 {
    let bytes = limits::GC_BYTES_MAX - limits::GC_BYTES_FIXED;
    bytes * 8 * 4 / (RANK_QUARTER_BITS + 4 * bits_each)
}

/// Ranks of all nodes, and of the chunks of a slice; by default of none.
#[derive(Debug, Default)]
pub(crate) struct Ranks {
    nodes: Table,
    chunks: Table,
    /// The first chunk name of the slice, and the name before which it ends.
    from: [u8; 32],
    until: Option<[u8; 32]>,
    /// The indexed length of each pack, in bytes.
    watermarks: HashMap<PackId, u64>,
}

impl Ranks {
    /// Ranks all nodes, and chunks from `from` on until there are `names_max` names.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] if the nodes leave room for too few chunks; errors of the index.
    pub(crate) async fn build(
        engine: &Arc<Engine>,
        from: [u8; 32],
        names_max: u64,
    ) -> Result<Arc<Self>> {
        let build = move |view: &dyn IndexView, wanted: &Wanted| {
            Self::of_view(view, from, names_max, wanted).map(Arc::new)
        };
        look(engine, build).await
    }

    pub(super) fn of_view(
        view: &dyn IndexView,
        from: [u8; 32],
        names_max: u64,
        wanted: &Wanted,
    ) -> Result<Self> {
        let states = view.pack_states()?;
        let watermarks = states.iter().map(|it| (it.pack, it.indexed_bytes));
        let mut nodes = Builder::default();
        wanted.scan(view, PackKind::Nodes, &[0; 32], &mut |name, _| {
            nodes.push(*name.as_bytes());
            ControlFlow::Continue(())
        })?;
        let nodes = nodes.finish();
        // Chunks need half of the room at least: each slice costs a pass over all leaves.
        let room = names_max.saturating_sub(nodes.len() as u64);
        if room < names_max / 2 {
            return Err(Error::Limit(format!(
                "the store has {} tree nodes; at most {} can be counted in {} MiB of memory",
                nodes.len(),
                names_max / 2,
                limits::GC_BYTES_MAX >> 20
            )));
        }
        let mut chunks = Builder::default();
        let mut until = None;
        wanted.scan(view, PackKind::Chunks, &from, &mut |name, _| {
            if chunks.names == room {
                until = Some(*name.as_bytes());
                return ControlFlow::Break(());
            }
            chunks.push(*name.as_bytes());
            ControlFlow::Continue(())
        })?;
        Ok(Self {
            nodes,
            chunks: chunks.finish(),
            from,
            until,
            watermarks: watermarks.collect(),
        })
    }

    /// The slot of a name. Nonsense for a name that had no row in the view; `None` for a chunk of
    /// another slice.
    pub(crate) fn slot(&self, name: &Name) -> Option<usize> {
        match name.kind().pack_kind() {
            PackKind::Nodes => self.nodes.slot(name.as_bytes()),
            PackKind::Chunks if self.covers(name) => {
                Some(self.nodes.len() + self.chunks.slot(name.as_bytes())?)
            }
            PackKind::Chunks => None,
        }
    }

    /// Returns true if a name is in the range of this slice; nodes always are.
    pub(crate) fn covers(&self, name: &Name) -> bool {
        let bytes = name.as_bytes();
        name.kind().pack_kind() == PackKind::Nodes
            || *bytes >= self.from && self.until.is_none_or(|until| *bytes < until)
    }

    /// Slots are below this.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len() + self.chunks.len()
    }

    /// Returns true if a place was indexed in the view: a name whose row points there is ranked.
    pub(crate) fn is_below(&self, place: &Location) -> bool {
        let watermark = self.watermarks.get(&place.pack);
        watermark.is_some_and(|watermark| place.offset_bytes < *watermark)
    }

    /// The first name of the next slice; `None` after the last.
    pub(crate) const fn until(&self) -> Option<[u8; 32]> {
        self.until
    }

    /// The first name of the slice.
    pub(super) const fn from(&self) -> &[u8; 32] {
        &self.from
    }

    /// Returns true for the first slice, which counts the nodes.
    pub(crate) fn is_first(&self) -> bool {
        self.from == [0; 32]
    }
}

/// Ranks of names.
#[derive(Debug, Default)]
struct Table {
    /// By their first keys.
    shards: Vec<Shard>,
    /// Names that share their key with another.
    twins: BTreeMap<[u8; 32], usize>,
    names: usize,
}

/// The ranks of some neighbours.
#[derive(Debug)]
struct Shard {
    first: u128,
    /// Number of slots before those of this shard.
    before: usize,
    hash: Mphf<u128>,
}

/// The part of a name that is hashed, in the order of names.
fn key_of(name: &[u8; 32]) -> u128 {
    let (key, _) = name.split_at(16);
    key.try_into().map_or(0, u128::from_be_bytes)
}

impl Table {
    const fn len(&self) -> usize {
        self.names
    }

    fn slot(&self, name: &[u8; 32]) -> Option<usize> {
        if let Some(slot) = self.twins.get(name) {
            return Some(*slot);
        }
        let key = key_of(name);
        let behind = self.shards.partition_point(|shard| shard.first <= key);
        let shard = self.shards.get(behind.checked_sub(1)?)?;
        let slot = usize::try_from(shard.hash.try_hash(&key)?).ok()?;
        Some(shard.before + slot)
    }
}

/// A table that is being made of names in ascending order.
#[derive(Debug, Default)]
struct Builder {
    shards: Vec<Shard>,
    /// Keys of the next shard.
    keys: Vec<u128>,
    /// Number of keys in the shards before.
    sealed: usize,
    twins: Vec<[u8; 32]>,
    last: Option<[u8; 32]>,
    names: u64,
}

impl Builder {
    fn push(&mut self, name: [u8; 32]) {
        let key = key_of(&name);
        self.names += 1;
        match self.last.replace(name) {
            // A hash cannot be made of equal keys.
            Some(last) if key_of(&last) == key => {
                if self.keys.pop_if(|last| *last == key).is_some() {
                    self.twins.push(last);
                }
                self.twins.push(name);
            }
            _ => {
                if self.keys.len() >= limits::GC_SHARD_NAMES {
                    self.seal();
                }
                self.keys.push(key);
            }
        }
    }

    fn seal(&mut self) {
        if let Some(first) = self.keys.first() {
            self.shards.push(Shard {
                first: *first,
                before: self.sealed,
                hash: Mphf::new(GAMMA, &self.keys),
            });
            self.sealed += self.keys.len();
            self.keys.clear();
        }
    }

    fn finish(mut self) -> Table {
        self.seal();
        let twins = self.twins.into_iter().zip(self.sealed..);
        let twins: BTreeMap<_, _> = twins.collect();
        Table {
            names: self.sealed + twins.len(),
            shards: self.shards,
            twins,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::cast_possible_truncation,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        reason = "tests"
    )]

    use std::collections::BTreeSet;

    use varve_content::codec::Codec;

    use super::*;
    use crate::{
        format::pack::{Payload, RecordKind},
        meta::{PackPhase, PackState},
        tests::Random,
    };

    /// An index of names that all point to one place.
    struct Names(BTreeSet<[u8; 32]>);

    const PLACE: Location = Location {
        pack: PackId {
            kind: PackKind::Chunks,
            number: 3,
        },
        offset_bytes: 4096,
        payload: Payload {
            kind: RecordKind::Chunk,
            codec: Codec::Raw,
            end_open: false,
            plain_bytes: 4096,
            stored_bytes: 4096,
        },
    };

    impl IndexView for Names {
        fn pack_states(&self) -> Result<Vec<PackState>> {
            Ok(vec![PackState {
                pack: PLACE.pack,
                indexed_bytes: 5000,
                phase: PackPhase::Open,
            }])
        }

        fn scan_from(
            &self,
            kind: PackKind,
            from: &[u8; 32],
            row: &mut dyn FnMut(Name, Location) -> ControlFlow<()>,
        ) -> Result<()> {
            if kind == PackKind::Chunks {
                let names = self.0.range(*from..).copied();
                let mut names = names.map(|bytes| Name::new(RecordKind::Chunk, bytes));
                let _ = names.try_for_each(|name| row(name, PLACE));
            }
            Ok(())
        }
    }

    fn name(random: &mut Random) -> [u8; 32] {
        let mut bytes = [0; 32];
        for word in bytes.chunks_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        bytes
    }

    fn chunk(bytes: [u8; 32]) -> Name {
        Name::new(RecordKind::Chunk, bytes)
    }

    /// Ranks all names, in slices of `names_max`, and checks each slice. Returns their number.
    fn check(names: &Names, names_max: u64) -> usize {
        let mut from = Some([0; 32]);
        let (mut slices, mut seen) = (0, 0);
        while let Some(start) = from {
            let ranks = Ranks::of_view(names, start, names_max, &Wanted::default()).unwrap();
            let covered = names.0.iter().filter(|it| ranks.covers(&chunk(**it)));
            let slots: BTreeSet<_> = covered.map(|it| ranks.slot(&chunk(*it)).unwrap()).collect();
            assert_eq!(slots.len(), ranks.len());
            assert!(slots.iter().enumerate().all(|(at, slot)| at == *slot));
            let outside = names.0.iter().filter(|it| !ranks.covers(&chunk(**it)));
            for outside in outside {
                assert_eq!(ranks.slot(&chunk(*outside)), None);
            }
            slices += 1;
            seen += slots.len();
            from = ranks.until();
        }
        assert_eq!(seen, names.0.len());
        slices
    }

    #[test]
    fn names_have_slots_of_their_own() {
        let mut random = Random::new(1);
        for count in [0, 1, 2, 1000, limits::GC_SHARD_NAMES + 3] {
            let names = Names((0..count).map(|_| name(&mut random)).collect());
            assert_eq!(check(&names, 1 << 40), 1);
        }
    }

    #[test]
    fn names_that_share_what_is_hashed_have_slots_of_their_own() {
        let mut random = Random::new(2);
        let mut names: BTreeSet<_> = (0..2000).map(|_| name(&mut random)).collect();
        let some: Vec<_> = names.iter().copied().step_by(100).collect();
        for (twins, first) in some.into_iter().enumerate() {
            for twin in 0..=twins {
                let mut twin_name = first;
                twin_name[16 + twin % 16] ^= 1 + (twin / 16) as u8;
                names.insert(twin_name);
            }
        }
        // None but twins.
        let only = (0..5).map(|last| {
            let mut name = [7; 32];
            name[31] = last;
            name
        });
        let only = only.collect();
        for names in [Names(names), Names(only)] {
            assert_eq!(check(&names, 1 << 40), 1);
            assert!(check(&names, 4) > 1);
        }
    }

    #[test]
    fn names_that_do_not_fit_are_ranked_in_slices() {
        let mut random = Random::new(3);
        let names = Names((0..1000).map(|_| name(&mut random)).collect());
        assert_eq!(check(&names, 1000), 1);
        assert_eq!(check(&names, 999), 2);
        assert_eq!(check(&names, 300), 4);
    }

    #[test]
    fn a_place_was_indexed_if_it_is_before_the_watermark_of_its_pack() {
        let names = Names(BTreeSet::new());
        let ranks = Ranks::of_view(&names, [0; 32], 10, &Wanted::default()).unwrap();
        let at = |offset_bytes| Location {
            offset_bytes,
            ..PLACE
        };
        assert!(ranks.is_below(&PLACE) && ranks.is_below(&at(4992)));
        assert!(!ranks.is_below(&at(5000)));
        let pack = PackId {
            number: 4,
            ..PLACE.pack
        };
        assert!(!ranks.is_below(&Location { pack, ..PLACE }));
    }
}
