//! The volumes of a store: create, list, tag, resize, attach, detach, delete.

use std::{collections::BTreeMap, fmt, time::SystemTime};

use futures::Stream;
use varve_content::tree::RootId;
use varve_proto::v1;

use crate::{
    connect::Client,
    convert::{self, system_time},
    error::{Error, ErrorKind, Result},
    limits::LIST_PAGE,
    pages, retry,
    snapshots::Snapshot,
};

/// A volume: a writable block device.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Volume {
    /// `vol-` and 17 hexadecimal digits.
    pub id: String,
    /// Unique among the volumes of its owner.
    pub name: String,
    /// Its size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// Root of its content at its last checkpoint. `None`: zeros.
    pub base: Option<RootId>,
    /// Id of its last completed snapshot, or of the snapshot that it was made from. It may have
    /// been deleted since.
    pub parent: Option<String>,
    /// When it was made.
    pub created_at: SystemTime,
    /// Keys and values.
    pub tags: BTreeMap<String, String>,
    /// Time of the current attachment; `None` while it is not attached.
    pub attached_at: Option<SystemTime>,
    /// Number of attachments so far. While it is attached, the number of the current one.
    pub attachments: u64,
    /// Id of the account that it belongs to, 12 decimal digits. Empty from daemons without
    /// accounts.
    pub owner: String,
    /// Its journal and pending snapshots. Only in the answer of [`Client::volume`].
    pub status: Option<VolumeStatus>,
}

/// A volume's journal, and its pending snapshots.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct VolumeStatus {
    /// Bytes that its journal takes on disk.
    pub journal_bytes: u64,
    /// Bytes that the journal may take on disk.
    pub journal_bytes_max: u64,
    /// Approximate bytes of memory that the journal's map takes; 0 while the volume is not open.
    pub map_bytes: u64,
    /// The journal's content when the volume was opened; `None` while it is not open.
    pub found: Option<JournalFound>,
    /// Its snapshots that are pending, in the order of their instants.
    pub pending: Vec<Snapshot>,
}

/// The content of a volume's journal when the volume was opened.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct JournalFound {
    /// Batches of writes.
    pub batches: u64,
    /// Blocks of data in them.
    pub blocks: u64,
    /// Files they were in.
    pub files: u64,
    /// A description of the torn end that was cut off, if there was one: a write that was never
    /// acknowledged.
    pub torn: Option<String>,
}

