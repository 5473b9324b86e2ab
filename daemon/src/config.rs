//! What a daemon is told: by arguments, environment and a TOML file, in this order of precedence, then defaults.
//!
//! `settings` is the one list of what there is: keys, variables, flags. Here the values get their types.
//! Every refusal names the setting and where its value came from.

mod error;
mod settings;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use varve_content::Compression;
use varve_store::io::IoEngine;

pub use error::ConfigError;
use settings::Values;
pub use settings::{Arguments, SETTINGS, Setting};

use crate::{limits, memory, telemetry::LogFormat};

/// The configuration of a daemon.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the store is.
    pub data_dir: PathBuf,
    /// Permissions of the unix sockets.
    pub socket_mode: u32,
    /// How the store is run.
    pub store: StoreConfig,
    /// Where gRPC is served.
    pub grpc: GrpcConfig,
    /// Where NBD is served.
    pub nbd: NbdConfig,
    /// How other daemons are asked that snapshots are copied from.
    pub copies: CopiesConfig,
    /// An upload that nothing was heard of for so long is dropped.
    pub upload_idle: Duration,
    /// What is logged.
    pub log: LogConfig,
}

/// How the store is run.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// For a new store; `None`: what the store has, zstd for a new one.
    pub compression: Option<Compression>,
    /// How files are read and written.
    pub io_engine: IoEngine,
    /// Memory for plain chunks that were read.
    pub chunk_cache_bytes: u64,
    /// What the journal of a volume may take on disk.
    pub journal_bytes_max: u64,
    /// Threads for hashing and compression; 0: one for each core.
    pub cpu_threads: usize,
}

/// Where gRPC is served.
#[derive(Debug, Clone)]
pub struct GrpcConfig {
    /// The unix socket.
    pub unix: PathBuf,
    /// The TCP address, if any.
    pub tcp: Option<SocketAddr>,
    /// TLS for TCP, if any.
    pub tls: Option<TlsConfig>,
}

/// Files of a TLS identity, in PEM.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// The certificate and those that it is signed by.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// Authorities: clients have to show a certificate that one of them has signed. `None`: they need none.
    pub client_ca: Option<PathBuf>,
}

/// How other daemons are asked, with TLS. Files in PEM.
#[derive(Debug, Clone, Default)]
pub struct CopiesConfig {
    /// Authorities that their certificates are signed by; `None`: those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// The certificate to show them, and its private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Where NBD is served.
#[derive(Debug, Clone)]
pub struct NbdConfig {
    /// The unix socket.
    pub unix: PathBuf,
    /// The TCP address, if any.
    pub tcp: Option<SocketAddr>,
    /// TLS for TCP, if any.
    pub tls: Option<TlsConfig>,
    /// Whether clients get nothing without it.
    pub tls_required: bool,
    /// Connections open at one time.
    pub connections_max: usize,
}

/// What is logged.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Levels, by module: what `tracing_subscriber::EnvFilter` reads.
    pub filter: String,
    /// For people or for programs.
    pub format: LogFormat,
}

impl Config {
    /// The configuration of this process.
    ///
    /// # Errors
    ///
    /// What cannot be read, is not known, or cannot be meant.
    pub fn load(arguments: &Arguments) -> Result<Self, ConfigError> {
        Self::load_with(arguments, |variable| std::env::var_os(variable))
    }

    /// The defaults for a data directory, without looking at environment or files.
    ///
    /// # Errors
    ///
    /// None in practice: defaults are valid.
    pub fn for_data_dir(data_dir: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let arguments = Arguments {
            data_dir: Some(data_dir.into()),
            ..Arguments::default()
        };
        Self::load_with(&arguments, |_| None)
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
        values.overlay_environment(environment);
        values.overlay_arguments(arguments);
        Self::resolve(&values)
    }

    fn resolve(values: &Values) -> Result<Self, ConfigError> {
        let Some(data_dir) = values.path("data_dir")? else {
            return Err(ConfigError::Missing { key: "data_dir" });
        };
        let unix = |key, name: &str| -> Result<PathBuf, ConfigError> {
            Ok(values.path(key)?.unwrap_or_else(|| data_dir.join(name)))
        };
        let config = Self {
            socket_mode: values.parse("socket_mode", parse_mode)?.unwrap_or(0o600),
            store: StoreConfig {
                compression: values.parse("store.compression", parse_compression)?,
                io_engine: values
                    .parse("store.io_engine", parse_engine)?
                    .unwrap_or(IoEngine::Auto),
                chunk_cache_bytes: match values.parse("store.chunk_cache_bytes", parse_number)? {
                    None | Some(0) => memory::chunk_cache_bytes(),
                    Some(bytes) => bytes,
                },
                journal_bytes_max: values
                    .parse("store.journal_bytes_max", parse_journal_bytes)?
                    .unwrap_or(varve_store::limits::JOURNAL_BYTES_MAX),
                cpu_threads: values
                    .parse("store.cpu_threads", parse_number)?
                    .unwrap_or(0),
            },
            grpc: GrpcConfig {
                unix: unix("grpc.unix", "grpc.sock")?,
                tcp: values.parse("grpc.tcp", parse_address)?,
                tls: resolve_tls(values, &GRPC_TLS)?,
            },
            nbd: NbdConfig {
                unix: unix("nbd.unix", "nbd.sock")?,
                tcp: values.parse("nbd.tcp", parse_address)?,
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
            log: LogConfig {
                filter: values
                    .parse("log.filter", |text| Ok::<_, String>(text.to_owned()))?
                    .unwrap_or_else(|| "info".to_owned()),
                format: values
                    .parse("log.format", LogFormat::from_str)?
                    .unwrap_or(LogFormat::Text),
            },
            data_dir,
        };
        if config.grpc.unix == config.nbd.unix {
            return Err(ConfigError::Conflict(format!(
                "grpc.unix and nbd.unix are both {}",
                config.grpc.unix.display()
            )));
        }
        Ok(config)
    }
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
            "{} and {} are set, and there is no {} to serve with them",
            names.cert, names.key, names.tcp
        )));
    }
    Ok(Some(TlsConfig {
        cert,
        key,
        client_ca,
    }))
}

/// Two settings that have no meaning without each other.
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

fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected permissions in octal, for example 0660".to_owned()),
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

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an IP address and a port, for example 127.0.0.1:7433 or [::]:7433".to_owned()
    })
}

fn parse_number<N: FromStr>(text: &str) -> Result<N, String> {
    text.parse()
        .map_err(|_| "expected a whole number".to_owned())
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
