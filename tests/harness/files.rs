//! Comparison of files, and how sparse they are.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use rustix::{fs::SeekFrom, io::Errno};

const PIECE_BYTES: usize = 1 << 20;
const BLOCK_BYTES: usize = 4096;

/// Opens a file for reading.
#[must_use]
pub fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()))
}

/// Length of a file, in bytes.
#[must_use]
pub fn len(path: &Path) -> u64 {
    std::fs::metadata(path)
        .unwrap_or_else(|error| panic!("ask for the length of {}: {error}", path.display()))
        .len()
}

/// Bytes that a file takes on disk. Holes take none.
#[must_use]
pub fn allocated_bytes(path: &Path) -> u64 {
    open(path)
        .metadata()
        .expect("ask for a file's blocks")
        .blocks()
        * 512
}

/// Reads a range.
#[must_use]
pub fn read_range(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    open(path)
        .read_exact_at(&mut bytes, offset)
        .unwrap_or_else(|error| {
            panic!(
                "read {len} bytes at {offset} of {}: {error}",
                path.display()
            )
        });
    bytes
}

/// Overwrites a range, and syncs it, so that readers past the page cache see it, too.
pub fn write_range(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options()
        .write(true)
        .open(path)
        .unwrap_or_else(|error| panic!("open {} to write: {error}", path.display()));
    file.write_all_at(bytes, offset)
        .expect("overwrite part of a file");
    file.sync_all().expect("sync a file");
}

/// Asserts that two files have the same bytes. Names the first difference.
pub fn assert_same(one: &Path, other: &Path) {
    assert_eq!(
        len(one),
        len(other),
        "lengths of {} and {}",
        one.display(),
        other.display()
    );
    each_pair(one, other, |offset, a, b| {
        if a != b {
            let at = a.iter().zip(b).position(|(a, b)| a != b).unwrap_or(0);
            panic!(
                "{} and {} differ at offset {}",
                one.display(),
                other.display(),
                offset + at as u64
            );
        }
    });
}

/// Numbers of the 4 KiB blocks in which two files differ. Past its end a file counts as zeros.
#[must_use]
pub fn differing_blocks(one: &Path, other: &Path) -> Vec<u64> {
    let mut differing = Vec::new();
    each_pair(one, other, |offset, a, b| {
        for (number, (a, b)) in a.chunks(BLOCK_BYTES).zip(b.chunks(BLOCK_BYTES)).enumerate() {
            if a != b {
                differing.push(offset / BLOCK_BYTES as u64 + number as u64);
            }
        }
    });
    differing
}

/// Visits both files piece by piece, the shorter one continued with zeros. Leaves out pieces in
/// which both are holes: an image of 4 GiB has 0.5 GB of data.
fn each_pair(one: &Path, other: &Path, mut visit: impl FnMut(u64, &[u8], &[u8])) {
    let files = [one, other].map(open);
    let mut buffers = [(); 2].map(|()| vec![0; PIECE_BYTES]);
    let mut offset = 0;
    loop {
        let data = files.iter().filter_map(|file| next_data(file, offset));
        let Some(data) = data.min() else { return };
        offset = data - data % PIECE_BYTES as u64;
        let mut len = 0;
        for (file, buffer) in files.iter().zip(&mut buffers) {
            let read = read_full(file, buffer, offset);
            buffer[read..].fill(0);
            len = len.max(read);
        }
        let [a, b] = &buffers;
        visit(offset, &a[..len], &b[..len]);
        offset += PIECE_BYTES as u64;
    }
}

/// The first offset from this one on at which a file has data, if there is any.
pub(crate) fn next_data(file: &File, offset: u64) -> Option<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) => Some(data),
        Err(Errno::NXIO) => None,
        Err(error) => panic!("look for a file's data: {error}"),
    }
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        let read = file.read_at(&mut buffer[filled..], offset + filled as u64);
        match read.expect("read a file") {
            0 => break,
            read => filled += read,
        }
    }
    filled
}

/// Copies a file so that its holes become zeros on disk.
pub fn copy_dense(from: &Path, to: &Path) {
    let mut from = open(from);
    let mut to = File::create(to).expect("make a file");
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut buffer).expect("read a file") {
            0 => return,
            read => to.write_all(&buffer[..read]).expect("write a file"),
        }
    }
}
