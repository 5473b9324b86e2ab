//! Sources that can only be read from front to back, copied to temporary files.

use std::{
    env,
    fs::File,
    io::{self, ErrorKind::Interrupted, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use varve_content::block::{BLOCK_BYTES, is_zero};

use super::source::FileSource;
use crate::error::{Error, Result};

/// Bytes read at a time.
const PIECE_BYTES: usize = 1 << 20;
const _: () = assert!(PIECE_BYTES.is_multiple_of(BLOCK_BYTES));

impl FileSource {
    /// Copies all of `reader` to a temporary file without a name in [`spool_dir`], because an
    /// upload must know its size beforehand and reads at several places at once. Zeros take no
    /// space.
    ///
    /// Blocks. Errors call the source `name`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::File`](crate::ErrorKind::File) if it cannot be read, or is empty;
    /// [`ErrorKind::OutOfSpace`](crate::ErrorKind::OutOfSpace) if the file system of the temporary
    /// file is full.
    pub fn spool(reader: &mut impl Read, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let file = scratch_file()?;
        let size_bytes = copy_sparse(reader, &file).map_err(|failed| match failed {
            Failed::Read(error) => Error::file(format!("read {name}"), error),
            Failed::Write(error) => spool_error(error),
        })?;
        file.set_len(size_bytes).map_err(spool_error)?;
        Self::from_file(file, name)
    }
}

/// The directory for temporary files: `TMPDIR`, or else `/var/tmp`, because `/tmp` may be in
/// memory.
#[must_use]
pub fn spool_dir() -> PathBuf {
    env::var_os("TMPDIR")
        .filter(|dir| !dir.is_empty())
        .map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// Creates a file without a name in [`spool_dir`]; it disappears when it is closed.
///
/// # Errors
///
/// [`ErrorKind::File`](crate::ErrorKind::File) or
/// [`ErrorKind::OutOfSpace`](crate::ErrorKind::OutOfSpace) if it cannot be made.
pub fn scratch_file() -> Result<File> {
    tempfile::tempfile_in(spool_dir()).map_err(spool_error)
}

/// The name of a [`scratch_file`] in errors, which shows the file system that may be full.
#[must_use]
pub fn scratch_name() -> String {
    let dir = spool_dir();
    format!(
        "a temporary file in {} (TMPDIR sets another place)",
        dir.display()
    )
}

fn spool_error(error: io::Error) -> Error {
    Error::file(format!("write {}", scratch_name()), error)
}

enum Failed {
    Read(io::Error),
    Write(io::Error),
}

/// Copies `reader` to `file`, leaving zero blocks out. Returns the number of bytes. Does not set
/// the length of the file.
fn copy_sparse(reader: &mut impl Read, file: &File) -> Result<u64, Failed> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut position = 0;
    loop {
        let filled = fill(reader, &mut piece).map_err(Failed::Read)?;
        // Neighbouring blocks of data are written together.
        let mut data_from = None;
        for (number, block) in piece[..filled].chunks(BLOCK_BYTES).enumerate() {
            let at = number * BLOCK_BYTES;
            match (is_zero(block), data_from) {
                (false, None) => data_from = Some(at),
                (true, Some(from)) => {
                    file.write_all_at(&piece[from..at], position + from as u64)
                        .map_err(Failed::Write)?;
                    data_from = None;
                }
                _ => {}
            }
        }
        if let Some(from) = data_from {
            file.write_all_at(&piece[from..filled], position + from as u64)
                .map_err(Failed::Write)?;
        }
        position += filled as u64;
        if filled < piece.len() {
            return Ok(position);
        }
    }
}

/// Reads until `buffer` is full, or the end: a pipe returns a little at a time.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
