//! What a caller sees: the things of its account, and for the administrator everything.
//!
//! Invariant: what a caller does not see does not exist for it: the answer is the same, and takes the
//! same look-ups.

use varve_store::{AccountId, CloneSource, Error as StoreError, SnapshotKey, Store, VolumeKey};

use super::{
    error::{Error, Result},
    request,
};
use crate::{
    auth::{Denied, Directory, Principal},
    limits,
};

/// What a caller sees.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    store: Store,
    directory: Directory,
    /// `None`: a caller that is nobody. The door lets it do nothing that needs sight.
    account: Option<AccountId>,
    sees_all: bool,
}

impl Sight {
    pub(super) fn new(store: Store, directory: Directory, principal: Option<&Principal>) -> Self {
        Self {
            store,
            directory,
            account: principal.map(Principal::id),
            sees_all: principal.is_some_and(Principal::is_administrator),
        }
    }

    /// The account that new things belong to, and whose names the caller writes.
    pub(super) fn account(&self) -> Result<AccountId> {
        self.account.ok_or_else(|| Error::Denied(Denied::Nobody))
    }

    /// The account of this id, name or alias.
    pub(super) fn known(&self, text: &str) -> Result<AccountId> {
        let found = self.directory.find(text).map(|account| account.id);
        found.ok_or_else(|| no_account(text))
    }

    /// Returns true if the caller sees the things of an account.
    pub(super) fn sees(&self, owner: AccountId) -> bool {
        self.sees_all || self.account == Some(owner)
    }

    /// Returns true for the administrator.
    pub(super) const fn sees_all(&self) -> bool {
        self.sees_all
    }

    /// Returns true if an account is the caller's own.
    pub(super) fn is_own(&self, owner: AccountId) -> bool {
        self.account == Some(owner)
    }

    /// The owner that a list is limited to, as a request has it: an account, `self`, or `all`.
    /// `None`: everybody.
    pub(super) fn owner(&self, asked: &str) -> Result<Option<AccountId>> {
        let owner = match asked {
            "" | "all" if self.sees_all => return Ok(None),
            "" | "all" | "self" => return self.account().map(Some),
            other => self.directory.find(other).map(|account| account.id),
        };
        match owner.filter(|owner| self.sees(*owner)) {
            Some(owner) => Ok(Some(owner)),
            None => Err(no_account(asked)),
        }
    }

    /// The key of the snapshot with this name or id. A snapshot that the caller does not see has none:
    /// its id becomes a name that nothing has.
    pub(super) async fn snapshot(&self, field: &'static str, text: &str) -> Result<SnapshotKey> {
        request::check_key("snapshot", field, text)?;
        let owner = self.account()?;
        let key = SnapshotKey::of(owner, text);
        if self.sees_all || !matches!(key, SnapshotKey::Id(_)) {
            return Ok(key);
        }
        match self.store.snapshot(&key).await {
            Ok(record) if self.sees(record.owner) => Ok(key),
            Ok(_) | Err(StoreError::NotFound { .. }) => {
                let name = text.to_owned();
                Ok(SnapshotKey::Name { owner, name })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The key of the volume with this name or id. A volume that the caller does not see has none:
    /// its id becomes a name that nothing has.
    pub(super) async fn volume(&self, field: &'static str, text: &str) -> Result<VolumeKey> {
        request::check_key("volume", field, text)?;
        let owner = self.account()?;
        let key = VolumeKey::of(owner, text);
        if self.sees_all || !matches!(key, VolumeKey::Id(_)) {
            return Ok(key);
        }
        match self.store.volume(&key).await {
            Ok(record) if self.sees(record.owner) => Ok(key),
            Ok(_) | Err(StoreError::NotFound { .. }) => {
                let name = text.to_owned();
                Ok(VolumeKey::Name { owner, name })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The keys of several snapshots.
    pub(super) async fn snapshots(&self, texts: &[String]) -> Result<Vec<SnapshotKey>> {
        let mut keys = Vec::with_capacity(texts.len());
        for text in texts {
            keys.push(self.snapshot("snapshots", text).await?);
        }
        Ok(keys)
    }

    /// The keys of several volumes.
    pub(super) async fn volumes(&self, texts: &[String]) -> Result<Vec<VolumeKey>> {
        let mut keys = Vec::with_capacity(texts.len());
        for text in texts {
            keys.push(self.volume("volumes", text).await?);
        }
        Ok(keys)
    }

    /// The source of a clone.
    pub(super) async fn clone_source(&self, source: Source<'_>) -> Result<CloneSource> {
        Ok(match source {
            Source::Snapshot(key) => CloneSource::Snapshot(self.snapshot("source", key).await?),
            Source::Volume(key) => CloneSource::Volume(self.volume("source", key).await?),
            Source::Either(key) => CloneSource::Either {
                snapshot: self.snapshot("source", key).await?,
                volume: self.volume("source", key).await?,
            },
        })
    }
}

/// The source of a clone as a caller wrote it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    Snapshot(&'a str),
    Volume(&'a str),
    Either(&'a str),
}

/// The error for an account that is not there, or that the caller may not know.
pub(super) fn no_account(name: &str) -> Error {
    Error::Store(StoreError::NotFound {
        what: "account",
        name: name.chars().take(limits::QUOTED_CHARS_MAX).collect(),
    })
}
