//! The log: to standard error, where a service manager collects it.
//!
//! Invariants: logging never disturbs the daemon (see `sink`), and one event is one line: text from
//! clients, peers and files has no character that could forge another line or control the terminal.

#[cfg(test)]
pub(crate) mod capture;
mod sink;

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal},
    panic,
    time::Duration,
};

use tracing::{
    error,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    field::RecordFields,
    fmt::{FormatFields, MakeWriter, format},
};
use varve_content::printable::{Escaping, printable_json};

use self::sink::{Guard, Sink};
use crate::{
    config::{LogConfig, LogFormat, parse_filter},
    tasks::panic_message,
};

/// Time that the end of the process waits for queued lines.
const FLUSH_AT_END: Duration = Duration::from_secs(1);
/// Time that a panic waits for its line to be written: the process may be about to abort.
const FLUSH_AT_PANIC: Duration = Duration::from_millis(200);

/// The reason why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The system cannot start a thread.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(io::Error),
    /// Logging was started before.
    #[error("cannot start logging: {0}")]
    Taken(String),
}

/// The running log. Dropping it writes the queued lines.
pub struct Telemetry {
    sink: Sink,
    set_filter: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
    _guard: Guard,
}

impl Telemetry {
    /// Replaces the filter of the log.
    ///
    /// # Errors
    ///
    /// The filter is invalid; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), String> {
        (self.set_filter)(parse_filter(filter)?)
    }

    /// Waits a moment for queued lines: for a process that ends without dropping this.
    pub fn flush(&self) {
        self.sink.flush(FLUSH_AT_END);
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

/// Starts logging for this process, panics included.
///
/// The system cannot start a thread, or logging was started before.
///
/// The system gives no thread, or logging was started before.
pub fn start(config: &LogConfig) -> Result<Telemetry, TelemetryError> {
    let is_json = config.format == LogFormat::Json;
    let (sink, guard) = Sink::start(io::stderr(), is_json).map_err(TelemetryError::Thread)?;
    let taken = |error: &dyn fmt::Display| TelemetryError::Taken(error.to_string());
    let filter = parse_filter(&config.filter).map_err(|why| taken(&why))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // The subscriber would print its errors to standard error, and panic if it cannot.
        .log_internal_errors(false);
    let set_filter: Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;
    match config.format {
        LogFormat::Text => {
            let lines = lines
                .with_ansi(io::stderr().is_terminal())
                .fmt_fields(Fields)
                .with_writer(Lines {
                    sink: sink.clone(),
                    is_json: false,
                })
                .with_filter_reloading();
            let handle = lines.reload_handle();
            set_filter = Box::new(move |filter| handle.reload(filter).map_err(|it| it.to_string()));
            lines.try_init().map_err(|error| taken(&error))?;
        }
        LogFormat::Json => {
            let lines = lines
                .json()
                .flatten_event(true)
                .with_writer(Lines {
                    sink: sink.clone(),
                    is_json: true,
                })
                .with_filter_reloading();
            let handle = lines.reload_handle();
            set_filter = Box::new(move |filter| handle.reload(filter).map_err(|it| it.to_string()));
            lines.try_init().map_err(|error| taken(&error))?;
        }
    }
    let at_panic = sink.clone();
    panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        error!(
            panic = panic_message(info.payload()),
            place,
            thread = thread.name().unwrap_or_default(),
            "panic"
        );
        at_panic.flush(FLUSH_AT_PANIC);
    }));
    Ok(Telemetry {
        sink,
        set_filter,
        _guard: guard,
    })
}

/// Writes the fields of a line for people.
#[derive(Debug)]
struct Fields;

impl<'a> FormatFields<'a> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: format::Writer<'a>, fields: R) -> fmt::Result {
        let mut line = FieldWriter {
            writer,
            is_first: true,
            result: Ok(()),
        };
        fields.record(&mut line);
        line.result
    }
}

struct FieldWriter<'a> {
    writer: format::Writer<'a>,
    is_first: bool,
    result: fmt::Result,
}

impl Visit for FieldWriter<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let name = field.name();
        // Skip the source location that `tracing_log` adds to records of libraries that use `log`.
        if self.result.is_err() || name.starts_with("log.") {
            return;
        }
        let space = if self.is_first { "" } else { " " };
        self.is_first = false;
        self.result = match name {
            "message" => write!(self.writer, "{space}"),
            _ => write!(self.writer, "{space}{name}="),
        }
        .and_then(|()| write!(Escaping(&mut self.writer), "{value:?}"));
    }
}

/// Hands whole lines to the sink.
#[derive(Debug, Clone)]
struct Lines {
    sink: Sink,
    is_json: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Each write is one line: the subscriber puts it together first.
impl io::Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match str::from_utf8(line) {
            Ok(text) if self.is_json => self.sink.put(printable_json(text).as_bytes()),
            _ => self.sink.put(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn lines_say_nothing_of_the_sources_of_libraries() {
        let log = capture::Captured::new();
        // As `tracing_log` makes them of records.
        tracing::warn!(
            "log.target" = "x",
            "log.file" = "/y/z.rs",
            "log.line" = 3,
            "words"
        );
        tracing::warn!(a = 1, b = "two", "words");
        tracing::warn!(a = 1);
        let lines = log.lines();
        let lines: Vec<_> = lines
            .iter()
            .map(|line| line.split_once("tests: ").unwrap().1)
            .collect();
        assert_eq!(lines, ["words", "words a=1 b=\"two\"", "a=1"]);
    }
}
