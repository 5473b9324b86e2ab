//! Sources of uploads.

use std::{
    fmt,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::Path,
};

use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};

use crate::error::{Error, ErrorKind, Result};

/// A source of a volume's bytes. Several threads read it at once, at any place.
///
/// The methods may block: the client calls them on threads that may. An error of any method ends
/// the upload.
pub trait Source: Send + Sync + 'static {
    /// The name of the source in errors: a path.
    fn name(&self) -> String;

    /// Size of the volume in bytes, holes included.
    fn size_bytes(&self) -> u64;

    /// The first range of data, in bytes, that ends behind `offset_bytes`; `None` where only holes
    /// follow.
    ///
    /// Everything else reads as zeros, or as in the [base](crate::Upload::base) of the upload. A
    /// source may report zeros as data; they are read then.
    ///
    /// # Errors
    ///
    /// If the data cannot be found.
    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>>;

    /// Fills `buffer` with the bytes at `offset_bytes`. The range is within the volume.
    ///
    /// # Errors
    ///
    /// If they cannot be read.
    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// An estimate of the number of data bytes, for progress.
    fn data_bytes_hint(&self) -> u64 {
        self.size_bytes()
    }

    /// Checks that the bytes have not changed since the source was opened. The client calls it
    /// before it commits an upload.
    ///
    /// # Errors
    ///
    /// If the bytes may have changed: the upload may have a mixture of old and new bytes.
    fn check_unchanged(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A [`Source`] that is a block device, or a regular file, whose holes are not read.
pub struct FileSource {
    file: File,
    name: String,
    size_bytes: u64,
    data_bytes_hint: u64,
    /// Size and time of a regular file when it was opened.
    stamp: Option<Stamp>,
}

/// Properties of a file that change when it is written to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    size_bytes: u64,
    modified: (i64, i64),
}

impl FileSource {
    /// Opens the file or block device at `path`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::File`] if it cannot be opened, is empty, or is something else.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| Error::file(format!("open {name}"), error))?;
        Self::from_file(file, name)
    }

    /// Takes a file that is open already, called `name` in errors.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn from_file(file: File, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let what = || format!("open {name}");
        let metadata = file
            .metadata()
            .map_err(|error| Error::file(what(), error))?;
        let kind = metadata.file_type();
        let refuse = |why: &str| Err(Error::new(ErrorKind::File, what(), why));
        let (size_bytes, data_bytes_hint, stamp) = if kind.is_file() {
            // st_blocks counts units of 512 bytes.
            let allocated = metadata.blocks().saturating_mul(512);
            (
                metadata.len(),
                allocated.min(metadata.len()),
                Some(Stamp::of(&metadata)),
            )
        } else if kind.is_block_device() {
            let end =
                seek(&file, SeekFrom::End(0)).map_err(|error| Error::file(what(), error.into()))?;
            (end, end, None)
        } else if kind.is_dir() {
            return refuse("is a directory, not a disk image");
        } else {
            return refuse("is neither a regular file nor a block device");
        };
        if size_bytes == 0 {
            return refuse("is empty");
        }
        Ok(Self {
            file,
            name,
            size_bytes,
            data_bytes_hint,
            stamp,
        })
    }

    /// The file.
    pub fn into_file(self) -> File {
        self.file
    }
}

impl fmt::Debug for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSource")
            .field("name", &self.name)
            .field("size_bytes", &self.size_bytes)
            .finish()
    }
}

impl Source for FileSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn next_data(&self, offset_bytes: u64) -> io::Result<Option<Range<u64>>> {
        if offset_bytes >= self.size_bytes {
            return Ok(None);
        }
        let start = match seek(&self.file, SeekFrom::Data(offset_bytes)) {
            Ok(start) => start,
            // Only holes follow; or the file has become shorter, which `check_unchanged` finds.
            Err(Errno::NXIO) => return Ok(None),
            // The file system does not report holes: treat everything as data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(offset_bytes..self.size_bytes)),
            Err(error) => return Err(error.into()),
        };
        let end = match seek(&self.file, SeekFrom::Hole(start)) {
            Ok(end) => end,
            Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => self.size_bytes,
            Err(error) => return Err(error.into()),
        };
        let end = end.min(self.size_bytes);
        Ok((start < end).then_some(start..end))
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self
                .file
                .read_at(&mut buffer[done..], offset_bytes + done as u64)
            {
                Ok(0) => {
                    let end = offset_bytes + done as u64;
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        format!(
                            "it ends at {end}: it was {} bytes long and became shorter while it was read",
                            self.size_bytes
                        ),
                    ));
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn data_bytes_hint(&self) -> u64 {
        self.data_bytes_hint
    }

    fn check_unchanged(&self) -> io::Result<()> {
        let Some(before) = self.stamp else {
            return Ok(());
        };
        let now = Stamp::of(&self.file.metadata()?);
        if now.size_bytes != before.size_bytes {
            return Err(io::Error::other(format!(
                "its size changed from {} to {} bytes while it was read",
                before.size_bytes, now.size_bytes
            )));
        }
        if now.modified != before.modified {
            return Err(io::Error::other("it was written to while it was read"));
        }
        Ok(())
    }
}

impl Stamp {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}
