//! The catalogue of crash points: places where a process may die, each with the state that must be
//! found afterwards.
//!
//! A test arms one by the environment of the daemon (`VARVE_FAILPOINT=name` or `name:N` for the Nth
//! time it is reached) and the process ends there as if it were killed. An unarmed point costs one
//! relaxed load.

use std::{
    env,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use crate::{Error, Result};

/// The variable that arms a point.
pub const VARIABLE: &str = "VARVE_FAILPOINT";

macro_rules! failpoints {
    ($($(#[doc = $doc:literal])+ $point:ident = $name:literal,)+) => {
        /// A place where a test may end the process.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Failpoint {
            $($(#[doc = $doc])+ $point,)+
        }

        impl Failpoint {
            /// All crash points.
            pub const ALL: &'static [Self] = &[$(Self::$point),+];

            /// The name of the point in the environment.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }
        }
    };
}

failpoints! {
    /// Chunks are in a pack's buffers, perhaps on disk, not synced and not indexed. After: the
    /// index has only the records that recovery finds undamaged in the pack; no snapshot.
    ChunksAppended = "chunks-appended",
    /// Packs are synced, and the records are not indexed. After: recovery indexes the records
    /// behind the last known position, so that another import need not send them; no snapshot.
    PacksSynced = "packs-synced",
    /// The synced chunks are indexed. After: another import sends none of them; no snapshot.
    GroupIndexed = "group-indexed",
    /// All of a snapshot's content is durable and indexed; the catalog log has no record. After: no
    /// snapshot.
    BeforeCatalogLog = "before-catalog-log",
    /// The record is written to the catalog log and not synced. After: the snapshot is whole, or
    /// not there.
    CatalogLogWritten = "catalog-log-written",
    /// The record is durable in the catalog log; RocksDB does not have it, and the caller has no
    /// answer. After: recovery applies it, and the snapshot is whole.
    CatalogLogSynced = "catalog-log-synced",
    /// RocksDB has the record too, and the caller has no answer. After: the snapshot is whole.
    CatalogApplied = "catalog-applied",
    /// A new catalog log with a checkpoint is durable beside the old one, and has all records.
    /// After: the old log is in place, and a start removes the new one.
    LogCheckpointWritten = "log-checkpoint-written",
    /// The new log has taken the old one's place, and the directory is not synced. After: either
    /// log is in place; both have all records.
    LogCheckpointRenamed = "log-checkpoint-renamed",
    /// A batch of a volume's journal is in the kernel, and its writers have no answer. After: each
    /// of its blocks has the old or the new content.
    JournalWritten = "journal-written",
    /// The epochs of all volumes of an instant have ended; nothing else has happened. After: no
    /// snapshot.
    EpochsEnded = "epochs-ended",
    /// The content of volumes at an instant is durable in their journals; the catalog does not have
    /// the snapshots yet. After: no snapshot.
    InstantDurable = "instant-durable",
    /// A volume's journal was synced; the caller has no answer yet. After: all earlier writes are
    /// there.
    JournalSynced = "journal-synced",
    /// A collection knows which records are needed, and has changed nothing.
    GcMarked = "gc-marked",
    /// Packs are condemned, which is in memory only. After: nothing is.
    GcCondemned = "gc-condemned",
    /// Live records of condemned packs were appended to other packs, and are not synced. After:
    /// everything is where it was.
    GcSurvivorsAppended = "gc-survivors-appended",
    /// The copies are synced, and no row has moved. After: the same; the copies are dead.
    GcSurvivorsSynced = "gc-survivors-synced",
    /// Rows have moved, and the condemned packs are emptied. After: the next start removes them.
    GcMoved = "gc-moved",
    /// The files of emptied packs are removed; the index still has their states. After: the next
    /// start forgets them.
    GcUnlinked = "gc-unlinked",
}

/// 0: none; otherwise the armed point's number + 1.
static ARMED: AtomicU32 = AtomicU32::new(0);
/// Number of times that the armed point is passed first.
static REMAINING: AtomicU64 = AtomicU64::new(0);

/// Arms the point that the environment names, if it names one.
pub fn arm_from_environment() -> Result<Option<Failpoint>> {
    let Ok(wanted) = env::var(VARIABLE) else {
        return Ok(None);
    };
    let (name, count) = match wanted.split_once(':') {
        None => (wanted.as_str(), 1),
        Some((name, count)) => (
            name,
            count.parse::<u64>().map_err(|_| {
                Error::Invalid(format!("{VARIABLE}={wanted:?}: {count:?} is not a count"))
            })?,
        ),
    };
    let point = Failpoint::ALL
        .iter()
        .copied()
        .find(|point| point.name() == name)
        .ok_or_else(|| Error::Invalid(format!("{VARIABLE}={wanted:?}: there is no such point")))?;
    REMAINING.store(count.max(1), Ordering::Relaxed);
    ARMED.store(point as u32 + 1, Ordering::Relaxed);
    Ok(Some(point))
}

/// Ends the process here if this point is armed and its turn has come.
pub(crate) fn reach(point: Failpoint) {
    if ARMED.load(Ordering::Relaxed) == point as u32 + 1
        && REMAINING.fetch_sub(1, Ordering::Relaxed) == 1
    {
        tracing::error!(point = point.name(), "ending the process at a failpoint");
        std::process::abort();
    }
}
