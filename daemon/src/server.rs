//! Starts everything, and stops it cleanly.
//!
//! The order at the start: the store first, because its lock keeps a second daemon away from the
//! sockets; then all listeners; then the services. At the stop: report it, accept nothing more,
//! give running requests time to finish, drop uploads, close the store.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::SystemTime,
};

use futures::{Stream, StreamExt as _, future};
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use varve_nbd::ServerUri;
use varve_store::{Options, Store};

use crate::{
    auth::{
        Accounts, Door, Rates,
        audit::{Audit, AuditError, OnFailure, Settings as AuditSettings},
        key::FILE_NAME as KEY_FILE,
    },
    config::{Config, TlsConfig},
    copies::Copies,
    exports::CallerExports,
    grpc::{self, Connection, Connections, Health, RoutesError, Serving},
    limits, nbd,
    net::{
        places::Places,
        sockets::{self, Inherited, SocketError, SocketFile},
        tls::{self, ServerTls},
    },
    resources::descriptors::{self, Descriptors},
    scheduler::Collections,
    service::{Facts, Parts, Service, Uploads},
    tasks::{Task, Tasks},
};

/// Why a daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Too few open files are permitted.
    #[error(transparent)]
    Descriptors(#[from] descriptors::TooFew),
    /// The store does not open.
    #[error(transparent)]
    Store(#[from] varve_store::Error),
    /// A socket cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// gRPC cannot be served.
    #[error(transparent)]
    Grpc(#[from] RoutesError),
    /// Files of TLS, of a listener or for copies, cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::ServerError),
    /// The audit log cannot be kept.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The clock of the machine was never set.
    #[error("the clock of this machine is before 1970: set it first")]
    Clock,
}

impl StartError {
    /// Returns true if another start with the same settings would fail in the same way: the daemon
    /// refused them before it touched the store.
    #[must_use]
    pub fn is_of_settings(&self) -> bool {
        match self {
            Self::Tls(_) => true,
            Self::Socket(error) => matches!(error, SocketError::PathTooLong { .. }),
            _ => false,
        }
    }
}

/// A configuration, checked as far as possible without opening the store.
#[derive(Debug)]
pub struct Prepared {
    grpc_tls: Option<Arc<ServerTls>>,
    nbd_tls: Option<Arc<ServerTls>>,
}

impl Prepared {
    /// Looks at everything that the settings name. Blocks for a moment.
    ///
    /// # Errors
    ///
    /// TLS files or socket paths that cannot be used.
    pub fn new(config: &Config) -> Result<Self, StartError> {
        for path in [
            config.grpc_unix_in(&config.data_dir),
            config.nbd_unix_in(&config.data_dir),
        ] {
            sockets::check_path(&path)?;
        }
        let load = |files: &Option<TlsConfig>, protocols| -> Result<_, StartError> {
            match files {
                Some(files) => Ok(Some(Arc::new(ServerTls::load(files, protocols)?))),
                None => Ok(None),
            }
        };
        let grpc_tls = load(&config.grpc.tls, tls::HTTP2)?;
        tls::check_client(&config.copies)?;
        Ok(Self {
            grpc_tls,
            nbd_tls: load(&config.nbd.tls, &[])?,
        })
    }
}

/// The addresses of a daemon.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// The unix socket of gRPC.
    pub grpc_unix: PathBuf,
    /// The unix socket of NBD; empty if the service manager has given it another kind of name.
    pub nbd_unix: PathBuf,
    /// The TCP address of gRPC, with the port that was really taken.
    pub grpc_tcp: Option<SocketAddr>,
    /// The TCP address of NBD, with the port that was really taken.
    pub nbd_tcp: Option<SocketAddr>,
    /// NBD's addresses as URIs.
    pub nbd_servers: Vec<ServerUri>,
}

/// A running daemon.
#[derive(Debug)]
pub struct Server {
    store: Store,
    tasks: Tasks,
    uploads: Arc<Uploads<varve_store::Ingest>>,
    audit: Arc<Audit>,
    health: Health,
    stop: CancellationToken,
    /// One task for each listener. None ends before the stop.
    services: Vec<Task<()>>,
    addresses: Addresses,
    /// Each with the name of its service.
    tls: Vec<(&'static str, Arc<ServerTls>)>,
    _socket_files: [Option<SocketFile>; 2],
}

/// The store's options in a configuration.
#[must_use]
pub fn store_options(config: &Config) -> Options {
    Options {
        data_dir: config.data_dir.clone(),
        compression: config.store.compression,
        chunk_cache_bytes: config.store.chunk_cache_bytes,
        journal_bytes_max: config.store.journal_bytes_max,
        io_engine: config.store.io_engine,
        cpu_threads: config.store.cpu_threads,
        ..Options::new(&config.data_dir)
    }
}

impl Server {
    /// Opens the store and serves it.
    ///
    /// # Errors
    ///
    /// The first failure. Everything that was started before is stopped again.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        Self::start_with(config, Inherited::default()).await
    }

    /// The same, with sockets that the service manager listens on in place of those in the
    /// configuration.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub async fn start_with(config: &Config, inherited: Inherited) -> Result<Self, StartError> {
        let prepared = Prepared::new(config)?;
        check_clock(SystemTime::now())?;
        let descriptors = Descriptors::of_process(config.nbd.connections_max)?;
        descriptors.tell();
        let options = Options {
            packs_open_max: descriptors.packs,
            journal_files_open_max: descriptors.journals,
            ..store_options(config)
        };
        let (store, report) = Store::open(options).await?;
        info!(data_dir = %config.data_dir.display(), "{report}");
        for torn in report.torn_packs.iter().chain(&report.torn_log) {
            warn!("a torn end was cut off: {torn}");
        }
        for damage in &report.damage {
            error!("{damage}");
        }
        for stranded in &report.stranded_journals {
            error!("{stranded}");
        }
        match Self::serve(config, prepared, inherited, descriptors, store.clone()).await {
            Ok(server) => Ok(server),
            Err(error) => {
                close(&store).await;
                Err(error)
            }
        }
    }

    async fn serve(
        config: &Config,
        prepared: Prepared,
        inherited: Inherited,
        descriptors: Descriptors,
        store: Store,
    ) -> Result<Self, StartError> {
        let grpc_tls = config.grpc.tls.as_ref();
        let grpc_acceptor = prepared
            .grpc_tls
            .clone()
            .map(|tls| Arc::new(move || tls.acceptor()) as grpc::Tls);
        let nbd_tls = prepared.nbd_tls.clone().map(|tls| nbd::Tls {
            acceptor: Arc::new(move || tls.acceptor()),
            required: config.nbd.tls_required,
        });
        let mode = config.socket_mode;
        let (grpc_unix, nbd_unix) = sockets::unix_paths(config, &inherited).await;
        let grpc_unix = sockets::serve_unix(inherited.grpc_unix, &grpc_unix, mode).await?;
        let nbd_unix = sockets::serve_unix(inherited.nbd_unix, &nbd_unix, mode).await?;
        let grpc_tcp = listen_tcp(inherited.grpc_tcp, config.grpc.tcp).await?;
        let nbd_tcp = listen_tcp(inherited.nbd_tcp, config.nbd.tcp).await?;
        let addresses = Addresses {
            grpc_unix: absolute(&grpc_unix.path),
            nbd_unix: absolute(&nbd_unix.path),
            grpc_tcp: grpc_tcp.as_ref().map(|(_, address)| *address),
            nbd_tcp: nbd_tcp.as_ref().map(|(_, address)| *address),
            nbd_servers: nbd_servers(
                &nbd_unix.path,
                nbd_tcp.as_ref().map(|(_, address)| *address),
                config.nbd.tls.is_some(),
            ),
        };
        let open_grpc = config.open_grpc(addresses.grpc_tcp);
        for open in open_grpc.iter().chain(&config.open_nbd(addresses.nbd_tcp)) {
            warn!("{open}");
        }

        let tasks = Tasks::new();
        let stop = CancellationToken::new();
        let copies = Copies::new(
            store.clone(),
            config.copies.clone(),
            tasks.clone(),
            stop.clone(),
        );
        let uploads = Arc::new(Uploads::new(config.upload_idle));
        let audit = open_audit(config).await?;
        let key_file = config.data_dir.join(KEY_FILE);
        let accounts = Accounts::load(store.clone(), key_file).await?;
        let door = Door {
            directory: accounts.directory().clone(),
            audit: Some(Arc::clone(&audit)),
            rates: Arc::new(Rates::new()),
        };
        let health = Health::default();
        let nbd_options = nbd::ServerOptions {
            max_connections: descriptors.nbd_connections,
            stop_timeout: limits::NBD_STOP_GRACE,
            ..nbd::ServerOptions::default()
        };
        let nbd_places = Places::new(nbd_options.max_connections);
        let service = Service::new(Parts {
            store: store.clone(),
            tasks: tasks.clone(),
            copies: copies.clone(),
            stop: stop.clone(),
            uploads: Arc::clone(&uploads),
            hides_dedupe: config.hides_dedupe,
            gc: config.gc.settings,
            accounts: accounts.clone(),
            door: door.clone(),
            facts: Facts {
                data_dir: config.data_dir.clone(),
                started_at: SystemTime::now(),
                nbd_servers: addresses.nbd_servers.clone(),
                nbd_places: Arc::clone(&nbd_places),
            },
        });
        let routes = grpc::routes(&service, &health)?;
        let exports = move |caller| CallerExports::new(service.clone(), caller);
        let nbd = nbd::Server::with_places(exports, nbd_options, nbd_places);
        let serving = Serving::new(routes, tasks.clone(), door);
        copies.resume().await?;

        let connections = Connections::new(descriptors.grpc_connections, tasks.clone());
        let incoming = connections.of_unix(grpc_unix.listener, stop.clone());
        let mut services = vec![
            tasks.spawn(
                "gRPC over unix",
                serve_grpc(serving.clone(), tasks.clone(), incoming, stop.clone()),
            ),
            tasks.spawn("NBD over unix", {
                let spawn = spawn_connections(&tasks);
                Arc::clone(&nbd).serve_unix(nbd_unix.listener, stop.clone(), spawn)
            }),
        ];
        if let Some((listener, _)) = grpc_tcp {
            let incoming = connections.of_tcp(listener, grpc_acceptor, stop.clone());
            let serve = serve_grpc(serving, tasks.clone(), incoming, stop.clone());
            services.push(tasks.spawn("gRPC over TCP", serve));
        }
        if let Some((listener, _)) = nbd_tcp {
            let serve = nbd.serve_tcp(listener, nbd_tls, stop.clone(), spawn_connections(&tasks));
            services.push(tasks.spawn("NBD over TCP", serve));
        }
        let expiry = Arc::clone(&uploads);
        drop(tasks.spawn(
            "upload expiry",
            until(stop.clone(), async move { expiry.expire().await }),
        ));
        drop(tasks.spawn(
            "tokens",
            until(stop.clone(), async move { accounts.keep_tokens().await }),
        ));
        let watched = (health.clone(), store.clone());
        drop(tasks.spawn(
            "health",
            until(
                stop.clone(),
                async move { watched.0.watch(watched.1).await },
            ),
        ));

        let tls: Vec<_> = [("gRPC", prepared.grpc_tls), ("NBD", prepared.nbd_tls)]
            .into_iter()
            .filter_map(|(service, tls)| Some((service, tls?)))
            .collect();
        if !tls.is_empty() {
            let renewed = renew(tls.clone());
            drop(tasks.spawn("TLS files", until(stop.clone(), renewed)));
        }

        let resuming = store.clone();
        drop(tasks.spawn(
            "pending snapshots",
            until(stop.clone(), async move {
                if let Err(error) = resuming.resume_snapshots().await {
                    error!(%error, "pending snapshots do not continue");
                }
            }),
        ));

        let (counting, rate) = (store.clone(), config.gc.settings.bytes_per_second);
        drop(tasks.spawn(
            "stored bytes",
            until(stop.clone(), async move {
                counting.keep_counting_stored_bytes(rate).await;
            }),
        ));

        let collections = Collections::new(
            store.clone(),
            config.gc,
            config.data_dir.clone(),
            stop.clone(),
        );
        drop(tasks.spawn("garbage collection", collections.run()));

        let emptying = store.clone();
        drop(tasks.spawn(
            "idle journals",
            until(
                stop.clone(),
                async move { emptying.empty_idle_journals().await },
            ),
        ));

        let shortening = store.clone();
        drop(tasks.spawn(
            "catalog log",
            until(stop.clone(), async move {
                shortening.checkpoint_catalog_log().await;
            }),
        ));

        health.serving().await;
        tell_service_manager(NotifyState::Ready);
        info!(
            grpc_unix = %grpc_unix.path.display(),
            grpc_tcp = addresses.grpc_tcp.map(tracing::field::display),
            grpc_tls = grpc_tls.is_some(),
            nbd_unix = %nbd_unix.path.display(),
            nbd_tcp = addresses.nbd_tcp.map(tracing::field::display),
            version = env!("CARGO_PKG_VERSION"),
            "ready"
        );
        Ok(Self {
            store,
            tasks,
            uploads,
            audit,
            health,
            stop,
            services,
            addresses,
            tls,
            _socket_files: [grpc_unix.file, nbd_unix.file],
        })
    }

    /// The addresses of the daemon.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Reads files of TLS again: new clients are served by them.
    pub async fn reload(&self) {
        for (service, tls) in &self.tls {
            reload(service, tls, true).await;
        }
    }

    /// Waits until a listener ends, which only a defect can cause. A daemon that cannot be reached
    /// should end, so that its service manager sees it.
    pub async fn failed(&mut self) {
        let (outcome, position, _) = future::select_all(&mut self.services).await;
        // Remove the task: it must not be polled again.
        drop(self.services.swap_remove(position));
        match outcome {
            Ok(()) => error!("a listener has ended"),
            Err(ended) => error!(%ended, "a listener has ended"),
        }
    }

    /// Stops cleanly.
    ///
    /// # Errors
    ///
    /// The store could not be closed; what was committed is safe nevertheless.
    pub async fn stop(self) -> Result<(), varve_store::Error> {
        info!("stopping");
        tell_service_manager(NotifyState::Stopping);
        self.health.stopping().await;
        self.stop.cancel();
        self.tasks.stop(limits::STOP_GRACE).await;
        self.uploads.clear();
        if let Err(error) = self.audit.close(limits::AUDIT_CLOSE_WITHIN).await {
            error!(%error, "the last lines of the audit log may be missing");
        }
        let closed = self.store.close().await;
        match &closed {
            Ok(()) => info!("stopped"),
            Err(error) => error!(%error, "the store did not close"),
        }
        closed
    }
}

