//! What can go wrong in a store, by what the caller does about it.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use varve_content::{ChunkId, chunker::NotCanonical, tree::TreeError};

use crate::{
    format::PackId,
    io::{MayBeShortage, RuntimeEnded, is_shortage},
};

/// The result of a store's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing of that name or id. Ask for something else.
    #[error("{what} {name:?} not found")]
    NotFound {
        /// "snapshot", "volume", "upload".
        what: &'static str,
        /// As it was asked for.
        name: String,
    },

    /// The name is taken. Choose another.
    #[error("a {what} named {name:?} already exists ({id})")]
    AlreadyExists {
        /// "snapshot", "volume".
        what: &'static str,
        /// The name.
        name: String,
        /// Who has it.
        id: String,
    },

    /// The volume is attached, which stands in the way. Detach it, or attach it by force.
    #[error("volume {name:?} is attached")]
    Attached {
        /// Its name.
        name: String,
    },

    /// The snapshot's content is not in the store. Wait until it is, or delete the snapshot if it has failed.
    #[error("snapshot {name:?} is {state}: {why}")]
    NotCompleted {
        /// Its name.
        name: String,
        /// "pending" or "failed".
        state: &'static str,
        /// In words.
        why: String,
    },

    /// Snapshots of the volume are pending, which stands in the way. Wait for them, or delete them.
    #[error(
        "volume {name:?} has {count} pending snapshots: wait until they are completed, or delete them"
    )]
    HasPending {
        /// Its name.
        name: String,
        /// How many.
        count: usize,
    },

    /// The request cannot be right, whatever the store holds. Mend it.
    #[error("{0}")]
    Invalid(String),

    /// A chunk is not cut as the chunker cuts.
    #[error(
        "chunk {id} is not cut as chunker version {} cuts: {source}",
        varve_content::chunker::CHUNKER_VERSION
    )]
    NotCanonical {
        /// The chunk.
        id: ChunkId,
        /// Where it differs.
        source: NotCanonical,
    },

    /// A tree node does not hold what it must.
    #[error("tree node is invalid: {0}")]
    Tree(#[from] TreeError),

    /// Bytes on disk are not what was written. Restore them from elsewhere; the rest of the store goes on.
    #[error("{0}")]
    Damaged(#[from] Damage),

    /// The disk is full. Free space and try again.
    #[error("no space left on the file system of {}: {verb}", path.display())]
    Full {
        /// What was being done.
        verb: &'static str,
        /// The file.
        path: PathBuf,
    },

    /// A volume's journal takes no more, whatever the disk's free space. Wait until more of it is in the store, or give
    /// journals a higher limit.
    #[error("the journal in {} has grown to its limit of {limit}", path.display())]
    JournalFull {
        /// The journal's directory.
        path: PathBuf,
        /// The limit that was reached.
        limit: JournalLimit,
    },

    /// A write or sync failed before, and what is on disk is uncertain: no further writes until a restart.
    #[error("the store has stopped writing: {reason}; reads go on, restart to recover")]
    Poisoned {
        /// The first failure.
        reason: String,
    },

    /// A bound was reached. Try again later, or ask for less.
    #[error("limit reached: {0}")]
    Limit(String),

    /// The store holds as many as it may. Delete some.
    #[error("there are {most} {what}, and no more are possible")]
    TooMany {
        /// "volumes".
        what: &'static str,
        /// How many there may be.
        most: u64,
    },

    /// Another process has the data directory open.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),

    /// The data directory was written by a version that this one does not know.
    #[error("cannot open {}: {why}", path.display())]
    Incompatible {
        /// The file.
        path: PathBuf,
        /// What differs.
        why: String,
    },

    /// The system was short of something: file descriptors, memory. Nothing was done; try again later.
    #[error("cannot {verb} {} for now: {source}", path.display())]
    Shortage {
        /// What was being done.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What it was short of.
        source: io::Error,
    },

    /// The operating system refused.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was being done.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// RocksDB refused.
    #[error("the index cannot {verb}: {message}")]
    Index {
        /// What was being done.
        verb: &'static str,
        /// What RocksDB says.
        message: String,
    },

    /// The store is closing.
    #[error("the store is closing")]
    Closing,
}

/// A limit of journals.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum JournalLimit {
    /// Bytes that its files may take: a setting.
    Bytes(u64),
    /// Bytes that the maps of all journals may take in memory.
    MapBytes(u64),
}