/// The settings of a new clone.
#[derive(Clone, Debug, Default)]
pub struct NewClone {
    /// A snapshot or a volume: an id; a name that only a snapshot or only a volume has; or a name
    /// after `snapshot/` or `volume/`.
    pub source: String,
    /// The new volume's name.
    pub name: String,
    /// Its size in bytes, a multiple of 512. `None`: the source's, rounded up to one.
    pub size_bytes: Option<u64>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// The settings of a new volume.
#[derive(Clone, Debug, Default)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its size in bytes, a multiple of 512. `None`: the snapshot's, rounded up to one.
    pub size_bytes: Option<u64>,
    /// Name or id of the snapshot with its first content. `None`: zeros.
    pub from_snapshot: Option<String>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A filter for lists of volumes. The default lists all.
#[derive(Clone, Debug, Default)]
pub struct VolumeFilter {
    /// Only names with this prefix.
    pub name_prefix: String,
    /// Only volumes that have all of these tags with these values.
    pub tags: BTreeMap<String, String>,
    /// Only volumes of this account: its id, its name or its alias, or `self`. Empty or `all`: all
    /// that the caller may see.
    pub owner: String,
}

/// An attached volume, and the addresses of its export.
///
/// With a ticket, the name of the export and the addresses are secrets. `Debug` leaves them out.
#[derive(Clone, Eq, PartialEq)]
#[non_exhaustive]
pub struct Attachment {
    /// The volume; `attachments` is the number of this attachment.
    pub volume: Volume,
    /// The name of the export.
    pub export: String,
    /// NBD URIs with the export's name: over the daemon's unix socket first, and over TCP if it
    /// listens there.
    pub nbd_uris: Vec<String>,
}

impl fmt::Debug for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attachment")
            .field("volume", &self.volume)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a volume, of zeros or with the content of a snapshot. Nothing is copied.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if the name is taken, [`ErrorKind::NotFound`] if the snapshot
    /// does not exist, [`ErrorKind::Conflict`] if it is not completed, [`ErrorKind::Invalid`] for
    /// an invalid name, size or tag; errors of the connection.
    pub async fn create_volume(&self, new: NewVolume) -> Result<Volume> {
        let what = format!("create volume {}", new.name);
        let request = v1::CreateVolumeRequest {
            name: new.name,
            size_bytes: match new.size_bytes {
                // The protocol takes 0 for no size.
                Some(0) => {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        what,
                        "a volume has more than 0 bytes",
                    ));
                }
                size_bytes => size_bytes.unwrap_or_default(),
            },
            from_snapshot: new.from_snapshot.unwrap_or_default(),
            tags: new.tags,
        };
        let created = retry::while_busy(|| {
            let (mut service, request) = (self.volume_service(), request.clone());
            async move { service.create_volume(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Volume::from_proto(&what, Some(created.into_inner()))
    }

    /// Makes a volume with the content of a snapshot, or with the current content of another
    /// volume. Nothing is copied, but the daemon checkpoints the journal of the other volume first.
    ///
    /// # Errors
    ///
    /// As for [`create_volume`](Self::create_volume).
    pub async fn clone_volume(&self, new: NewClone) -> Result<Volume> {
        let what = format!("clone {} as volume {}", new.source, new.name);
        let request = v1::CloneVolumeRequest {
            source: new.source,
            name: new.name,
            size_bytes: new.size_bytes.unwrap_or_default(),
            tags: new.tags,
        };
        let made = retry::while_busy(|| {
            let (mut service, request) = (self.volume_service(), request.clone());
            async move { service.clone_volume(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Volume::from_proto(&what, Some(made.into_inner()))
    }

    /// Grows the volume with this name or id to `size_bytes`, a multiple of 512. The new space
    /// reads as zeros.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such volume, [`ErrorKind::Invalid`] for an invalid
    /// size, or one less than before; errors of the connection.
    pub async fn resize_volume(&self, volume: &str, size_bytes: u64) -> Result<Volume> {
        let what = format!("resize volume {volume}");
        let request = v1::ResizeVolumeRequest {
            volume: volume.to_owned(),
            size_bytes,
        };
        let resized = retry::idempotent(|| {
            let (mut service, request) = (self.volume_service(), request.clone());
            async move { service.resize_volume(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Volume::from_proto(&what, Some(resized.into_inner()))
    }

    /// Lists the volumes that pass `filter`, by owner, then by name. Pages are fetched on demand.
    ///
    /// The stream ends with its first error: one of the connection.
    pub fn volumes(
        &self,
        filter: VolumeFilter,
    ) -> impl Stream<Item = Result<Volume>> + Send + use<> {
        const WHAT: &str = "list volumes";
        let client = self.clone();
        pages::listed(WHAT, move |page_token| {
            let client = client.clone();
            let request = v1::ListVolumesRequest {
                page_size: LIST_PAGE,
                page_token,
                name_prefix: filter.name_prefix.clone(),
                tags: filter.tags.clone(),
                owner: filter.owner.clone(),
            };
            async move {
                let page = retry::idempotent(|| {
                    let (mut service, request) = (client.volume_service(), request.clone());
                    async move { service.list_volumes(request).await }
                })
                .await
                .map_err(|status| Error::rpc(WHAT, status))?
                .into_inner();
                let volumes = page
                    .volumes
                    .into_iter()
                    .map(|volume| Volume::from_proto(WHAT, Some(volume)))
                    .collect::<Result<_>>()?;
                Ok((volumes, page.next_page_token))
            }
        })
    }

    /// Finds the volume with this name or id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such volume; errors of the connection.
    pub async fn volume(&self, volume: &str) -> Result<Volume> {
        let what = format!("get volume {volume}");
        let request = v1::GetVolumeRequest {
            volume: volume.to_owned(),
        };
        let found = retry::idempotent(|| {
            let (mut service, request) = (self.volume_service(), request.clone());
            async move { service.get_volume(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Volume::from_proto(&what, Some(found.into_inner()))
    }

    /// Sets tags of the volume with this name or id, and removes those with the keys in `remove`,
    /// in one step. Returns the updated volume.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such volume, [`ErrorKind::Invalid`] for invalid tags;
    /// errors of the connection.
    pub async fn tag_volume(
        &self,
        volume: &str,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<Volume> {
        let what = format!("tag volume {volume}");
        let request = v1::TagVolumeRequest {
            volume: volume.to_owned(),
            set,
            remove,
        };
        let tagged = retry::idempotent(|| {
            let (mut service, request) = (self.volume_service(), request.clone());
            async move { service.tag_volume(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Volume::from_proto(&what, Some(tagged.into_inner()))
    }

    /// Deletes the volume with this name or id, and returns its record.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such volume, [`ErrorKind::Conflict`] while it is
    /// attached or has pending snapshots; errors of the connection.
    pub async fn delete_volume(&self, volume: &str) -> Result<Volume> {
        let what = format!("delete volume {volume}");
        let request = v1::DeleteVolumeRequest {
            volume: volume.to_owned(),
        };
        let deleted = retry::while_busy(|| {
            let (mut service, request) = (self.volume_service(), request.clone());
            async move { service.delete_volume(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Volume::from_proto(&what, deleted.into_inner().deleted)
    }

    /// Attaches the volume with this name or id, and returns the addresses of its export. With
    /// `force`, it takes over a volume that is attached already: its host may have died without
    /// detaching it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such volume, [`ErrorKind::Conflict`] if it is
    /// attached already and `force` is not set; errors of the connection.
    pub async fn attach_volume(&self, volume: &str, force: bool) -> Result<Attachment> {
        self.attach(volume, force, false).await
    }

    /// Attaches a volume as [`attach_volume`](Self::attach_volume) does, and returns the addresses
    /// of its export with an attach ticket. Whoever has them reads and writes the volume, and does
    /// nothing else, until it is detached. The answer is the only place where they are shown.
    ///
    /// # Errors
    ///
    /// As for [`attach_volume`](Self::attach_volume), and [`ErrorKind::Conflict`] if the daemon has
    /// no accounts. After a lost connection the volume may be attached; nobody has its ticket.
    pub async fn attach_volume_with_ticket(&self, volume: &str, force: bool) -> Result<Attachment> {
        self.attach(volume, force, true).await
    }

    async fn attach(&self, volume: &str, force: bool, with_ticket: bool) -> Result<Attachment> {
        let what = format!("attach volume {volume}");
        let request = v1::AttachVolumeRequest {
            volume: volume.to_owned(),
            force,
            with_ticket,
        };
        // Not repeated: a second run would be refused because of the first.
        let attached = retry::while_busy(|| {
            let (mut service, request) = (self.volume_service(), request.clone());
            async move { service.attach_volume(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?
        .into_inner();
        Ok(Attachment {
            volume: Volume::from_proto(&what, attached.volume)?,
            export: attached.export,
            nbd_uris: attached.nbd_uris,
        })
    }

    /// Detaches the volume with this name or id. A volume that is not attached stays as it is.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such volume; errors of the connection.
    pub async fn detach_volume(&self, volume: &str) -> Result<Volume> {
        let what = format!("detach volume {volume}");
        let request = v1::DetachVolumeRequest {
            volume: volume.to_owned(),
        };
        // Not repeated: somebody else may have attached it since the first run.
        let detached = retry::while_busy(|| {
            let (mut service, request) = (self.volume_service(), request.clone());
            async move { service.detach_volume(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Volume::from_proto(&what, Some(detached.into_inner()))
    }

    /// Gives the volume with this name or id to another account, given by its id, name or alias,
    /// and returns it. Its snapshots stay where they are. Only the administrator may do this.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such volume or account,
    /// [`ErrorKind::AlreadyExists`] if the account has a volume of that
    /// name, [`ErrorKind::Conflict`] while it is attached; errors of the connection.
    pub async fn give_volume(&self, volume: &str, account: &str) -> Result<Volume> {
        let what = format!("give volume {volume} to account {account}");
        let request = v1::GiveVolumeRequest {
            volume: volume.to_owned(),
            account: account.to_owned(),
        };
        // Not tried again: the caller may have no right to see it after the first run.
        let given = retry::while_busy(|| {
            let (mut service, request) = (self.volume_service(), request.clone());
            async move { service.give_volume(request).await }
        })
        .await;
        let given = given.map_err(|status| Error::rpc(&what, status))?;
        Volume::from_proto(&what, Some(given.into_inner()))
    }
}

impl Volume {
    fn from_proto(what: &str, volume: Option<v1::Volume>) -> Result<Self> {
        let Some(volume) = volume else {
            return Err(Error::protocol(what, "an answer without its volume"));
        };
        let no_time = |event: &str| {
            Error::protocol(
                what,
                format!("volume {} was {event} at an invalid time", volume.id),
            )
        };
        let base = convert::root(what, &volume.id, &volume.base)?;
        let created_at = volume.created_at.and_then(system_time);
        let attached_at = match volume.attached_at {
            Some(time) => Some(system_time(time).ok_or_else(|| no_time("attached"))?),
            None => None,
        };
        let status = match volume.status {
            Some(status) => Some(VolumeStatus::from_proto(what, status)?),
            None => None,
        };
        Ok(Self {
            status,
            created_at: created_at.ok_or_else(|| no_time("made"))?,
            base,
            attached_at,
            id: volume.id,
            name: volume.name,
            size_bytes: volume.size_bytes,
            parent: (!volume.parent.is_empty()).then_some(volume.parent),
            tags: volume.tags,
            attachments: volume.attachments,
            owner: volume.owner,
        })
    }
}

impl VolumeStatus {
    fn from_proto(what: &str, status: v1::VolumeStatus) -> Result<Self> {
        let pending = status.pending.into_iter();
        Ok(Self {
            journal_bytes: status.journal_bytes,
            journal_bytes_max: status.journal_bytes_max,
            map_bytes: status.map_bytes,
            found: status.found.map(|found| JournalFound {
                batches: found.batches,
                blocks: found.blocks,
                files: found.files,
                torn: (!found.torn.is_empty()).then_some(found.torn),
            }),
            pending: pending
                .map(|snapshot| Snapshot::from_proto(what, Some(snapshot)))
                .collect::<Result<_>>()?,
        })
    }
}
