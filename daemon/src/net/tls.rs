//! TLS files, for serving clients and for connecting to other daemons.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::Arc,
};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustls::{
    RootCertStore, ServerConfig, ServerConnection,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject as _},
    },
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;
use varve_client::Tls;
use x509_cert::{Certificate, der::Decode as _, name::RdnSequence};

use super::limits::TLS_FILE_BYTES_MAX;
use crate::config::{CopiesConfig, TlsConfig};

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Checks that these files are usable for connections to other daemons. Blocks.
///
/// # Errors
///
/// Files that cannot be read, or that hold no authorities, or no identity.
pub fn check_client(config: &CopiesConfig) -> Result<(), ServerError> {
    if let Some(authorities) = &config.ca {
        roots(authorities)?;
    }
    if let Some((cert, key)) = &config.identity {
        // Checked like a server's identity: the conditions are the same.
        let files = TlsConfig {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: None,
        };
        acceptor(&files, &[])?;
    }
    Ok(())
}

/// The TLS settings for connections to other daemons. Blocks.
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

/// The reason why a listener cannot have TLS.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The files are not a valid identity, or have no authorities.
    #[error("cannot use {} for TLS: {why}", path.display())]
    Useless {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl ServerError {
    /// Returns true if a retry may read the same files, because the process was short of
    /// descriptors, for example.
    fn passes(&self) -> bool {
        match self {
            Self::File(FileError { source, .. }) => {
                let is_of_file = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied]
                    .contains(&source.kind());
                source.raw_os_error().is_some() && !is_of_file
            }
            Self::Useless { .. } => false,
        }
    }
}

/// Bytes of a certificate's subject that is taken as an identity.
const SUBJECT_BYTES_MAX: usize = varve_store::limits::SUBJECT_BYTES_MAX;

/// What a client showed in its TLS handshake.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// The subject of its certificate, as RFC 4514 writes it. `None`: no certificate, or one whose
    /// subject is empty, too long or cannot be read.
    pub subject: Option<Arc<str>>,
}

impl Shown {
    /// What the client of a connection showed. The handshake has checked the certificate.
    #[must_use]
    pub fn on(connection: &ServerConnection) -> Self {
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        let subject = certificate.and_then(|it| Certificate::from_der(it).ok());
        let subject = subject.map(|it| it.tbs_certificate.subject.to_string());
        let is_usable = |it: &String| (1..=SUBJECT_BYTES_MAX).contains(&it.len());
        Self {
            subject: subject.filter(is_usable).map(Arc::from),
        }
    }
}

/// A subject as [`Shown::subject`] would have it; `None` for a text that is none, such as one with
/// spaces around its parts, or with names of attributes that nobody knows.
#[must_use]
pub fn written_subject(subject: &str) -> Option<String> {
    let mut is_escaped = false;
    let mut parts = subject.split(|char| {
        let separates = matches!(char, ',' | '+') && !is_escaped;
        is_escaped = char == '\\' && !is_escaped;
        separates
    });
    let is_part = |part: &str| {
        part.split_once('=').is_some_and(|(key, value)| {
            let is_of_key = |char: char| char.is_ascii_alphanumeric() || "-.".contains(char);
            !key.is_empty() && key.chars().all(is_of_key) && !value.starts_with(' ')
        })
    };
    if !parts.all(is_part) {
        return None;
    }
    let written = RdnSequence::from_str(subject).ok()?.to_string();
    // Names of attributes have one spelling, and so have values, unless only a certificate tells
    // how they are encoded.
    let is_of_certificate = written.contains("=#") && !subject.contains("=#");
    Some(match is_of_certificate {
        true => subject.to_owned(),
        false => written,
    })
}

/// The ALPN protocol that gRPC clients request and get.
pub const HTTP2: &[&[u8]] = &[b"h2"];

/// TLS of a listener, from files that may be renewed while the daemon runs.
pub struct ServerTls {
    files: TlsConfig,
    protocols: &'static [&'static [u8]],
    current: Mutex<Current>,
}

struct Current {
    acceptor: TlsAcceptor,
    /// The stamps of the files at the last attempt to read them, successful or not.
    stamps: Vec<Stamp>,
}

/// Identifies the version of a file and its permissions: device, inode, length, and the times of
/// changes of content and inode, with nanoseconds. `None`: the file does not exist.
type Stamp = Option<(u64, u64, u64, (i64, i64), (i64, i64))>;

impl ServerTls {
    /// Reads the files. `protocols` are those of ALPN, if the listener uses it. Blocks.
    ///
    /// # Errors
    ///
    /// Files that cannot be read or used.
    pub fn load(
        files: &TlsConfig,
        protocols: &'static [&'static [u8]],
    ) -> Result<Self, ServerError> {
        let stamps = stamps(files);
        Ok(Self {
            files: files.clone(),
            protocols,
            current: Mutex::new(Current {
                acceptor: acceptor(files, protocols)?,
                stamps,
            }),
        })
    }

    /// The acceptor for the next client.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        self.current.lock().acceptor.clone()
    }

    /// Reads the files again if they have changed, or in any case. Returns true if the next clients
    /// are served by new ones. Blocks.
    ///
    /// # Errors
    ///
    /// Files that cannot be read or used: clients are served as before.
    pub fn reload(&self, in_any_case: bool) -> Result<bool, ServerError> {
        let stamps = stamps(&self.files);
        {
            let mut current = self.current.lock();
            let is_same = current.stamps == stamps;
            // Files that cannot be used are not tried again until they change again.
            current.stamps = stamps;
            if is_same && !in_any_case {
                return Ok(false);
            }
        }
        let acceptor = acceptor(&self.files, self.protocols).inspect_err(|error| {
            if error.passes() {
                // The files themselves do not show that the obstacle is gone.
                self.current.lock().stamps.clear();
            }
        })?;
        self.current.lock().acceptor = acceptor;
        Ok(true)
    }

    /// The certificate that is shown.
    #[must_use]
    pub fn cert(&self) -> &Path {
        &self.files.cert
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn stamps(files: &TlsConfig) -> Vec<Stamp> {
    let paths = [
        Some(&files.cert),
        Some(&files.key),
        files.client_ca.as_ref(),
    ];
    let stamp = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some((
            found.dev(),
            found.ino(),
            found.len(),
            (found.mtime(), found.mtime_nsec()),
            (found.ctime(), found.ctime_nsec()),
        ))
    };
    paths.into_iter().flatten().map(stamp).collect()
}

