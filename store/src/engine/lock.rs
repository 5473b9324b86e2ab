//! One process at a time has a data directory open.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};

use crate::{Error, Result, format::names};

/// The lock of a data directory, held as long as this lives. The kernel releases it when the
/// process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the lock, or returns its holder: [`Error::InUse`].
    pub(crate) fn take(data_dir: &Path) -> Result<Self> {
        let path: PathBuf = names::lock(data_dir);
        #[expect(
            clippy::disallowed_methods,
            reason = "a lock is between processes, and none of what a simulated disk has"
        )]
        let file = rustix::fs::open(
            &path,
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )
        .map_err(|errno| Error::io("open", &path, errno.into()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file.into() }),
            Err(Errno::WOULDBLOCK) => Err(Error::InUse(data_dir.to_owned())),
            Err(errno) => Err(Error::io("lock", &path, errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(dir.path()).unwrap();
        let refused = DirectoryLock::take(dir.path()).unwrap_err();
        assert!(
            matches!(&refused, Error::InUse(path) if path == dir.path()),
            "{refused}"
        );
        drop(first);
        DirectoryLock::take(dir.path()).unwrap();
    }
}
