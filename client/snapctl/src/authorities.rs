//! Files of certificate authorities.

use std::{fs, path::Path};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use varve_client::{Error, ErrorKind, Result};

/// Reads authorities (PEM).
///
/// # Errors
///
/// [`ErrorKind::Invalid`] if there is no certificate in the file: no peer could be verified with
/// it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let content = fs::read(path);
    let content =
        content.map_err(|error| Error::file(format!("read {}", path.display()), error))?;
    let useless = |why: String| Error::new(ErrorKind::Invalid, path.display().to_string(), why);
    let mut found = CertificateDer::pem_slice_iter(&content);
    match found.next() {
        Some(Ok(_)) => Ok(content),
        Some(Err(error)) => Err(useless(error.to_string())),
        None => Err(useless("there is no certificate in it".to_owned())),
    }
}
