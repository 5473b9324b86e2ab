//! What a caller sees: the things of its account, and for the administrator everything.
//!
//! Invariant: what a caller does not see does not exist for it: the answer is the same, and takes
//! the same look-ups. A key says whose record it is the key of, so the store checks that again in
//! the transaction of a change.

use varve_store::{AccountId, CloneSource, SnapshotKey, VolumeKey};

use super::{
    error::{Error, Result},
    request,
};
use crate::auth::{Denied, Directory, Principal};

/// What a caller sees.
#[derive(Debug, Clone)]
pub(super) struct Sight {
    directory: Directory,
    /// `None`: a caller that is nobody. The door lets it do nothing that needs sight.
    account: Option<AccountId>,
    sees_all: bool,
}

impl Sight {
    pub(super) fn new(directory: Directory, principal: Option<&Principal>) -> Self {
        Self {
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
        found.ok_or_else(|| request::not_found("account", text))
    }

    /// Returns true if the caller sees the things of an account.
    pub(super) fn sees(&self, owner: AccountId) -> bool {
        self.sees_all || self.account == Some(owner)
    }

    /// Returns true for the administrator.
    pub(super) const fn sees_others(&self) -> bool {
        self.sees_all
    }

    /// Returns true if an account is the caller's own.
    pub(super) fn is_own(&self, owner: AccountId) -> bool {
        self.account == Some(owner)
    }

    /// The owner that a list is limited to, as a request has it: an account, `self`, or `all`.
    /// `None`: everybody.
    pub(super) fn owner(&self, asked: &str) -> Result<Option<AccountId>> {
        match asked {
            "" | "all" if self.sees_all => Ok(None),
            "" | "all" => self.account().map(Some),
            one => self.one_account(one).map(Some),
        }
    }

    /// The account that a request is about, if the caller sees its things. Empty or `self`: the
    /// caller's own.
    pub(super) fn one_account(&self, asked: &str) -> Result<AccountId> {
        if ["", "self"].contains(&asked) {
            return self.account();
        }
        let known = self.known(asked)?;
        match self.sees(known) {
            true => Ok(known),
            false => Err(request::not_found("account", asked)),
        }
    }

    /// The key of the snapshot with this name or id. For an account it is the key of nothing if
    /// the snapshot belongs to another.
    pub(super) fn snapshot(&self, field: &'static str, text: &str) -> Result<SnapshotKey> {
        request::check_key("snapshot", field, text)?;
        let owner = self.account()?;
        Ok(match SnapshotKey::of(owner, text) {
            SnapshotKey::Id(id) if !self.sees_all => SnapshotKey::Owned { owner, id },
            key => key,
        })
    }

    /// The key of the volume with this name or id. For an account it is the key of nothing if
    /// the volume belongs to another.
    pub(super) fn volume(&self, field: &'static str, text: &str) -> Result<VolumeKey> {
        request::check_key("volume", field, text)?;
        let owner = self.account()?;
        Ok(match VolumeKey::of(owner, text) {
            VolumeKey::Id(id) if !self.sees_all => VolumeKey::Owned { owner, id },
            key => key,
        })
    }

    /// The keys of several snapshots.
    pub(super) fn snapshots(&self, texts: &[String]) -> Result<Vec<SnapshotKey>> {
        let keys = texts.iter().map(|text| self.snapshot("snapshots", text));
        keys.collect()
    }

    /// The keys of several volumes.
    pub(super) fn volumes(&self, texts: &[String]) -> Result<Vec<VolumeKey>> {
        let keys = texts.iter().map(|text| self.volume("volumes", text));
        keys.collect()
    }

    /// The source of a clone.
    pub(super) fn clone_source(&self, source: Source<'_>) -> Result<CloneSource> {
        Ok(match source {
            Source::Snapshot(key) => CloneSource::Snapshot(self.snapshot("source", key)?),
            Source::Volume(key) => CloneSource::Volume(self.volume("source", key)?),
            Source::Either(key) => CloneSource::Either {
                snapshot: self.snapshot("source", key)?,
                volume: self.volume("source", key)?,
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
