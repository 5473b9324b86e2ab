//! Snapshots as records, their differences, their verification.

use std::collections::BTreeMap;

use tokio::time;
use varve_store::{
    DiffExtent, NewSnapshots, Result as StoreResult, Sharing, SnapshotDiff, SnapshotProgress,
    SnapshotRecord, SnapshotState, SnapshotVerify, VerifyProgress, Violation,
};

use super::{
    Grantees, Service,
    error::Result,
    page_token,
    pages::{ListRequest, Page},
    request,
    sight::Sight,
    streams::{self, Items, Outlet},
};
use crate::{
    auth::{Action, Attempt, Caller, Resource, done},
    limits,
};

/// A snapshot, with its progress while it is pending.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) record: SnapshotRecord,
    /// The default if the snapshot is not pending.
    pub(crate) progress: SnapshotProgress,
}

impl From<SnapshotRecord> for Snapshot {
    /// A snapshot that is not pending.
    fn from(record: SnapshotRecord) -> Self {
        Self {
            record,
            progress: SnapshotProgress::default(),
        }
    }
}

/// Snapshots to be made of volumes at one instant.
#[derive(Debug, Clone, Default)]
pub(crate) struct SnapshotsRequest {
    /// Names or ids.
    pub(crate) volumes: Vec<String>,
    /// Name of the snapshot; with several volumes, the beginning of each name.
    pub(crate) name: String,
    pub(crate) tags: BTreeMap<String, String>,
}

/// Tags to set and keys to remove, of a snapshot or a volume.
#[derive(Debug, Clone, Default)]
pub(crate) struct TagChange {
    pub(crate) set: BTreeMap<String, String>,
    pub(crate) remove: Vec<String>,
}

/// Progress of a verification, and the damage found since the state before.
#[derive(Debug, Clone, Default)]
pub(crate) struct VerifyState {
    /// Nodes and chunks.
    pub(crate) checked: u64,
    pub(crate) checked_bytes: u64,
    pub(crate) total_bytes: u64,
    pub(crate) violations: Vec<Violation>,
    /// Set in the last state.
    pub(crate) done: bool,
}

impl Service {
    /// Lists snapshots by name.
    pub(crate) async fn list_snapshots(
        &self,
        caller: &Caller,
        request: &ListRequest,
    ) -> Result<Page<Snapshot>> {
        let sight = self.sight(caller);
        self.pass(caller, Action::ListSnapshots, &[], async {
            let scope = sight.readable(&request.owner)?;
            let (query, tokens) = request.query(page_token::SNAPSHOTS, scope)?;
            let found = self.store().list_snapshots(query).await?;
            let page = Page::of(found, request.limit(), tokens);
            Ok(page.map(|record| self.described(&sight, record)))
        })
        .await
    }

    /// The snapshot with this name or id.
    pub(crate) async fn snapshot(&self, caller: &Caller, key: &str) -> Result<Snapshot> {
        let on = [Resource::Snapshot(key)];
        let sight = self.sight(caller);
        self.pass(caller, Action::GetSnapshot, &on, async {
            let key = sight.readable_snapshot("snapshot", key)?;
            Ok(self.described(&sight, self.store().snapshot(&key).await?))
        })
        .await
    }

    /// Takes snapshots of volumes at one instant. They are pending at first.
    pub(crate) async fn create_snapshots(
        &self,
        caller: &Caller,
        SnapshotsRequest {
            volumes,
            name,
            tags,
        }: SnapshotsRequest,
    ) -> Result<Vec<Snapshot>> {
        let group = format!("{name}-*");
        let mut on: Vec<_> = volumes.iter().map(|key| Resource::Volume(key)).collect();
        on.push(match volumes.len() {
            1 => Resource::Snapshot(&name),
            _ => Resource::Snapshots(&group),
        });
        let seen = self.sight(caller);
        let (store, sight) = (self.store().clone(), seen.clone());
        let (wanted, name) = (volumes.clone(), name.clone());
        let change = async move {
            let volumes = sight.volumes(&wanted)?;
            let owner = sight.account()?;
            let new = NewSnapshots {
                owner,
                volumes,
                name,
                tags,
            };
            Ok(store.snapshot_volumes(new).await?)
        };
        let call = (caller, Action::CreateSnapshots);
        let made = self.change(call, &on, change, |attempt, made: &Vec<_>| {
            made.iter().for_each(|made| tell_pending(attempt, made));
        });
        let made = made.await?.into_iter();
        Ok(made.map(|record| self.described(&seen, record)).collect())
    }

