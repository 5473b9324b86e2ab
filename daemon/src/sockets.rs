//! Listening sockets of both services.
//!
//! What must hold for a unix socket: nobody without permission can connect at any moment, a socket that another process
//! serves is never taken from it, and what a daemon that died left behind is no obstacle.

use std::{
    fs, io,
    net::SocketAddr,
    os::{
        fd::AsFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tracing::{debug, info, warn};

use crate::limits::UNIX_BUFFER_BYTES;

/// The longest path of a unix socket: `sun_path` has 108 bytes, with the closing zero.
const UNIX_PATH_BYTES_MAX: usize = 107;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// How long a socket that exists may take to show that somebody serves it.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel takes no path of this length.
    #[error(
        "the socket path {} has {} bytes, at most {UNIX_PATH_BYTES_MAX} are possible: choose a shorter one",
        path.display(),
        path.as_os_str().len()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Another process serves it.
    #[error("the socket {} is in use by another process", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is something else of that name. It is not removed.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {verb} the socket {}: {source}", path.display())]
    Unix {
        /// What was being done.
        verb: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refused.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// The file of a unix socket, removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: a socket that was put in this one's place belongs to somebody else.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            match fs::remove_file(&self.path) {
                Ok(()) => debug!(path = %self.path.display(), "socket removed"),
                Err(error) => {
                    warn!(path = %self.path.display(), %error, "cannot remove the socket")
                }
            }
        }
    }
}

/// Listens on a unix socket with these permissions.
///
/// # Errors
///
/// A path that is too long, in use, something else, or not permitted.
pub async fn listen_unix(
    path: &Path,
    mode: u32,
) -> Result<(UnixListener, SocketFile), SocketError> {
    if path.as_os_str().as_bytes().len() > UNIX_PATH_BYTES_MAX {
        return Err(SocketError::PathTooLong {
            path: path.to_owned(),
        });
    }
    remove_stale(path).await?;
    bind_unix(path, mode)
}

/// Listens on a TCP address.
///
/// # Errors
///
/// The address is taken, not of this machine, or not permitted.
pub async fn listen_tcp(address: SocketAddr) -> Result<TcpListener, SocketError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| SocketError::Tcp { address, source })
}

/// Makes a connection's buffers large enough for whole messages. The kernel may grant less, which only costs speed.
pub fn enlarge_buffers(socket: impl AsFd) {
    let sent = sockopt::set_socket_send_buffer_size(&socket, UNIX_BUFFER_BYTES);
    let received = sockopt::set_socket_recv_buffer_size(&socket, UNIX_BUFFER_BYTES);
    if let Err(error) = sent.and(received) {
        debug!(%error, "cannot enlarge socket buffers");
    }
}

/// Removes a socket that nobody serves any more.
async fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let refuse = |verb| {
        move |source| SocketError::Unix {
            verb,
            path: path.to_owned(),
            source,
        }
    };
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => {
            return Err(SocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refuse("look at")(error)),
    }
    match tokio::time::timeout(PROBE_TIMEOUT, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            info!(path = %path.display(), "replacing a socket that nobody serves");
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(refuse("remove")(error))
                }
                _ => Ok(()),
            }
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(refuse("connect to")(error))
        }
        // Connected, or so busy that it cannot be: somebody is there.
        Ok(_) | Err(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Binds, sets the permissions, and only then listens: before that the kernel refuses every connection.
fn bind_unix(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile), SocketError> {
    let refuse = |verb: &'static str, source: io::Error| SocketError::Unix {
        verb,
        path: path.to_owned(),
        source,
    };
    let address = SocketAddrUnix::new(path).map_err(|error| refuse("name", error.into()))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(|error| refuse("open", error.into()))?;
    match rustix::net::bind(&socket, &address) {
        Ok(()) => {}
        Err(rustix::io::Errno::ADDRINUSE) => {
            return Err(SocketError::InUse {
                path: path.to_owned(),
            });
        }
        Err(error) => return Err(refuse("make", error.into())),
    }
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path),
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| refuse("set the permissions of", error))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|error| refuse("listen on", error.into()))?;
    let listener =
        UnixListener::from_std(socket.into()).map_err(|error| refuse("listen on", error))?;
    Ok((listener, file))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[tokio::test]
    async fn a_socket_has_its_permissions_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, file) = listen_unix(&path, 0o640).await.unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
        let (client, served) = tokio::join!(UnixStream::connect(&path), listener.accept());
        client.unwrap();
        enlarge_buffers(&served.unwrap().0);
        drop(file);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_socket_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = listen_unix(&path, 0o600).await.unwrap();
        let error = listen_unix(&path, 0o600).await.unwrap_err();
        assert!(matches!(&error, SocketError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
        assert!(
            UnixStream::connect(&path).await.is_ok(),
            "the first goes on"
        );
        drop(first);
    }

    #[tokio::test]
    async fn a_socket_left_behind_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "as after a kill");
        let _served = listen_unix(&path, 0o600).await.unwrap();
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn anything_else_of_that_name_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        fs::write(&path, "precious").unwrap();
        let error = listen_unix(&path, 0o600).await.unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_successor_in_the_same_place_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, file) = listen_unix(&path, 0o600).await.unwrap();
        drop(listener);
        // Keeps the inode from being used again at once.
        fs::rename(&path, dir.path().join("old")).unwrap();
        let _successor = listen_unix(&path, 0o600).await.unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn long_paths_and_missing_directories_are_told() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(130)));
        let error = listen_unix(&long, 0o600).await.unwrap_err().to_string();
        assert!(
            error.contains("135 bytes") && error.contains("107"),
            "{error}"
        );
        let dir = tempfile::tempdir().unwrap();
        let error = listen_unix(&dir.path().join("absent/s"), 0o600)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("absent/s"), "{error}");
    }

    #[tokio::test]
    async fn a_taken_tcp_address_is_told() {
        let first = listen_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = listen_tcp(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()), "{error}");
    }
}
