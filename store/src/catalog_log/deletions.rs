//! Deletions of volumes whose journals are still on the disk.
//!
//! The store removes a journal only if the log says that its volume was deleted. Usually the
//! journal is long gone, and the deletion is of no use any more. The others are few: a log that is
//! made shorter keeps them, and a start keeps only them in memory.

use std::{collections::BTreeMap, io::ErrorKind, path::Path};

use crate::{
    Error, Result,
    format::{Change, names},
    io::Disk,
    meta::{VolumeId, VolumeRecord},
};

/// The volumes that have a directory, in the order of their ids.
///
/// # Errors
///
/// Errors of listing the directory of all volumes.
pub(crate) fn journals(disk: &dyn Disk, data_dir: &Path) -> Result<Vec<VolumeId>> {
    let volumes = names::volumes(data_dir);
    let mut ids: Vec<_> = match disk.list(&volumes) {
        Ok(present) => present
            .iter()
            .filter_map(|name| names::volume_of(name))
            .collect(),
        // No volume was ever opened.
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(Error::io("list", &volumes, source)),
    };
    ids.sort_unstable();
    Ok(ids)
}

/// For some volumes, whether a log says that they were deleted.
#[derive(Debug, Default)]
pub(crate) struct Deletions(BTreeMap<VolumeId, bool>);

impl Deletions {
    /// Deletions of these volumes, none of them seen yet.
    pub(crate) fn of(volumes: impl IntoIterator<Item = VolumeId>) -> Self {
        Self(volumes.into_iter().map(|id| (id, false)).collect())
    }

    /// Notes a change of the log.
    pub(crate) fn note(&mut self, change: &Change) {
        if let Some(id) = change.as_deleted::<VolumeRecord>()
            && let Some(deleted) = self.0.get_mut(&id)
        {
            *deleted = true;
        }
    }

    /// Adds the deletions that `others` has of the same volumes.
    pub(crate) fn join(&mut self, others: &Self) {
        for (id, deleted) in &mut self.0 {
            *deleted |= others.has(*id);
        }
    }

    /// Forgets a volume.
    pub(crate) fn forget(&mut self, id: VolumeId) {
        self.0.remove(&id);
    }

    /// Returns true if there are no volumes to look for.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if the volume was deleted.
    pub(crate) fn has(&self, id: VolumeId) -> bool {
        self.0.get(&id).copied().unwrap_or_default()
    }

    /// The volumes that were deleted.
    pub(crate) fn iter(&self) -> impl Iterator<Item = VolumeId> {
        let deleted = self.0.iter().filter(|(_, deleted)| **deleted);
        deleted.map(|(id, _)| *id)
    }
}
