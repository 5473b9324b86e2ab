//! The errors of a store. Their kinds tell the caller what to do.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use varve_content::{ChunkId, chunker::NotCanonical, tree::TreeError};

use crate::{
    format::{Name, PackId, record::account::Quota},
    io::{MayBeShortage, RuntimeEnded, is_shortage},
};

/// The result of a store's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no record with that name or id. Check the name.
    #[error("{what} {name:?} not found")]
    NotFound {
        /// "snapshot", "volume", "upload".
        what: &'static str,
        /// The name or id as requested.
        name: String,
    },

    /// The name is taken. Choose another.
    #[error("a {what} named {name:?} already exists ({id})")]
    AlreadyExists {
        /// "snapshot", "volume".
        what: &'static str,
        /// The name.
        name: String,
        /// Id of the record that has the name.
        id: String,
    },

    /// The call needs a detached volume, and this one is attached. Detach it, or attach it by
    /// force.
    #[error("volume {name:?} is attached")]
    Attached {
        /// Its name.
        name: String,
    },

    /// The snapshot's content is not in the store. Wait until it is, or delete the snapshot if it
    /// has failed.
    #[error("snapshot {name:?} is {state}: {why}")]
    NotCompleted {
        /// Its name.
        name: String,
        /// "pending" or "failed".
        state: &'static str,
        /// In words.
        why: String,
    },

    /// The call needs a volume without pending snapshots. Wait for them, or delete them.
    #[error(
        "volume {name:?} has {count} pending snapshots: wait until they are completed, or delete \
        them"
    )]
    HasPending {
        /// Its name.
        name: String,
        /// Number of pending snapshots.
        count: usize,
    },

    /// An account that owns something stays.
    #[error(
        "account {account:?} owns the {what} {name}: delete all that it owns, or give snapshots and \
        volumes to another account"
    )]
    OwnsRecords {
        /// Name of the account.
        account: String,
        /// The kind of record.
        what: &'static str,
        /// Its name or id. There may be more.
        name: String,
    },

    /// The account does not share with everybody, by a setting of it. Share with accounts, or
    /// change the setting.
    #[error("account {account:?} blocks public access: it shares {what}s with named accounts only")]
    PublicAccessBlocked {
        /// "snapshot" or "image".
        what: &'static str,
        /// Name of the account.
        account: String,
    },

    /// Something needs the record. Deregister the image first.
    #[error(
        "{what} {name:?} is needed by image {image}, {image_name:?}: deregister the image first"
    )]
    Needed {
        /// "snapshot".
        what: &'static str,
        /// Its name.
        name: String,
        /// Id of an image that needs it. There may be more.
        image: String,
        /// The name of that image.
        image_name: String,
    },

    /// The image cannot be used now.
    #[error("image {name:?} is {state}: {why}")]
    ImageUnavailable {
        /// Its name.
        name: String,
        /// "pending", "failed" or "disabled".
        state: &'static str,
        /// In words.
        why: String,
    },

    /// The image is protected. End the protection first.
    #[error("image {name:?} is protected: {why}")]
    Protected {
        /// Its name.
        name: String,
        /// In words.
        why: String,
    },

    /// The request is invalid, whatever the state of the store. Correct it.
    #[error("{0}")]
    Invalid(String),

    /// A chunk is not cut by the rule of the chunker.
    #[error(
        "chunk {id} is not cut as chunker version {} cuts: {source}",
        varve_content::chunker::CHUNKER_VERSION
    )]
    NotCanonical {
        /// The chunk.
        id: ChunkId,
        /// The difference to the rule.
        source: NotCanonical,
    },

    /// A tree node is not valid.
    #[error("tree node is invalid: {0}")]
    Tree(#[from] TreeError),

    /// Bytes on disk are not as they were written. Restore them from elsewhere; the rest of the
    /// store continues.
    #[error("{0}")]
    Damaged(#[from] Damage),

    /// The disk is full. Free space and try again.
    #[error("cannot {verb} {}: no space left on its file system", path.display())]
    Full {
        /// The operation on the file, as a verb: "write".
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
    },

    /// The disk has only the space that is reserved for the index and the catalog log, so the store
    /// refuses chunks. Free space and retry.
    #[error(
        "cannot write chunks: no space left on the file system of {} except the {} MiB that are \
         kept \
        for the index",
        path.display(),
        kept_bytes >> 20
    )]
    Reserved {
        /// The data directory.
        path: PathBuf,
        /// Reserved bytes.
        kept_bytes: u64,
    },

    /// The disk was full, and records that were not durable yet were dropped. Free space, and send
    /// them again.
    #[error("the disk was full, and unsynced records were dropped: free space and upload again")]
    Dropped,

    /// A volume's journal is at its limit, whatever the free space of the disk. Wait for a
    /// checkpoint, or raise the limit of journals.
    #[error("the journal in {} has grown to its limit of {limit}", path.display())]
    JournalFull {
        /// The journal's directory.
        path: PathBuf,
        /// The limit that was reached.
        limit: JournalLimit,
    },

    /// A write or sync failed before, and the state of the disk is uncertain: no further writes
    /// until a restart.
    #[error("the store has stopped writing: {reason}; reads continue, restart to recover")]
    Poisoned {
        /// The first failure.
        reason: String,
    },

    /// A limit was reached. Retry later, or request less.
    #[error("limit reached: {0}")]
    Limit(String),

    /// The store has the largest number of such records. Delete some.
    #[error("the limit of {most} {what} is reached")]
    TooMany {
        /// "volumes".
        what: &'static str,
        /// The limit.
        most: u64,
    },

    /// An account would have more than its quota allows. Delete some, or have the quota raised.
    #[error("{}", quota_words(account, *quota, *limit, *used, *more))]
    Quota {
        /// Name of the account.
        account: String,
        /// The quota.
        quota: Quota,
        /// Its limit.
        limit: u64,
        /// What the account has.
        used: u64,
        /// What it would get.
        more: u64,
    },

    /// A collection is under way. Wait for its end, or stop it.
    #[error("a garbage collection is running: wait until it ends, or stop it")]
    Collecting,

    /// Another process has the data directory open.
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),

    /// The data directory was written by an unknown version.
    #[error("cannot open {}: {why}", path.display())]
    Incompatible {
        /// The file.
        path: PathBuf,
        /// The difference.
        why: String,
    },

    /// The system was short of a resource: file descriptors or memory. Nothing was done; retry
    /// later.
    #[error("cannot {verb} {} for now: {source}", path.display())]
    Shortage {
        /// The operation on the file, as a verb.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system, which names the missing resource.
        source: io::Error,
    },

    /// The operating system refused an operation on a file.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// The operation on the file, as a verb.
        verb: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },

    /// The operating system refused another operation: to start a thread, to return random numbers.
    #[error("cannot {verb}: {source}")]
    System {
        /// The operation, as a verb: "start a thread".
        verb: &'static str,
        /// Why.
        source: io::Error,
    },

    /// RocksDB refused.
    #[error("the index cannot {verb}: {message}")]
    Index {
        /// The operation, as a verb.
        verb: &'static str,
        /// The message of RocksDB.
        message: String,
    },

    /// The store contradicts itself: a bug of the program. Report it.
    #[error("internal error of the store: {0}")]
    Internal(String),

    /// The store is closing.
    #[error("the store is closing")]
    Closing,
}

