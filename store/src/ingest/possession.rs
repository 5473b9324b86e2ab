//! The chunks that the sender of an upload has proved to have.
//!
//! Knowing the id of a chunk is no right to its bytes: an upload that named chunks of others would
//! make a snapshot with their content. So the chunks of a leaf count as there only if the sender
//! sent their bytes in this upload, or if the same segment of a snapshot that it may read has them.
//!
//! What was sent is kept as fingerprints of 64 bits under a random key of the upload, in two
//! generations: the last [`limits::PROVED_CHUNKS`] that were sent or asked about, at least, and at
//! most twice as many. A sender that guesses hits one of them with a probability of 1 in 2^48.

use std::{
    collections::{HashSet, hash_map::RandomState},
    hash::BuildHasher as _,
    mem,
    sync::Arc,
};

use parking_lot::Mutex;
use varve_content::{
    ChunkId,
    block::segment_count,
    tree::{Leaf, Root, find_leaf},
};

use super::leaves::LeafRoom;
use crate::{
    Result,
    engine::{Engine, RootPin, walked},
    limits,
};

/// What the sender of one upload has proved to have.
#[derive(Debug)]
pub(super) struct Possession {
    engine: Arc<Engine>,
    /// The content of a snapshot that the sender may read, and the pin that keeps it.
    base: Option<(Root, RootPin)>,
    proved: Mutex<Proved>,
    /// The fingerprints take memory of the share of all open uploads.
    _room: LeafRoom,
}

impl Possession {
    pub(super) fn new(engine: Arc<Engine>, base: Option<(Root, RootPin)>, room: LeafRoom) -> Self {
        Self {
            engine,
            base,
            proved: Mutex::default(),
            _room: room,
        }
    }

    /// These chunks were sent.
    pub(super) fn add(&self, ids: impl Iterator<Item = ChunkId>) {
        let mut proved = self.proved.lock();
        ids.for_each(|id| proved.add(id));
    }

    /// Returns for each chunk whether the sender has proved to have it. The base proves what it has
    /// in `segments`, from now on for all segments.
    pub(super) async fn of(&self, ids: &[ChunkId], segments: &[u32]) -> Result<Vec<bool>> {
        let mut based = HashSet::new();
        for segment in segments {
            let leaf = self.base_leaf(*segment).await?;
            based.extend(leaf.iter().flat_map(|leaf| chunks(leaf)));
        }
        let mut proved = self.proved.lock();
        let has = ids.iter().map(|id| {
            let is_based = based.contains(id);
            if is_based {
                proved.add(*id);
            }
            is_based || proved.renew(*id)
        });
        Ok(has.collect())
    }

    /// Returns for each entry of a leaf whether the sender has proved to have its chunk.
    pub(super) async fn of_leaf(&self, segment: u32, leaf: &Leaf) -> Result<Vec<bool>> {
        let mut proved: Vec<bool> = {
            let known = self.proved.lock();
            chunks(leaf).map(|id| known.has(id)).collect()
        };
        if proved.contains(&false)
            && let Some(base) = self.base_leaf(segment).await?
        {
            let based: HashSet<_> = chunks(&base).collect();
            for (is_proved, id) in proved.iter_mut().zip(chunks(leaf)) {
                *is_proved |= based.contains(&id);
            }
        }
        Ok(proved)
    }

    /// The leaf of a segment of the base.
    async fn base_leaf(&self, segment: u32) -> Result<Option<Arc<Leaf>>> {
        let base = self.base.as_ref();
        let base = base.filter(|(root, _)| segment < segment_count(root.size_bytes));
        let Some((root, _)) = base else {
            return Ok(None);
        };
        let found = find_leaf(&*self.engine, root, segment).await;
        match found.map_err(walked)? {
            Some(id) => self.engine.plain_leaf(id).await.map(Some),
            None => Ok(None),
        }
    }
}

fn chunks(leaf: &Leaf) -> impl Iterator<Item = ChunkId> {
    leaf.entries().iter().map(|entry| entry.chunk)
}

/// Fingerprints of chunks, the latest ones.
#[derive(Debug, Default)]
struct Proved {
    key: RandomState,
    recent: HashSet<u64>,
    before: HashSet<u64>,
}

impl Proved {
    fn add(&mut self, id: ChunkId) {
        self.keep(self.key.hash_one(id.as_bytes()));
    }

    /// Returns true for one of the latest.
    fn has(&self, id: ChunkId) -> bool {
        let fingerprint = self.key.hash_one(id.as_bytes());
        self.recent.contains(&fingerprint) || self.before.contains(&fingerprint)
    }

    /// Returns true for one of the latest, which counts as new from now on.
    fn renew(&mut self, id: ChunkId) -> bool {
        let has = self.has(id);
        if has {
            self.add(id);
        }
        has
    }

    fn keep(&mut self, fingerprint: u64) {
        self.recent.insert(fingerprint);
        if self.recent.len() >= limits::PROVED_CHUNKS {
            self.before = mem::take(&mut self.recent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ChunkId {
        ChunkId::of(&number.to_le_bytes())
    }

    #[test]
    fn the_latest_chunks_are_kept_and_their_number_is_bounded() {
        let mut proved = Proved::default();
        for number in 0..4 * limits::PROVED_CHUNKS {
            assert!(!proved.has(id(number)));
            proved.add(id(number));
            assert!(proved.has(id(number)));
            assert!(proved.has(id(number.saturating_sub(limits::PROVED_CHUNKS - 1))));
            assert!(proved.recent.len() + proved.before.len() < 2 * limits::PROVED_CHUNKS + 1);
        }
        assert!(!proved.has(id(0)));
    }

    #[test]
    fn what_is_asked_about_stays() {
        let mut proved = Proved::default();
        proved.add(id(0));
        for number in 1..4 * limits::PROVED_CHUNKS {
            proved.add(id(number));
            if number % 1000 == 0 {
                assert!(proved.renew(id(0)));
            }
        }
    }
}
