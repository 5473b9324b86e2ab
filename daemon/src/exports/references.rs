//! Snapshots against which an export reports changes.

use varve_nbd::{ChangedExtent, ExportError};
use varve_store::{ChangeExtent, SnapshotReader};

use super::refuse;
use crate::{
    auth::Caller,
    service::{Descendant, Service},
};

/// The snapshots that a connection has chosen.
#[derive(Debug)]
pub(super) struct References {
    /// Whose snapshots can be chosen; `None`: there are none.
    seen_by: Option<(Service, Caller)>,
    chosen: Vec<SnapshotReader>,
}

impl References {
    pub(super) fn new(service: Service, caller: Caller) -> Self {
        Self {
            seen_by: Some((service, caller)),
            chosen: Vec::new(),
        }
    }

    /// For a client that sees one export and nothing else.
    pub(super) const fn none() -> Self {
        Self {
            seen_by: None,
            chosen: Vec::new(),
        }
    }

    /// Chooses these snapshots in place of earlier ones. Returns those that exist and are
    /// completed.
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
        if snapshots.is_empty() {
            return Ok(Vec::new());
        }
        let Some((service, caller)) = &self.seen_by else {
            return Ok(snapshots.iter().map(|_| None).collect());
        };
        let found = service.open_references(caller, snapshots).await;
        found.map_err(|error| refuse(error, "", 0))
    }

    /// Names of completed snapshots that an export descends from, the nearest first.
    pub(super) async fn ancestors(
        &self,
        of: Descendant,
        limit: usize,
    ) -> Result<Vec<String>, ExportError> {
        let Some((service, caller)) = &self.seen_by else {
            return Ok(Vec::new());
        };
        let names = service.ancestors(caller, of, limit).await;
        names.map_err(|error| refuse(error, "", 0))
    }

    /// The chosen snapshot with this number.
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
