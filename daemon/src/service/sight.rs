//! What a caller sees: the things of its account, and for the administrator everything. What others
//! share with its account, it may read.
//!
//! Invariant: what a caller does not see does not exist for it: the answer is the same, and takes
//! the same look-ups. A key says whose record it is the key of, so the store checks that again in
//! the transaction of a change.

use varve_store::{AccountId, CloneSource, Sharing, SnapshotKey, VolumeKey};

use super::{
    error::{Error, Result},
    request,
};
use crate::{
    auth::{Denied, Directory, Principal, Resource},
    limits,
};

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

    /// Whose snapshots a list has, as a request has it: as of [`owner`](Self::owner), and for an
    /// account also what others share with it.
    pub(super) fn readable(&self, asked: &str) -> Result<ListScope> {
        let account = self.account()?;
        let shared = |owner| ListScope {
            owner,
            reader: Some(account),
        };
        Ok(match asked {
            _ if self.sees_all => self.owner(asked)?.into(),
            "" | "all" => shared(None),
            // Every id is one of an account, as far as the caller can tell.
            one => match one.parse() {
                Ok(owner) => shared(Some(owner)),
                Err(_) => Some(self.one_account(one)?).into(),
            },
        })
    }

    /// Those whom a request shares with. Only the administrator knows names of accounts.
    pub(super) fn grantees(
        &self,
        Grantees {
            accounts,
            everybody,
        }: &Grantees,
    ) -> Result<Sharing> {
        request::at_most(
            "accounts",
            "accounts",
            accounts.len(),
            limits::SHARE_ACCOUNTS_MAX,
        )?;
        let accounts = accounts.iter().map(|text| match text.parse() {
            Ok(id) => Ok(id),
            Err(_) if self.sees_all => self.known(text),
            Err(_) => Err(Error::field(
                "accounts",
                "accounts are named by their ids of 12 digits",
            )),
        });
        Ok(Sharing {
            accounts: accounts.collect::<Result<_>>()?,
            everybody: *everybody,
        })
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

    /// The key of the snapshot with this name or id, for reading only: it may belong to another
    /// account that shares it with the caller's.
    pub(super) fn readable_snapshot(&self, field: &'static str, text: &str) -> Result<SnapshotKey> {
        Ok(match self.snapshot(field, text)? {
            SnapshotKey::Owned { owner, id } => SnapshotKey::Readable { reader: owner, id },
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
            Source::Snapshot(key) => CloneSource::Snapshot(self.readable_snapshot("source", key)?),
            Source::Volume(key) => CloneSource::Volume(self.volume("source", key)?),
            Source::Either(key) => CloneSource::Either {
                snapshot: self.readable_snapshot("source", key)?,
                volume: self.volume("source", key)?,
            },
        })
    }
}

/// Whose records a list has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct ListScope {
    /// Only those of this account; `None`: of all.
    pub(super) owner: Option<AccountId>,
    /// Only those that this account may read; `None`: all.
    pub(super) reader: Option<AccountId>,
}

impl From<Option<AccountId>> for ListScope {
    fn from(owner: Option<AccountId>) -> Self {
        Self {
            owner,
            reader: None,
        }
    }
}

/// Those whom a snapshot is to be shared with, as a caller wrote them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Grantees {
    /// Ids, and for the administrator also names.
    pub(crate) accounts: Vec<String>,
    /// All accounts.
    pub(crate) everybody: bool,
}

impl Grantees {
    /// Each of them, for the audit log.
    pub(super) fn as_resources(&self) -> impl Iterator<Item = Resource<'_>> {
        let everybody = self.everybody.then_some(Resource::Account("all"));
        let accounts = self.accounts.iter().map(|text| Resource::Account(text));
        accounts.take(limits::SHARE_ACCOUNTS_MAX).chain(everybody)
    }
}

/// The source of a clone as a caller wrote it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'a> {
    Snapshot(&'a str),
    Volume(&'a str),
    Either(&'a str),
}
