//! The exports of the NBD server: images and snapshots, read-only, and attached volumes.
//!
//! | export | what |
//! | --- | --- |
//! | `image/<name or id>` | the device that an image boots from |
//! | `image/<id>/<device>` | another device of an image |
//! | `snapshot/<name or id>` | a snapshot |
//! | `volume/<name or id>` | a volume, while it is attached |
//! | `volume/<id>@<number>` | the same, as long as it is this attachment |
//! | `volume/<id>@<number>:<ticket>` | the same, for whoever has the ticket |
//!
//! Like the services of gRPC, this is a face of [`service`](crate::service): it opens every export
//! for a caller, through the one door.

mod images;
mod references;
mod snapshots;
mod volumes;

use bytes::Bytes;
use varve_nbd::{
    ChangedExtent, Export, ExportError, ExportInfo, ExportName, Exports, Extent, Piece,
    split_ticket,
};
use varve_store::Error as StoreError;

use self::{snapshots::SnapshotExport, volumes::VolumeExport};
use crate::{
    auth::{Caller, TicketError},
    service::{Error, Service},
};

/// The exports that one caller sees.
#[derive(Debug)]
pub(crate) struct CallerExports {
    service: Service,
    caller: Caller,
}

impl CallerExports {
    pub(crate) fn new(service: Service, caller: Caller) -> Self {
        Self { service, caller }
    }
}

/// The place in the exports of one kind at which a listing continues.
#[derive(Debug, Eq, PartialEq)]
enum After<'a> {
    /// All exports of the kind follow.
    Start,
    /// The exports after this name follow.
    Name(&'a str),
    /// No export of the kind follows.
    Past,
}

impl<'a> After<'a> {
    /// `first` is the prefix of all exports of the kind.
    fn of(first: ExportName<'_>, after: Option<&'a str>) -> Self {
        let prefix = first.to_string();
        match after.map(|after| (after, after.strip_prefix(&prefix))) {
            None => Self::Start,
            Some((_, Some(name))) => Self::Name(name),
            Some((after, None)) if *after < *prefix => Self::Start,
            Some(_) => Self::Past,
        }
    }
}

impl Exports for CallerExports {
    type Export = StoreExport;

    async fn list(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let images = match After::of(ExportName::Image(""), after) {
            After::Start => self.list_images(None, limit).await?,
            After::Name(name) => self.list_images(Some(name), limit).await?,
            After::Past => Vec::new(),
        };
        if !images.is_empty() {
            return Ok(images);
        }
        let snapshots = match After::of(ExportName::Snapshot(""), after) {
            After::Start => self.list_snapshots(None, limit).await?,
            After::Name(name) => self.list_snapshots(Some(name), limit).await?,
            After::Past => Vec::new(),
        };
        // Snapshots sort after images, and volumes after snapshots. A page of one kind may be
        // short; only an empty one ends the listing.
        if !snapshots.is_empty() {
            return Ok(snapshots);
        }
        match After::of(ExportName::Volume(""), after) {
            After::Start => self.list_volumes(None, limit).await,
            After::Name(name) => self.list_volumes(Some(name), limit).await,
            After::Past => Ok(Vec::new()),
        }
    }

    async fn open(&self, name: &str) -> Result<StoreExport, ExportError> {
        match ExportName::parse(name) {
            Some(ExportName::Image(key)) => {
                let opened = self.open_image(name, key).await?;
                Ok(StoreExport::Snapshot(opened))
            }
            Some(ExportName::Snapshot(key)) => {
                let opened = self.open_snapshot(name, key).await?;
                Ok(StoreExport::Snapshot(opened))
            }
            Some(ExportName::Volume(key)) => {
                let opened = match split_ticket(key) {
                    Some((key, ticket)) => self.open_by_ticket(name, key, ticket).await?,
                    None => self.open_volume(name, key).await?,
                };
                Ok(StoreExport::Volume(opened))
            }
            None => Err(ExportError::not_found(name)),
        }
    }
}

/// One export.
#[derive(Debug)]
pub(crate) enum StoreExport {
    Snapshot(SnapshotExport),
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

/// Converts the error of an operation on the export `name`, at `offset`, for its client.
fn refuse(error: Error, name: &str, offset: u64) -> ExportError {
    match error {
        Error::Store(error) => refuse_store(error, name, offset),
        // A name that cannot be, or a ticket that is not that of an export.
        Error::Field { .. } | Error::Ticket(TicketError::Invalid) => ExportError::not_found(name),
        Error::Denied(_) | Error::Ticket(_) => ExportError::Denied {
            message: error.to_string(),
        },
        Error::Detached => ExportError::Detached {
            message: error.to_string(),
        },
        other => ExportError::Unavailable {
            message: other.to_string(),
        },
    }
}

fn refuse_store(error: StoreError, name: &str, offset: u64) -> ExportError {
    match error {
        StoreError::NotFound { .. } => ExportError::not_found(name),
        StoreError::Damaged(damage) => ExportError::Damaged {
            offset,
            message: damage.to_string(),
        },
        full if full.is_full() => ExportError::NoSpace {
            message: full.to_string(),
        },
        StoreError::Closing => ExportError::Stopping,
        other => ExportError::Unavailable {
            message: other.to_string(),
        },
    }
}
