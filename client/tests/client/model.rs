//! Random patches, ranges and pairs of snapshots against bytes in memory.

use std::{fs::File, ops::Range, os::unix::fs::FileExt};

use futures::TryStreamExt;
use varve_client::{ChangeKind, Client, PatchSource};
use varve_content::{BLOCK_BYTES, SEGMENT_BYTES};
use varve_fake_daemon::{FakeDaemon, Manners};

use super::{read::apply, upload::root_of};

const SEGMENT: u64 = SEGMENT_BYTES as u64;
const BLOCK: u64 = BLOCK_BYTES as u64;

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A size or offset up to `most`: mostly near the edge of a block or segment.
    fn place(&mut self, most: u64) -> u64 {
        let any = self.below(most + 1);
        let edge = match self.below(6) {
            0 => any,
            1 => return [0, most][self.below(2) as usize],
            2 | 3 => any / BLOCK * BLOCK,
            _ => (any + SEGMENT / 2) / SEGMENT * SEGMENT,
        };
        let near = edge + [0, 1, 100, BLOCK][self.below(4) as usize];
        near.saturating_sub([0, 1, 100, BLOCK][self.below(4) as usize])
            .min(most)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let zeros_to = self.below(2) * 2 * BLOCK;
        let bytes = (0..len as u64).map(|at| {
            // With runs of zeros, some of whole blocks.
            if at / 3000 % 5 < zeros_to / BLOCK {
                0
            } else {
                self.next() as u8 & 0x3f
            }
        });
        bytes.collect()
    }

    /// Ranges in a volume of `end` that do not overlap, some of which touch.
    fn ranges(&mut self, end: u64) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        for _ in 0..self.below(6) {
            let start = self.place(end);
            let len = match self.below(8) {
                0 => 1,
                1 => self.below(2 * SEGMENT),
                2 => BLOCK,
                _ => self.below(300_000),
            };
            ranges.push(start..(start + len).min(end));
        }
        ranges.sort_by_key(|range| range.start);
        let mut next = 0;
        for range in &mut ranges {
            range.start = range.start.max(next);
            next = next.max(range.end);
        }
        ranges.retain(|range| !range.is_empty());
        ranges
    }
}

/// A change of some bytes to another size, the same in memory and as a patch.
fn change(random: &mut Random, plain: &mut Vec<u8>) -> PatchSource {
    let size_bytes = match random.below(3) {
        0 => plain.len().max(1) as u64,
        _ => random.place(3 * SEGMENT + 5000).max(1),
    };
    plain.resize(size_bytes as usize, 0);
    let file = varve_client::scratch_file().unwrap();
    let mut patch = PatchSource::new(file.try_clone().unwrap(), "patch", size_bytes);
    let mut ranges = random.ranges(size_bytes);
    let mut at = 0;
    while !ranges.is_empty() {
        // In any order.
        let range = ranges.swap_remove(random.below(ranges.len() as u64) as usize);
        let place = range.start as usize..range.end as usize;
        match random.below(4) {
            0 => {
                plain[place].fill(0);
                patch.zeros(range).unwrap();
            }
            // Equal bytes are no change.
            1 => at = patched(&file, &mut patch, range, at, &plain[place]),
            _ => {
                let bytes = random.bytes(place.len());
                plain[place].copy_from_slice(&bytes);
                at = patched(&file, &mut patch, range, at, &bytes);
            }
        }
    }
    patch
}

/// Adds bytes to the end of a patch's file, and returns where that is then.
fn patched(file: &File, patch: &mut PatchSource, to: Range<u64>, at: u64, bytes: &[u8]) -> u64 {
    file.write_all_at(bytes, at).unwrap();
    patch.data(to, at).unwrap();
    at + bytes.len() as u64
}

/// Compares the read content with the bytes.
async fn check_reads(random: &mut Random, client: &Client, name: &str, plain: &[u8], seed: u64) {
    for _ in 0..4 {
        let start = random.place(plain.len() as u64);
        let end = random.place(plain.len() as u64).max(start);
        let range = start..end;
        let stream = client.read_snapshot(name).range(range.clone()).run().await;
        let extents: Vec<_> = stream.unwrap().try_collect().await.unwrap();
        let mut next = start;
        for extent in &extents {
            assert_eq!(extent.offset_bytes, next, "seed {seed}, {range:?}");
            assert!(extent.len_bytes > 0, "seed {seed}, {range:?}");
            next = extent.end_bytes();
        }
        assert_eq!(next, end, "seed {seed}, {range:?}");
        let mut read = vec![1; plain.len()];
        apply(&extents, &mut read);
        let range = start as usize..end as usize;
        assert!(read[range.clone()] == plain[range], "seed {seed}");
    }
}

/// Turns one volume's bytes into those of another, by the changes read in a range.
async fn check_changes(
    random: &mut Random,
    client: &Client,
    [(old_name, old), (new_name, new)]: [(&str, &[u8]); 2],
    seed: u64,
) {
    let end = new.len() as u64;
    let start = [0, random.place(end)][random.below(2) as usize];
    let range = start..[end, random.place(end)][random.below(2) as usize].max(start);
    let changes = client.read_snapshot(new_name).since(old_name);
    let changes = changes.range(range.clone()).run().await.unwrap();
    let changes: Vec<_> = changes.try_collect().await.unwrap();
    let mut next = range.start;
    for change in &changes {
        let in_order = change.offset_bytes >= next && change.len_bytes > 0;
        assert!(in_order && change.end_bytes() <= range.end, "seed {seed}");
        next = change.end_bytes();
    }
    let mut made = old.to_vec();
    made.resize(new.len(), 0);
    apply(&changes, &mut made);
    let range = range.start as usize..range.end as usize;
    assert!(made[range.clone()] == new[range], "seed {seed}");
}

#[tokio::test]
async fn random_changes_are_read_as_they_were_made() {
    for seed in 1..=ROUNDS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let daemon = FakeDaemon::start(Manners::default());
        let client = daemon.client().await;
        let mut old = Vec::new();
        // A patch is a source without a base, too: everything else is zeros.
        let first = change(&mut random, &mut old);
        client.upload("0").run(first).await.unwrap();
        let mut first_bytes = old.clone();
        for number in 1..3 {
            let mut new = old.clone();
            let patch = change(&mut random, &mut new);
            let (base, name) = ((number - 1).to_string(), number.to_string());
            let upload = client.upload(&name).base(&base).run(patch).await.unwrap();
            assert_eq!(upload.snapshot.root, Some(root_of(&new)), "seed {seed}");
            check_reads(&mut random, &client, &name, &new, seed).await;
            for [one, other] in [
                [(&base, &old), (&name, &new)],
                [(&name, &new), (&base, &old)],
            ] {
                let pair = [(&one.0[..], &one.1[..]), (&other.0[..], &other.1[..])];
                check_changes(&mut random, &client, pair, seed).await;
            }
            old = new;
        }
        let pair = [("2", &old[..]), ("0", &first_bytes[..])];
        check_changes(&mut random, &client, pair, seed).await;
        // And its data is where it says.
        let data = client.changes("0").run().await.unwrap();
        let data: Vec<_> = data.try_collect().await.unwrap();
        for extent in data {
            assert!(extent.kind == ChangeKind::Added && extent.len_bytes > 0);
            first_bytes[extent.offset_bytes as usize..][..extent.len_bytes as usize].fill(0);
        }
        assert!(first_bytes.iter().all(|byte| *byte == 0), "seed {seed}");
    }
}

const ROUNDS: u64 = 8;
