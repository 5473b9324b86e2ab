//! Snapshots as NBD exports: `snapshot/<name>`, or `snapshot/<id>`, read-only.

use bytes::Bytes;
use varve_store::{Error, ReadAhead, SnapshotReader, SnapshotRecord, Store};

use super::{
    list,
    references::{self, References},
    refuse,
};
use varve_nbd::{Access, ChangedExtent, Export, ExportError, ExportInfo, Extent, Piece};

/// What stands in front of a snapshot's name.
pub(super) const PREFIX: &str = "snapshot/";

/// The snapshots of a store as exports.
#[derive(Debug)]
pub(super) struct SnapshotExports {
    store: Store,
}

impl SnapshotExports {
    /// The exports of this store.
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }

    /// Those whose snapshot's name sorts after a name, and that are complete.
    pub(super) async fn list(
        &self,
        after_name: Option<String>,
        limit: usize,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let page = |query| self.store.list_snapshots(query);
        let export = |record: &SnapshotRecord| {
            let is_complete = record.content().is_some();
            is_complete.then(|| info(format!("{PREFIX}{}", record.name), record))
        };
        let name = |record: &SnapshotRecord| record.name.clone();
        let found = list(after_name, limit, page, export, name).await;
        found.map_err(|error| refuse(error, PREFIX, 0))
    }

    /// The export `name` of the snapshot `key`.
    pub(super) async fn open(&self, name: &str, key: &str) -> Result<SnapshotExport, ExportError> {
        let reader = self
            .store
            .open_snapshot(key)
            .await
            .map_err(|error| refuse(error, name, 0))?;
        Ok(SnapshotExport {
            info: info(name.to_owned(), reader.record()),
            references: References::new(self.store.clone()),
            ahead: ReadAhead::default(),
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
    references: References,
    ahead: ReadAhead,
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
        let end = self.info.size_bytes;
        self.ahead.follow(offset, length_bytes.into(), end, |next| {
            let reader = self.reader.clone();
            async move {
                let length_bytes = usize::try_from(next.end - next.start).unwrap_or(usize::MAX);
                reader.read_ahead(next.start, length_bytes).await;
            }
        });
        let pieces = self
            .reader
            .read(offset, length_bytes as usize)
            .await
            .map_err(self.refuse(offset))?;
        Ok(super::pieces(pieces))
    }

    async fn extents(&self, offset: u64, length_bytes: u64) -> Result<Vec<Extent>, ExportError> {
        let extents = self
            .reader
            .extents(offset, length_bytes)
            .await
            .map_err(self.refuse(offset))?;
        Ok(super::extents(&extents))
    }

    async fn choose_references(&mut self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        self.references.choose(snapshots).await
    }

    async fn has_references(&self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        self.references.has(snapshots).await
    }

    async fn ancestors(&self, limit: usize) -> Result<Vec<String>, ExportError> {
        let parent = self.reader.record().parent;
        self.references.ancestors(parent, limit).await
    }

    async fn changes(
        &self,
        reference: usize,
        offset: u64,
        length_bytes: u64,
    ) -> Result<Vec<ChangedExtent>, ExportError> {
        let since = self.references.get(reference)?;
        let changes = since.changes_to(Some(&self.reader), offset, length_bytes);
        let changes = changes.await.map_err(self.refuse(offset))?;
        Ok(references::changes(&changes))
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

    async fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Result<(), ExportError> {
        Err(ExportError::ReadOnly)
    }

    async fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), ExportError> {
        Err(ExportError::ReadOnly)
    }

    async fn flush(&self) -> Result<(), ExportError> {
        Err(ExportError::ReadOnly)
    }
}
