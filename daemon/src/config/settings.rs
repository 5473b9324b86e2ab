//! The list of settings, and their values as written.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::ConfigError;

/// A setting: its name in each place.
#[derive(Debug)]
pub struct Setting {
    /// In the file, with its table.
    pub key: &'static str,
    /// In the environment.
    pub variable: &'static str,
    /// On the command line, if it has one.
    pub flag: Option<&'static str>,
    /// The value is a boolean.
    pub is_switch: bool,
    /// Text is read as an octal number.
    pub is_octal: bool,
}

const fn setting(key: &'static str, variable: &'static str) -> Setting {
    Setting {
        key,
        variable,
        flag: None,
        is_switch: false,
        is_octal: false,
    }
}

const fn octal(key: &'static str, variable: &'static str) -> Setting {
    Setting {
        is_octal: true,
        ..setting(key, variable)
    }
}

const fn switch(key: &'static str, variable: &'static str) -> Setting {
    Setting {
        is_switch: true,
        ..setting(key, variable)
    }
}

const fn flagged(key: &'static str, variable: &'static str, flag: &'static str) -> Setting {
    Setting {
        flag: Some(flag),
        ..setting(key, variable)
    }
}

/// All settings. `docs/varved.toml` describes them.
pub const SETTINGS: [Setting; 34] = [
    flagged("data_dir", "VARVE_DATA_DIR", "--data-dir"),
    octal("socket_mode", "VARVE_SOCKET_MODE"),
    switch("socket_open_to_all", "VARVE_SOCKET_OPEN_TO_ALL"),
    switch("core_dumps", "VARVE_CORE_DUMPS"),
    setting("store.compression", "VARVE_COMPRESSION"),
    setting("store.io_engine", "VARVE_IO_ENGINE"),
    setting("store.chunk_cache_bytes", "VARVE_CHUNK_CACHE_BYTES"),
    setting("store.journal_bytes_max", "VARVE_JOURNAL_BYTES_MAX"),
    setting("store.cpu_threads", "VARVE_CPU_THREADS"),
    setting("gc.every", "VARVE_GC_EVERY"),
    setting("gc.window", "VARVE_GC_WINDOW"),
    setting("gc.rewrite_dead", "VARVE_GC_REWRITE_DEAD"),
    setting("gc.bytes_per_second", "VARVE_GC_BYTES_PER_SECOND"),
    flagged("grpc.unix", "VARVE_GRPC_UNIX", "--grpc-unix"),
    flagged("grpc.tcp", "VARVE_GRPC_TCP", "--grpc-tcp"),
    setting("grpc.tls_cert", "VARVE_GRPC_TLS_CERT"),
    setting("grpc.tls_key", "VARVE_GRPC_TLS_KEY"),
    setting("grpc.tls_client_ca", "VARVE_GRPC_TLS_CLIENT_CA"),
    setting("copies.tls_ca", "VARVE_COPIES_TLS_CA"),
    setting("copies.tls_cert", "VARVE_COPIES_TLS_CERT"),
    setting("copies.tls_key", "VARVE_COPIES_TLS_KEY"),
    flagged("nbd.unix", "VARVE_NBD_UNIX", "--nbd-unix"),
    flagged("nbd.tcp", "VARVE_NBD_TCP", "--nbd-tcp"),
    setting("nbd.tls_cert", "VARVE_NBD_TLS_CERT"),
    setting("nbd.tls_key", "VARVE_NBD_TLS_KEY"),
    setting("nbd.tls_client_ca", "VARVE_NBD_TLS_CLIENT_CA"),
    switch("nbd.tls_required", "VARVE_NBD_TLS_REQUIRED"),
    setting("nbd.connections_max", "VARVE_NBD_CONNECTIONS_MAX"),
    setting("upload.idle_seconds", "VARVE_UPLOAD_IDLE_SECONDS"),
    setting("upload.dedupe_answers", "VARVE_UPLOAD_DEDUPE_ANSWERS"),
    setting("audit.on_failure", "VARVE_AUDIT_ON_FAILURE"),
    setting("audit.bytes_max", "VARVE_AUDIT_BYTES_MAX"),
    setting("log.filter", "VARVE_LOG"),
    setting("log.format", "VARVE_LOG_FORMAT"),
];

