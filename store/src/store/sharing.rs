//! Sharing: records that accounts may read beside their owners.

use super::Store;
use crate::{
    Error, Result,
    format::{Change, record::Shareable},
    limits,
    meta::{AccountRecord, Key, Lookup as _, Meta, Records as _, Sharing},
};

impl Store {
    /// Shares a record with others beside those whom it is shared with already, unless `check`
    /// returns an error.
    pub(super) async fn share<R: Shareable>(
        &self,
        key: &Key<R>,
        with: Sharing,
        check: impl Fn(&dyn Meta, &mut R) -> Result<()> + Send + 'static,
    ) -> Result<R> {
        let key = key.clone();
        let share = move |meta: &dyn Meta| {
            let before = R::find(meta, &key)?;
            let mut record = before.clone();
            let owner: Option<AccountRecord> = meta.get(&record.keys().owner)?;
            if with.everybody && R::is_private(owner.as_ref()) {
                let owner = owner.unwrap_or_else(AccountRecord::administrator);
                return Err(Error::PublicAccessBlocked {
                    what: R::KIND.what,
                    account: owner.name,
                });
            }
            let sharing = record.sharing_mut();
            sharing.everybody |= with.everybody;
            sharing.accounts.extend(with.accounts.iter());
            if sharing.accounts.len() > limits::SHARED_ACCOUNTS_MAX {
                return Err(Error::TooMany {
                    what: "accounts that a record is shared with",
                    most: limits::SHARED_ACCOUNTS_MAX as u64,
                });
            }
            check(meta, &mut record)?;
            let changes = (record != before).then(|| Change::put(&record));
            Ok((changes.into_iter().collect(), record))
        };
        self.engine.commit.change((), share).await
    }

    /// Ends what [`share`](Self::share) began.
    pub(super) async fn unshare<R: Shareable>(&self, key: &Key<R>, with: Sharing) -> Result<R> {
        let id = self.engine.find(key.clone()).await?.id();
        let key = key.clone();
        let change = move |mut record: R| {
            key.check(&record)?;
            let sharing = record.sharing_mut();
            sharing.everybody &= !with.everybody;
            sharing.accounts.retain(|it| !with.accounts.contains(it));
            Ok(record)
        };
        self.engine.commit.update(id, change).await
    }
}
