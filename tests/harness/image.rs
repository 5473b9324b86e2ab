//! Disk images made from a seed: the same seed gives the same bytes.
//!
//! They have the features of real images: holes, written zeros, repeated files, files that do not
//! compress, text, and files whose last block ends in zeros.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{files, random::Random, scratch::Scratch};

const BLOCK_BYTES: u64 = 4096;
const BLOCK_LEN: usize = 4096;
/// Number of contents that recur in all images.
const REPEATED_FILES: u64 = 8;

/// Makes a sparse image of `size_bytes` in `scratch`.
#[must_use]
pub fn make(scratch: &Scratch, name: &str, size_bytes: u64, seed: u64) -> PathBuf {
    let path = scratch.join(name);
    let file =
        File::create(&path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
    file.set_len(size_bytes).expect("set a file's length");
    let mut random = Random::seeded(seed);
    let mut offset = 0;
    while offset < size_bytes {
        let blocks = if random.one_in(8) {
            random.within(64..1024)
        } else {
            random.within(1..64)
        };
        let bytes = (blocks * BLOCK_BYTES).min(size_bytes - offset);
        if let Some(content) = content(
            &mut random,
            usize::try_from(bytes).expect("an extent fits into memory"),
        ) {
            file.write_all_at(&content, offset).expect("write an image");
        }
        offset += bytes;
    }
    path
}

/// Makes an image of data only, without repetition, that does not compress.
#[must_use]
pub fn make_random(scratch: &Scratch, name: &str, size_bytes: u64, seed: u64) -> PathBuf {
    let path = scratch.join(name);
    let file =
        File::create(&path).unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
    let mut random = Random::seeded(seed);
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < size_bytes {
        let len = buffer
            .len()
            .min(usize::try_from(size_bytes - offset).unwrap_or(usize::MAX));
        random.fill(&mut buffer[..len]);
        file.write_all_at(&buffer[..len], offset)
            .expect("write an image");
        offset += len as u64;
    }
    path
}

/// Copies an image, holes kept.
#[must_use]
pub fn copy(scratch: &Scratch, from: &Path, name: &str) -> PathBuf {
    let to = scratch.join(name);
    let size_bytes = files::len(from);
    let (source, target) = (files::open(from), File::create(&to).expect("make a file"));
    target.set_len(size_bytes).expect("set a file's length");
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    while let Some(data) = files::next_data(&source, offset) {
        offset = data - data % BLOCK_BYTES;
        let len = buffer
            .len()
            .min(usize::try_from(size_bytes - offset).unwrap_or(usize::MAX));
        source
            .read_exact_at(&mut buffer[..len], offset)
            .expect("read an image");
        for (number, block) in buffer[..len].chunks(BLOCK_LEN).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                target
                    .write_all_at(block, offset + number as u64 * BLOCK_BYTES)
                    .expect("write an image");
            }
        }
        offset += len as u64;
    }
    to
}

/// Overwrites `places` extents of an image with other content, some of it zeros.
pub fn change(path: &Path, places: u32, random: &mut Random) {
    let file = File::options()
        .write(true)
        .open(path)
        .expect("open an image to change it");
    let size_bytes = files::len(path);
    for _ in 0..places {
        let offset = random.within(0..size_bytes.div_ceil(BLOCK_BYTES)) * BLOCK_BYTES;
        let bytes = (random.within(1..48) * BLOCK_BYTES).min(size_bytes - offset);
        let bytes = usize::try_from(bytes).expect("a stretch fits into memory");
        let content = content(random, bytes).unwrap_or_else(|| vec![0; bytes]);
        file.write_all_at(&content, offset)
            .expect("change an image");
    }
}

/// The content of one extent; `None` is a hole.
fn content(random: &mut Random, bytes: usize) -> Option<Vec<u8>> {
    let mut content = vec![0; bytes];
    match random.within(0..10) {
        0..=2 => return None,
        3 => {}
        4 | 5 => random.fill(&mut content),
        6 | 7 => Random::seeded(random.within(0..REPEATED_FILES)).fill(&mut content),
        8 => text(random, &mut content),
        _ => small_files(random, &mut content),
    }
    Some(content)
}

fn text(random: &mut Random, into: &mut [u8]) {
    const WORDS: [&str; 12] = [
        "varve", "sediment", "layer", "block", "chunk", "tree", "root", "of", "the", "a", "=", "\n",
    ];
    let mut filled = 0;
    while filled < into.len() {
        let word = WORDS[random.index(WORDS.len())].as_bytes();
        let len = word.len().min(into.len() - filled);
        into[filled..filled + len].copy_from_slice(&word[..len]);
        // The gap stays zero now and then, as in binary formats.
        if let Some(gap) = into.get_mut(filled + len)
            && !random.one_in(16)
        {
            *gap = b' ';
        }
        filled += len + 1;
    }
}

/// Files one after another, each padded with zeros to the end of its last block.
fn small_files(random: &mut Random, into: &mut [u8]) {
    let mut rest = into;
    while !rest.is_empty() {
        let taken =
            usize::try_from(random.within(1..24) * BLOCK_BYTES).expect("a small file is small");
        let (file, after) = rest.split_at_mut(taken.min(rest.len()));
        let tail = random.index(BLOCK_LEN).min(file.len());
        let data = file.len() - tail;
        random.fill(&mut file[..data]);
        rest = after;
    }
}
