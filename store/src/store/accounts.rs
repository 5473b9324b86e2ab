//! Accounts, which own records. What they may do is for the daemon to say.

use super::Store;
use crate::{
    Error, Result,
    engine::Priority,
    format::{
        CatalogRecord, Change,
        keys::{Holdings, list_prefix},
        record::Owned,
    },
    limits,
    meta::{
        self, AccessKeyRecord, AccountId, AccountRecord, CopyOutcome, CopyRecord, Filter,
        ImageRecord, Meta, Records as _, RemoteRecord, SnapshotKey, SnapshotRecord, TokenId,
        TokenRecord, VolumeKey, VolumeRecord,
    },
};

impl Store {
    /// Makes an account.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a name, an alias or an identity that cannot be;
    /// [`Error::AlreadyExists`] if another account has the id, the name, the alias or an identity;
    /// [`Error::TooMany`] when there are as many accounts as may be.
    pub async fn create_account(&self, record: AccountRecord) -> Result<AccountRecord> {
        check(&record)?;
        let create = move |meta: &dyn Meta| {
            let others = meta.all::<AccountRecord>()?;
            if others.len() >= limits::ACCOUNTS_MAX {
                return Err(Error::TooMany {
                    what: "accounts",
                    most: limits::ACCOUNTS_MAX as u64,
                });
            }
            let same = others.iter().find(|other| other.id == record.id);
            if same.is_some() || record.id == AccountId::ADMINISTRATOR {
                return Err(Error::AlreadyExists {
                    what: AccountRecord::KIND.what,
                    name: record.id.to_string(),
                    id: record.id.to_string(),
                });
            }
            unique(&record, &others)?;
            Ok((vec![Change::put(&record)], record.clone()))
        };
        let created = self.engine.commit.change((), create).await?;
        self.set_stored_quotas().await;
        Ok(created)
    }

