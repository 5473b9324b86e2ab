//! Files of TLS, and how other daemons are asked with them.

use std::path::{Path, PathBuf};

use varve_client::Tls;

use crate::config::CopiesConfig;

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

/// How other daemons are asked.
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

/// The content of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|source| FileError {
        path: path.to_owned(),
        source,
    })
}
