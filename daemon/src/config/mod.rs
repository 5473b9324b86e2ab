//! The configuration of a daemon: from arguments, environment and a TOML file, in this order of
//! precedence, then defaults.
//!
//! `settings` is the one list of settings: keys, variables, flags. Here the values get their types.
//! Every refusal names the setting and the origin of its value.

mod audit;
mod cautions;
mod error;
mod gc;
mod log;
mod memory;
mod settings;

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr as _,
    time::Duration,
};

use varve_content::Compression;
use varve_store::io::IoEngine;

pub use audit::AuditConfig;
pub use cautions::unknown_variables;
pub use error::ConfigError;
pub(crate) use gc::limited_rate;
pub use gc::{DailyWindow, GcConfig, GcTime};
pub use log::LogFormat;
pub(crate) use log::parse_filter;
use settings::Values;
pub use settings::{Arguments, SETTINGS, Setting};

use crate::limits;

/// The directory in which `snapctl` looks for the daemon's sockets.
const RUN_DIR: &str = "/run/varve";

/// The configuration of a daemon.
#[derive(Debug, Clone)]
pub struct Config {
    /// The directory of the store.
    pub data_dir: PathBuf,
    /// Permissions of the unix sockets.
    pub socket_mode: u32,
    /// True if the system may write core dumps of the daemon.
    pub core_dumps: bool,
    /// The directory of unix sockets without a setting for their paths. If the daemon cannot use
    /// it, the sockets are in the data directory.
    pub run_dir: PathBuf,
    /// The options of the store.
    pub store: StoreConfig,
    /// The settings of garbage collection.
    pub gc: GcConfig,
    /// The addresses of gRPC.
    pub grpc: GrpcConfig,
    /// The addresses of NBD.
    pub nbd: NbdConfig,
    /// TLS of connections to other daemons, for copies.
    pub copies: CopiesConfig,
    /// Time without progress after which an upload is dropped.
    pub upload_idle: Duration,
    /// Uploads of accounts do not show by their time what the store has.
    pub hides_dedupe: bool,
    /// The audit log.
    pub audit: AuditConfig,
    /// The log.
    pub log: LogConfig,
}

/// The options of the store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Compression of new chunks; `None`: the store's own, zstd for a new store.
    pub compression: Option<Compression>,
    /// How files are read and written.
    pub io_engine: IoEngine,
    /// Bytes of memory for the cache of plain chunks.
    pub chunk_cache_bytes: u64,
    /// Bytes that the journal of a volume may take on disk.
    pub journal_bytes_max: u64,
    /// Threads for hashing and compression; 0: one for each core.
    pub cpu_threads: usize,
}

/// The addresses of gRPC.
#[derive(Debug, Clone)]
pub struct GrpcConfig {
    /// The unix socket, if a setting names it.
    pub unix: Option<PathBuf>,
    /// The TCP address, if any.
    pub tcp: Option<SocketAddr>,
    /// TLS for TCP, if any.
    pub tls: Option<TlsConfig>,
}

/// Files of a TLS identity, in PEM.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The certificate, with the certificates that sign it.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// Authorities that sign the certificates of clients. `None`: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// TLS of connections to other daemons. Files in PEM.
#[derive(Debug, Clone, Default)]
pub struct CopiesConfig {
    /// Authorities that sign their certificates; `None`: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// The client certificate and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The addresses of NBD.
#[derive(Debug, Clone)]
pub struct NbdConfig {
    /// The unix socket, if a setting names it.
    pub unix: Option<PathBuf>,
    /// The TCP address, if any.
    pub tcp: Option<SocketAddr>,
    /// TLS for TCP, if any.
    pub tls: Option<TlsConfig>,
    /// True if clients need TLS.
    pub tls_required: bool,
    /// Connections open at one time.
    pub connections_max: usize,
}

/// The settings of the log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Levels by module, as `tracing_subscriber::EnvFilter` reads them.
    pub filter: String,
    /// For people or for programs.
    pub format: LogFormat,
}

impl Config {
    /// The configuration of this process.
    ///
    /// # Errors
    ///
    /// If a file cannot be read, a setting is unknown, or a value is invalid.
    pub fn load(arguments: &Arguments) -> Result<Self, ConfigError> {
        Self::load_with(arguments, |variable| std::env::var_os(variable))
    }

    /// The defaults for a data directory, independent of environment and files, with the sockets in
    /// the data directory.
    ///
    /// # Errors
    ///
    /// None in practice: the defaults are valid.
    pub fn for_data_dir(data_dir: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let arguments = Arguments {
            data_dir: Some(data_dir.into()),
            ..Arguments::default()
        };
        let config = Self::load_with(&arguments, |_| None)?;
        Ok(Self {
            run_dir: config.data_dir.clone(),
            ..config
        })
    }

    /// The socket of gRPC in `dir`, unless a setting names another path.
    #[must_use]
    pub fn grpc_unix_in(&self, dir: &Path) -> PathBuf {
        let named = self.grpc.unix.clone();
        named.unwrap_or_else(|| dir.join("grpc.sock"))
    }

