//! Files of TLS: how other daemons are asked with them, and clients served.

use std::{
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::OFlags;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;
use varve_client::Tls;

use crate::{
    config::{CopiesConfig, TlsConfig},
    limits::TLS_FILE_BYTES_MAX,
};

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

/// Why a listener cannot have TLS.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The files are no identity, or no authorities.
    #[error("cannot serve TLS with {}: {why}", path.display())]
    Useless {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// What clients of gRPC ask for when TLS begins, and are told that they get.
pub const HTTP2: &[u8] = b"h2";

/// How clients are served with TLS, and what is spoken in it, for those that ask.
///
/// # Errors
///
/// Files that cannot be read or used.
pub fn server(files: &TlsConfig, protocol: Option<&[u8]>) -> Result<TlsAcceptor, ServerError> {
    let useless = |path: &Path| {
        let path = path.to_owned();
        move |why: String| ServerError::Useless { path, why }
    };
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?);
    let key = key.map_err(|error| useless(&files.key)(error.to_string()))?;
    let config = match &files.client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(authorities)? {
                let added = roots.add(authority);
                added.map_err(|error| useless(authorities)(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build();
            let verifier = verifier.map_err(|error| useless(authorities)(error.to_string()))?;
            ServerConfig::builder().with_client_cert_verifier(verifier)
        }
    };
    let config = config.with_single_cert(chain, key);
    let mut config = config.map_err(|error| useless(&files.cert)(error.to_string()))?;
    config.alpn_protocols = protocol.map(<[u8]>::to_vec).into_iter().collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The certificates in a file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let useless = |why: String| ServerError::Useless {
        path: path.to_owned(),
        why,
    };
    let content = read(path)?;
    let found = CertificateDer::pem_slice_iter(&content).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| useless(error.to_string()))?;
    if found.is_empty() {
        return Err(useless("there is no certificate in it".to_owned()));
    }
    Ok(found)
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
