//! Open files.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

/// An open file. Copies share it; it is closed with the last one, requests under way included.
#[derive(Clone)]
pub struct File(Arc<Inner>);

struct Inner {
    path: PathBuf,
    handle: Handle,
    aligned: bool,
}

enum Handle {
    Os(OwnedFd),
    /// The number of a file of a simulated disk.
    Simulated(u64),
}

impl File {
    /// `aligned`: reads and writes have to be.
    pub(super) fn os(path: &Path, descriptor: OwnedFd, aligned: bool) -> Self {
        Self(Arc::new(Inner {
            path: path.to_owned(),
            handle: Handle::Os(descriptor),
            aligned,
        }))
    }

    pub(super) fn simulated(path: &Path, number: u64, aligned: bool) -> Self {
        Self(Arc::new(Inner {
            path: path.to_owned(),
            handle: Handle::Simulated(number),
            aligned,
        }))
    }

    /// The mode in which it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns true if other handles exist: requests under way, or holders that may make some.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    pub(super) fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        match &self.0.handle {
            Handle::Os(descriptor) => Ok(descriptor.as_fd()),
            Handle::Simulated(_) => Err(self.foreign()),
        }
    }

    pub(super) fn simulated_number(&self) -> io::Result<u64> {
        match self.0.handle {
            Handle::Simulated(number) => Ok(number),
            Handle::Os(_) => Err(self.foreign()),
        }
    }

    /// Checks that the file allows a read or a write at this offset and of this length.
    pub(super) fn check_alignment(&self, offset_bytes: u64, len: usize) -> io::Result<()> {
        let align = super::BUFFER_ALIGN;
        if self.0.aligned
            && !(offset_bytes.is_multiple_of(align as u64) && len.is_multiple_of(align))
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("direct access to {len} bytes at {offset_bytes}: not multiples of {align}"),
            ));
        }
        Ok(())
    }

    /// The same for a write from several places in memory.
    pub(super) fn check_parts(&self, offset_bytes: u64, parts: &[Bytes]) -> io::Result<()> {
        let align = super::BUFFER_ALIGN;
        let aligned = |part: &Bytes| {
            part.as_ptr().addr().is_multiple_of(align) && part.len().is_multiple_of(align)
        };
        if parts.len() > super::PARTS_MAX || parts.iter().any(Bytes::is_empty) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a write of {} parts, or of an empty one", parts.len()),
            ));
        }
        self.check_alignment(offset_bytes, 0)?;
        match parts.iter().find(|part| !aligned(part)) {
            Some(part) if self.0.aligned => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "direct write at {offset_bytes}: a part of {} bytes at {:p} is not at a multiple of {align}",
                    part.len(),
                    part.as_ptr()
                ),
            )),
            _ => Ok(()),
        }
    }

    fn foreign(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} was opened on another disk", self.path().display()),
        )
    }
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("File").field(&self.path()).finish()
    }
}