    /// The socket of NBD: beside gRPC's socket if a setting names only that one.
    #[must_use]
    pub fn nbd_unix_in(&self, dir: &Path) -> PathBuf {
        let named = self.nbd.unix.clone();
        named.unwrap_or_else(|| {
            let beside = self.grpc.unix.as_deref().and_then(Path::parent);
            nbd_socket(beside.unwrap_or(dir))
        })
    }

    fn load_with(
        arguments: &Arguments,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let mut values = Values::default();
        let file = arguments
            .config
            .clone()
            .or_else(|| environment("VARVE_CONFIG").map(PathBuf::from));
        if let Some(file) = file {
            values.overlay_file(&file)?;
        }
        values.overlay_environment(&environment);
        values.overlay_arguments(arguments);
        // The directory that systemd has made by `StateDirectory=`: the first, if there are
        // several.
        let state_dir = environment("STATE_DIRECTORY")
            .and_then(|dirs| Some(dirs.to_str()?.split(':').next()?.to_owned()))
            .filter(|dir| !dir.is_empty());
        Self::resolve(&values, state_dir.map(PathBuf::from))
    }

    fn resolve(values: &Values, state_dir: Option<PathBuf>) -> Result<Self, ConfigError> {
        let Some(data_dir) = values.path("data_dir")?.or(state_dir) else {
            return Err(ConfigError::Missing { key: "data_dir" });
        };
        let config = Self {
            socket_mode: socket_mode(values)?,
            core_dumps: values.parse("core_dumps", parse_bool)?.unwrap_or(false),
            run_dir: PathBuf::from(RUN_DIR),
            store: StoreConfig {
                compression: values.parse("store.compression", parse_compression)?,
                io_engine: values
                    .parse("store.io_engine", parse_engine)?
                    .unwrap_or(IoEngine::Auto),
                chunk_cache_bytes: match values
                    .parse("store.chunk_cache_bytes", parse_cache_bytes)?
                {
                    None | Some(0) => memory::chunk_cache_bytes(),
                    Some(bytes) => bytes,
                },
                journal_bytes_max: values
                    .parse("store.journal_bytes_max", parse_journal_bytes)?
                    .unwrap_or(varve_store::limits::JOURNAL_BYTES_MAX),
                cpu_threads: values
                    .parse("store.cpu_threads", parse_threads)?
                    .unwrap_or(0),
            },
            gc: GcConfig::resolve(values)?,
            grpc: GrpcConfig {
                unix: values.path("grpc.unix")?,
                tcp: values.parse("grpc.tcp", |text| parse_address(text, 7433))?,
                tls: resolve_tls(values, &GRPC_TLS)?,
            },
            nbd: NbdConfig {
                unix: values.path("nbd.unix")?,
                tcp: values.parse("nbd.tcp", |text| parse_address(text, 10809))?,
                tls: resolve_tls(values, &NBD_TLS)?,
                tls_required: values
                    .parse("nbd.tls_required", parse_bool)?
                    .unwrap_or(true),
                connections_max: values
                    .parse("nbd.connections_max", parse_positive)?
                    .unwrap_or(limits::NBD_CONNECTIONS_MAX),
            },
            copies: CopiesConfig {
                ca: values.path("copies.tls_ca")?,
                identity: both(values, "copies.tls_cert", "copies.tls_key")?,
            },
            upload_idle: values
                .parse("upload.idle_seconds", parse_positive)?
                .map_or(limits::UPLOAD_IDLE, |seconds| {
                    Duration::from_secs(seconds as u64)
                }),
            hides_dedupe: values
                .parse("upload.dedupe_answers", parse_dedupe_answers)?
                .unwrap_or(false),
            audit: AuditConfig::resolve(values)?,
            log: LogConfig {
                filter: values
                    .parse("log.filter", |text| {
                        parse_filter(text).map(|_| text.to_owned())
                    })?
                    .unwrap_or_else(|| "info".to_owned()),
                format: values
                    .parse("log.format", LogFormat::from_str)?
                    .unwrap_or(LogFormat::Text),
            },
            data_dir,
        };
        if let Some(grpc) = &config.grpc.unix
            && *grpc == config.nbd_unix_in(&config.run_dir)
        {
            return Err(ConfigError::Conflict(format!(
                "grpc.unix and nbd.unix are both {}",
                grpc.display()
            )));
        }
        if let Some(grpc) = config.grpc.tcp
            && config.nbd.tcp == Some(grpc)
            // The system chooses a free port for each.
            && grpc.port() != 0
        {
            return Err(ConfigError::Conflict(format!(
                "grpc.tcp and nbd.tcp are both {grpc}"
            )));
        }
        Ok(config)
    }
}

/// NBD's unix socket in a directory.
pub(crate) fn nbd_socket(dir: &Path) -> PathBuf {
    dir.join("nbd.sock")
}

/// The settings of a service's TLS.
struct TlsSettings {
    tcp: &'static str,
    cert: &'static str,
    key: &'static str,
    client_ca: &'static str,
}

const GRPC_TLS: TlsSettings = TlsSettings {
    tcp: "grpc.tcp",
    cert: "grpc.tls_cert",
    key: "grpc.tls_key",
    client_ca: "grpc.tls_client_ca",
};