    /// Deletes a snapshot. Returns its last record.
    pub(crate) async fn delete_snapshot(&self, caller: &Caller, key: &str) -> Result<Snapshot> {
        let on = [Resource::Snapshot(key)];
        let seen = self.sight(caller);
        let (store, sight, key) = (self.store().clone(), seen.clone(), key.to_owned());
        let change = async move {
            let key = sight.snapshot("snapshot", &key)?;
            Ok(store.delete_snapshot(&key).await?)
        };
        let call = (caller, Action::DeleteSnapshot);
        let deleted = self.change(call, &on, change, tell_one_deleted);
        Ok(self.described(&seen, deleted.await?))
    }

    /// Deletes the first ones of these snapshots, as many as one change of the catalog has room
    /// for. Returns for each of them the last record, or the reason why it is not deleted.
    pub(crate) async fn delete_snapshots(
        &self,
        caller: &Caller,
        keys: Vec<String>,
    ) -> Result<Vec<Result<Snapshot>>> {
        let on: Vec<_> = keys.iter().map(|key| Resource::Snapshot(key)).collect();
        let seen = self.sight(caller);
        let (store, sight, wanted) = (self.store().clone(), seen.clone(), keys.clone());
        let change = async move {
            request::are_snapshots(&wanted)?;
            let keys = sight.snapshots(&wanted)?;
            Ok(store.delete_snapshots(keys).await?)
        };
        let call = (caller, Action::DeleteSnapshots);
        let tell = {
            let keys = keys.clone();
            move |attempt: &Attempt, outcomes: &Vec<_>| tell_deleted(attempt, &keys, outcomes)
        };
        let outcomes = self.change(call, &on, change, tell).await?.into_iter();
        let outcomes = outcomes.map(|outcome| Ok(self.described(&seen, outcome?)));
        Ok(outcomes.collect())
    }

    /// Changes a snapshot's tags.
    pub(crate) async fn tag_snapshot(
        &self,
        caller: &Caller,
        key: &str,
        TagChange { set, remove }: TagChange,
    ) -> Result<Snapshot> {
        let on = [Resource::Snapshot(key)];
        let seen = self.sight(caller);
        let (store, sight, key) = (self.store().clone(), seen.clone(), key.to_owned());
        let change = async move {
            let key = sight.snapshot("snapshot", &key)?;
            Ok(store.tag_snapshot(&key, set, remove).await?)
        };
        let call = (caller, Action::TagSnapshot);
        let tagged = self.change(call, &on, change, |attempt, tagged: &SnapshotRecord| {
            done!(
                attempt,
                id = %tagged.id,
                name = tagged.name,
                tags = tagged.tags.len(),
                "snapshot tagged"
            );
        });
        Ok(self.described(&seen, tagged.await?))
    }

    /// Differences of `target` from `base`: extents in ascending order. Adjacent extents of one
    /// kind are joined.
    pub(crate) async fn diff_snapshots(
        &self,
        caller: &Caller,
        base: &str,
        target: &str,
    ) -> Result<Items<Vec<DiffExtent>>> {
        let on = [Resource::Snapshot(base), Resource::Snapshot(target)];
        let sight = self.sight(caller);
        let open = async {
            let base = sight.readable_snapshot("base", base)?;
            let target = sight.readable_snapshot("target", target)?;
            let place = streams::place(&self.0.checks, caller).await?;
            Ok((self.store().diff(&base, &target).await?, place))
        };
        let (call, tell) = ((caller, Action::DiffSnapshots), |it: &Attempt, (): &()| {
            it.served()
        });
        self.pass_stream(call, &on, open, send_diff, tell).await
    }

