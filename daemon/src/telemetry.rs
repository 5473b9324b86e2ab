//! What is logged, where and how. Standard error, so that a service manager collects it.

use std::{io::IsTerminal, panic, str::FromStr};

use tracing::error;
use tracing_subscriber::EnvFilter;

use crate::{config::LogConfig, tasks::panic_message};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected text or json"),
        }
    }
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter makes no sense.
    #[error("{filter:?} is no value for log.filter: {why}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong.
        why: String,
    },
    /// Somebody was first.
    #[error("cannot start logging: {0}")]
    Taken(String),
}

/// Starts logging for this process, panics included.
///
/// # Errors
///
/// A filter that makes no sense, or logging that was started before.
pub fn start(config: &LogConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::builder()
        .parse(&config.filter)
        .map_err(|error| TelemetryError::Filter {
            filter: config.filter.clone(),
            why: error.to_string(),
        })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match config.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    }
    .map_err(|error| TelemetryError::Taken(error.to_string()))?;
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        error!(
            panic = panic_message(info.payload()),
            place,
            thread = thread.name().unwrap_or_default(),
            "panic"
        );
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_bad_filter_is_named() {
        let error = start(&LogConfig {
            filter: "info,nbd=loud".to_owned(),
            format: LogFormat::Text,
        })
        .unwrap_err();
        assert!(error.to_string().contains("info,nbd=loud"), "{error}");
    }
}
