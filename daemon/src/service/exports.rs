//! Snapshots and volumes as block devices: lists the exports and opens them.

use varve_store::{
    AccountId, Error as StoreError, ListPlace, ListQuery, SnapshotId, SnapshotKey, SnapshotReader,
    SnapshotRecord, VolumeId, VolumeKey, VolumeRecord,
};

use tokio::time;

use super::{
    Service,
    attachments::{AttachedVolume, split_attachment},
    error::{Error, Result},
};
use crate::auth::{Action, Attempt, Caller, Resource, TicketError};

impl Service {
    /// Completed snapshots of the caller's account whose names sort after a name: those in the
    /// first page of `limit` records that has any.
    pub(crate) async fn exported_snapshots(
        &self,
        caller: &Caller,
        after_name: Option<&str>,
        limit: usize,
    ) -> Result<Vec<SnapshotRecord>> {
        let caller = &self.resolved(caller);
        let sight = self.sight(caller);
        self.pass(caller, Action::ListExports, &[], async {
            let page = |query| self.store().list_snapshots(query);
            let is_exported = |record: &SnapshotRecord| record.content().is_some();
            let name = |record: &SnapshotRecord| record.label().into_owned();
            first_page(sight.account()?, after_name, limit, page, is_exported, name).await
        })
        .await
    }

    /// Attached volumes whose names sort after a name, in the same way.
    pub(crate) async fn exported_volumes(
        &self,
        caller: &Caller,
        after_name: Option<&str>,
        limit: usize,
    ) -> Result<Vec<VolumeRecord>> {
        let caller = &self.resolved(caller);
        let sight = self.sight(caller);
        self.pass(caller, Action::ListExports, &[], async {
            let page = |query| self.store().list_volumes(query);
            let is_exported = |record: &VolumeRecord| record.attached_at_ns.is_some();
            let name = |record: &VolumeRecord| record.label().into_owned();
            first_page(sight.account()?, after_name, limit, page, is_exported, name).await
        })
        .await
    }

    /// Opens a snapshot to be read as a device.
    pub(crate) async fn open_snapshot_export(
        &self,
        caller: &Caller,
        key: &str,
    ) -> Result<SnapshotReader> {
        let on = [Resource::Snapshot(key)];
        let caller = &self.resolved(caller);
        let sight = self.sight(caller);
        self.pass(caller, Action::OpenSnapshotExport, &on, async {
            let key = sight.readable_snapshot("export", key)?;
            Ok(self.store().open_snapshot(&key).await?)
        })
        .await
    }

    /// Opens a volume that is attached.
    pub(crate) async fn open_volume_export(
        &self,
        caller: &Caller,
        key: &str,
    ) -> Result<AttachedVolume> {
        let on = [Resource::Volume(key)];
        let caller = &self.resolved(caller);
        let sight = self.sight(caller);
        self.pass(caller, Action::OpenVolumeExport, &on, async {
            let (key, attachment) = split_attachment(key);
            let key = sight.volume("export", key)?;
            self.0.attachments.open(key, attachment).await
        })
        .await
    }

    /// Opens a volume for whoever shows the ticket of its attachment: an account of the caller does
    /// not count. `key` is `vol-...@7`.
    ///
    /// # Errors
    ///
    /// [`TicketError::Invalid`] whatever is wrong with the ticket, the attachment or the account
    /// that the volume belongs to: only the log says what. It comes the later, the more wrong
    /// tickets this source has shown.
    pub(crate) async fn open_ticketed_export(
        &self,
        caller: &Caller,
        key: &str,
        ticket: &str,
    ) -> Result<AttachedVolume> {
        let on = [Resource::Volume(key)];
        let opened = match self.bearer(caller, key, ticket).await {
            Ok((bearer, key, number)) => {
                let open = self.0.attachments.open(key, Some(number));
                self.pass(&bearer, Action::OpenVolumeExport, &on, open)
                    .await
            }
            Err(error) => {
                let action = Action::OpenVolumeExport;
                Attempt::refuse(&self.0.parts.door, caller, action, &on, &error);
                Err(error)
            }
        };
        match opened {
            Err(
                Error::Ticket(TicketError::Invalid)
                | Error::Denied(_)
                | Error::NotAttached { .. }
                | Error::AttachedAgain { .. }
                | Error::Store(StoreError::NotFound { .. }),
            ) => {
                let delay = self.0.wrong_tickets.count(caller.peer().key());
                time::sleep(delay).await;
                Err(TicketError::Invalid.into())
            }
            opened => opened,
        }
    }

