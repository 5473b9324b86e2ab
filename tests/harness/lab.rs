//! A daemon on an empty store, with a directory for files: the start of most tests.

use std::path::{Path, PathBuf};

use crate::{
    daemon::{Options, Varved},
    image,
    scratch::Scratch,
    snapctl::Snapctl,
};

/// A running daemon and a directory for files.
#[derive(Debug)]
pub struct Lab {
    // The field order makes the daemon end before its directory is removed.
    /// The daemon.
    pub varved: Varved,
    /// Parent of the data directory, and a place for files.
    pub scratch: Scratch,
}

impl Lab {
    /// An empty store and its daemon.
    #[must_use]
    pub fn new() -> Self {
        Self::with(|options| options)
    }

    /// The same, with other options.
    #[must_use]
    pub fn with(change: impl FnOnce(Options) -> Options) -> Self {
        let scratch = Scratch::new();
        let varved = change(Options::new(scratch.join("data"))).start();
        Self { varved, scratch }
    }

    /// A `snapctl` for the daemon.
    #[must_use]
    pub fn snapctl(&self) -> Snapctl {
        self.varved.snapctl()
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.join("data")
    }

    /// Makes a sparse image.
    #[must_use]
    pub fn image(&self, name: &str, size_bytes: u64, seed: u64) -> PathBuf {
        image::make(&self.scratch, name, size_bytes, seed)
    }

    /// Exports a snapshot, and asserts that it equals the file.
    pub fn assert_content(&self, snapshot: &str, file: &Path) {
        let exported = self.scratch.join("exported");
        let _ = std::fs::remove_file(&exported);
        self.snapctl().export(snapshot, &exported);
        crate::files::assert_same(file, &exported);
        std::fs::remove_file(&exported).expect("remove an exported file");
    }

    /// Starts another daemon after the first one has ended.
    pub fn restart(&mut self) {
        self.restart_with(|options| options);
    }

    /// The same, with other options.
    pub fn restart_with(&mut self, change: impl FnOnce(Options) -> Options) {
        assert!(self.varved.ended().is_some(), "varved still runs");
        self.varved = change(Options::new(self.data_dir())).start();
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}