    /// Reads all of a snapshot, and reports damage.
    pub(crate) async fn verify_snapshot(
        &self,
        caller: &Caller,
        key: &str,
    ) -> Result<Items<VerifyState>> {
        let on = [Resource::Snapshot(key)];
        let sight = self.sight(caller);
        let open = async {
            let key = sight.readable_snapshot("snapshot", key)?;
            let place = streams::place(&self.0.checks, caller).await?;
            Ok((self.store().verify(&key).await?, place))
        };
        let name = key.to_owned();
        let work = |verify, outlet| send_verify(name, verify, outlet);
        let (call, tell) = ((caller, Action::VerifySnapshot), Verified::tell);
        self.pass_stream(call, &on, open, work, tell).await
    }

    /// Gives a snapshot to another account.
    pub(crate) async fn give_snapshot(
        &self,
        caller: &Caller,
        key: &str,
        account: &str,
    ) -> Result<Snapshot> {
        let on = [Resource::Snapshot(key), Resource::Account(account)];
        let seen = self.sight(caller);
        let (store, sight) = (self.store().clone(), seen.clone());
        let (key, account) = (key.to_owned(), account.to_owned());
        let change = async move {
            let to = sight.known(&account)?;
            let key = sight.snapshot("snapshot", &key)?;
            Ok(store.give_snapshot(&key, to).await?)
        };
        let call = (caller, Action::GiveSnapshot);
        let given = self.change(call, &on, change, |attempt, given: &SnapshotRecord| {
            let (id, owner) = (given.id, given.owner);
            done!(attempt, %id, name = given.name, %owner, "snapshot given");
        });
        Ok(self.described(&seen, given.await?))
    }

    /// Shares a snapshot with others, or ends that.
    pub(crate) async fn share_snapshot(
        &self,
        caller: &Caller,
        key: &str,
        with: Grantees,
        ends: bool,
    ) -> Result<Snapshot> {
        let mut on = vec![Resource::Snapshot(key)];
        on.extend(with.as_resources());
        let seen = self.sight(caller);
        let (store, sight) = (self.store().clone(), seen.clone());
        let (key, wanted) = (key.to_owned(), with.clone());
        let change = async move {
            let with = sight.grantees(&wanted)?;
            let key = sight.snapshot("snapshot", &key)?;
            Ok(match ends {
                true => store.unshare_snapshot(&key, with).await?,
                false => store.share_snapshot(&key, with).await?,
            })
        };
        let (action, message) = match ends {
            true => (Action::UnshareSnapshot, "sharing of a snapshot ended"),
            false => (Action::ShareSnapshot, "snapshot shared"),
        };
        let call = (caller, action);
        let changed = self.change(call, &on, change, move |attempt, it: &SnapshotRecord| {
            done!(
                attempt,
                id = %it.id,
                name = it.name,
                accounts = it.sharing.accounts.len(),
                everybody = it.sharing.everybody,
                "{message}"
            );
        });
        Ok(self.described(&seen, changed.await?))
    }

    /// A snapshot as a caller sees it, with its progress. What the store had before of its content
    /// tells of the content of other accounts, so only the administrator sees that. Whoever it is
    /// shared with sees its content, and not how its owner keeps it.
    pub(super) fn described(&self, sight: &Sight, mut record: SnapshotRecord) -> Snapshot {
        if !sight.sees(record.owner) {
            record.tags.clear();
            record.sharing = Sharing::default();
            record.origin = None;
            record.parent = None;
        }
        if let SnapshotState::Completed(content) = &mut record.state
            && !sight.sees_others()
        {
            content.new_bytes = 0;
            content.stored_bytes = 0;
        }
        let progress = match record.state {
            SnapshotState::Pending => {
                let progress = self.store().snapshot_progress(record.id);
                progress.unwrap_or_default()
            }
            SnapshotState::Completed(_) | SnapshotState::Failed { .. } => {
                SnapshotProgress::default()
            }
        };
        Snapshot { record, progress }
    }
}

