//! Files of TLS, and how other daemons are asked with them.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use varve_client::Tls;

use crate::{config::CopiesConfig, limits::TLS_FILE_BYTES_MAX};

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// How other daemons are asked. Blocks.
///
/// # Errors
///
/// Files that cannot be read.
pub fn client(config: &CopiesConfig) -> Result<Tls, FileError> {
    let mut tls = Tls::default();
    if let Some(authorities) = &config.ca {
        tls = tls.trusting(read(authorities)?);
    }
    if let Some((cert, key)) = &config.identity {
        tls = tls.showing(read(cert)?, read(key)?);
    }
    Ok(tls)
}

/// The content of a file, which may be named by whoever may add remotes: one that is no file, or endless, is refused.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let read = || {
        let file = OpenOptions::new()
            .read(true)
            // Or a pipe would be waited for.
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut content = Vec::new();
        file.take(TLS_FILE_BYTES_MAX + 1)
            .read_to_end(&mut content)?;
        if content.len() as u64 > TLS_FILE_BYTES_MAX {
            let why = format!("it has more than {TLS_FILE_BYTES_MAX} bytes");
            return Err(io::Error::other(why));
        }
        Ok(content)
    };
    read().map_err(|source| FileError {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_is_no_file_and_what_is_endless_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("small"), "PEM").unwrap();
        std::fs::write(path("large"), vec![0; 2 << 20]).unwrap();
        let pipe = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("pipe"),
            rustix::fs::FileType::Fifo,
            pipe,
            0,
        )
        .unwrap();
        assert_eq!(read(&path("small")).unwrap(), b"PEM");
        for (path, why) in [
            (path("large"), "more than"),
            (path("pipe"), "not a regular file"),
            (directory.path().to_owned(), "not a regular file"),
            (PathBuf::from("/dev/zero"), "not a regular file"),
            (path("none"), "No such file"),
        ] {
            let refused = read(&path).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
            assert!(refused.contains(path.to_str().unwrap()), "{refused}");
        }
    }
}
