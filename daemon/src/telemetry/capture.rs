//! The lines that a test logs.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{io, sync::Arc};

use parking_lot::Mutex;
use tracing::{Level, subscriber::DefaultGuard};

use super::Fields;

/// Lines of this thread, as text, until it is dropped.
pub(crate) struct Captured {
    buffer: Buffer,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Captured {
    pub(crate) fn new() -> Self {
        let buffer = Buffer::default();
        let lines = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(Level::DEBUG)
            .with_ansi(false)
            .without_time()
            .fmt_fields(Fields)
            .with_writer(move || lines.clone())
            .finish();
        Self {
            buffer,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    /// All lines of this crate.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.buffer.0.lock().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains("varve_daemon::"));
        lines.map(str::to_owned).collect()
    }

    /// The only line with this text.
    pub(crate) fn line(&self, text: &str) -> String {
        let mut found = self.lines();
        found.retain(|line| line.contains(text));
        assert_eq!(found.len(), 1, "{text}: {:#?}", self.lines());
        found.remove(0)
    }
}