async fn close(store: &Store) {
    if let Err(error) = store.close().await {
        warn!(%error, "the store did not close");
    }
}

/// Reports the state of the daemon to systemd, or to a service manager with the same protocol.
fn tell_service_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "cannot notify the service manager");
    }
}

async fn listen_tcp(
    inherited: Option<TcpListener>,
    address: Option<SocketAddr>,
) -> Result<Option<(TcpListener, SocketAddr)>, SocketError> {
    let listener = match (inherited, address) {
        (Some(listener), _) => listener,
        (None, Some(address)) => sockets::listen_tcp(address).await?,
        (None, None) => return Ok(None),
    };
    let taken = listener.local_addr().map_err(SocketError::Unknown)?;
    Ok(Some((listener, taken)))
}

/// The URIs of NBD's addresses.
fn nbd_servers(unix: &Path, tcp: Option<SocketAddr>, has_tls: bool) -> Vec<ServerUri> {
    let of_tcp = if has_tls {
        ServerUri::Tls
    } else {
        ServerUri::Tcp
    };
    let mut servers = vec![ServerUri::Unix(absolute(unix))];
    servers.extend(tcp.map(|address| of_tcp(address.to_string())));
    servers
}

/// A relative path would mean something else to the reader.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Opens the audit log in the data directory.
async fn open_audit(config: &Config) -> Result<Arc<Audit>, AuditError> {
    let default = AuditSettings::default();
    let total_bytes = config.audit.bytes_max.unwrap_or(default.total_bytes);
    let settings = AuditSettings {
        // A rotation removes a part of a small log, not all of it.
        file_bytes: default.file_bytes.min(total_bytes / 4),
        total_bytes,
        on_failure: match config.audit.stops_changes {
            true => OnFailure::Stop,
            false => OnFailure::Count,
        },
    };
    let dir = config.data_dir.clone();
    let opened = tokio::task::spawn_blocking(move || Audit::open(&dir, &settings)).await;
    // It does not panic, and the runtime waits for it.
    opened.unwrap_or(Err(AuditError::Unfinished)).map(Arc::new)
}