    /// All accounts, by name, and the administrator, even if it has no record.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn accounts(&self) -> Result<Vec<AccountRecord>> {
        let mut all: Vec<AccountRecord> = self.engine.list_all().await?;
        if all.iter().all(|it| it.id != AccountId::ADMINISTRATOR) {
            all.insert(0, AccountRecord::administrator());
        }
        Ok(all)
    }

    /// Replaces an account's record by the one that `change` returns. Its id and the time when it
    /// was made stay.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; errors of `change`; otherwise as of
    /// [`create_account`](Self::create_account).
    pub async fn update_account(
        &self,
        id: AccountId,
        change: impl Fn(&mut AccountRecord) -> Result<()> + Send + 'static,
    ) -> Result<AccountRecord> {
        let update = move |meta: &dyn Meta| {
            let others = meta.all::<AccountRecord>()?;
            let before = found(meta, id)?;
            let mut after = before.clone();
            change(&mut after)?;
            if id == AccountId::ADMINISTRATOR && after.name != before.name {
                return Err(Error::Invalid(format!(
                    "the account of the administrator keeps its name, {:?}",
                    before.name
                )));
            }
            after.id = before.id;
            after.created_at_ns = before.created_at_ns;
            check(&after)?;
            unique(&after, &others)?;
            let changes = match after == before {
                true => Vec::new(),
                false => vec![Change::put(&after)],
            };
            Ok((changes, after))
        };
        let updated = self.engine.commit.change((), update).await?;
        self.set_stored_quotas().await;
        Ok(updated)
    }

    /// Deletes an account that owns nothing, with its tokens and its access keys.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; [`Error::OwnsRecords`] while it owns a snapshot, a volume, an image, a
    /// remote or a copy that is under way; [`Error::Invalid`] for the administrator.
    pub async fn delete_account(&self, id: AccountId) -> Result<AccountRecord> {
        let delete = move |meta: &dyn Meta| {
            if id == AccountId::ADMINISTRATOR {
                return Err(Error::Invalid(
                    "the account of the administrator cannot be deleted".to_owned(),
                ));
            }
            let record = found(meta, id)?;
            let owns = |what, name| {
                let account = record.name.clone();
                Err(Error::OwnsRecords {
                    account,
                    what,
                    name,
                })
            };
            if let Some(volume) = first::<VolumeRecord>(meta, id)? {
                return owns("volume", volume.id.to_string());
            }
            if let Some(snapshot) = first::<SnapshotRecord>(meta, id)? {
                return owns("snapshot", snapshot.id.to_string());
            }
            if let Some(image) = first::<ImageRecord>(meta, id)? {
                return owns("image", image.id.to_string());
            }
            let remotes = meta.all::<RemoteRecord>()?;
            if let Some(remote) = remotes.iter().find(|remote| remote.owner == id) {
                return owns("remote", remote.name.clone());
            }
            let is_under_way =
                |copy: &&CopyRecord| copy.owner == id && copy.outcome == CopyOutcome::UnderWay;
            if let Some(copy) = meta.all::<CopyRecord>()?.iter().find(is_under_way) {
                return owns("copy", copy.id.to_string());
            }
            let tokens = meta.all::<TokenRecord>()?.into_iter();
            let tokens = tokens.filter(|token| token.account == id);
            let mut changes = vec![Change::delete::<AccountRecord>(&id)];
            changes.extend(tokens.map(|token| Change::delete::<TokenRecord>(&token.id)));
            let keys = meta.all::<AccessKeyRecord>()?.into_iter();
            let keys = keys.filter(|key| key.account == id);
            changes.extend(keys.map(|key| Change::delete::<AccessKeyRecord>(&key.id)));
            Ok((changes, record))
        };
        let deleted = self.engine.commit.change((), delete).await?;
        self.set_stored_quotas().await;
        Ok(deleted)
    }

    /// Makes a token for an account.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without the account; [`Error::Invalid`] for a description that cannot
    /// be; [`Error::TooMany`] when the account or the store has as many tokens as may be.
    pub async fn create_token(&self, record: TokenRecord) -> Result<TokenRecord> {
        meta::check_description(&record.description)?;
        let create = move |meta: &dyn Meta| {
            found(meta, record.account)?;
            let others = meta.all::<TokenRecord>()?;
            let own = others.iter().filter(|it| it.account == record.account);
            for (what, count, most) in [
                (
                    "tokens of an account",
                    own.count(),
                    limits::ACCOUNT_TOKENS_MAX,
                ),
                ("tokens", others.len(), limits::TOKENS_MAX),
            ] {
                if count >= most {
                    let most = most as u64;
                    return Err(Error::TooMany { what, most });
                }
            }
            Ok((vec![Change::put(&record)], record.clone()))
        };
        self.engine.commit.change((), create).await
    }

    /// All tokens, by id.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>> {
        self.engine.list_all().await
    }

    /// Changes the records of tokens, all of them or none. Those that are not there any more are
    /// passed over.
    ///
    /// # Errors
    ///
    /// Errors of changing the catalog.
    pub async fn update_tokens(
        &self,
        ids: Vec<TokenId>,
        change: impl Fn(TokenRecord) -> TokenRecord + Send + 'static,
    ) -> Result<()> {
        let update = move |meta: &dyn Meta| {
            let mut changes = Vec::with_capacity(ids.len());
            for id in &ids {
                if let Some(record) = meta.get::<TokenRecord>(id)? {
                    changes.push(Change::put(&change(record)));
                }
            }
            Ok((changes, ()))
        };
        self.engine.commit.change((), update).await
    }

    /// Deletes a token.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`]; those of changing the catalog.
    pub async fn delete_token(&self, id: TokenId) -> Result<TokenRecord> {
        self.engine.commit.delete(id, |_| Ok(())).await
    }

    /// Returns true if anything belongs to another account than the administrator's.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn has_owned(&self) -> Result<bool> {
        let owned = |meta: &dyn Meta| {
            Ok(first_owned::<VolumeRecord>(meta)?
                || first_owned::<SnapshotRecord>(meta)?
                || first_owned::<ImageRecord>(meta)?)
        };
        self.engine.meta(Priority::Manage, owned).await
    }

    /// What an account holds.
    ///
    /// # Errors
    ///
    /// Errors of reading the catalog.
    pub async fn holdings(&self, account: AccountId) -> Result<Holdings> {
        let look = move |meta: &dyn Meta| meta.holdings(account);
        self.engine.meta(Priority::Manage, look).await
    }

    /// Gives a snapshot to another account.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without the snapshot or the account; [`Error::AlreadyExists`] if the
    /// account has a snapshot of that name; [`Error::Quota`] if it may have no more;
    /// [`Error::NotCompleted`] for a snapshot that is pending.
    pub async fn give_snapshot(&self, key: &SnapshotKey, to: AccountId) -> Result<SnapshotRecord> {
        let snapshot = self.snapshot(key).await?;
        snapshot.completed()?;
        self.give(snapshot.id, to).await
    }

    /// Gives a volume to another account. Its snapshots stay where they are.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without the volume or the account; [`Error::AlreadyExists`] if the
    /// account has a volume of that name; [`Error::Quota`] if it may have no more;
    /// [`Error::Attached`] while it is attached;
    /// [`Error::HasPending`] while snapshots of it are pending.
    pub async fn give_volume(&self, key: &VolumeKey, to: AccountId) -> Result<VolumeRecord> {
        let volume = self.volume(key).await?;
        self.volumes.give_volume(volume.id, to).await
    }

    pub(super) async fn give<R: Owned>(&self, id: R::Id, to: AccountId) -> Result<R> {
        let give = move |meta: &dyn Meta| meta::given::<R>(meta, &id, to);
        self.engine.commit.change((), give).await
    }
}

