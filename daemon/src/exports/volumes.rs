//! Volumes as NBD exports, while they are attached.

use bytes::Bytes;
use tokio::sync::RwLockReadGuard;
use varve_nbd::{
    Access, ChangedExtent, Export, ExportError, ExportInfo, ExportName, Extent, Piece,
};
use varve_store::{Error as StoreError, ReadAhead, Volume, VolumeRecord};

use super::{
    CallerExports,
    references::{self, References},
    refuse, refuse_store,
};
use crate::service::{AttachedVolume, Descendant};

impl CallerExports {
    /// Exports of attached volumes whose names sort after a name.
    pub(super) async fn list_volumes(
        &self,
        after_name: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let records = self
            .service
            .exported_volumes(&self.caller, after_name, limit)
            .await
            .map_err(|error| refuse(error, "", 0))?;
        let export = |record: &VolumeRecord| {
            info_of(ExportName::Volume(&record.label()).to_string(), record)
        };
        Ok(records.iter().map(export).collect())
    }

    /// The export `name` of the volume `key`.
    pub(super) async fn open_volume(
        &self,
        name: &str,
        key: &str,
    ) -> Result<VolumeExport, ExportError> {
        let volume = self
            .service
            .open_volume_export(&self.caller, key)
            .await
            .map_err(|error| refuse(error, name, 0))?;
        Ok(VolumeExport {
            info: info_of(name.to_owned(), volume.record()),
            references: References::new(self.service.clone(), self.caller.clone()),
            ahead: ReadAhead::default(),
            volume,
        })
    }

    /// The export `name` of the volume `key`, for whoever shows its ticket.
    pub(super) async fn open_by_ticket(
        &self,
        name: &str,
        key: &str,
        ticket: &str,
    ) -> Result<VolumeExport, ExportError> {
        let volume = self
            .service
            .open_ticketed_export(&self.caller, key, ticket)
            .await
            .map_err(|error| refuse(error, name, 0))?;
        Ok(VolumeExport {
            // Without the ticket: this name is logged.
            info: info_of(ExportName::Volume(key).to_string(), volume.record()),
            references: References::none(),
            ahead: ReadAhead::default(),
            volume,
        })
    }
}

fn info_of(name: String, record: &VolumeRecord) -> ExportInfo {
    ExportInfo {
        name,
        description: format!("volume {} of {} bytes", record.id, record.size_bytes),
        size_bytes: record.size_bytes,
        access: Access::Writable {
            // All connections write to one journal.
            flush_covers_all: true,
        },
    }
}

/// One volume, while it stays attached.
#[derive(Debug)]
pub(crate) struct VolumeExport {
    info: ExportInfo,
    volume: AttachedVolume,
    references: References,
    ahead: ReadAhead,
}

impl VolumeExport {
    async fn request(&self) -> Result<RwLockReadGuard<'_, Volume>, ExportError> {
        let volume = self.volume.volume().await;
        volume.map_err(|error| refuse(error, &self.info.name, 0))
    }

    fn refused(&self, offset: u64) -> impl FnOnce(StoreError) -> ExportError {
        move |error| refuse_store(error, &self.info.name, offset)
    }

    async fn finish(&self, volume: &Volume, durable: bool, offset: u64) -> Result<(), ExportError> {
        if durable {
            volume.flush().await.map_err(self.refused(offset))?;
        }
        Ok(())
    }
}

impl Export for VolumeExport {
    fn info(&self) -> &ExportInfo {
        &self.info
    }

    async fn read(&self, offset: u64, length_bytes: u32) -> Result<Vec<Piece>, ExportError> {
        let end = self.info.size_bytes;
        self.ahead.follow(offset, length_bytes.into(), end, |next| {
            let volume = self.volume.clone();
            async move {
                if let Ok(volume) = volume.volume().await {
                    let length_bytes = usize::try_from(next.end - next.start).unwrap_or(usize::MAX);
                    volume.read_ahead(next.start, length_bytes).await;
                }
            }
        });
        let volume = self.request().await?;
        let pieces = volume
            .read(offset, length_bytes as usize)
            .await
            .map_err(self.refused(offset))?;
        Ok(super::pieces(pieces))
    }

    async fn extents(&self, offset: u64, length_bytes: u64) -> Result<Vec<Extent>, ExportError> {
        let volume = self.request().await?;
        let extents = volume
            .extents(offset, length_bytes)
            .await
            .map_err(self.refused(offset))?;
        Ok(super::extents(&extents))
    }

    async fn choose_references(&mut self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        self.references.choose(snapshots).await
    }

    async fn has_references(&self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        self.references.has(snapshots).await
    }

    async fn ancestors(&self, limit: usize) -> Result<Vec<String>, ExportError> {
        let of = Descendant::Volume(self.request().await?.record().id);
        self.references.ancestors(of, limit).await
    }

    async fn changes(
        &self,
        reference: usize,
        offset: u64,
        length_bytes: u64,
    ) -> Result<Vec<ChangedExtent>, ExportError> {
        let since = self.references.get(reference)?;
        let volume = self.request().await?;
        let changes = volume.changes_since(since, offset, length_bytes);
        let changes = changes.await.map_err(self.refused(offset))?;
        Ok(references::changes(&changes))
    }

    async fn prefetch(&self, offset: u64, length_bytes: u32) -> Result<(), ExportError> {
        let volume = self.request().await?;
        volume
            .prefetch(offset, length_bytes as usize)
            .await
            .map_err(self.refused(offset))
    }

    async fn write(&self, offset: u64, data: Bytes, durable: bool) -> Result<(), ExportError> {
        let volume = self.request().await?;
        volume
            .write(offset, data)
            .await
            .map_err(self.refused(offset))?;
        self.finish(&volume, durable, offset).await
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        _may_punch_hole: bool,
        durable: bool,
    ) -> Result<(), ExportError> {
        let volume = self.request().await?;
        volume
            .write_zeroes(offset, length_bytes)
            .await
            .map_err(self.refused(offset))?;
        self.finish(&volume, durable, offset).await
    }

    async fn trim(&self, offset: u64, length_bytes: u64, durable: bool) -> Result<(), ExportError> {
        let volume = self.request().await?;
        volume
            .trim(offset, length_bytes)
            .await
            .map_err(self.refused(offset))?;
        self.finish(&volume, durable, offset).await
    }

    async fn flush(&self) -> Result<(), ExportError> {
        let volume = self.request().await?;
        volume.flush().await.map_err(self.refused(0))
    }
}
