//! Snapshots as NBD exports: `snapshot/<name>`, or `snapshot/<id>`, read-only.

use bytes::Bytes;
use varve_nbd::{
    Access, ChangedExtent, Export, ExportError, ExportInfo, ExportName, Extent, Piece,
};
use varve_store::{Error as StoreError, ReadAhead, SnapshotReader, SnapshotRecord};

use super::{
    CallerExports,
    references::{self, References},
    refuse, refuse_store,
};
use crate::service::Descendant;

impl CallerExports {
    /// Exports of completed snapshots whose names sort after a name.
    pub(super) async fn list_snapshots(
        &self,
        after_name: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let records = self
            .service
            .exported_snapshots(&self.caller, after_name, limit)
            .await
            .map_err(|error| refuse(error, "", 0))?;
        let export = |record: &SnapshotRecord| {
            info(ExportName::Snapshot(&record.label()).to_string(), record)
        };
        Ok(records.iter().map(export).collect())
    }

    /// The export `name` of the snapshot `key`.
    pub(super) async fn open_snapshot(
        &self,
        name: &str,
        key: &str,
    ) -> Result<SnapshotExport, ExportError> {
        let reader = self
            .service
            .open_snapshot_export(&self.caller, key)
            .await
            .map_err(|error| refuse(error, name, 0))?;
        Ok(self.of_snapshot(info(name.to_owned(), reader.record()), reader))
    }

    /// An export with the content of a snapshot.
    pub(super) fn of_snapshot(&self, info: ExportInfo, reader: SnapshotReader) -> SnapshotExport {
        SnapshotExport {
            info,
            references: References::new(self.service.clone(), self.caller.clone()),
            ahead: ReadAhead::default(),
            reader,
        }
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

/// One snapshot, or the device of an image with its content.
#[derive(Debug)]
pub(crate) struct SnapshotExport {
    info: ExportInfo,
    reader: SnapshotReader,
    references: References,
    ahead: ReadAhead,
}

impl SnapshotExport {
    fn refuse(&self, offset: u64) -> impl FnOnce(StoreError) -> ExportError {
        move |error| refuse_store(error, &self.info.name, offset)
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
        let of = Descendant::Snapshot(parent);
        self.references.ancestors(of, limit).await
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