fn acceptor(files: &TlsConfig, protocols: &[&[u8]]) -> Result<TlsAcceptor, ServerError> {
    let useless = |path: &Path| {
        let path = path.to_owned();
        move |why: String| ServerError::Useless { path, why }
    };
    let chain = certificates(&files.cert)?;
    let key = private_key(&files.key)?;
    let config = match &files.client_ca {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(authorities) => {
            let roots = Arc::new(roots(authorities)?);
            let verifier = WebPkiClientVerifier::builder(roots).build();
            let verifier = verifier.map_err(|error| useless(authorities)(error.to_string()))?;
            ServerConfig::builder().with_client_cert_verifier(verifier)
        }
    };
    let config = config.with_single_cert(chain, key);
    let mut config = config.map_err(|error| useless(&files.cert)(error.to_string()))?;
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The authorities in a file, at least one.
fn roots(path: &Path) -> Result<RootCertStore, ServerError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|error| ServerError::Useless {
            path: path.to_owned(),
            why: error.to_string(),
        })?;
    }
    Ok(roots)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ServerError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| ServerError::Useless {
        path: path.to_owned(),
        why: match error {
            pem::Error::NoItemsFound => "there is no private key in it".to_owned(),
            other => other.to_string(),
        },
    })
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

/// The content of a file. Callers that add remotes name it, so what is no file, or is endless, is
/// refused.
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
    fn subjects_are_written_in_one_way() {
        for same in [
            "CN=backup,O=Example",
            "O=Example\\, Inc.,CN=a",
            "CN=y+O=\\#x",
            "2.5.4.97=#0c0161",
            "SERIALNUMBER=abc_1",
        ] {
            assert_eq!(written_subject(same).as_deref(), Some(same));
        }
        for (other, written) in [
            ("cn=backup", "CN=backup"),
            ("O=\\#x+CN=y", "CN=y+O=\\#x"),
            ("CN=M\\C3\\BCller", "CN=Müller"),
        ] {
            assert_eq!(written_subject(other).as_deref(), Some(written));
        }
        let openssl = "CN = backup, O = Example";
        for none in [
            "",
            "backup",
            "/CN=a",
            openssl,
            "CN=a, O=b",
            " CN=a",
            "CN= a",
            "CN=a,",
            "subject=CN=a",
            "unheardOf=a,CN=b",
        ] {
            assert_eq!(written_subject(none), None, "{none:?}");
        }
    }

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

    /// One that serves nobody, with files that cannot be used.
    fn useless(directory: &Path) -> ServerTls {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let files = TlsConfig {
            cert: directory.join("cert.pem"),
            key: directory.join("key.pem"),
            client_ca: None,
        };
        for path in [&files.cert, &files.key] {
            std::fs::write(path, "rubbish").unwrap();
        }
        let resolver = Arc::new(rustls::server::ResolvesServerCertUsingSni::new());
        let config = ServerConfig::builder().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_cert_resolver(resolver)));
        let current = Mutex::new(Current {
            acceptor,
            stamps: stamps(&files),
        });
        ServerTls {
            files,
            protocols: &[],
            current,
        }
    }

    #[test]
    fn files_are_read_again_when_they_or_their_owner_or_mode_have_changed() {
        let directory = tempfile::tempdir().unwrap();
        let tls = useless(directory.path());
        assert!(!tls.reload(false).unwrap(), "nothing has changed");
        assert!(tls.reload(true).is_err());
        // As keys are renewed: written by root, and given to the daemon's user after
        // that. In a moment that can be told from the one before.
        let changed = || {
            let found = std::fs::metadata(&tls.files.key).unwrap();
            (found.ctime(), found.ctime_nsec())
        };
        let before = changed();
        while changed() == before {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
            std::fs::set_permissions(&tls.files.key, mode).unwrap();
        }
        assert!(tls.reload(false).is_err(), "they are looked at");
        assert!(!tls.reload(false).unwrap(), "once");
    }

    #[test]
    fn files_are_tried_again_as_long_as_it_may_help() {
        let directory = tempfile::tempdir().unwrap();
        let tls = useless(directory.path());
        std::fs::remove_file(&tls.files.cert).unwrap();
        assert!(tls.reload(false).is_err());
        assert!(!tls.reload(false).unwrap(), "it is told once");
        // A symbolic link to itself, which the system refuses to follow.
        std::os::unix::fs::symlink("cert.pem", &tls.files.cert).unwrap();
        assert!(tls.reload(true).is_err());
        for _ in 0..3 {
            assert!(tls.reload(false).is_err());
        }
    }
}
