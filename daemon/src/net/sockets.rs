//! Listening sockets of both services.
//!
//! Invariants of a unix socket: nobody without permission can connect at any moment, a socket that
//! another process serves is never replaced, and the socket of a dead daemon is no obstacle.
//!
//! With systemd's socket activation, the service manager holds the listening sockets. Then
//! connections wait in them during a restart of the daemon, instead of being refused: see
//! [`Inherited`].

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tracing::{debug, info, warn};

use crate::config::{self, Config};

/// The longest path of a unix socket: `sun_path` has 108 bytes, with the closing zero.
const UNIX_PATH_BYTES_MAX: usize = 107;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// Time limit for testing if an existing socket is served.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The reason why the daemon cannot listen on a socket.
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
    /// Another kind of file has that name. It is not removed.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {verb} the socket {}: {source}", path.display())]
    Unix {
        /// The operation that failed.
        verb: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The service manager passes a socket that cannot be served.
    #[error("the socket {name:?} of the service manager: {why}")]
    Inherited {
        /// Its name, by `FileDescriptorName`.
        name: String,
        /// Why.
        why: String,
    },
    /// The operating system refused.
    #[error("cannot read the address of a socket: {0}")]
    Unknown(io::Error),
    /// The operating system refused.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Listening sockets of the service manager: units of systemd with `FileDescriptorName=grpc` or
/// `=nbd`, each of which may have a unix socket and a TCP port.
#[derive(Debug, Default)]
pub struct Inherited {
    /// gRPC over a unix socket.
    pub grpc_unix: Option<UnixListener>,
    /// gRPC over TCP.
    pub grpc_tcp: Option<TcpListener>,
    /// NBD over a unix socket.
    pub nbd_unix: Option<UnixListener>,
    /// NBD over TCP.
    pub nbd_tcp: Option<TcpListener>,
}

impl Inherited {
    /// Takes the sockets that the environment names. Call it once, before there are threads.
    #[must_use]
    pub fn find() -> Found {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        Found {
            names: names.split(':').map(str::to_owned).collect(),
            sockets: listenfd::ListenFd::from_env(),
        }
    }
}

/// The inherited descriptors, unchecked.
pub struct Found {
    names: Vec<String>,
    sockets: listenfd::ListenFd,
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Found")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Found {
    /// Assigns the sockets to services. Call it in the runtime that will serve them.
    ///
    /// # Errors
    ///
    /// If a socket has an unknown name, is of a kind that is not served, or is the second one for
    /// its service.
    pub fn take(mut self) -> Result<Inherited, SocketError> {
        let mut inherited = Inherited::default();
        for index in 0..self.sockets.len() {
            let name = self.names.get(index).map_or("", String::as_str);
            let refuse = |why: String| SocketError::Inherited {
                name: name.to_owned(),
                why,
            };
            let unreadable = |error: io::Error| refuse(error.to_string());
            let (unix_place, tcp_place) = match name {
                "grpc" => (&mut inherited.grpc_unix, &mut inherited.grpc_tcp),
                "nbd" => (&mut inherited.nbd_unix, &mut inherited.nbd_tcp),
                _ => {
                    let why = "its name does not say which service it is for: set \
                               FileDescriptorName=grpc or nbd";
                    return Err(refuse(why.to_owned()));
                }
            };
            // `take_unix_listener` leaves a socket of another kind in place for
            // `take_tcp_listener`.
            let is_new = if let Ok(Some(listener)) = self.sockets.take_unix_listener(index) {
                listener.set_nonblocking(true).map_err(unreadable)?;
                let listener = UnixListener::from_std(listener).map_err(unreadable)?;
                unix_place.replace(listener).is_none()
            } else if let Ok(Some(listener)) = self.sockets.take_tcp_listener(index) {
                listener.set_nonblocking(true).map_err(unreadable)?;
                let listener = TcpListener::from_std(listener).map_err(unreadable)?;
                tcp_place.replace(listener).is_none()
            } else {
                let why = "it is neither a listening unix stream socket nor a TCP one";
                return Err(refuse(why.to_owned()));
            };
            if !is_new {
                return Err(refuse(
                    "there is already one for the same service".to_owned(),
                ));
            }
        }
        Ok(inherited)
    }
}

/// The file of a unix socket, removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode: a socket that has replaced this one belongs to another process.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// Path of the socket.
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

/// A listening unix socket.
#[derive(Debug)]
pub struct UnixService {
    /// The listener.
    pub listener: UnixListener,
    /// Path of the socket.
    pub path: PathBuf,
    /// Removed with the daemon, unless the service manager made it.
    pub file: Option<SocketFile>,
}

/// Serves the inherited unix socket, or listens on one of this path with these permissions.
///
/// # Errors
///
/// A path that is too long, in use, something else, or not permitted.
pub async fn serve_unix(
    inherited: Option<UnixListener>,
    path: &Path,
    mode: u32,
) -> Result<UnixService, SocketError> {
    let Some(listener) = inherited else {
        let (listener, file) = listen_unix(path, mode).await?;
        return Ok(UnixService {
            listener,
            path: path.to_owned(),
            file: Some(file),
        });
    };
    Ok(UnixService {
        path: path_of(&listener).unwrap_or_default(),
        listener,
        file: None,
    })
}

/// Path of an inherited socket; its name may be of another kind.
fn path_of(listener: &UnixListener) -> Option<PathBuf> {
    let address = listener.local_addr().ok()?;
    address.as_pathname().map(Path::to_owned)
}

/// Paths of the unix sockets of `config`: gRPC's, then NBD's, which is beside it unless a setting
/// names another place. Without a setting they are in its `run_dir`, so that clients find the
/// daemon by default. If the daemon cannot use that directory, or another daemon has its sockets
/// there, they are in the data directory.
pub async fn unix_paths(config: &Config, inherited: &Inherited) -> (PathBuf, PathBuf) {
    let given = |listener: &Option<UnixListener>| listener.as_ref().map(path_of);
    if let Some(grpc) = given(&inherited.grpc_unix) {
        let grpc = grpc.unwrap_or_default();
        let nbd = given(&inherited.nbd_unix).map(Option::unwrap_or_default);
        let nbd = nbd.or_else(|| config.nbd.unix.clone());
        if let Some(nbd) = nbd.or_else(|| grpc.parent().map(config::nbd_socket)) {
            return (grpc, nbd);
        }
    }
    let in_dir = |dir: &Path| (config.grpc_unix_in(dir), config.nbd_unix_in(dir));
    let in_data_dir = in_dir(&config.data_dir);
    if config.grpc.unix.is_some() || config.run_dir == config.data_dir {
        return in_data_dir;
    }
    if let Err(why) = make_run_dir(&config.run_dir) {
        let why = why.to_string();
        info!(
            "cannot use {} ({}): the sockets are in {}",
            config.run_dir.display(),
            why.split(" (os error").next().unwrap_or(&why),
            config.data_dir.display()
        );
        return in_data_dir;
    }
    let in_run_dir = in_dir(&config.run_dir);
    for (path, is_ours) in [
        (&in_run_dir.0, false),
        (&in_run_dir.1, inherited.nbd_unix.is_some()),
    ] {
        if !is_ours && path.starts_with(&config.run_dir) && is_served(path).await {
            warn!(
                path = %path.display(),
                "another daemon has its sockets there: the sockets of this one are in its data \
                 directory"
            );
            return in_data_dir;
        }
    }
    in_run_dir
}

/// Creates a directory that everyone may search, and only this user may write to.
fn make_run_dir(path: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        // Restore the permissions that the umask has removed.
        Ok(()) => return fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let found = fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    // Its owner could put another socket in the place of this daemon's.
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other(format!(
            "it belongs to user {}, and this is user {}",
            found.uid(),
            rustix::process::geteuid().as_raw()
        )));
    }
    Ok(())
}

