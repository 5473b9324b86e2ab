//! The settings of the audit log.

use super::{ConfigError, settings::Values};

/// Least bytes of all files of the log.
const BYTES_LEAST: u64 = 1 << 20;

/// The settings of the audit log.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// Bytes of all its files; `None`: the default.
    pub bytes_max: Option<u64>,
    /// Changes are refused while it cannot be written.
    pub stops_changes: bool,
}

impl AuditConfig {
    pub(super) fn resolve(values: &Values) -> Result<Self, ConfigError> {
        Ok(Self {
            bytes_max: values.parse("audit.bytes_max", parse_bytes)?,
            stops_changes: values
                .parse("audit.on_failure", parse_on_failure)?
                .unwrap_or(false),
        })
    }
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(bytes) if bytes >= BYTES_LEAST => Ok(bytes),
        _ => Err(format!("expected a number of bytes, {BYTES_LEAST} or more")),
    }
}

fn parse_on_failure(text: &str) -> Result<bool, &'static str> {
    match text {
        "count" => Ok(false),
        "stop" => Ok(true),
        _ => Err("expected count or stop"),
    }
}
