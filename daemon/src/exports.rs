//! Snapshots as NBD exports: `snapshot/<name>`, or `snapshot/<id>`, read-only.

use bytes::Bytes;
use varve_store::{Error, ListQuery, SnapshotReader, SnapshotRecord, Store};

use crate::nbd::{Access, Export, ExportError, ExportInfo, Exports, Extent, Piece};

/// What stands in front of a snapshot's name.
const PREFIX: &str = "snapshot/";

/// The snapshots of a store as exports.
#[derive(Debug)]
pub struct SnapshotExports {
    store: Store,
}

impl SnapshotExports {
    /// The exports of this store.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Exports for SnapshotExports {
    type Export = SnapshotExport;

    async fn list(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let after_name = match after {
            None => None,
            Some(after) => match after.strip_prefix(PREFIX) {
                Some(name) => Some(name.to_owned()),
                // All exports have the prefix: they are all before `after`, or all behind it.
                None if after < PREFIX => None,
                None => return Ok(Vec::new()),
            },
        };
        let query = ListQuery {
            after_name,
            limit,
            ..ListQuery::default()
        };
        let records = self
            .store
            .list_snapshots(query)
            .await
            .map_err(|error| refuse(error, PREFIX, 0))?;
        Ok(records
            .iter()
            .map(|record| info(format!("{PREFIX}{}", record.name), record))
            .collect())
    }

    async fn open(&self, name: &str) -> Result<SnapshotExport, ExportError> {
        let Some(key) = name.strip_prefix(PREFIX) else {
            return Err(ExportError::NotFound {
                name: name.to_owned(),
            });
        };
        let reader = self
            .store
            .open_snapshot(key)
            .await
            .map_err(|error| refuse(error, name, 0))?;
        Ok(SnapshotExport {
            info: info(name.to_owned(), reader.record()),
            reader,
        })
    }
}

fn info(name: String, record: &SnapshotRecord) -> ExportInfo {
    ExportInfo {
        name,
        description: format!("snapshot {} of {} bytes", record.id, record.size_bytes),
        size_bytes: record.size_bytes,
        access: Access::ReadOnly,
    }
}

/// One snapshot.
#[derive(Debug)]
pub struct SnapshotExport {
    info: ExportInfo,
    reader: SnapshotReader,
}

impl SnapshotExport {
    fn refuse(&self, offset: u64) -> impl FnOnce(Error) -> ExportError {
        move |error| refuse(error, &self.info.name, offset)
    }
}

impl Export for SnapshotExport {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    async fn read(&self, offset: u64, length_bytes: u32) -> Result<Vec<Piece>, ExportError> {
        let pieces = self
            .reader
            .read(offset, length_bytes as usize)
            .await
            .map_err(self.refuse(offset))?;
        Ok(pieces.into_iter().map(piece).collect())
    }

    async fn extents(&self, offset: u64, length_bytes: u64) -> Result<Vec<Extent>, ExportError> {
        let extents = self
            .reader
            .extents(offset, length_bytes)
            .await
            .map_err(self.refuse(offset))?;
        Ok(extents
            .into_iter()
            .map(|extent| Extent {
                length_bytes: extent.len_bytes,
                hole: extent.hole,
            })
            .collect())
    }

    async fn prefetch(&self, offset: u64, length_bytes: u32) -> Result<(), ExportError> {
        self.reader
            .prefetch(offset, length_bytes as usize)
            .await
            .map_err(self.refuse(offset))
    }

    async fn write(&self, _: u64, _: Bytes, _: bool) -> Result<(), ExportError> {
        Err(ExportError::ReadOnly)
    }

    async fn write_zeroes(&self, _: u64, _: u32, _: bool, _: bool) -> Result<(), ExportError> {
        Err(ExportError::ReadOnly)
    }

    async fn trim(&self, _: u64, _: u32, _: bool) -> Result<(), ExportError> {
        Err(ExportError::ReadOnly)
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Err(ExportError::ReadOnly)
    }
}

fn piece(piece: varve_store::Piece) -> Piece {
    match piece {
        varve_store::Piece::Data(bytes) => Piece::Data(bytes),
        // Part of a read of at most u32::MAX bytes.
        varve_store::Piece::Zero(bytes) => Piece::Zero(u32::try_from(bytes).unwrap_or(u32::MAX)),
    }
}

fn refuse(error: Error, name: &str, offset: u64) -> ExportError {
    match error {
        Error::NotFound { .. } => ExportError::NotFound {
            name: name.to_owned(),
        },
        Error::Damaged(damage) => ExportError::Damaged {
            offset,
            message: damage.to_string(),
        },
        Error::Closing => ExportError::Stopping,
        other => ExportError::Unavailable {
            message: other.to_string(),
        },
    }
}