/// Returns true if a process serves a socket, or may serve it: a socket that cannot be tested is
/// left alone.
async fn is_served(path: &Path) -> bool {
    let asked = tokio::time::timeout(PROBE_TIMEOUT, UnixStream::connect(path)).await;
    let is_free = |kind| {
        matches!(
            kind,
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
        )
    };
    !asked.is_ok_and(|asked| asked.is_err_and(|error| is_free(error.kind())))
}

/// Checks that a unix socket can have this path.
///
/// # Errors
///
/// The path is too long.
pub fn check_path(path: &Path) -> Result<(), SocketError> {
    if path.as_os_str().as_bytes().len() > UNIX_PATH_BYTES_MAX {
        return Err(SocketError::PathTooLong {
            path: path.to_owned(),
        });
    }
    Ok(())
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
    check_path(path)?;
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

/// Removes a stale socket.
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
            info!(path = %path.display(), "replacing a stale socket");
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
        // Connected, or too busy to accept: a process serves it.
        Ok(_) | Err(_) => Err(SocketError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Binds, sets the permissions, and only then listens: before that the kernel refuses every
/// connection.
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
        served.unwrap();
        drop(file);
        assert!(!path.exists());
    }

    fn config(dir: &Path) -> Config {
        let mut config = Config::for_data_dir(dir.join("data")).unwrap();
        config.run_dir = dir.join("run");
        config
    }

    fn none() -> Inherited {
        Inherited::default()
    }

    #[tokio::test]
    async fn nothing_is_made_for_sockets_that_are_somewhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let inherit = |name: &str| Some(UnixListener::bind(path(name)).unwrap());
        let mut config = config(dir.path());
        let mut inherited = Inherited {
            grpc_unix: inherit("given-grpc"),
            nbd_unix: inherit("given-nbd"),
            ..none()
        };
        let both = unix_paths(&config, &inherited).await;
        assert_eq!(both, (path("given-grpc"), path("given-nbd")));
        inherited.nbd_unix = None;
        let beside = unix_paths(&config, &inherited).await;
        assert_eq!(beside, (path("given-grpc"), path("nbd.sock")));
        config.grpc.unix = Some(path("elsewhere/g"));
        let named = unix_paths(&config, &none()).await;
        assert_eq!(named, (path("elsewhere/g"), path("elsewhere/nbd.sock")));
        assert!(!config.run_dir.exists());
    }

    #[tokio::test]
    async fn sockets_are_where_clients_look_unless_they_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (run, mut config) = (dir.path().join("run"), config(dir.path()));
        let there = (run.join("grpc.sock"), run.join("nbd.sock"));
        assert_eq!(unix_paths(&config, &none()).await, there);
        let mode = fs::metadata(&run).unwrap().permissions().mode();
        assert_eq!(
            mode & 0o777,
            0o755,
            "others reach it if the sockets let them"
        );
        assert_eq!(
            unix_paths(&config, &none()).await,
            there,
            "it is there already"
        );
        drop(std::os::unix::net::UnixListener::bind(&there.0).unwrap());
        assert_eq!(
            unix_paths(&config, &none()).await,
            there,
            "nobody serves that one"
        );
        config.nbd.unix = Some("/elsewhere/nbd".into());
        let (grpc, nbd) = unix_paths(&config, &none()).await;
        assert_eq!((grpc, nbd), (there.0, "/elsewhere/nbd".into()));
    }

    #[tokio::test]
    async fn sockets_are_in_the_data_directory_where_they_cannot_be_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        let data = dir.path().join("data");
        let fallback = (data.join("grpc.sock"), data.join("nbd.sock"));
        config.run_dir = dir.path().join("absent/run");
        assert_eq!(
            unix_paths(&config, &none()).await,
            fallback,
            "it cannot be made"
        );
        config.run_dir = dir.path().join("file");
        fs::write(&config.run_dir, "").unwrap();
        assert_eq!(
            unix_paths(&config, &none()).await,
            fallback,
            "it is no directory"
        );
        config.run_dir = dir.path().join("run");
        fs::create_dir(&config.run_dir).unwrap();
        let other = listen_unix(&config.run_dir.join("nbd.sock"), 0o600)
            .await
            .unwrap();
        assert_eq!(
            unix_paths(&config, &none()).await,
            fallback,
            "another daemon is there"
        );
        drop(other);
        assert_ne!(unix_paths(&config, &none()).await, fallback);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&config.run_dir, Some(12345), None).unwrap();
            assert_eq!(
                unix_paths(&config, &none()).await,
                fallback,
                "it is another user's"
            );
        }
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
