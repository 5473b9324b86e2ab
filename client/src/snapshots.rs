//! The snapshots of a store: list, show, create, tag, delete.

use std::{collections::BTreeMap, time::SystemTime};

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _, stream};
use tonic::Code;
use varve_content::tree::RootId;
use varve_proto::v1;

use crate::{
    connect::Client,
    convert::{self, system_time, timestamp},
    error::{Error, ErrorKind, Result},
    limits::{DELETE_SNAPSHOTS_MAX, LIST_PAGE},
    pages, retry,
};

/// An immutable, named state of a volume.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// `snap-` and 17 hexadecimal digits.
    pub id: String,
    /// Unique among the snapshots of its owner.
    pub name: String,
    /// Its state.
    pub state: SnapshotState,
    /// Size of the volume, in bytes.
    pub size_bytes: u64,
    /// Bytes of it that are not holes.
    pub data_bytes: u64,
    /// Id of the whole content: equal for equal content of equal size. `None` unless it is
    /// completed.
    pub root: Option<RootId>,
    /// The instant of its content. For an upload: the time of its commit.
    pub created_at: SystemTime,
    /// Keys and values.
    pub tags: BTreeMap<String, String>,
    /// Plain bytes of the chunks that the store did not have before this snapshot.
    pub new_bytes: u64,
    /// Bytes that those chunks and the new tree nodes take in packs.
    pub stored_bytes: u64,
    /// The volume it was made of; `None` for an upload.
    pub volume: Option<SnapshotVolume>,
    /// Id of the volume's previous snapshot, or of the snapshot that the volume was made from. It
    /// may have been deleted since.
    pub parent: Option<String>,
    /// Progress of its way into the store. `None` unless it is pending.
    pub progress: Option<SnapshotProgress>,
    /// The reason why it failed. For a pending snapshot: the reason why the last attempt could not
    /// complete it.
    pub failure: Option<String>,
    /// Id of the account that it belongs to, 12 decimal digits. Empty from daemons without
    /// accounts, and in archives.
    pub owner: String,
    /// Whom it is shared with. Only its owner and the administrator see that.
    pub sharing: Sharing,
}

/// Those who may read a snapshot beside its owner.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sharing {
    /// Ids of accounts, 12 decimal digits. In requests of the administrator also their names.
    pub accounts: Vec<String>,
    /// All accounts, also those that are made later.
    pub everybody: bool,
}

/// The volume that a snapshot was made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SnapshotVolume {
    /// Its id.
    pub id: String,
    /// Its name at that time.
    pub name: String,
}

/// Progress of a pending snapshot's way into the store.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SnapshotProgress {
    /// Changed bytes of the volume that are in the store, in whole segments.
    pub done_bytes: u64,
    /// Changed bytes of the volume in all; 0 until its turn has come.
    pub total_bytes: u64,
}

/// The states of a snapshot.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum SnapshotState {
    /// All of its content is in the store.
    Completed,
    /// Its content is durable in the volume's journal, and on its way into the store.
    Pending,
    /// Its content did not get into the store, and never will.
    Failed,
    /// A state that this version of the client does not know.
    Unknown,
}

impl SnapshotState {
    /// The state as one lowercase word: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Pending => "pending",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// A filter for lists of snapshots. The default lists all.
#[derive(Clone, Debug, Default)]
pub struct SnapshotFilter {
    /// Only names with this prefix.
    pub name_prefix: String,
    /// Only snapshots that have all of these tags with these values.
    pub tags: BTreeMap<String, String>,
    /// Only snapshots of this account: its id, its name or its alias, or `self`. Empty or `all`:
    /// all that the caller may see.
    pub owner: String,
}

/// The deletion of one of several snapshots.
#[derive(Debug)]
#[non_exhaustive]
pub struct SnapshotDeletion {
    /// The snapshot, by the name or id that the caller gave.
    pub snapshot: String,
    /// The deleted snapshot, or the reason why it was not deleted:
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if it does not exist.
    pub outcome: Result<Snapshot>,
}

impl Client {
    /// Lists the snapshots that pass `filter`, by owner, then by name. Pages are fetched on demand.
    ///
    /// The stream ends with its first error: one of the connection.
    pub fn snapshots(
        &self,
        filter: SnapshotFilter,
    ) -> impl Stream<Item = Result<Snapshot>> + Send + use<> {
        const WHAT: &str = "list snapshots";
        let client = self.clone();
        pages::listed(WHAT, move |page_token| {
            let client = client.clone();
            let request = v1::ListSnapshotsRequest {
                page_size: LIST_PAGE,
                page_token,
                name_prefix: filter.name_prefix.clone(),
                tags: filter.tags.clone(),
                owner: filter.owner.clone(),
            };
            async move {
                let page = retry::idempotent(|| {
                    let (mut service, request) = (client.snapshot_service(), request.clone());
                    async move { service.list_snapshots(request).await }
                })
                .await
                .map_err(|status| Error::rpc(WHAT, status))?
                .into_inner();
                let snapshots = page
                    .snapshots
                    .into_iter()
                    .map(|snapshot| Snapshot::from_proto(WHAT, Some(snapshot)))
                    .collect::<Result<_>>()?;
                Ok((snapshots, page.next_page_token))
            }
        })
    }