fn quota_words(account: &str, quota: Quota, limit: u64, used: u64, more: u64) -> String {
    let left = limit.saturating_sub(used);
    format!(
        "beyond the quota of {quota} of account {account:?}: limit {limit}, used {used}, left \
         {left}, needed {more}"
    )
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
    /// Returns true if the disk or a journal is full, or a quota of stored bytes is used up: the
    /// operator has to free space, or a checkpoint frees it.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Full { .. }
                | Self::Reserved { .. }
                | Self::Dropped
                | Self::JournalFull { .. }
                | Self::Quota {
                    quota: Quota::StoredBytes,
                    ..
                }
        )
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

/// Bytes on disk that are not as they were written, and everything known about them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Where.
    pub place: Place,
    /// The expected content.
    pub what: Subject,
    /// A description: expected and found.
    pub problem: String,
    /// Names of the snapshots that need it, as far as known.
    pub snapshots: Vec<String>,
}

/// The expected content of a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A chunk or a tree node.
    Record(Name),
    /// Anything else, in words: "a root of 4096 bytes".
    Other(String),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Record(name) => name.fmt(f),
            Self::Other(words) => f.write_str(words),
        }
    }
}

impl From<Name> for Subject {
    fn from(name: Name) -> Self {
        Self::Record(name)
    }
}

impl From<String> for Subject {
    fn from(words: String) -> Self {
        Self::Other(words)
    }
}

impl From<&str> for Subject {
    fn from(words: &str) -> Self {
        Self::Other(words.to_owned())
    }
}

/// A place on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a pack.
    Pack {
        /// The pack.
        pack: PackId,
        /// Offset of the record's header, in bytes.
        offset_bytes: u64,
    },
    /// In another file.
    File {
        /// The file.
        path: PathBuf,
        /// Offset, in bytes.
        offset_bytes: u64,
    },
    /// Nowhere: the index has no entry.
    Missing,
    /// In a tree: the nodes are valid and do not fit together.
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
        what: impl Into<Subject>,
        problem: impl fmt::Display,
    ) -> Self {
        Self {
            place: Place::Pack { pack, offset_bytes },
            what: what.into(),
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
            what: Subject::Other(what.to_string()),
            problem: problem.to_string(),
            snapshots: Vec::new(),
        }
    }

    /// Something the index does not have.
    pub(crate) fn missing(what: impl Into<Subject>) -> Self {
        Self {
            place: Place::Missing,
            what: what.into(),
            problem: "it is in no pack".to_owned(),
            snapshots: Vec::new(),
        }
    }

    /// Nodes that do not fit together.
    pub(crate) fn in_tree(what: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self {
            place: Place::Tree,
            what: Subject::Other(what.to_string()),
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
