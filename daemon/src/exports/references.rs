//! Snapshots that an export tells its changes since.

use varve_store::{ChangeExtent, Error, SnapshotId, SnapshotReader, Store, VolumeId};

use super::refuse;
use varve_nbd::{ChangedExtent, ExportError};

/// Those that a connection has chosen.
#[derive(Debug)]
pub(super) struct References {
    store: Store,
    chosen: Vec<SnapshotReader>,
}

impl References {
    pub(super) fn new(store: Store) -> Self {
        Self {
            store,
            chosen: Vec::new(),
        }
    }

    /// Chooses these, in place of others. Which of them there are, and complete.
    pub(super) async fn choose(&mut self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        self.chosen.clear();
        let found = self.find(snapshots).await?;
        let known = found.iter().map(Option::is_some).collect();
        self.chosen.extend(found.into_iter().flatten());
        Ok(known)
    }

    pub(super) async fn has(&self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        let found = self.find(snapshots).await?;
        Ok(found.iter().map(Option::is_some).collect())
    }

    async fn find(&self, snapshots: &[&str]) -> Result<Vec<Option<SnapshotReader>>, ExportError> {
        let mut found = Vec::with_capacity(snapshots.len());
        for name in snapshots {
            found.push(match self.store.open_snapshot(name).await {
                Ok(reader) => Some(reader),
                Err(Error::NotFound { .. } | Error::NotCompleted { .. }) => None,
                Err(error) => return Err(refuse(error, name, 0)),
            });
        }
        Ok(found)
    }

    /// The last snapshot of a volume, or the one that it was made of.
    pub(super) async fn last_of(
        &self,
        volume: VolumeId,
    ) -> Result<Option<SnapshotId>, ExportError> {
        let record = self.store.volume(&volume.to_string()).await;
        Ok(record.map_err(|error| refuse(error, "", 0))?.parent)
    }

    /// Names of completed snapshots, from this one back in its lineage.
    pub(super) async fn ancestors(
        &self,
        nearest: Option<SnapshotId>,
        limit: usize,
    ) -> Result<Vec<String>, ExportError> {
        let mut names = Vec::new();
        let mut next = nearest;
        while let Some(id) = next.filter(|_| names.len() < limit) {
            match self.store.snapshot(&id.to_string()).await {
                Ok(record) => {
                    next = record.parent;
                    if record.content().is_some() {
                        names.push(record.name);
                    }
                }
                // Those before it are not known any more.
                Err(Error::NotFound { .. }) => break,
                Err(error) => return Err(refuse(error, "", 0)),
            }
        }
        Ok(names)
    }

    /// The chosen one of this number.
    pub(super) fn get(&self, number: usize) -> Result<&SnapshotReader, ExportError> {
        self.chosen
            .get(number)
            .ok_or_else(|| ExportError::Unavailable {
                message: format!("no snapshot was chosen as reference {number}"),
            })
    }
}

pub(super) fn changes(extents: &[ChangeExtent]) -> Vec<ChangedExtent> {
    let extent = |extent: &ChangeExtent| ChangedExtent {
        length_bytes: extent.len_bytes,
        changed: extent.changed,
    };
    extents.iter().map(extent).collect()
}