/// The account of that id.
pub(super) fn found(meta: &dyn Meta, id: AccountId) -> Result<AccountRecord> {
    match meta.get(&id)? {
        Some(record) => Ok(record),
        None if id == AccountId::ADMINISTRATOR => Ok(AccountRecord::administrator()),
        None => Err(meta::no_account(id)),
    }
}

/// Returns true if a record of the kind belongs to another account than the administrator's.
fn first_owned<R: CatalogRecord>(meta: &dyn Meta) -> Result<bool> {
    let Some(first) = AccountId::from_number(1) else {
        return Ok(false);
    };
    let page = meta.page::<R>(&Filter::default(), &list_prefix(first), 1)?;
    Ok(!page.records.is_empty())
}

/// A record of that owner.
fn first<R: CatalogRecord>(meta: &dyn Meta, owner: AccountId) -> Result<Option<R>> {
    let filter = Filter {
        owner: Some(owner),
        ..Filter::default()
    };
    Ok(meta.page(&filter, &[], 1)?.records.pop())
}

/// Checks an account without the others.
fn check(record: &AccountRecord) -> Result<()> {
    meta::check_account_name("name", &record.name)?;
    if !record.alias.is_empty() {
        meta::check_account_name("alias", &record.alias)?;
    }
    if record.identities.len() > limits::IDENTITIES_MAX {
        return Err(Error::TooMany {
            what: "identities of an account",
            most: limits::IDENTITIES_MAX as u64,
        });
    }
    let mut identities = record.identities.iter();
    identities.try_for_each(meta::check_identity)
}

/// Checks that no other account has the name, the alias or an identity of this one. Names and
/// aliases are one space: either finds the account.
fn unique(record: &AccountRecord, others: &[AccountRecord]) -> Result<()> {
    let administrator = AccountRecord::administrator();
    let has_record = others.iter().any(|it| it.id == AccountId::ADMINISTRATOR);
    let others = others
        .iter()
        .chain((!has_record).then_some(&administrator))
        .filter(|other| other.id != record.id);
    let taken = |what: &'static str, name: &str, by: &AccountRecord| {
        Err(Error::AlreadyExists {
            what,
            name: name.to_owned(),
            id: by.id.to_string(),
        })
    };
    if record.alias == record.name {
        return taken("account", &record.name, record);
    }
    for other in others {
        for name in [&record.name, &record.alias] {
            if !name.is_empty() && (*name == other.name || *name == other.alias) {
                return taken("account", name, other);
            }
        }
        if let Some(same) = record.identities.intersection(&other.identities).next() {
            return taken("identity", &same.to_string(), other);
        }
    }
    Ok(())
}
