//! Remotes: other daemons that have names.

use super::Store;
use crate::{
    Error, RemoteRecord, Result,
    engine::Priority,
    format::{AccountId, CatalogRecord as _, Change},
    limits,
    meta::{self, Lookup as _, Meta, Records as _},
};

impl Store {
    /// Gives another daemon a name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] without the account that it is to belong to; [`Error::AlreadyExists`] if
    /// a remote of the account has that name; [`Error::Invalid`], with what a name may be;
    /// [`Error::TooMany`] when there are as many remotes as may be.
    pub async fn add_remote(&self, record: RemoteRecord) -> Result<()> {
        meta::check_name("remote", &record.name)?;
        let add = move |meta: &dyn Meta| {
            meta::check_owner(meta, record.owner)?;
            if let Some(other) = RemoteRecord::by_id(meta, record.id())? {
                return Err(Error::AlreadyExists {
                    what: RemoteRecord::KIND.what,
                    name: record.name.clone(),
                    id: other.endpoint,
                });
            }
            if meta.all::<RemoteRecord>()?.len() >= limits::REMOTES_MAX {
                return Err(Error::TooMany {
                    what: "remotes",
                    most: limits::REMOTES_MAX as u64,
                });
            }
            Ok((vec![Change::put(&record)], ()))
        };
        self.engine.commit.change((), add).await
    }

    /// Forgets a remote.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn remove_remote(&self, owner: AccountId, name: String) -> Result<()> {
        let remove = move |meta: &dyn Meta| {
            let id = RemoteRecord::id_of(owner, &name);
            let remote = RemoteRecord::by_id(meta, id)?;
            let remote = found(remote.filter(|it| it.owner == owner), &name)?;
            Ok((vec![Change::delete::<RemoteRecord>(&remote.id())], ()))
        };
        self.engine.commit.change((), remove).await
    }

    /// All remotes, by owner and name.
    pub async fn remotes(&self) -> Result<Vec<RemoteRecord>> {
        let mut remotes: Vec<RemoteRecord> = self.engine.list_all().await?;
        remotes.sort_by(|a, b| (a.owner, &a.name).cmp(&(b.owner, &b.name)));
        Ok(remotes)
    }

    /// The remote of that owner and name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn remote(&self, owner: AccountId, name: &str) -> Result<RemoteRecord> {
        let id = RemoteRecord::id_of(owner, name);
        let by_id = move |meta: &dyn Meta| RemoteRecord::by_id(meta, id);
        let remote = self.engine.meta(Priority::Manage, by_id).await?;
        found(remote.filter(|it| it.owner == owner), name)
    }
}

fn found(remote: Option<RemoteRecord>, name: &str) -> Result<RemoteRecord> {
    remote.ok_or_else(|| Error::NotFound {
        what: RemoteRecord::KIND.what,
        // No remote has a longer name.
        name: name.chars().take(limits::NAME_CHARS_MAX).collect(),
    })
}
