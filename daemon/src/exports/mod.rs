//! What the NBD server exports: snapshots, read-only, and volumes that are attached.
//!
//! | export | what |
//! | --- | --- |
//! | `snapshot/<name or id>` | a snapshot |
//! | `volume/<name or id>` | a volume, while it is attached |
//! | `volume/<id>@<number>` | the same, as long as it is this attachment |

mod references;
mod snapshots;
mod volumes;

use std::sync::Arc;

use bytes::Bytes;
use varve_store::{Error, ListQuery, Store};

pub use self::volumes::Attachments;
use self::{
    snapshots::{SnapshotExport, SnapshotExports},
    volumes::VolumeExport,
};
use varve_nbd::{ChangedExtent, Export, ExportError, ExportInfo, Exports, Extent, Piece};

/// The exports of a store.
#[derive(Debug)]
pub struct StoreExports {
    snapshots: SnapshotExports,
    volumes: Arc<Attachments>,
}

impl StoreExports {
    /// Snapshots of this store, and its volumes that are attached.
    #[must_use]
    pub fn new(store: Store, volumes: Arc<Attachments>) -> Self {
        Self {
            snapshots: SnapshotExports::new(store),
            volumes,
        }
    }
}

/// Where in the exports of one kind a listing goes on.
enum After {
    /// All of them come.
    Start,
    /// Those behind this name.
    Name(String),
    /// They are all behind the listing.
    Past,
}

impl After {
    fn of(prefix: &str, after: Option<&str>) -> Self {
        match after.map(|after| (after, after.strip_prefix(prefix))) {
            None => Self::Start,
            Some((_, Some(name))) => Self::Name(name.to_owned()),
            Some((after, None)) if after < prefix => Self::Start,
            Some(_) => Self::Past,
        }
    }
}

impl Exports for StoreExports {
    type Export = StoreExport;

    async fn list(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let snapshots = match After::of(snapshots::PREFIX, after) {
            After::Start => self.snapshots.list(None, limit).await?,
            After::Name(name) => self.snapshots.list(Some(name), limit).await?,
            After::Past => Vec::new(),
        };
        // Volumes sort after snapshots. A page of one kind may be short; only an empty one ends the listing.
        if !snapshots.is_empty() {
            return Ok(snapshots);
        }
        match After::of(volumes::PREFIX, after) {
            After::Start => self.volumes.list(None, limit).await,
            After::Name(name) => self.volumes.list(Some(name), limit).await,
            After::Past => Ok(Vec::new()),
        }
    }

    async fn open(&self, name: &str) -> Result<StoreExport, ExportError> {
        if let Some(key) = name.strip_prefix(snapshots::PREFIX) {
            return Ok(StoreExport::Snapshot(self.snapshots.open(name, key).await?));
        }
        if let Some(key) = name.strip_prefix(volumes::PREFIX) {
            return Ok(StoreExport::Volume(self.volumes.open(name, key).await?));
        }
        Err(ExportError::NotFound {
            name: name.to_owned(),
        })
    }
}

/// The exports among records whose names sort after one: of the first page that has any. Records that are none are passed over, however
/// many there are.
async fn list<R, F: Future<Output = Result<Vec<R>, Error>>>(
    mut after_name: Option<String>,
    limit: usize,
    page: impl Fn(ListQuery) -> F,
    export: impl Fn(&R) -> Option<ExportInfo>,
    name: impl Fn(&R) -> String,
) -> Result<Vec<ExportInfo>, Error> {
    loop {
        let query = ListQuery {
            after_name: after_name.take(),
            limit,
            ..ListQuery::default()
        };
        let records = page(query).await?;
        let exports: Vec<_> = records.iter().filter_map(&export).collect();
        match records.last() {
            Some(last) if exports.is_empty() => after_name = Some(name(last)),
            _ => return Ok(exports),
        }
    }
}

/// One export.
#[derive(Debug)]
pub enum StoreExport {
    /// A snapshot.
    Snapshot(SnapshotExport),
    /// A volume.
    Volume(VolumeExport),
}

macro_rules! either {
    ($self:ident, $export:ident => $call:expr) => {
        match $self {
            Self::Snapshot($export) => $call,
            Self::Volume($export) => $call,
        }
    };
}

impl Export for StoreExport {
    fn info(&self) -> &ExportInfo {
        either!(self, export => export.info())
    }

    async fn read(&self, offset: u64, length_bytes: u32) -> Result<Vec<Piece>, ExportError> {
        either!(self, export => export.read(offset, length_bytes).await)
    }

    async fn extents(&self, offset: u64, length_bytes: u64) -> Result<Vec<Extent>, ExportError> {
        either!(self, export => export.extents(offset, length_bytes).await)
    }

    async fn choose_references(&mut self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        either!(self, export => export.choose_references(snapshots).await)
    }

    async fn has_references(&self, snapshots: &[&str]) -> Result<Vec<bool>, ExportError> {
        either!(self, export => export.has_references(snapshots).await)
    }

    async fn ancestors(&self, limit: usize) -> Result<Vec<String>, ExportError> {
        either!(self, export => export.ancestors(limit).await)
    }

    async fn changes(
        &self,
        reference: usize,
        offset: u64,
        length_bytes: u64,
    ) -> Result<Vec<ChangedExtent>, ExportError> {
        either!(self, export => export.changes(reference, offset, length_bytes).await)
    }

    async fn prefetch(&self, offset: u64, length_bytes: u32) -> Result<(), ExportError> {
        either!(self, export => export.prefetch(offset, length_bytes).await)
    }

    async fn write(&self, offset: u64, data: Bytes, durable: bool) -> Result<(), ExportError> {
        either!(self, export => export.write(offset, data, durable).await)
    }

    async fn write_zeroes(
        &self,
        offset: u64,
        length_bytes: u64,
        may_punch_hole: bool,
        durable: bool,
    ) -> Result<(), ExportError> {
        either!(self, export => export.write_zeroes(offset, length_bytes, may_punch_hole, durable).await)
    }

    async fn trim(&self, offset: u64, length_bytes: u64, durable: bool) -> Result<(), ExportError> {
        either!(self, export => export.trim(offset, length_bytes, durable).await)
    }

    async fn flush(&self) -> Result<(), ExportError> {
        either!(self, export => export.flush().await)
    }
}

fn pieces(pieces: Vec<varve_store::Piece>) -> Vec<Piece> {
    let piece = |piece| match piece {
        varve_store::Piece::Data(bytes) => Piece::Data(bytes),
        // Part of a read of at most u32::MAX bytes.
        varve_store::Piece::Zero(bytes) => Piece::Zero(u32::try_from(bytes).unwrap_or(u32::MAX)),
    };
    pieces.into_iter().map(piece).collect()
}

fn extents(extents: &[varve_store::Extent]) -> Vec<Extent> {
    let extent = |extent: &varve_store::Extent| Extent {
        length_bytes: extent.len_bytes,
        hole: extent.hole,
    };
    extents.iter().map(extent).collect()
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
        Error::Full { .. } => ExportError::NoSpace {
            message: error.to_string(),
        },
        Error::Closing => ExportError::Stopping,
        other => ExportError::Unavailable {
            message: other.to_string(),
        },
    }
}
