//! Quotas of accounts, as far as they limit records of the catalog.
//!
//! Invariant: no change of the catalog gives an account more of something than its quota allows.
//! The commit path checks each change while the catalog does not change. What an account has above
//! a limit that was set later stays.

use std::collections::BTreeMap;

use super::{AccountId, AccountRecord, Meta, Records as _, catalog::REMEDY};
use crate::{
    Error, Result,
    format::{
        Change, FormatError, Kind,
        keys::Holdings,
        record::{Entry, OwnedKeys},
    },
};

/// A record as changes leave it: of which kind, and `None` if it is deleted.
type Changed = (&'static Kind, Option<OwnedKeys>);

/// Checks that an account may hold more, before work is done for it. The change itself is checked
/// again.
pub(crate) fn check_room(meta: &dyn Meta, account: AccountId, more: Holdings) -> Result<()> {
    match limited(meta, account)? {
        Some(record) => within(meta, &record, Holdings::default(), more),
        None => Ok(()),
    }
}

/// Checks that changes leave all accounts within their quotas.
pub(crate) fn check_changes(meta: &dyn Meta, changes: &[Change]) -> Result<()> {
    let mut accounts: BTreeMap<AccountId, Option<AccountRecord>> = BTreeMap::new();
    // Of several changes of a record the last one counts.
    let mut changed: BTreeMap<(u8, Vec<u8>), Changed> = BTreeMap::new();
    for change in changes {
        match change {
            Change::Put(entry) => {
                let keys = keys_of(entry)?;
                if keys.holdings != Holdings::default() && !accounts.contains_key(&keys.owner) {
                    accounts.insert(keys.owner, limited(meta, keys.owner)?);
                }
                let kind = entry.kind();
                changed.insert((kind.number, keys.id.clone()), (kind, Some(keys)));
            }
            Change::Delete(gone) => {
                let key = (gone.kind().number, gone.key().to_vec());
                changed.insert(key, (gone.kind(), None));
            }
        }
    }
    // Whoever gains something has no quotas: there is nothing to look up.
    if accounts.values().all(Option::is_none) {
        return Ok(());
    }
    let mut moved: BTreeMap<AccountId, (Holdings, Holdings)> = BTreeMap::new();
    for ((_, id), (kind, after)) in changed {
        if let Some(before) = meta.entry(kind, &id)? {
            let before = keys_of(&before)?;
            let (lost, _) = moved.entry(before.owner).or_default();
            *lost = lost.plus(before.holdings);
        }
        if let Some(after) = after {
            let (_, gained) = moved.entry(after.owner).or_default();
            *gained = gained.plus(after.holdings);
        }
    }
    for account in accounts.into_values().flatten() {
        let (lost, gained) = moved.get(&account.id).copied().unwrap_or_default();
        within(meta, &account, lost, gained)?;
    }
    Ok(())
}

/// The record of an account that has quotas.
fn limited(meta: &dyn Meta, account: AccountId) -> Result<Option<AccountRecord>> {
    let record: Option<AccountRecord> = meta.get(&account)?;
    Ok(record.filter(|record| !record.quotas.is_empty()))
}

/// Checks that an account that loses and gains something stays within its quotas.
fn within(
    meta: &dyn Meta,
    account: &AccountRecord,
    lost: Holdings,
    gained: Holdings,
) -> Result<()> {
    for (quota, limit) in &account.quotas {
        let (Some(lost), Some(gained)) = (lost.of(*quota), gained.of(*quota)) else {
            continue;
        };
        let more = gained.saturating_sub(lost);
        if more == 0 {
            continue;
        }
        let used = meta.holdings(account.id)?.of(*quota).unwrap_or_default();
        if used.saturating_add(more) > *limit {
            return Err(Error::Quota {
                account: account.name.clone(),
                quota: *quota,
                limit: *limit,
                used,
                more,
            });
        }
    }
    Ok(())
}

fn keys_of(entry: &Entry) -> Result<OwnedKeys> {
    entry.keys().map_err(|error: FormatError| Error::Index {
        verb: "decode a record",
        message: format!("{error}; {REMEDY}"),
    })
}