impl fmt::Display for JournalLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(max) => write!(f, "{max} bytes"),
            Self::MapBytes(max) => {
                write!(
                    f,
                    "memory: the maps of all journals have {max} bytes in all"
                )
            }
        }
    }
}

impl From<RuntimeEnded> for Error {
    fn from(_: RuntimeEnded) -> Self {
        Self::Closing
    }
}

impl MayBeShortage for Error {
    fn is_shortage(&self) -> bool {
        matches!(self, Self::Shortage { .. })
    }
}

impl Error {
    /// Whether there is no room, on the disk or in a journal: room may come free.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::JournalFull { .. })
    }

    /// An error of the operating system, told apart where the caller acts differently.
    pub(crate) fn io(verb: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full {
                verb,
                path: path.to_owned(),
            },
            _ if is_shortage(&source) => Self::Shortage {
                verb,
                path: path.to_owned(),
                source,
            },
            _ => Self::Io {
                verb,
                path: path.to_owned(),
                source,
            },
        }
    }
}

/// Bytes on disk that are not what was written, and everything known about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where.
    pub place: Place,
    /// The chunk, node or record that should be there (as text: several kinds of id).
    pub what: String,
    /// What is wrong: expected and found.
    pub problem: String,
    /// Names of the snapshots that need it, as far as known.
    pub snapshots: Vec<String>,
}

/// A place on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a pack.
    Pack {
        /// Which.
        pack: PackId,
        /// Offset of the record's header, in bytes.
        offset_bytes: u64,
    },
    /// In another file.
    File {
        /// Which.
        path: PathBuf,
        /// Offset, in bytes.
        offset_bytes: u64,
    },
    /// Nowhere: the index has no entry.
    Missing,
    /// In how nodes fit together, each of them whole.
    Tree,
}

impl std::error::Error for Damage {}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Pack { pack, offset_bytes } => write!(
                f,
                "damage in pack {pack} at offset {offset_bytes}: {}: {}",
                self.what, self.problem
            )?,
            Place::File { path, offset_bytes } => write!(
                f,
                "damage in {} at offset {offset_bytes}: {}: {}",
                path.display(),
                self.what,
                self.problem
            )?,
            Place::Missing => write!(f, "{} is missing: {}", self.what, self.problem)?,
            Place::Tree => write!(f, "damage in a tree: {}: {}", self.what, self.problem)?,
        }
        if !self.snapshots.is_empty() {
            write!(f, " (needed by snapshot {})", self.snapshots.join(", "))?;
        }
        Ok(())
    }
}

impl Damage {
    /// Damage in a pack.
    pub(crate) fn in_pack(
        pack: PackId,
        offset_bytes: u64,
        what: impl fmt::Display,
        problem: impl fmt::Display,
    ) -> Self {
        Self {
            place: Place::Pack { pack, offset_bytes },
            what: what.to_string(),
            problem: problem.to_string(),
            snapshots: Vec::new(),
        }
    }

    /// Damage in a file that is not a pack.
    pub(crate) fn in_file(
        path: &Path,
        offset_bytes: u64,
        what: impl fmt::Display,
        problem: impl fmt::Display,
    ) -> Self {
        Self {
            place: Place::File {
                path: path.to_owned(),
                offset_bytes,
            },
            what: what.to_string(),
            problem: problem.to_string(),
            snapshots: Vec::new(),
        }
    }

    /// Something the index does not have.
    pub(crate) fn missing(what: impl fmt::Display) -> Self {
        Self {
            place: Place::Missing,
            what: what.to_string(),
            problem: "no pack holds it".to_owned(),
            snapshots: Vec::new(),
        }
    }

    /// Nodes that do not fit together.
    pub(crate) fn in_tree(what: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self {
            place: Place::Tree,
            what: what.to_string(),
            problem: problem.to_string(),
            snapshots: Vec::new(),
        }
    }

    /// The same, with the snapshot that was being read.
    pub(crate) fn needed_by(mut self, snapshot: &str) -> Self {
        if !self.snapshots.iter().any(|name| name == snapshot) {
            self.snapshots.push(snapshot.to_owned());
        }
        self
    }
}
