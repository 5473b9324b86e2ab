//! The disk images that `scripts/make-image` makes, and the data ranges in them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use varve_content::BLOCK_BYTES;
use varve_content::block::is_zero;

/// The image directory, as `scripts/make-image --dir` prints it.
pub fn directory() -> PathBuf {
    cache_directory().join("images")
}

/// Files that are kept between runs, in the user's cache directory.
pub fn cache_directory() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("varve")
}

/// The image of that name, or an error that says how to make it.
pub fn find(name: &str) -> io::Result<PathBuf> {
    let path = directory().join(format!("{name}.img"));
    if path.is_file() {
        Ok(path)
    } else {
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!(
                "{} is not there; make it by: scripts/make-image {name}",
                path.display()
            ),
        ))
    }
}

/// The parts of a sparse file that are not holes, ascending.
pub fn data_ranges(file: &File) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut position = 0;
    loop {
        let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(ranges),
            Err(error) => return Err(error.into()),
        };
        position = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        ranges.push(start..position);
    }
}

/// The longest extent of data without a hole of more than a mebibyte, aligned to a mebibyte.
///
/// Random reads are measured inside it: a read of a hole costs nothing.
pub fn densest_stretch(ranges: &[Range<u64>]) -> Range<u64> {
    const MEBIBYTE: u64 = 1 << 20;
    let mut longest = 0..0;
    let mut stretch = 0..0;
    for range in ranges {
        if range.start > stretch.end + MEBIBYTE {
            stretch = range.clone();
        }
        stretch.end = range.end;
        if stretch.end - stretch.start > longest.end - longest.start {
            longest = stretch.clone();
        }
    }
    longest.start.next_multiple_of(MEBIBYTE)..longest.end / MEBIBYTE * MEBIBYTE
}

/// Reads everything that is not a hole, in pieces of at most a mebibyte, ascending. Stops where
/// `visit` fails.
pub fn read_data(
    file: &File,
    mut visit: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    const PIECE_BYTES: usize = 1 << 20;
    let mut piece = vec![0; PIECE_BYTES];
    for range in data_ranges(file)? {
        let mut offset = range.start;
        while offset < range.end {
            let wanted = usize::try_from(range.end - offset)
                .map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
            file.read_exact_at(&mut piece[..wanted], offset)?;
            visit(offset, &piece[..wanted])?;
            offset += wanted as u64;
        }
    }
    Ok(())
}

/// The blocks that are not all zero, one after another.
pub fn nonzero_blocks(file: &File) -> io::Result<Vec<u8>> {
    let mut blocks = Vec::new();
    read_data(file, |_, piece| {
        for block in piece
            .chunks_exact(BLOCK_BYTES)
            .filter(|block| !is_zero(block))
        {
            blocks.extend_from_slice(block);
        }
        Ok(())
    })?;
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn finds_the_data_of_a_sparse_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * MIB).unwrap();
        file.write_all_at(&[7; BLOCK_BYTES], 2 * MIB).unwrap();
        file.write_all_at(&[0; BLOCK_BYTES], 2 * MIB + 4096)
            .unwrap();
        file.write_all_at(&[9; BLOCK_BYTES], 5 * MIB).unwrap();

        assert_eq!(
            nonzero_blocks(&file).unwrap(),
            [[7; BLOCK_BYTES], [9; BLOCK_BYTES]].concat()
        );
    }

    #[test]
    fn the_densest_stretch_spans_small_holes_only() {
        assert_eq!(densest_stretch(&[]), 0..0);
        let ranges = [
            0..MIB,
            10 * MIB + 5..12 * MIB,
            12 * MIB + 9..15 * MIB + 1,
            20 * MIB..21 * MIB,
        ];
        assert_eq!(densest_stretch(&ranges), 11 * MIB..15 * MIB);
    }
}