    /// Finds the snapshot with this name or id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no such snapshot; those of
    /// the connection.
    pub async fn snapshot(&self, snapshot: &str) -> Result<Snapshot> {
        let what = format!("get snapshot {snapshot}");
        let request = v1::GetSnapshotRequest {
            snapshot: snapshot.to_owned(),
        };
        let found = retry::idempotent(|| {
            let (mut service, request) = (self.snapshot_service(), request.clone());
            async move { service.get_snapshot(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Snapshot::from_proto(&what, Some(found.into_inner()))
    }

    /// Deletes the record of the snapshot with this name or id, and returns it. Its chunks stay in
    /// the store.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no such snapshot; those of
    /// the connection.
    pub async fn delete_snapshot(&self, snapshot: &str) -> Result<Snapshot> {
        let what = format!("delete snapshot {snapshot}");
        let request = v1::DeleteSnapshotRequest {
            snapshot: snapshot.to_owned(),
        };
        let deleted = retry::while_busy(|| {
            let (mut service, request) = (self.snapshot_service(), request.clone());
            async move { service.delete_snapshot(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Snapshot::from_proto(&what, deleted.into_inner().deleted)
    }

    /// Deletes the records of the snapshots with these names or ids, many with each call, and
    /// returns the outcome for each, in order. A snapshot that is named twice is not found the
    /// second time.
    ///
    /// The stream deletes as it is polled. It ends with its first error, one of the connection:
    /// the snapshots before are deleted, and those of the call that failed may be.
    pub fn delete_snapshots(
        &self,
        snapshots: Vec<String>,
    ) -> impl Stream<Item = Result<SnapshotDeletion>> + Send + use<> {
        let first = (self.clone(), snapshots.into_iter());
        let deletions = stream::try_unfold(first, |(client, mut rest)| async move {
            let asked = rest.as_slice();
            let asked = asked.get(..DELETE_SNAPSHOTS_MAX).unwrap_or(asked);
            if asked.is_empty() {
                return Ok::<_, Error>(None);
            }
            let outcomes = client.delete_some(asked.to_vec()).await?;
            let deleted: Vec<_> = rest.by_ref().take(outcomes.len()).zip(outcomes).collect();
            Ok(Some((deleted, (client, rest))))
        });
        let deletions = deletions.map_ok(|deleted| {
            let deleted = deleted
                .into_iter()
                .map(|(snapshot, outcome)| SnapshotDeletion { snapshot, outcome });
            stream::iter(deleted.map(Ok))
        });
        deletions.try_flatten()
    }

    /// One call: outcomes for the first of these snapshots.
    async fn delete_some(&self, snapshots: Vec<String>) -> Result<Vec<Result<Snapshot>>> {
        const WHAT: &str = "delete snapshots";
        let request = v1::DeleteSnapshotsRequest { snapshots };
        // Not tried again: they may have been deleted by the call whose answer was lost.
        let answer = retry::while_busy(|| {
            let (mut service, request) = (self.snapshot_service(), request.clone());
            async move { service.delete_snapshots(request).await }
        })
        .await
        .map_err(|status| Error::rpc(WHAT, status))?;
        let outcomes = answer.into_inner().outcomes;
        if outcomes.is_empty() || outcomes.len() > request.snapshots.len() {
            let (found, asked) = (outcomes.len(), request.snapshots.len());
            let why = format!("{found} outcomes for {asked} snapshots");
            return Err(Error::protocol(WHAT, why));
        }
        let outcomes = request.snapshots.iter().zip(outcomes);
        Ok(outcomes
            .map(|(snapshot, outcome)| Snapshot::deleted(snapshot, outcome))
            .collect())
    }

    /// Makes snapshots of the volumes with these names or ids, all of one instant: they are
    /// crash-consistent as a group. They are pending when this returns: their content is durable,
    /// and the daemon moves it into the store in the background; see
    /// [`wait_for_snapshots`](Self::wait_for_snapshots).
    ///
    /// The snapshot of a single volume is named `name`. The snapshots of several volumes are named
    /// `name`, a hyphen, and the volume's name.
    ///
    /// # Errors
    ///
    /// None of the snapshots is made then. [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if
    /// one of the volumes does not exist,
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if a name is taken; those of
    /// the connection. The call is not repeated, so after a lost connection the snapshots may
    /// exist.
    pub async fn create_snapshots(
        &self,
        volumes: &[String],
        name: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<Vec<Snapshot>> {
        let noun = if volumes.len() == 1 {
            "volume"
        } else {
            "volumes"
        };
        let what = format!("make snapshot {name} of {noun} {}", volumes.join(", "));
        let request = v1::CreateSnapshotsRequest {
            volumes: volumes.to_vec(),
            name: name.to_owned(),
            tags,
        };
        // Not tried again: they may have been made by the call whose answer was lost.
        let created = retry::while_busy(|| {
            let (mut service, request) = (self.snapshot_service(), request.clone());
            async move { service.create_snapshots(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        let snapshots = created.into_inner().snapshots.into_iter();
        snapshots
            .map(|snapshot| Snapshot::from_proto(&what, Some(snapshot)))
            .collect()
    }

    /// Sets tags of the snapshot with this name or id, and removes those with the keys in `remove`,
    /// in one step. Returns the updated snapshot.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no such snapshot,
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for invalid tags; errors of the
    /// connection.
    pub async fn tag_snapshot(
        &self,
        snapshot: &str,
        set: BTreeMap<String, String>,
        remove: Vec<String>,
    ) -> Result<Snapshot> {
        let what = format!("tag snapshot {snapshot}");
        let request = v1::TagSnapshotRequest {
            snapshot: snapshot.to_owned(),
            set,
            remove,
        };
        let tagged = retry::idempotent(|| {
            let (mut service, request) = (self.snapshot_service(), request.clone());
            async move { service.tag_snapshot(request).await }
        })
        .await
        .map_err(|status| Error::rpc(&what, status))?;
        Snapshot::from_proto(&what, Some(tagged.into_inner()))
    }

    /// Gives the snapshot with this name or id to another account, given by its id, name or alias,
    /// and returns it. Only the administrator may do this.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no such snapshot or account,
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists) if the account has a snapshot
    /// of that name; errors of the connection.
    pub async fn give_snapshot(&self, snapshot: &str, account: &str) -> Result<Snapshot> {
        let what = format!("give snapshot {snapshot} to account {account}");
        let request = v1::GiveSnapshotRequest {
            snapshot: snapshot.to_owned(),
            account: account.to_owned(),
        };
        // Not tried again: the caller may have no right to see it after the first run.
        let given = retry::while_busy(|| {
            let (mut service, request) = (self.snapshot_service(), request.clone());
            async move { service.give_snapshot(request).await }
        })
        .await;
        let given = given.map_err(|status| Error::rpc(&what, status))?;
        Snapshot::from_proto(&what, Some(given.into_inner()))
    }

    /// Shares the snapshot with this name or id with others, beside those whom it is shared with
    /// already, and returns it. They may read it, and make volumes from it, by its id.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) if there is no such snapshot,
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for an account that is not
    /// named by its id, [`ErrorKind::OutOfSpace`](crate::ErrorKind::OutOfSpace) for
    /// more than 1000 accounts; errors of the connection.
    pub async fn share_snapshot(&self, snapshot: &str, with: Sharing) -> Result<Snapshot> {
        let what = format!("share snapshot {snapshot}");
        let request = v1::ShareSnapshotRequest {
            snapshot: snapshot.to_owned(),
            accounts: with.accounts,
            everybody: with.everybody,
        };
        let shared = retry::idempotent(|| {
            let (mut service, request) = (self.snapshot_service(), request.clone());
            async move { service.share_snapshot(request).await }
        });
        let shared = shared.await.map_err(|status| Error::rpc(&what, status))?;
        Snapshot::from_proto(&what, Some(shared.into_inner()))
    }

    /// Ends the sharing of a snapshot with these, and returns it. What they made of it stays.
    ///
    /// # Errors
    ///
    /// As of [`share_snapshot`](Self::share_snapshot).
    pub async fn unshare_snapshot(&self, snapshot: &str, with: Sharing) -> Result<Snapshot> {
        let what = format!("end the sharing of snapshot {snapshot}");
        let request = v1::UnshareSnapshotRequest {
            snapshot: snapshot.to_owned(),
            accounts: with.accounts,
            everybody: with.everybody,
        };
        let unshared = retry::idempotent(|| {
            let (mut service, request) = (self.snapshot_service(), request.clone());
            async move { service.unshare_snapshot(request).await }
        });
        let unshared = unshared.await.map_err(|status| Error::rpc(&what, status))?;
        Snapshot::from_proto(&what, Some(unshared.into_inner()))
    }
}

impl Snapshot {
    /// The snapshot as a message.
    pub(crate) fn to_proto(&self) -> v1::Snapshot {
        let state = match self.state {
            SnapshotState::Completed => v1::SnapshotState::Completed,
            SnapshotState::Pending => v1::SnapshotState::Pending,
            SnapshotState::Failed => v1::SnapshotState::Failed,
            SnapshotState::Unknown => v1::SnapshotState::Unspecified,
        };
        let root = self
            .root
            .map(|root| Bytes::copy_from_slice(root.as_bytes()));
        let volume = self.volume.clone();
        let (volume_id, volume_name) = volume
            .map(|volume| (volume.id, volume.name))
            .unwrap_or_default();
        v1::Snapshot {
            id: self.id.clone(),
            name: self.name.clone(),
            state: state.into(),
            size_bytes: self.size_bytes,
            data_bytes: self.data_bytes,
            root: root.unwrap_or_default(),
            created_at: Some(timestamp(self.created_at)),
            tags: self.tags.clone(),
            new_bytes: self.new_bytes,
            stored_bytes: self.stored_bytes,
            volume_id,
            volume_name,
            parent: self.parent.clone().unwrap_or_default(),
            progress: None,
            failure: self.failure.clone().unwrap_or_default(),
            // An account of one store means nothing in another.
            owner: String::new(),
            shared_accounts: Vec::new(),
            shared_with_everybody: false,
        }
    }

    /// The outcome of the deletion of the snapshot with this name or id.
    pub(crate) fn deleted(snapshot: &str, outcome: v1::SnapshotDeletion) -> Result<Self> {
        let what = format!("delete snapshot {snapshot}");
        match outcome.code {
            0 => Self::from_proto(&what, outcome.deleted),
            code => {
                let kind = ErrorKind::from_code(Code::from_i32(code));
                Err(Error::new(kind, what, outcome.message))
            }
        }
    }

    pub(crate) fn from_proto(what: &str, snapshot: Option<v1::Snapshot>) -> Result<Self> {
        let Some(snapshot) = snapshot else {
            return Err(Error::protocol(what, "an answer without its snapshot"));
        };
        let state = match snapshot.state() {
            v1::SnapshotState::Completed => SnapshotState::Completed,
            v1::SnapshotState::Pending => SnapshotState::Pending,
            v1::SnapshotState::Failed => SnapshotState::Failed,
            v1::SnapshotState::Unspecified => SnapshotState::Unknown,
        };
        let root = match (&snapshot.root[..], state) {
            ([], SnapshotState::Pending | SnapshotState::Failed | SnapshotState::Unknown) => None,
            ([], _) => {
                let why = format!("snapshot {} is completed and has no root", snapshot.id);
                return Err(Error::protocol(what, why));
            }
            (root, _) => convert::root(what, &snapshot.id, root)?,
        };
        let Some(created_at) = snapshot.created_at.and_then(system_time) else {
            return Err(Error::protocol(
                what,
                format!("snapshot {} has an invalid time", snapshot.id),
            ));
        };
        Ok(Self {
            state,
            root,
            created_at,
            id: snapshot.id,
            name: snapshot.name,
            size_bytes: snapshot.size_bytes,
            data_bytes: snapshot.data_bytes,
            tags: snapshot.tags,
            new_bytes: snapshot.new_bytes,
            stored_bytes: snapshot.stored_bytes,
            volume: (!snapshot.volume_id.is_empty()).then_some(SnapshotVolume {
                id: snapshot.volume_id,
                name: snapshot.volume_name,
            }),
            parent: (!snapshot.parent.is_empty()).then_some(snapshot.parent),
            progress: snapshot.progress.map(|progress| SnapshotProgress {
                done_bytes: progress.done_bytes,
                total_bytes: progress.total_bytes,
            }),
            failure: (!snapshot.failure.is_empty()).then_some(snapshot.failure),
            owner: snapshot.owner,
            sharing: Sharing {
                accounts: snapshot.shared_accounts,
                everybody: snapshot.shared_with_everybody,
            },
        })
    }
}
