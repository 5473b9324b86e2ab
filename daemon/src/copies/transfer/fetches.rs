//! The chunks of leaves, and their fetches. Pure.

use std::collections::{HashMap, HashSet};

use varve_client::{ChunkRequest, FETCH_CHUNKS_MAX};
use varve_content::{ChunkId, block::BLOCK_BYTES};

use crate::{
    copies::tree::SizedLeaf,
    limits::{COPY_FETCH_BYTES, COPY_FETCH_PLAIN_BYTES},
};

/// The distinct chunks of some leaves, with the first place of each.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) ids: Vec<ChunkId>,
    /// Leaf and entry of the first place.
    first: Vec<(usize, usize)>,
    /// Plain bytes of all places.
    pub(super) data_bytes: Vec<u64>,
}

impl Places {
    pub(super) fn of(leaves: &[SizedLeaf]) -> Self {
        let mut places = Self::default();
        let mut known: HashMap<ChunkId, usize> = HashMap::new();
        for (number, leaf) in leaves.iter().enumerate() {
            for (position, entry) in leaf.leaf.entries().iter().enumerate() {
                let bytes = u64::from(entry.blocks) * BLOCK_BYTES as u64;
                let at = *known.entry(entry.chunk).or_insert(places.ids.len());
                match places.data_bytes.get_mut(at) {
                    Some(sum) => *sum += bytes,
                    None => {
                        places.ids.push(entry.chunk);
                        places.first.push((number, position));
                        places.data_bytes.push(bytes);
                    }
                }
            }
        }
        places
    }

    /// Length of a chunk's payload at the source.
    pub(super) fn payload_bytes(&self, at: usize, leaves: &[SizedLeaf]) -> u64 {
        let place = self.first.get(at);
        let leaf = place.and_then(|(leaf, entry)| Some((leaves.get(*leaf)?, *entry)));
        let bytes = leaf.and_then(|(leaf, entry)| leaf.payload_bytes.get(entry));
        u64::from(bytes.copied().unwrap_or(0))
    }
}

/// Chunks to fetch with one call.
#[derive(Debug, Default)]
pub(super) struct Fetch {
    pub(super) wanted: Vec<ChunkRequest>,
    pub(super) chunks: usize,
    pub(super) payload_bytes: u64,
    plain_bytes: u64,
}

/// Groups missing chunks into fetches, in the order of their places.
pub(super) fn fetches(leaves: &[SizedLeaf], missing: &HashSet<ChunkId>) -> Vec<Fetch> {
    let mut all = Vec::new();
    let mut fetch = Fetch::default();
    let mut seen = HashSet::with_capacity(missing.len());
    for leaf in leaves {
        let entries = leaf.leaf.entries().iter().zip(&leaf.payload_bytes);
        for ((entry, payload_bytes), position) in entries.zip(0u32..) {
            if !missing.contains(&entry.chunk) || !seen.insert(entry.chunk) {
                continue;
            }
            let plain_bytes = u64::from(entry.blocks) * BLOCK_BYTES as u64;
            // Packed chunks are never longer than plain ones, but the source may claim any length.
            let payload_bytes = u64::from(*payload_bytes).clamp(1, plain_bytes);
            let is_full = fetch.chunks == FETCH_CHUNKS_MAX
                || fetch.payload_bytes + payload_bytes > COPY_FETCH_BYTES
                || fetch.plain_bytes + plain_bytes > COPY_FETCH_PLAIN_BYTES;
            if is_full && fetch.chunks > 0 {
                all.push(std::mem::take(&mut fetch));
            }
            fetch.chunks += 1;
            fetch.payload_bytes += payload_bytes;
            fetch.plain_bytes += plain_bytes;
            match fetch.wanted.last_mut().filter(|last| last.leaf == leaf.id) {
                Some(last) => last.entries.push((position, entry.chunk)),
                None => fetch.wanted.push(ChunkRequest {
                    leaf: leaf.id,
                    segment: leaf.segment,
                    entries: vec![(position, entry.chunk)],
                }),
            }
        }
    }
    if fetch.chunks > 0 {
        all.push(fetch);
    }
    all
}