/// Arguments that are settings too, and the place of the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Arguments {
    /// Directory of the store; the daemon creates it if it does not exist [env: VARVE_DATA_DIR]
    #[arg(long, value_name = "DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Configuration file (TOML) [env: VARVE_CONFIG]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Unix socket for gRPC [default: grpc.sock in /run/varve if that is usable, otherwise in DIR]
    /// [env: VARVE_GRPC_UNIX]
    #[arg(long, value_name = "PATH")]
    pub grpc_unix: Option<PathBuf>,
    /// TCP address for gRPC, for example 127.0.0.1:7433 [default: none] [env: VARVE_GRPC_TCP]
    #[arg(long, value_name = "ADDR")]
    pub grpc_tcp: Option<String>,
    /// Unix socket for NBD [default: nbd.sock beside gRPC's socket] [env: VARVE_NBD_UNIX]
    #[arg(long, value_name = "PATH")]
    pub nbd_unix: Option<PathBuf>,
    /// TCP address for NBD, for example 127.0.0.1:10809 [default: none] [env: VARVE_NBD_TCP]
    #[arg(long, value_name = "ADDR")]
    pub nbd_tcp: Option<String>,
}

impl Arguments {
    fn value(&self, key: &str) -> Option<OsString> {
        match key {
            "data_dir" => self.data_dir.clone().map(Into::into),
            "grpc.unix" => self.grpc_unix.clone().map(Into::into),
            "grpc.tcp" => self.grpc_tcp.clone().map(Into::into),
            "nbd.unix" => self.nbd_unix.clone().map(Into::into),
            "nbd.tcp" => self.nbd_tcp.clone().map(Into::into),
            _ => None,
        }
    }
}

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    File(PathBuf),
    Variable(&'static str),
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Values as written, by key. Later layers override earlier ones.
#[derive(Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, (OsString, Source)>);

impl Values {
    pub(super) fn overlay_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::ReadFile {
            path: path.to_owned(),
            source,
        })?;
        let table: Table = toml::from_str(&text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        self.overlay_table(path, "", &table)
    }

    fn overlay_table(
        &mut self,
        path: &Path,
        prefix: &str,
        table: &Table,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            if let Some(setting) = SETTINGS.iter().find(|setting| setting.key == key) {
                let written = match value {
                    Value::String(text) => text.clone(),
                    // Use the value, not the base in which it is written.
                    Value::Integer(number) if setting.is_octal => format!("{number:#o}"),
                    Value::Integer(number) => number.to_string(),
                    Value::Boolean(value) if setting.is_switch => value.to_string(),
                    other => {
                        return Err(ConfigError::Value {
                            key: setting.key,
                            origin: path.display().to_string(),
                            value: other.to_string(),
                            expected: "expected a string or a whole number".to_owned(),
                        });
                    }
                };
                self.0
                    .insert(setting.key, (written.into(), Source::File(path.to_owned())));
                continue;
            }
            match value {
                Value::Table(inner) if prefix.is_empty() && is_table(name) => {
                    self.overlay_table(path, &format!("{name}."), inner)?;
                }
                _ => {
                    return Err(ConfigError::UnknownKey {
                        path: path.to_owned(),
                        key,
                    });
                }
            }
        }
        Ok(())
    }

    /// An empty variable counts as not set: service managers unset a variable in this way.
    pub(super) fn overlay_environment(&mut self, environment: impl Fn(&str) -> Option<OsString>) {
        for setting in &SETTINGS {
            if let Some(value) = environment(setting.variable).filter(|value| !value.is_empty()) {
                self.0
                    .insert(setting.key, (value, Source::Variable(setting.variable)));
            }
        }
    }

    pub(super) fn overlay_arguments(&mut self, arguments: &Arguments) {
        for setting in &SETTINGS {
            if let (Some(flag), Some(value)) = (setting.flag, arguments.value(setting.key)) {
                self.0.insert(setting.key, (value, Source::Flag(flag)));
            }
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&OsStr> {
        self.0.get(key).map(|(value, _)| value.as_os_str())
    }

    /// A path; it need not be UTF-8.
    pub(super) fn path(&self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        match self.0.get(key) {
            Some((value, source)) if value.is_empty() => {
                Err(refuse(key, source, value, "expected a path".to_owned()))
            }
            Some((value, _)) => Ok(Some(PathBuf::from(value))),
            None => Ok(None),
        }
    }

    /// A value of some other kind.
    pub(super) fn parse<T, E: fmt::Display>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ConfigError> {
        let Some((value, source)) = self.0.get(key) else {
            return Ok(None);
        };
        let Some(text) = value.to_str() else {
            return Err(refuse(key, source, value, "expected UTF-8".to_owned()));
        };
        parse(text)
            .map(Some)
            .map_err(|expected| refuse(key, source, value, expected.to_string()))
    }
}

fn refuse(key: &'static str, source: &Source, value: &OsStr, expected: String) -> ConfigError {
    ConfigError::Value {
        key,
        origin: source.to_string(),
        value: value.to_string_lossy().into_owned(),
        expected,
    }
}

/// Returns true if settings have this table.
fn is_table(name: &str) -> bool {
    SETTINGS.iter().any(|setting| {
        setting
            .key
            .split_once('.')
            .is_some_and(|(table, _)| table == name)
    })
}