/// Logs each of several deletions as if it were a call of its own.
fn tell_deleted(attempt: &Attempt, keys: &[String], outcomes: &[StoreResult<SnapshotRecord>]) {
    for (key, outcome) in keys.iter().zip(outcomes) {
        let part = attempt.part(&[Resource::Snapshot(key)]);
        match outcome {
            Ok(deleted) => tell_one_deleted(&part, deleted),
            Err(error) => part.fail(error),
        }
    }
}

fn tell_one_deleted(attempt: &Attempt, deleted: &SnapshotRecord) {
    done!(
        attempt,
        id = %deleted.id,
        name = deleted.name,
        size_bytes = deleted.size_bytes,
        "snapshot deleted"
    );
}

/// Logs a snapshot of a volume.
fn tell_pending(attempt: &Attempt, made: &SnapshotRecord) {
    done!(
        attempt,
        id = %made.id,
        name = made.name,
        volume = made.origin.as_ref().map(|origin| &*origin.name),
        size_bytes = made.size_bytes,
        "snapshot of a volume is pending"
    );
}

/// The outcome of a verification.
struct Verified {
    /// The snapshot as the caller named it.
    snapshot: String,
    checked: u64,
    checked_bytes: u64,
    violations: usize,
}

impl Verified {
    fn tell(attempt: &Attempt, it: &Self) {
        done!(
            attempt,
            snapshot = it.snapshot,
            checked = it.checked,
            checked_bytes = it.checked_bytes,
            violations = it.violations,
            "snapshot verified"
        );
    }
}

/// Sends the extents of a diff. Joins adjacent extents of one kind.
async fn send_diff(mut diff: SnapshotDiff, outlet: Outlet<Vec<DiffExtent>>) -> Result<()> {
    let mut extents = Vec::new();
    // The last extent seen: the next one may go on where it ends.
    let mut last: Option<DiffExtent> = None;
    while let Some(found) = diff.next().await? {
        for extent in found {
            match &mut last {
                Some(last)
                    if last.kind == extent.kind
                        && last.offset_bytes + last.length_bytes == extent.offset_bytes =>
                {
                    last.length_bytes += extent.length_bytes;
                }
                _ => extents.extend(last.replace(extent)),
            }
            if extents.len() >= limits::DIFF_EXTENTS_PER_MESSAGE {
                outlet.send(std::mem::take(&mut extents)).await?;
            }
        }
    }
    extents.extend(last);
    if !extents.is_empty() {
        outlet.send(extents).await?;
    }
    Ok(())
}

/// Sends the progress of a verification at intervals, and the damage it finds; at last, `done`.
async fn send_verify(
    key: String,
    mut verify: SnapshotVerify,
    outlet: Outlet<VerifyState>,
) -> Result<Verified> {
    let mut next_message = time::Instant::now() + limits::VERIFY_PROGRESS_INTERVAL;
    let mut state = VerifyState::default();
    let mut found = 0;
    while let Some(progress) = verify.next().await? {
        let VerifyProgress {
            checked,
            checked_bytes,
            total_bytes,
            violations,
        } = progress;
        state.checked = checked;
        state.checked_bytes = checked_bytes;
        state.total_bytes = total_bytes;
        found += violations.len();
        for violation in violations {
            state.violations.push(violation);
            if state.violations.len() >= limits::VIOLATIONS_PER_MESSAGE {
                outlet.send(state.take()).await?;
            }
        }
        if time::Instant::now() >= next_message {
            outlet.send(state.take()).await?;
            next_message = time::Instant::now() + limits::VERIFY_PROGRESS_INTERVAL;
        }
    }
    let verified = Verified {
        snapshot: key,
        checked: state.checked,
        checked_bytes: state.checked_bytes,
        violations: found,
    };
    state.done = true;
    outlet.send(state).await?;
    Ok(verified)
}

impl VerifyState {
    /// Returns the state, and clears the violations, so that each is sent once.
    fn take(&mut self) -> Self {
        Self {
            violations: std::mem::take(&mut self.violations),
            ..*self
        }
    }
}