const NBD_TLS: TlsSettings = TlsSettings {
    tcp: "nbd.tcp",
    cert: "nbd.tls_cert",
    key: "nbd.tls_key",
    client_ca: "nbd.tls_client_ca",
};

fn resolve_tls(values: &Values, names: &TlsSettings) -> Result<Option<TlsConfig>, ConfigError> {
    let client_ca = values.path(names.client_ca)?;
    let Some((cert, key)) = both(values, names.cert, names.key)? else {
        return match client_ca {
            None => Ok(None),
            Some(_) => Err(ConfigError::Conflict(format!(
                "{} is set, and {} is not",
                names.client_ca, names.cert
            ))),
        };
    };
    if values.get(names.tcp).is_none() {
        return Err(ConfigError::Conflict(format!(
            "{} and {} are set, but {} is not: nothing would use them",
            names.cert, names.key, names.tcp
        )));
    }
    Ok(Some(TlsConfig {
        cert,
        key,
        client_ca,
    }))
}

/// Checks two settings that need each other.
fn both(
    values: &Values,
    first: &'static str,
    second: &'static str,
) -> Result<Option<(PathBuf, PathBuf)>, ConfigError> {
    match (values.path(first)?, values.path(second)?) {
        (None, None) => Ok(None),
        (Some(one), Some(other)) => Ok(Some((one, other))),
        (one, _) => {
            let (set, unset) = match one {
                Some(_) => (first, second),
                None => (second, first),
            };
            Err(ConfigError::Conflict(format!(
                "{set} is set, and {unset} is not"
            )))
        }
    }
}

/// The permissions of the unix sockets. A user who may write to one may do everything, so a second
/// setting has to confirm that all users may.
fn socket_mode(values: &Values) -> Result<u32, ConfigError> {
    let mode = values.parse("socket_mode", parse_mode)?.unwrap_or(0o600);
    let is_open = mode & 0o007 != 0;
    let may_be_open = values
        .parse("socket_open_to_all", parse_bool)?
        .unwrap_or(false);
    if is_open && !may_be_open {
        return Err(ConfigError::Conflict(format!(
            "socket_mode is {mode:04o}, which lets every user of this machine do everything with the store: if that is wanted, set \
             socket_open_to_all = true"
        )));
    }
    Ok(mode)
}

/// Text is octal, with or without a prefix. A number in the file has its value, as `0o660` has; it
/// comes as `0o660` here.
fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        // Connecting needs reading and writing together, and other permissions mean nothing for a
        // socket. So a decimal 660, which is 0o1224, or 440, which is 0o670, is refused.
        Ok(mode @ (0o600 | 0o660 | 0o666)) => Ok(mode),
        _ => Err("expected permissions in octal: 0600, 0660 or 0666 (in the file 0o660, or \"0660\" in quotes)".to_owned()),
    }
}

fn parse_cache_bytes(text: &str) -> Result<u64, String> {
    let most = memory::total_bytes();
    match text.parse::<u64>() {
        Ok(number) if number <= most => Ok(number),
        _ => Err(format!(
            "expected a number of bytes from 0 to {most}, the size of memory"
        )),
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(number) if number <= limits::CPU_THREADS_MAX => Ok(number),
        _ => Err(format!(
            "expected a whole number from 0 (one for each core) to {}",
            limits::CPU_THREADS_MAX
        )),
    }
}

fn parse_compression(text: &str) -> Result<Compression, String> {
    text.parse()
        .map_err(|_| "expected zstd, lz4 or none".to_owned())
}

fn parse_engine(text: &str) -> Result<IoEngine, String> {
    text.parse()
        .map_err(|_| "expected auto, io_uring or blocking".to_owned())
}

fn parse_address(text: &str, port: u16) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("expected an IP address and a port, for example 127.0.0.1:{port} or [::]:{port}")
    })
}

fn parse_journal_bytes(text: &str) -> Result<u64, String> {
    use varve_store::limits::{JOURNAL_BYTES_LEAST, JOURNAL_BYTES_LIMIT};
    match text.parse::<u64>() {
        Ok(number) if (JOURNAL_BYTES_LEAST..=JOURNAL_BYTES_LIMIT).contains(&number) => Ok(number),
        _ => Err(format!(
            "expected a number of bytes from {JOURNAL_BYTES_LEAST} to {JOURNAL_BYTES_LIMIT}"
        )),
    }
}

fn parse_dedupe_answers(text: &str) -> Result<bool, &'static str> {
    match text {
        "show" => Ok(false),
        "hide" => Ok(true),
        _ => Err("expected show or hide"),
    }
}

fn parse_bool(text: &str) -> Result<bool, String> {
    text.parse()
        .map_err(|_| "expected true or false".to_owned())
}

fn parse_positive(text: &str) -> Result<usize, String> {
    match text.parse::<u32>() {
        Ok(number) if number > 0 => Ok(number as usize),
        _ => Err(format!("expected a whole number from 1 to {}", u32::MAX)),
    }
}

#[cfg(test)]
mod tests;
