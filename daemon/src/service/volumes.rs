//! Volumes as records. Reads and writes go through [`exports`](super::exports).

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use varve_nbd::{ExportName, ServerUri};
use varve_store::{
    Error as StoreError, NewClone, NewVolume, SnapshotKey, VolumeKey, VolumeRecord, VolumeStatus,
};

use super::{
    Service,
    error::Result,
    page_token,
    pages::{ListRequest, Page},
    request,
    sight::Source,
    snapshots::{Snapshot, TagChange},
};
use crate::auth::{Action, Attachment, Caller, Resource, Ticket, done};

/// A volume to be made, empty or from a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct VolumeRequest {
    pub(crate) name: String,
    /// `None`: the snapshot's size.
    pub(crate) size_bytes: Option<u64>,
    /// Name or id of the snapshot; `None`: zeros.
    pub(crate) from: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// A volume to be made from another volume or from a snapshot.
#[derive(Debug, Clone, Default)]
pub(crate) struct CloneRequest {
    /// An id, a name that only a snapshot or only a volume has, or a name with the prefix
    /// `snapshot/` or `volume/`. If no such record exists, the prefix counts as part of the name.
    pub(crate) source: String,
    pub(crate) name: String,
    /// `None`: the source's size.
    pub(crate) size_bytes: Option<u64>,
    pub(crate) tags: BTreeMap<String, String>,
}

/// A volume with its status and its pending snapshots.
#[derive(Debug, Clone)]
pub(crate) struct VolumeDetails {
    pub(crate) record: VolumeRecord,
    pub(crate) status: VolumeStatus,
    /// Pending snapshots of the volume.
    pub(crate) pending: Vec<Snapshot>,
}

/// How a volume is to be attached.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct AttachRequest {
    /// Takes over a volume that is attached already.
    pub(crate) force: bool,
    /// Asks for a ticket, with which anybody opens its export.
    pub(crate) with_ticket: bool,
}

/// A volume that was attached, and the addresses that serve it. With a ticket, the name of the
/// export and the addresses are secrets.
#[derive(Clone)]
pub(crate) struct AttachedAt {
    pub(crate) record: VolumeRecord,
    /// The name of its export.
    pub(crate) export: String,
    /// One URI for each NBD address that takes this name.
    pub(crate) nbd_uris: Vec<String>,
}

