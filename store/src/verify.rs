//! The verifier: reads every node and chunk of a snapshot from its pack and checks it.
//!
//! It reads nodes and chunks past the store's caches, and past the page cache if the file system
//! can do that, because caches prove nothing about the disk.
//!
//! It continues after damage: a violation is a finding, not an end. Everything below a broken node
//! counts as one violation, that of the node.

use std::{fmt, sync::Arc};

use varve_content::{
    block::{BLOCK_BYTES, SEGMENT_BYTES},
    tree::{LeafEntry, LeafWalk},
};

use crate::{
    Damage, Error, Place, Result,
    engine::walked,
    error::Subject,
    format::{Name, PackId},
    read::{DiskSource, Segment, SnapshotReader},
};

/// Damage to a snapshot. Its text names pack, offset and id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The kind of the violation.
    pub kind: ViolationKind,
    /// The first offset in the snapshot, in bytes, that the damage affects.
    pub offset_bytes: u64,
}

/// A kind of damage to a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViolationKind {
    /// A chunk or a tree node is missing or damaged.
    Damage(Damage),
    /// The tree holds another amount of data than the snapshot's record says.
    Length {
        /// The snapshot's name.
        snapshot: String,
        /// Bytes of data in the tree.
        found_bytes: u64,
        /// Bytes of data by the record.
        recorded_bytes: u64,
    },
}

impl Violation {
    /// The damaged pack, if there is one.
    #[must_use]
    pub const fn pack(&self) -> Option<PackId> {
        match &self.kind {
            ViolationKind::Damage(Damage {
                place: Place::Pack { pack, .. },
                ..
            }) => Some(*pack),
            _ => None,
        }
    }

    /// Offset of the damaged record in its pack, in bytes.
    #[must_use]
    pub const fn pack_offset_bytes(&self) -> Option<u64> {
        match &self.kind {
            ViolationKind::Damage(Damage {
                place: Place::Pack { offset_bytes, .. },
                ..
            }) => Some(*offset_bytes),
            _ => None,
        }
    }

    /// The damaged or missing chunk or node, if it is known.
    #[must_use]
    pub const fn name(&self) -> Option<Name> {
        match &self.kind {
            ViolationKind::Damage(Damage {
                what: Subject::Record(name),
                ..
            }) => Some(*name),
            _ => None,
        }
    }

    /// Names of the snapshots that need the damaged or missing record, as far as known.
    #[must_use]
    pub fn needed_by(&self) -> &[String] {
        match &self.kind {
            ViolationKind::Damage(damage) => &damage.snapshots,
            ViolationKind::Length { snapshot, .. } => std::slice::from_ref(snapshot),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ViolationKind::Damage(damage) => damage.fmt(f),
            ViolationKind::Length {
                snapshot,
                found_bytes,
                recorded_bytes,
            } => write!(
                f,
                "the tree of snapshot {snapshot:?} holds {found_bytes} bytes of data, its record \
                says {recorded_bytes}"
            ),
        }
    }
}

/// The progress of a verification, and the violations since the last report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Chunks and leaves checked so far.
    pub checked: u64,
    /// Bytes of the snapshot checked so far, sound or not.
    pub checked_bytes: u64,
    /// Bytes of the snapshot to check in all.
    pub total_bytes: u64,
    /// Violations found since the last report.
    pub violations: Vec<Violation>,
}

/// A verification under way.
#[derive(Debug)]
pub struct SnapshotVerify {
    reader: SnapshotReader,
    disk: DiskSource,
    walk: LeafWalk,
    progress: VerifyProgress,
    next_segment: u32,
    finished: bool,
}

impl SnapshotVerify {
    /// Begins to verify the content of a reader.
    pub(crate) async fn begin(reader: SnapshotReader) -> Result<Self> {
        let disk = DiskSource::new(Arc::clone(reader.engine()));
        let root = disk.root(reader.root().id()).await;
        let root = root.map_err(|error| reader.named(error))?;
        Ok(Self {
            walk: LeafWalk::new(&root, 0),
            progress: VerifyProgress {
                total_bytes: reader.record().completed()?.data_bytes,
                ..VerifyProgress::default()
            },
            reader,
            disk,
            next_segment: 0,
            finished: false,
        })
    }

    /// Checks the next segment; `None` when all were checked.
    pub async fn next(&mut self) -> Result<Option<VerifyProgress>> {
        if self.finished {
            return Ok(None);
        }
        self.progress.violations.clear();
        match self.walk.next(&self.disk).await.map_err(walked) {
            Ok(None) => {
                self.finished = true;
                self.compare_length();
            }
            Ok(Some((segment, leaf))) => {
                self.next_segment = segment + 1;
                self.progress.checked += 1;
                match self.disk.segment(segment, leaf).await {
                    Ok(segment) => self.check_segment(&segment).await?,
                    Err(error) => self.found(segment, 0, error)?,
                }
            }
            // Leaves behind a broken inner node cannot be found: the walk would ask for it again.
            Err(error) => {
                self.finished = true;
                self.found(self.next_segment, 0, error)?;
            }
        }
        Ok(Some(self.progress.clone()))
    }

    async fn check_segment(&mut self, segment: &Segment) -> Result<()> {
        let index = segment.index();
        for (position, checked) in self.disk.check_chunks(&self.reader, segment).await? {
            self.progress.checked += 1;
            if let Err(damage) = checked {
                let block = segment
                    .leaf()
                    .entries()
                    .get(position)
                    .map_or(0, |entry| entry.start_block);
                self.found(index, block, damage.into())?;
            }
        }
        let blocks: u64 = segment
            .leaf()
            .entries()
            .iter()
            .map(|entry: &LeafEntry| u64::from(entry.blocks))
            .sum();
        self.progress.checked_bytes += blocks * BLOCK_BYTES as u64;
        Ok(())
    }

    /// The record has the amount of data: less means that some of it was not reached.
    fn compare_length(&mut self) {
        self.progress.checked_bytes = self.progress.checked_bytes.min(self.reader.size_bytes());
        if self.progress.checked_bytes != self.progress.total_bytes {
            self.progress.violations.push(Violation {
                kind: ViolationKind::Length {
                    snapshot: self.reader.record().label().into_owned(),
                    found_bytes: self.progress.checked_bytes,
                    recorded_bytes: self.progress.total_bytes,
                },
                offset_bytes: 0,
            });
        }
    }

    /// Takes damage as a finding; anything else ends the verification.
    fn found(&mut self, segment: u32, block: u32, error: Error) -> Result<()> {
        match self.reader.named(error) {
            Error::Damaged(damage) => {
                self.progress.violations.push(Violation {
                    kind: ViolationKind::Damage(damage),
                    offset_bytes: u64::from(segment) * SEGMENT_BYTES as u64
                        + u64::from(block) * BLOCK_BYTES as u64,
                });
                Ok(())
            }
            other => Err(other),
        }
    }
}
