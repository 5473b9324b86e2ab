//! The store as a whole, against a plain model of it.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod accounts;
mod apart;
mod between_steps;
mod checkpoints;
mod clones;
mod collections;
mod crash;
mod crash_fuzz;
mod deletions;
mod descriptors;
mod dropped;
mod header_only;
mod idle_journals;
mod images;
mod journal_faults;
mod located;
mod log_checkpoints;
mod log_damage;
mod lost_catalog;
mod machine;
mod many_owners;
mod model;
mod moved_packs;
mod open_packs;
mod pending;
mod pending_faults;
mod possession;
mod promises;
mod quotas;
mod rebuilt;
mod repairs;
mod shares;
mod space;
mod spare_files;
mod stored;
mod strange_packs;
mod sweep_damage;
mod sweeps;
mod uploads;
pub(crate) mod volume_data;
mod volumes;

use std::collections::BTreeMap;

use varve_content::{
    ChunkId, RootId,
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    chunker::{CHUNKER_VERSION, cut_segment},
    codec::Codec,
    tree::{Leaf, LeafEntry, TreeBuilder},
};

use crate::{
    AccountId, IncomingChunk, Ingest, NewSnapshot, PutOutcome, Result, SnapshotRecord, Store,
};

/// A generator that gives the same numbers for the same seed (xorshift64*, Vigna 2016).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        // Seeds that differ in one bit must not begin alike.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The seed of a randomised test: from `VARVE_SEED`, or a new one; printed either way.
pub(super) fn seed() -> u64 {
    let seed = std::env::var("VARVE_SEED")
        .map_or_else(|_| crate::meta::now_ns(), |seed| seed.parse().unwrap());
    println!("VARVE_SEED={seed}");
    seed
}

/// Blocks of zeros, of text-like bytes, of noise, and ends of files.
pub(super) fn random_image(random: &mut Random, blocks: usize) -> Vec<u8> {
    let mut image = vec![0; blocks * BLOCK_BYTES];
    scribble(random, &mut image, 1 + blocks / 20);
    image
}

/// Changes some places of an image.
pub(super) fn scribble(random: &mut Random, image: &mut [u8], times: usize) {
    let blocks = image.len() / BLOCK_BYTES;
    for _ in 0..times {
        let start = random.below(blocks);
        let end = (start + 1 + random.below(40)).min(blocks);
        let kind = random.below(5);
        for block in image[start * BLOCK_BYTES..end * BLOCK_BYTES].chunks_mut(BLOCK_BYTES) {
            match kind {
                0 => block.fill(0),
                1 => block.fill(random.next() as u8),
                2 => block
                    .chunks_mut(8)
                    .for_each(|word| word.copy_from_slice(&(random.next() % 64).to_le_bytes())),
                _ => block
                    .chunks_mut(8)
                    .for_each(|word| word.copy_from_slice(&random.next().to_le_bytes())),
            }
        }
        if kind == 3 {
            let tail = random.below(BLOCK_BYTES - 1) + 1;
            image[end * BLOCK_BYTES - tail..end * BLOCK_BYTES].fill(0);
        }
    }
}

/// An image as a client would send it.
pub(super) struct Cut {
    pub(super) chunks: BTreeMap<ChunkId, Vec<u8>>,
    pub(super) leaves: Vec<(u32, Leaf)>,
    pub(super) root: RootId,
}

pub(super) fn cut(image: &[u8]) -> Cut {
    let mut padded = image.to_vec();
    padded.resize(image.len().next_multiple_of(BLOCK_BYTES), 0);
    let mut chunks = BTreeMap::new();
    let mut leaves = Vec::new();
    let mut builder = TreeBuilder::new(image.len() as u64).unwrap();
    for (segment, bytes) in (0u32..).zip(padded.chunks(SEGMENT_BYTES)) {
        let mut cuts = Vec::new();
        cut_segment(bytes, &mut cuts);
        let mut entries = Vec::new();
        for cut in &cuts {
            let plain = &bytes[cut.byte_range()];
            let chunk = ChunkId::of(plain);
            chunks.insert(chunk, plain.to_vec());
            entries.push(LeafEntry {
                start_block: cut.start_block,
                blocks: cut.blocks,
                chunk,
            });
        }
        if !entries.is_empty() {
            let leaf = Leaf::new(entries).unwrap();
            builder.push(segment, leaf.id()).unwrap();
            leaves.push((segment, leaf));
        }
    }
    Cut {
        chunks,
        leaves,
        root: builder.finish().0.id(),
    }
}

pub(super) fn incoming(id: ChunkId, plain: &[u8]) -> IncomingChunk {
    IncomingChunk {
        id,
        codec: Codec::Raw,
        plain_bytes: u32::try_from(plain.len()).unwrap(),
        payload: plain.to_vec().into(),
    }
}

pub(super) fn new_snapshot(name: &str, size_bytes: usize) -> NewSnapshot {
    NewSnapshot {
        owner: AccountId::ADMINISTRATOR,
        lineage: None,
        name: name.to_owned(),
        size_bytes: size_bytes as u64,
        tags: BTreeMap::new(),
        chunker_version: CHUNKER_VERSION,
    }
}

/// Sends the missing parts of an image, without the commit.
pub(super) async fn send(ingest: &Ingest, cut: &Cut) -> Result<PutOutcome> {
    let ids: Vec<_> = cut.chunks.keys().copied().collect();
    let missing = ingest.missing(&ids, &[]).await?;
    let mut sum = PutOutcome::default();
    for part in missing.chunks(7) {
        let chunks = part
            .iter()
            .map(|at| incoming(ids[*at as usize], &cut.chunks[&ids[*at as usize]]))
            .collect();
        let outcome = ingest.put_chunks(chunks).await?;
        sum.chunks += outcome.chunks;
        sum.new_bytes += outcome.new_bytes;
    }
    ingest.put_leaves(cut.leaves.clone()).await?;
    Ok(sum)
}

pub(super) async fn upload(store: &Store, name: &str, image: &[u8]) -> Result<SnapshotRecord> {
    let cut = cut(image);
    let ingest = store.begin_ingest(new_snapshot(name, image.len())).await?;
    send(&ingest, &cut).await?;
    ingest.commit(cut.root).await
}

/// Runs a test, by its path in this crate, in a process of its own, because it tests a resource of
/// the process. Returns true in that process; otherwise the test has passed there.
pub(crate) fn is_alone(test: &str) -> bool {
    const ALONE: &str = "VARVE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let ran = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && told.contains("1 passed"),
        "{told}\n{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    false
}

/// Reads a range, holes as zeros.
pub(super) async fn read(store: &Store, name: &str, offset: usize, len: usize) -> Result<Vec<u8>> {
    let reader = store.open_snapshot(&name.into()).await?;
    let mut bytes = Vec::with_capacity(len);
    for piece in reader.read(offset as u64, len).await? {
        piece.append_to(&mut bytes);
    }
    Ok(bytes)
}

/// Checks that a snapshot is whole, by reading every byte and by the verifier.
pub(super) async fn assert_holds(store: &Store, name: &str, image: &[u8]) {
    let found = read(store, name, 0, image.len()).await.unwrap();
    assert!(
        found == image,
        "snapshot {name} differs from what was uploaded"
    );
    let mut verify = store.verify(&name.into()).await.unwrap();
    while let Some(progress) = verify.next().await.unwrap() {
        assert_eq!(progress.violations, [], "snapshot {name}");
    }
    let root = store.snapshot(&name.into()).await.unwrap().root();
    assert_eq!(root, Some(cut(image).root));
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(future)
}