impl fmt::Debug for AttachedAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttachedAt")
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// Makes a volume, empty or from a snapshot.
    pub(crate) async fn create_volume(
        &self,
        caller: &Caller,
        request: VolumeRequest,
    ) -> Result<VolumeRecord> {
        let mut on = vec![Resource::Volume(&request.name)];
        on.extend(request.from.as_deref().map(Resource::Snapshot));
        let (store, sight, asked) = (self.store().clone(), self.sight(caller), request.clone());
        let change = async move {
            let from = match &asked.from {
                Some(key) => Some(sight.readable_snapshot("from_snapshot", key)?),
                None => None,
            };
            let new = NewVolume {
                owner: sight.account()?,
                name: asked.name,
                size_bytes: asked.size_bytes,
                from,
                tags: asked.tags,
            };
            Ok(store.create_volume(new).await?)
        };
        let call = (caller, Action::CreateVolume);
        self.change(call, &on, change, |attempt, created: &VolumeRecord| {
            done!(
                attempt,
                id = %created.id,
                name = created.name,
                size_bytes = created.size_bytes,
                parent = created.parent.map(tracing::field::display),
                "volume created"
            );
        })
        .await
    }

    /// Makes a volume from another volume or from a snapshot, without copying its content.
    pub(crate) async fn clone_volume(
        &self,
        caller: &Caller,
        request: CloneRequest,
    ) -> Result<VolumeRecord> {
        let on = [
            Resource::Volume(&request.name),
            clone_source(&request.source).0,
        ];
        let (store, sight, asked) = (self.store().clone(), self.sight(caller), request.clone());
        let source = request.source.clone();
        let change = async move {
            request::check_key("snapshot or volume", "source", &asked.source)?;
            let (_, written) = clone_source(&asked.source);
            let mut new = NewClone {
                source: sight.clone_source(written)?,
                owner: sight.account()?,
                name: asked.name,
                size_bytes: asked.size_bytes,
                tags: asked.tags,
            };
            let refused = match store.clone_volume(new.clone()).await {
                Err(refused @ StoreError::NotFound { .. })
                    if !matches!(written, Source::Either(_)) =>
                {
                    refused
                }
                outcome => return Ok(outcome?),
            };
            // The prefix may be a part of the name.
            new.source = sight.clone_source(Source::Either(&asked.source))?;
            match store.clone_volume(new).await {
                Err(StoreError::NotFound { .. }) => Err(refused.into()),
                outcome => Ok(outcome?),
            }
        };
        let call = (caller, Action::CloneVolume);
        self.change(call, &on, change, move |attempt, made: &VolumeRecord| {
            done!(
                attempt,
                id = %made.id,
                name = made.name,
                source,
                size_bytes = made.size_bytes,
                parent = made.parent.map(tracing::field::display),
                "volume cloned"
            );
        })
        .await
    }

    /// Makes a volume longer.
    pub(crate) async fn resize_volume(
        &self,
        caller: &Caller,
        key: &str,
        size_bytes: u64,
    ) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key)];
        let (store, sight, key) = (self.store().clone(), self.sight(caller), key.to_owned());
        let change = async move {
            let key = sight.volume("volume", &key)?;
            Ok(store.resize_volume(&key, size_bytes).await?)
        };
        let call = (caller, Action::ResizeVolume);
        self.change(call, &on, change, |attempt, resized: &VolumeRecord| {
            done!(
                attempt,
                id = %resized.id,
                name = resized.name,
                size_bytes = resized.size_bytes,
                "volume resized"
            );
        })
        .await
    }

    /// The volume with this name or id, with its status.
    pub(crate) async fn volume(&self, caller: &Caller, key: &str) -> Result<VolumeDetails> {
        let on = [Resource::Volume(key)];
        let sight = self.sight(caller);
        self.pass(caller, Action::GetVolume, &on, async {
            let store = self.store();
            let key = sight.volume("volume", key)?;
            let record = store.volume(&key).await?;
            let status = store.volume_status(&VolumeKey::Id(record.id)).await?;
            let mut pending = Vec::with_capacity(record.pending.len());
            for snapshot in &record.pending {
                match store.snapshot(&SnapshotKey::Id(snapshot.snapshot)).await {
                    // The administrator may have taken one, too.
                    Ok(snapshot) if sight.sees(snapshot.owner) => {
                        pending.push(self.described(&sight, snapshot));
                    }
                    Ok(_) => {}
                    // Deleted just now.
                    Err(StoreError::NotFound { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(VolumeDetails {
                record,
                status,
                pending,
            })
        })
        .await
    }

    /// Lists volumes by name.
    pub(crate) async fn list_volumes(
        &self,
        caller: &Caller,
        request: &ListRequest,
    ) -> Result<Page<VolumeRecord>> {
        let sight = self.sight(caller);
        self.pass(caller, Action::ListVolumes, &[], async {
            let scope = sight.owner(&request.owner)?.into();
            let (query, tokens) = request.query(page_token::VOLUMES, scope)?;
            let found = self.store().list_volumes(query).await?;
            Ok(Page::of(found, request.limit(), tokens))
        })
        .await
    }

    /// Changes a volume's tags.
    pub(crate) async fn tag_volume(
        &self,
        caller: &Caller,
        key: &str,
        TagChange { set, remove }: TagChange,
    ) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key)];
        let (store, sight, key) = (self.store().clone(), self.sight(caller), key.to_owned());
        let change = async move {
            let key = sight.volume("volume", &key)?;
            Ok(store.tag_volume(&key, set, remove).await?)
        };
        let call = (caller, Action::TagVolume);
        self.change(call, &on, change, |attempt, tagged: &VolumeRecord| {
            done!(
                attempt,
                id = %tagged.id,
                name = tagged.name,
                tags = tagged.tags.len(),
                "volume tagged"
            );
        })
        .await
    }

    /// Gives a volume to another account.
    pub(crate) async fn give_volume(
        &self,
        caller: &Caller,
        key: &str,
        account: &str,
    ) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key), Resource::Account(account)];
        let (store, sight) = (self.store().clone(), self.sight(caller));
        let (key, account) = (key.to_owned(), account.to_owned());
        let change = async move {
            let to = sight.known(&account)?;
            let key = sight.volume("volume", &key)?;
            Ok(store.give_volume(&key, to).await?)
        };
        let call = (caller, Action::GiveVolume);
        self.change(call, &on, change, |attempt, given: &VolumeRecord| {
            let (id, owner) = (given.id, given.owner);
            done!(attempt, %id, name = given.name, %owner, "volume given");
        })
        .await
    }

    /// Deletes a volume. Returns its last record.
    pub(crate) async fn delete_volume(&self, caller: &Caller, key: &str) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key)];
        let (store, sight, key) = (self.store().clone(), self.sight(caller), key.to_owned());
        let change = async move {
            let key = sight.volume("volume", &key)?;
            Ok(store.delete_volume(&key).await?)
        };
        let call = (caller, Action::DeleteVolume);
        self.change(call, &on, change, |attempt, deleted: &VolumeRecord| {
            done!(
                attempt,
                id = %deleted.id,
                name = deleted.name,
                size_bytes = deleted.size_bytes,
                "volume deleted"
            );
        })
        .await
    }

    /// Attaches a volume: from then on it is exported.
    pub(crate) async fn attach_volume(
        &self,
        caller: &Caller,
        key: &str,
        AttachRequest { force, with_ticket }: AttachRequest,
    ) -> Result<AttachedAt> {
        let on = [Resource::Volume(key)];
        let (seen, key) = (self.sight(caller), key.to_owned());
        let (store, sight) = (self.store().clone(), seen.clone());
        let attachments = self.0.attachments.clone();
        let accounts = self.0.parts.accounts.clone();
        let change = async move {
            let key = sight.volume("volume", &key)?;
            // First, so that nothing is attached without the ticket that was asked for.
            let ticket_key = match with_ticket {
                true => Some(accounts.ticket_key().await?),
                false => None,
            };
            let attached = store.attach_volume(&key, force).await?;
            // Cut off the clients of the attachment before, and only then return the volume to its
            // new user.
            let before = attached.attachments.saturating_sub(1);
            attachments.end(attached.id, before).await?;
            let attachment = Attachment {
                volume: attached.id,
                number: attached.attachments,
                since_ns: attached.attached_at_ns.unwrap_or_default(),
            };
            let ticket = ticket_key.map(|key| Ticket::new(&key, attachment));
            Ok((attached, ticket))
        };
        let call = (caller, Action::AttachVolume);
        let attached = self.change(
            call,
            &on,
            change,
            move |attempt, (attached, _): &(VolumeRecord, Option<Ticket>)| {
                done!(
                    attempt,
                    id = %attached.id,
                    name = attached.name,
                    attachment = attached.attachments,
                    force,
                    with_ticket,
                    "volume attached"
                );
            },
        );
        let (record, ticket) = attached.await?;
        let key = match &ticket {
            Some(ticket) => {
                let number = record.attachments;
                format!("{}@{number}:{}", record.id, ticket.reveal())
            }
            None if seen.is_own(record.owner) => record.label().into_owned(),
            // A name is one of the caller's own volumes.
            None => record.id.to_string(),
        };
        let name = ExportName::Volume(&key);
        let is_open = self.directory().is_open_to_all();
        let servers = self.0.parts.facts.nbd_servers.iter();
        let servers = servers.filter(|server| match (&ticket, server) {
            (Some(_), server) => takes_tickets(server),
            // Over TCP without TLS, the daemon knows nobody but the bearers of tickets.
            (None, ServerUri::Tcp(_)) => is_open,
            (None, ServerUri::Unix(_) | ServerUri::Tls(_)) => true,
        });
        Ok(AttachedAt {
            export: name.to_string(),
            nbd_uris: servers.map(|server| server.export(name)).collect(),
            record,
        })
    }

    /// Detaches a volume: its clients are refused from then on, and what they wrote is durable.
    pub(crate) async fn detach_volume(&self, caller: &Caller, key: &str) -> Result<VolumeRecord> {
        let on = [Resource::Volume(key)];
        let (store, sight, key) = (self.store().clone(), self.sight(caller), key.to_owned());
        let attachments = self.0.attachments.clone();
        let change = async move {
            let key = sight.volume("volume", &key)?;
            let detached = store.detach_volume(&key).await?;
            attachments.end(detached.id, detached.attachments).await?;
            Ok(detached)
        };
        let call = (caller, Action::DetachVolume);
        self.change(call, &on, change, |attempt, detached: &VolumeRecord| {
            done!(attempt, id = %detached.id, name = detached.name, "volume detached");
        })
        .await
    }
}

/// Returns true if a client at this address may show a ticket.
fn takes_tickets(server: &ServerUri) -> bool {
    match server {
        ServerUri::Unix(_) | ServerUri::Tls(_) => true,
        ServerUri::Tcp(address) => address
            .parse::<SocketAddr>()
            .is_ok_and(|address| address.ip().to_canonical().is_loopback()),
    }
}

/// Parses the source of a clone, for the door and for the store. Its prefix is as in export names.
fn clone_source(source: &str) -> (Resource<'_>, Source<'_>) {
    match ExportName::parse(source) {
        Some(ExportName::Snapshot(key)) => (Resource::Snapshot(key), Source::Snapshot(key)),
        Some(ExportName::Volume(key)) => (Resource::Volume(key), Source::Volume(key)),
        Some(ExportName::Image(_)) | None => {
            (Resource::SnapshotOrVolume(source), Source::Either(source))
        }
    }
}
