//! An open file, or an extent of one that is an image by itself.

use std::{
    fs::File,
    io::{self, ErrorKind::Interrupted, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, FileTypeExt},
    },
    process,
    sync::Arc,
};

use rustix::fs::{SeekFrom, seek};
use serde_json::{Value, json};
use varve_client::{Error, ErrorKind, Result};

/// The bytes of an image, and what errors call it.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    file: Arc<File>,
    name: String,
    start: u64,
    len: u64,
    is_device: bool,
    is_whole: bool,
}

impl Part {
    /// All of a regular file or block device.
    pub(crate) fn whole(file: File, name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        let what = || format!("open {name}");
        let metadata = file
            .metadata()
            .map_err(|error| Error::file(what(), error))?;
        let kind = metadata.file_type();
        let len = if kind.is_file() {
            metadata.len()
        } else if kind.is_block_device() {
            seek(&file, SeekFrom::End(0)).map_err(|error| Error::file(what(), error.into()))?
        } else if kind.is_dir() {
            return Err(Error::new(
                ErrorKind::File,
                what(),
                "is a directory, not a disk image",
            ));
        } else {
            let why = "is neither a regular file nor a block device";
            return Err(Error::new(ErrorKind::File, what(), why));
        };
        Ok(Self {
            file: Arc::new(file),
            name,
            start: 0,
            len,
            is_device: kind.is_block_device(),
            is_whole: true,
        })
    }

    /// A stretch of it, called `name`. `None` if it reaches behind the end.
    pub(crate) fn stretch(&self, start: u64, len: u64, name: String) -> Option<Self> {
        if start.checked_add(len)? > self.len {
            return None;
        }
        Some(Self {
            file: Arc::clone(&self.file),
            name,
            start: self.start + start,
            len,
            is_device: self.is_device,
            is_whole: false,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn is_device(&self) -> bool {
        self.is_device
    }

    /// The image is not a stretch of a file.
    pub(crate) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The file, if this part is all of it and no other part shares it.
    pub(crate) fn into_whole_file(self) -> Option<File> {
        self.is_whole.then(|| Arc::into_inner(self.file)).flatten()
    }

    /// Reads up to `len` bytes at `offset`: fewer at the end.
    pub(crate) fn bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let rest = self.len.saturating_sub(offset);
        let len = usize::try_from(rest).map_or(len, |rest| rest.min(len));
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            let at = self.start + offset + done as u64;
            match self.file.read_at(&mut bytes[done..], at) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == Interrupted => {}
                Err(error) => {
                    let what = format!("read {} at offset {offset}", self.name);
                    return Err(Error::file(what, error));
                }
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    /// Reads exactly `len` bytes at `offset`; `meaning` names them in errors.
    pub(crate) fn exact(&self, offset: u64, len: usize, meaning: &str) -> Result<Vec<u8>> {
        let bytes = self.bytes(offset, len)?;
        if bytes.len() < len {
            return Err(self.truncated(meaning, offset.saturating_add(len as u64)));
        }
        Ok(bytes)
    }

    /// The error for something that ends at `end`, behind the end of the file.
    pub(crate) fn truncated(&self, meaning: &str, end: u64) -> Error {
        self.damaged(format!(
            "it is truncated: {meaning} ends at {end}, and the file at {}",
            self.len
        ))
    }

    /// The error for an image that contradicts itself.
    pub(crate) fn damaged(&self, why: impl Into<String>) -> Error {
        Error::new(ErrorKind::File, format!("read {}", self.name), why)
    }

    /// The error for an unsupported image.
    pub(crate) fn refused(&self, why: impl Into<String>) -> Error {
        Error::new(ErrorKind::File, format!("import {}", self.name), why)
    }

    /// Its bytes from front to back, for a thread of their own.
    pub(crate) fn reader(&self) -> impl Read + Send + 'static {
        Reader {
            part: self.clone(),
            position: 0,
        }
    }

    /// A path by which another process finds the file, even if the file has no name.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd())
    }

    /// The part as a block node for `qemu-img`. `None` if `qemu-img` cannot read it, because it
    /// does not consist of whole sectors.
    pub(crate) fn node(&self) -> Option<Value> {
        let driver = if self.is_device {
            "host_device"
        } else {
            "file"
        };
        let file = json!({ "driver": driver, "filename": self.path() });
        if self.is_whole {
            return Some(file);
        }
        let sectors = self.start.is_multiple_of(512) && self.len.is_multiple_of(512);
        sectors.then(
            || json!({ "driver": "raw", "offset": self.start, "size": self.len, "file": file }),
        )
    }
}

struct Reader {
    part: Part,
    position: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.part.len - self.position;
        let len = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        let at = self.part.start + self.position;
        let read = self.part.file.read_at(&mut buffer[..len], at)?;
        if read == 0 && len > 0 {
            let why = format!("it became shorter while it was read: it ends at {at}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        self.position += read as u64;
        Ok(read)
    }
}