async fn serve_grpc(
    serving: Serving,
    tasks: Tasks,
    incoming: impl Stream<Item = Result<Connection, Infallible>>,
    stop: CancellationToken,
) {
    let mut incoming = pin!(incoming);
    while let Some(Some(Ok(connection))) = stop.run_until_cancelled(incoming.next()).await {
        let (serving, stop) = (serving.clone(), stop.clone());
        drop(tasks.spawn("gRPC connection", async move {
            let seat = Arc::clone(connection.seat());
            let peer = (connection.peer(), connection.shown());
            serving.serve(connection, Some(seat), peer, stop).await;
        }));
    }
}

fn spawn_connections(tasks: &Tasks) -> impl Fn(future::BoxFuture<'static, ()>) + Send + use<> {
    let tasks = tasks.clone();
    move |connection| drop(tasks.spawn("NBD connection", connection))
}

/// Reads files of TLS again when they change, for as long as it is polled.
async fn renew(all: Vec<(&'static str, Arc<ServerTls>)>) {
    loop {
        tokio::time::sleep(limits::TLS_FILES_INTERVAL).await;
        for (service, tls) in &all {
            reload(service, tls, false).await;
        }
    }
}

async fn reload(service: &str, tls: &Arc<ServerTls>, in_any_case: bool) {
    let cert = tls.cert().to_owned();
    let tls = Arc::clone(tls);
    match tokio::task::spawn_blocking(move || tls.reload(in_any_case)).await {
        Ok(Ok(true)) => {
            info!(cert = %cert.display(), "the TLS files of {service} were read again");
        }
        Ok(Ok(false)) => {}
        Ok(Err(error)) => {
            error!(%error, "the TLS files of {service} cannot be used: clients are served by the old ones");
        }
        Err(error) => error!(%error, "the TLS files of {service} were not read again"),
    }
}

/// Times are kept as nanoseconds since 1970, and the HTTP library cannot write earlier ones.
fn check_clock(now: SystemTime) -> Result<(), StartError> {
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    since.map(drop).map_err(|_| StartError::Clock)
}

/// Work that runs until the daemon stops.
async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    // Dropping the work loses nothing.
    let _ = stop.run_until_cancelled(work).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn clients_are_told_of_nbd_by_absolute_paths_and_by_whether_tls_is_spoken() {
        let address = "[::1]:10809".parse().ok();
        let relative = Path::new("x/nbd.sock");
        for (has_tls, tcp) in [(false, "nbd://[::1]:10809"), (true, "nbds://[::1]:10809")] {
            let servers = nbd_servers(relative, address, has_tls);
            let uris: Vec<_> = servers.iter().map(ServerUri::to_string).collect();
            let [unix, other] = &uris[..] else {
                panic!("{uris:?}");
            };
            assert!(unix.starts_with("nbd+unix:///?socket=/") && unix.ends_with("/x/nbd.sock"));
            assert_eq!(other, tcp);
        }
        assert_eq!(nbd_servers(relative, None, false).len(), 1);
    }

    #[test]
    fn a_clock_before_1970_is_refused_before_anything_is_made() {
        let epoch = SystemTime::UNIX_EPOCH;
        check_clock(epoch).unwrap();
        let error = check_clock(epoch - std::time::Duration::from_secs(1)).unwrap_err();
        assert!(matches!(error, StartError::Clock), "{error}");
    }
}
