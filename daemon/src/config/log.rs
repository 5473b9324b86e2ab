//! The settings of the log: its format and its filter.

use std::str::FromStr;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

/// The format of log lines.
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

/// A filter as it is written in the settings.
///
/// # Errors
///
/// A directive that cannot be parsed, or a bare word that is not a level: it would count as a
/// module, and silence all others.
pub(crate) fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    for directive in text.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        let is_level = directive.parse::<LevelFilter>().is_ok();
        if !is_level && !directive.contains(['=', '[']) {
            return Err(format!(
                "expected off, error, warn, info, debug or trace, or MODULE=LEVEL: {directive:?} is neither"
            ));
        }
    }
    EnvFilter::builder()
        .parse(text)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn filters_that_would_silence_the_log_are_refused() {
        for filter in [
            "info",
            "OFF",
            "",
            "warn,varve_daemon::nbd=debug",
            "varve_store=trace",
        ] {
            parse_filter(filter).unwrap();
        }
        for filter in ["inof", "info,nbd", "info,nbd=loud", "varve_daemon"] {
            let error = parse_filter(filter).unwrap_err();
            assert!(error.contains("expected"), "{filter}: {error}");
        }
    }
}
