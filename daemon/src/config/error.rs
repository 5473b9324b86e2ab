//! Errors of the configuration.

use std::{io, path::PathBuf};

/// The reason why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The mistake and its place.
        message: String,
    },
    /// An unknown key. Ignoring it would hide a misspelled one.
    #[error("{}: unknown key {key:?}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key as written there.
        key: String,
    },
    /// An invalid value.
    #[error("{origin}: {value:?} is not a value for {key}: {expected}")]
    Value {
        /// The setting.
        key: &'static str,
        /// Flag, variable or file.
        origin: String,
        /// The value.
        value: String,
        /// A description of valid values.
        expected: String,
    },
    /// A setting without a default is not set.
    #[error(
        "{key} is not set: give --data-dir, VARVE_DATA_DIR, or {key} in the configuration file"
    )]
    Missing {
        /// The setting.
        key: &'static str,
    },
    /// Settings that contradict each other.
    #[error("{0}")]
    Conflict(String),
}