    /// The caller as the bearer of a ticket, with the volume and the attachment that it is for.
    pub(super) async fn bearer(
        &self,
        caller: &Caller,
        key: &str,
        ticket: &str,
    ) -> Result<(Caller, VolumeKey, u64)> {
        if caller.is_overheard() {
            return Err(TicketError::Plaintext.into());
        }
        let (id, number) = split_attachment(key);
        let (Ok(id), Some(number)) = (id.parse::<VolumeId>(), number) else {
            return Err(TicketError::Invalid.into());
        };
        let record = match self.store().volume(&VolumeKey::Id(id)).await {
            Ok(record) => Some(record),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let bearer = self
            .directory()
            .bearer(ticket, (id, number), record.as_ref());
        let bearer = bearer.ok_or(TicketError::Invalid)?;
        let owner = bearer.id();
        let bearer = caller.clone().bearing(bearer);
        Ok((bearer, VolumeKey::Owned { owner, id }, number))
    }

    /// Opens snapshots to compare an export with; `None` for a snapshot that is not there or not
    /// completed.
    pub(crate) async fn open_references(
        &self,
        caller: &Caller,
        snapshots: &[&str],
    ) -> Result<Vec<Option<SnapshotReader>>> {
        let on: Vec<_> = snapshots
            .iter()
            .map(|key| Resource::Snapshot(key))
            .collect();
        let caller = &self.resolved(caller);
        let sight = self.sight(caller);
        self.pass(caller, Action::CompareExport, &on, async {
            let mut opened = Vec::with_capacity(snapshots.len());
            for &key in snapshots {
                let key = sight.readable_snapshot("meta context", key)?;
                opened.push(match self.store().open_snapshot(&key).await {
                    Ok(reader) => Some(reader),
                    Err(StoreError::NotFound { .. } | StoreError::NotCompleted { .. }) => None,
                    Err(error) => return Err(error.into()),
                });
            }
            Ok(opened)
        })
        .await
    }

    /// Names of completed snapshots that an export descends from, the nearest first, at most
    /// `limit`.
    pub(crate) async fn ancestors(
        &self,
        caller: &Caller,
        of: Descendant,
        limit: usize,
    ) -> Result<Vec<String>> {
        let caller = &self.resolved(caller);
        let sight = self.sight(caller);
        self.pass(caller, Action::CompareExport, &[], async {
            let mut names = Vec::new();
            let mut next = match of {
                Descendant::Snapshot(parent) => parent,
                Descendant::Volume(id) => self.store().volume(&VolumeKey::Id(id)).await?.parent,
            };
            while let Some(id) = next.filter(|_| names.len() < limit) {
                match self.store().snapshot(&SnapshotKey::Id(id)).await {
                    Ok(record) => {
                        next = record.parent;
                        // The names of other accounts are none here.
                        if record.content().is_some() && sight.is_own(record.owner) {
                            names.push(record.label().into_owned());
                        }
                    }
                    // Only its deleted record named the ancestors before it.
                    Err(StoreError::NotFound { .. }) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(names)
        })
        .await
    }
}

/// The export whose ancestors are requested.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Descendant {
    /// A snapshot with this parent.
    Snapshot(Option<SnapshotId>),
    /// A volume: its last snapshot comes first, or the snapshot that it was made from.
    Volume(VolumeId),
}

/// The exports among the records whose names sort after a name: those of the first page that has
/// any. Pages without exports are skipped, however many there are.
pub(super) async fn first_page<R, F: Future<Output = Result<Vec<R>, StoreError>>>(
    owner: AccountId,
    after_name: Option<&str>,
    limit: usize,
    page: impl Fn(ListQuery) -> F,
    is_exported: impl Fn(&R) -> bool,
    name: impl Fn(&R) -> String,
) -> Result<Vec<R>> {
    let mut after_name = after_name.map(str::to_owned);
    loop {
        let query = ListQuery {
            owner: Some(owner),
            after: after_name.take().map(|label| ListPlace { owner, label }),
            limit,
            ..ListQuery::default()
        };
        let mut records = page(query).await?;
        let last = records.last().map(&name);
        records.retain(&is_exported);
        match last {
            Some(last) if records.is_empty() => after_name = Some(last),
            _ => return Ok(records),
        }
    }
}
