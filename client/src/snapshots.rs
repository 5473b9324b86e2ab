//! The snapshots of a store: listing, looking at, tagging, deleting, comparing and verifying them.

use std::{
    collections::{BTreeMap, HashMap},
    time::SystemTime,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use varve_content::tree::RootId;
use varve_proto::v1;

use crate::{
    connect::Client,
    convert::{self, system_time, timestamp},
    error::{Error, ErrorKind, Result},
    limits::{LIST_PAGE, SNAPSHOT_POLL},
    pages,
    progress::Progress,
    retry,
};

/// An immutable, named state of a volume.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Snapshot {
    /// `snap-` and 17 hexadecimal digits.
    pub id: String,
    /// Unique in the store.
    pub name: String,
    /// How far along it is.
    pub state: SnapshotState,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Bytes that are not holes.
    pub data_bytes: u64,
    /// Id of the whole content: equal for equal content of equal size. `None` unless it is completed.
    pub root: Option<RootId>,
    /// The instant whose content it has; of an upload, when it was committed.
    pub created_at: SystemTime,
    /// Keys and values.
    pub tags: BTreeMap<String, String>,
    /// Plain bytes of the chunks that the store did not have before.
    pub new_bytes: u64,
    /// Bytes that those chunks and the new tree nodes take in packs.
    pub stored_bytes: u64,
    /// The volume it was made of; `None` for an upload.
    pub volume: Option<SnapshotVolume>,
    /// Id of the volume's snapshot before, or of the one that the volume was made from, even if that is deleted by now.
    pub parent: Option<String>,
    /// How far it has come, while it is pending.
    pub progress: Option<SnapshotProgress>,
    /// Why it failed, if it has; of one that is pending, why the last try could not complete it.
    pub failure: Option<String>,
}

/// The volume that a snapshot was made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SnapshotVolume {
    /// Its id.
    pub id: String,
    /// Its name at that time.
    pub name: String,
}

/// How far a pending snapshot has come.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SnapshotProgress {
    /// Bytes of the volume that were changed and are in the store, in whole segments.
    pub done_bytes: u64,
    /// Those that were changed in all; 0 until its turn has come.
    pub total_bytes: u64,
}

/// How far along a snapshot is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
#[non_exhaustive]
pub enum SnapshotState {
    /// All of its content is in the store.
    Completed,
    /// Its content is promised, and on its way into the store.
    Pending,
    /// Its content did not get into the store.
    Failed,
    /// Something this version of the client does not know.
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

/// Which snapshots to list. The default is all of them.
#[derive(Clone, Debug, Default)]
pub struct SnapshotFilter {
    /// Only names that start so.
    pub name_prefix: String,
    /// Only snapshots that have all of these tags with these values.
    pub tags: BTreeMap<String, String>,
}

/// Bytes that differ between two snapshots.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DiffExtent {
    /// Where they begin.
    pub offset_bytes: u64,
    /// How many there are.
    pub length_bytes: u64,
    /// How they differ.
    pub kind: DiffKind,
}

/// How bytes of two snapshots differ.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum DiffKind {
    /// Data in both, and different.
    Changed,
    /// A hole, or past the end, in the older; data in the newer.
    Added,
    /// Data in the older; a hole, or past the end, in the newer.
    Removed,
}

impl DiffKind {
    /// The kind as one lowercase word: stable, for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Changed => "changed",
            Self::Added => "added",
            Self::Removed => "removed",
        }
    }
}

/// How far the verification of a snapshot has come, and what it has found since the last message.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct VerifyProgress {
    /// Chunks and nodes read and checked so far.
    pub checked: u64,
    /// Plain bytes of those chunks.
    pub checked_bytes: u64,
    /// Bytes there are to check.
    pub total_bytes: u64,
    /// What was found not to be as it must be.
    pub violations: Vec<Violation>,
    /// All is checked.
    pub done: bool,
}

/// Something in the store that is not as it must be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// In words, naming pack, offset and id.
    pub message: String,
    /// Offset in the snapshot where it is seen first.
    pub offset_bytes: u64,
}

impl Client {
    /// The snapshots that pass `filter`, by name. Pages are fetched as they are needed.
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

    /// The snapshot with this name or id.
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

    /// Deletes the record of the snapshot with this name or id; gives what was deleted.
    pub async fn delete_snapshot(&self, snapshot: &str) -> Result<Snapshot> {
        let what = format!("delete snapshot {snapshot}");
        let request = v1::DeleteSnapshotRequest {
            snapshot: snapshot.to_owned(),
        };
        let deleted = self
            .snapshot_service()
            .delete_snapshot(request)
            .await
            .map_err(|status| Error::rpc(&what, status))?;
        Snapshot::from_proto(&what, deleted.into_inner().deleted)
    }

    /// Makes snapshots of what the volumes with these names or ids hold at one instant. They are pending when this returns: their content
    /// is promised, and goes into the store in the background.
    ///
    /// The snapshot of a single volume is called `name`. Of several, each one's is called that, a hyphen, and the volume's name.
    pub async fn create_snapshots(
        &self,
        volumes: &[String],
        name: &str,
        tags: BTreeMap<String, String>,
    ) -> Result<Vec<Snapshot>> {
        let what = format!("make snapshot {name} of volume {}", volumes.join(", "));
        let request = v1::CreateSnapshotsRequest {
            volumes: volumes.to_vec(),
            name: name.to_owned(),
            tags,
        };
        // Not tried again: they may have been made by the call whose answer was lost.
        let created = self
            .snapshot_service()
            .create_snapshots(request)
            .await
            .map_err(|status| Error::rpc(&what, status))?;
        let snapshots = created.into_inner().snapshots.into_iter();
        snapshots
            .map(|snapshot| Snapshot::from_proto(&what, Some(snapshot)))
            .collect()
    }

