//! Images as NBD exports: `image/<name>`, `image/<id>` or `image/<id>/<device>`, read-only.

use varve_nbd::{Access, ExportError, ExportInfo, ExportName};
use varve_store::Image;

use super::{CallerExports, refuse, snapshots::SnapshotExport};

impl CallerExports {
    /// Exports of images that can be used and whose names sort after a name.
    pub(super) async fn list_images(
        &self,
        after_name: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let images = self
            .service
            .exported_images(&self.caller, after_name, limit)
            .await
            .map_err(|error| refuse(error, "", 0))?;
        Ok(images.iter().map(listed).collect())
    }

    /// The export `name` of an image, or of a device of it.
    pub(super) async fn open_image(
        &self,
        name: &str,
        key: &str,
    ) -> Result<SnapshotExport, ExportError> {
        let (record, reader) = self
            .service
            .open_image_export(&self.caller, key)
            .await
            .map_err(|error| refuse(error, name, 0))?;
        let size_bytes = reader.record().size_bytes;
        let info = ExportInfo {
            name: name.to_owned(),
            description: format!("image {} of {size_bytes} bytes", record.id),
            size_bytes,
            access: Access::ReadOnly,
        };
        Ok(self.of_snapshot(info, reader))
    }
}

/// The export of an image in a listing. Its size is that of the volume that boots from it, which
/// may be larger than its content.
fn listed(image: &Image) -> ExportInfo {
    let record = &image.record;
    let root = record.device(&record.root_device);
    let size_bytes = root.and_then(|root| root.source.size_bytes());
    ExportInfo {
        name: ExportName::Image(&record.name).to_string(),
        description: format!("image {}", record.id),
        size_bytes: size_bytes.unwrap_or_default(),
        access: Access::ReadOnly,
    }
}
