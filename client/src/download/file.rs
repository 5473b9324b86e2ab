//! Files and block devices as targets of a download.

use std::{
    fs::{File, OpenOptions},
    io,
    num::NonZeroU64,
    ops::Range,
    os::unix::fs::{FileExt, FileTypeExt},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustix::{
    fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, seek},
    io::Errno,
};

use super::{
    new_file::{Existing, NewFile},
    sink::Sink,
};
use crate::error::{Error, ErrorKind, Result};

/// A [`Sink`] that writes a volume to a sparse file, or to a block device in place.
///
/// A file gets its name only when it is complete and synced; see [`NewFile`].
#[derive(Debug)]
pub struct FileSink {
    file: File,
    path: PathBuf,
    target: Target,
    /// The system was asked to write out everything before this offset.
    started_bytes: AtomicU64,
}

#[derive(Debug)]
enum Target {
    /// A file that takes its name at the end; `None` after that.
    New(Mutex<Option<Box<NewFile>>>),
    /// A block device, whose old content would show through holes.
    Device,
    /// A file that the caller holds and looks after.
    Scratch,
}

impl FileSink {
    fn new(file: File, path: PathBuf, target: Target) -> Self {
        Self {
            file,
            path,
            target,
            started_bytes: AtomicU64::new(0),
        }
    }

    /// Prepares to write the file or block device at `path`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if it exists and `existing` is [`Existing::Keep`]; otherwise
    /// the errors of [`NewFile::create`].
    pub fn create(path: impl Into<PathBuf>, existing: Existing) -> Result<Self> {
        let path = path.into();
        let what = format!("write {}", path.display());
        if path
            .metadata()
            .is_ok_and(|metadata| metadata.file_type().is_block_device())
        {
            if existing == Existing::Keep {
                let why = "is a block device, and its content would be lost";
                return Err(Error::new(ErrorKind::AlreadyExists, what, why));
            }
            let file = OpenOptions::new()
                .write(true)
                .open(&path)
                .map_err(|error| Error::file(what, error))?;
            return Ok(Self::new(file, path, Target::Device));
        }
        let new = NewFile::create(&path, existing)?;
        let file = new.file().try_clone();
        let file = file.map_err(|error| Error::file(what, error))?;
        Ok(Self::new(
            file,
            path,
            Target::New(Mutex::new(Some(Box::new(new)))),
        ))
    }

    /// Prepares to write an empty file that is open already. The file is not synced, because it is
    /// useless after a crash. Errors call it `path`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::File`] if the process has no more file descriptors.
    pub fn scratch(file: &File, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = file
            .try_clone()
            .map_err(|error| Error::file(format!("write {}", path.display()), error))?;
        Ok(Self::new(file, path, Target::Scratch))
    }
}

impl Sink for FileSink {
    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn begin(&self, size_bytes: u64) -> io::Result<()> {
        match self.target {
            Target::New(_) | Target::Scratch => self.file.set_len(size_bytes),
            Target::Device => {
                let device_bytes = seek(&self.file, SeekFrom::End(0))?;
                if device_bytes < size_bytes {
                    return Err(io::Error::other(format!(
                        "the device has {device_bytes} bytes, and {size_bytes} are needed"
                    )));
                }
                Ok(())
            }
        }
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset_bytes)
    }

    fn zero(&self, range: Range<u64>) -> io::Result<()> {
        match self.target {
            // Unwritten ranges of a new file are empty.
            Target::New(_) | Target::Scratch => Ok(()),
            Target::Device => zero_device(&self.file, range),
        }
    }

    fn settled(&self, end_bytes: u64) -> io::Result<()> {
        // Write out early, so that the sync at the end finds most data on disk. The advice makes
        // the system write out the dirty pages of the range, without waiting; it drops only pages
        // that are on disk already, which none of these are.
        let start_bytes = self.started_bytes.swap(end_bytes, Ordering::Relaxed);
        if !matches!(self.target, Target::Scratch)
            && let Some(len) = NonZeroU64::new(end_bytes.saturating_sub(start_bytes))
        {
            fadvise(&self.file, start_bytes, Some(len), Advice::DontNeed)?;
        }
        Ok(())
    }

    fn finish(&self) -> io::Result<()> {
        match &self.target {
            Target::New(new) => match new.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(new) => new.sync_and_name(),
                None => Ok(()),
            },
            Target::Device => self.file.sync_all(),
            Target::Scratch => Ok(()),
        }
    }
}

/// Makes a range of a block device read as zeros: by a command, if the device supports it.
fn zero_device(device: &File, range: Range<u64>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    match fallocate(device, flags, range.start, range.end - range.start) {
        Ok(()) => return Ok(()),
        // Unsupported, or not at this alignment.
        Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::INVAL | Errno::NOSYS) => {}
        Err(error) => return Err(error.into()),
    }
    static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from(range.end - at).map_or(ZEROS.len(), |rest| rest.min(ZEROS.len()));
        device.write_all_at(&ZEROS[..len], at)?;
        at += len as u64;
    }
    Ok(())
}