    /// Waits until none of these snapshots, by name or id, is pending, and gives them as they are then. Passes a snapshot to `waits`
    /// whenever the last try could not complete it, for a reason that was not told yet.
    ///
    /// # Errors
    ///
    /// One of them has failed, or was deleted.
    pub async fn completed_snapshots(
        &self,
        snapshots: &[String],
        progress: &Progress,
        mut waits: impl FnMut(&Snapshot),
    ) -> Result<Vec<Snapshot>> {
        let mut told = HashMap::new();
        loop {
            let mut found = Vec::with_capacity(snapshots.len());
            for snapshot in snapshots {
                found.push(self.snapshot(snapshot).await?);
            }
            for snapshot in &found {
                if snapshot.state == SnapshotState::Failed {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        format!("wait for snapshot {}", snapshot.name),
                        format!(
                            "it has failed: {}",
                            snapshot.failure.as_deref().unwrap_or("nothing says why")
                        ),
                    ));
                }
            }
            let pending = |snapshot: &&Snapshot| snapshot.state == SnapshotState::Pending;
            if !found.iter().any(|snapshot| pending(&snapshot)) {
                return Ok(found);
            }
            for snapshot in found.iter().filter(pending) {
                if snapshot.failure.is_some() && told.get(&snapshot.id) != Some(&snapshot.failure) {
                    waits(snapshot);
                    told.insert(snapshot.id.clone(), snapshot.failure.clone());
                }
            }
            let all = found.iter().filter_map(|snapshot| snapshot.progress);
            let (done, total) = all.fold((0, 0), |(done, total), it| {
                (done + it.done_bytes, total + it.total_bytes)
            });
            progress.set_total(total);
            progress.set_done(done);
            tokio::time::sleep(SNAPSHOT_POLL).await;
        }
    }

    /// Sets tags of the snapshot with this name or id, and removes those with the keys in `remove`, in one step.
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

    /// Where two snapshots differ, in ascending order. They need not be related.
    pub async fn diff_snapshots(
        &self,
        base: &str,
        target: &str,
    ) -> Result<impl Stream<Item = Result<DiffExtent>> + Send + use<>> {
        let what = format!("compare snapshots {base} and {target}");
        let request = v1::DiffSnapshotsRequest {
            base: base.to_owned(),
            target: target.to_owned(),
        };
        let answers = self
            .snapshot_service()
            .diff_snapshots(request)
            .await
            .map_err(|status| Error::rpc(&what, status))?;
        Ok(answers.into_inner().flat_map(move |answer| {
            let extents = match answer {
                Ok(answer) => answer
                    .extents
                    .iter()
                    .map(|extent| DiffExtent::from_proto(&what, extent))
                    .collect(),
                Err(status) => vec![Err(Error::rpc(&what, status))],
            };
            stream::iter(extents)
        }))
    }

    /// Reads and checks everything the snapshot with this name or id is made of. Damage is no error of this call but
    /// reported as violations.
    pub async fn verify_snapshot(
        &self,
        snapshot: &str,
    ) -> Result<impl Stream<Item = Result<VerifyProgress>> + Send + use<>> {
        let what = format!("verify snapshot {snapshot}");
        let request = v1::VerifySnapshotRequest {
            snapshot: snapshot.to_owned(),
        };
        let answers = self
            .snapshot_service()
            .verify_snapshot(request)
            .await
            .map_err(|status| Error::rpc(&what, status))?;
        Ok(answers.into_inner().map(move |answer| {
            answer
                .map(VerifyProgress::from_proto)
                .map_err(|status| Error::rpc(&what, status))
        }))
    }
}

impl Snapshot {
    /// As it is told to others.
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
                format!("snapshot {} was made at no time there is", snapshot.id),
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
        })
    }
}

impl DiffExtent {
    fn from_proto(what: &str, extent: &v1::DiffExtent) -> Result<Self> {
        let kind = match extent.kind() {
            v1::DiffKind::Changed => DiffKind::Changed,
            v1::DiffKind::Added => DiffKind::Added,
            v1::DiffKind::Removed => DiffKind::Removed,
            v1::DiffKind::Unspecified => {
                return Err(Error::protocol(
                    what,
                    format!("a difference of unknown kind {}", extent.kind),
                ));
            }
        };
        Ok(Self {
            offset_bytes: extent.offset_bytes,
            length_bytes: extent.length_bytes,
            kind,
        })
    }
}

impl VerifyProgress {
    fn from_proto(answer: v1::VerifySnapshotResponse) -> Self {
        let violations = answer
            .violations
            .into_iter()
            .map(|violation| Violation {
                message: violation.message,
                offset_bytes: violation.offset_bytes,
            })
            .collect();
        Self {
            checked: answer.checked,
            checked_bytes: answer.checked_bytes,
            total_bytes: answer.total_bytes,
            violations,
            done: answer.done,
        }
    }
}
