//! Remotes: other daemons that have names.

use super::Store;
use crate::{
    Error, RemoteRecord, Result,
    engine::Priority,
    format::{CatalogRecord as _, Change},
    limits,
    meta::{self, Lookup as _, Meta, Records as _},
};

impl Store {
    /// Gives another daemon a name.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] if a remote has that name; [`Error::Invalid`], with what a name may
    /// be; [`Error::TooMany`] when there are as many remotes as may be.
    pub async fn add_remote(&self, record: RemoteRecord) -> Result<()> {
        meta::check_name("remote", &record.name)?;
        let add = move |meta: &dyn Meta| {
            if let Some(other) = RemoteRecord::by_id(meta, record.name.clone())? {
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
    pub async fn remove_remote(&self, name: String) -> Result<()> {
        let remove = move |meta: &dyn Meta| {
            let remote = found(RemoteRecord::by_id(meta, name.clone())?, &name)?;
            Ok((vec![Change::delete::<RemoteRecord>(&remote.name)], ()))
        };
        self.engine.commit.change((), remove).await
    }

    /// All remotes, by name.
    pub async fn remotes(&self) -> Result<Vec<RemoteRecord>> {
        self.engine.list_all().await
    }

    /// The remote of that name.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`].
    pub async fn remote(&self, name: &str) -> Result<RemoteRecord> {
        let id = name.to_owned();
        let by_id = move |meta: &dyn Meta| RemoteRecord::by_id(meta, id);
        found(self.engine.meta(Priority::Manage, by_id).await?, name)
    }
}

fn found(remote: Option<RemoteRecord>, name: &str) -> Result<RemoteRecord> {
    remote.ok_or_else(|| Error::NotFound {
        what: RemoteRecord::KIND.what,
        // No remote has a longer name.
        name: name.chars().take(limits::NAME_CHARS_MAX).collect(),
    })
}
